//! The Debian kernel package: its image, and an index of what each module says of itself.
//!
//! Does not choose modules: see `modules`. The index is read from `.modinfo`, which modpost wrote when the kernel was
//! built, and kept in the cache because it means reading four thousand files.

use crate::{cache::Cache, elf};
use anyhow::{Context, Result, bail};
use beemesh_ids::Digest;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// An unpacked kernel package.
pub struct Kernel {
    /// What `uname -r` will say.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// `lib/modules/<release>`.
    pub folder: PathBuf,
    /// All its modules.
    pub modules: Vec<Module>,
    /// Names of what is built in.
    pub built_in: BTreeSet<String>,
}

/// One loadable module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Name with `_` for `-`.
    pub name: String,
    /// Path below `lib/modules/<release>`, e.g. `kernel/fs/ext4/ext4.ko`.
    pub path: String,
    /// Modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Names or aliases that should be there when it is used.
    pub soft: Vec<String>,
    /// Aliases that are plain words; device patterns are not kept.
    pub aliases: Vec<String>,
}

/// The spelling by which module names are compared.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

impl Kernel {
    /// Opens the package that was unpacked to `root`; `digest` is that of the package.
    pub fn open(root: &Path, digest: &Digest, cache: &Cache) -> Result<Self> {
        let base = [root.join("lib/modules"), root.join("usr/lib/modules")]
            .into_iter()
            .find(|p| p.is_dir());
        let base = base.context("the kernel package has no lib/modules")?;
        let mut releases: Vec<_> = fs::read_dir(&base)?.flatten().map(|e| e.file_name()).collect();
        let (Some(release), true) = (releases.pop(), releases.is_empty()) else {
            bail!("the kernel package does not hold exactly one release");
        };
        let release = release
            .to_str()
            .context("the kernel release is not UTF-8")?
            .to_owned();
        let folder = base.join(&release);
        let index = cache.get("modules", digest, |path| {
            let modules = read_modules(&folder)?;
            fs::write(path, serde_json::to_vec(&modules)?).context("failed to write the module index")
        })?;
        let modules = serde_json::from_slice(&fs::read(&index)?).context("the module index is damaged")?;
        let list =
            fs::read_to_string(folder.join("modules.builtin")).context("failed to read modules.builtin")?;
        let built_in = list.lines().filter_map(name_of).collect();
        Ok(Self {
            image: root.join(format!("boot/vmlinuz-{release}")),
            release,
            folder,
            modules,
            built_in,
        })
    }
}

fn name_of(path: &str) -> Option<String> {
    path.rsplit('/').next()?.strip_suffix(".ko").map(canonical)
}

fn read_modules(folder: &Path) -> Result<Vec<Module>> {
    let mut modules = Vec::new();
    let mut pending = vec![folder.join("kernel")];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("failed to list `{}`", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let relative = path
                .strip_prefix(folder)?
                .to_str()
                .context("a module's path is not UTF-8")?;
            let Some(name) = name_of(relative) else {
                bail!("`{relative}` is no uncompressed module: this kernel package is not supported");
            };
            let bytes = fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
            let info =
                elf::section(&bytes, ".modinfo").with_context(|| format!("`{relative}` is damaged"))?;
            modules.push(describe(name, relative.to_owned(), info.unwrap_or_default()));
        }
    }
    modules.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(modules)
}

fn describe(name: String, path: String, info: &[u8]) -> Module {
    let mut module = Module {
        name,
        path,
        depends: Vec::new(),
        soft: Vec::new(),
        aliases: Vec::new(),
    };
    for line in info.split(|byte| *byte == 0) {
        let line = String::from_utf8_lossy(line);
        match line.split_once('=') {
            Some(("depends", list)) => {
                module.depends = list.split(',').filter(|n| !n.is_empty()).map(canonical).collect();
            }
            Some(("softdep", list)) => {
                let names = list
                    .split_whitespace()
                    .filter(|word| *word != "pre:" && *word != "post:");
                module.soft.extend(names.map(canonical));
            }
            Some(("alias", alias)) if !alias.contains([':', '*', '?', '[']) => {
                module.aliases.push(canonical(alias))
            }
            _ => {}
        }
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modinfo_is_read() {
        let info = b"alias=crypto-xts\0alias=pci:v00008086d*\0depends=jbd2,crc16\0softdep=pre: crypto-crc32c post: x\0license=GPL\0";
        let module = describe("m".into(), "kernel/m.ko".into(), info);
        assert_eq!(module.depends, ["jbd2", "crc16"]);
        assert_eq!(module.soft, ["crypto_crc32c", "x"]);
        assert_eq!(module.aliases, ["crypto_xts"]);
    }

    #[test]
    fn a_compressed_module_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("kernel/fs")).unwrap();
        fs::write(folder.path().join("kernel/fs/ext4.ko.xz"), "x").unwrap();
        let error = read_modules(folder.path()).unwrap_err().to_string();
        assert!(error.contains("kernel/fs/ext4.ko.xz"), "{error}");
    }
}
