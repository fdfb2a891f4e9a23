//! What nodes booted: shows it register by register, and accepts for one node what it shows.
//!
//! Invariant: what is signed is what was printed, and what verified acceptances held before; a node that lies about another
//! can have nothing accepted that the operator does not see.

use crate::client::Client;
use crate::failure::{Class, Failure};
use crate::output::{note, print, render_document};
use crate::session::Session;
use crate::table;
use beemesh_agent_api::boot::{BootView, BootsView};
use beemesh_agent_api::view::NodeAssurance;
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{Acceptance, Acceptances, Envelope, Registers, Timestamp, limits};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

const WHAT: &str = "accept a boot";
/// The register of the image, which releases judge.
const IMAGE: u8 = 11;

/// How a boot is accepted.
pub(super) struct How {
    pub(super) reason: Option<String>,
    pub(super) digest: Option<Digest>,
    pub(super) dry_run: bool,
}

/// A register that is not what it was.
#[derive(Serialize)]
struct Change {
    pcr: u8,
    from: Option<Digest>,
    to: Option<Digest>,
}

/// A node, and what people compare.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    boot: &'a BootView,
    /// Of the registers that it shows; `None` where it shows none.
    digest: Option<Digest>,
    changes: Vec<Change>,
}

/// What was accepted; in a dry run with the document and its signed form.
#[derive(Serialize)]
struct Outcome<'a> {
    result: &'static str,
    node: &'a PeerId,
    digest: Digest,
    changes: Vec<Change>,
    #[serde(skip_serializing_if = "Option::is_none")]
    acceptance: Option<&'a Acceptance>,
    #[serde(skip_serializing_if = "Option::is_none")]
    envelope: Option<&'a Envelope>,
}

pub(super) async fn show(session: &Session, node: &str) -> Result<(), Failure> {
    let view = look(&session.client()?).await?;
    let boot = find(&view, node)?;
    let shown = Shown {
        boot,
        digest: digest_of(boot),
        changes: changes(boot),
    };
    print(render_document(session.global.output, &shown, |shown| {
        let digest = shown
            .digest
            .map_or_else(|| "-".to_owned(), |digest| digest.to_string());
        let head = [
            boot.name.to_string(),
            boot.assurance.to_string(),
            boot.release.clone().unwrap_or_else(|| "-".to_owned()),
            digest,
        ];
        let head = table::draw(&["NAME", "ASSURANCE", "RELEASE", "DIGEST"], [head.to_vec()]);
        let all: std::collections::BTreeSet<u8> =
            boot.shown.keys().chain(boot.recorded.keys()).copied().collect();
        let changed: Vec<u8> = shown.changes.iter().map(|change| change.pcr).collect();
        let row = |pcr: &u8| {
            vec![
                pcr.to_string(),
                if changed.contains(pcr) { "changed" } else { "" }.to_owned(),
                hex(boot.recorded.get(pcr)),
                hex(boot.shown.get(pcr)),
            ]
        };
        match all.is_empty() {
            true => head,
            false => {
                let rows = table::draw(&["PCR", "", "RECORDED", "NOW"], all.iter().map(row));
                format!("{head}\n{rows}")
            }
        }
    })?)
}

pub(super) async fn accept(session: &Session, node: &str, how: How) -> Result<(), Failure> {
    let operator = session.operator()?;
    let client = session.client()?;
    let view = look(&client).await?;
    let boot = find(&view, node)?;
    let digest = acceptable(boot)?;
    if let Some(meant) = how.digest.filter(|meant| *meant != digest) {
        return Err(
            failed(boot, format!("its registers are {digest} now, not {meant}"))
                .hint("it was started again since you looked: see `bmctl node show`"),
        );
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = ulid::Generator::new().generate();
    let id = id.map_err(|error| Failure::new(Class::Failed, WHAT).because(error))?;
    // A node may say what it likes; only what is signed goes into what this operator signs.
    let known = Acceptances::restore(&view.acceptances, operator.roots());
    let acceptance = Acceptance {
        fabric: operator.fabric(),
        id: id.to_string(),
        issued: Timestamp(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)),
        reason: how.reason,
        nodes: with_standing(&known, boot),
    };
    let envelope = operator
        .sign(&acceptance)
        .map_err(|error| error.into_failure(WHAT))?;
    if !how.dry_run {
        let sent = client.submit_acceptance(envelope.to_json()).await;
        sent.map_err(|error| error.into_failure(WHAT))?;
    }
    let outcome = Outcome {
        result: if how.dry_run { "dry-run" } else { "accepted" },
        node: &boot.node,
        digest,
        changes: changes(boot),
        acceptance: how.dry_run.then_some(&acceptance),
        envelope: how.dry_run.then_some(&envelope),
    };
    print(render_document(session.global.output, &outcome, |outcome| {
        let rows = outcome.changes.iter().map(|change| {
            vec![
                change.pcr.to_string(),
                hex(change.from.as_ref()),
                hex(change.to.as_ref()),
            ]
        });
        let rows = table::draw(&["PCR", "FROM", "TO"], rows);
        format!(
            "{rows}\n{} boots with the registers {}\n",
            boot.name, outcome.digest
        )
    })?)?;
    if how.dry_run {
        note("dry run: nothing was sent");
    }
    Ok(())
}

