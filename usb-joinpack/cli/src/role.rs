//! `joinpack fabric role`: the life of a fabric's keys. Each change is a root document more, signed by thresholds of the root
//! keys before and after it; `bmctl keys roots push` or the next stick brings it to the boxes.
//!
//! Invariant: `root.json` is replaced whole, by a chain that a reader accepts, after the secrets that it names are on disk.

use crate::chance;
use crate::fabric::{self, Fabric};
use crate::failure::{Failure, invalid};
use crate::keyring::{self, Key, KeyArgs};
use crate::show::{self, Form};
use crate::succession::{self, Change, name};
use beemesh_joinpack_format::{
    Grant, KeyId, KeyLimits, PublicKey, ROOT_PAYLOAD_TYPE, Role, Root, RootChain, SecretKey, Timestamp,
    scope_in_words,
};
use beemesh_joinpack_token::SCHEME;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What can be done with the keys of the roles.
#[derive(Subcommand)]
pub enum RoleCommand {
    /// Lists the keys: what each may do, and until when
    List {
        /// Folder of the fabric
        dir: PathBuf,
        /// Form of the output
        #[arg(short, long, value_enum, default_value = "table")]
        output: Form,
    },
    /// Gives a role to a new key; or to a key that somebody else made; or other limits to one that has it
    Add {
        /// Folder of the fabric
        dir: PathBuf,
        /// The role
        #[arg(long, value_parser = parse_role)]
        role: Role,
        #[command(flatten)]
        new: NewKey,
        #[command(flatten)]
        how: How,
    },
    /// Lets a key sign no more. What it signed stays: nodes that it admitted, workloads that it applied
    Retire {
        /// Folder of the fabric
        dir: PathBuf,
        /// The key, or the first 8 or more digits of its id
        key: String,
        /// The role, where it has several
        #[arg(long, value_parser = parse_role)]
        role: Option<Role>,
        #[command(flatten)]
        how: How,
    },
    /// Takes a key out of a role. What it signed counts no more for who hears of it anew: retire keys that are merely lost
    Remove {
        /// Folder of the fabric
        dir: PathBuf,
        /// The key, or the first 8 or more digits of its id
        key: String,
        /// The role, where it has several
        #[arg(long, value_parser = parse_role)]
        role: Option<Role>,
        #[command(flatten)]
        how: How,
    },
    /// Puts a new key in the place of one that was lost, with the same scope; what the old one signed stays
    Replace {
        /// Folder of the fabric
        dir: PathBuf,
        /// The key, or the first 8 or more digits of its id
        key: String,
        /// The role, where it has several
        #[arg(long, value_parser = parse_role)]
        role: Option<Role>,
        #[command(flatten)]
        new: NewKey,
        #[command(flatten)]
        how: How,
    },
    /// Sets how many keys of a role must sign
    Threshold {
        /// Folder of the fabric
        dir: PathBuf,
        /// The role
        #[arg(long, value_parser = parse_role)]
        role: Role,
        /// How many
        number: u32,
        #[command(flatten)]
        how: How,
    },
}

/// A key that gets a role.
#[derive(Args)]
pub struct NewKey {
    /// The public half, 64 digits, of a key that its holder keeps, or a key on a token (pkcs11:…, RFC 7512); without it a key is
    /// made and written to the folder
    #[arg(long, value_name = "HEX|URI")]
    public: Option<String>,
    /// Until when it signs: 2027-01-01, 2027-01-01T12:00:00Z, or a span such as 365d. Not for root keys
    #[arg(long, value_name = "TIME", value_parser = parse_expiry)]
    expires: Option<Expiry>,
    /// What an operator's key may do [default: everything]: workloads, workloads:NAMESPACE, workloads:NAMESPACE/NAME,
    /// workloads:NAMESPACE/PREFIX*, nodes, network, keys; or `look`, to see and do nothing
    #[arg(long, value_name = "WHAT,...", value_delimiter = ',')]
    scope: Vec<String>,
}

