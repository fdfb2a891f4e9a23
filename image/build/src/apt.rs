//! Asks apt: what depends on what, what the archive offers, and the files themselves.
//!
//! Never names a host: apt's own configuration says where packages come from. Does not look at what is installed
//! here, so that the answer is the same on every machine with the same archive. Invariant: a file that leaves
//! [`download`] has the locked size and SHA-256.

use crate::{
    lock::{Lock, Package},
    packages::Resolve,
};
use anyhow::{Context, Result, bail};
use beemesh_ids::{Digest, DigestHasher};
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

/// What the archive does not have.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// A locked version is gone.
    #[error(
        "the archive does not offer package `{name}` in version `{version}` (any more): \
         run `apt-get update`, and if that does not help `image lock --update`, which shows what changes"
    )]
    Gone {
        /// Package.
        name: String,
        /// Locked version.
        version: String,
    },
    /// The archive has another file under the same version.
    #[error(
        "package `{name}` in version `{version}` is another file than the locked one ({locked}): \
         if that is intended, run `image lock --update`"
    )]
    OtherContent {
        /// Package.
        name: String,
        /// Locked version.
        version: String,
        /// What packages.lock says.
        locked: Digest,
    },
}

/// Resolves the wanted packages against the archive as it is now.
pub fn resolve(wanted: &Resolve) -> Result<Lock> {
    let mut names: BTreeSet<String> = wanted.alone.iter().cloned().collect();
    for meta in &wanted.meta {
        names.insert(meta_target(&meta.name, &meta.prefix)?);
    }
    if !wanted.closure.is_empty() {
        // An empty dpkg status: as if nothing were installed.
        let mut command = tool("apt-get");
        command.args(["-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=1"]);
        command
            .args(["--simulate", "--no-install-recommends", "install"])
            .args(&wanted.closure);
        names.extend(installed_by(&output(&mut command)?));
    }
    for name in &wanted.omit {
        names.remove(name);
    }
    let stanzas = show(names.iter().map(String::as_str), true)?;
    let mut packages = Vec::new();
    for name in &names {
        let found = stanzas.iter().find(|p| p.name == *name);
        packages.push(
            found
                .with_context(|| format!("the archive has no package `{name}`"))?
                .clone(),
        );
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|d| d.as_secs())
        .unwrap_or_default();
    Lock::new(u32::try_from(now).unwrap_or(u32::MAX), packages)
}

/// Every locked package is offered with its locked digest; the first that is not is the error.
pub fn check_offered(lock: &Lock) -> Result<()> {
    let pinned: Vec<_> = lock
        .packages
        .iter()
        .map(|p| format!("{}={}", p.name, p.version))
        .collect();
    let stanzas = show(pinned.iter().map(String::as_str), false)?;
    for package in &lock.packages {
        let name = package.name.clone();
        let version = package.version.clone();
        let mut same = stanzas
            .iter()
            .filter(|p| p.name == name && p.version == version)
            .peekable();
        if same.peek().is_none() {
            bail!(OfferError::Gone { name, version });
        }
        if !same.any(|p| p.digest == package.digest) {
            bail!(OfferError::OtherContent {
                name,
                version,
                locked: package.digest
            });
        }
    }
    Ok(())
}

/// Downloads a locked package to `target`, and checks it.
pub fn download(package: &Package, target: &Path) -> Result<()> {
    let folder = tempfile::tempdir_in(target.parent().unwrap_or(Path::new(".")))?;
    let mut command = tool("apt-get");
    command.args(["-o", "APT::Sandbox::User=root", "--quiet=2", "download"]);
    command
        .arg(format!("{}={}", package.name, package.version))
        .current_dir(folder.path());
    if let Err(error) = output(&mut command) {
        check_offered(&Lock::new(0, vec![package.clone()])?)?;
        return Err(error.context(format!("failed to download `{}`", package.name)));
    }
    let file = only_deb(folder.path())?;
    let found = digest_of(&file)?;
    if found != package.digest {
        let (name, version) = (package.name.clone(), package.version.clone());
        bail!(OfferError::OtherContent {
            name,
            version,
            locked: package.digest
        });
    }
    fs::rename(&file, target).with_context(|| format!("failed to put `{}` in place", target.display()))
}

