//! The config file: read when its identity changes. Polled: it appears once or twice in a machine's life, and a poll
//! cannot lose an event.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use beemesh_init_api::NetworkConfig;

use crate::plan::{InvalidConfig, Plans};

/// The largest config that is read, in bytes.
const SIZE_LIMIT: u64 = 64 << 10;

/// Why a config file is not applied.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("failed to read `{0}`")]
    Read(PathBuf, #[source] std::io::Error),
    /// It is too large.
    #[error("`{0}` is larger than {SIZE_LIMIT} bytes")]
    TooLarge(PathBuf),
    /// It is no JSON of ours.
    #[error("`{0}` is not a network config")]
    Json(PathBuf, #[source] serde_json::Error),
    /// It makes no sense.
    #[error("`{0}` cannot be applied")]
    Invalid(PathBuf, #[source] InvalidConfig),
}

/// The file and what of it was seen.
pub struct ConfigFile {
    path: PathBuf,
    seen: Option<(u64, i64, i64)>,
}

impl ConfigFile {
    /// Watches `path`, which need not exist.
    pub fn at(path: PathBuf) -> Self {
        Self { path, seen: None }
    }

    /// The content if it is another than at the last call.
    pub fn poll(&mut self) -> Option<Result<Plans, ConfigError>> {
        let metadata = fs::metadata(&self.path).ok()?;
        let identity = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec());
        if self.seen == Some(identity) {
            return None;
        }
        self.seen = Some(identity);
        Some(read(&self.path))
    }
}

fn read(path: &Path) -> Result<Plans, ConfigError> {
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|e| ConfigError::Read(path.to_owned(), e))?;
    file.take(SIZE_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(|e| ConfigError::Read(path.to_owned(), e))?;
    if text.len() as u64 > SIZE_LIMIT {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    let config: NetworkConfig =
        serde_json::from_slice(&text).map_err(|e| ConfigError::Json(path.to_owned(), e))?;
    Plans::of(&config).map_err(|e| ConfigError::Invalid(path.to_owned(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_content_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network.json");
        let mut file = ConfigFile::at(path.clone());
        assert!(file.poll().is_none());
        fs::write(&path, "{}").unwrap();
        assert!(file.poll().unwrap().is_ok());
        assert!(file.poll().is_none());
        fs::write(dir.path().join("new"), r#"{"linkz":[]}"#).unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(matches!(file.poll(), Some(Err(ConfigError::Json(..)))));
    }

    #[test]
    fn file_past_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network.json");
        fs::write(&path, vec![b' '; SIZE_LIMIT as usize + 1]).unwrap();
        assert!(matches!(
            ConfigFile::at(path).poll(),
            Some(Err(ConfigError::TooLarge(_)))
        ));
    }
}
