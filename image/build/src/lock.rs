//! `packages.lock`: the exact packages of an image, and how two locks differ.
//!
//! Does not ask the archive: see `apt`. Invariant: packages are sorted by name and each name is there once.

use crate::packages::Resolve;
use anyhow::{Context, Result, bail};
use beemesh_ids::Digest;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, fs, path::Path};

/// More packages than this are a mistake in packages.toml.
const MAX_PACKAGES: usize = 256;

/// One package, pinned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Debian name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Size of the .deb file, bytes.
    pub size: u64,
    /// SHA-256 of the .deb file.
    pub digest: Digest,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// When it was resolved, seconds since 1970: the time of every file in the image, and the earliest time that a
    /// machine running it can believe.
    pub resolved: u32,
    /// The packages.
    #[serde(rename = "package")]
    pub packages: Vec<Package>,
}

const HEAD: &str = "# Written by `image lock --update`, from packages.toml. Not edited by hand.\n\n";

impl Lock {
    /// A lock over `packages` in any order.
    pub fn new(resolved: u32, mut packages: Vec<Package>) -> Result<Self> {
        packages.sort_by(|a, b| a.name.cmp(&b.name));
        let lock = Self { resolved, packages };
        lock.validate()?;
        Ok(lock)
    }

    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!(
                "failed to read `{}`: `image lock --update` makes it",
                path.display()
            )
        })?;
        let lock: Self =
            toml::from_str(&text).with_context(|| format!("`{}` is not understood", path.display()))?;
        lock.validate()
            .with_context(|| format!("`{}` is damaged: run `image lock --update`", path.display()))?;
        Ok(lock)
    }

    fn validate(&self) -> Result<()> {
        if self.packages.len() > MAX_PACKAGES {
            bail!("{} packages: more than {MAX_PACKAGES}", self.packages.len());
        }
        for pair in self.packages.windows(2) {
            if let [a, b] = pair
                && a.name >= b.name
            {
                bail!("`{}` is twice in it or out of order", b.name);
            }
        }
        Ok(())
    }

    /// Writes the file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = format!(
            "{HEAD}{}",
            toml::to_string(self).context("failed to serialise the lock")?
        );
        fs::write(path, text).with_context(|| format!("failed to write `{}`", path.display()))
    }

    /// The package of that name.
    pub fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|p| p.name == name)
    }

    /// The only package whose name starts with `prefix`.
    pub fn only(&self, prefix: &str) -> Result<&Package> {
        let mut found = self.packages.iter().filter(|p| p.name.starts_with(prefix));
        match (found.next(), found.next()) {
            (Some(package), None) => Ok(package),
            (None, _) => bail!("packages.lock has no package `{prefix}*`: run `image lock --update`"),
            (Some(a), Some(b)) => bail!("packages.lock has both `{}` and `{}`", a.name, b.name),
        }
    }

    /// Every package that packages.toml names is locked.
    pub fn check_wanted(&self, wanted: &Resolve) -> Result<()> {
        for name in wanted.alone.iter().chain(&wanted.closure) {
            if self.package(name).is_none() {
                bail!(
                    "packages.toml wants `{name}`, packages.lock does not have it: run `image lock --update`"
                );
            }
        }
        for meta in &wanted.meta {
            self.only(&meta.prefix)?;
        }
        Ok(())
    }
}

/// A difference between two locks.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// New package.
    Added { name: String, version: String },
    /// Gone package.
    Removed { name: String, version: String },
    /// Other version.
    Version { name: String, from: String, to: String },
    /// Same version, other file: the archive was rebuilt or tampered with.
    Content { name: String, version: String },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { name, version } => write!(f, "+ {name} {version}"),
            Self::Removed { name, version } => write!(f, "- {name} {version}"),
            Self::Version { name, from, to } => write!(f, "~ {name} {from} -> {to}"),
            Self::Content { name, version } => write!(f, "! {name} {version}: same version, other content"),
        }
    }
}

/// What changed from `old` to `new`, by name.
pub fn changes(old: Option<&Lock>, new: &Lock) -> Vec<Change> {
    let by_name = |lock: &Lock| {
        lock.packages
            .iter()
            .map(|p| (p.name.clone(), p.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let mut before = old.map(by_name).unwrap_or_default();
    let mut changes = Vec::new();
    for package in &new.packages {
        let name = package.name.clone();
        let version = package.version.clone();
        match before.remove(&name) {
            None => changes.push(Change::Added { name, version }),
            Some(was) if was.version != version => changes.push(Change::Version {
                name,
                from: was.version,
                to: version,
            }),
            Some(was) if was.digest != package.digest => changes.push(Change::Content { name, version }),
            Some(_) => {}
        }
    }
    changes.extend(before.into_values().map(|p| Change::Removed {
        name: p.name,
        version: p.version,
    }));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, content: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            architecture: "amd64".into(),
            size: content.len() as u64,
            digest: Digest::of(content.as_bytes()),
        }
    }

    #[test]
    fn every_kind_of_change_is_named() {
        let old = Lock::new(
            1,
            vec![
                package("a", "1", "x"),
                package("b", "1", "x"),
                package("c", "1", "x"),
            ],
        )
        .unwrap();
        let new = Lock::new(
            2,
            vec![
                package("d", "1", "x"),
                package("b", "2", "y"),
                package("c", "1", "y"),
            ],
        )
        .unwrap();
        let text: Vec<_> = changes(Some(&old), &new).iter().map(Change::to_string).collect();
        assert_eq!(
            text,
            [
                "~ b 1 -> 2",
                "! c 1: same version, other content",
                "+ d 1",
                "- a 1"
            ]
        );
        assert!(changes(Some(&old), &old).is_empty());
    }

    #[test]
    fn a_written_lock_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("packages.lock");
        let lock = Lock::new(7, vec![package("b", "2:1.0-1+b1", "x"), package("a", "1", "y")]).unwrap();
        lock.write(&path).unwrap();
        assert_eq!(Lock::load(&path).unwrap(), lock);
        assert_eq!(lock.packages[0].name, "a");
    }

    #[test]
    fn a_name_that_is_locked_twice_is_refused() {
        assert!(Lock::new(1, vec![package("a", "1", "x"), package("a", "2", "y")]).is_err());
    }

    #[test]
    fn a_wanted_package_that_is_not_locked_names_the_way_out() {
        let lock = Lock::new(1, vec![package("a", "1", "x")]).unwrap();
        let wanted = Resolve {
            closure: vec!["a".into(), "z".into()],
            ..Resolve::default()
        };
        let error = lock.check_wanted(&wanted).unwrap_err().to_string();
        assert!(
            error.contains("`z`") && error.contains("image lock --update"),
            "{error}"
        );
    }
}