/// SHA-256 of a file.
pub fn digest_of(path: &Path) -> Result<Digest> {
    let mut file = fs::File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    let mut hasher = Hashing(DigestHasher::default());
    io::copy(&mut io::BufReader::with_capacity(1 << 20, &mut file), &mut hasher)
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    Ok(hasher.0.finish())
}

struct Hashing(DigestHasher);

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn only_deb(folder: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension() == Some(OsStr::new("deb")) {
            files.push(path);
        }
    }
    match files.pop() {
        Some(file) if files.is_empty() => Ok(file),
        _ => bail!("apt-get did not leave exactly one .deb file"),
    }
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("LC_ALL", "C.UTF-8");
    command
}

/// Runs a tool and returns what it printed; what it complained about is in the error.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("failed to run `{name}`: `cargo xtask setup` installs it"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{name}` failed ({}): {}",
            output.status,
            said.trim().lines().take(20).collect::<Vec<_>>().join("; ")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn meta_target(meta: &str, prefix: &str) -> Result<String> {
    let text = output(tool("apt-cache").args(["depends", "--no-recommends", "--no-suggests", meta]))?;
    dependency(&text, prefix).with_context(|| format!("`{meta}` depends on no package `{prefix}*`"))
}

fn dependency(text: &str, prefix: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

fn installed_by(simulation: &str) -> Vec<String> {
    let lines = simulation.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines
        .filter_map(|rest| rest.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Package stanzas. `newest` limits the answer to the candidate of each name.
fn show<'a>(names: impl Iterator<Item = &'a str>, newest: bool) -> Result<Vec<Package>> {
    let mut command = tool("apt-cache");
    command.args(["-o", "Dir::State::status=/dev/null", "show"]);
    command.arg(if newest {
        "--no-all-versions"
    } else {
        "--all-versions"
    });
    command.args(names);
    // A name that is unknown makes it fail and still print the others: the caller sees who is missing.
    let output = command
        .output()
        .context("failed to run `apt-cache`: image build needs apt")?;
    Ok(stanzas(&String::from_utf8_lossy(&output.stdout)))
}

fn stanzas(text: &str) -> Vec<Package> {
    text.split("\n\n").filter_map(stanza).collect()
}

fn stanza(text: &str) -> Option<Package> {
    let fields: BTreeMap<_, _> = text
        .lines()
        .filter(|l| !l.starts_with(' '))
        .filter_map(|line| line.split_once(": "))
        .collect();
    Some(Package {
        name: fields.get("Package")?.to_string(),
        version: fields.get("Version")?.to_string(),
        architecture: fields.get("Architecture")?.to_string(),
        size: fields.get("Size")?.trim().parse().ok()?,
        digest: format!("sha256:{}", fields.get("SHA256")?.trim()).parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Package: kmod\nVersion: 30+1-1\nArchitecture: amd64\nDescription: tools\n Size: 3\nSize: 95180\n\
        SHA256: e21ae247204fe8a14ac29a5f510227d45b41cd3c41059cc942f2502d25765165\n\nPackage: broken\nVersion: 1\n";

    #[test]
    fn stanzas_without_a_digest_are_passed_over() {
        let found = stanzas(SHOWN);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].name.as_str(), found[0].size), ("kmod", 95180));
        assert!(found[0].digest.hex().starts_with("e21ae247"));
    }

    #[test]
    fn simulation_and_dependencies_are_read() {
        let text = "NOTE: simulation\nInst libc6 (2.36 Debian [amd64]) []\nInst kmod (30 Debian [amd64])\nConf libc6 (2.36)\n";
        assert_eq!(installed_by(text), ["libc6", "kmod"]);
        let text = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        assert_eq!(
            dependency(text, "linux-image-").as_deref(),
            Some("linux-image-6.1.0-56-amd64")
        );
        assert_eq!(dependency(text, "linux-headers-"), None);
    }

    #[test]
    fn a_version_that_is_gone_is_named_with_the_way_out() {
        let mut package = stanzas(SHOWN).remove(0);
        package.version = "0.0.0-never-was".into();
        let folder = tempfile::tempdir().unwrap();
        let error = download(&package, &folder.path().join("kmod.deb")).unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(OfferError::Gone { .. })),
            "{error:#}"
        );
        let text = error.to_string();
        assert!(
            text.contains("`kmod`")
                && text.contains("0.0.0-never-was")
                && text.contains("image lock --update"),
            "{text}"
        );
    }
}
