//! The node key: an Ed25519 seed in `node-key.json`, sealed to this machine. Made at the first boot, and again by each rotation.
//!
//! Does not decide what happens on a machine whose key cannot be opened: it says why, and leaves the file as it is. A rotation
//! (see [`crate::rotation`]) puts the new key beside the present one, into `node-key.next.json`, until the membership names it.
//! Invariant: a file appears complete or not at all, and an existing one is never overwritten but by one that was read back.

use crate::rotation::Leftover;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_firmware_tpm::{Kind, SoftwareTpm, Tpm, TpmError};
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Assurance, PublicKey, SecretKey};
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};
use zeroize::{Zeroize as _, Zeroizing};

const FILE: &str = "node-key.json";
const NEXT: &str = "node-key.next.json";
const VERSION: u32 = 1;
/// Longest file that is read, in bytes.
const LIMIT: u64 = 16 * 1024;

/// What sealed the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SealedBy {
    /// The TPM: the file is useless on another machine.
    Tpm,
    /// Nothing: whoever has the file has the key.
    File,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    sealed_by: SealedBy,
    public: PublicKey,
    /// The sealed seed, base64.
    blob: String,
}

/// A node key as its file holds it, sealed by the TPM: of use to that TPM alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedKey(Document);

/// Why there is no node key. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file was sealed by the TPM of another machine, or this one was cleared.
    #[error(
        "the node key in `{}` belongs to another machine, or the TPM of this one was cleared: \
         delete the file to let this machine enrol anew, with a new identity", path.display()
    )]
    ForeignTpm {
        /// The file.
        path: PathBuf,
    },
    /// The file was sealed by a TPM and this machine offers none.
    #[error("the node key in `{}` was sealed by a TPM, but there is none: switch the TPM on in the firmware set-up", path.display())]
    NoTpm {
        /// The file.
        path: PathBuf,
    },
    /// Secure Boot settings differ from the time of sealing.
    #[error(
        "the node key in `{}` cannot be opened because the Secure Boot settings changed: \
         restore them in the firmware set-up", path.display()
    )]
    StateChanged {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a node key.
    #[error("the node key in `{}` is damaged ({what}): restore the file or delete it to enrol anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The TPM failed.
    #[error("failed to {action} the node key")]
    Tpm {
        /// `seal` or `unseal`.
        action: &'static str,
        /// Its answer.
        #[source]
        source: TpmError,
    },
    /// The file system failed.
    #[error("failed to {action} `{}`", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The answer of the system.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no randomness.
    #[error("failed to read randomness for a new node key: {what}")]
    Random {
        /// Its answer.
        what: String,
    },
}

/// The identity of this machine. The seed is erased from memory when the value is dropped.
#[derive(Clone)]
pub struct NodeKey {
    secret: SecretKey,
    assurance: Assurance,
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeKey")
            .field("peer_id", &self.peer_id())
            .field("assurance", &self.assurance)
            .finish()
    }
}

impl NodeKey {
    /// Opens the key in `folder`, or makes and seals one when there is none. `folder` is made when it is missing.
    ///
    /// # Errors
    /// A file that cannot be opened here and now: it stays as it is, and no other key is made in its place.
    pub fn load_or_create(folder: &Path, tpm: &dyn Tpm) -> Result<Self, KeyError> {
        Self::load_or_keep(folder, tpm, || NewKey::make(tpm))
    }

    /// Like [`NodeKey::load_or_create`], with a key that was made before `folder` could be looked into.
    ///
    /// # Errors
    /// As there, and what `new` returns.
    pub fn load_or_keep(
        folder: &Path,
        tpm: &dyn Tpm,
        new: impl FnOnce() -> Result<NewKey, KeyError>,
    ) -> Result<Self, KeyError> {
        let path = folder.join(FILE);
        match read_bounded(&path) {
            Ok(bytes) => Self::open(&path, &bytes, tpm),
            Err(error) if error.kind() == io::ErrorKind::NotFound => new()?.keep(folder, path),
            Err(source) => Err(KeyError::File {
                action: "read",
                path,
                source,
            }),
        }
    }

