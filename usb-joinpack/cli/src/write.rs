//! Writing a pack to a folder, an image or a stick, and reading it back.
//!
//! Invariants: the old `joinpack.json` goes first and the new one comes last, so a target that was cut off is never a
//! pack; where it is replaced alone, the old one or the new one is there at every moment; every blob is checked against its digest while it is copied and again while it is read back; what a target
//! holds besides a pack (receipts, other files) stays.

use crate::device::{self, Kernel};
use crate::disk::{self, Fat, Place};
use crate::dots;
use crate::exchange;
use crate::failure::{Failure, invalid};
use crate::media::{self, Media};
use crate::slice::Slice;
use anyhow::{Context as _, anyhow};
use beemesh_ids::Digest;
use beemesh_joinpack_format::{Pack, RootChain, Timestamp, blob_path};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IsTerminal as _, Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

/// The signed manifest.
const MANIFEST: &str = "joinpack.json";
/// One that takes its place.
const STAGING: &str = "joinpack.new";
/// Largest file on FAT.
const FAT_FILE: u64 = u32::MAX as u64;

/// Opens a blob.
pub type OpenBlob<'a> = dyn Fn(&Digest) -> Result<Box<dyn Read + 'a>, Failure> + 'a;

/// A pack to be written: its signed manifest, and where its blobs come from.
pub struct Content<'a> {
    /// `joinpack.json`.
    pub joinpack: Vec<u8>,
    /// Blobs and their sizes.
    pub blobs: BTreeMap<Digest, u64>,
    /// Opens a blob.
    pub open: Box<OpenBlob<'a>>,
}

impl Content<'_> {
    fn bytes(&self) -> u64 {
        self.blobs
            .values()
            .fold(self.joinpack.len() as u64, |sum, size| sum.saturating_add(*size))
    }
}

/// Where a pack goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// A folder; it is made if it does not exist.
    Folder(PathBuf),
    /// An image that does not exist yet.
    NewImage(PathBuf),
    /// An image with a join file system.
    Image(PathBuf, Place),
    /// A stick that has a join partition, which is kept with all that is beside it.
    Stick(PathBuf, Place),
    /// A stick that is to be made anew.
    BlankStick(PathBuf),
}

