//! Images of USB sticks: made from a folder, looked into, and damaged on purpose.
//!
//! It knows GPT and FAT, and nothing of join packs. Invariant: nothing but the one partition is written, and every
//! change is on disk when the call returns. The image must not be in a running machine meanwhile.

#[cfg(test)]
mod tests;
mod window;

use anyhow::{Context, Result, bail};
use fatfs::{Dir, FileSystem, FormatVolumeOptions, FsOptions};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use window::Window;

/// The name of the partition and the label of the filesystem.
pub const LABEL: &str = "BEEMESHJOIN";

/// The largest file that is read back, in bytes.
pub const MAX_FILE: u64 = 256 * 1024 * 1024;

/// How deep folders may be nested.
const MAX_DEPTH: usize = 16;

/// A stick's image file with a FAT partition named [`LABEL`].
#[derive(Debug, Clone)]
pub struct StickImage {
    path: PathBuf,
}

impl StickImage {
    /// Makes the image `path` of `mebibytes` (at least 8) with one FAT partition that holds what is in `folder`.
    ///
    /// # Errors
    /// When the folder cannot be read or does not fit.
    pub fn from_folder(path: &Path, mebibytes: u64, folder: &Path) -> Result<Self> {
        if mebibytes < 8 {
            bail!("a stick of {mebibytes} MiB is too small: use 8 or more");
        }
        let stick = Self {
            path: path.to_owned(),
        };
        let about = || format!("failed to make the stick `{}`", path.display());
        let bytes = mebibytes << 20;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .with_context(about)?;
        file.set_len(bytes).with_context(about)?;
        let sectors = u32::try_from(bytes / 512 - 1).unwrap_or(u32::MAX);
        gpt::mbr::ProtectiveMBR::with_lb_size(sectors)
            .overwrite_lba0(&mut file)
            .with_context(about)?;
        let mut disk = gpt::GptConfig::new()
            .writable(true)
            .logical_block_size(gpt::disk::LogicalBlockSize::Lb512)
            .create_from_device(file, None)
            .with_context(about)?;
        // One MiB at each end is for the tables.
        let size = bytes - (2 << 20);
        disk.add_partition(LABEL, size, gpt::partition_types::BASIC, 0, Some(2048))
            .with_context(about)?;
        disk.write().with_context(about)?;
        let mut label = [b' '; 11];
        label.copy_from_slice(LABEL.as_bytes());
        fatfs::format_volume(stick.partition()?, FormatVolumeOptions::new().volume_label(label))
            .with_context(about)?;
        let mut found = (Vec::new(), Vec::new());
        walk(folder, "", 0, &mut found).with_context(about)?;
        let (folders, files) = found;
        stick.make_folders(&folders)?;
        stick
            .change(|root| {
                files
                    .iter()
                    .try_for_each(|f| write_file(root, f, &mut File::open(folder.join(f))?))
            })
            .with_context(about)?;
        Ok(stick)
    }

    /// An image that exists; any with a FAT partition named [`LABEL`] will do, such as an OS stick's.
    ///
    /// # Errors
    /// When there is no such partition, or no FAT in it.
    pub fn open(path: &Path) -> Result<Self> {
        let stick = Self {
            path: path.to_owned(),
        };
        stick.filesystem()?;
        Ok(stick)
    }

    /// The image file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the whole stick.
    ///
    /// # Errors
    /// When the copy cannot be written.
    pub fn copy_to(&self, path: &Path) -> Result<Self> {
        std::fs::copy(&self.path, path)
            .with_context(|| format!("failed to copy `{}` to `{}`", self.path.display(), path.display()))?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The paths of all files on it, sorted, with `/` between folders.
    ///
    /// # Errors
    /// When the filesystem is damaged.
    pub fn files(&self) -> Result<Vec<String>> {
        let filesystem = self.filesystem()?;
        let mut found = Vec::new();
        list(&filesystem.root_dir(), "", 0, &mut found)
            .with_context(|| format!("failed to list the stick `{}`", self.path.display()))?;
        found.sort();
        Ok(found)
    }

    /// What is in a file.
    ///
    /// # Errors
    /// When it does not exist or is larger than [`MAX_FILE`].
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let filesystem = self.filesystem()?;
        let root = filesystem.root_dir();
        let file = root.open_file(name).with_context(|| self.about("read", name))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .with_context(|| self.about("read", name))?;
        if bytes.len() as u64 > MAX_FILE {
            bail!(
                "`{name}` on the stick `{}` is larger than {MAX_FILE} bytes",
                self.path.display()
            );
        }
        Ok(bytes)
    }

