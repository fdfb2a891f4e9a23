//! The log key of a fabric: boxes encrypt to it the logs that they leave beside their receipts, and it opens them. Made with the
//! fabric, and replaced by `fabric log-key`.
//!
//! Invariant: a key that was replaced stays beside the new one, or logs that are encrypted to it could never be read.

use crate::chance;
use crate::fabric::{self, read_json, refuse_shared, write_new};
use crate::failure::{Failure, invalid};
use anyhow::Context as _;
use beemesh_joinpack_format::{LogKey, LogSecret};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// The key in force, in the folder of the fabric; `log-N.json` are those that it took the place of.
const FILE: &str = "log.json";
/// Keys that are looked at.
const MOST_FILES: usize = 1000;

/// A key file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogKeyFile {
    version: u32,
    public: LogKey,
    secret: LogSecret,
}

/// What `fabric log-key` did.
#[derive(Debug, Serialize)]
pub struct Made {
    /// `made` or `replaced`.
    pub result: &'static str,
    /// The public half.
    pub log_key: LogKey,
    /// Where the key is.
    pub file: PathBuf,
    /// Where the one before is now.
    pub before: Option<PathBuf>,
}

impl Made {
    /// Everything in words.
    pub fn in_words(&self) -> String {
        let before = self.before.as_ref().map_or_else(String::new, |path| {
            format!(
                "the one before is `{}` now: keep it, it opens the logs that were encrypted to it\n",
                path.display()
            )
        });
        format!(
            "log key {} {} in `{}`: the packs that are made from now on name it\n{before}",
            self.log_key,
            self.result,
            self.file.display()
        )
    }
}

/// Makes the key of a new fabric in `dir`.
pub fn make(dir: &Path) -> Result<LogKey, Failure> {
    let secret = LogSecret::from_bytes(&chance::bytes()?)?;
    let public = secret.public();
    let file = LogKeyFile {
        version: 1,
        public,
        secret,
    };
    write_new(&dir.join(FILE), &file, 0o600)?;
    Ok(public)
}

/// Makes the key of the fabric in `dir`, in the place of the one that it has.
pub fn replace(dir: &Path) -> Result<Made, Failure> {
    fabric::load_roots(&dir.join("root.json"))?;
    let file = dir.join(FILE);
    let before = match file.exists() {
        true => {
            // A file that is something else is not put out of the way.
            read(&file)?;
            let name = |number| dir.join(format!("log-{number}.json"));
            let Some(free) = (1..=MOST_FILES).map(name).find(|path| !path.exists()) else {
                invalid!("`{}` is full of old log keys: move them away", dir.display())
            };
            // Interrupted behind this there is no key, and the command makes one when it is repeated.
            fs::rename(&file, &free).with_context(|| format!("failed to write `{}`", free.display()))?;
            Some(free)
        }
        false => None,
    };
    Ok(Made {
        result: if before.is_some() { "replaced" } else { "made" },
        log_key: make(dir)?,
        file,
        before,
    })
}

/// The public half of the key in force; `None` where the fabric has none.
pub fn public(dir: &Path) -> Result<Option<LogKey>, Failure> {
    let file = dir.join(FILE);
    match file.exists() {
        true => read(&file).map(|secret| Some(secret.public())),
        false => Ok(None),
    }
}

/// The key in force and those before it.
pub fn secrets(dir: &Path) -> Result<Vec<LogSecret>, Failure> {
    let failed = || format!("failed to read `{}`", dir.display());
    let mut secrets = Vec::new();
    for entry in fs::read_dir(dir).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let is_old = name.starts_with("log-") && name.ends_with(".json");
        if (name == FILE || is_old) && secrets.len() < MOST_FILES {
            secrets.push(read(&path)?);
        }
    }
    if secrets.is_empty() {
        invalid!(
            "`{}` holds no log key (`{FILE}`): logs are opened with the folder that the packs were made from",
            dir.display()
        );
    }
    Ok(secrets)
}

fn read(path: &Path) -> Result<LogSecret, Failure> {
    refuse_shared(path)?;
    let file: LogKeyFile = read_json(path)?;
    if file.secret.public() != file.public {
        invalid!(
            "`{}` is damaged: its halves are of different keys",
            path.display()
        );
    }
    Ok(file.secret)
}
