//! Disk images and devices: where the join partition lies, and making a stick of one partition. Copies no pack.
//!
//! The layout is that of `SPEC.md`, section "Media": GPT, a partition named BEEMESHJOIN, FAT with the same label.

use crate::failure::{Failure, invalid};
use crate::slice::Slice;
use anyhow::Context as _;
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

/// GPT name and FAT label of the join partition.
pub const JOIN_LABEL: &str = "BEEMESHJOIN";
/// Smallest and largest file system that is made.
const SMALLEST: u64 = 64 << 20;
const LARGEST: u64 = 32 << 30;
const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

/// A FAT file system in a window of a file or device.
pub type Fat = FileSystem<Slice>;

/// Where the join file system lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// What is on a disk.
#[derive(Debug, Default)]
pub struct Content {
    /// The join file system: a partition of that name, or the whole disk if it is one FAT.
    pub join: Option<Place>,
    /// Partitions and file systems in words.
    pub words: Vec<String>,
}

/// Size of a file or block device in bytes.
pub fn size(file: &mut File) -> std::io::Result<u64> {
    let size = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok(size)
}

/// Looks at a disk without changing it.
pub fn examine(path: &Path) -> Result<Content, Failure> {
    let mut file = File::open(path).with_context(|| format!("failed to open `{}`", path.display()))?;
    let length = size(&mut file).with_context(|| format!("failed to read `{}`", path.display()))?;
    let mut content = Content::default();
    let config = GptConfig::new()
        .writable(false)
        .logical_block_size(LogicalBlockSize::Lb512);
    if let Ok(disk) = config.open_from_device(&mut file) {
        for partition in disk.partitions().values().filter(|partition| partition.is_used()) {
            let (Ok(start), Ok(bytes)) = (
                partition.bytes_start(LogicalBlockSize::Lb512),
                partition.bytes_len(LogicalBlockSize::Lb512),
            ) else {
                continue;
            };
            let name: String = partition
                .name
                .chars()
                .filter(|c| !c.is_control())
                .take(36)
                .collect();
            content
                .words
                .push(format!("partition `{name}` ({})", in_words(bytes)));
            let inside = start.checked_add(bytes).is_some_and(|end| end <= length);
            if partition.name == JOIN_LABEL && inside && content.join.is_none() {
                content.join = Some(Place { start, length: bytes });
            }
        }
        return Ok(content);
    }
    file.rewind()
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    let mut head = Vec::new();
    file.take(MIB)
        .read_to_end(&mut head)
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    // The jump instruction and the signature tell a FAT boot sector from an MBR (Microsoft FAT specification, 3.1).
    let jumps =
        matches!(head.as_slice(), [0xeb, _, 0x90, ..] | [0xe9, ..]) && holds(&head, 510, &[0x55, 0xaa]);
    if jumps && let Ok(fs) = open(path, Place { start: 0, length }, false) {
        content.words.push(format!(
            "a FAT file system labelled `{}`",
            fs.volume_label().trim()
        ));
        content.join = Some(Place { start: 0, length });
        return Ok(content);
    }
    content.words.extend(foreign(&head).map(str::to_owned));
    Ok(content)
}

fn holds(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..).is_some_and(|rest| rest.starts_with(magic))
}

/// What else begins like this: enough for a person to notice that it is the wrong disk. `None`: nothing but zeros.
fn foreign(head: &[u8]) -> Option<&'static str> {
    const KINDS: [(usize, &[u8], &str); 10] = [
        (0x438, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (0, b"XFSB", "an XFS file system"),
        (0x10040, b"_BHRfS_M", "a btrfs file system"),
        (3, b"NTFS    ", "an NTFS file system"),
        (3, b"EXFAT   ", "an exFAT file system"),
        (0x8001, b"CD001", "a CD or DVD image"),
        (0x218, b"LVM2 001", "an LVM volume"),
        (4086, b"SWAPSPACE2", "swap space"),
        (510, &[0x55, 0xaa], "an MBR partition table or boot sector"),
    ];
    let known = KINDS
        .iter()
        .find(|(at, magic, _)| holds(head, *at, magic))
        .map(|(_, _, words)| *words);
    known.or_else(|| {
        head.iter()
            .any(|byte| *byte != 0)
            .then_some("data of an unknown kind")
    })
}

/// Opens the file system at `place`.
pub fn open(path: &Path, place: Place, writable: bool) -> Result<Fat, Failure> {
    let file = OpenOptions::new().read(true).write(writable).open(path);
    let file = file.with_context(|| format!("failed to open `{}`", path.display()))?;
    let slice = if writable {
        Slice::writing(file, place.start, place.length)
    } else {
        Slice::reading(file, place.start, place.length)
    };
    let fs = FileSystem::new(slice, FsOptions::new());
    Ok(fs.with_context(|| format!("`{}` holds no readable FAT file system", path.display()))?)
}