    /// Writes a file, in place of one that is there; its folders are made.
    ///
    /// # Errors
    /// When there is no space.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.make_folders(&parents(name))?;
        self.change(|root| write_file(root, name, &mut &*bytes))
            .with_context(|| self.about("write", name))
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.change(|root| root.remove(name))
            .with_context(|| self.about("remove", name))
    }

    /// Flips bit `bit` (0 to 7) of the byte at `offset` of a file, in place.
    ///
    /// # Errors
    /// When there is no such byte.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> Result<()> {
        self.change(|root| {
            let mut file = root.open_file(name)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut byte = [0];
            file.read_exact(&mut byte)?;
            byte[0] ^= 1 << (bit & 7);
            file.seek(SeekFrom::Start(offset))?;
            file.write_all(&byte)?;
            file.flush()
        })
        .with_context(|| self.about("flip a bit of", name))
    }

    fn about(&self, what: &str, name: &str) -> String {
        format!("failed to {what} `{name}` on the stick `{}`", self.path.display())
    }

    /// Where the partition is in the file: first byte and length.
    fn extent(&self) -> Result<(u64, u64)> {
        let about = || format!("failed to open the stick `{}`", self.path.display());
        let disk = gpt::GptConfig::new()
            .writable(false)
            .open(&self.path)
            .with_context(about)?;
        let Some(partition) = disk.partitions().values().find(|p| p.name == LABEL) else {
            bail!("the stick `{}` has no partition `{LABEL}`", self.path.display());
        };
        let block = gpt::disk::LogicalBlockSize::Lb512;
        let start = partition.bytes_start(block).with_context(about)?;
        Ok((start, partition.bytes_len(block).with_context(about)?))
    }

    fn partition(&self) -> Result<Window> {
        let about = || format!("failed to open the stick `{}`", self.path.display());
        let (start, length) = self.extent()?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(&self.path)
            .with_context(about)?;
        Window::new(file, start, length).with_context(about)
    }

    /// Makes folders, parents first, that are not there yet. By mtools, because the `fatfs` crate gives `.` and `..`
    /// long names, which fsck and some firmware take for damage.
    fn make_folders(&self, folders: &[String]) -> Result<()> {
        let filesystem = self.filesystem()?;
        let missing: Vec<String> = folders
            .iter()
            .filter(|f| filesystem.root_dir().open_dir(f).is_err())
            .map(|f| format!("::{f}"))
            .collect();
        drop(filesystem);
        if missing.is_empty() {
            return Ok(());
        }
        let (start, _) = self.extent()?;
        let output = Command::new("mmd")
            .arg("-i")
            .arg(format!("{}@@{start}", self.path.display()))
            .args(&missing)
            .stdin(Stdio::null())
            .output()
            .context("failed to run `mmd`: install the Debian package `mtools`")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "failed to make folders on the stick `{}`: {}",
                self.path.display(),
                said.trim()
            );
        }
        Ok(())
    }

    fn filesystem(&self) -> Result<FileSystem<Window>> {
        FileSystem::new(self.partition()?, FsOptions::new()).with_context(|| {
            format!(
                "the partition `{LABEL}` of `{}` holds no FAT",
                self.path.display()
            )
        })
    }

    fn change(&self, act: impl FnOnce(&Dir<'_, Window>) -> io::Result<()>) -> Result<()> {
        let filesystem = self.filesystem()?;
        act(&filesystem.root_dir())?;
        filesystem.unmount()?;
        Ok(())
    }
}

fn write_file(root: &Dir<'_, Window>, name: &str, bytes: &mut impl Read) -> io::Result<()> {
    let mut file = root.create_file(name)?;
    file.truncate()?;
    io::copy(bytes, &mut file)?;
    file.flush()
}

/// Every folder that `name` is in, outermost first.
fn parents(name: &str) -> Vec<String> {
    name.match_indices('/')
        .map(|(at, _)| name[..at].to_owned())
        .collect()
}

/// What is in a folder of this machine: folders (parents first) and files, as paths below it.
fn walk(top: &Path, below: &str, depth: usize, found: &mut (Vec<String>, Vec<String>)) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("`{below}` is nested too deeply")));
    }
    let mut entries = std::fs::read_dir(top.join(below))?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let name = name
            .to_str()
            .ok_or_else(|| io::Error::other(format!("{name:?} is no UTF-8")))?;
        let path = if below.is_empty() {
            name.to_owned()
        } else {
            format!("{below}/{name}")
        };
        if entry.file_type()?.is_dir() {
            found.0.push(path.clone());
            walk(top, &path, depth + 1, found)?;
        } else {
            found.1.push(path);
        }
    }
    Ok(())
}

fn list(folder: &Dir<'_, Window>, prefix: &str, depth: usize, found: &mut Vec<String>) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("`{prefix}` is nested too deeply")));
    }
    for entry in folder.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == "." || name == ".." {
            continue;
        }
        let path = format!("{prefix}{name}");
        if entry.is_dir() {
            list(&entry.to_dir(), &format!("{path}/"), depth + 1, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}