    /// Like [`NodeKey::load_or_keep`], on a machine that may have been interrupted while it rotated its key. `named` is the peer
    /// id that its membership names. Tells what the interrupted rotation has left.
    ///
    /// # Errors
    /// As there.
    pub fn load_named(
        folder: &Path,
        tpm: &dyn Tpm,
        named: Option<&PeerId>,
        new: impl FnOnce() -> Result<NewKey, KeyError>,
    ) -> Result<(Self, Leftover), KeyError> {
        let next = folder.join(NEXT);
        let bytes = match read_bounded(&next) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Self::load_or_keep(folder, tpm, new)?, Leftover::None));
            }
            // Whatever lies there: the membership names a key that was read back before.
            Err(_) => return Ok((Self::load_or_keep(folder, tpm, new)?, Leftover::Made)),
        };
        let public = serde_json::from_slice::<Document>(&bytes).map(|document| document.public);
        let is_named = public.is_ok_and(|public| Some(&PeerId::from_ed25519(public.as_bytes())) == named);
        match is_named {
            true => Ok((Self::open(&next, &bytes, tpm)?, Leftover::Committed)),
            false => Ok((Self::load_or_keep(folder, tpm, new)?, Leftover::Made)),
        }
    }

    /// Makes the key that comes after the present one and puts it beside it, in place of what lies there. It is returned once
    /// it is on the disk and was opened from there.
    ///
    /// # Errors
    /// [`KeyError`]; what is left beside the present key then is half a key or none.
    pub fn make_next(folder: &Path, tpm: &dyn Tpm) -> Result<Self, KeyError> {
        let path = folder.join(NEXT);
        Self::discard_next(folder)?;
        NewKey::make(tpm)?.keep(folder, path.clone())?;
        let bytes = read_bounded(&path).map_err(|source| KeyError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        Self::open(&path, &bytes, tpm)
    }

    /// The present key in `folder` as it is sealed there; `None` for one that no TPM sealed.
    ///
    /// # Errors
    /// A file that is not there or no node key.
    pub fn sealed(folder: &Path) -> Result<Option<SealedKey>, KeyError> {
        let path = folder.join(FILE);
        let bytes = read_bounded(&path).map_err(|source| KeyError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let document: Document = serde_json::from_slice(&bytes).map_err(|error| KeyError::Damaged {
            path,
            what: error.to_string(),
        })?;
        Ok((document.sealed_by == SealedBy::Tpm).then_some(SealedKey(document)))
    }

    /// Whether there is a key in `folder`, whatever it is worth.
    pub fn exists(folder: &Path) -> bool {
        [FILE, NEXT].iter().any(|name| folder.join(name).exists())
    }

    /// Puts the key beside the present one in its place; nothing where there is none.
    ///
    /// # Errors
    /// The file system failed: one of the two is in the place, and whole.
    pub fn forget_old(folder: &Path) -> Result<(), KeyError> {
        settle(folder, "rename", |next| fs::rename(next, folder.join(FILE)))
    }

    /// Removes the key beside the present one; nothing where there is none.
    ///
    /// # Errors
    /// The file system failed.
    pub fn discard_next(folder: &Path) -> Result<(), KeyError> {
        settle(folder, "remove", |next| fs::remove_file(next))
    }

    /// The peer id that follows from the key.
    pub fn peer_id(&self) -> PeerId {
        PeerId::from_ed25519(self.secret.public().as_bytes())
    }

    /// The public key.
    pub fn public(&self) -> PublicKey {
        self.secret.public()
    }

    /// The secret key, to sign receipts with.
    pub fn secret_key(&self) -> &SecretKey {
        &self.secret
    }

    /// The Ed25519 seed. The caller answers for the copy.
    pub fn secret_bytes(&self) -> [u8; 32] {
        self.secret.to_bytes()
    }

    /// Signs `message` (Ed25519, RFC 8032).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.secret.sign(message)
    }

    /// How far others can believe that the key is on this machine only.
    pub fn assurance(&self) -> Assurance {
        self.assurance
    }

    fn open(path: &Path, bytes: &[u8], tpm: &dyn Tpm) -> Result<Self, KeyError> {
        let damaged = |what: String| KeyError::Damaged {
            path: path.to_owned(),
            what,
        };
        let document: Document = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        Self::unseal(path, &document, tpm)
    }

    /// `path` is where the document lies, for the errors.
    fn unseal(path: &Path, document: &Document, tpm: &dyn Tpm) -> Result<Self, KeyError> {
        let damaged = |what: String| KeyError::Damaged {
            path: path.to_owned(),
            what,
        };
        if document.version != VERSION {
            return Err(damaged(format!(
                "version {}, this software reads version {VERSION}",
                document.version
            )));
        }
        let blob = STANDARD
            .decode(&document.blob)
            .map_err(|error| damaged(error.to_string()))?;
        // A key from the time before the machine had a TPM stays what it is, and stays marked.
        let (unsealed, assurance) = match (document.sealed_by, tpm.kind()) {
            (SealedBy::File, _) => (SoftwareTpm.unseal(&blob), Assurance::Low),
            (SealedBy::Tpm, Kind::Device) => (tpm.unseal(&blob), Assurance::Tpm),
            (SealedBy::Tpm, Kind::Software) => {
                return Err(KeyError::NoTpm {
                    path: path.to_owned(),
                });
            }
        };
        let seed = unsealed.map_err(|error| match error {
            TpmError::Foreign => KeyError::ForeignTpm {
                path: path.to_owned(),
            },
            TpmError::StateChanged => KeyError::StateChanged {
                path: path.to_owned(),
            },
            TpmError::Malformed { .. } | TpmError::OtherKind { .. } => damaged(error.to_string()),
            source => KeyError::Tpm {
                action: "unseal",
                source,
            },
        })?;
        let mut seed: [u8; 32] = seed
            .as_slice()
            .try_into()
            .map_err(|_| damaged(format!("a seed of {} bytes", seed.len())))?;
        let secret = SecretKey::from_bytes(seed);
        seed.zeroize();
        if secret.public() != document.public {
            return Err(damaged("the public key is not that of the sealed one".to_owned()));
        }
        Ok(Self { secret, assurance })
    }
}

