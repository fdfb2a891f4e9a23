//! The folder of a fabric: made once by `fabric init`, offline, and read by `create`.
//!
//!     root.json        the chain of root documents, public
//!     fabric.json      what the fabric is, public
//!     operator.json    what `bmctl` needs, secret
//!     keys/*.json      root, enrolment, release and recovery keys, secret: root keys belong in a safe
//!     last-serial      serial of the newest pack
//!     revocations.json what is revoked: an array of snapshots, public
//!
//! Invariant: secret files are born with mode 0600 and never overwritten; the folder appears whole or not at all.

use crate::chance;
use crate::failure::{Failure, invalid};
use anyhow::{Context as _, anyhow};
use beemesh_ids::FabricId;
use beemesh_joinpack_format::{
    Envelope, KeyId, OperatorContext, PublicKey, Refusal, RevocationSet, Revocations, Role, RoleSpec, Root,
    RootChain, SecretKey, Source, Timestamp, limits,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use ulid::Ulid;

/// Snapshots of what is revoked.
const REVOCATIONS: &str = "revocations.json";
/// Most root keys of a new fabric.
const ROOT_KEYS: u32 = 16;

/// A key file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    role: Role,
    key_id: KeyId,
    public: PublicKey,
    secret: SecretKey,
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

/// What `create` needs of a fabric.
pub struct Fabric {
    /// The verified chain.
    pub roots: RootChain,
    /// Enrolment keys found in the folder, as many as the threshold demands.
    pub enrolment: Vec<SecretKey>,
    /// What is revoked.
    pub revoked: RevocationSet,
    dir: PathBuf,
}

/// Makes a fabric in `dir`, which must not exist or be empty.
pub fn init(dir: &Path, name: &str, root_keys: u32, threshold: u32) -> Result<FabricInfo, Failure> {
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
    let made = populate(&staging, name, root_keys, threshold).and_then(|info| {
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

fn populate(dir: &Path, name: &str, root_keys: u32, threshold: u32) -> Result<FabricInfo, Failure> {
    let mut keys: Vec<(String, Role, SecretKey)> = Vec::new();
    for n in 1..=root_keys {
        keys.push((format!("root-{n}"), Role::Root, chance::key()?));
    }
    for (file, role) in [
        ("enrolment", Role::Enrolment),
        ("release", Role::Release),
        ("recovery", Role::Recovery),
    ] {
        keys.push((file.to_owned(), role, chance::key()?));
    }
    let operator = chance::key()?;
    let mut publics: Vec<(Role, PublicKey)> =
        keys.iter().map(|(_, role, key)| (*role, key.public())).collect();
    publics.push((Role::Operator, operator.public()));
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
    let signers: Vec<_> = keys
        .iter()
        .filter(|(_, role, _)| *role == Role::Root)
        .map(|(_, _, key)| key)
        .collect();
    let roots = vec![root.sign(&signers).map_err(as_input)?];
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
        let public = secret.public();
        let content = KeyFile {
            version: 1,
            role,
            key_id: public.key_id(),
            public,
            secret,
        };
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
    write_new(&dir.join("root.json"), &roots, 0o644)?;
    write_new(&dir.join("fabric.json"), &info, 0o644)?;
    Ok(info)
}

/// What the format refuses here, the operator typed.
fn as_input(refusal: Refusal) -> Failure {
    Failure::Invalid(anyhow!("{refusal}"))
}

fn write_new<T: Serialize>(path: &Path, content: &T, mode: u32) -> Result<(), Failure> {
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
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
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

/// The keys in `dir` that a role demands, as many as must sign.
fn find_keys(dir: &Path, roots: &RootChain, role: Role) -> Result<Vec<SecretKey>, Failure> {
    let keys = roots.role(role);
    let mut found: Vec<SecretKey> = Vec::new();
    let entries =
        fs::read_dir(dir.join("keys")).with_context(|| format!("failed to read `{}/keys`", dir.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("failed to read `{}/keys`", dir.display()))?
            .path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        refuse_shared(&path)?;
        let key: KeyFile = read_json(&path)?;
        let known = keys.key(&key.secret.public().key_id()).is_some();
        if known && found.len() < keys.threshold() && !found.contains(&key.secret) {
            found.push(key.secret);
        }
    }
    if found.len() < keys.threshold() {
        invalid!(
            "`{}/keys` holds {} of {} {role:?} keys that root document {} demands and nobody revoked: bring the missing key files",
            dir.display(),
            found.len(),
            keys.threshold(),
            roots.version()
        );
    }
    Ok(found)
}

impl Fabric {
    /// Reads the folder and finds the enrolment keys that the newest root demands and nobody revoked.
    pub fn load(dir: &Path) -> Result<Self, Failure> {
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
        let roots = roots.without(revoked.keys());
        let enrolment = find_keys(dir, &roots, Role::Enrolment)?;
        Ok(Self {
            roots,
            enrolment,
            revoked,
            dir: dir.to_owned(),
        })
    }

    /// The keys in the folder that a role demands.
    pub fn keys_of(&self, role: Role) -> Result<Vec<SecretKey>, Failure> {
        find_keys(&self.dir, &self.roots, role)
    }

    /// What is revoked, as of `at`: snapshots for a pack.
    pub fn snapshots(&self, at: Timestamp) -> Result<Vec<Envelope>, Failure> {
        let mut union = self.revoked.union(self.roots.fabric_id());
        union.issued = at;
        // Revoked keys stay in the snapshot that recovery signed.
        union.keys.clear();
        let mut all = self.revoked.clone();
        let signers: Vec<&SecretKey> = self.enrolment.iter().collect();
        all.take(&union.sign(&signers)?, &self.roots, Source::Person)?;
        Ok(all.envelopes().cloned().collect())
    }

    /// Revokes what `more` names beside what is revoked already, and remembers it. Returns the snapshots.
    pub fn revoke(&self, more: &Revocations) -> Result<Vec<Envelope>, Failure> {
        let role = match more.keys.is_empty() {
            true => Role::Enrolment,
            false => Role::Recovery,
        };
        let keys = self.keys_of(role)?;
        let mut union = self.revoked.union(self.roots.fabric_id());
        union.add(more);
        union.issued = more.issued;
        if role == Role::Enrolment {
            union.keys.clear();
        }
        let signers: Vec<&SecretKey> = keys.iter().collect();
        let mut all = self.revoked.clone();
        all.take(
            &union.sign(&signers).map_err(as_input)?,
            &self.roots,
            Source::Person,
        )
        .map_err(as_input)?;
        let envelopes: Vec<Envelope> = all.envelopes().cloned().collect();
        let mut text = serde_json::to_vec(&envelopes).context("failed to write JSON")?;
        text.push(b'\n');
        let path = self.dir.join(REVOCATIONS);
        let staging = self.dir.join(format!("{REVOCATIONS}.new-{}", std::process::id()));
        fs::write(&staging, &text)
            .and_then(|()| fs::rename(&staging, &path))
            .with_context(|| format!("failed to write `{}`", path.display()))?;
        Ok(envelopes)
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

    /// Remembers the serial of the newest pack.
    pub fn remember(&self, serial: &str) -> Result<(), Failure> {
        let path = self.dir.join("last-serial");
        let staging = self.dir.join(format!("last-serial.new-{}", std::process::id()));
        let write = || fs::write(&staging, format!("{serial}\n")).and_then(|()| fs::rename(&staging, &path));
        Ok(write().with_context(|| format!("failed to write `{}`", path.display()))?)
    }
}

/// Secret files that others can read are not secret.
fn refuse_shared(path: &Path) -> Result<(), Failure> {
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
