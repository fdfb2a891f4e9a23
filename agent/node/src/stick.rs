//! Reads a join pack from a mounted stick, and writes the receipt back.
//!
//! The stick is untrusted: `joinpack.json` is read up to its bound, verified, and only then the blobs that it names
//! by digest are copied, each checked while it is copied. Blobs stand under a temporary name until all are good:
//! a stick that is pulled out leaves nothing behind. Nothing is judged here, that is the format's work.

use crate::store::write_atomic;
use beemesh_ids::Digest;
use beemesh_joinpack_format::{
    BlobCheck, MANIFEST_LIMIT, Pack, Receipt, Refusal, SecretKey, Unverified, Verified, limits,
};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Copy buffer, in bytes.
const CHUNK: usize = 1 << 20;

/// Why a stick was not used.
#[derive(Debug, thiserror::Error)]
pub enum StickError {
    /// The pack is bad: a refusal, not a failure.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// All its vouchers belong to other boxes.
    #[error("this stick has no voucher left for this box: ask your operator for a stick with a place for it")]
    NoVoucher,
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

/// Reads the signed manifest, up to its bound.
pub fn read_pack(stick: &Path) -> Result<Pack<Unverified>, StickError> {
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
    Ok(Pack::<Unverified>::parse(&bytes)?)
}

/// The relative paths of all files below `blobs`, bounded.
pub fn list_blobs(stick: &Path) -> Result<Vec<String>, StickError> {
    let mut names = Vec::new();
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
                true => folders.push(relative),
                false => names.push(relative.to_string_lossy().into_owned()),
            }
            if names.len() + folders.len() > limits::LISTING {
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
            Self::NoPack => "no-pack",
            Self::Read { .. } => "read-failed",
            Self::Keep { .. } => "state-volume-failed",
        }
    }
}

/// Writes a receipt to the stick, which is made writable for that moment only.
pub fn write_receipt(stick: &Path, receipt: &Receipt, key: Option<&SecretKey>) -> io::Result<()> {
    let envelope = receipt.to_envelope(key).map_err(io::Error::other)?;
    remount(stick, false)?;
    let written = write_atomic(&stick.join(receipt.path()), &envelope.to_json(), 0o644);
    written.and(remount(stick, true))
}

fn remount(stick: &Path, read_only: bool) -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if read_only {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(None::<&str>, stick, None::<&str>, flags, None::<&str>).map_err(io::Error::from)
}
