//! Writes a layer's files below one directory and nowhere else.
//!
//! Every directory is opened with openat2 and `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, every object is then made by its last
//! name in that directory, new: so the kernel, not string handling, keeps writes inside. Symbolic links are stored as they are
//! and never followed. It knows no tar.

use super::member::Meta;
use crate::image::{ImageError, ImageRefusal, failed, shown};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use xattr::FileExt;

/// A path inside of the layer: no `..`, no empty part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inside {
    parts: Vec<Vec<u8>>,
}

impl Inside {
    /// Leading `/` and `./` mean the layer's top, as every unpacker reads them; `..` anywhere is refused.
    pub fn parse(path: &[u8]) -> Result<Self, ImageRefusal> {
        let parts: Vec<Vec<u8>> = path
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .map(<[u8]>::to_vec)
            .collect();
        if parts.iter().any(|part| part == b"..") {
            return Err(ImageRefusal::PathEscapes { path: shown(path) });
        }
        if let Some(part) = parts.iter().find(|part| part.len() > 255) {
            return Err(ImageRefusal::Malformed {
                what: "a layer".into(),
                reason: format!("`{}` is too long", shown(part)),
            });
        }
        Ok(Self { parts })
    }

    /// The last part; `None` for the top.
    pub fn name(&self) -> Option<&[u8]> {
        self.parts.last().map(Vec::as_slice)
    }

    /// The path with another last part.
    pub fn sibling(&self, name: &[u8]) -> Self {
        let mut parts = self.parts.clone();
        parts.pop();
        parts.push(name.into());
        Self { parts }
    }

    fn parents(&self) -> &[Vec<u8>] {
        self.parts.split_last().map_or(&[], |(_, parents)| parents)
    }

    fn display(&self) -> String {
        shown(&self.parts.join(&b'/'))
    }
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

fn join(parts: &[Vec<u8>]) -> PathBuf {
    if parts.is_empty() {
        PathBuf::from(".")
    } else {
        parts.iter().map(|part| os(part)).collect()
    }
}

/// The directory that a layer is unpacked into.
pub(super) struct Tree {
    top: OwnedFd,
    shown: PathBuf,
    /// The directory opened last: members of one directory come together.
    last: Option<(Vec<Vec<u8>>, OwnedFd)>,
    /// Times of directories, set at the end because writing into them changes them.
    times: Vec<(Vec<Vec<u8>>, i64)>,
}

impl Tree {
    pub fn new(target: &Path) -> Result<Self, ImageError> {
        let top = File::open(target).map_err(failed("open", target))?;
        Ok(Self {
            top: top.into(),
            shown: target.into(),
            last: None,
            times: Vec::new(),
        })
    }

    fn io(&self, what: &'static str, path: &Inside) -> impl FnOnce(Errno) -> ImageError + use<> {
        let path = self.shown.join(join(&path.parts));
        move |errno| failed(what, &path)(errno.into())
    }

    fn open_dir(&self, parts: &[Vec<u8>]) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        openat2(&self.top, &join(parts), how)
    }

    /// The directory that `path` lies in, made with mode 0755 where the archive left it out.
    fn parent(&mut self, path: &Inside) -> Result<OwnedFd, ImageError> {
        let parts = path.parents();
        if self.last.as_ref().is_none_or(|(known, _)| known != parts) {
            let opened = match self.open_dir(parts) {
                Err(Errno::ENOENT) => {
                    for depth in 1..=parts.len() {
                        self.make_missing(path, &parts[..depth])?;
                    }
                    self.open_dir(parts)
                }
                other => other,
            };
            let dir = opened.map_err(|errno| self.refused(path, errno))?;
            self.last = Some((parts.to_vec(), dir));
        }
        match &self.last {
            Some((_, dir)) => dir.try_clone().map_err(failed("open", &self.shown)),
            None => Err(ImageRefusal::Conflict { path: path.display() }.into()),
        }
    }

    fn make_missing(&self, path: &Inside, parts: &[Vec<u8>]) -> Result<(), ImageError> {
        let Some((name, above)) = parts.split_last() else {
            return Ok(());
        };
        let dir = self.open_dir(above).map_err(|errno| self.refused(path, errno))?;
        match mkdirat(&dir, os(name), Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(self.refused(path, errno)),
        }
    }

