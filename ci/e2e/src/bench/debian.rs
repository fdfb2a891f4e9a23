//! Debian 12 with systemd and podman on a disk image, from Debian's packages, as an administrator would make it.
//!
//! Built once and kept under `target/bench/debian`; a changed recipe or kernel builds it anew. Needs root, or sudo
//! without a password. Invariant: its kernel is the product's, byte for byte, or it is not used.

use super::images::file_size;
use super::record::SHELL;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The smallest useful set: beyond apt and its kin, an init, devices, a network, and containers.
const PACKAGES: &[&str] = &[
    "systemd-sysv",
    "udev",
    "dbus",
    "ifupdown",
    "iproute2",
    "podman",
    "initramfs-tools",
    "zstd",
    "e2fsprogs",
];
const SUITE: &str = "bookworm";
/// Size of the disk, as that of the other systems.
const DISK_BYTES: u64 = 2 << 30;

/// After everything that multi-user.target waits for.
const UNIT: &str = "[Unit]
Description=The figures of the boot
DefaultDependencies=no
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/beemesh-bench
[Install]
WantedBy=multi-user.target
";

/// The image, before its first boot.
#[derive(Debug, Clone)]
pub struct Debian {
    /// Where all of it lies.
    pub folder: PathBuf,
    /// Its disk.
    pub disk: PathBuf,
    /// The initrd that its own tools made.
    pub initrd: PathBuf,
    /// What its files occupy, bytes, with kernel and initrd.
    pub bytes: u64,
    /// It was made in this run: the disk of an earlier first boot is gone.
    pub new: bool,
}

/// What an image was made from, and its size.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Recipe {
    kernel: String,
    kernel_bytes: u64,
    text: String,
    bytes: u64,
}

fn script() -> String {
    format!("#!/bin/sh\n{SHELL}\necho \"$line\" > /dev/console\n")
}

/// The image for `kernel` of this release, in `folder`.
///
/// # Errors
/// When it has to be built and cannot be, or has another kernel.
pub fn prepare(folder: &Path, kernel: &Path, release: &str) -> Result<Debian> {
    let text = format!("{SUITE} {PACKAGES:?} {DISK_BYTES} {UNIT} {}", script());
    let wanted = |bytes| -> Result<Recipe> {
        Ok(Recipe {
            kernel: release.to_owned(),
            kernel_bytes: file_size(kernel)?,
            text: text.clone(),
            bytes,
        })
    };
    let mut debian = Debian {
        folder: folder.to_owned(),
        disk: folder.join("disk.img"),
        initrd: folder.join("initrd.img"),
        bytes: 0,
        new: false,
    };
    let note = folder.join("recipe.json");
    let known: Option<Recipe> = fs::read(&note)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    if let Some(known) = known
        && known == wanted(known.bytes)?
        && debian.disk.exists()
        && debian.initrd.exists()
    {
        debian.bytes = known.bytes;
        return Ok(debian);
    }
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
    let root = folder.join("root");
    install(folder, &root, release)?;
    let built = finish(&debian, &root, kernel, release);
    run(as_root("rm").arg("-rf").arg("--one-file-system").arg(&root))?;
    debian.bytes = built?;
    debian.new = true;
    fs::write(&note, serde_json::to_vec(&wanted(debian.bytes)?)?)?;
    Ok(debian)
}

fn install(folder: &Path, root: &Path, release: &str) -> Result<()> {
    let (unit, program) = (folder.join("beemesh-bench.service"), folder.join("beemesh-bench"));
    fs::write(&unit, UNIT)?;
    fs::write(&program, script())?;
    let hooks = [
        format!("copy-in {} /etc/systemd/system", unit.display()),
        format!("copy-in {} /usr/local/sbin", program.display()),
        "chmod 755 \"$1/usr/local/sbin/beemesh-bench\"".to_owned(),
        "chroot \"$1\" systemctl enable beemesh-bench.service".to_owned(),
        "chroot \"$1\" systemctl set-default multi-user.target".to_owned(),
        "echo /dev/vda / ext4 errors=remount-ro 0 1 > \"$1/etc/fstab\"".to_owned(),
        "echo debian > \"$1/etc/hostname\"".to_owned(),
    ];
    let mut mmdebstrap = as_root("mmdebstrap");
    mmdebstrap.args(["--mode=root", "--variant=minbase"]);
    mmdebstrap.arg(format!("--include={},linux-image-{release}", PACKAGES.join(",")));
    mmdebstrap.args(hooks.iter().map(|hook| format!("--customize-hook={hook}")));
    run(mmdebstrap.arg(SUITE).arg(root)).context("failed to install Debian")?;
    Ok(())
}

/// Disk image and initrd; returns the bytes that the files occupy.
fn finish(debian: &Debian, root: &Path, kernel: &Path, release: &str) -> Result<u64> {
    let theirs = root.join(format!("boot/vmlinuz-{release}"));
    if fs::read(&theirs).context("Debian has no kernel")? != fs::read(kernel)? {
        bail!(
            "Debian's kernel {release} is not that of the image: the packages of the image are older than the archive \
             (`image lock --update`)"
        );
    }
    fs::copy(root.join(format!("boot/initrd.img-{release}")), &debian.initrd)
        .context("Debian made no initrd")?;
    let used = run(as_root("du").args(["-sx", "--block-size=1"]).arg(root))?;
    let bytes = used.split_whitespace().next().and_then(|word| word.parse().ok());
    File::create(&debian.disk)?.set_len(DISK_BYTES)?;
    let mut mkfs = as_root("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", "debian", "-d"])
        .arg(root)
        .arg(&debian.disk);
    run(&mut mkfs).context("failed to make Debian's file system")?;
    bytes.context("`du` printed no number")
}

/// The program, through sudo where this user is not root.
fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}

/// Runs it; what it printed.
fn run(command: &mut Command) -> Result<String> {
    let output = command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {:?}", command.get_program()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!(
            "{:?} failed ({}): {}",
            command.get_program(),
            output.status,
            last.join("; ")
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
