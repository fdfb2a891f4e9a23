//! Links that the network program makes (VLAN, bond, bridge), on the product's kernel: the machine that runs the tests may
//! lack their modules. The tests are those of `init/net`, built by the step before.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::{Binaries, guest};
use beemesh_ci_testkit::{Machine, MachineConfig};
use regex::Regex;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MODULES: &[&str] = &[
    "net/llc/llc.ko",
    "net/802/stp.ko",
    "net/802/garp.ko",
    "net/802/mrp.ko",
    "net/8021q/8021q.ko",
    "net/tls/tls.ko",
    "drivers/net/bonding/bonding.ko",
    "net/bridge/bridge.ko",
    "drivers/net/veth.ko",
    "net/packet/af_packet.ko",
];

/// The test program of `init/net` that was built last.
fn tests(binaries: &Binaries) -> PathBuf {
    let built = fs::read_dir(binaries.target.join("release/deps")).unwrap();
    let programs = built.flatten().filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with("namespaces-") && !name.contains('.')
    });
    let newest = programs.max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok());
    newest
        .expect(
            "the tests of init/net are not built: run `cargo test --release -p beemesh-init-net --no-run`",
        )
        .path()
}

fn initrd(binaries: &Binaries, folder: &Path) -> PathBuf {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(folder);
    for name in [
        "bin", "sbin", "proc", "sys", "dev", "tmp", "run", "etc", "var/run", "usr/bin", "usr/sbin",
    ] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).expect("busybox-static is missing: run `cargo xtask setup`");
    let init = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/links");
    fs::copy(init, root.join("init")).unwrap();
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\n").unwrap();
    let tests = tests(binaries);
    for program in [
        Path::new("/bin/ip"),
        Path::new("/usr/sbin/dnsmasq"),
        &binaries.target.join("release/beemesh-net"),
        &tests,
    ] {
        guest::copy_program(program, &root).unwrap();
    }
    fs::copy(&tests, root.join("namespaces")).unwrap();
    guest::copy_modules(binaries, MODULES, &root.join("modules")).unwrap();
    let initrd = folder.join("initrd.cpio");
    guest::pack(&root, &initrd).unwrap();
    initrd
}

#[test]
fn vlans_bonds_and_bridges_work_on_the_products_kernel() {
    let binaries = Binaries::find().unwrap();
    let folder = binaries.target.join("e2e/links");
    let initrd = initrd(&binaries, &folder);
    let kernel = binaries.artefact("vmlinuz").unwrap();
    let line = "console=ttyS0 quiet panic=-1";
    let config = MachineConfig::direct("links", &folder.join("machine"), &kernel, Some(&initrd), line);
    let machine = Machine::start(config.tpm(None).memory_mib(1024)).unwrap();
    let closing = Regex::new(r"^test result: .* (\d+) passed; (\d+) failed;").unwrap();
    let end = machine
        .wait_for(closing.clone(), Duration::from_secs(180))
        .unwrap();
    let counts = closing.captures(&end.text).unwrap();
    let lines = machine.console().lines_after(machine.boot_mark());
    let lines: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(&counts[2], "0", "{lines:#?}");
    assert_ne!(&counts[1], "0", "nothing was tested");
    assert!(!lines.iter().any(|line| line.contains("NOT RUN")), "{lines:#?}");
}
