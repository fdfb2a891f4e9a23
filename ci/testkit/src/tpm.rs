//! A software TPM (swtpm) in a process of its own. Its state lives in a folder, so a machine that is switched off and
//! on again has the same TPM, and a machine that is given another folder has another TPM.
//!
//! Invariant: swtpm locks the folder when the machine initialises it, so two running machines never share one TPM.

use crate::process::Program;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long swtpm may take to open its socket.
const START: Duration = Duration::from_secs(10);

/// A running software TPM.
#[derive(Debug)]
pub(crate) struct SoftwareTpm {
    program: Program,
}

impl SoftwareTpm {
    /// Starts swtpm on the state in `folder`, which is manufactured first if it is new; `socket` gets its control
    /// channel, `log` what it says.
    pub(crate) fn start(folder: &Path, socket: &Path, log: &Path) -> Result<Self> {
        let folder = absolute(folder)?;
        manufacture(&folder)?;
        let arguments = [
            "socket".to_owned(),
            "--tpm2".to_owned(),
            "--tpmstate".to_owned(),
            format!("dir={}", folder.display()),
            "--ctrl".to_owned(),
            format!("type=unixio,path={}", socket.display()),
            // The machine's end is the TPM's end, however the machine ends.
            "--terminate".to_owned(),
        ];
        let mut program = Program::start("swtpm", &arguments, log)?;
        let deadline = Instant::now() + START;
        while !socket.exists() {
            if program.ended()?.is_some() {
                return Err(program.blame(&format!("did not start on the state in `{}`", folder.display())));
            }
            if Instant::now() > deadline {
                return Err(program.blame("opened no socket within 10 s"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { program })
    }

    pub(crate) fn id(&self) -> u32 {
        self.program.id()
    }

    /// Ends it; it writes its state at every change, so nothing is lost.
    pub(crate) fn stop(mut self) -> Result<()> {
        // QEMU's end ends it (`--terminate`); a moment is enough.
        if self.program.wait(Duration::from_millis(500))?.is_none() {
            self.program.kill()?;
        }
        Ok(())
    }
}

/// Makes the state of a new TPM; an existing one is left alone. Only the SHA-256 bank is on: the firmware measures
/// into every active bank, and under emulation each costs boot time.
pub(crate) fn manufacture(folder: &Path) -> Result<()> {
    if folder.join("tpm2-00.permall").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
    let output = Command::new("swtpm_setup")
        .args(["--tpm2", "--overwrite", "--pcr-banks", "sha256", "--tpmstate"])
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .context("failed to run `swtpm_setup`: install the Debian package `swtpm-tools`")?;
    if !output.status.success() {
        bail!(
            "`swtpm_setup` could not make a TPM in `{}`: {}{}",
            folder.display(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// swtpm resolves relative paths against a folder of its own.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("failed to resolve `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tpm_is_manufactured_once_and_then_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("tpm");
        let start = |n: u8| {
            SoftwareTpm::start(
                &state,
                &dir.path().join(format!("s{n}")),
                &dir.path().join(format!("l{n}")),
            )
        };
        let first = start(1).unwrap();
        let made = std::fs::read(state.join("tpm2-00.permall")).unwrap();
        drop(first);
        // A TPM made anew would have other seeds.
        let second = start(2).unwrap();
        assert_eq!(std::fs::read(state.join("tpm2-00.permall")).unwrap(), made);
        second.stop().unwrap();
    }
}
