//! `release.json`: what a release consists of.

use crate::{apt, lock::Package};
use anyhow::{Context, Result};
use beemesh_ids::Digest;
use serde::{Deserialize, Serialize};
use std::{fs, path::Path};

/// The document.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Version, as in os-release.
    pub version: String,
    /// Digest over everything that went in, shortened, as in os-release.
    pub build_id: String,
    /// Hardware profile.
    pub profile: String,
    /// What `uname -r` says.
    pub kernel: String,
    /// What the UKI leaves in PCR 11 (SHA-256 bank) once systemd-stub has measured it.
    pub pcr11: Digest,
    /// The files beside this one.
    pub artefacts: Vec<Artefact>,
    /// The Debian packages, of which the image holds a part.
    pub packages: Vec<Package>,
}

/// A file of the release.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// File name.
    pub name: String,
    /// SHA-256.
    pub digest: Digest,
    /// Size, bytes.
    pub size: u64,
}

impl Artefact {
    /// Describes a file of `folder`.
    pub fn of(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let size = fs::metadata(&path)
            .with_context(|| format!("failed to read `{}`", path.display()))?
            .len();
        Ok(Self {
            name: name.to_owned(),
            digest: apt::digest_of(&path)?,
            size,
        })
    }
}

impl Release {
    /// Writes the document.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(folder.join("release.json"), text).context("failed to write `release.json`")
    }
}
