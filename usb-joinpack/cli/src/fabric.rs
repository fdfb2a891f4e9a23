//! The folder of a fabric: made once by `fabric init`, offline, and read by `create`.
//!
//!     root.json        the chain of root documents, public
//!     fabric.json      what the fabric is, public
//!     operator.json    what `bmctl` needs, secret
//!     keys/*.json      root, enrolment, release and recovery keys, secret: root keys belong in a safe
//!     last-serial      serial of the newest pack
//!     revocations.json what is revoked: an array of snapshots, public
//!     answered.json    which requests were answered: TPM and name, public
//!     log.json         what opens the logs that boxes leave on sticks, secret; log-N.json are those before it
//!
//! Invariant: secret files are born with mode 0600 and never overwritten; the folder appears whole or not at all.

use crate::chance;
use crate::failure::{Failure, invalid};
use crate::keyring::{self, Key, KeyArgs};
use crate::log_key;
use crate::succession::name;
use anyhow::{Context as _, anyhow};
use beemesh_ids::{Digest, FabricId, NodeName, PeerId};
use beemesh_joinpack_format::{
    Act, Envelope, KeyId, OperatorContext, PublicKey, REVOCATION_PAYLOAD_TYPE, ROOT_PAYLOAD_TYPE, Refusal,
    RevocationSet, Revocations, Role, RoleSpec, Root, RootChain, SecretKey, Source, Timestamp, limits,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use ulid::Ulid;

/// Snapshots of what is revoked.
const REVOCATIONS: &str = "revocations.json";
/// Files of keys of one role in a folder.
const MOST_FILES: usize = 1000;
/// Requests that were answered.
const ANSWERED: &str = "answered.json";
/// Most of them that are remembered.
const MOST_ANSWERED: usize = 4096;
/// Most root keys of a new fabric.
const ROOT_KEYS: u32 = 16;

/// A key file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    version: u32,
    role: Role,
    key_id: KeyId,
    public: PublicKey,
    /// The secret half.
    pub secret: SecretKey,
}

impl KeyFile {
    fn new(role: Role, secret: SecretKey) -> Self {
        let public = secret.public();
        Self {
            version: 1,
            role,
            key_id: public.key_id(),
            public,
            secret,
        }
    }
}

/// `fabric.json`: for people and scripts. Nothing is decided by it.
#[derive(Debug, Serialize, Deserialize)]
pub struct FabricInfo {
    /// Always 1.
    pub version: u32,
    /// Name for people.
    pub name: String,
    /// The fabric's id.
    pub fabric: FabricId,
    /// When it was made.
    pub created: Timestamp,
    /// Version of the newest root document.
    pub root_version: u32,
    /// Keys and threshold of each role.
    pub roles: BTreeMap<Role, RoleSpec>,
}

/// A request that was answered: its TPM has this name.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    /// The TPM's endorsement key.
    pub ek: Digest,
    /// The name that its machine was given.
    pub node: NodeName,
    /// The machine.
    pub peer_id: PeerId,
    /// Serial of the pack that answers.
    pub serial: String,
    /// When.
    pub at: Timestamp,
}

/// What `create` needs of a fabric.
pub struct Fabric {
    /// The verified chain.
    pub roots: RootChain,
    /// Enrolment keys, as many as the threshold demands.
    pub enrolment: Vec<Key>,
    /// What is revoked.
    pub revoked: RevocationSet,
    dir: PathBuf,
}