/// A key that is sealed but not on a disk yet. Dropped, it is as if it had never been.
pub struct NewKey {
    key: NodeKey,
    document: Document,
}

impl NewKey {
    /// Makes a key and seals it.
    ///
    /// # Errors
    /// [`KeyError::Random`], [`KeyError::Tpm`].
    pub fn make(tpm: &dyn Tpm) -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|error| KeyError::Random {
            what: error.to_string(),
        })?;
        let secret = SecretKey::from_bytes(*seed);
        let blob = tpm.seal(seed.as_slice()).map_err(|source| KeyError::Tpm {
            action: "seal",
            source,
        })?;
        let (sealed_by, assurance) = match tpm.kind() {
            Kind::Device => (SealedBy::Tpm, Assurance::Tpm),
            Kind::Software => (SealedBy::File, Assurance::Low),
        };
        let document = Document {
            version: VERSION,
            sealed_by,
            public: secret.public(),
            blob: STANDARD.encode(blob),
        };
        Ok(Self {
            key: NodeKey { secret, assurance },
            document,
        })
    }

    /// The key that was sealed before and is on no disk.
    ///
    /// # Errors
    /// As [`NodeKey::load_or_create`], for a path that names no file.
    pub fn restore(sealed: SealedKey, tpm: &dyn Tpm) -> Result<Self, KeyError> {
        let SealedKey(document) = sealed;
        let key = NodeKey::unseal(Path::new("the tpm"), &document, tpm)?;
        Ok(Self { key, document })
    }

    fn keep(self, folder: &Path, path: PathBuf) -> Result<NodeKey, KeyError> {
        let written = serde_json::to_vec_pretty(&self.document)
            .map_err(io::Error::from)
            .and_then(|bytes| write_once(folder, &path, &Zeroizing::new(bytes)));
        match written {
            Ok(()) => Ok(self.key),
            Err(source) => Err(KeyError::File {
                action: "write",
                path,
                source,
            }),
        }
    }
}

/// Does something with the key beside the present one, and makes it durable.
fn settle(
    folder: &Path,
    action: &'static str,
    with: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<(), KeyError> {
    let path = folder.join(NEXT);
    match with(&path).and_then(|()| fs::File::open(folder)?.sync_all()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(KeyError::File { action, path, source }),
        Ok(()) => Ok(()),
    }
}

fn read_bounded(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    fs::File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("longer than {LIMIT} bytes"),
        ));
    }
    Ok(bytes)
}