async fn look(client: &Client) -> Result<BootsView, Failure> {
    let view = client.boots().await;
    view.map_err(|error| error.into_failure("show what nodes booted"))
}

/// The digest of what a node shows, if there is something that an acceptance can do for it.
fn acceptable(boot: &BootView) -> Result<Digest, Failure> {
    let pcrs = match &boot.assurance {
        NodeAssurance::Changed(pcrs) => pcrs,
        other => {
            return Err(failed(
                boot,
                format!("its assurance is `{other}`: no register has changed"),
            )
            .hint("see `bmctl node show`; a node that was not judged yet is within a minute"));
        }
    };
    if pcrs.contains(&IMAGE) {
        return Err(failed(boot, "it booted an image that no join pack names as a release").hint(
            "if it is meant, name it: `joinpack create --release release.json`, and bring that pack to the nodes",
        ));
    }
    digest_of(boot).ok_or_else(|| failed(boot, "the node that was asked does not say what it shows"))
}

/// What is accepted with it: what stands already goes into the new one as far as there is room, so that few are kept.
fn with_standing(known: &Acceptances, boot: &BootView) -> BTreeMap<PeerId, Registers> {
    let newest = known.accepted();
    let mut nodes = BTreeMap::from([(boot.node.clone(), Registers(boot.shown.clone()))]);
    for acceptance in known.iter() {
        let mut more = nodes.clone();
        for node in acceptance.nodes.keys().filter(|node| **node != boot.node) {
            more.extend(
                newest
                    .get_key_value(node)
                    .map(|(node, registers)| (node.clone(), registers.clone())),
            );
        }
        // One that goes in by half stands all the same.
        if more.len() <= limits::ACCEPTED {
            nodes = more;
        }
    }
    nodes
}

fn find<'a>(view: &'a BootsView, target: &str) -> Result<&'a BootView, Failure> {
    let peer = target.parse::<PeerId>().ok();
    let is_meant = |node: &&BootView| match &peer {
        Some(peer) => node.node == *peer,
        None => node.name.as_str() == target,
    };
    let mut found = view.nodes.iter().filter(is_meant);
    let shown: String = target.chars().take(80).collect();
    let failure = |why: &str| Failure::new(Class::Failed, format!("find node `{shown}`")).because(why);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node),
        (None, _) => Err(failure("no member has this name or id").hint("see `bmctl nodes`")),
        _ => Err(failure("several members have this name").hint("name it by its peer id: see `bmctl nodes`")),
    }
}

fn failed(boot: &BootView, why: impl ToString) -> Failure {
    Failure::new(Class::Failed, format!("accept what `{}` booted", boot.name)).because(why.to_string())
}

fn digest_of(boot: &BootView) -> Option<Digest> {
    (!boot.shown.is_empty()).then(|| Registers(boot.shown.clone()).digest())
}

fn changes(boot: &BootView) -> Vec<Change> {
    let changes = boot.changes().into_iter();
    changes.map(|(pcr, from, to)| Change { pcr, from, to }).collect()
}

/// As firmware's tools print it.
fn hex(value: Option<&Digest>) -> String {
    value.map_or_else(
        || "-".to_owned(),
        |value| value.to_string().replace("sha256:", ""),
    )
}
