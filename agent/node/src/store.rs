//! The agent's documents on the state volume.
//!
//! Every document is replaced whole: temporary file, fsync, rename, fsync of the directory. After a power loss a
//! document is the old one or the new one. Knows nothing of what is inside; each document has a bound.

use serde::{Serialize, de::DeserializeOwned};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Largest document that is read back, in bytes.
pub const DOCUMENT_LIMIT: u64 = 16 << 20;

/// Why a document could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("failed to {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The document is not what it was written as.
    #[error("`{path}` is damaged: move it away and insert the join stick again")]
    Damaged {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Larger or more than the bound.
    #[error("`{path}` is past the bound of {limit}")]
    TooLarge {
        /// Where.
        path: PathBuf,
        /// Bytes or documents.
        limit: u64,
    },
}

/// A folder of documents, mode 0700.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the folder, making it where it is missing.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
        };
        fs::create_dir_all(root).map_err(|source| io_error("create", root, source))?;
        Ok(store)
    }

    /// Where `name` lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Reads a document; `None` where there is none.
    pub fn load<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.path(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error("open", &path, source)),
        };
        let mut bytes = Vec::new();
        let read = file.take(DOCUMENT_LIMIT + 1).read_to_end(&mut bytes);
        read.map_err(|source| io_error("read", &path, source))?;
        if bytes.len() as u64 > DOCUMENT_LIMIT {
            return Err(StoreError::TooLarge {
                path,
                limit: DOCUMENT_LIMIT,
            });
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| StoreError::Damaged { path, source })
    }

    /// Writes a document durably.
    pub fn save<T: Serialize>(&self, name: &str, document: &T) -> Result<(), StoreError> {
        let path = self.path(name);
        let bytes = serde_json::to_vec(document).map_err(|source| StoreError::Damaged {
            path: path.clone(),
            source,
        })?;
        write_atomic(&path, &bytes, 0o600).map_err(|source| io_error("write", &path, source))
    }

    /// Removes a document; nothing happens where there is none.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path, source)),
            _ => Ok(()),
        }
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Replaces `path` by `bytes`, durably.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.load::<u32>("a.json").unwrap(), None);
        store.save("changes/a.json", &7u32).unwrap();
        store.save("changes/a.json", &8u32).unwrap();
        assert_eq!(store.load::<u32>("changes/a.json").unwrap(), Some(8));
        store.remove("changes/a.json").unwrap();
        assert_eq!(store.load::<u32>("changes/a.json").unwrap(), None);
    }

    #[test]
    fn a_damaged_document_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        fs::write(folder.path().join("b.json"), b"{").unwrap();
        let error = store.load::<u32>("b.json").unwrap_err();
        assert!(error.to_string().contains("b.json"), "{error}");
    }

    #[test]
    fn an_oversized_document_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        File::create(store.path("big.json"))
            .unwrap()
            .set_len(DOCUMENT_LIMIT + 1)
            .unwrap();
        assert!(matches!(
            store.load::<u32>("big.json"),
            Err(StoreError::TooLarge { .. })
        ));
    }
}
