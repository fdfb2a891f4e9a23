//! A hardware profile: which kernel modules, which command line, how large the partitions.

use anyhow::{Context, Result, bail};
use beemesh_image_disk::UsbSizes;
use serde::Deserialize;
use std::{fs, path::Path};

/// `profiles/<name>.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// One line for people.
    pub description: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Modules needed to mount the root.
    pub initrd: ModuleSet,
    /// All other modules.
    pub root: ModuleSet,
    /// Partition sizes.
    pub disk: Disk,
}

/// Modules of one file system.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleSet {
    /// Allow list: names, names with `*`, folders that end with `/`.
    pub modules: Vec<String>,
}

/// Partition sizes, MiB.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// EFI system partition.
    pub esp_mib: u32,
    /// Join pack.
    pub join_mib: u32,
}

impl Disk {
    /// In the units of the disk plan.
    pub fn sizes(self) -> UsbSizes {
        UsbSizes {
            esp: u64::from(self.esp_mib) << 20,
            join: u64::from(self.join_mib) << 20,
        }
    }
}

/// The kernel's own limit on x86, bytes (COMMAND_LINE_SIZE).
const MAX_CMDLINE: usize = 2048;

impl Profile {
    /// Reads `<folder>/<name>.toml`. A name that is none lists those that are.
    pub fn load(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.toml"));
        if name.contains('/') || !path.is_file() {
            bail!(
                "there is no profile `{name}` in `{}`, only: {}",
                folder.display(),
                known(folder).join(", ")
            );
        }
        let text =
            fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        Self::parse(&text).with_context(|| format!("`{}` is not understood", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let profile: Self = toml::from_str(text)?;
        if profile.cmdline.len() >= MAX_CMDLINE || profile.cmdline.chars().any(char::is_control) {
            bail!("`cmdline` must be one line of less than {MAX_CMDLINE} bytes");
        }
        Ok(profile)
    }
}

fn known(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".toml")
                .map(str::to_owned)
        })
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "description='d'\ncmdline='quiet'\n[initrd]\nmodules=[]\n[root]\nmodules=[]\n[disk]\nesp_mib=64\njoin_mib=64";

    #[test]
    fn unknown_keys_and_bad_command_lines_are_refused() {
        assert!(Profile::parse(GOOD).is_ok());
        assert!(Profile::parse(&GOOD.replace("esp_mib", "esp_mb")).is_err());
        assert!(Profile::parse(&GOOD.replace("'quiet'", "\"quiet\\n\"")).is_err());
        assert!(Profile::parse(&GOOD.replace("quiet", &"q".repeat(MAX_CMDLINE))).is_err());
    }

    #[test]
    fn a_profile_that_is_missing_lists_those_that_are_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("generic.toml"), GOOD).unwrap();
        let error = Profile::load(folder.path(), "genric").unwrap_err().to_string();
        assert!(
            error.contains("genric") && error.contains("only: generic"),
            "{error}"
        );
        assert!(Profile::load(folder.path(), "../generic").is_err());
    }
}
