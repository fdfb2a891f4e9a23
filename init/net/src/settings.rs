//! The config files, confirmed and tried: read when their identity changes, and a trial left when its time is over.
//! Polled: they change a few times in a machine's life, and a poll cannot lose an event.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use beemesh_init_api::network::InvalidConfig;
use beemesh_init_api::trial::in_use;
use beemesh_init_api::{NetworkConfig, NetworkTrial};
use serde::de::DeserializeOwned;

use crate::plan::Plans;

/// The largest config that is read, in bytes.
const SIZE_LIMIT: u64 = 128 << 10;

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

/// What is to be in use.
#[derive(Debug, PartialEq, Eq)]
pub struct Choice {
    /// The plans.
    pub plans: Plans,
    /// Id of the trial that they are from.
    pub trial: Option<String>,
}

/// One file and what of it was seen.
struct Watched<T> {
    path: PathBuf,
    seen: Option<(u64, i64, i64)>,
    content: Option<T>,
}

impl<T: DeserializeOwned> Watched<T> {
    fn at(path: PathBuf) -> Self {
        Self {
            path,
            seen: None,
            content: None,
        }
    }

    /// Whether the content is another than before. A file that cannot be taken leaves the content as it was.
    fn poll(&mut self, check: impl Fn(&T) -> Result<(), InvalidConfig>) -> Result<bool, ConfigError> {
        let metadata = fs::metadata(&self.path).ok();
        let identity = metadata.map(|m| (m.ino(), m.mtime(), m.mtime_nsec()));
        if self.seen == identity {
            return Ok(false);
        }
        self.seen = identity;
        let content: Option<T> = match identity {
            None => None,
            Some(_) => Some(read(&self.path)?),
        };
        let invalid = |error| ConfigError::Invalid(self.path.clone(), error);
        content.as_ref().map_or(Ok(()), check).map_err(invalid)?;
        self.content = content;
        Ok(true)
    }
}

/// Both files.
pub struct ConfigFiles {
    confirmed: Watched<NetworkConfig>,
    trial: Watched<NetworkTrial>,
    trial_used: Option<String>,
}

impl ConfigFiles {
    /// Watches two paths, which need not exist.
    pub fn at(confirmed: PathBuf, trial: PathBuf) -> Self {
        Self {
            confirmed: Watched::at(confirmed),
            trial: Watched::at(trial),
            trial_used: None,
        }
    }

    /// What is to be in use if it is another than at the last call; `now_ms` is CLOCK_BOOTTIME.
    pub fn poll(&mut self, now_ms: u64) -> Option<Result<Choice, ConfigError>> {
        let confirmed = self.confirmed.poll(NetworkConfig::check);
        let trial = self.trial.poll(|trial| trial.config.check());
        let default = NetworkConfig::default();
        let standing = self.confirmed.content.as_ref().unwrap_or(&default);
        let (config, used) = in_use(standing, self.trial.content.as_ref(), now_ms);
        let used = used.map(|trial| trial.id.clone());
        let (confirmed, trial) = match (confirmed, trial) {
            (Err(error), _) | (_, Err(error)) => return Some(Err(error)),
            (Ok(confirmed), Ok(trial)) => (confirmed, trial),
        };
        if !confirmed && !trial && used == self.trial_used {
            return None;
        }
        self.trial_used.clone_from(&used);
        let path = if used.is_some() {
            &self.trial.path
        } else {
            &self.confirmed.path
        };
        let plans = Plans::of(config).map_err(|error| ConfigError::Invalid(path.clone(), error));
        Some(plans.map(|plans| Choice { plans, trial: used }))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let mut text = Vec::new();
    let file = fs::File::open(path).map_err(|e| ConfigError::Read(path.to_owned(), e))?;
    file.take(SIZE_LIMIT + 1)
        .read_to_end(&mut text)
        .map_err(|e| ConfigError::Read(path.to_owned(), e))?;
    if text.len() as u64 > SIZE_LIMIT {
        return Err(ConfigError::TooLarge(path.to_owned()));
    }
    serde_json::from_slice(&text).map_err(|e| ConfigError::Json(path.to_owned(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> ConfigFiles {
        ConfigFiles::at(dir.join("network.json"), dir.join("trial.json"))
    }

    fn replace(path: &Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    #[test]
    fn each_content_is_reported_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network.json");
        let mut files = files(dir.path());
        assert!(files.poll(0).is_none());
        replace(&path, "{}");
        assert!(files.poll(0).unwrap().is_ok());
        assert!(files.poll(0).is_none());
        replace(&path, r#"{"linkz":[]}"#);
        assert!(matches!(files.poll(0), Some(Err(ConfigError::Json(..)))));
        assert!(files.poll(0).is_none());
    }

    #[test]
    fn file_past_the_limit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        replace(
            &dir.path().join("network.json"),
            &" ".repeat(SIZE_LIMIT as usize + 1),
        );
        assert!(matches!(
            files(dir.path()).poll(0),
            Some(Err(ConfigError::TooLarge(_)))
        ));
    }

    #[test]
    fn trial_is_used_until_its_end_even_by_a_program_that_was_started_again() {
        let dir = tempfile::tempdir().unwrap();
        replace(&dir.path().join("network.json"), r#"{"ntp":["10.0.0.1"]}"#);
        let mut first = files(dir.path());
        let confirmed = first.poll(1_000).unwrap().unwrap();
        assert_eq!(confirmed.trial, None);
        replace(
            &dir.path().join("trial.json"),
            r#"{"id":"A","config":{"ntp":["10.0.0.2"]},"until_ms":9000}"#,
        );
        let tried = first.poll(2_000).unwrap().unwrap();
        assert_eq!((tried.trial.as_deref(), tried.plans.ntp.len()), (Some("A"), 1));
        assert!(first.poll(8_999).is_none());
        let mut again = files(dir.path());
        assert_eq!(again.poll(8_000).unwrap().unwrap(), tried);
        for files in [&mut first, &mut again] {
            assert_eq!(
                files.poll(9_000).unwrap().unwrap(),
                confirmed,
                "taken back by itself"
            );
            assert!(files.poll(9_001).is_none());
        }
    }

    #[test]
    fn trial_that_makes_no_sense_is_said_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = files(dir.path());
        replace(
            &dir.path().join("trial.json"),
            r#"{"id":"A","config":{"ntp":["x"]},"until_ms":9000}"#,
        );
        assert!(matches!(files.poll(1_000), Some(Err(ConfigError::Invalid(..)))));
        assert!(files.poll(1_001).is_none());
        fs::remove_file(dir.path().join("trial.json")).unwrap();
        assert_eq!(files.poll(1_002).unwrap().unwrap().trial, None);
    }
}