/// Bytes of a file system that holds files of these sizes, and room for receipts.
pub fn fitting_size(files: impl Iterator<Item = u64>) -> u64 {
    // The largest cluster is 32 KiB; FATs take under one part in a hundred.
    let clusters: u64 = files
        .map(|size| size.div_ceil(32 << 10).saturating_add(1).saturating_mul(32 << 10))
        .fold(0, u64::saturating_add);
    let with_fats = clusters.saturating_add(clusters / 64).saturating_add(24 * MIB);
    with_fats.max(SMALLEST).div_ceil(MIB).saturating_mul(MIB)
}

/// Makes an image file that is a stick with one join partition for `bytes`. The file must not exist.
pub fn create_image(path: &Path, bytes: u64) -> Result<Place, Failure> {
    if bytes > LARGEST {
        invalid!(
            "the pack needs {}, a stick can hold {}: put fewer images into it",
            in_words(bytes),
            in_words(LARGEST)
        );
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path);
    let mut file = file.with_context(|| format!("failed to create `{}`", path.display()))?;
    file.set_len(bytes + 2 * MIB)
        .with_context(|| format!("failed to grow `{}`", path.display()))?;
    partition(&mut file, path)
}

/// Replaces whatever is on the disk by one join partition that fills it, up to 32 GiB.
pub fn partition(file: &mut File, path: &Path) -> Result<Place, Failure> {
    let context = || format!("failed to partition `{}`", path.display());
    let disk_size = size(file).with_context(context)?;
    if disk_size < SMALLEST + 2 * MIB {
        invalid!(
            "`{}` has {}: too small for a stick",
            path.display(),
            in_words(disk_size)
        );
    }
    let last = u32::try_from(disk_size / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(last)
        .overwrite_lba0(file)
        .with_context(context)?;
    let config = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512);
    let mut disk = config.create_from_device(file, None).with_context(context)?;
    let length = (disk_size / MIB * MIB - 2 * MIB).min(LARGEST);
    let id = disk
        .add_partition(JOIN_LABEL, length, partition_types::BASIC, 0, Some(MIB / SECTOR))
        .with_context(context)?;
    let start = disk
        .partitions()
        .get(&id)
        .and_then(|p| p.bytes_start(LogicalBlockSize::Lb512).ok());
    let start = start.with_context(context)?;
    let file = disk.write().with_context(context)?;
    let place = Place { start, length };
    let copy = file.try_clone().with_context(context)?;
    let mut label = [b' '; 11];
    label
        .iter_mut()
        .zip(JOIN_LABEL.bytes())
        .for_each(|(to, from)| *to = from);
    let options = FormatVolumeOptions::new().volume_label(label);
    fatfs::format_volume(Slice::writing(copy, place.start, place.length), options).with_context(context)?;
    file.sync_all().with_context(context)?;
    Ok(place)
}

/// Whether the path is a block device.
pub fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// A size for people.
pub fn in_words(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len())
        .rev()
        .find(|n| bytes >= 1 << (10 * n))
        .unwrap_or(0);
    let scale = 1u64 << (10 * unit);
    let name = UNITS.get(unit).copied().unwrap_or("bytes");
    if unit == 0 {
        format!("{bytes} {name}")
    } else {
        format!("{:.1} {name}", bytes as f64 / scale as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_said_in_words() {
        for (bytes, words) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB"),
            (8 << 30, "8.0 GiB"),
        ] {
            assert_eq!(in_words(bytes), words);
        }
    }

    #[test]
    fn foreign_content_is_noticed() {
        let mut head = vec![0; 1 << 20];
        assert_eq!(foreign(&head), None);
        head[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        assert!(foreign(&head).unwrap().contains("ext4"));
        head[0x438] = 0;
        assert!(foreign(&head).unwrap().contains("unknown"));
    }

    #[test]
    fn made_stick_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stick.img");
        let place = create_image(&path, fitting_size([1, 2].into_iter())).unwrap();
        assert_eq!((place.start, place.length), (MIB, SMALLEST));
        let content = examine(&path).unwrap();
        assert_eq!(content.join, Some(place));
        assert_eq!(
            open(&path, place, false).unwrap().volume_label().trim(),
            JOIN_LABEL
        );
        assert!(create_image(&path, SMALLEST).is_err(), "overwrites");
    }
}
