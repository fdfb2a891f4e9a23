//! Builds the binaries, static and dynamic, then the OS image.

use crate::{run, setup};
use anyhow::Result;
use std::process::{Command, ExitCode};

/// What runs in a guest without a C library: PID 1, the log, the control, the network and the shim.
const STATIC: &[&str] = &[
    "beemesh-init-pid1",
    "beemesh-init-logd",
    "beemesh-init-control",
    "beemesh-init-net",
    "beemesh-agent-shim",
];
/// The target is named so that the flags below reach the guest's code alone and no build script.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// `cargo xtask build`.
pub fn build() -> Result<ExitCode> {
    if let Some(code) = setup::ensure()? {
        return Ok(code);
    }
    binaries()?;
    image()?;
    Ok(ExitCode::SUCCESS)
}

/// All binaries of the workspace.
pub fn binaries() -> Result<()> {
    run::step(
        "build the tools and the agent",
        &mut run::cargo(&["build", "--release", "--workspace"]),
    )?;
    let mut line = vec!["build", "--release", "--target", TARGET];
    for package in STATIC {
        line.extend(["--package", package]);
    }
    run::step("build the static binaries", static_flags(&mut run::cargo(&line)))
}

/// PID 1 with faults, for the story of init: in a folder of its own, so that no image takes it for the product's.
pub fn planted() -> Result<()> {
    let line = [
        "build",
        "--release",
        "--target",
        TARGET,
        "--target-dir",
        "target/planted",
        "--package",
        "beemesh-init-pid1",
        "--features",
        "planted-faults",
    ];
    run::step(
        "build PID 1 with planted faults",
        static_flags(&mut run::cargo(&line)),
    )
}

/// The flags of a static binary on the gnu target.
pub fn static_flags(command: &mut Command) -> &mut Command {
    command
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu")
}

/// The OS image, from the binaries that stand in target.
pub fn image() -> Result<()> {
    let mut image = run::command("target/release/image");
    image.args(["build", "--profile", "generic", "--out", "target/image"]);
    image.args([
        "--binaries",
        "target/x86_64-unknown-linux-gnu/release",
        "--binaries",
        "target/release",
    ]);
    run::step("build the image", &mut image)
}
