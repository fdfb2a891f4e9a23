//! Rings in a folder: written, followed, carried to a disk that fails in between, read as one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_init_log::{Flags, Limits, Record, Stream};
use beemesh_init_logd::*;
use std::fs;
use std::path::Path;
use std::time::Instant;

const SMALL: Limits = Limits {
    segment_bytes: 70_000,
    total_bytes: 200_000,
    segments: 4,
};
const LARGE: Limits = Limits {
    segment_bytes: 1 << 20,
    total_bytes: 8 << 20,
    segments: 64,
};

fn record(stream: Stream, seq: u64, length: usize) -> Record {
    Record {
        stream,
        seq,
        realtime_us: seq,
        monotonic_us: seq * 10,
        priority: 6,
        flags: Flags::default(),
        unit: "x".into(),
        fields: Vec::new(),
        message: vec![b'm'; length],
    }
}

fn write(ring: &mut RingWriter, stream: Stream, numbers: std::ops::RangeInclusive<u64>) {
    for seq in numbers {
        ring.append(&record(stream, seq, 100)).unwrap();
    }
}

fn services(root: &Path, boot: u8) -> RingWriter {
    let _ = fs::create_dir(root.join("ram"));
    RingWriter::open(&root.join("ram").join(SERVICES), LARGE, [boot; 16]).unwrap()
}

fn numbers(reader: &mut SystemReader) -> Vec<u64> {
    std::iter::from_fn(|| reader.next_entry())
        .map(|entry| entry.record.seq)
        .collect()
}

fn log(root: &Path, boot: u8) -> SystemLog {
    SystemLog::of_boot(&root.join("disk"), &root.join("ram"), [boot; 16])
}

#[test]
fn a_reader_follows_across_rotation_and_the_folder_stays_within_its_bound() {
    let root = tempfile::tempdir().unwrap();
    let mut ring = RingWriter::open(root.path(), SMALL, [1; 16]).unwrap();
    let mut reader = RingReader::new(root.path(), None);
    for seq in 1..=500 {
        ring.append(&record(Stream::Services, seq, 3000)).unwrap();
        let entry = reader.next_entry().unwrap();
        assert_eq!((entry.boot, entry.record.seq), ([1; 16], seq));
        assert_eq!(reader.next_entry(), None);
    }
    let files: Vec<u64> = fs::read_dir(root.path())
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .collect();
    assert!(
        files.iter().sum::<u64>() <= 200_000 && files.len() <= 4,
        "{files:?}"
    );
    let last = std::iter::from_fn({
        let mut reader = RingReader::new(root.path(), None);
        move || reader.next_entry()
    });
    assert_eq!(last.last().unwrap().record.seq, 500);
}

#[test]
fn a_torn_end_and_a_damaged_segment_do_not_hide_what_comes_after() {
    let root = tempfile::tempdir().unwrap();
    for first in [1, 11, 21] {
        let mut ring = RingWriter::open(root.path(), LARGE, [1; 16]).unwrap();
        write(&mut ring, Stream::Services, first..=first + 9);
    }
    let segment = |n: u64| root.path().join(beemesh_init_log::segment_name(n));
    let first = fs::read(segment(1)).unwrap();
    fs::write(segment(1), &first[..first.len() - 5]).unwrap();
    fs::write(segment(2), b"not a segment").unwrap();
    let mut reader = RingReader::new(root.path(), None);
    let got: Vec<u64> = std::iter::from_fn(|| reader.next_entry())
        .map(|e| e.record.seq)
        .collect();
    assert_eq!(got, (1..=9).chain(21..=30).collect::<Vec<_>>());
}

