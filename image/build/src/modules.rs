//! Chooses kernel modules by a profile's allow list and gives them the indexes that init reads.
//!
//! Modules are shipped as Debian signed them. Invariant: whatever a shipped module depends on is shipped or built in,
//! and modules.dep says the same as the modules themselves.

use crate::{
    apt,
    cache::Cache,
    kernel::{Kernel, Module, canonical},
    profile::ModuleSet,
    tree::Tree,
};
use anyhow::{Context, Result, bail};
use beemesh_ids::DigestHasher;
use globset::{GlobBuilder, GlobMatcher};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

/// Why a set of modules cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// No module of that name.
    #[error("the profile wants module `{0}`, which this kernel neither has nor has built in")]
    Unknown(String),
    /// A bad pattern.
    #[error("`{0}` is not a pattern of module names")]
    Pattern(String, #[source] globset::Error),
    /// A dependency that the package does not hold.
    #[error("module `{module}` depends on `{missing}`, which this kernel neither has nor has built in")]
    Dependency {
        /// Who needs it.
        module: String,
        /// What is missing.
        missing: String,
    },
}

/// Index files that are kept. Init reads the texts, and nothing in the image reads the binary forms of them.
const INDEXES: [&str; 5] = [
    "modules.alias",
    "modules.builtin",
    "modules.dep",
    "modules.devname",
    "modules.softdep",
];

/// The modules that `patterns` allow and everything they depend on, by name.
pub fn select<'a>(
    modules: &'a [Module],
    built_in: &BTreeSet<String>,
    patterns: &[String],
) -> Result<BTreeMap<&'a str, &'a Module>, SelectError> {
    let by_name: BTreeMap<_, _> = modules.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut pending = Vec::new();
    for pattern in patterns {
        let before = pending.len();
        if let Some(folder) = pattern.strip_suffix('/') {
            let prefix = format!("kernel/{folder}/");
            pending.extend(modules.iter().filter(|m| m.path.starts_with(&prefix)));
        } else if pattern.contains('*') {
            let glob = glob(pattern)?;
            pending.extend(modules.iter().filter(|m| glob.is_match(&m.name)));
        } else {
            pending.extend(by_name.get(canonical(pattern).as_str()));
        }
        if pending.len() == before && !built_in.contains(&canonical(pattern)) {
            return Err(SelectError::Unknown(pattern.clone()));
        }
    }
    let mut chosen = BTreeMap::new();
    while let Some(module) = pending.pop() {
        if chosen.insert(module.name.as_str(), module).is_some() {
            continue;
        }
        for name in &module.depends {
            match by_name.get(name.as_str()) {
                Some(next) => pending.push(next),
                None if built_in.contains(name) => {}
                None => {
                    return Err(SelectError::Dependency {
                        module: module.name.clone(),
                        missing: name.clone(),
                    });
                }
            }
        }
        // A soft dependency is a name or an alias, and may be missing.
        for wish in &module.soft {
            pending.extend(
                modules
                    .iter()
                    .filter(|m| m.name == *wish || m.aliases.contains(wish)),
            );
        }
    }
    Ok(chosen)
}

fn glob(pattern: &str) -> Result<GlobMatcher, SelectError> {
    let built = GlobBuilder::new(&canonical(pattern))
        .literal_separator(true)
        .build();
    Ok(built
        .map_err(|e| SelectError::Pattern(pattern.to_owned(), e))?
        .compile_matcher())
}

/// Puts the chosen modules and their indexes below `<base>/<release>` of the tree. Returns the names.
pub fn install(
    kernel: &Kernel,
    set: &ModuleSet,
    cache: &Cache,
    tree: &mut Tree,
    base: &str,
) -> Result<BTreeSet<String>> {
    let chosen = select(&kernel.modules, &kernel.built_in, &set.modules)?;
    let folder = format!("{base}/{}", kernel.release);
    for module in chosen.values() {
        tree.copy(
            &format!("{folder}/{}", module.path),
            0o644,
            &kernel.folder.join(&module.path),
        )?;
    }
    let indexes = index(kernel, &chosen, cache)?;
    for name in INDEXES {
        tree.copy(&format!("{folder}/{name}"), 0o644, &indexes.join(name))?;
    }
    Ok(chosen.keys().map(|name| (*name).to_owned()).collect())
}

fn index(kernel: &Kernel, chosen: &BTreeMap<&str, &Module>, cache: &Cache) -> Result<std::path::PathBuf> {
    let mut key = DigestHasher::default();
    key.update(kernel.folder.as_os_str().as_encoded_bytes());
    for module in chosen.values() {
        key.update(module.path.as_bytes());
        key.update(b"\n");
    }
    cache.get("depmod", &key.finish(), |target| {
        let scratch = cache.scratch()?;
        let staged = stage(kernel, chosen, scratch.path())?;
        let mut depmod = Command::new("depmod");
        depmod.args(["-b"]).arg(scratch.path()).arg(&kernel.release);
        apt::output(&mut depmod)?;
        fs::create_dir(target)?;
        for name in INDEXES {
            fs::copy(staged.join(name), target.join(name))
                .with_context(|| format!("depmod left no `{name}`"))?;
        }
        agree(&fs::read_to_string(target.join("modules.dep"))?, chosen)
    })
}