/// Makes a fabric in `dir`, which must not exist or be empty.
/// Roles whose keys are in `given` get those, and no other is made for them.
pub fn init(
    dir: &Path,
    name: &str,
    root_keys: u32,
    threshold: u32,
    given: &[(Role, Key)],
) -> Result<FabricInfo, Failure> {
    if given.iter().any(|(role, _)| *role == Role::Operator) {
        invalid!(
            "the first operator's key is made here, into a context file: leave it out, and give the role to a key on a token \
             afterwards (`joinpack fabric role add --role operator --public pkcs11:…`)"
        );
    }
    let brought = given.iter().filter(|(role, _)| *role == Role::Root).count();
    let root_keys = match u32::try_from(brought) {
        Ok(brought) if brought > 0 => brought,
        _ => root_keys,
    };
    if root_keys == 0 || root_keys > ROOT_KEYS || threshold == 0 || threshold > root_keys {
        invalid!(
            "a threshold of {threshold} among {root_keys} root keys: use 1 to {ROOT_KEYS} keys and at most as many signatures"
        );
    }
    if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) || dir.is_file() {
        invalid!(
            "`{}` exists and is not empty: a fabric's keys are never overwritten, choose another folder",
            dir.display()
        );
    }
    let staging = sibling(dir)?;
    let made = populate(&staging, name, root_keys, threshold, given).and_then(|info| {
        Ok(fs::rename(&staging, dir)
            .map(|()| info)
            .with_context(|| format!("failed to create `{}`", dir.display()))?)
    });
    if made.is_err() {
        // Half a fabric is of no use to anyone; the error to report is the first one.
        let _ = fs::remove_dir_all(&staging);
    }
    made
}

fn sibling(dir: &Path) -> Result<PathBuf, Failure> {
    let Some(name) = dir.file_name() else {
        invalid!("`{}` is not the name of a folder", dir.display())
    };
    let mut staging = name.to_owned();
    staging.push(format!(".new-{}", std::process::id()));
    Ok(dir.with_file_name(staging))
}

fn populate(
    dir: &Path,
    name: &str,
    root_keys: u32,
    threshold: u32,
    given: &[(Role, Key)],
) -> Result<FabricInfo, Failure> {
    let is_given = |role: Role| given.iter().any(|(of, _)| *of == role);
    let mut keys: Vec<(String, Role, SecretKey)> = Vec::new();
    for n in (1..=root_keys).filter(|_| !is_given(Role::Root)) {
        keys.push((format!("root-{n}"), Role::Root, chance::key()?));
    }
    for (file, role) in [
        ("enrolment", Role::Enrolment),
        ("release", Role::Release),
        ("recovery", Role::Recovery),
    ] {
        if is_given(role) {
            continue;
        }
        keys.push((file.to_owned(), role, chance::key()?));
    }
    let operator = chance::key()?;
    let mut publics: Vec<(Role, PublicKey)> =
        keys.iter().map(|(_, role, key)| (*role, key.public())).collect();
    publics.push((Role::Operator, operator.public()));
    publics.extend(given.iter().map(|(role, key)| (*role, key.public())));
    let created = chance::now();
    let role = |role: Role| RoleSpec {
        keyids: publics
            .iter()
            .filter(|(r, _)| *r == role)
            .map(|(_, key)| key.key_id())
            .collect(),
        threshold: if role == Role::Root { threshold } else { 1 },
        ..RoleSpec::default()
    };
    let root = Root {
        fabric_name: name.to_owned(),
        version: 1,
        issued: created,
        keys: publics.iter().map(|(_, key)| (key.key_id(), *key)).collect(),
        roles: Role::ALL.into_iter().map(|r| (r, role(r))).collect(),
        nonce: hex::encode(chance::bytes::<16>()?),
    };
    let made = keys.iter().filter(|(_, role, _)| *role == Role::Root);
    let made = made.map(|(_, _, key)| Rc::new(key.clone()) as Key);
    let brought = given.iter().filter(|(role, _)| *role == Role::Root);
    let signers: Vec<Key> = made.chain(brought.map(|(_, key)| key.clone())).collect();
    let payload = root.to_payload().map_err(as_input)?;
    let roots = vec![keyring::sign(ROOT_PAYLOAD_TYPE, &payload, &signers)?];
    let chain = RootChain::bootstrap(&roots)?;
    let info = FabricInfo {
        version: 1,
        name: name.to_owned(),
        fabric: chain.fabric_id().clone(),
        created,
        root_version: 1,
        roles: root.roles,
    };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(dir.join("keys"))
        .with_context(|| format!("failed to create `{}`", dir.display()))?;
    for (file, role, secret) in keys {
        let content = KeyFile::new(role, secret);
        write_new(&dir.join("keys").join(format!("{file}.json")), &content, 0o600)?;
    }
    write_new(
        &dir.join("operator.json"),
        &OperatorContext {
            version: 1,
            roots: roots.clone(),
            key: operator,
        },
        0o600,
    )?;
    log_key::make(dir)?;
    write_new(&dir.join("root.json"), &roots, 0o644)?;
    write_new(&dir.join("fabric.json"), &info, 0o644)?;
    Ok(info)
}

