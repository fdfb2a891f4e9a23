//! Sticks whose file system was tampered with: edits of good images, byte by byte, where no tool would put them.
//!
//! Source: Microsoft, "FAT: General Overview of On-Disk Format", 1.03. Reads FAT16 and FAT32 as the testkit makes them.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

/// Where the testkit's partition begins, in bytes.
const PARTITION: usize = 2048 * 512;
/// Entries of a folder, in bytes.
const ENTRY: usize = 32;
/// Marks the end of a chain, in both kinds of FAT.
const END: u32 = 0x0fff_ffff;

/// An image of a stick in memory.
pub struct Hostile {
    bytes: Vec<u8>,
    wide: bool,
    cluster: usize,
    fats: Vec<usize>,
    root: usize,
    data: usize,
}

impl Hostile {
    /// Reads a good image of the testkit.
    pub fn open(image: &Path) -> Result<Self> {
        let bytes = fs::read(image).with_context(|| format!("failed to read `{}`", image.display()))?;
        let number = |at: usize, length: usize| {
            let bytes = bytes.get(PARTITION + at..PARTITION + at + length)?;
            Some(
                bytes
                    .iter()
                    .rev()
                    .fold(0usize, |sum, byte| sum << 8 | usize::from(*byte)),
            )
        };
        let number = |at, length| number(at, length).context("the image has no boot sector");
        let sector = number(11, 2)?;
        ensure!(sector == 512, "sectors of {sector} bytes");
        let (reserved, copies, entries) = (number(14, 2)?, number(16, 1)?, number(17, 2)?);
        let wide = number(22, 2)? == 0;
        let fat = if wide { number(36, 4)? } else { number(22, 2)? };
        let first = PARTITION + reserved * sector;
        let after = first + copies * fat * sector;
        let cluster = number(13, 1)? * sector;
        let data = after + entries * ENTRY;
        let root = if wide {
            data + (number(44, 4)? - 2) * cluster
        } else {
            after
        };
        Ok(Self {
            wide,
            cluster,
            fats: (0..copies).map(|copy| first + copy * fat * sector).collect(),
            root,
            data,
            bytes,
        })
    }

    /// Writes the image.
    pub fn write(&self, image: &Path) -> Result<()> {
        fs::write(image, &self.bytes).with_context(|| format!("failed to write `{}`", image.display()))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        let place = self.bytes.get_mut(at..at + bytes.len());
        place
            .context("a place outside of the image")?
            .copy_from_slice(bytes);
        Ok(())
    }

    fn get<const N: usize>(&self, at: usize) -> Result<[u8; N]> {
        let bytes = self.bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
        bytes.context("a place outside of the image")
    }

    fn at(&self, cluster: u32) -> usize {
        self.data + (cluster as usize - 2) * self.cluster
    }

    /// What follows a cluster.
    fn next(&self, cluster: u32) -> Result<u32> {
        let fat = self.fats.first().context("no FAT")?;
        match self.wide {
            true => Ok(u32::from_le_bytes(self.get(fat + cluster as usize * 4)?) & END),
            false => {
                let next = u32::from(u16::from_le_bytes(self.get(fat + cluster as usize * 2)?));
                Ok(if next >= 0xfff8 { END } else { next })
            }
        }
    }

    /// Says what follows a cluster, in every copy of the FAT.
    fn link(&mut self, cluster: u32, next: u32) -> Result<()> {
        for fat in self.fats.clone() {
            match self.wide {
                true => self.put(fat + cluster as usize * 4, &next.to_le_bytes())?,
                false => self.put(fat + cluster as usize * 2, &next.to_le_bytes()[..2])?,
            }
        }
        Ok(())
    }

    /// The entry whose short name begins so, in the folder whose first cluster lies at `folder`.
    fn entry(&self, folder: usize, name: &str) -> Result<usize> {
        (0..self.cluster / ENTRY)
            .map(|n| folder + n * ENTRY)
            .find(|at| {
                let entry = self.bytes.get(*at..at + ENTRY).unwrap_or_default();
                // Not a piece of a long name.
                entry.get(11).is_some_and(|attributes| attributes & 0x0f != 0x0f)
                    && entry.starts_with(name.as_bytes())
            })
            .with_context(|| format!("the stick holds no `{name}`"))
    }

    fn first_cluster(&self, entry: usize) -> Result<u32> {
        let high = if self.wide {
            u16::from_le_bytes(self.get(entry + 20)?)
        } else {
            0
        };
        Ok(u32::from(high) << 16 | u32::from(u16::from_le_bytes(self.get(entry + 26)?)))
    }

