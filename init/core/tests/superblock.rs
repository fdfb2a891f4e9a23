//! Debian's tools make file systems, and its `blkid` judges what `probe` says of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use beemesh_init_core::superblock::{HEAD, probe};

fn tool(command: &mut Command) -> String {
    let output = command
        .output()
        .expect("a tool is missing: run `cargo xtask setup`");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What blkid says of `name`.
fn value(image: &Path, name: &str) -> Option<String> {
    let mut blkid = Command::new("/usr/sbin/blkid");
    let text = tool(blkid.args(["--probe", "--output", "export"]).arg(image));
    let prefix = format!("{name}=");
    // blkid escapes blanks for the shell.
    text.lines()
        .find_map(|line| line.strip_prefix(&prefix))
        .map(|value| value.replace('\\', ""))
}

#[test]
fn probe_says_what_blkid_says() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let makers: [&[&str]; 8] = [
        &["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-L", "my data"],
        &["/usr/sbin/mke2fs", "-q", "-t", "ext2"],
        &["/usr/sbin/mkfs.vfat", "-F", "32", "-n", "JOIN"],
        &["/usr/sbin/mkfs.vfat", "-F", "16", "-n", "MY STICK"],
        &["/usr/sbin/mkfs.vfat", "-F", "12"],
        &["/usr/sbin/mkswap", "-L", "swapped"],
        &[
            "/usr/sbin/cryptsetup",
            "luksFormat",
            "--type",
            "luks1",
            "--pbkdf-force-iterations",
            "1000",
        ],
        &[
            "/usr/sbin/cryptsetup",
            "luksFormat",
            "--type",
            "luks2",
            "--label",
            "STATE",
            "--pbkdf",
            "pbkdf2",
        ],
    ];
    let key = folder.path().join("key");
    std::fs::write(&key, "key").unwrap();
    for maker in makers {
        let size = if maker.contains(&"12") { 2 << 20 } else { 64 << 20 };
        let _ = std::fs::remove_file(&image);
        File::create(&image).unwrap().set_len(size).unwrap();
        let mut command = Command::new(maker[0]);
        command.args(&maker[1..]);
        if maker[0].ends_with("cryptsetup") {
            command.args(["--batch-mode", "--key-file"]).arg(&key);
        }
        tool(command.arg(&image));
        let mut head = Vec::new();
        File::open(&image)
            .unwrap()
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .unwrap();
        let found = probe(&head).unwrap_or_else(|| panic!("{maker:?} is not known"));
        assert_eq!(found.uuid, value(&image, "UUID"), "{maker:?}");
        assert_eq!(found.label, value(&image, "LABEL"), "{maker:?}");
        let kind = value(&image, "TYPE").unwrap();
        let kind = if kind == "ext2" { "ext4" } else { &kind };
        assert_eq!(found.kind, kind, "{maker:?}");
    }
}