impl Target {
    /// Finds out what `path` is. Writes nothing.
    pub fn resolve(path: &Path) -> Result<Self, Failure> {
        let named_image = path
            .extension()
            .is_some_and(|extension| extension == "img" || extension == "raw");
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound && named_image => {
                return Ok(Self::NewImage(path.into()));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::Folder(path.into())),
            Err(error) => {
                return Err(anyhow!(error)
                    .context(format!("failed to open `{}`", path.display()))
                    .into());
            }
            Ok(metadata) => metadata,
        };
        if metadata.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        if disk::is_block_device(path) {
            return Ok(match disk::examine(path)?.join {
                Some(place) => Self::Stick(path.into(), place),
                None => Self::BlankStick(path.into()),
            });
        }
        if !metadata.is_file() {
            invalid!(
                "`{}` is neither a folder nor an image nor a stick",
                path.display()
            );
        }
        match disk::examine(path)?.join {
            Some(place) => Ok(Self::Image(path.into(), place)),
            None => invalid!(
                "`{}` exists, has no partition named {} and is no FAT image: it is not overwritten, choose a new name",
                path.display(),
                disk::JOIN_LABEL
            ),
        }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::NewImage(path) | Self::BlankStick(path) => path,
            Self::Image(path, _) | Self::Stick(path, _) => path,
        }
    }

    /// What will happen, in words.
    pub fn in_words(&self) -> String {
        let path = self.path().display();
        match self {
            Self::Folder(_) => format!("the pack goes into the folder `{path}`"),
            Self::NewImage(_) => format!("`{path}` becomes the image of a stick with the pack"),
            Self::Image(..) => format!("the pack goes into the join partition of the image `{path}`"),
            Self::Stick(..) => {
                format!("the pack goes into the join partition of `{path}`; nothing else on it changes")
            }
            Self::BlankStick(_) => {
                format!("EVERYTHING on `{path}` is erased; it becomes a stick with the pack")
            }
        }
    }

    /// For a stick: says what it is and what is on it, refuses one in use, and asks unless `yes`.
    pub fn confirm(&self, yes: bool) -> Result<(), Failure> {
        let (Self::Stick(path, _) | Self::BlankStick(path)) = self else {
            return Ok(());
        };
        let number = device::number(path).ok_or_else(|| anyhow!("failed to open `{}`", path.display()))?;
        let facts = Kernel::running()?.facts(&number)?;
        let kind = if facts.removable {
            "removable"
        } else {
            "NOT marked as removable"
        };
        let model = if facts.model.is_empty() {
            "unknown model"
        } else {
            &facts.model
        };
        eprintln!(
            "{}: {model}, {}, {kind}",
            path.display(),
            disk::in_words(facts.size)
        );
        match disk::examine(path)?.words.as_slice() {
            [] => eprintln!("  it is empty"),
            words => words.iter().for_each(|word| eprintln!("  it holds {word}")),
        }
        facts.check_unused()?;
        eprintln!("{}", self.in_words());
        if yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            invalid!(
                "nobody can be asked whether to write to `{}`: give --yes",
                path.display()
            );
        }
        eprint!("Type `yes` to go on: ");
        let mut answer = String::new();
        std::io::stdin()
            .read_line(&mut answer)
            .context("failed to read the answer")?;
        if answer.trim() == "yes" {
            Ok(())
        } else {
            Err(Failure::Forbidden(anyhow!("nothing was written")))
        }
    }

    /// Puts another `joinpack.json` in the place of the one that is there, for the same blobs, and reads it back. The old one
    /// stays until the new one is whole; then the files `done` are removed.
    pub fn replace(&self, joinpack: &[u8], roots: &RootChain, done: &[String]) -> Result<(), Failure> {
        match self {
            Self::Folder(dir) => put_manifest(dir, joinpack)?,
            Self::Image(path, place) | Self::Stick(path, place) => replace_fat(path, *place, joinpack)?,
            Self::NewImage(path) | Self::BlankStick(path) => {
                invalid!("`{}` holds no pack", path.display())
            }
        }
        let media = Media::open(self.path())?;
        let (bytes, pack) = media.pack()?;
        if bytes != joinpack {
            return Err(not_what_was_written(self.path()));
        }
        let pack = pack.verify(Some(roots), Timestamp::EPOCH, None)?;
        pack.check_listing(media.listing()?)?;
        drop(media);
        self.remove(done)
    }

    fn remove(&self, names: &[String]) -> Result<(), Failure> {
        match self {
            Self::Folder(dir) => names.iter().try_for_each(|name| remove_if_there(&dir.join(name))),
            Self::Image(path, place) | Self::Stick(path, place) => {
                let fs = disk::open(path, *place, true)?;
                names
                    .iter()
                    .try_for_each(|name| remove_fat(&fs.root_dir(), name))?;
                close(fs, path)
            }
            Self::NewImage(_) | Self::BlankStick(_) => Ok(()),
        }
    }

    /// Writes the pack and reads it back.
    pub fn write(&self, content: &Content<'_>, roots: &RootChain) -> Result<(), Failure> {
        let bar = ProgressBar::new(content.bytes().saturating_mul(2));
        if let Ok(style) = ProgressStyle::with_template("{msg:8} [{bar:40}] {bytes}/{total_bytes} {eta}") {
            bar.set_style(style);
        }
        bar.set_message("writing");
        match self {
            Self::Folder(dir) => write_folder(dir, content, &bar)?,
            Self::Image(path, place) | Self::Stick(path, place) => write_fat(path, *place, content, &bar)?,
            Self::NewImage(path) => {
                let sizes = content
                    .blobs
                    .values()
                    .copied()
                    .chain([content.joinpack.len() as u64]);
                let made = disk::create_image(path, disk::fitting_size(sizes))
                    .and_then(|place| write_fat(path, place, content, &bar));
                if let Err(failure) = made {
                    // Half an image is of no use to anyone; the failure to report is the first one.
                    let _ = fs::remove_file(path);
                    return Err(failure);
                }
            }
            Self::BlankStick(path) => {
                let mut file = OpenOptions::new().read(true).write(true).open(path);
                let file = file
                    .as_mut()
                    .map_err(|e| anyhow!("failed to open `{}`: {e}", path.display()))?;
                let place = disk::partition(file, path)?;
                write_fat(path, place, content, &bar)?;
            }
        }
        bar.set_message("reading");
        read_back(self.path(), content, roots, &mut |bytes| bar.inc(bytes))?;
        bar.finish_and_clear();
        Ok(())
    }
}

/// Verifies what was written as a node would. The roots must be those that the pack was judged by before.
fn read_back(
    path: &Path,
    content: &Content<'_>,
    roots: &RootChain,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    let media = Media::open(path)?;
    let (bytes, _) = media.pack()?;
    let again = Pack::parse(&bytes)?.verify(Some(roots), Timestamp::EPOCH, None)?;
    if bytes != content.joinpack {
        return Err(not_what_was_written(path));
    }
    media.check_blobs(&again, progress)
}

fn not_what_was_written(path: &Path) -> Failure {
    anyhow!(
        "`{}` holds another `joinpack.json` than was written: replace the stick",
        path.display()
    )
    .into()
}