/// How the root document is made.
#[derive(Args)]
pub struct How {
    #[command(flatten)]
    keys: KeyArgs,
    /// Show what would change and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

/// An end.
#[derive(Debug, Clone, Copy)]
enum Expiry {
    At(Timestamp),
    After(i64),
}

fn parse_role(text: &str) -> Result<Role, String> {
    let named = Role::ALL.into_iter().find(|role| name(*role) == text);
    named.ok_or_else(|| "expected root, enrolment, operator, release or recovery".to_owned())
}

/// `ROLE=FILE` or `ROLE=pkcs11:…`.
pub fn parse_given(text: &str) -> Result<(Role, Key), Failure> {
    let Some((role, key)) = text.split_once('=') else {
        invalid!("`{text}` is not a role, `=` and a key")
    };
    let role = parse_role(role).map_err(|error| Failure::Invalid(anyhow::anyhow!("`{role}`: {error}")))?;
    Ok((role, keyring::open(key)?))
}

fn parse_expiry(text: &str) -> Result<Expiry, String> {
    if let Ok(seconds) = chance::parse_span(text) {
        return Ok(Expiry::After(seconds));
    }
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        _ => text.to_owned(),
    };
    Timestamp::parse(&whole).map(Expiry::At).map_err(|_| {
        "expected a day like 2027-01-01, a time like 2027-01-01T12:00:00Z or a span like 365d".to_owned()
    })
}

impl NewKey {
    /// The limits that were asked for; what was not asked for is as in `before`.
    fn limits(&self, role: Role, before: KeyLimits, now: Timestamp) -> Result<KeyLimits, Failure> {
        let mut limits = KeyLimits {
            expires: None,
            ..before
        };
        if role != Role::Operator && !self.scope.is_empty() {
            invalid!(
                "only operators' keys have a scope, keys of the role `{}` have none",
                name(role)
            );
        }
        if role == Role::Root && self.expires.is_some() {
            invalid!("root keys do not expire: nobody could help a fabric whose root keys have");
        }
        if !self.scope.is_empty() {
            let look = self.scope == ["look"];
            let grants = self
                .scope
                .iter()
                .filter(|_| !look)
                .map(|text| text.parse::<Grant>());
            let grants: Result<BTreeSet<Grant>, _> = grants.collect();
            limits.scope = Some(grants.map_err(fabric::as_input)?);
        }
        limits.expires = self.expires.map(|expires| match expires {
            Expiry::At(time) => time,
            Expiry::After(seconds) => now.plus_seconds(seconds),
        });
        Ok(limits)
    }
}

/// What is to be done.
struct Plan {
    changes: Vec<Change>,
    /// A key that was made for it.
    made: Option<(Role, SecretKey)>,
    /// A key on a token that gets a role.
    brought: Option<Key>,
}

impl Plan {
    fn of(changes: Vec<Change>) -> Self {
        Self {
            changes,
            made: None,
            brought: None,
        }
    }
}

/// Carries a command out.
pub fn run(command: RoleCommand) -> Result<(), Failure> {
    let now = chance::now();
    let (fabric, how, planned) = match command {
        RoleCommand::List { dir, output } => return list(&dir, output),
        RoleCommand::Add { dir, role, new, how } => {
            let fabric = Fabric::open(&dir)?;
            let limits = new.limits(role, KeyLimits::default(), now)?;
            let planned = add(role, &new, limits)?;
            (fabric, how, planned)
        }
        RoleCommand::Retire { dir, key, role, how } => {
            let fabric = Fabric::open(&dir)?;
            let (role, key) = find(fabric.roots.current(), &key, role)?;
            let changes = vec![Change::Retire { role, key }];
            (fabric, how, Plan::of(changes))
        }
        RoleCommand::Remove { dir, key, role, how } => {
            let fabric = Fabric::open(&dir)?;
            let (role, key) = find(fabric.roots.current(), &key, role)?;
            let changes = vec![Change::Remove { role, key }];
            (fabric, how, Plan::of(changes))
        }
        RoleCommand::Replace {
            dir,
            key,
            role,
            new,
            how,
        } => {
            let fabric = Fabric::open(&dir)?;
            let (role, key) = find(fabric.roots.current(), &key, role)?;
            let before = fabric.roots.current().limits_of(role, &key);
            let mut planned = add(role, &new, new.limits(role, before, now)?)?;
            planned.changes.push(match role {
                Role::Root => Change::Remove { role, key },
                _ => Change::Retire { role, key },
            });
            (fabric, how, planned)
        }
        RoleCommand::Threshold {
            dir,
            role,
            number,
            how,
        } => {
            let changes = vec![Change::Threshold { role, number }];
            (Fabric::open(&dir)?, how, Plan::of(changes))
        }
    };
    carry_out(&fabric, &how, planned, now)
}

