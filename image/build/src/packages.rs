//! `packages.toml`: which Debian packages are wanted and which of their files go into the root.
//!
//! Does not resolve or download: see `apt`.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::{fs, path::Path};

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// What to resolve.
    pub resolve: Resolve,
    /// What to copy.
    pub root: RootFiles,
}

/// Names of packages.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resolve {
    /// Replaced by one of their dependencies.
    pub meta: Vec<Meta>,
    /// Without dependencies.
    pub alone: Vec<String>,
    /// With dependencies.
    pub closure: Vec<String>,
    /// Left out of the closure.
    pub omit: Vec<String>,
}

/// A package that stands for another one.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The meta package.
    pub name: String,
    /// How the name of the wanted dependency starts.
    pub prefix: String,
}

/// Files of the packages, absolute paths with merged `/usr`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootFiles {
    /// Executables.
    pub programs: Vec<String>,
    /// Names of libraries that are opened at run time.
    pub libraries: Vec<String>,
    /// Other files.
    pub files: Vec<String>,
    /// Symbolic links: path and target.
    pub links: Vec<(String, String)>,
}

impl Wanted {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        toml::from_str(&text).with_context(|| format!("`{}` is not understood", path.display()))
    }
}