fn write_folder(dir: &Path, content: &Content<'_>, bar: &ProgressBar) -> Result<(), Failure> {
    let context = |path: &Path| format!("failed to write `{}`", path.display());
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| context(&blobs))?;
    remove_if_there(&dir.join("joinpack.json"))?;
    clear_folder(&dir.join("blobs"), content)?;
    for (digest, size) in &content.blobs {
        let path = dir.join(blob_path(digest));
        let mut file = File::create(&path).with_context(|| context(&path))?;
        let mut reader = (content.open)(digest)?;
        media::stream(&mut *reader, *digest, *size, &mut |piece| {
            bar.inc(piece.len() as u64);
            Ok(write_sparse(&mut file, piece).with_context(|| context(&path))?)
        })?;
        file.set_len(*size)
            .and_then(|()| file.sync_all())
            .with_context(|| context(&path))?;
    }
    put_manifest(dir, &content.joinpack)
}

/// Puts `joinpack.json` into a folder at once.
fn put_manifest(dir: &Path, joinpack: &[u8]) -> Result<(), Failure> {
    let (manifest, staging) = (dir.join("joinpack.json"), dir.join(".joinpack.json.new"));
    let write = || {
        let mut file = File::create(&staging)?;
        file.write_all(joinpack)?;
        file.sync_all()?;
        fs::rename(&staging, &manifest)?;
        File::open(dir)?.sync_all()
    };
    Ok(write().with_context(|| format!("failed to write `{}`", manifest.display()))?)
}

/// FAT cannot rename over a file: the new manifest lies whole beside the old one, read back from the medium, before their two
/// entries in the root folder change places.
fn replace_fat(path: &Path, place: Place, joinpack: &[u8]) -> Result<(), Failure> {
    let context = || format!("failed to write to `{}`", path.display());
    exchange::part(&mut writing(path, place)?, MANIFEST, STAGING).with_context(context)?;
    let fs = disk::open(path, place, true)?;
    remove_fat(&fs.root_dir(), STAGING)?;
    let stats = fs.stats().context("failed to read the free space")?;
    let needed = (joinpack.len() as u64).div_ceil(u64::from(stats.cluster_size()).max(1)) + 2;
    if needed > u64::from(stats.free_clusters()) {
        invalid!(
            "`{}` has no room for another `joinpack.json` beside the old one: make room, or make a new stick",
            path.display()
        );
    }
    let write = || {
        let root = fs.root_dir();
        let mut file = root.create_file(STAGING)?;
        file.write_all(joinpack)?;
        file.flush()
    };
    write().with_context(context)?;
    close(fs, path)?;
    let written = Media::Fat(Box::new(disk::open(path, place, false)?)).read(STAGING, joinpack.len())?;
    if written.as_deref() != Some(joinpack) {
        return Err(not_what_was_written(path));
    }
    let exchanged =
        exchange::exchange(&mut writing(path, place)?, MANIFEST, STAGING).with_context(context)?;
    let fs = disk::open(path, place, true)?;
    let root = fs.root_dir();
    if exchanged {
        remove_fat(&root, STAGING)?;
    } else {
        // Another writer gave them entries of another form: for a moment there is none of the two.
        remove_fat(&root, MANIFEST)?;
        root.rename(STAGING, &root, MANIFEST).with_context(context)?;
    }
    drop(root);
    close(fs, path)
}

/// The file system at `place` as bytes.
fn writing(path: &Path, place: Place) -> Result<Slice, Failure> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(|| format!("failed to open `{}`", path.display()))?;
    Ok(Slice::writing(file, place.start, place.length))
}

/// Leaves holes where a piece holds nothing but zeros: images of disks stay as small as they were.
fn write_sparse(file: &mut File, piece: &[u8]) -> std::io::Result<()> {
    for block in piece.chunks(64 << 10) {
        if block.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(block.len() as i64))?;
        } else {
            file.write_all(block)?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(anyhow!(error)
            .context(format!("failed to remove `{}`", path.display()))
            .into()),
        _ => Ok(()),
    }
}

/// Removes what an earlier pack left among the blobs.
fn clear_folder(blobs: &Path, content: &Content<'_>) -> Result<(), Failure> {
    let wanted: Vec<_> = content.blobs.keys().map(blob_path).collect();
    for name in Media::Folder(blobs.to_owned()).listing()? {
        if !wanted.contains(&format!("blobs/{name}")) {
            remove_if_there(&blobs.join(name))?;
        }
    }
    Ok(())
}