fn add(role: Role, new: &NewKey, limits: KeyLimits) -> Result<Plan, Failure> {
    let (key, made, brought) = match &new.public {
        Some(uri) if uri.starts_with(SCHEME) => {
            let key = keyring::open(uri)?;
            (key.public(), None, Some(key))
        }
        Some(hex) => (
            PublicKey::try_from(hex.clone()).map_err(fabric::as_input)?,
            None,
            None,
        ),
        None => {
            let secret = chance::key()?;
            (secret.public(), Some((role, secret)), None)
        }
    };
    Ok(Plan {
        changes: vec![Change::Add { role, key, limits }],
        made,
        brought,
    })
}

/// The key that an operator means, and its role.
fn find(root: &Root, text: &str, role: Option<Role>) -> Result<(Role, KeyId), Failure> {
    if text.len() < 8 {
        invalid!(
            "`{text}` is too short for the id of a key: give its first 8 digits or more, see `joinpack fabric role list`"
        );
    }
    let all = root
        .roles
        .iter()
        .filter(|(of, _)| role.is_none_or(|role| role == **of));
    let found: Vec<(Role, KeyId)> = all
        .flat_map(|(of, spec)| spec.keyids.iter().map(|id| (*of, id.clone())))
        .filter(|(_, id)| id.as_str().starts_with(&text.to_lowercase()))
        .collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => invalid!("no role has a key `{text}`: see `joinpack fabric role list`"),
        _ => invalid!("`{text}` is in several roles, or begins several keys: give more digits, or --role"),
    }
}

/// What came of it.
#[derive(Serialize)]
struct View {
    result: &'static str,
    version: u32,
    issued: Timestamp,
    signed_by: Vec<KeyId>,
    /// The secret that was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<KeyId>,
}

fn carry_out(fabric: &Fabric, how: &How, planned: Plan, now: Timestamp) -> Result<(), Failure> {
    let revoked: BTreeSet<KeyId> = fabric.revoked.keys().cloned().collect();
    let root = succession::next(fabric.roots.current(), &planned.changes, now, &revoked)?;
    let made: Option<Key> = planned
        .made
        .as_ref()
        .map(|(_, secret)| Rc::new(secret.clone()) as Key);
    let mut keys = keyring::in_folder(fabric.dir())?;
    keys.extend(how.keys.open()?);
    keys.extend(made);
    keys.extend(planned.brought.clone());
    let signers = root_signers(fabric.roots.current(), &root, keyring::distinct(keys))?;
    let payload = root.to_payload().map_err(fabric::as_input)?;
    let envelope = keyring::sign(ROOT_PAYLOAD_TYPE, &payload, &signers)?;
    let chain = fabric.roots.extend(&[envelope]).map_err(fabric::as_input)?;
    let mut view = View {
        result: "would-sign",
        version: chain.version(),
        issued: root.issued,
        signed_by: signers.iter().map(keyring::id).collect(),
        file: None,
        key: planned.changes.iter().find_map(|change| match change {
            Change::Add { key, .. } => Some(key.key_id()),
            _ => None,
        }),
    };
    if !how.dry_run {
        // What the next packs carry must hold by the new document too.
        let snapshots = fabric.signed_again(&chain, &how.keys)?;
        if let Some((role, secret)) = planned.made {
            view.file = Some(fabric.write_key(role, secret, &chain)?);
        }
        fabric.follow(&chain, &snapshots)?;
        view.result = "signed";
    }
    let file = fabric.dir().join("root.json");
    show::print(how.output, &view, |view| {
        let mut text = format!(
            "{}: root document {}, by {} root key(s)\n",
            view.result,
            view.version,
            view.signed_by.len()
        );
        if let (Some(key), Some(path)) = (&view.key, &view.file) {
            text += &format!(
                "key {} is in `{}`: bring it to where it is used, and keep no copy here\n",
                key.as_str(),
                path.display()
            );
        }
        text + &format!(
            "bring it to the fabric with `bmctl keys roots push {}`, or with the next stick\n",
            file.display()
        )
    })
}

