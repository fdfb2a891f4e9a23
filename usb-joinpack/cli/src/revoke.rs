//! `joinpack revoke`: signs a snapshot of everything that is revoked. Sends nothing.

use crate::chance;
use crate::fabric::Fabric;
use crate::failure::{Failure, invalid};
use crate::keyring::KeyArgs;
use crate::show::{self, Form};
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{KeyId, Revocations, Role};
use serde::Serialize;
use std::path::Path;

/// What to revoke.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub struct RevokeArgs {
    /// A node: its peer id, as `bmctl nodes -o json` and the receipts show it
    #[arg(long = "node", value_name = "PEER")]
    nodes: Vec<PeerId>,
    /// A voucher that was not redeemed yet, or whoever redeemed it
    #[arg(long = "voucher", value_name = "ID")]
    vouchers: Vec<String>,
    /// A key of a role, 64 digits as in the file of the key; signed by recovery. Root keys are replaced by a root document
    #[arg(long = "key", value_name = "ID", value_parser = parse_key)]
    keys: Vec<KeyId>,
}

fn parse_key(text: &str) -> Result<KeyId, String> {
    KeyId::try_from(text.to_owned()).map_err(|refusal| refusal.to_string())
}

/// What was revoked.
#[derive(Serialize)]
struct View {
    result: &'static str,
    #[serde(flatten)]
    all: Revocations,
}

/// Revokes, in the folder of the fabric at `dir`.
pub fn revoke(
    dir: &Path,
    what: RevokeArgs,
    keys: &KeyArgs,
    dry_run: bool,
    output: Form,
) -> Result<(), Failure> {
    let fabric = Fabric::open(dir)?;
    let mut more = Revocations::none(fabric.roots.fabric_id().clone(), chance::now());
    more.nodes.extend(what.nodes);
    more.vouchers.extend(what.vouchers);
    more.keys.extend(what.keys);
    for role in Role::ALL.into_iter().filter(|role| *role != Role::Root) {
        let keys = fabric.roots.role(role);
        let left = keys.keys().filter(|(id, _)| !more.keys.contains(*id)).count();
        let named = keys.keys().any(|(id, _)| more.keys.contains(id));
        if named && left < keys.threshold() && role == Role::Recovery {
            invalid!("then no recovery key would be left to revoke others: make a new root document instead");
        }
    }
    let known = |id: &KeyId| fabric.roots.current().keys.contains_key(id);
    if let Some(stranger) = more.keys.iter().find(|id| !known(id)) {
        invalid!("key {stranger} is none of this fabric's");
    }
    let mut all = fabric.revoked.union(fabric.roots.fabric_id());
    all.add(&more);
    all.issued = more.issued;
    if !dry_run {
        fabric.revoke(&more, keys)?;
    }
    let result = if dry_run { "would-revoke" } else { "revoked" };
    show::print(output, &View { result, all }, |view| {
        format!(
            "{result}: {} node(s), {} voucher(s) and {} key(s) in all\nbring it to the fabric with `bmctl revoke --file {}`, or with the next stick\n",
            view.all.nodes.len(),
            view.all.vouchers.len(),
            view.all.keys.len(),
            dir.join("revocations.json").display()
        )
    })
}