/// Copies the modules to where depmod looks for them: /lib/modules or /usr/lib/modules, as it was compiled.
fn stage(kernel: &Kernel, chosen: &BTreeMap<&str, &Module>, root: &Path) -> Result<std::path::PathBuf> {
    let staged = root.join("usr/lib/modules").join(&kernel.release);
    fs::create_dir_all(&staged)?;
    std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        fs::copy(kernel.folder.join(name), staged.join(name))
            .with_context(|| format!("failed to copy `{name}`"))?;
    }
    for module in chosen.values() {
        let target = staged.join(&module.path);
        fs::create_dir_all(target.parent().unwrap_or(&staged))?;
        fs::copy(kernel.folder.join(&module.path), &target)
            .with_context(|| format!("failed to copy `{}`", module.path))?;
    }
    Ok(staged)
}

/// depmod finds dependencies by symbols, modpost wrote them by name: both must know the same modules.
fn agree(modules_dep: &str, chosen: &BTreeMap<&str, &Module>) -> Result<()> {
    let mut listed = BTreeMap::new();
    for line in modules_dep.lines() {
        let (path, needs) = line.split_once(':').context("modules.dep is damaged")?;
        listed.insert(path, needs.split_whitespace().collect::<BTreeSet<_>>());
    }
    for module in chosen.values() {
        let needs = listed.get(module.path.as_str());
        let needs = needs.with_context(|| format!("depmod does not list `{}`", module.path))?;
        for name in &module.depends {
            if let Some(wanted) = chosen.get(name.as_str())
                && !needs.contains(wanted.path.as_str())
            {
                bail!("depmod does not know that `{}` depends on `{name}`", module.name);
            }
        }
    }
    if listed.len() != chosen.len() {
        bail!("depmod lists {} modules, not {}", listed.len(), chosen.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, folder: &str, depends: &[&str], soft: &[&str], aliases: &[&str]) -> Module {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        let path = format!("kernel/{folder}/{name}.ko");
        Module {
            name: name.into(),
            path,
            depends: own(depends),
            soft: own(soft),
            aliases: own(aliases),
        }
    }

    fn kernel() -> (Vec<Module>, BTreeSet<String>) {
        let modules = vec![
            module(
                "ext4",
                "fs/ext4",
                &["jbd2", "crc16"],
                &["crypto_crc32c", "absent"],
                &[],
            ),
            module("jbd2", "fs/jbd2", &[], &[], &[]),
            module("crc32c_generic", "crypto", &[], &[], &["crypto_crc32c"]),
            module("nls_ascii", "fs/nls", &[], &[], &[]),
            module("nls_utf8", "fs/nls", &[], &[], &[]),
            module("broken", "x", &["nowhere"], &[], &[]),
        ];
        (
            modules,
            BTreeSet::from(["crc16".to_owned(), "tpm_tis".to_owned()]),
        )
    }

    fn names(patterns: &[&str]) -> Result<Vec<String>, SelectError> {
        let (modules, built_in) = kernel();
        let patterns: Vec<_> = patterns.iter().map(|p| (*p).to_owned()).collect();
        select(&modules, &built_in, &patterns).map(|found| found.keys().map(|n| (*n).to_owned()).collect())
    }

    #[test]
    fn dependencies_come_along_hard_and_soft() {
        assert_eq!(names(&["ext4"]).unwrap(), ["crc32c_generic", "ext4", "jbd2"]);
    }

    #[test]
    fn folders_and_patterns_select() {
        assert_eq!(names(&["fs/nls/"]).unwrap(), ["nls_ascii", "nls_utf8"]);
        assert_eq!(names(&["nls-u*"]).unwrap(), ["nls_utf8"]);
    }

    #[test]
    fn built_in_is_fine_and_unknown_is_an_error() {
        assert!(names(&["tpm-tis"]).unwrap().is_empty());
        assert!(matches!(names(&["nosuch"]), Err(SelectError::Unknown(name)) if name == "nosuch"));
        assert!(matches!(names(&["fs/nosuch/"]), Err(SelectError::Unknown(_))));
        assert!(
            matches!(names(&["broken"]), Err(SelectError::Dependency { missing, .. }) if missing == "nowhere")
        );
    }

    #[test]
    fn a_modules_dep_that_disagrees_is_refused() {
        let (modules, built_in) = kernel();
        let chosen = select(&modules, &built_in, &["ext4".into()]).unwrap();
        let good = "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko\nkernel/fs/jbd2/jbd2.ko:\nkernel/crypto/crc32c_generic.ko:\n";
        agree(good, &chosen).unwrap();
        assert!(agree(&good.replace(": kernel/fs/jbd2/jbd2.ko", ":"), &chosen).is_err());
        assert!(agree(&good.replace("kernel/crypto/crc32c_generic.ko:\n", ""), &chosen).is_err());
    }
}