    fn manifest(&self) -> Result<usize> {
        self.entry(self.root, "JOINPA")
    }

    fn blobs(&self) -> Result<usize> {
        self.entry(self.root, "BLOBS ")
    }

    /// The folder `blobs/sha256`.
    fn named_by_digest(&self) -> Result<usize> {
        self.entry(self.at(self.first_cluster(self.blobs()?)?), "SHA256")
    }

    /// The first blob: what stands after `.` and `..`.
    fn blob(&self) -> Result<usize> {
        let folder = self.at(self.first_cluster(self.named_by_digest()?)?);
        let entries = (2..self.cluster / ENTRY).map(|n| folder + n * ENTRY);
        let mut files = entries.filter(|at| self.bytes.get(at + 11).is_some_and(|kind| kind & 0x0f != 0x0f));
        files.next().context("the stick holds no blob")
    }

    /// Two files share a cluster: the manifest goes on in a blob.
    pub fn cross_link(&mut self) -> Result<()> {
        let manifest = self.first_cluster(self.manifest()?)?;
        ensure!(
            self.next(manifest)? < 0xfff0,
            "the manifest fits into one cluster"
        );
        self.link(manifest, self.first_cluster(self.blob()?)?)
    }

    /// A blob that is 4 GiB long and begins anew in its second cluster.
    pub fn endless_file(&mut self) -> Result<()> {
        let blob = self.blob()?;
        let first = self.first_cluster(blob)?;
        let second = self.next(first)?;
        self.link(second, first)?;
        self.put(blob + 28, &u32::MAX.to_le_bytes())
    }

    /// A folder whose clusters go round.
    pub fn endless_folder(&mut self) -> Result<()> {
        let folder = self.first_cluster(self.named_by_digest()?)?;
        self.link(folder, folder)
    }

    /// A folder that is in itself: `blobs/sha256` is `blobs`.
    pub fn folder_in_itself(&mut self) -> Result<()> {
        let (inner, outer) = (self.named_by_digest()?, self.first_cluster(self.blobs()?)?);
        let bytes = outer.to_le_bytes();
        self.put(inner + 26, &bytes[..2])?;
        self.put(inner + 20, &bytes[2..])
    }

    /// A folder of so many files: all are empty, at the end of the medium.
    pub fn huge_folder(&mut self, files: usize) -> Result<()> {
        let folder = self.first_cluster(self.named_by_digest()?)?;
        let clusters = files.div_ceil(self.cluster / ENTRY);
        // Far behind what the stick holds.
        let last = (self.bytes.len() - (1 << 20) - self.data) / self.cluster;
        let from = u32::try_from(last - clusters)?;
        let mut before = folder;
        for n in 0..u32::try_from(clusters)? {
            ensure!(self.next(from + n)? == 0, "the stick is too full");
            self.link(before, from + n)?;
            before = from + n;
        }
        self.link(before, END)?;
        for n in 0..files {
            let per = self.cluster / ENTRY;
            let at = self.at(from + u32::try_from(n / per)?) + n % per * ENTRY;
            let mut entry = [0; ENTRY];
            entry[..11].copy_from_slice(format!("{n:08}   ").as_bytes());
            entry[11] = 0x20;
            self.put(at, &entry)?;
        }
        Ok(())
    }

    /// A file system that no kernel mounts, though its label can be read.
    pub fn unmountable(&mut self) -> Result<()> {
        // A medium that there is not (`BPB_Media`).
        self.put(PARTITION + 21, &[0])
    }

    /// A partition table whose only partition is 2 TiB long, on a medium that ends in the middle of the blob.
    pub fn lying_table(&mut self) -> Result<()> {
        let blob = self.blob()?;
        let length = u32::from_le_bytes(self.get(blob + 28)?) as usize;
        let end = self.at(self.first_cluster(blob)?) + length / 2;
        // An MBR in the place of both tables of the GPT.
        self.put(0, &[0; PARTITION])?;
        let mut row = [0; 16];
        row[4] = 0x0c;
        row[8..12].copy_from_slice(&u32::try_from(PARTITION / 512)?.to_le_bytes());
        row[12..].copy_from_slice(&(u32::MAX - 4096).to_le_bytes());
        self.put(446, &row)?;
        self.put(510, &[0x55, 0xaa])?;
        self.bytes.truncate(end.next_multiple_of(1 << 20));
        Ok(())
    }
}
