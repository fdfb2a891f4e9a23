//! Blobs: where they lie in a pack, and checking one while it streams by. Reads nothing itself.
//!
//! Invariant: [`BlobCheck`] refuses at the first piece past the signed size, so a reader never takes more than one piece
//! too much, whatever the media delivers.

use crate::Refusal;
use beemesh_ids::{Digest, DigestHasher};

/// The relative path of a blob in a pack: `blobs/sha256/<hex>`.
pub fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Compares a blob with its signed digest and size while it is read.
pub struct BlobCheck {
    digest: Digest,
    size: u64,
    seen: u64,
    hasher: DigestHasher,
}

impl BlobCheck {
    /// A check of the blob that should have `digest` and `size` bytes.
    pub fn new(digest: Digest, size: u64) -> Self {
        Self {
            digest,
            size,
            seen: 0,
            hasher: DigestHasher::default(),
        }
    }

    /// Takes the next piece. [`Refusal::WrongSize`] if it is more than the blob may have.
    pub fn update(&mut self, piece: &[u8]) -> Result<(), Refusal> {
        self.seen = self.seen.saturating_add(piece.len() as u64);
        if self.seen > self.size {
            return Err(self.wrong_size());
        }
        self.hasher.update(piece);
        Ok(())
    }

    /// Bytes taken so far.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The verdict: [`Refusal::WrongSize`] if it was too short, [`Refusal::WrongDigest`] if it has another content.
    pub fn finish(self) -> Result<(), Refusal> {
        if self.seen != self.size {
            return Err(self.wrong_size());
        }
        let found = self.hasher.finish();
        if found == self.digest {
            Ok(())
        } else {
            Err(Refusal::WrongDigest {
                expected: self.digest,
                found,
            })
        }
    }

    fn wrong_size(&self) -> Refusal {
        Refusal::WrongSize {
            digest: self.digest,
            expected: self.size,
            found: self.seen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_the_signed_content_passes(content: Vec<u8>, other: Vec<u8>, piece in 1usize..50) {
            let mut check = BlobCheck::new(Digest::of(&content), content.len() as u64);
            let mut result = Ok(());
            for piece in other.chunks(piece) {
                result = result.and_then(|()| check.update(piece));
            }
            prop_assert_eq!(result.and_then(|()| check.finish()).is_ok(), content == other);
        }
    }

    #[test]
    fn too_long_a_blob_is_refused_before_its_end() {
        let mut check = BlobCheck::new(Digest::of(b"ab"), 2);
        assert_eq!(check.update(b"ab"), Ok(()));
        assert_eq!(check.update(b"c").map_err(|r| r.code()), Err("wrong-size"));
    }

    #[test]
    fn right_length_with_wrong_content_is_refused() {
        let mut check = BlobCheck::new(Digest::of(b"ab"), 2);
        check.update(b"xy").unwrap();
        assert_eq!(check.finish().map_err(|r| r.code()), Err("wrong-digest"));
    }
}
