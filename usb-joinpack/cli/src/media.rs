//! Reading a pack from a folder, a FAT image, a partitioned image or a stick. Decides nothing about what it reads.
//!
//! Invariants: `joinpack.json` is read up to its limit and one byte; listings end at the format's limit; links, sockets
//! and devices in a folder are named but never opened.

use crate::disk::{self, Fat};
use crate::failure::{Failure, invalid};
use anyhow::{Context as _, anyhow};
use beemesh_ids::Digest;
use beemesh_joinpack_format::{BlobCheck, MANIFEST_LIMIT, Pack, Refusal, Verified, blob_path, limits};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Depth at which a listing ends.
const DEPTH: usize = 8;
/// Bytes that are copied at once.
pub const PIECE: usize = 1 << 20;

/// Where a pack lies.
pub enum Media {
    /// A folder.
    Folder(PathBuf),
    /// A FAT file system.
    Fat(Box<Fat>),
}

impl Media {
    /// Opens whatever `path` is.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let metadata = fs::metadata(path);
        let metadata =
            metadata.map_err(|e| Failure::Invalid(anyhow!("failed to open `{}`: {e}", path.display())))?;
        if metadata.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if !metadata.is_file() && !disk::is_block_device(path) {
            invalid!(
                "`{}` is neither a folder nor an image nor a stick",
                path.display()
            );
        }
        match disk::examine(path)?.join {
            Some(place) => Ok(Self::Fat(Box::new(disk::open(path, place, false)?))),
            None => invalid!(
                "`{}` has no partition named {} and is no FAT image",
                path.display(),
                disk::JOIN_LABEL
            ),
        }
    }

    /// The content of a file, up to `limit` and one byte. `None`: there is no such file.
    pub fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, Failure> {
        let Some(reader) = self.reader(name)? else {
            return Ok(None);
        };
        let mut content = Vec::new();
        reader
            .take(limit as u64 + 1)
            .read_to_end(&mut content)
            .with_context(|| format!("failed to read `{name}`"))?;
        Ok(Some(content))
    }

    /// A file to read from. `None`: there is no such file.
    pub fn reader(&self, name: &str) -> Result<Option<Box<dyn Read + '_>>, Failure> {
        let context = || format!("failed to open `{name}` in the pack");
        match self {
            Self::Folder(dir) => {
                let path = dir.join(name);
                match fs::symlink_metadata(&path) {
                    Ok(metadata) if metadata.is_file() => {}
                    Ok(_) => invalid!("`{}` is not a plain file", path.display()),
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(anyhow!(error).context(context()).into()),
                }
                Ok(Some(Box::new(File::open(path).with_context(context)?)))
            }
            Self::Fat(fs) => match fs.root_dir().open_file(name) {
                Ok(file) => Ok(Some(Box::new(file))),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(anyhow!(error).context(context()).into()),
            },
        }
    }

    /// Relative paths of all files, at most one more than the format's limit. Links and other things count as files.
    pub fn listing(&self) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        match self {
            Self::Folder(dir) => list_folder(dir, "", 0, &mut names)
                .with_context(|| format!("failed to list `{}`", dir.display()))?,
            Self::Fat(fs) => {
                list_fat(&fs.root_dir(), "", 0, &mut names).context("failed to list the stick")?
            }
        }
        Ok(names)
    }

    /// Reads `joinpack.json` and parses it.
    pub fn pack(&self) -> Result<(Vec<u8>, Pack<beemesh_joinpack_format::Unverified>), Failure> {
        match self.read("joinpack.json", MANIFEST_LIMIT)? {
            None => invalid!("there is no `joinpack.json`: this is not a join pack"),
            Some(bytes) => {
                let pack = Pack::parse(&bytes)?;
                Ok((bytes, pack))
            }
        }
    }

    /// Checks the listing and the content of every blob; `progress` hears of the bytes read.
    pub fn check_blobs(&self, pack: &Pack<Verified>, progress: &mut dyn FnMut(u64)) -> Result<(), Failure> {
        pack.check_listing(self.listing()?)?;
        for (digest, size) in &pack.manifest().blobs {
            stream(&mut *self.blob(digest)?, *digest, *size, &mut |piece| {
                progress(piece.len() as u64);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// A blob to read from.
    pub fn blob(&self, digest: &Digest) -> Result<Box<dyn Read + '_>, Failure> {
        Ok(self
            .reader(&blob_path(digest))?
            .ok_or(Refusal::MissingBlob { digest: *digest })?)
    }
}

/// Streams a blob to `take` in pieces of at most [`PIECE`] bytes and checks it on the way.
pub fn stream(
    reader: &mut dyn Read,
    digest: Digest,
    size: u64,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut check = BlobCheck::new(digest, size);
    let mut buffer = vec![0; PIECE];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(anyhow!(error)
                    .context(format!("failed to read blob `{digest}`"))
                    .into());
            }
        };
        let piece = buffer.get(..read).unwrap_or_default();
        check.update(piece)?;
        take(piece)?;
    }
    Ok(check.finish()?)
}

fn list_folder(dir: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if names.len() > limits::LISTING {
            return Ok(());
        }
        if entry.file_type()?.is_dir() && depth < DEPTH {
            list_folder(&entry.path(), &format!("{name}/"), depth + 1, names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}

/// Collects the relative paths of all files of a FAT folder, at most one more than the format's limit.
pub fn list_fat(
    dir: &fatfs::Dir<'_, crate::slice::Slice>,
    prefix: &str,
    depth: usize,
    names: &mut Vec<String>,
) -> std::io::Result<()> {
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        // Every folder but the root has these two.
        if depth > 0 && (name == "." || name == "..") {
            continue;
        }
        if names.len() > limits::LISTING {
            return Ok(());
        }
        let name = format!("{prefix}{name}");
        if entry.is_dir() && depth < DEPTH {
            list_fat(&entry.to_dir(), &format!("{name}/"), depth + 1, names)?;
        } else {
            names.push(name);
        }
    }
    Ok(())
}
