//! Reads a join pack from a mounted stick, and writes receipts, logs and requests back: at most [`limits::RECEIPTS`] of the first
//! two, the oldest go; at most [`limits::REQUESTS`] of the last, none of this pack goes.
//!
//! The stick is untrusted: `joinpack.json` is read up to its bound, verified, and only then the blobs that it names
//! by digest are copied, each checked while it is copied. Blobs stand under a temporary name until all are good:
//! a stick that is pulled out leaves nothing behind. Nothing is judged here, that is the format's work.

mod receipts;

pub use receipts::{remove_log, spent_places, write_log, write_receipt};

use crate::store::write_atomic;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_firmware_tpm::{Credential, Tpm, TpmError};
use beemesh_ids::Digest;
use beemesh_joinpack_format::{
    BlobCheck, MANIFEST_LIMIT, Pack, PackVoucher, Refusal, Request, SecretKey, Verified, limits,
    surplus_requests,
};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Copy buffer, in bytes.
const CHUNK: usize = 1 << 20;
/// Folders in one another that are looked at below a stick: no file of a pack lies deeper than `blobs/sha256`.
const DEPTH: usize = 8;

/// Why a stick was not used.
#[derive(Debug, thiserror::Error)]
pub enum StickError {
    /// The pack is bad: a refusal, not a failure.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// All its vouchers belong to other boxes.
    #[error("this stick has no voucher left for this box: ask your operator for a stick with a place for it")]
    NoVoucher,
    /// The place's key is encrypted to a TPM that does not give it out.
    #[error(
        "this stick is for one machine alone, and its TPM does not open it: use the machine that the stick was made for"
    )]
    Sealed(#[source] TpmError),
    /// The pack lets machines ask by their TPM, and there is none.
    #[error(
        "this stick has no place for this box, and without a TPM it cannot ask for one by the stick: ask your operator for a stick \
         with a place for it"
    )]
    Unprovable,
    /// There is no pack on it.
    #[error("the stick holds no `joinpack.json`: write a join pack to it with `joinpack write`")]
    NoPack,
    /// Reading broke off: the stick was pulled out or is worn out.
    #[error("reading `{path}` from the stick broke off: insert it again, or use another stick")]
    Read {
        /// What was being read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state volume took no more.
    #[error("failed to keep `{path}` on the state volume")]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Reads the signed manifest, up to its bound and one byte. Judges nothing.
pub fn read_manifest(stick: &Path) -> Result<Vec<u8>, StickError> {
    let path = stick.join("joinpack.json");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StickError::NoPack),
        Err(source) => return Err(StickError::Read { path, source }),
    };
    let mut bytes = Vec::new();
    // One byte past the bound is enough to know that there is more.
    let read = file.take(MANIFEST_LIMIT as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|source| StickError::Read { path, source })?;
    Ok(bytes)
}

/// The relative paths of all files below `blobs`, bounded.
pub fn list_blobs(stick: &Path) -> Result<Vec<String>, StickError> {
    let mut names = Vec::new();
    let mut seen = 0;
    let mut folders = vec![PathBuf::from("blobs")];
    while let Some(folder) = folders.pop() {
        let path = stick.join(&folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(StickError::Read { path, source }),
        };
        for entry in entries {
            let entry = entry.map_err(|source| StickError::Read {
                path: path.clone(),
                source,
            })?;
            let relative = folder.join(entry.file_name());
            let kind = entry.file_type().map_err(|source| StickError::Read {
                path: path.clone(),
                source,
            })?;
            match kind.is_dir() {
                // A file system that was tampered with can hold a folder in itself.
                true if relative.components().count() > DEPTH => {
                    return Err(Refusal::UnlistedBlob {
                        path: relative.to_string_lossy().chars().take(80).collect(),
                    }
                    .into());
                }
                true => folders.push(relative),
                false => names.push(relative.to_string_lossy().into_owned()),
            }
            seen += 1;
            if seen > limits::LISTING {
                return Err(Refusal::LimitExceeded {
                    what: "files below blobs",
                    limit: limits::LISTING,
                }
                .into());
            }
        }
    }
    Ok(names)
}

/// Copies the named blobs into `staging`, checking each. On any error the whole folder is removed.
pub fn stage_blobs(
    stick: &Path,
    pack: &Pack<Verified>,
    blobs: &[Digest],
    staging: &Path,
) -> Result<(), StickError> {
    let keep = |source| StickError::Keep {
        path: staging.to_owned(),
        source,
    };
    let _ = fs::remove_dir_all(staging);
    fs::create_dir_all(staging).map_err(keep)?;
    let staged = blobs.iter().try_for_each(|digest| {
        let size = pack
            .manifest()
            .blobs
            .get(digest)
            .copied()
            .ok_or(Refusal::MissingBlob { digest: *digest })?;
        copy_blob(
            &stick.join(pack.blob_path(digest)),
            &staging.join(digest.hex()),
            *digest,
            size,
        )
    });
    if staged.is_err() {
        let _ = fs::remove_dir_all(staging);
    }
    staged
}

fn copy_blob(from: &Path, to: &Path, digest: Digest, size: u64) -> Result<(), StickError> {
    let broken = |source| StickError::Read {
        path: from.to_owned(),
        source,
    };
    let keep = |source| StickError::Keep {
        path: to.to_owned(),
        source,
    };
    let mut check = BlobCheck::new(digest, size);
    let mut source = File::open(from).map_err(broken)?;
    let mut target = File::create(to).map_err(keep)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = source.read(&mut buffer).map_err(broken)?;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        check.update(bytes)?;
        target.write_all(bytes).map_err(keep)?;
    }
    Ok(check.finish()?)
}

