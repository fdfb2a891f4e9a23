//! The real container runtime against its contract, on the product's kernel: cgroup v2, overlayfs, libcontainer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::Binaries;
use beemesh_ci_testkit::{Machine, MachineConfig};
use regex::Regex;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MODULES: &[&str] = &["fs/overlayfs/overlay.ko", "drivers/net/veth.ko"];

/// The unpacked kernel package of the built image: its digest names the folder.
fn kernel_modules(binaries: &Binaries) -> PathBuf {
    let release = binaries.release().unwrap();
    let packages = release["packages"].as_array().unwrap();
    let kernel = packages.iter().find(|package| {
        package["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("linux-image-6") || name.starts_with("linux-image-7"))
    });
    let digest = kernel.unwrap()["digest"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:");
    let version = release["kernel"].as_str().unwrap();
    let cache = binaries
        .target
        .join("image/cache")
        .join(format!("unpacked-{digest}"));
    cache.join("lib/modules").join(version).join("kernel")
}

fn initrd(binaries: &Binaries, folder: &Path) -> PathBuf {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(folder);
    for name in ["bin", "modules", "proc", "sys", "dev", "new"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest");
    for name in ["init", "guest"] {
        fs::copy(guest.join(name), root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("busybox-static is missing: run `cargo xtask setup`");
    let built = binaries.target.join("x86_64-unknown-linux-gnu/release");
    for name in ["beemesh-shim", "runtime-contract"] {
        fs::copy(built.join(name), root.join("bin").join(name)).unwrap();
    }
    let modules = kernel_modules(binaries);
    for module in MODULES {
        let from = modules.join(module);
        fs::copy(&from, root.join("modules").join(from.file_name().unwrap())).unwrap();
    }
    let initrd = folder.join("initrd.cpio");
    let line = "find . | LC_ALL=C sort | cpio --quiet -o -H newc > \"$0\"";
    let packed = Command::new("sh")
        .arg("-c")
        .arg(line)
        .arg(&initrd)
        .current_dir(&root)
        .status()
        .unwrap();
    assert!(packed.success());
    initrd
}

#[test]
fn the_container_runtime_keeps_its_contract() {
    let binaries = Binaries::find().unwrap();
    let folder = binaries.target.join("e2e/runtime");
    let initrd = initrd(&binaries, &folder);
    let kernel = binaries.artefact("vmlinuz").unwrap();
    let line = "console=ttyS0 quiet panic=-1";
    let config = MachineConfig::direct("contract", &folder.join("machine"), &kernel, Some(&initrd), line);
    let machine = Machine::start(config.tpm(None).memory_mib(1536)).unwrap();
    let closing = Regex::new(r"^(\d+) passed, (\d+) failed$").unwrap();
    let end = machine.wait_for(closing, Duration::from_secs(480)).unwrap();
    let lines = machine.console().lines_after(machine.boot_mark());
    for line in lines.iter().filter(|line| line.text.starts_with("measured ")) {
        println!("{}", line.text);
    }
    let failed: Vec<&str> = lines
        .iter()
        .map(|line| line.text.as_str())
        .filter(|text| text.starts_with("FAILED "))
        .collect();
    assert!(end.text.ends_with(" 0 failed"), "{}: {failed:#?}", end.text);
    assert!(!end.text.starts_with("0 "), "nothing was tested");
}