fn write_fat(path: &Path, place: Place, content: &Content<'_>, bar: &ProgressBar) -> Result<(), Failure> {
    let context = || format!("failed to write to `{}`", path.display());
    if let Some((digest, _)) = content.blobs.iter().find(|(_, size)| **size > FAT_FILE) {
        invalid!(
            "blob `{digest}` is larger than a file on FAT can be (4 GiB): put the pack into a folder, or make the image smaller"
        );
    }
    // What is left of a replacement that power cut short shares its content with the manifest.
    exchange::part(&mut writing(path, place)?, MANIFEST, STAGING).with_context(context)?;
    make_folders(path, place).with_context(context)?;
    let fs = disk::open(path, place, true)?;
    fill_fat(&fs, content, bar).map_err(|failure| match failure {
        Failure::Failed(error) => Failure::Failed(error.context(context())),
        other => other,
    })?;
    close(fs, path)
}

/// Everything is on the medium after this.
fn close(fs: Fat, path: &Path) -> Result<(), Failure> {
    let context = || format!("failed to write to `{}`", path.display());
    fs.unmount().with_context(context)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(context)?;
    file.sync_all().with_context(context)?;
    // What is read back shall come from the medium, not from memory.
    nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .with_context(context)?;
    Ok(())
}

/// Makes `blobs/sha256`, for itself: while a file system is open, nobody else writes to it.
fn make_folders(path: &Path, place: Place) -> anyhow::Result<()> {
    let fs = disk::open(path, place, true).map_err(|failure| anyhow!("{failure}"))?;
    fs.root_dir().create_dir("blobs")?.create_dir("sha256")?;
    fs.unmount()?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(dots::order_pack_folders(&mut Slice::writing(
        file,
        place.start,
        place.length,
    ))?)
}

/// Refuses a pack that does not fit, while the old one is still there. What the old one occupies counts as free.
fn check_room(fs: &Fat, root: &fatfs::Dir<'_, Slice>, content: &Content<'_>) -> Result<(), Failure> {
    let stats = fs.stats().context("failed to read the free space")?;
    let cluster = u64::from(stats.cluster_size());
    let clusters = |size: u64| size.div_ceil(cluster);
    let mut free = u64::from(stats.free_clusters());
    for name in media_listing(root)?
        .iter()
        .map(String::as_str)
        .chain(["joinpack.json"])
    {
        let length = root
            .open_file(name)
            .and_then(|mut file| file.seek(SeekFrom::End(0)));
        free = free.saturating_add(length.map_or(0, clusters));
    }
    // Each file, and 64 clusters for folders that grow.
    let sizes = content
        .blobs
        .values()
        .copied()
        .chain([content.joinpack.len() as u64]);
    let needed = sizes.map(clusters).fold(64, u64::saturating_add);
    if needed > free {
        let (needed, free) = (
            disk::in_words(needed.saturating_mul(cluster)),
            disk::in_words(free.saturating_mul(cluster)),
        );
        invalid!("the pack needs {needed}, the stick has {free} for it: use a larger one");
    }
    Ok(())
}

fn fill_fat(fs: &Fat, content: &Content<'_>, bar: &ProgressBar) -> Result<(), Failure> {
    let root = fs.root_dir();
    check_room(fs, &root, content)?;
    remove_fat(&root, "joinpack.json")?;
    let blobs = root
        .open_dir("blobs")
        .and_then(|dir| dir.open_dir("sha256"))
        .context("failed to open `blobs/sha256`")?;
    // Everything goes: a blob of an earlier pack that is wanted again is written again, and so checked.
    for name in media_listing(&root)? {
        remove_fat(&root, &name)?;
    }
    for (digest, size) in &content.blobs {
        let mut file = blobs
            .create_file(&digest.hex())
            .with_context(|| format!("failed to create blob `{digest}`"))?;
        let mut reader = (content.open)(digest)?;
        media::stream(&mut *reader, *digest, *size, &mut |piece| {
            bar.inc(piece.len() as u64);
            Ok(file
                .write_all(piece)
                .with_context(|| format!("failed to write blob `{digest}`"))?)
        })?;
        file.flush()
            .with_context(|| format!("failed to write blob `{digest}`"))?;
    }
    let write = || {
        let mut file = root.create_file("joinpack.json")?;
        file.write_all(&content.joinpack)?;
        file.flush()
    };
    bar.inc(content.joinpack.len() as u64);
    Ok(write().context("failed to write `joinpack.json`")?)
}

fn media_listing(root: &fatfs::Dir<'_, Slice>) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    media::list_fat(root, "", 0, &mut names).context("failed to list the stick")?;
    names.retain(|name| name.starts_with("blobs/"));
    Ok(names)
}

fn remove_fat(root: &fatfs::Dir<'_, Slice>, name: &str) -> Result<(), Failure> {
    match root.remove(name) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(anyhow!(error)
            .context(format!("failed to remove `{name}`"))
            .into()),
        _ => Ok(()),
    }
}