/// Writes beside the file, then links it into place: complete or absent after a power cut, and never over another one.
fn write_once(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = folder.join(format!("{FILE}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::hard_link(&new, path)?;
    fs::remove_file(&new)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_firmware_tpm::FakeTpm;
    use std::os::unix::fs::PermissionsExt as _;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn the_key_survives_a_reboot_and_is_sealed_by_the_tpm() {
        let folder = folder();
        let made = NodeKey::load_or_create(folder.path(), &FakeTpm::new(1)).unwrap();
        let loaded = NodeKey::load_or_create(folder.path(), &FakeTpm::new(1)).unwrap();
        assert_eq!(
            (made.peer_id(), made.assurance()),
            (loaded.peer_id(), Assurance::Tpm)
        );
        assert!(loaded.public().verify(b"message", &made.sign(b"message")));
        let path = folder.path().join(FILE);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing else is left behind"
        );
    }

    #[test]
    fn key_made_beforehand_is_kept_only_where_there_is_none() {
        let folder = folder();
        let tpm = FakeTpm::new(1);
        let early = NewKey::make(&tpm).unwrap();
        let peer_id = early.key.peer_id();
        let kept = NodeKey::load_or_keep(folder.path(), &tpm, || Ok(early)).unwrap();
        assert_eq!(kept.peer_id(), peer_id);
        let other = NewKey::make(&tpm).unwrap();
        let loaded = NodeKey::load_or_keep(folder.path(), &tpm, || Ok(other)).unwrap();
        assert_eq!(loaded.peer_id(), peer_id, "the key on the disk wins");
    }

    #[test]
    fn two_machines_have_two_keys() {
        let (one, other) = (folder(), folder());
        let one = NodeKey::load_or_create(one.path(), &SoftwareTpm).unwrap();
        let other = NodeKey::load_or_create(other.path(), &SoftwareTpm).unwrap();
        assert_ne!(one.peer_id(), other.peer_id());
    }

    #[test]
    fn the_file_of_another_machine_is_refused_and_stays() {
        let folder = folder();
        NodeKey::load_or_create(folder.path(), &FakeTpm::new(1)).unwrap();
        let before = fs::read(folder.path().join(FILE)).unwrap();
        let error = NodeKey::load_or_create(folder.path(), &FakeTpm::new(2)).unwrap_err();
        assert!(matches!(error, KeyError::ForeignTpm { .. }), "{error}");
        assert!(
            error.to_string().contains("belongs to another machine"),
            "{error}"
        );
        let error = NodeKey::load_or_create(folder.path(), &SoftwareTpm).unwrap_err();
        assert!(matches!(error, KeyError::NoTpm { .. }), "{error}");
        assert_eq!(fs::read(folder.path().join(FILE)).unwrap(), before);
    }

    #[test]
    fn changed_secure_boot_settings_are_told_apart_from_another_machine() {
        let (folder, tpm) = (folder(), FakeTpm::new(1));
        NodeKey::load_or_create(folder.path(), &tpm).unwrap();
        tpm.change_state();
        assert!(matches!(
            NodeKey::load_or_create(folder.path(), &tpm),
            Err(KeyError::StateChanged { .. })
        ));
    }

    #[test]
    fn a_key_made_without_a_tpm_keeps_its_identity_and_its_mark() {
        let folder = folder();
        let made = NodeKey::load_or_create(folder.path(), &SoftwareTpm).unwrap();
        let loaded = NodeKey::load_or_create(folder.path(), &FakeTpm::new(1)).unwrap();
        assert_eq!(
            (loaded.peer_id(), loaded.assurance()),
            (made.peer_id(), Assurance::Low)
        );
    }

    #[test]
    fn damaged_files_are_refused_and_no_new_key_is_made() {
        let folder = folder();
        let tpm = FakeTpm::new(1);
        NodeKey::load_or_create(folder.path(), &tpm).unwrap();
        let path = folder.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        let other = SecretKey::from_bytes([9; 32]).public();
        let mut swapped: serde_json::Value = serde_json::from_str(&good).unwrap();
        swapped["public"] = serde_json::to_value(other).unwrap();
        for text in [
            "",
            "{}",
            &good.replace("\"version\": 1", "\"version\": 2"),
            &swapped.to_string(),
        ] {
            fs::write(&path, text).unwrap();
            let error = NodeKey::load_or_create(folder.path(), &tpm).unwrap_err();
            assert!(matches!(error, KeyError::Damaged { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, "x".repeat(LIMIT as usize + 1)).unwrap();
        assert!(matches!(
            NodeKey::load_or_create(folder.path(), &tpm),
            Err(KeyError::File { .. })
        ));
    }

    #[test]
    fn a_write_that_was_cut_short_leaves_no_key_and_does_not_block_the_next() {
        let folder = folder();
        fs::write(folder.path().join(format!("{FILE}.new")), "half").unwrap();
        assert!(NodeKey::load_or_create(folder.path(), &FakeTpm::new(1)).is_ok());
    }

    #[test]
    fn a_key_that_is_there_is_never_written_over() {
        let folder = folder();
        let path = folder.path().join(FILE);
        fs::write(&path, "precious").unwrap();
        let error = write_once(folder.path(), &path, b"new").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    /// What a restart finds when the membership names `named`.
    fn restart(folder: &Path, named: &PeerId) -> (PeerId, Leftover) {
        let (key, leftover) = NodeKey::load_named(folder, &FakeTpm::new(1), Some(named), || {
            panic!("no key is made anew")
        })
        .unwrap();
        (key.peer_id(), leftover)
    }

    #[test]
    fn next_key_lies_beside_the_present_one_until_the_membership_names_it() {
        let (folder, tpm) = (folder(), FakeTpm::new(1));
        let old = NodeKey::load_or_create(folder.path(), &tpm).unwrap().peer_id();
        assert_eq!(restart(folder.path(), &old), (old.clone(), Leftover::None));
        let abandoned = NodeKey::make_next(folder.path(), &tpm).unwrap().peer_id();
        let next = NodeKey::make_next(folder.path(), &tpm).unwrap();
        assert_eq!(next.assurance(), Assurance::Tpm);
        let next = next.peer_id();
        assert_ne!(next, abandoned);
        assert_eq!(restart(folder.path(), &old), (old.clone(), Leftover::Made));
        assert_eq!(restart(folder.path(), &next), (next.clone(), Leftover::Committed));
        NodeKey::forget_old(folder.path()).unwrap();
        assert_eq!(restart(folder.path(), &next), (next.clone(), Leftover::None));
        NodeKey::forget_old(folder.path()).unwrap();
        NodeKey::discard_next(folder.path()).unwrap();
        assert_eq!(
            restart(folder.path(), &next),
            (next, Leftover::None),
            "once more does nothing"
        );
        let path = folder.path().join(FILE);
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "the old key is gone"
        );
    }

    #[test]
    fn half_a_next_key_is_no_key_and_goes() {
        let (folder, tpm) = (folder(), FakeTpm::new(1));
        let old = NodeKey::load_or_create(folder.path(), &tpm).unwrap().peer_id();
        for text in ["", "{\"version\": 1", &"x".repeat(LIMIT as usize + 1)] {
            fs::write(folder.path().join(NEXT), text).unwrap();
            assert_eq!(restart(folder.path(), &old), (old.clone(), Leftover::Made));
        }
        NodeKey::discard_next(folder.path()).unwrap();
        assert_eq!(restart(folder.path(), &old), (old, Leftover::None));
    }

    #[test]
    fn next_key_that_cannot_be_opened_any_more_is_said_and_not_replaced() {
        let (folder, tpm) = (folder(), FakeTpm::new(1));
        NodeKey::load_or_create(folder.path(), &tpm).unwrap();
        let next = NodeKey::make_next(folder.path(), &FakeTpm::new(2))
            .unwrap()
            .peer_id();
        let opened = NodeKey::load_named(folder.path(), &tpm, Some(&next), || panic!("no key is made anew"));
        assert!(matches!(opened, Err(KeyError::ForeignTpm { .. })), "{opened:?}");
        assert!(folder.path().join(NEXT).exists());
    }

    #[test]
    fn debug_does_not_show_the_seed() {
        let folder = folder();
        let key = NodeKey::load_or_create(folder.path(), &FakeTpm::new(1)).unwrap();
        let seed: String = key
            .secret_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(!format!("{key:?}").contains(&seed));
    }
}
