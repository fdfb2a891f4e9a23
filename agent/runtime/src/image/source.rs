//! Where an import's blobs come from: a layout directory, or an archive of one that is staged first.
//!
//! It interprets no document but `oci-layout`. Invariant: a blob that [`Source::obtain`] has put into a file has the digest and
//! the size that were asked for; names in archives and directories are never followed, only `blobs/sha256/<hex>` is.

use super::document::{BlobRef, Limits};
use super::refusal::{ImageError, ImageRefusal, failed, shown};
use beemesh_ids::Digest;
use beemesh_ids::DigestHasher;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Blobs by digest, and the index of the whole.
pub(crate) enum Source {
    /// Verified blobs in a staging directory, with their sizes.
    Staged {
        index: Vec<u8>,
        dir: PathBuf,
        sizes: BTreeMap<Digest, u64>,
    },
    /// A directory that nobody has verified.
    Layout { index: Vec<u8>, dir: PathBuf },
}

impl Source {
    /// Opens a layout directory.
    pub fn layout(dir: &Path, limits: &Limits) -> Result<Self, ImageError> {
        check_layout_file(&read_small(&dir.join("oci-layout"), limits.document)?)?;
        let index = read_small(&dir.join("index.json"), limits.document)?;
        Ok(Source::Layout {
            index,
            dir: dir.join("blobs/sha256"),
        })
    }

    /// Reads an archive once, front to back, keeping its blobs in `staging`.
    pub fn archive(input: impl Read, staging: &Path, limits: &Limits) -> Result<Self, ImageError> {
        // Headers and padding cost at most 1.5 KiB a member on top of the blobs.
        let bound = limits.blobs.saturating_add(limits.members as u64 * 1536);
        let mut archive = tar::Archive::new(input.take(bound));
        let read = || failed("read", Path::new("the archive"));
        let (mut index, mut layout, mut sizes, mut total) = (None, None, BTreeMap::new(), 0u64);
        // Raw: no member of a layout needs a long name, and long names are where memory would be unbounded.
        for (count, entry) in archive.entries().map_err(read())?.raw(true).enumerate() {
            if count >= limits.members {
                let what = "the number of archive members".into();
                return Err(ImageRefusal::TooLarge {
                    what,
                    limit: limits.members as u64,
                }
                .into());
            }
            let mut entry = entry.map_err(not_an_archive)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let size = entry.size();
            total = total.saturating_add(size);
            if total > limits.blobs {
                return Err(ImageRefusal::TooLarge {
                    what: "the archive".into(),
                    limit: limits.blobs,
                }
                .into());
            }
            let path = entry.path_bytes().into_owned();
            let path = path.strip_prefix(b"./").unwrap_or(&path);
            match path {
                b"index.json" => index = Some(read_bounded(&mut entry, limits.document, "index.json")?),
                b"oci-layout" => layout = Some(read_bounded(&mut entry, limits.document, "oci-layout")?),
                _ => {
                    if let Some(hex) = path.strip_prefix(b"blobs/sha256/") {
                        let digest: Digest = format!("sha256:{}", String::from_utf8_lossy(hex))
                            .parse()
                            .map_err(|_| malformed("the archive", format!("`{}` is no blob", shown(path))))?;
                        let blob = BlobRef { digest, size };
                        store_verified(&mut entry, &blob, &staging.join(digest.hex()))?;
                        sizes.insert(digest, size);
                    }
                }
            }
        }
        check_layout_file(&layout.ok_or_else(|| malformed("the archive", "it has no `oci-layout`"))?)?;
        let index = index.ok_or_else(|| malformed("the archive", "it has no `index.json`"))?;
        Ok(Source::Staged {
            index,
            dir: staging.into(),
            sizes,
        })
    }

    /// The bytes of `index.json`.
    pub fn index(&self) -> &[u8] {
        match self {
            Source::Staged { index, .. } | Source::Layout { index, .. } => index,
        }
    }