/// As many as the thresholds of both documents demand.
fn root_signers(current: &Root, next: &Root, keys: Vec<Key>) -> Result<Vec<Key>, Failure> {
    let (old, new) = (current.role(Role::Root), next.role(Role::Root));
    let signers: Vec<Key> = keys
        .into_iter()
        .filter(|key| {
            [&old, &new]
                .iter()
                .any(|role| role.key(&keyring::id(key)).is_some())
        })
        .collect();
    for (version, role) in [(current.version, &old), (next.version, &new)] {
        let have = signers
            .iter()
            .filter(|key| role.key(&keyring::id(key)).is_some())
            .count();
        if have < role.threshold() {
            invalid!(
                "{have} of {} root keys are here that root document {version} demands: bring them into `keys`, or name each with --key",
                role.threshold()
            );
        }
    }
    Ok(signers)
}

/// A row of the list.
#[derive(Serialize)]
struct Row {
    role: Role,
    threshold: u32,
    key: KeyId,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<BTreeSet<Grant>>,
    /// Its secret half is in the folder.
    here: bool,
}

fn list(dir: &Path, output: Form) -> Result<(), Failure> {
    let fabric = Fabric::open(dir)?;
    let here: BTreeSet<KeyId> = keyring::in_folder(dir)?.iter().map(keyring::id).collect();
    let rows = rows(&fabric.roots, &here, chance::now());
    show::print(output, &rows, |rows| {
        let cells = rows.iter().map(|row| {
            let scope = scope_in_words(row.role, row.scope.as_ref());
            vec![
                name(row.role).to_owned(),
                row.threshold.to_string(),
                row.key.as_str().to_owned(),
                row.state.to_owned(),
                row.expires
                    .map_or_else(String::new, |expires| expires.to_string()),
                scope,
                if row.here { "yes" } else { "" }.to_owned(),
            ]
        });
        show::table(
            &["ROLE", "MUST-SIGN", "KEY", "STATE", "EXPIRES", "SCOPE", "HERE"],
            cells,
        )
    })
}

fn rows(roots: &RootChain, here: &BTreeSet<KeyId>, now: Timestamp) -> Vec<Row> {
    let current = roots.current();
    let mut rows = Vec::new();
    for (role, spec) in &current.roles {
        for id in &spec.keyids {
            let limits = current.limits_of(*role, id);
            let revoked = roots.role(*role).key(id).is_none();
            let expired = limits
                .expires
                .is_some_and(|expires| now.max(roots.past()) > expires);
            rows.push(Row {
                role: *role,
                threshold: spec.threshold,
                key: id.clone(),
                state: match (revoked, expired) {
                    (true, _) => "revoked",
                    (false, true) => "expired",
                    (false, false) => "valid",
                },
                expires: limits.expires,
                scope: limits.scope,
                here: here.contains(id),
            });
        }
    }
    rows
}
