//! Guests whose PID 1 is the product's with faults planted in it (`init/pid1/src/planted.rs`): the product's kernel and
//! initramfs, and a root image of that PID 1, busybox and a judge.

use crate::binaries::{Binaries, expect_success};
use crate::guest;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORIES: [&str; 10] = [
    "bin",
    "dev",
    "etc",
    "proc",
    "run",
    "sys",
    "tmp",
    "root",
    "usr/lib/beemesh",
    "var/lib/beemesh",
];

/// What a guest is made of.
#[derive(Debug, Clone, Copy)]
pub struct Planted<'a> {
    /// The script that PID 1 runs as the service `judge`.
    pub judge: &'a Path,
    /// What busybox is called in it.
    pub applets: &'a [&'a str],
    /// The kernel's modules that it has, as paths below `kernel/`.
    pub modules: &'a [&'a str],
}

impl Planted<'_> {
    /// The product's initramfs, followed by one that puts other files in the place of its `/init` and `/root.img`.
    /// `folder` is emptied first.
    pub fn initrd(&self, binaries: &Binaries, folder: &Path) -> Result<PathBuf> {
        let pid1 = binaries
            .target
            .join("planted/x86_64-unknown-linux-gnu/release/beemesh-init");
        ensure!(
            pid1.exists(),
            "`{}` is missing: run `cargo xtask test --only stories`",
            pid1.display()
        );
        let _ = fs::remove_dir_all(folder);
        let over = folder.join("initramfs");
        fs::create_dir_all(&over)?;
        self.root_image(binaries, &pid1, folder, &over.join("root.img"))?;
        fs::copy(&pid1, over.join("init"))?;
        let second = folder.join("second.cpio");
        guest::pack(&over, &second)?;
        let mut bytes = fs::read(binaries.artefact("initrd.cpio")?)?;
        bytes.extend(fs::read(&second)?);
        let initrd = folder.join("initrd.cpio");
        fs::write(&initrd, bytes)?;
        Ok(initrd)
    }

    fn root_image(&self, binaries: &Binaries, pid1: &Path, folder: &Path, image: &Path) -> Result<()> {
        let root = folder.join("root");
        for name in DIRECTORIES {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy(pid1, root.join("usr/lib/beemesh/beemesh-init"))?;
        fs::copy(self.judge, root.join("judge"))?;
        fs::copy("/bin/busybox", root.join("bin/busybox"))
            .context("busybox-static is missing: run `cargo xtask setup`")?;
        for applet in self.applets {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
        if !self.modules.is_empty() {
            self.modules(binaries, &root)?;
        }
        let mut pack = Command::new("mksquashfs");
        pack.arg(&root).arg(image);
        pack.args([
            "-comp",
            "zstd",
            "-all-root",
            "-noappend",
            "-quiet",
            "-no-progress",
        ]);
        let packed = pack
            .output()
            .context("mksquashfs is missing: run `cargo xtask setup`")?;
        expect_success("mksquashfs", &packed).map(drop)
    }

    fn modules(&self, binaries: &Binaries, root: &Path) -> Result<()> {
        let release = binaries.release()?;
        let release = release["kernel"]
            .as_str()
            .context("the release names no kernel")?;
        let modules = root.join("lib/modules").join(release).join("kernel");
        guest::copy_modules(binaries, self.modules, &modules)?;
        let mut depmod = Command::new("/usr/sbin/depmod");
        let indexed = depmod.arg("-b").arg(root).arg(release).output();
        let indexed = indexed.context("depmod is missing: run `cargo xtask setup`")?;
        expect_success("depmod", &indexed).map(drop)
    }
}