    /// Puts a blob into the new file `into`, verified.
    pub fn obtain(&self, blob: &BlobRef, into: &Path) -> Result<(), ImageError> {
        match self {
            Source::Staged { dir, sizes, .. } => {
                let found = *sizes
                    .get(&blob.digest)
                    .ok_or(ImageRefusal::MissingBlob { blob: blob.digest })?;
                if found != blob.size {
                    let (blob, expected) = (blob.digest, blob.size);
                    return Err(ImageRefusal::WrongSize {
                        blob,
                        expected,
                        found,
                    }
                    .into());
                }
                let from = dir.join(blob.digest.hex());
                if from == into {
                    return Ok(());
                }
                fs::hard_link(&from, into).map_err(failed("link", into))
            }
            Source::Layout { dir, .. } => {
                let path = dir.join(blob.digest.hex());
                let mut file = match open_plain(&path) {
                    Ok(file) => file,
                    Err(err) if err.kind() == io::ErrorKind::NotFound => {
                        return Err(ImageRefusal::MissingBlob { blob: blob.digest }.into());
                    }
                    Err(err) => return Err(failed("open", &path)(err)),
                };
                store_verified(&mut file, blob, into)
            }
        }
    }
}

fn not_an_archive(err: io::Error) -> ImageError {
    match err.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            malformed("the archive", err).into()
        }
        _ => failed("read", Path::new("the archive"))(err),
    }
}

fn malformed(what: &str, reason: impl std::fmt::Display) -> ImageRefusal {
    ImageRefusal::Malformed {
        what: what.into(),
        reason: reason.to_string(),
    }
}

/// Copies exactly `blob.size` bytes to a new file, made durable, or refuses.
fn store_verified(input: &mut impl Read, blob: &BlobRef, into: &Path) -> Result<(), ImageError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(into)
        .map_err(failed("create", into))?;
    let (mut hasher, mut found) = (DigestHasher::default(), 0u64);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        // One byte more than expected is enough to know that it is too long.
        let room = (blob.size - found).saturating_add(1).min(buffer.len() as u64) as usize;
        let count = match input.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(err) => return Err(failed("read", Path::new("the image"))(err)),
        };
        found += count as u64;
        if found > blob.size {
            break;
        }
        hasher.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(failed("write", into))?;
    }
    if found != blob.size {
        return Err(ImageRefusal::WrongSize {
            blob: blob.digest,
            expected: blob.size,
            found,
        }
        .into());
    }
    let digest = hasher.finish();
    if digest != blob.digest {
        return Err(ImageRefusal::WrongDigest {
            blob: blob.digest,
            found: digest,
        }
        .into());
    }
    file.sync_all().map_err(failed("write", into))
}

/// Opens a regular file, never through a link.
fn open_plain(path: &Path) -> io::Result<File> {
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ))
    }
}

fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, ImageError> {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    match open_plain(path) {
        Ok(mut file) => read_bounded(&mut file, limit, &name),
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            Err(malformed("the layout", format!("it has no `{name}`")).into())
        }
        Err(err) => Err(failed("open", path)(err)),
    }
}

/// Reads a document; one byte over the limit is a refusal.
pub(crate) fn read_bounded(input: &mut impl Read, limit: u64, what: &str) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    input
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(failed("read", Path::new(what)))?;
    if bytes.len() as u64 > limit {
        return Err(ImageRefusal::TooLarge {
            what: format!("`{what}`"),
            limit,
        }
        .into());
    }
    Ok(bytes)
}

fn check_layout_file(bytes: &[u8]) -> Result<(), ImageRefusal> {
    let layout: oci_spec::image::OciLayout =
        serde_json::from_slice(bytes).map_err(|err| malformed("`oci-layout`", err))?;
    if layout.image_layout_version().starts_with("1.") {
        Ok(())
    } else {
        Err(malformed("`oci-layout`", "its version is not 1"))
    }
}
