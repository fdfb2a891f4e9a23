//! Attacks by a stick that the kernel has mounted: content that changes while it is read, folders without an end.

use super::*;
use crate::fixture::with_blob;
use std::fs::OpenOptions;
use std::os::unix::fs::FileTypeExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A stick, and a folder to stage in.
struct Bench {
    folder: tempfile::TempDir,
    pack: Pack<Verified>,
    digest: Digest,
    good: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        // Several pieces of the copy's buffer.
        let good: Vec<u8> = (0..3 * CHUNK + 17).map(|n| (n / 251) as u8).collect();
        let folder = tempfile::tempdir().unwrap();
        let pack = with_blob(&good);
        let digest = Digest::of(&good);
        let bench = Self {
            folder,
            pack,
            digest,
            good,
        };
        fs::create_dir_all(bench.blob().parent().unwrap()).unwrap();
        fs::write(bench.blob(), &bench.good).unwrap();
        bench
    }

    fn stick(&self) -> PathBuf {
        self.folder.path().join("stick")
    }

    fn blob(&self) -> PathBuf {
        self.stick().join(self.pack.blob_path(&self.digest))
    }

    fn staging(&self) -> PathBuf {
        self.folder.path().join("staging")
    }

    fn stage(&self) -> Result<(), StickError> {
        stage_blobs(&self.stick(), &self.pack, &[self.digest], &self.staging())
    }

    fn refused(&self) -> &'static str {
        let code = self.stage().unwrap_err().code();
        assert!(!self.staging().exists(), "a refused pack leaves nothing behind");
        code
    }
}

#[test]
fn blob_is_read_once_and_what_was_checked_is_what_is_used() {
    let bench = Bench::new();
    // A device that gives the good bytes to whoever reads first, and others to whoever reads again.
    fs::remove_file(bench.blob()).unwrap();
    nix::unistd::mkfifo(&bench.blob(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fs::metadata(bench.blob()).unwrap().file_type().is_fifo());
    let opened = std::sync::Arc::new(AtomicUsize::new(0));
    let (path, good, count) = (bench.blob(), bench.good.clone(), opened.clone());
    std::thread::spawn(move || {
        for bytes in [good.clone(), vec![0; good.len()]] {
            let Ok(mut fifo) = OpenOptions::new().write(true).open(&path) else {
                return;
            };
            count.fetch_add(1, Ordering::SeqCst);
            let _ = fifo.write_all(&bytes);
            drop(fifo);
            // The reader has come to the end by then; whoever opens it again gets the other bytes.
            std::thread::sleep(Duration::from_secs(2));
        }
    });
    bench.stage().unwrap();
    let staged = bench.staging().join(bench.digest.hex());
    assert!(fs::read(&staged).unwrap() == bench.good);
    // Whoever is still to open it would have by now.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(
        opened.load(Ordering::SeqCst),
        1,
        "the stick is not asked a second time"
    );
    assert!(fs::metadata(staged).unwrap().file_type().is_file());
}

#[test]
fn blob_that_is_swapped_after_the_listing_was_checked_is_refused() {
    let bench = Bench::new();
    bench
        .pack
        .check_listing(list_blobs(&bench.stick()).unwrap())
        .unwrap();
    let mut other = bench.good.clone();
    other[2 * CHUNK] ^= 1;
    fs::write(bench.blob(), &other).unwrap();
    assert_eq!(bench.refused(), "wrong-digest");
    fs::write(bench.blob(), &bench.good).unwrap();
    bench.stage().unwrap();
    // What is staged lies on the state volume: the stick has no say in it any more.
    fs::write(bench.blob(), &other).unwrap();
    assert!(fs::read(bench.staging().join(bench.digest.hex())).unwrap() == bench.good);
}

#[test]
fn blob_without_an_end_is_given_up_at_the_first_piece_too_many() {
    let bench = Bench::new();
    fs::remove_file(bench.blob()).unwrap();
    std::os::unix::fs::symlink("/dev/zero", bench.blob()).unwrap();
    assert_eq!(bench.refused(), "wrong-size");
    fs::remove_file(bench.blob()).unwrap();
    assert_eq!(bench.refused(), "read-failed");
}

#[test]
fn folders_in_folders_end_at_a_bound_whatever_the_file_system_claims() {
    let bench = Bench::new();
    let mut deep = bench.stick().join("blobs");
    for _ in 0..DEPTH {
        deep.push("a");
    }
    fs::create_dir_all(&deep).unwrap();
    assert_eq!(list_blobs(&bench.stick()).unwrap_err().code(), "unlisted-blob");
    fs::remove_dir_all(bench.stick().join("blobs/a")).unwrap();
    list_blobs(&bench.stick()).unwrap();
    // Folders count as files do.
    let wide = bench.stick().join("blobs/w");
    for n in 0..limits::LISTING {
        fs::create_dir_all(wide.join(n.to_string())).unwrap();
    }
    assert_eq!(list_blobs(&bench.stick()).unwrap_err().code(), "limit-exceeded");
}
