//! Why an image is not taken: refusals (the image is bad) apart from failures (the node is).
//!
//! Pure. Invariant: a refusal names the blob or the path it is about, cut to a length that a console can show.

use beemesh_ids::Digest;
use std::io;
use std::path::{Path, PathBuf};

/// The image or its archive breaks a rule; trying again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefusal {
    /// A blob's content does not have the digest that names it.
    #[error("blob `{blob}` has the digest `{found}`: the image was altered or damaged")]
    WrongDigest {
        /// The digest it was named by.
        blob: Digest,
        /// The digest of its content.
        found: Digest,
    },
    /// A blob's length is not the one in its descriptor.
    #[error("blob `{blob}` has {found} bytes, its descriptor says {expected}")]
    WrongSize {
        /// The blob.
        blob: Digest,
        /// Bytes that the descriptor says.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A layer unpacks to something else than the configuration names.
    #[error("layer `{blob}` unpacks to `{found}`, the image's configuration says `{expected}`")]
    WrongDiffId {
        /// The compressed layer.
        blob: Digest,
        /// The diff id in the configuration.
        expected: Digest,
        /// The diff id found.
        found: Digest,
    },
    /// A blob that something refers to is not there.
    #[error("blob `{blob}` is missing")]
    MissingBlob {
        /// The blob.
        blob: Digest,
    },
    /// A document or an archive cannot be read as what it should be.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// Which part.
        what: String,
        /// How.
        reason: String,
    },
    /// There is no variant for this machine.
    #[error("the image has no variant for linux/amd64")]
    NoPlatform,
    /// The layout holds several images and the request does not say which one.
    #[error("the layout holds several images ({names}): name one of them")]
    Ambiguous {
        /// The names found.
        names: String,
    },
    /// A bound was exceeded.
    #[error("{what} exceeds the bound of {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// The bound, in bytes or in number.
        limit: u64,
    },
    /// A layer's media type is not one of tar, tar+gzip, tar+zstd.
    #[error("layer `{blob}` has the media type `{media_type}`: only tar, gzip and zstd layers are supported")]
    UnsupportedLayer {
        /// The layer.
        blob: Digest,
        /// Its media type.
        media_type: String,
    },
    /// A member's path leaves the layer.
    #[error("`{path}` climbs out of the layer")]
    PathEscapes {
        /// The path.
        path: String,
    },
    /// A member would be written through a symbolic link.
    #[error("`{path}` would be written through a symbolic link")]
    ThroughSymlink {
        /// The path.
        path: String,
    },
    /// A hard link points outside of the layer or at nothing.
    #[error("hard link `{path}` points at `{target}`, which is not in the layer")]
    LinkEscapes {
        /// The link.
        path: String,
        /// Where it points.
        target: String,
    },
    /// A member is a device node.
    #[error("`{path}` is a device node")]
    DeviceNode {
        /// The path.
        path: String,
    },
    /// A member is of a kind that layers do not hold.
    #[error("`{path}` is an archive member of the unsupported kind `{kind}`")]
    UnsupportedMember {
        /// The path.
        path: String,
        /// Its type flag.
        kind: String,
    },
    /// Two members want to be different things at one path.
    #[error("`{path}` conflicts with an earlier member of the layer")]
    Conflict {
        /// The path.
        path: String,
    },
    /// An extended attribute would change how layers are put together.
    #[error("`{path}` carries the attribute `{name}`, which only the node may set")]
    ForbiddenAttribute {
        /// The path.
        path: String,
        /// The attribute.
        name: String,
    },
    /// A name for an image is not one.
    #[error("`{name}` is not an image name: letters, digits and `._-/:`, at most 255 of them")]
    BadName {
        /// The name.
        name: String,
    },
    /// Neither the request nor the layout gives the image a name.
    #[error("the image has no name: give one, or annotate it with `org.opencontainers.image.ref.name`")]
    Nameless,
}

/// Why an operation on the image store failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The image is bad.
    #[error("the image is refused: {0}")]
    Refused(#[from] ImageRefusal),
    /// There is no such image.
    #[error("no image `{reference}` on this node: import it first")]
    NotFound {
        /// What was asked for.
        reference: String,
    },
    /// The node failed.
    #[error("failed to {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// The refusal, where it is one.
    pub fn refusal(&self) -> Option<&ImageRefusal> {
        match self {
            ImageError::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// Turns an I/O error on `path` into an [`ImageError`].
pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| match source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<ImageRefusal>())
    {
        // A reader below has refused; the layers of readers between only know io::Error.
        Some(refusal) => ImageError::Refused(refusal.clone()),
        None => ImageError::Io { what, path, source },
    }
}

/// A refusal as an I/O error, to pass through readers.
pub(crate) fn as_io(refusal: ImageRefusal) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, refusal)
}

/// A path for a message.
pub(crate) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .chars()
        .take(200)
        .flat_map(char::escape_default)
        .collect()
}
