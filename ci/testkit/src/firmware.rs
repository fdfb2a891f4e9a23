//! Where the distributions keep OVMF. Files only; it starts nothing.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// A pair of UEFI firmware images: the code, and the variables a new machine starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firmware {
    /// Mapped read-only into every machine.
    pub code: PathBuf,
    /// Copied for each machine.
    pub vars: PathBuf,
}

/// Debian 12 and later and Ubuntu 24.04 have the 4 MB builds; Debian 12 also has the older 2 MB ones.
const PAIRS: [(&str, &str); 2] = [
    ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    ("OVMF_CODE.fd", "OVMF_VARS.fd"),
];

/// The same with Secure Boot compiled in and no keys enrolled (setup mode).
const SECURE_PAIRS: [(&str, &str); 2] = [
    ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd"),
    ("OVMF_CODE.secboot.fd", "OVMF_VARS.fd"),
];

impl Firmware {
    /// The distribution's OVMF without Secure Boot.
    ///
    /// # Errors
    /// When the package `ovmf` is not installed.
    pub fn find() -> Result<Self> {
        Self::find_in(Path::new("/usr/share/OVMF"), &PAIRS)
    }

    /// The distribution's OVMF that can enrol keys and then enforces them. Needs system management mode, which
    /// [`Machine`](crate::Machine) turns on for it.
    ///
    /// # Errors
    /// When the package `ovmf` is not installed.
    pub fn find_secure_boot() -> Result<Self> {
        Self::find_in(Path::new("/usr/share/OVMF"), &SECURE_PAIRS)
    }

    /// The code needs system management mode.
    pub(crate) fn needs_smm(&self) -> bool {
        self.code.to_string_lossy().contains("secboot")
    }

    fn find_in(folder: &Path, pairs: &[(&str, &str)]) -> Result<Self> {
        for (code, vars) in pairs {
            let (code, vars) = (folder.join(code), folder.join(vars));
            if code.exists() && vars.exists() {
                return Ok(Self { code, vars });
            }
        }
        bail!(
            "there is no OVMF in `{}`: install the Debian package `ovmf`",
            folder.display()
        )
    }

    /// Copies the variables to `path` unless a machine has them already.
    pub(crate) fn prepare_vars(&self, path: &Path) -> Result<()> {
        if !path.exists() {
            std::fs::copy(&self.vars, path).with_context(|| {
                format!("failed to copy `{}` to `{}`", self.vars.display(), path.display())
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_build_is_preferred_and_a_lonely_half_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| std::fs::write(dir.path().join(name), name).unwrap();
        assert!(
            Firmware::find_in(dir.path(), &PAIRS)
                .unwrap_err()
                .to_string()
                .contains("`ovmf`")
        );
        touch("OVMF_CODE_4M.fd");
        touch("OVMF_CODE.fd");
        touch("OVMF_VARS.fd");
        assert!(
            Firmware::find_in(dir.path(), &PAIRS)
                .unwrap()
                .code
                .ends_with("OVMF_CODE.fd")
        );
        touch("OVMF_VARS_4M.fd");
        assert!(
            Firmware::find_in(dir.path(), &PAIRS)
                .unwrap()
                .code
                .ends_with("OVMF_CODE_4M.fd")
        );
    }

    #[test]
    fn a_machine_keeps_its_variables() {
        let dir = tempfile::tempdir().unwrap();
        let (vars, copy) = (dir.path().join("vars"), dir.path().join("copy"));
        std::fs::write(&vars, "new").unwrap();
        let firmware = Firmware {
            code: dir.path().join("code"),
            vars,
        };
        firmware.prepare_vars(&copy).unwrap();
        std::fs::write(&copy, "enrolled").unwrap();
        firmware.prepare_vars(&copy).unwrap();
        assert_eq!(std::fs::read_to_string(&copy).unwrap(), "enrolled");
    }
}
