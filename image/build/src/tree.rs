//! A file system in memory: what will be where, with which mode, before it is packed.
//!
//! Does not pack: see `squashfs` and `initrd`. Invariants: every parent of an entry is a directory in the tree; paths
//! are relative, without `.` and `..`; iteration is in order of path, parents first.

use crate::apt;
use anyhow::{Context, Result, bail};
use beemesh_ids::{Digest, DigestHasher};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Where a file's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Here.
    Bytes(Vec<u8>),
    /// In a file of the machine that builds.
    File(PathBuf),
}

impl Content {
    /// The bytes.
    pub fn read(&self) -> Result<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::File(path) => {
                fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))
            }
        }
    }

    fn digest(&self) -> Result<Digest> {
        match self {
            Self::Bytes(bytes) => Ok(Digest::of(bytes)),
            Self::File(path) => apt::digest_of(path),
        }
    }
}

/// An entry. Modes are permission bits; everything belongs to root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Directory.
    Directory { mode: u32 },
    /// Regular file.
    File { mode: u32, content: Content },
    /// Symbolic link.
    Link { target: String },
    /// Character device.
    CharDevice { mode: u32, major: u32, minor: u32 },
}

/// The file system.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// Adds an entry; missing parents become directories of mode 0755. A leading `/` is dropped. Something else in
    /// the same place is an error; a directory may be given again and takes the later mode.
    pub fn insert(&mut self, path: &str, node: Node) -> Result<()> {
        let path = path.trim_matches('/');
        let sound = |part: &str| !part.is_empty() && part != "." && part != "..";
        if !path.split('/').all(sound) {
            bail!("`{path}` is not a path within the image");
        }
        for (end, _) in path.match_indices('/') {
            let parent = path.get(..end).unwrap_or_default();
            match self.nodes.get(parent) {
                None => drop(
                    self.nodes
                        .insert(parent.to_owned(), Node::Directory { mode: 0o755 }),
                ),
                Some(Node::Directory { .. }) => {}
                Some(_) => bail!("`{path}` lies below `{parent}`, which is not a directory in the image"),
            }
        }
        match self.nodes.get(path) {
            Some(Node::Directory { .. }) if matches!(node, Node::Directory { .. }) => {}
            Some(there) if *there != node => bail!("two different things are to be at `{path}` in the image"),
            _ => {}
        }
        self.nodes.insert(path.to_owned(), node);
        Ok(())
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.insert(path, Node::Directory { mode })
    }

    /// Adds a file from bytes, mode 0644.
    pub fn text(&mut self, path: &str, text: &str) -> Result<()> {
        self.insert(
            path,
            Node::File {
                mode: 0o644,
                content: Content::Bytes(text.as_bytes().to_vec()),
            },
        )
    }

    /// Adds an executable file with this content.
    pub fn program(&mut self, path: &str, bytes: Vec<u8>) -> Result<()> {
        self.insert(
            path,
            Node::File {
                mode: 0o755,
                content: Content::Bytes(bytes),
            },
        )
    }

    /// Adds a copy of a file.
    pub fn copy(&mut self, path: &str, mode: u32, source: &Path) -> Result<()> {
        self.insert(
            path,
            Node::File {
                mode,
                content: Content::File(source.to_owned()),
            },
        )
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.insert(
            path,
            Node::Link {
                target: target.to_owned(),
            },
        )
    }

    /// The entry at `path`, links not followed.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path.trim_matches('/'))
    }

    /// All entries, parents first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// A digest over paths, modes and contents.
    pub fn fingerprint(&self) -> Result<Digest> {
        let mut hasher = DigestHasher::default();
        for (path, node) in self.iter() {
            let line = match node {
                Node::Directory { mode } => format!("d {mode:o}"),
                Node::File { mode, content } => format!("f {mode:o} {}", content.digest()?),
                Node::Link { target } => format!("l {target}"),
                Node::CharDevice { mode, major, minor } => format!("c {mode:o} {major} {minor}"),
            };
            hasher.update(format!("{path}\0{line}\0").as_bytes());
        }
        Ok(hasher.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_paths_that_climb_are_refused() {
        let mut tree = Tree::default();
        tree.text("/usr/lib/x", "x").unwrap();
        tree.link("/lib", "usr/lib").unwrap();
        let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["lib", "usr", "usr/lib", "usr/lib/x"]);
        for bad in ["", "/", "../x", "a/../../x", "a//b", "./a"] {
            assert!(tree.text(bad, "x").is_err(), "{bad}");
        }
        assert!(tree.text("/lib/y", "below a link").is_err());
    }

    #[test]
    fn two_contents_in_one_place_are_refused() {
        let mut tree = Tree::default();
        tree.text("a", "1").unwrap();
        tree.text("a", "1").unwrap();
        assert!(tree.text("a", "2").is_err());
        assert!(tree.directory("a", 0o755).is_err());
    }

    #[test]
    fn the_fingerprint_sees_content_mode_place_and_target() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("f");
        fs::write(&file, "1").unwrap();
        let build = |mode, place: &str, target: &str| {
            let mut tree = Tree::default();
            tree.copy(place, mode, &file).unwrap();
            tree.link("link", target).unwrap();
            tree.fingerprint().unwrap()
        };
        let base = build(0o644, "a", "t");
        assert_eq!(base, build(0o644, "a", "t"));
        for other in [
            build(0o755, "a", "t"),
            build(0o644, "b", "t"),
            build(0o644, "a", "u"),
        ] {
            assert_ne!(base, other);
        }
        fs::write(&file, "2").unwrap();
        assert_ne!(base, build(0o644, "a", "t"));
    }
}
