//! The real container runtime against its contract, on the product's kernel: cgroup v2, overlayfs, libcontainer.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::{Binaries, guest};
use beemesh_ci_testkit::{Machine, MachineConfig};
use regex::Regex;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MODULES: &[&str] = &["fs/overlayfs/overlay.ko", "drivers/net/veth.ko"];

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
    let contract = binaries.target.join("release/runtime-contract");
    guest::copy_program(&contract, &root).unwrap();
    let shim = binaries
        .target
        .join("x86_64-unknown-linux-gnu/release/beemesh-shim");
    for program in [&contract, &shim] {
        fs::copy(program, root.join("bin").join(program.file_name().unwrap())).unwrap();
    }
    guest::copy_modules(binaries, MODULES, &root.join("modules")).unwrap();
    let initrd = folder.join("initrd.cpio");
    guest::pack(&root, &initrd).unwrap();
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