#[test]
fn disk_and_memory_are_one_log_and_each_record_comes_once() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let mut ring = services(path, 1);
    let mut kernel = RingWriter::open(&path.join("ram").join(KERNEL), LARGE, [1; 16]).unwrap();
    write(&mut ring, Stream::Services, 1..=20);
    write(&mut kernel, Stream::Kernel, 0..=4);
    let mut copier = Copier::open(&path.join("ram"), &path.join("disk"), LARGE, [1; 16]).unwrap();
    assert_eq!(copier.turn(Instant::now()).unwrap(), Copied::All);
    write(&mut ring, Stream::Services, 21..=30);
    let mut reader = log(path, 1).read(BootChoice::Before(0)).unwrap();
    let got = numbers(&mut reader);
    assert_eq!(got.len(), 35);
    assert!(got.ends_with(&[29, 30]));
    // Followed: also what is carried meanwhile comes once.
    write(&mut ring, Stream::Services, 31..=31);
    copier.turn(Instant::now()).unwrap();
    assert_eq!(numbers(&mut reader), [31]);
    // A daemon that is started again goes on where the disk ends.
    drop(copier);
    let mut copier = Copier::open(&path.join("ram"), &path.join("disk"), LARGE, [1; 16]).unwrap();
    copier.turn(Instant::now()).unwrap();
    let mut disk = RingReader::new(&path.join("disk"), None);
    assert_eq!(std::iter::from_fn(|| disk.next_entry()).count(), 36);
}

#[test]
fn the_boot_before_is_read_from_the_disk() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    for boot in [1, 2, 3] {
        let _ = fs::remove_dir_all(path.join("ram"));
        let mut ring = services(path, boot);
        write(&mut ring, Stream::Services, 1..=u64::from(boot));
        let mut copier = Copier::open(&path.join("ram"), &path.join("disk"), LARGE, [boot; 16]).unwrap();
        copier.turn(Instant::now()).unwrap();
    }
    let log = log(path, 3);
    let of = |choice| log.read(choice).map(|mut reader| numbers(&mut reader));
    assert_eq!(of(BootChoice::Before(0)), Some(vec![1, 2, 3]));
    assert_eq!(of(BootChoice::Before(1)), Some(vec![1, 2]));
    assert_eq!(of(BootChoice::Before(2)), Some(vec![1]));
    assert_eq!(of(BootChoice::Before(3)), None);
    assert_eq!(of(BootChoice::All), Some(vec![1, 1, 2, 1, 2, 3]));
}

#[test]
fn what_a_failing_disk_did_not_take_is_carried_when_it_works_again() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let mut ring = services(path, 1);
    write(&mut ring, Stream::Services, 1..=5);
    let mut copier = Copier::open(&path.join("ram"), &path.join("disk"), LARGE, [1; 16]).unwrap();
    fs::remove_dir(path.join("disk")).unwrap();
    assert!(copier.turn(Instant::now()).is_err());
    write(&mut ring, Stream::Services, 6..=9);
    assert!(copier.turn(Instant::now()).is_err());
    fs::create_dir(path.join("disk")).unwrap();
    copier.turn(Instant::now()).unwrap();
    let mut disk = RingReader::new(&path.join("disk"), None);
    let got: Vec<u64> = std::iter::from_fn(|| disk.next_entry())
        .map(|e| e.record.seq)
        .collect();
    assert_eq!(got, (1..=9).collect::<Vec<_>>());
}

#[test]
fn records_that_memory_dropped_before_they_were_carried_are_counted() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    let mut ring = services(path, 1);
    write(&mut ring, Stream::Services, 1..=2);
    let mut copier = Copier::open(&path.join("ram"), &path.join("disk"), LARGE, [1; 16]).unwrap();
    copier.turn(Instant::now()).unwrap();
    write(&mut ring, Stream::Services, 10..=10);
    copier.turn(Instant::now()).unwrap();
    let mut disk = RingReader::new(&path.join("disk"), None);
    let last = std::iter::from_fn(|| disk.next_entry()).last().unwrap().record;
    assert_eq!(last.fields, [("LOST".to_owned(), "7".to_owned())]);
}
