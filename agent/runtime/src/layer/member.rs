//! tar members with their long names and attributes, read in bounded memory.
//!
//! The `tar` crate would read a long name of any length into memory, so its raw mode is used and the extensions (GNU `L` and
//! `K`, PAX `x` and `g`) are put together here. Invariant: no extension is longer than [`EXTENSION_MOST`]; a member whose size
//! the extensions and the header tell differently is refused, because readers would disagree on what follows.

use crate::image::{ImageRefusal, as_io, shown};
use std::io::{self, Read};
use tar::{Archive, Entries, Entry, EntryType, PaxExtensions};

/// Longest extension in bytes: paths are at most 4,096, attributes 64 KiB.
pub(super) const EXTENSION_MOST: u64 = 256 * 1024;
const PATH_MOST: usize = 4096;

/// What a member is.
pub(super) enum Kind {
    Directory,
    File,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    Device,
    Other(u8),
}

/// Ownership, mode, time and attributes.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits, set-id and sticky bits.
    pub mode: u32,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Extended attributes that are kept or refused; others were dropped.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) struct Member<'a, R: Read> {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub meta: Meta,
    pub content: Entry<'a, R>,
}

pub(super) struct Members<'a, R: Read> {
    entries: Entries<'a, R>,
}

#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<'a, R: Read> Members<'a, R> {
    pub fn new(archive: &'a mut Archive<R>) -> io::Result<Self> {
        Ok(Self {
            entries: archive.entries()?.raw(true),
        })
    }

    /// The next member, or `None` at the end of the archive.
    pub fn next(&mut self) -> io::Result<Option<Member<'a, R>>> {
        let mut extensions = Extensions::default();
        for entry in self.entries.by_ref() {
            let mut entry = entry?;
            match entry.header().entry_type() {
                EntryType::GNULongName => extensions.path = Some(long_name(&mut entry)?),
                EntryType::GNULongLink => extensions.link = Some(long_name(&mut entry)?),
                EntryType::XHeader => extensions.pax(&extension(&mut entry)?)?,
                // Global extensions only carry comments in practice (`git archive`).
                EntryType::XGlobalHeader => drop(extension(&mut entry)?),
                _ => return extensions.complete(entry).map(Some),
            }
        }
        Ok(None)
    }
}

fn extension<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Vec<u8>> {
    if entry.size() > EXTENSION_MOST {
        let what = "a tar extension".into();
        return Err(as_io(ImageRefusal::TooLarge {
            what,
            limit: EXTENSION_MOST,
        }));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn long_name<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Vec<u8>> {
    let mut name = extension(entry)?;
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn malformed(reason: impl Into<String>) -> io::Error {
    as_io(ImageRefusal::Malformed {
        what: "a layer".into(),
        reason: reason.into(),
    })
}

impl Extensions {
    fn pax(&mut self, bytes: &[u8]) -> io::Result<()> {
        for pair in PaxExtensions::new(bytes) {
            let pair = pair?;
            let value = pair.value_bytes();
            let number = || {
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse::<u64>().ok())
                    .ok_or_else(|| malformed(format!("`{}` is not a number", shown(value))))
            };
            match pair.key_bytes() {
                b"path" => self.path = Some(value.into()),
                b"linkpath" => self.link = Some(value.into()),
                b"size" => self.size = Some(number()?),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"mtime" => {
                    let text = String::from_utf8_lossy(value);
                    self.mtime = text.split('.').next().and_then(|seconds| seconds.parse().ok());
                }
                key if key.starts_with(b"GNU.sparse.") => return Err(malformed("it holds a sparse file")),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        // Kept: what programs and file capabilities need. `trusted.` is passed on to be refused.
                        if name.starts_with(b"user.")
                            || name == b"security.capability"
                            || name.starts_with(b"trusted.")
                        {
                            self.attributes.push((name.into(), value.into()));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn complete<'a, R: Read>(self, entry: Entry<'a, R>) -> io::Result<Member<'a, R>> {
        let header = entry.header();
        if self.size.is_some_and(|size| size != entry.size()) {
            return Err(malformed("a member's size is told in two ways"));
        }
        let path = self.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = self
            .link
            .or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        if path.len() > PATH_MOST || link.as_ref().is_some_and(|link| link.len() > PATH_MOST) {
            return Err(as_io(ImageRefusal::TooLarge {
                what: "a path".into(),
                limit: PATH_MOST as u64,
            }));
        }
        if path.contains(&0) || link.as_ref().is_some_and(|link| link.contains(&0)) {
            return Err(malformed("a path holds a zero byte"));
        }
        let target = || {
            link.clone()
                .filter(|link| !link.is_empty())
                .ok_or_else(|| malformed("a link has no target"))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(target()?),
            EntryType::Link => Kind::HardLink(target()?),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char | EntryType::Block => Kind::Device,
            other => Kind::Other(other.as_byte()),
        };
        let id = |extended: Option<u64>, plain: u64| {
            u32::try_from(extended.unwrap_or(plain))
                .map_err(|_| malformed("a member's owner is out of range"))
        };
        let meta = Meta {
            uid: id(self.uid, header.uid()?)?,
            gid: id(self.gid, header.gid()?)?,
            mode: header.mode()? & 0o7777,
            mtime: self
                .mtime
                .unwrap_or_else(|| i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0)),
            attributes: self.attributes,
        };
        Ok(Member {
            path,
            kind,
            meta,
            content: entry,
        })
    }
}