    /// What the kernel's answer says about the member.
    fn refused(&self, path: &Inside, errno: Errno) -> ImageError {
        match errno {
            Errno::ELOOP => ImageRefusal::ThroughSymlink { path: path.display() }.into(),
            Errno::EXDEV => ImageRefusal::PathEscapes { path: path.display() }.into(),
            Errno::ENOTDIR | Errno::EISDIR | Errno::EEXIST => {
                // O_DIRECTORY on a link that is the last part says ENOTDIR: tell the two apart.
                let through = (1..path.parts.len()).any(|depth| self.is_symlink(&path.parts[..depth]));
                let path = path.display();
                if through {
                    ImageRefusal::ThroughSymlink { path }
                } else {
                    ImageRefusal::Conflict { path }
                }
                .into()
            }
            other => self.io("make", path)(other),
        }
    }

    fn is_symlink(&self, parts: &[Vec<u8>]) -> bool {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH);
        openat2(&self.top, &join(parts), how)
            .and_then(nix::sys::stat::fstat)
            .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK)
    }

    /// Makes room for a new object: an earlier member that is no directory is replaced, as tar does.
    fn vacate(&mut self, path: &Inside) -> Result<(OwnedFd, Vec<u8>), ImageError> {
        let name = path
            .name()
            .ok_or_else(|| ImageRefusal::Conflict { path: path.display() })?
            .to_vec();
        let dir = self.parent(path)?;
        match unlinkat(&dir, os(&name), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok((dir, name)),
            Err(Errno::EISDIR) => Err(ImageRefusal::Conflict { path: path.display() }.into()),
            Err(errno) => Err(self.io("replace", path)(errno)),
        }
    }

    /// The metadata of the layer's top directory.
    pub fn top(&mut self, meta: &Meta) -> Result<(), ImageError> {
        let top = Inside { parts: Vec::new() };
        self.dress(&self.top, &top, meta)
    }

    pub fn directory(&mut self, path: &Inside, meta: &Meta) -> Result<(), ImageError> {
        let name = path
            .name()
            .ok_or_else(|| ImageRefusal::Conflict { path: path.display() })?;
        let parent = self.parent(path)?;
        match mkdirat(&parent, os(name), Mode::from_bits_truncate(0o700)) {
            Ok(()) => {}
            Err(Errno::EEXIST) => {
                if self.is_symlink(&path.parts) {
                    unlinkat(&parent, os(name), UnlinkatFlags::NoRemoveDir)
                        .map_err(self.io("replace", path))?;
                    mkdirat(&parent, os(name), Mode::from_bits_truncate(0o700))
                        .map_err(self.io("make", path))?;
                }
            }
            Err(errno) => return Err(self.io("make", path)(errno)),
        }
        let dir = self
            .open_dir(&path.parts)
            .map_err(|errno| self.refused(path, errno))?;
        self.dress(&dir, path, meta)?;
        self.times.push((path.parts.clone(), meta.mtime));
        Ok(())
    }

    pub fn file(&mut self, path: &Inside, meta: &Meta, content: &mut impl Read) -> Result<(), ImageError> {
        let (dir, name) = self.vacate(path)?;
        let how = OpenHow::new()
            .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(0o600))
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let fd = openat2(&dir, os(&name), how).map_err(|errno| self.refused(path, errno))?;
        let mut file = File::from(fd);
        copy(content, &mut file, &self.shown.join(join(&path.parts)))?;
        self.dress(&file, path, meta)?;
        let time = TimeSpec::new(meta.mtime, 0);
        futimens(&file, &time, &time).map_err(self.io("set the time of", path))
    }

    pub fn symlink(&mut self, path: &Inside, meta: &Meta, target: &[u8]) -> Result<(), ImageError> {
        let (dir, name) = self.vacate(path)?;
        symlinkat(os(target), &dir, os(&name)).map_err(|errno| self.refused(path, errno))?;
        self.own(&dir, &name, path, meta)
    }

    pub fn fifo(&mut self, path: &Inside, meta: &Meta) -> Result<(), ImageError> {
        let (dir, name) = self.vacate(path)?;
        mkfifoat(&dir, os(&name), Mode::from_bits_truncate(0o600))
            .map_err(|errno| self.refused(path, errno))?;
        self.own(&dir, &name, path, meta)?;
        let mode = Mode::from_bits_truncate(meta.mode);
        // A fifo is no link, and nothing else writes here: following cannot lead away.
        fchmodat(&dir, os(&name), mode, FchmodatFlags::FollowSymlink)
            .map_err(self.io("set the mode of", path))
    }

    pub fn hard_link(&mut self, path: &Inside, target: &[u8]) -> Result<(), ImageError> {
        let outside = || ImageRefusal::LinkEscapes {
            path: path.display(),
            target: shown(target),
        };
        let source = Inside::parse(target).map_err(|_| outside())?;
        let source_name = source.name().ok_or_else(outside)?;
        if source == *path {
            return Err(ImageRefusal::Conflict { path: path.display() }.into());
        }
        let from = match self.open_dir(source.parents()) {
            Ok(dir) => dir,
            Err(Errno::ELOOP | Errno::EXDEV | Errno::ENOENT | Errno::ENOTDIR) => return Err(outside().into()),
            Err(errno) => return Err(self.io("open", &source)(errno)),
        };
        let (dir, name) = self.vacate(path)?;
        // Without AT_SYMLINK_FOLLOW a link to a symbolic link is a link to it, not to what it points at.
        match linkat(&from, os(source_name), &dir, os(&name), AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT | Errno::EPERM) => Err(outside().into()),
            Err(errno) => Err(self.io("link", path)(errno)),
        }
    }

    /// Hides a file of the layers below: overlayfs reads a character device 0:0 as "not there".
    pub fn whiteout(&mut self, path: &Inside) -> Result<(), ImageError> {
        let (dir, name) = self.vacate(path)?;
        mknodat(
            &dir,
            os(&name),
            SFlag::S_IFCHR,
            Mode::empty(),
            nix::sys::stat::makedev(0, 0),
        )
        .map_err(self.io("make the whiteout", path))
    }

    /// Hides everything of the layers below in the directory that `path` lies in.
    pub fn opaque(&mut self, path: &Inside) -> Result<(), ImageError> {
        let dir = File::from(self.parent(path)?);
        dir.set_xattr("trusted.overlay.opaque", b"y")
            .map_err(failed("mark as opaque", &self.shown.join(join(path.parents()))))
    }

    /// Owner first: changing it clears the set-id bits.
    fn dress(&self, object: impl AsFd, path: &Inside, meta: &Meta) -> Result<(), ImageError> {
        fchown(
            &object,
            Some(Uid::from_raw(meta.uid)),
            Some(Gid::from_raw(meta.gid)),
        )
        .map_err(self.io("set the owner of", path))?;
        fchmod(&object, Mode::from_bits_truncate(meta.mode)).map_err(self.io("set the mode of", path))?;
        if !meta.attributes.is_empty() {
            let shown = self.shown.join(join(&path.parts));
            let file = File::from(
                object
                    .as_fd()
                    .try_clone_to_owned()
                    .map_err(failed("open", &shown))?,
            );
            for (name, value) in &meta.attributes {
                file.set_xattr(os(name), value)
                    .map_err(failed("set an attribute of", &shown))?;
            }
        }
        Ok(())
    }

    fn own(&self, dir: &OwnedFd, name: &[u8], path: &Inside, meta: &Meta) -> Result<(), ImageError> {
        let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
        fchownat(dir, os(name), uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(self.io("set the owner of", path))?;
        let time = TimeSpec::new(meta.mtime, 0);
        utimensat(dir, os(name), &time, &time, UtimensatFlags::NoFollowSymlink)
            .map_err(self.io("set the time of", path))
    }

    /// Sets the times of the directories.
    pub fn finish(self) -> Result<(), ImageError> {
        for (parts, mtime) in &self.times {
            // A later member may have replaced it.
            if let Ok(dir) = self.open_dir(parts) {
                let time = TimeSpec::new(*mtime, 0);
                let path = Inside { parts: parts.clone() };
                futimens(&dir, &time, &time).map_err(self.io("set the time of", &path))?;
            }
        }
        Ok(())
    }
}

/// Copies with the two sides' errors told apart: the reader's may be a refusal, the writer's is the disk's.
fn copy(from: &mut impl Read, to: &mut File, path: &Path) -> Result<(), ImageError> {
    let mut buffer = [0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => io::Write::write_all(to, &buffer[..count]).map_err(failed("write", path))?,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(super::unreadable(err)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_read_from_the_top_and_never_climbs() {
        let parse = |text: &str| Inside::parse(text.as_bytes());
        assert_eq!(parse("./etc//passwd"), parse("/etc/passwd"));
        assert_eq!(parse("./").unwrap().name(), None);
        for path in ["..", "../x", "a/../b", "a/..", "/../x"] {
            assert!(
                matches!(parse(path), Err(ImageRefusal::PathEscapes { .. })),
                "{path}"
            );
        }
        assert!(parse("a/..b/...").is_ok());
    }
}
