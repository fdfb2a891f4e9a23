//! Room on the state volume that is kept for the records of the cell: a file that is freed when the volume is full.
//!
//! A database cannot even forget a record on a volume without a free block, so a full one would take the box out of its
//! fabric. Knows nothing of what is written. Invariants: never more than [`SIZE`] is held; it is taken only where at least
//! [`ROOM`] stays free, and so never is what fills the volume.

use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What is held, in bytes: some thousand commits, each of which uses again what earlier ones have left.
pub const SIZE: u64 = 4 << 20;
/// What others have left beside it when it is taken, in bytes.
pub const ROOM: u64 = 2 * SIZE;
/// Name of the file on the state volume.
const NAME: &str = "reserve";

/// The file. Its methods block.
#[derive(Debug, Clone)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// In the folder `state`; takes nothing yet.
    pub fn new(state: &Path) -> Self {
        Self {
            path: state.join(NAME),
        }
    }

    /// Bytes of the volume that are held: a file with holes has none.
    fn held(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |file| file.blocks().saturating_mul(512))
    }

    /// Takes it, if it is not held and there is room. Returns whether it is held now.
    ///
    /// # Errors
    /// What the file system says; nothing is held then.
    pub fn take(&self) -> io::Result<bool> {
        let held = self.held();
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let free = nix::sys::statvfs::statvfs(folder)?;
        let free = free.blocks_available().saturating_mul(free.fragment_size());
        if !may_take(held, free) {
            return Ok(held >= SIZE);
        }
        let taken = self.allocate();
        if taken.is_err() {
            let _ = std::fs::remove_file(&self.path);
        }
        taken.map(|()| true)
    }

    fn allocate(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.path)?;
        let length = i64::try_from(SIZE).unwrap_or(i64::MAX);
        fallocate(&file, FallocateFlags::empty(), 0, length)?;
        file.sync_all()
    }

    /// Gives it back to the volume. Returns whether there was something to give.
    pub fn free(&self) -> bool {
        let there = self.held() > 0 && std::fs::remove_file(&self.path).is_ok();
        if there && let Some(folder) = self.path.parent() {
            // A journalling file system gives the blocks away only once it has written down that they are free.
            let _ = File::open(folder).and_then(|folder| folder.sync_all());
        }
        there
    }
}

/// Whether to take it: `held` bytes are, and the volume has `free` ones.
fn may_take(held: u64, free: u64) -> bool {
    held < SIZE && held.saturating_add(free) >= SIZE + ROOM
}

/// Whether this error, or one that it comes from, says that the volume is full.
pub fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        // As an error or as the boxed cause of one.
        let boxed = error.downcast_ref::<Box<redb::Error>>().map(Box::as_ref);
        let io = match error.downcast_ref::<redb::Error>().or(boxed) {
            Some(redb::Error::Io(error)) => Some(error),
            _ => error.downcast_ref::<io::Error>(),
        };
        io.is_some_and(|error| error.kind() == io::ErrorKind::StorageFull)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::in_small_volume;

    #[test]
    fn taken_only_where_room_stays() {
        assert!(may_take(0, SIZE + ROOM));
        assert!(!may_take(0, SIZE + ROOM - 1));
        assert!(!may_take(SIZE, u64::MAX), "it is held");
        assert!(
            may_take(SIZE / 2, SIZE / 2 + ROOM),
            "an interrupted one is made whole"
        );
    }

    #[test]
    fn takes_its_size_once_gives_it_back_and_does_not_squeeze_in() {
        in_small_volume(SIZE + ROOM + (1 << 20), |volume| {
            let reserve = Reserve::new(volume);
            assert!(reserve.held() == 0 && !reserve.free(), "there is nothing to give");
            assert!(reserve.take().unwrap());
            assert_eq!(reserve.held(), SIZE);
            assert!(reserve.take().unwrap());
            assert_eq!(reserve.held(), SIZE);
            assert!(reserve.free() && reserve.held() == 0);
            std::fs::write(volume.join("filler"), vec![7; 2 << 20]).unwrap();
            assert!(
                !reserve.take().unwrap() && reserve.held() == 0,
                "others need the room"
            );
            std::fs::remove_file(volume.join("filler")).unwrap();
            assert!(reserve.take().unwrap(), "there is room again");
        });
    }

    #[test]
    fn full_volume_is_recognised_through_what_wraps_it() {
        let full = || io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let other = || io::Error::from_raw_os_error(nix::libc::EIO);
        assert!(is_full(&full()) && !is_full(&other()));
        assert!(is_full(&redb::Error::Io(full())) && !is_full(&redb::Error::Io(other())));
        let wrapped = crate::store::StoreError::Io {
            action: "write",
            path: "x".into(),
            source: full(),
        };
        assert!(is_full(&wrapped));
    }
}
