//! What is booted: the initrd of the bare system, and the product's kernel, initrd and command line.

use super::record::SHELL;
use crate::Binaries;
use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use serde::Deserialize;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Where Debian's package busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// What all systems share.
#[derive(Debug, Clone)]
pub struct Product {
    /// The kernel that all boot.
    pub kernel: PathBuf,
    /// Its release, as `uname -r` says it.
    pub kernel_release: String,
    /// The product's initrd.
    pub initrd: PathBuf,
    /// The product's kernel command line.
    pub command_line: String,
    /// Size of the UKI: kernel and initrd in one file.
    pub image_bytes: u64,
    /// Version and build.
    pub version: String,
}

#[derive(Deserialize)]
struct Profile {
    cmdline: String,
}

impl Product {
    /// The built image.
    ///
    /// # Errors
    /// When `cargo xtask build` did not run, or wrote something else than it does today.
    pub fn find(binaries: &Binaries) -> Result<Self> {
        let release = binaries.release()?;
        let text = |name: &str| {
            let value = release[name]
                .as_str()
                .with_context(|| format!("the release has no `{name}`"));
            value.map(str::to_owned)
        };
        let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../image/profiles/generic.toml");
        let profile = fs::read_to_string(&profile)
            .with_context(|| format!("failed to read `{}`", profile.display()))?;
        let profile: Profile = toml::from_str(&profile).context("the profile has no `cmdline`")?;
        Ok(Self {
            kernel: binaries.artefact("vmlinuz")?,
            kernel_release: text("kernel")?,
            initrd: binaries.artefact("initrd.cpio")?,
            command_line: profile.cmdline,
            image_bytes: file_size(&binaries.artefact(".efi")?)?,
            version: format!("{} (build {})", text("version")?, text("build_id")?),
        })
    }
}

/// Bytes of a file.
///
/// # Errors
/// When it cannot be looked at.
pub fn file_size(path: &Path) -> Result<u64> {
    let about = fs::metadata(path).with_context(|| format!("failed to look at `{}`", path.display()))?;
    Ok(about.len())
}

/// Writes the initrd of the bare system to `path`: busybox, a script that is PID 1, and the console.
///
/// # Errors
/// When busybox is not installed or the file cannot be written.
pub fn write_bare(path: &Path) -> Result<()> {
    let busybox = fs::read(BUSYBOX)
        .with_context(|| format!("failed to read `{BUSYBOX}`: is the package busybox-static installed?"))?;
    let archive = bare(&busybox).context("failed to pack the bare initrd")?;
    fs::write(path, archive).with_context(|| format!("failed to write `{}`", path.display()))
}

/// The line needs `/proc`; mounting it is the one process that PID 1 starts before.
fn bare(busybox: &[u8]) -> std::io::Result<Vec<u8>> {
    let init = format!(
        "#!/bin/busybox sh\n/bin/busybox mount -t proc proc /proc\n{SHELL}\necho \"$line\"\n\
         exec /bin/busybox sleep 1000000\n"
    );
    let folder = |name: &str| {
        Builder::new(name)
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Directory)
    };
    let program = |name: &str| {
        Builder::new(name)
            .mode(0o755)
            .set_mode_file_type(ModeFileType::Regular)
    };
    // The kernel opens it for PID 1.
    let console = Builder::new("dev/console")
        .mode(0o600)
        .set_mode_file_type(ModeFileType::Char)
        .rdev_major(5)
        .rdev_minor(1);
    let entries: [(Builder, &[u8]); 6] = [
        (folder("bin"), &[]),
        (folder("dev"), &[]),
        (folder("proc"), &[]),
        (console, &[]),
        (program("bin/busybox"), busybox),
        (program("init"), init.as_bytes()),
    ];
    let mut archive = Vec::new();
    for ((builder, content), inode) in entries.into_iter().zip(1..) {
        let size = u32::try_from(content.len()).map_err(std::io::Error::other)?;
        let mut writer = builder.ino(inode).write(archive, size);
        writer.write_all(content)?;
        archive = writer.finish()?;
    }
    trailer(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bare_initrd_holds_busybox_a_script_and_nothing_more() {
        let archive = bare(b"elf").unwrap();
        let mut names = Vec::new();
        let mut rest = archive.as_slice();
        loop {
            let entry = cpio::NewcReader::new(rest).unwrap();
            if entry.entry().is_trailer() {
                break;
            }
            names.push(entry.entry().name().to_owned());
            rest = entry.finish().unwrap();
        }
        assert_eq!(
            names,
            ["bin", "dev", "proc", "dev/console", "bin/busybox", "init"]
        );
    }
}