impl StickError {
    /// A stable word for the reason: used in receipts and events.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::NoVoucher => "no-voucher",
            Self::Sealed(_) => "sealed-for-another",
            Self::Unprovable => "no-tpm",
            Self::NoPack => "no-pack",
            Self::Read { .. } => "read-failed",
            Self::Keep { .. } => "state-volume-failed",
        }
    }
}

/// Opens the one-time key of a voucher: with the TPM where it is sealed.
pub fn open_key(offer: &PackVoucher, tpm: &dyn Tpm) -> Result<SecretKey, StickError> {
    let sealed = match (&offer.one_time_key, &offer.sealed_key) {
        (Some(key), _) => return Ok(key.clone()),
        (None, Some(sealed)) => sealed,
        (None, None) => return Err(StickError::NoVoucher),
    };
    // The format has checked that it is base64.
    let decode = |text: &String| STANDARD.decode(text).unwrap_or_default();
    let credential = Credential {
        credential: decode(&sealed.credential),
        secret: decode(&sealed.secret),
    };
    let seed = tpm.activate(&credential).map_err(StickError::Sealed)?;
    let seed = <[u8; 32]>::try_from(seed.as_slice()).map_err(|_| StickError::NoVoucher)?;
    Ok(SecretKey::from_bytes(seed))
}

/// Writes a request to the stick, which is made writable for that moment only.
pub fn write_request(stick: &Path, request: &Request, key: &SecretKey) -> io::Result<()> {
    let envelope = request.to_envelope(key).map_err(io::Error::other)?;
    remount(stick, false)?;
    let written = put_request(stick, request, &envelope.to_json());
    written.and(remount(stick, true))
}

/// Makes room and writes. A stick that is full of requests to this pack takes no more.
fn put_request(stick: &Path, request: &Request, content: &[u8]) -> io::Result<()> {
    let path = stick.join(request.path());
    let folder = stick.join("requests");
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let there: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|other| *other != path)
        .take(2 * limits::REQUESTS)
        .collect();
    if there.len() >= limits::REQUESTS {
        let asked = |path: PathBuf| -> Option<(String, Option<String>)> {
            let name = path.file_name()?.to_str()?.to_owned();
            Some((name, read_request(&path).map(|request| request.serial)))
        };
        let there = there.into_iter().filter_map(asked).collect();
        let surplus = surplus_requests(there, &request.serial).ok_or_else(|| {
            let full = format!("it holds {} requests already", limits::REQUESTS);
            io::Error::new(io::ErrorKind::StorageFull, full)
        })?;
        for name in surplus {
            fs::remove_file(folder.join(name))?;
        }
    }
    write_atomic(&path, content, 0o644)
}

fn read_request(path: &Path) -> Option<Request> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(limits::REQUEST_LIMIT as u64 + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    Request::parse(&bytes).ok()
}

fn remount(stick: &Path, read_only: bool) -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(None::<&str>, stick, None::<&str>, flags, None::<&str>).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, voucher};
    use beemesh_firmware_tpm::SoftwareTpm;
    use beemesh_ids::PeerId;
    use beemesh_joinpack_format::{ReceiptMachine, SealedKey};

    const SERIAL: &str = "01KDVKFD00000000000000000A";

    #[test]
    fn stick_that_is_full_of_requests_to_this_pack_takes_no_more_and_older_ones_make_room() {
        let stick = tempfile::tempdir().unwrap();
        let folder = stick.path().join("requests");
        let of = |n: u8, serial: &str| {
            let secret = SecretKey::from_bytes([n; 32]);
            let request = Request {
                fabric: beemesh_ids::FabricId::from_root(Digest::of(b"root")),
                serial: serial.to_owned(),
                peer_id: PeerId::from_ed25519(secret.public().as_bytes()),
                machine: ReceiptMachine {
                    ek: Some(beemesh_joinpack_format::EndorsementFile::new(b"key", None)),
                    ..ReceiptMachine::default()
                },
                chain: None,
                boot_id: String::new(),
                at: NOW,
                attestation: None,
            };
            let content = request.to_envelope(&secret).unwrap().to_json();
            (request, content)
        };
        let put = |n, serial| {
            let (request, content) = of(n, serial);
            put_request(stick.path(), &request, &content).map(|()| request.path())
        };
        // The folder is made where it lacks.
        let first = put(1, SERIAL).unwrap();
        assert_eq!(read_request(&stick.path().join(&first)).unwrap().serial, SERIAL);
        for n in 1..limits::REQUESTS {
            fs::write(folder.join(format!("copy-{n:03}.json")), of(1, SERIAL).1).unwrap();
        }
        assert_eq!(put(2, SERIAL).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(
            put(1, SERIAL).unwrap(),
            first,
            "one that is replaced takes no place"
        );
        fs::write(
            folder.join("copy-001.json"),
            of(3, "01KDVKFC00000000000000000A").1,
        )
        .unwrap();
        let second = put(2, SERIAL).unwrap();
        assert!(stick.path().join(second).exists() && !folder.join("copy-001.json").exists());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), limits::REQUESTS);
    }

    #[test]
    fn key_in_the_clear_needs_no_tpm_and_a_sealed_one_does() {
        let mut offer = voucher(1, "till");
        assert_eq!(
            open_key(&offer, &SoftwareTpm).unwrap(),
            offer.one_time_key.clone().unwrap()
        );
        offer.one_time_key = None;
        offer.sealed_key = Some(SealedKey {
            ek: Digest::of(b"ek"),
            credential: "AAAA".to_owned(),
            secret: "AAAA".to_owned(),
        });
        let refused = open_key(&offer, &SoftwareTpm).unwrap_err();
        assert_eq!(refused.code(), "sealed-for-another");
    }
}

#[cfg(test)]
#[path = "stick_attacks.rs"]
mod attacks;
