//! Puts the `.` and `..` entries of new FAT folders where the Microsoft FAT specification (6.5) wants them.
//!
//! fatfs 0.3.6 gives both a long name, which pushes them out of the first two slots, and lets `..` of a first-level
//! folder point to FAT32's root cluster instead of 0: `fsck.vfat` and Windows call that damaged. Knows no pack.
//! Invariant: nothing is changed but the first four entries of a folder that has exactly that defect.

use crate::slice::Slice;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};

/// Bytes of an entry of a folder.
pub const ENTRY: usize = 32;
const DOT: &[u8] = b".          ";
const DOT_DOT: &[u8] = b"..         ";
/// The kind of an entry that holds a part of a long name.
pub const LONG_NAME: u8 = 0x0f;
const FOLDER: u8 = 0x10;
/// What an entry begins with that is free.
pub const DELETED: u8 = 0xe5;
/// Clusters of a root folder that are searched.
const CHAIN: usize = 1024;

/// What of a FAT boot sector matters here (specification, 3.1 to 3.3), in bytes.
pub struct Geometry {
    cluster: u64,
    fat: u64,
    root: u64,
    root_length: u64,
    data: u64,
    /// FAT32: the root is a chain that begins here.
    root_cluster: Option<u32>,
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes
        .iter()
        .skip(at)
        .take(length)
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

impl Geometry {
    /// Reads it.
    pub fn read(disk: &mut Slice) -> io::Result<Self> {
        let mut boot = [0; 512];
        read_at(disk, 0, &mut boot)?;
        let sector = number(&boot, 11, 2);
        let fat = number(&boot, 14, 2) * sector;
        let root_length = number(&boot, 17, 2) * ENTRY as u64;
        let fat_sectors = match number(&boot, 22, 2) {
            0 => number(&boot, 36, 4),
            sectors => sectors,
        };
        let root = fat + number(&boot, 16, 1) * fat_sectors * sector;
        let data = root + root_length.next_multiple_of(sector.max(1));
        let root_cluster = (root_length == 0).then(|| number(&boot, 44, 4) as u32);
        Ok(Self {
            cluster: number(&boot, 13, 1) * sector,
            fat,
            root,
            root_length,
            data,
            root_cluster,
        })
    }

    fn place(&self, cluster: u32) -> u64 {
        self.data + u64::from(cluster.saturating_sub(2)) * self.cluster
    }

    /// Places of the pieces of the root folder.
    pub fn root_pieces(&self, disk: &mut Slice) -> io::Result<Vec<(u64, u64)>> {
        let Some(mut cluster) = self.root_cluster else {
            return Ok(vec![(self.root, self.root_length)]);
        };
        let mut pieces = Vec::new();
        while (2..0x0fff_fff8).contains(&cluster) && pieces.len() < CHAIN {
            pieces.push((self.place(cluster), self.cluster));
            let mut next = [0; 4];
            read_at(disk, self.fat + u64::from(cluster) * 4, &mut next)?;
            cluster = u32::from_le_bytes(next) & 0x0fff_ffff;
        }
        Ok(pieces)
    }
}

/// Fills `bytes` from there on.
pub fn read_at(disk: &mut Slice, at: u64, bytes: &mut [u8]) -> io::Result<()> {
    disk.seek(SeekFrom::Start(at))?;
    disk.read_exact(bytes)
}

/// The first cluster of the folder with this 8.3 name in a piece of another folder.
fn find(disk: &mut Slice, piece: (u64, u64), name: &[u8; 11]) -> io::Result<Option<u32>> {
    let (at, length) = piece;
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    read_at(disk, at, &mut bytes)?;
    let found = bytes
        .chunks_exact(ENTRY)
        .take_while(|entry| entry.first() != Some(&0))
        .find(|entry| entry.starts_with(name) && entry.get(11).is_some_and(|kind| kind & FOLDER != 0));
    Ok(found.map(|entry| (number(entry, 20, 2) << 16 | number(entry, 26, 2)) as u32))
}

/// Puts the entries of the folder at `at` in order, if fatfs made it.
fn order(disk: &mut Slice, at: u64, in_root: bool) -> io::Result<()> {
    let mut bytes = [0; 4 * ENTRY];
    read_at(disk, at, &mut bytes)?;
    let [long_dot, dot, long_dot_dot, dot_dot] =
        [0, 1, 2, 3].map(|n| bytes.get(n * ENTRY..(n + 1) * ENTRY).unwrap_or(&[]));
    let is_long = |entry: &[u8]| entry.get(11) == Some(&LONG_NAME);
    if !is_long(long_dot) || !is_long(long_dot_dot) || !dot.starts_with(DOT) || !dot_dot.starts_with(DOT_DOT)
    {
        return Ok(());
    }
    let mut ordered = [dot, dot_dot].concat();
    if in_root {
        for at in [20, 21, 26, 27] {
            ordered
                .iter_mut()
                .skip(ENTRY + at)
                .take(1)
                .for_each(|byte| *byte = 0);
        }
    }
    for old in [long_dot, long_dot_dot] {
        ordered.push(DELETED);
        ordered.extend_from_slice(old.get(1..).unwrap_or(&[]));
    }
    disk.seek(SeekFrom::Start(at))?;
    disk.write_all(&ordered)
}

/// Puts the entries of `blobs` and `blobs/sha256` in order.
pub fn order_pack_folders(disk: &mut Slice) -> io::Result<()> {
    let geometry = Geometry::read(disk)?;
    for piece in geometry.root_pieces(disk)? {
        let Some(blobs) = find(disk, piece, b"BLOBS      ")? else {
            continue;
        };
        order(disk, geometry.place(blobs), true)?;
        if let Some(sha256) = find(disk, (geometry.place(blobs), geometry.cluster), b"SHA256     ")? {
            order(disk, geometry.place(sha256), false)?;
        }
        break;
    }
    disk.flush()
}
