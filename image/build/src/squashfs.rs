//! Packs a tree as squashfs with zstd, through `mksquashfs -tar`.
//!
//! squashfs and not erofs: erofs in Debian 12's kernel decompresses lz4 only, squashfs zstd. Kept in the cache by the
//! tree's fingerprint, because packing takes most of a build.

use crate::{
    apt,
    cache::Cache,
    tree::{Node, Tree},
};
use anyhow::{Context, Result, bail};
use beemesh_ids::Digest;
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tar::{Builder, EntryType, Header};

/// Compression level of zstd, 1 to 22: decompression costs the same at each, packing does not.
const LEVEL: &str = "15";
const BLOCK: &str = "256K";

/// The packed file system, a file in the cache. `time` is the time of every entry, seconds since 1970.
pub fn pack(tree: &Tree, time: u32, cache: &Cache) -> Result<PathBuf> {
    let version = apt::output(Command::new("mksquashfs").arg("-version"))?;
    let version = version.lines().next().unwrap_or_default();
    let key = Digest::of(format!("{} {time} {LEVEL} {BLOCK} {version}", tree.fingerprint()?).as_bytes());
    cache.get("squashfs", &key, |target| {
        let time_text = time.to_string();
        // Not `sqfstar`: version 4.5 takes the level for the name of the image.
        let mut command = Command::new("mksquashfs");
        command
            .arg("-")
            .arg(target)
            .arg("-tar")
            .env_remove("SOURCE_DATE_EPOCH");
        command.args([
            "-comp",
            "zstd",
            "-Xcompression-level",
            LEVEL,
            "-b",
            BLOCK,
            "-reproducible",
            "-no-xattrs",
        ]);
        command.args([
            "-mkfs-time",
            &time_text,
            "-all-time",
            &time_text,
            "-root-time",
            &time_text,
        ]);
        command.args([
            "-root-mode",
            "755",
            "-root-uid",
            "0",
            "-root-gid",
            "0",
            "-noappend",
            "-quiet",
            "-no-progress",
            "-exit-on-error",
        ]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .context("failed to run `mksquashfs`: `cargo xtask setup` installs it")?;
        let input = child.stdin.take().context("mksquashfs has no standard input")?;
        let written = write_tar(tree, time, input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "`mksquashfs` failed ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        written
    })
}

/// Reads one file of a packed file system, to look into an image without mounting it.
#[cfg(test)]
pub fn unpack(image: &Path, target: &Path) -> Result<()> {
    apt::output(
        Command::new("unsquashfs")
            .args(["-no-progress", "-d"])
            .arg(target)
            .arg(image),
    )
    .map(drop)
}

fn write_tar(tree: &Tree, time: u32, output: impl Write) -> Result<()> {
    let mut archive = Builder::new(std::io::BufWriter::with_capacity(1 << 20, output));
    for (path, node) in tree.iter() {
        let mut header = Header::new_gnu();
        header.set_mtime(time.into());
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match node {
            Node::Directory { mode } => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
                archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            Node::File { mode, content } => {
                let bytes = content.read()?;
                header.set_entry_type(EntryType::Regular);
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                archive.append_data(&mut header, path, bytes.as_slice())?;
            }
            Node::Link { target } => {
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                archive.append_link(&mut header, path, Path::new(target))?;
            }
            Node::CharDevice { mode, major, minor } => {
                header.set_entry_type(EntryType::Char);
                header.set_mode(*mode);
                header.set_device_major(*major)?;
                header.set_device_minor(*minor)?;
                archive.append_data(&mut header, path, std::io::empty())?;
            }
        }
    }
    archive.into_inner()?.flush().context("failed to feed mksquashfs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn what_is_packed_is_unpacked_and_packing_repeats() {
        let mut tree = Tree::default();
        let long = format!("usr/{}/file", "deep/".repeat(40).trim_end_matches('/'));
        tree.text(&long, "content").unwrap();
        tree.directory("tmp", 0o1777).unwrap();
        tree.link("lib", "usr/lib").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let image = |name: &str| {
            let cache = Cache::open(&folder.path().join(name), 1 << 30).unwrap();
            pack(&tree, 1_700_000_000, &cache).unwrap()
        };
        let (one, other) = (image("one"), image("other"));
        assert_eq!(fs::read(&one).unwrap(), fs::read(&other).unwrap());
        let out = folder.path().join("out");
        unpack(&one, &out).unwrap();
        assert_eq!(fs::read_to_string(out.join(&long)).unwrap(), "content");
        assert_eq!(
            fs::metadata(out.join("tmp")).unwrap().permissions().mode() & 0o7777,
            0o1777
        );
        assert_eq!(fs::read_link(out.join("lib")).unwrap(), Path::new("usr/lib"));
    }
}
