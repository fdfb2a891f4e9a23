//! Gives a file of a FAT file system's root folder the content of another one, so that power may fail at any moment: FAT renames
//! over no file, and a file that is removed first is gone for a while.
//!
//! Where a file's content begins, and its length, stand in 12 bytes of its entry, which lie in one sector: they are written at
//! once. Knows no pack. Invariant: after each write the file has its old content or the new one, whole.

use crate::dots::{DELETED, ENTRY, Geometry, LONG_NAME, read_at};
use crate::slice::Slice;
use std::io::{self, Seek as _, SeekFrom, Write as _};

/// Where an entry says what its file holds: first cluster, time and length (Microsoft FAT specification, 6).
const CONTENT: std::ops::Range<usize> = 20..32;
/// Characters of a long name in one entry.
const CHARACTERS: usize = 13;
/// The only part of a long name that has no other part.
const ONLY_PART: u8 = 0x41;

/// An entry, and where it lies.
type Entry = (u64, [u8; ENTRY]);

/// The entries of a file: of its long name, and its own.
struct Found {
    long: Entry,
    own: Entry,
}

impl Found {
    fn content(&self) -> &[u8] {
        self.own.1.get(CONTENT).unwrap_or_default()
    }

    /// The first cluster, in two parts; zeros where the file is empty.
    fn cluster(&self) -> [Option<&[u8]>; 2] {
        [self.own.1.get(20..22), self.own.1.get(26..28)]
    }

    /// Gives it this content. The medium has it after this.
    fn write(&self, disk: &mut Slice, content: &[u8]) -> io::Result<()> {
        let mut entry = self.own.1;
        let bytes = entry.iter_mut().skip(CONTENT.start).zip(content);
        bytes.for_each(|(to, from)| *to = *from);
        disk.seek(SeekFrom::Start(self.own.0))?;
        disk.write_all(&entry)?;
        disk.sync()
    }
}

/// Gives the file `name` the content of the file `other`, and the reverse. False: one of them is not there, or its entry has
/// another form than is known here.
pub fn exchange(disk: &mut Slice, name: &str, other: &str) -> io::Result<bool> {
    let Some((name, other)) = both(disk, name, other)? else {
        return Ok(false);
    };
    name.write(disk, other.content())?;
    // Interrupted here both have the new content: see `part`.
    other.write(disk, name.content())?;
    Ok(true)
}

/// Where an exchange was interrupted, so that both files have the same content: takes `other` out of the folder without giving
/// that content free. What it held is lost room, which a check of the file system finds.
pub fn part(disk: &mut Slice, name: &str, other: &str) -> io::Result<()> {
    let Some((name, other)) = both(disk, name, other)? else {
        return Ok(());
    };
    let is_empty = name.cluster().iter().flatten().all(|part| **part == [0, 0]);
    if is_empty || name.cluster() != other.cluster() {
        return Ok(());
    }
    for (at, _) in [other.own, other.long] {
        disk.seek(SeekFrom::Start(at))?;
        disk.write_all(&[DELETED])?;
    }
    disk.sync()
}

fn both(disk: &mut Slice, name: &str, other: &str) -> io::Result<Option<(Found, Found)>> {
    let entries = root(disk)?;
    Ok(find(&entries, name).zip(find(&entries, other)))
}

/// The entries of the root folder.
fn root(disk: &mut Slice) -> io::Result<Vec<Entry>> {
    let geometry = Geometry::read(disk)?;
    let mut entries = Vec::new();
    for (at, length) in geometry.root_pieces(disk)? {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        read_at(disk, at, &mut bytes)?;
        for (number, chunk) in (0_u64..).zip(bytes.chunks_exact(ENTRY)) {
            let Ok(entry) = <[u8; ENTRY]>::try_from(chunk) else {
                continue;
            };
            if entry.first() == Some(&0) {
                return Ok(entries);
            }
            entries.push((at + number * ENTRY as u64, entry));
        }
    }
    Ok(entries)
}

/// The file with this long name, of at most [`CHARACTERS`].
fn find(entries: &[Entry], name: &str) -> Option<Found> {
    let pairs = entries.iter().zip(entries.iter().skip(1));
    let mut found = pairs.filter(|(long, own)| {
        let is = |at: usize, byte: u8| long.1.get(at) == Some(&byte);
        let is_file = own.1.first() != Some(&DELETED) && own.1.get(11) != Some(&LONG_NAME);
        is(0, ONLY_PART)
            && is(11, LONG_NAME)
            && is_file
            && is(13, checksum(&own.1))
            && long_name(&long.1).eq_ignore_ascii_case(name)
    });
    found.next().map(|(long, own)| Found {
        long: *long,
        own: *own,
    })
}