/// What the format refuses here, the operator typed.
pub fn as_input(refusal: Refusal) -> Failure {
    Failure::Invalid(anyhow!("{refusal}"))
}

/// Writes a JSON file that is not there yet.
pub fn write_new<T: Serialize>(path: &Path, content: &T, mode: u32) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(content).context("failed to write JSON")?;
    text.push(b'\n');
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?;
        file.write_all(&text)?;
        file.sync_all()
    };
    Ok(write().with_context(|| format!("failed to write `{}`", path.display()))?)
}

/// Reads a JSON file of at most [`limits::OPERATOR_LIMIT`] bytes that the operator keeps.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let limit = limits::OPERATOR_LIMIT;
    let mut text = Vec::new();
    let file = File::open(path)
        .map_err(|e| Failure::Invalid(anyhow!(e).context(format!("failed to open `{}`", path.display()))))?;
    file.take(limit as u64 + 1)
        .read_to_end(&mut text)
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    if text.len() > limit {
        invalid!(
            "`{}` is larger than {limit} bytes: it is not a file of this tool",
            path.display()
        );
    }
    serde_json::from_slice(&text)
        .map_err(|e| Failure::Invalid(anyhow!(e).context(format!("`{}` is damaged", path.display()))))
}

/// Reads a chain of root documents, as `root.json` holds it, and verifies it.
pub fn load_roots(path: &Path) -> Result<RootChain, Failure> {
    let envelopes: Vec<Envelope> = read_json(path)?;
    Ok(RootChain::bootstrap(&envelopes)?)
}

/// The keys in `dir`, and among those named on the command line, that an act demands: as many as must sign.
fn find_keys(dir: &Path, roots: &RootChain, act: Act<'_>, more: &KeyArgs) -> Result<Vec<Key>, Failure> {
    // The first is the one that this tool signs as.
    let role = act.roles().first().copied().unwrap_or(Role::Enrolment);
    let demanded = roots.role(role);
    let now = chance::now().max(roots.past());
    let mut expired = None;
    let mut found = Vec::new();
    // Those that somebody named come first.
    for key in keyring::distinct(more.open()?.into_iter().chain(keyring::in_folder(dir)?)) {
        let id = keyring::id(&key);
        if demanded.key(&id).is_none() || found.len() >= demanded.threshold() {
            continue;
        }
        match roots.may(&id, act, now) {
            Ok(()) => found.push(key),
            Err(refusal) => expired = Some(refusal),
        }
    }
    if found.len() < demanded.threshold() {
        let hint = expired.map_or_else(String::new, |refusal| format!(" ({refusal})"));
        invalid!(
            "{} of {} {} keys are here that root document {} demands and nobody revoked: bring the missing ones into `{}/keys`, or name each with --key{hint}",
            found.len(),
            demanded.threshold(),
            name(role),
            roots.version(),
            dir.display()
        );
    }
    Ok(found)
}

impl Fabric {
    /// Reads the folder and finds the enrolment keys that the newest root demands and nobody revoked.
    pub fn load(dir: &Path, keys: &KeyArgs) -> Result<Self, Failure> {
        let fabric = Self::open(dir)?;
        let enrolment = find_keys(dir, &fabric.roots, Act::Enrol, keys)?;
        Ok(Self { enrolment, ..fabric })
    }

    /// The keys that `act` demands, from the folder and among `more`.
    pub fn keys_for(&self, act: Act<'_>, more: &KeyArgs) -> Result<Vec<Key>, Failure> {
        find_keys(&self.dir, &self.roots, act, more)
    }

