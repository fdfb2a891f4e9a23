//! Packs a tree as a `newc` cpio archive, the format of the kernel's initramfs.
//!
//! Not compressed: what is large in it is compressed already. Source: Documentation/driver-api/early-userspace/
//! buffer-format.rst of the kernel. Invariant: the same tree gives the same bytes.

use crate::tree::{Node, Tree};
use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::io::Write;

/// The archive. `time` is the modification time of every entry, seconds since 1970.
pub fn pack(tree: &Tree, time: u32) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for ((path, node), inode) in tree.iter().zip(1..) {
        let builder = Builder::new(path).ino(inode).mtime(time);
        let (builder, content) = match node {
            Node::Directory { mode } => (
                builder
                    .mode(*mode)
                    .set_mode_file_type(ModeFileType::Directory)
                    .nlink(2),
                Vec::new(),
            ),
            Node::File { mode, content } => (
                builder.mode(*mode).set_mode_file_type(ModeFileType::Regular),
                content.read()?,
            ),
            Node::Link { target } => (
                builder.mode(0o777).set_mode_file_type(ModeFileType::Symlink),
                target.clone().into_bytes(),
            ),
            Node::CharDevice { mode, major, minor } => {
                let builder = builder.mode(*mode).set_mode_file_type(ModeFileType::Char);
                (builder.rdev_major(*major).rdev_minor(*minor), Vec::new())
            }
        };
        let size = u32::try_from(content.len()).with_context(|| format!("`{path}` is larger than 4 GiB"))?;
        let mut writer = builder.write(archive, size);
        writer.write_all(&content)?;
        archive = writer.finish()?;
    }
    archive = trailer(archive)?;
    archive.resize(archive.len().next_multiple_of(512), 0);
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn gnu_cpio_lists_what_was_packed() {
        let mut tree = Tree::default();
        tree.text("etc/motd", "hello").unwrap();
        tree.text("empty", "").unwrap();
        tree.link("init", "usr/init").unwrap();
        tree.insert(
            "dev/console",
            Node::CharDevice {
                mode: 0o600,
                major: 5,
                minor: 1,
            },
        )
        .unwrap();
        let archive = pack(&tree, 1_700_000_000).unwrap();
        assert_eq!(archive, pack(&tree, 1_700_000_000).unwrap());
        let mut cpio = Command::new("cpio");
        cpio.args(["-tv", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C");
        let mut child = cpio
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("cpio is installed");
        child.stdin.take().unwrap().write_all(&archive).unwrap();
        let listing = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let rows: Vec<Vec<&str>> = listing.lines().map(|l| l.split_whitespace().collect()).collect();
        let row = |name: &str| {
            rows.iter()
                .find(|r| r.contains(&name))
                .unwrap_or_else(|| panic!("{name}: {listing}"))
        };
        assert_eq!(rows.len(), tree.iter().count());
        assert_eq!((row("etc/motd")[0], row("etc/motd")[4]), ("-rw-r--r--", "5"));
        assert_eq!(row("dev/console")[..6], ["crw-------", "1", "0", "0", "5,", "1"]);
        assert!(listing.contains("init -> usr/init"));
    }
}
