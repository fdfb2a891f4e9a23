//! Installs what the build and the tests need, or prints the one line that does.
//!
//! Debian 12 and later, Ubuntu 24.04. Nothing is installed when everything is there.

use crate::run;
use anyhow::{Context, Result, bail};
use std::process::{Command, ExitCode, Stdio};

/// Debian packages: build, image, machines, oracles.
const PACKAGES: &[&str] = &[
    // build: C libraries and what finds them
    "build-essential",
    "pkg-config",
    "libclang-dev",
    "clang",
    "libtss2-dev",
    "libseccomp-dev",
    // image
    "squashfs-tools",
    "mtools",
    "dosfstools",
    "kmod",
    "cpio",
    "zstd",
    "dpkg-dev",
    "binutils",
    "umoci",
    // machines
    "qemu-system-x86",
    "ovmf",
    "swtpm",
    "swtpm-tools",
    // what the tests compare with
    "skopeo",
    "sbsigntool",
    "cryptsetup-bin",
    "libcryptsetup-dev",
    "e2fsprogs",
    "iproute2",
    "dnsmasq-base",
    "tpm2-tools",
    "softhsm2",
    "opensc",
    "libtss2-tcti-swtpm0",
    "openssl",
    "gdisk",
    "busybox-static",
    "systemd-journal-remote",
    "systemd",
];

/// What `bench boot` needs besides: it installs a Debian to compare with.
const BENCH_PACKAGES: &[&str] = &["mmdebstrap"];

/// cargo-deny: version that deny.toml was written for.
const CARGO_DENY: &str = "0.20.2";

/// `cargo xtask setup`. Exit code 2 when root is needed and not to be had.
pub fn setup() -> Result<ExitCode> {
    if !packages(PACKAGES)? {
        return Ok(ExitCode::from(2));
    }
    if !succeeds(Command::new("cargo-deny").arg("--version")) {
        run::step(
            "install cargo-deny",
            &mut run::cargo(&["install", "cargo-deny", "--locked", "--version", CARGO_DENY]),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Calls [`setup`] when something is missing; `Some(code)` when the caller must stop.
pub fn ensure() -> Result<Option<ExitCode>> {
    let code = setup()?;
    Ok((code != ExitCode::SUCCESS).then_some(code))
}

/// The same for what only `bench` needs.
pub fn ensure_bench() -> Result<Option<ExitCode>> {
    match ensure()? {
        None if !packages(BENCH_PACKAGES)? => Ok(Some(ExitCode::from(2))),
        code => Ok(code),
    }
}

/// Installs what is missing of these; `false` when that takes root and root is not to be had.
fn packages(wanted: &[&'static str]) -> Result<bool> {
    let missing = missing_packages(wanted)?;
    Ok(missing.is_empty() || install(&missing)?)
}

fn missing_packages(wanted: &[&'static str]) -> Result<Vec<&'static str>> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f=${Package} ${db:Status-Status}\\n"])
        .args(wanted)
        .stderr(Stdio::null())
        .output()
        .context("failed to run dpkg-query: setup knows Debian 12 and later and Ubuntu 24.04")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let installed: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    Ok(wanted
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect())
}

fn install(missing: &[&'static str]) -> Result<bool> {
    let root = succeeds(Command::new("sh").args(["-c", "test \"$(id -u)\" = 0"]));
    let sudo = !root && succeeds(Command::new("sudo").args(["-n", "true"]));
    if !root && !sudo {
        eprintln!("xtask: packages are missing and this user is not root. Run this line, then start again:");
        eprintln!(
            "  sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
            missing.join(" ")
        );
        return Ok(false);
    }
    let apt = |arguments: &[&str]| {
        let mut command = match root {
            true => Command::new("apt-get"),
            false => {
                let mut sudo = Command::new("sudo");
                sudo.args(["-n", "--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
                sudo
            }
        };
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        command
    };
    run::step("apt-get update", &mut apt(&["update", "-q"]))?;
    let mut line = vec!["install", "-y", "-q", "--no-install-recommends"];
    line.extend(missing);
    run::step("apt-get install", &mut apt(&line))?;
    let still = missing_packages(missing)?;
    if !still.is_empty() {
        bail!(
            "apt-get installed without an error, yet these packages are missing: {}",
            still.join(" ")
        );
    }
    Ok(true)
}

/// Whether `command` runs and exits with 0; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
