//! Writes the raw disk image: GPT, the ESP with boot loader and UKI, an empty partition for the join pack.
//!
//! Follows the plan of `beemesh-image-disk` and decides nothing of the layout. Files are put in place by mtools: the
//! fatfs crate writes long names for `.` and `..`, which fsck takes for damage. The file is sparse. Invariant: the same
//! content gives the same bytes; no clock and no randomness reach the file systems.

use crate::{
    apt,
    tree::{Content, Node, Tree},
};
use anyhow::{Context, Result, bail};
use beemesh_image_disk::{DiskPlan, Partition, Role};
use fatfs::{FatType, FormatVolumeOptions};
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    process::Command,
};

/// A part of a file, as a file of its own. Nothing is read or written outside.
struct Window<'a> {
    file: &'a File,
    start: u64,
    size: u64,
    position: u64,
}

impl<'a> Window<'a> {
    fn of(file: &'a File, partition: &Partition) -> Self {
        Self {
            file,
            start: partition.offset(),
            size: partition.size(),
            position: 0,
        }
    }

    fn left(&self, wanted: usize) -> usize {
        usize::try_from(self.size - self.position)
            .unwrap_or(usize::MAX)
            .min(wanted)
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left(buffer.len());
        let place = buffer.get_mut(..left).unwrap_or_default();
        let count = std::os::unix::fs::FileExt::read_at(self.file, place, self.start + self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..self.left(bytes.len())).unwrap_or_default();
        let count = std::os::unix::fs::FileExt::write_at(self.file, bytes, self.start + self.position)?;
        self.position += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.size.checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        match position.filter(|position| *position <= self.size) {
            Some(position) => {
                self.position = position;
                Ok(position)
            }
            None => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "seek outside the partition",
            )),
        }
    }
}

/// Fills the empty file at `path` as planned. `time` is the time of every file on the ESP, seconds since 1970.
pub fn write(path: &Path, plan: &DiskPlan, esp: &Tree, time: u32) -> Result<()> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .context("failed to open the disk image")?;
    file.set_len(plan.size).context("failed to size the disk image")?;
    write_table(&mut file, plan).context("failed to write the partition table")?;
    for partition in &plan.partitions {
        let name = &partition.name;
        format(&file, partition).with_context(|| format!("failed to format partition `{name}`"))?;
        if partition.role == Role::Esp {
            fill(path, partition, esp, time).with_context(|| format!("failed to fill partition `{name}`"))?;
        }
    }
    Ok(())
}

fn write_table(file: &mut File, plan: &DiskPlan) -> Result<()> {
    let sectors = u32::try_from(plan.size / beemesh_image_disk::SECTOR - 1).unwrap_or(u32::MAX);
    gpt::mbr::ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(file)?;
    let config = gpt::GptConfig::new()
        .writable(true)
        .logical_block_size(gpt::disk::LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(&mut *file, Some(plan.guid))?;
    let entries = plan.partitions.iter().map(|p| {
        let entry = gpt::partition::Partition {
            part_type_guid: gpt::partition_types::Type {
                guid: p.type_guid,
                os: gpt::partition_types::OperatingSystem::None,
            },
            part_guid: p.guid,
            first_lba: p.first_lba,
            last_lba: p.last_lba,
            flags: 0,
            name: p.name.clone(),
        };
        (p.number, entry)
    });
    table.update_partitions(entries.collect())?;
    table.write()?;
    Ok(())
}

fn format(file: &File, partition: &Partition) -> Result<()> {
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(partition.fat.cluster)
        .total_sectors(partition.fat.sectors)
        .volume_id(partition.volume_id)
        .volume_label(partition.label.bytes());
    Ok(fatfs::format_volume(Window::of(file, partition), options)?)
}

fn fill(image: &Path, partition: &Partition, contents: &Tree, time: u32) -> Result<()> {
    let mut drive = image.as_os_str().to_owned();
    drive.push(format!("@@{}", partition.offset()));
    let tool = |name: &str| {
        let mut command = Command::new(name);
        command
            .env("SOURCE_DATE_EPOCH", time.to_string())
            .env("TZ", "UTC")
            .env("MTOOLS_SKIP_CHECK", "1");
        command.arg("-i").arg(&drive);
        command
    };
    for (path, node) in contents.iter() {
        let place = format!("::/{path}");
        match node {
            Node::Directory { .. } => apt::output(tool("mmd").arg(place))?,
            Node::File {
                content: Content::File(source),
                ..
            } => apt::output(tool("mcopy").arg(source).arg(place))?,
            Node::File {
                content: Content::Bytes(bytes),
                ..
            } => {
                let mut source = tempfile::NamedTempFile::new()?;
                source.write_all(bytes)?;
                apt::output(tool("mcopy").arg(source.path()).arg(place))?
            }
            Node::Link { .. } | Node::CharDevice { .. } => {
                bail!("FAT cannot hold `{path}`: neither file nor directory")
            }
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests;
