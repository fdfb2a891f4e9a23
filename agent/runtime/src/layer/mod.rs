//! Unpacks one layer of an image: decompression, tar members, whiteouts, bounds, the diff id.
//!
//! It decides what a member means; `tree` alone touches the file system, `member` alone reads tar's extensions.
//! Invariants: nothing outside of the target directory is ever written; what exceeds the [`Budget`] ends the unpacking.
//! Mode bits are kept, set-user-id included (`no_new_privs` makes them inert in containers); device nodes are refused;
//! whiteouts become overlayfs' own. Sources: OCI image spec "Image Layer Filesystem Changeset", kernel overlayfs.rst.

mod member;
mod tree;

use crate::image::{ImageError, ImageRefusal, as_io, failed, shown};
use beemesh_ids::Digest;
use beemesh_ids::DigestHasher;
use member::{Kind, Member, Members};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use tree::Tree;

pub(crate) use crate::image::Packing;

/// What may still be unpacked for an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// Bytes of tar streams.
    pub bytes: u64,
    /// Members.
    pub files: u64,
}

/// Unpacks the layer in the file `blob` into the empty directory `target` and gives its diff id.
pub(crate) fn unpack(
    blob: &Path,
    packing: Packing,
    target: &Path,
    budget: &mut Budget,
) -> Result<Digest, ImageError> {
    let file = BufReader::with_capacity(128 * 1024, File::open(blob).map_err(failed("open", blob))?);
    match packing {
        Packing::Plain => unpack_stream(file, target, budget),
        Packing::Gzip => unpack_stream(flate2::bufread::MultiGzDecoder::new(file), target, budget),
        Packing::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(file).map_err(failed("decompress", blob))?;
            // 128 MiB: what `zstd --ultra` needs at most without `--long`.
            decoder.window_log_max(27).map_err(failed("decompress", blob))?;
            unpack_stream(decoder, target, budget)
        }
    }
}

fn unpack_stream(input: impl Read, target: &Path, budget: &mut Budget) -> Result<Digest, ImageError> {
    let mut stream = Counted {
        input,
        hasher: DigestHasher::default(),
        left: budget.bytes,
        limit: budget.bytes,
    };
    unpack_members(&mut stream, target, budget)?;
    // The diff id covers the padding behind the last member too.
    io::copy(&mut stream, &mut io::sink()).map_err(unreadable)?;
    budget.bytes = stream.left;
    Ok(stream.hasher.finish())
}

fn unpack_members(stream: &mut impl Read, target: &Path, budget: &mut Budget) -> Result<(), ImageError> {
    let mut tree = Tree::new(target)?;
    let mut archive = tar::Archive::new(stream);
    let limit = budget.files;
    let mut members = Members::new(&mut archive).map_err(unreadable)?;
    while let Some(mut member) = members.next().map_err(unreadable)? {
        budget.files = budget.files.checked_sub(1).ok_or_else(|| too_many(limit))?;
        place(&mut tree, &mut member)?;
    }
    tree.finish()
}

fn too_many(limit: u64) -> ImageRefusal {
    ImageRefusal::TooLarge {
        what: "the number of files in the layers".into(),
        limit,
    }
}

/// An error while reading the layer: a refusal from below, or a broken archive; the disk itself only where it says so.
fn unreadable(err: io::Error) -> ImageError {
    match failed("read", Path::new("the layer"))(err) {
        ImageError::Io { source, .. } if source.raw_os_error().is_none() => ImageRefusal::Malformed {
            what: "a layer".into(),
            reason: source.to_string(),
        }
        .into(),
        other => other,
    }
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

fn place<R: Read>(tree: &mut Tree, member: &mut Member<'_, R>) -> Result<(), ImageError> {
    let path = tree::Inside::parse(&member.path)?;
    let Some(name) = path.name() else {
        // The layer's own top directory.
        return match member.kind {
            Kind::Directory => tree.top(&member.meta),
            _ => Err(ImageRefusal::Conflict {
                path: shown(&member.path),
            }
            .into()),
        };
    };
    if name == OPAQUE {
        return tree.opaque(&path);
    }
    if name.starts_with(b".wh..wh.") {
        // aufs' own bookkeeping, which some builders leave behind.
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(ImageRefusal::PathEscapes {
                path: shown(&member.path),
            }
            .into());
        }
        return tree.whiteout(&path.sibling(hidden));
    }
    for (attribute, _) in &member.meta.attributes {
        if attribute.starts_with(b"trusted.") {
            let (path, name) = (shown(&member.path), shown(attribute));
            return Err(ImageRefusal::ForbiddenAttribute { path, name }.into());
        }
    }
    match &member.kind {
        Kind::Directory => tree.directory(&path, &member.meta),
        Kind::File => tree.file(&path, &member.meta, &mut member.content),
        Kind::Symlink(target) => tree.symlink(&path, &member.meta, target),
        Kind::HardLink(target) => tree.hard_link(&path, target),
        Kind::Fifo => tree.fifo(&path, &member.meta),
        Kind::Device => Err(ImageRefusal::DeviceNode {
            path: shown(&member.path),
        }
        .into()),
        Kind::Other(kind) => {
            let kind = char::from(*kind).escape_default().to_string();
            Err(ImageRefusal::UnsupportedMember {
                path: shown(&member.path),
                kind,
            }
            .into())
        }
    }
}

/// Hashes and bounds what passes.
struct Counted<R> {
    input: R,
    hasher: DigestHasher,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            as_io(ImageRefusal::TooLarge {
                what: "the unpacked size of the layers".into(),
                limit: self.limit,
            })
        })?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