    /// Reads the folder, without keys.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        let roots = load_roots(&dir.join("root.json"))?;
        let path = dir.join(REVOCATIONS);
        let held: Vec<Envelope> = if path.exists() {
            read_json(&path)?
        } else {
            Vec::new()
        };
        let mut revoked = RevocationSet::default();
        for envelope in held.iter().take(limits::SNAPSHOTS) {
            revoked.take(envelope, &roots, Source::Member)?;
        }
        Ok(Self {
            roots: roots.without(revoked.keys()),
            enrolment: Vec::new(),
            revoked,
            dir: dir.to_owned(),
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What is revoked, as of `at`: snapshots for a pack.
    pub fn snapshots(&self, at: Timestamp) -> Result<Vec<Envelope>, Failure> {
        let mut union = self.revoked.union(self.roots.fabric_id());
        union.issued = at;
        // Revoked keys stay in the snapshot that recovery signed.
        union.keys.clear();
        let mut all = self.revoked.clone();
        let signed = keyring::sign(REVOCATION_PAYLOAD_TYPE, &union.to_payload()?, &self.enrolment)?;
        all.take(&signed, &self.roots, Source::Person)?;
        Ok(all.envelopes().cloned().collect())
    }

    /// Revokes what `more` names beside what is revoked already, and remembers it. Returns the snapshots.
    pub fn revoke(&self, more: &Revocations, keys: &KeyArgs) -> Result<Vec<Envelope>, Failure> {
        let act = match more.keys.is_empty() {
            true => Act::Enrol,
            false => Act::RevokeKeys,
        };
        let signers = find_keys(&self.dir, &self.roots, act, keys)?;
        let mut union = self.revoked.union(self.roots.fabric_id());
        union.add(more);
        union.issued = more.issued;
        if act == Act::Enrol {
            union.keys.clear();
        }
        let payload = union.to_payload().map_err(as_input)?;
        let signed = keyring::sign(REVOCATION_PAYLOAD_TYPE, &payload, &signers)?;
        let mut all = self.revoked.clone();
        all.take(&signed, &self.roots, Source::Person).map_err(as_input)?;
        let envelopes: Vec<Envelope> = all.envelopes().cloned().collect();
        self.replace(REVOCATIONS, &envelopes, 0o644)?;
        Ok(envelopes)
    }

    /// What is revoked, so that it holds by `roots` too: what they do not bear out any more is signed again.
    pub fn signed_again(&self, roots: &RootChain, keys: &KeyArgs) -> Result<Vec<Envelope>, Failure> {
        let roots = roots.clone().without(self.revoked.keys());
        let mut all = RevocationSet::default();
        let (mut lost_keys, mut lost) = (
            false,
            Revocations::none(roots.fabric_id().clone(), Timestamp::EPOCH),
        );
        for envelope in self.revoked.envelopes() {
            if all.take(envelope, &roots, Source::Member).is_err() {
                let snapshot = Revocations::verify(envelope, &self.roots, Source::Member)?;
                lost_keys |= !snapshot.keys.is_empty();
                lost.add(&snapshot);
            }
        }
        if lost.nodes.is_empty() && lost.vouchers.is_empty() && lost.keys.is_empty() {
            return Ok(self.revoked.envelopes().cloned().collect());
        }
        // Root keys are not revoked but replaced.
        let root = roots.role(Role::Root);
        lost.keys.retain(|id| root.key(id).is_none());
        lost.issued = chance::now().max(roots.past());
        let act = if lost_keys { Act::RevokeKeys } else { Act::Enrol };
        let signers = find_keys(&self.dir, &roots, act, keys)?;
        let payload = lost.to_payload().map_err(as_input)?;
        let signed = keyring::sign(REVOCATION_PAYLOAD_TYPE, &payload, &signers)?;
        all.take(&signed, &roots, Source::Person).map_err(as_input)?;
        Ok(all.envelopes().cloned().collect())
    }

    /// Writes a new key to a file of its own: an operator's into a context for `bmctl`.
    pub fn write_key(&self, role: Role, secret: SecretKey, roots: &RootChain) -> Result<PathBuf, Failure> {
        let file = |number: usize| match role {
            Role::Operator => self.dir.join(format!("operator-{number}.json")),
            _ => self
                .dir
                .join("keys")
                .join(format!("{}-{number}.json", name(role))),
        };
        let free = (2..=MOST_FILES).map(file).find(|path| !path.exists());
        let Some(path) = free else {
            invalid!(
                "`{}` is full of old keys of the role `{}`: move them away",
                self.dir.display(),
                name(role)
            )
        };
        match role {
            Role::Operator => {
                let context = OperatorContext {
                    version: 1,
                    roots: roots.envelopes().to_vec(),
                    key: secret,
                };
                write_new(&path, &context, 0o600)?;
            }
            _ => write_new(&path, &KeyFile::new(role, secret), 0o600)?,
        }
        Ok(path)
    }

    /// Makes `roots` the chain of this folder, and of the operators' contexts in it.
    pub fn follow(&self, roots: &RootChain, snapshots: &[Envelope]) -> Result<(), Failure> {
        let info: FabricInfo = read_json(&self.dir.join("fabric.json"))?;
        self.replace("root.json", &roots.envelopes(), 0o644)?;
        if !snapshots.is_empty() {
            self.replace(REVOCATIONS, &snapshots, 0o644)?;
        }
        let current = roots.current();
        let info = FabricInfo {
            root_version: roots.version(),
            roles: current.roles.clone(),
            ..info
        };
        self.replace("fabric.json", &info, 0o644)?;
        let failed = || format!("failed to read `{}`", self.dir.display());
        for entry in fs::read_dir(&self.dir).with_context(failed)? {
            let file = entry.with_context(failed)?.file_name();
            let Some(file) = file
                .to_str()
                .filter(|file| file.starts_with("operator") && file.ends_with(".json"))
            else {
                continue;
            };
            refuse_shared(&self.dir.join(file))?;
            let context: OperatorContext = read_json(&self.dir.join(file))?;
            let context = OperatorContext {
                roots: roots.envelopes().to_vec(),
                ..context
            };
            self.replace(file, &context, 0o600)?;
        }
        Ok(())
    }

    /// Replaces a file of the folder whole.
    fn replace<T: Serialize>(&self, file: &str, content: &T, mode: u32) -> Result<(), Failure> {
        let staging = self.dir.join(format!("{file}.new-{}", std::process::id()));
        write_new(&staging, content, mode)?;
        let path = self.dir.join(file);
        Ok(fs::rename(&staging, &path).with_context(|| format!("failed to write `{}`", path.display()))?)
    }

    /// A serial greater than that of every pack made from this folder; remembered by [`Fabric::remember`].
    pub fn next_serial(&self) -> Result<Ulid, Failure> {
        let path = self.dir.join("last-serial");
        let last = match fs::read_to_string(&path) {
            Ok(text) => match Ulid::from_string(text.trim()) {
                Ok(last) => Some(last),
                Err(_) => invalid!(
                    "`{}` does not hold a serial: remove it if no pack was made yet",
                    path.display()
                ),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(anyhow!(error)
                    .context(format!("failed to read `{}`", path.display()))
                    .into());
            }
        };
        chance::ulid(last)
    }

    /// Whether this machine is revoked.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.revoked.has_node(peer)
    }

    /// The requests that were answered, the oldest first.
    pub fn answered(&self) -> Result<Vec<Answered>, Failure> {
        let path = self.dir.join(ANSWERED);
        match path.exists() {
            true => read_json(&path),
            false => Ok(Vec::new()),
        }
    }

    /// Remembers answers, in the place of what was said of the same TPMs before.
    pub fn record(&self, more: &[Answered]) -> Result<(), Failure> {
        let mut all = self.answered()?;
        all.retain(|old| more.iter().all(|new| new.ek != old.ek));
        all.extend_from_slice(more);
        let surplus = all.len().saturating_sub(MOST_ANSWERED);
        all.drain(..surplus);
        self.replace(ANSWERED, &all, 0o644)
    }

    /// Remembers the serial of the newest pack.
    pub fn remember(&self, serial: &str) -> Result<(), Failure> {
        let path = self.dir.join("last-serial");
        let staging = self.dir.join(format!("last-serial.new-{}", std::process::id()));
        let write = || fs::write(&staging, format!("{serial}\n")).and_then(|()| fs::rename(&staging, &path));
        Ok(write().with_context(|| format!("failed to write `{}`", path.display()))?)
    }
}

/// Secret files that others can read are not secret.
pub fn refuse_shared(path: &Path) -> Result<(), Failure> {
    let mode = fs::metadata(path)
        .with_context(|| format!("failed to read `{}`", path.display()))?
        .permissions()
        .mode();
    if mode & 0o077 != 0 {
        return Err(Failure::Forbidden(anyhow!(
            "`{}` can be read by other users: run `chmod 600 {0}` and consider whether the key is still secret",
            path.display()
        )));
    }
    Ok(())
}