fn long_name(entry: &[u8; ENTRY]) -> String {
    let parts = [1..11, 14..26, 28..32].map(|part| entry.get(part).unwrap_or_default());
    let units = parts.concat();
    let units = units.chunks_exact(2).take(CHARACTERS).map(|unit| match unit {
        [low, high] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    });
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

/// What ties a long name to the entry behind it (Microsoft FAT specification, 7.2).
fn checksum(own: &[u8; ENTRY]) -> u8 {
    let name = own.iter().take(11);
    name.fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
    use std::fs::File;
    use std::io::Read as _;

    const SIZES: [(u64, FatType); 3] = [(7, FatType::Fat12), (40, FatType::Fat16), (70, FatType::Fat32)];

    /// A file system of this kind in which many files lie before two others.
    fn volume(mebibytes: u64, kind: FatType) -> (File, u64) {
        let mut file = tempfile::tempfile().unwrap();
        let length = mebibytes << 20;
        file.set_len(length).unwrap();
        fatfs::format_volume(&mut file, FormatVolumeOptions::new().fat_type(kind)).unwrap();
        let fs = FileSystem::new(&mut file, FsOptions::new()).unwrap();
        for number in 0..40 {
            let name = format!("a long name of a file {number}");
            fs.root_dir().create_file(&name).unwrap();
        }
        for (name, content) in [("joinpack.json", "old"), ("joinpack.new", "newer")] {
            let mut file = fs.root_dir().create_file(name).unwrap();
            file.write_all(content.repeat(9000).as_bytes()).unwrap();
            fs.root_dir().create_file(&format!("beside {name}")).unwrap();
        }
        fs.unmount().unwrap();
        (file, length)
    }

    fn disk(file: &File, length: u64) -> Slice {
        Slice::writing(file.try_clone().unwrap(), 0, length)
    }

    fn read(file: &File, length: u64, name: &str) -> Option<String> {
        let fs = FileSystem::new(disk(file, length), FsOptions::new()).unwrap();
        let mut text = String::new();
        let mut file = fs.root_dir().open_file(name).ok()?;
        file.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn files_change_places_on_fat_of_every_width() {
        for (mebibytes, kind) in SIZES {
            let (file, length) = volume(mebibytes, kind);
            let read = |name| read(&file, length, name);
            assert!(exchange(&mut disk(&file, length), "joinpack.json", "joinpack.new").unwrap());
            assert_eq!(read("joinpack.json"), Some("newer".repeat(9000)));
            assert_eq!(read("joinpack.new"), Some("old".repeat(9000)));
            // Nothing else is meant, and nothing is torn.
            part(&mut disk(&file, length), "joinpack.json", "joinpack.new").unwrap();
            assert!(read("joinpack.new").is_some());
            assert!(!exchange(&mut disk(&file, length), "joinpack.json", "none").unwrap());
        }
    }

    #[test]
    fn interrupted_exchange_leaves_the_new_content_and_its_double_goes() {
        for (mebibytes, kind) in SIZES {
            let (file, length) = volume(mebibytes, kind);
            let mut slice = disk(&file, length);
            let (name, other) = both(&mut slice, "joinpack.json", "joinpack.new")
                .unwrap()
                .unwrap();
            name.write(&mut slice, other.content()).unwrap();
            let read = |name| read(&file, length, name);
            assert_eq!(read("joinpack.json"), Some("newer".repeat(9000)));
            part(&mut slice, "joinpack.json", "joinpack.new").unwrap();
            assert_eq!(read("joinpack.new"), None);
            assert_eq!(read("beside joinpack.new"), Some(String::new()));
            // What is written now takes nothing of it.
            let fs = FileSystem::new(disk(&file, length), FsOptions::new()).unwrap();
            let mut more = fs.root_dir().create_file("more").unwrap();
            more.write_all(&[7; 200_000]).unwrap();
            drop(more);
            fs.unmount().unwrap();
            assert_eq!(read("joinpack.json"), Some("newer".repeat(9000)));
        }
    }
}
