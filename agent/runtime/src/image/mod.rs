//! The content-addressed image store: import, names, unpacked layers, removal.
//!
//! It mounts nothing and fetches nothing over a network. Invariants: a blob or a layer in its place is complete and
//! verified (written aside, made durable, renamed); the index names only images whose blobs and layers are in place; one
//! import or removal at a time.
//!
//! On disk: `index.json`, `blobs/sha256/<hex>`, `layers/<diff id hex>/`, `tmp/` (emptied when the store is opened).

mod document;
mod refusal;
mod source;

pub(crate) use document::Packing;
pub use document::{Limits, normal_name};
pub use refusal::{ImageError, ImageRefusal};
pub(crate) use refusal::{as_io, failed, shown};

use crate::layer::{self, Budget};
use beemesh_ids::Digest;
use document::{BlobRef, LayerRef, NESTING};
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use source::{Source, read_bounded};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An image: the digest of its manifest for this platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(Digest);

impl ImageId {
    /// The manifest's digest.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = beemesh_ids::InvalidId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// An image as the store lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageEntry {
    /// Which image.
    pub id: ImageId,
    /// Its names, sorted.
    pub names: Vec<String>,
    /// Bytes of its layers as they were imported.
    pub size: u64,
    /// Number of layers.
    pub layers: usize,
}

/// An image, ready to be mounted.
#[derive(Debug, Clone)]
pub struct Image {
    /// Which image.
    pub id: ImageId,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// Its unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
}

impl Image {
    /// A folder of the system as an image of one layer, without a configuration.
    pub(crate) fn of_folder(folder: PathBuf) -> Self {
        Self {
            id: ImageId(Digest::of(folder.as_os_str().as_encoded_bytes())),
            config: ImageConfiguration::default(),
            layers: vec![folder],
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct LayerRecord {
    blob: Digest,
    diff_id: Digest,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    config: Digest,
    layers: Vec<LayerRecord>,
    size: u64,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Index {
    names: BTreeMap<String, ImageId>,
    images: BTreeMap<ImageId, Record>,
}

/// The store. Its methods block: call them from a thread that may.
pub struct ImageStore {
    root: PathBuf,
    limits: Limits,
    index: Mutex<Index>,
    /// Held by who changes the store; who looks needs not wait for an import.
    writing: Mutex<()>,
}

impl ImageStore {
    /// Opens the store at `root`, making it where it is missing and clearing what an interrupted import left.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, ImageError> {
        let tmp = root.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(failed("clear", &tmp)(err)),
            _ => {}
        }
        for dir in [root.join("blobs/sha256"), root.join("layers"), tmp] {
            fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        }
        Self::open_read_only(root, limits)
    }

    /// Opens the store as it is: what is in it can be looked at, and nothing is made or cleared.
    pub fn open_read_only(root: &Path, limits: Limits) -> Result<Self, ImageError> {
        let path = root.join("index.json");
        let index = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|err| {
                failed("understand", &path)(io::Error::new(io::ErrorKind::InvalidData, err))
            })?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Index::default(),
            Err(err) => return Err(failed("read", &path)(err)),
        };
        Ok(Self {
            root: root.into(),
            limits,
            index: Mutex::new(index),
            writing: Mutex::default(),
        })
    }

    /// Imports from an OCI archive (an uncompressed tar of a layout), read once front to back.
    ///
    /// `name` is the name to store it under; where it is `None`, the layout's own annotation is used.
    pub fn import_archive(&self, input: impl Read, name: Option<&str>) -> Result<ImageId, ImageError> {
        let writing = self.write();
        let staging = self.staging()?;
        let result = Source::archive(input, &staging, &self.limits)
            .and_then(|source| self.import(&writing, &source, name, &staging));
        let _ = fs::remove_dir_all(&staging);
        if result.is_err() {
            // What was kept for it before it failed would fill the disk for good.
            let _ = self.sweep_unreferenced();
        }
        result
    }

    /// Imports from an OCI layout directory. `name`: see [`Self::import_archive`].
    pub fn import_layout(&self, layout: &Path, name: Option<&str>) -> Result<ImageId, ImageError> {
        let writing = self.write();
        let staging = self.staging()?;
        let result = Source::layout(layout, &self.limits)
            .and_then(|source| self.import(&writing, &source, name, &staging));
        let _ = fs::remove_dir_all(&staging);
        if result.is_err() {
            // What was kept for it before it failed would fill the disk for good.
            let _ = self.sweep_unreferenced();
        }
        result
    }

    /// The image that a name (`nginx`, `nginx:1.22`) or a digest (`sha256:…`) means.
    pub fn resolve(&self, reference: &str) -> Result<ImageId, ImageError> {
        let missing = || ImageError::NotFound {
            reference: reference.chars().take(255).collect(),
        };
        let index = self.lock();
        if reference.starts_with("sha256:") {
            let id: ImageId = reference.parse().map_err(|_| missing())?;
            return if index.images.contains_key(&id) {
                Ok(id)
            } else {
                Err(missing())
            };
        }
        index
            .names
            .get(&normal_name(reference)?)
            .copied()
            .ok_or_else(missing)
    }

    /// Everything needed to mount an image.
    pub fn load(&self, id: &ImageId) -> Result<Image, ImageError> {
        let record = self
            .lock()
            .images
            .get(id)
            .cloned()
            .ok_or_else(|| ImageError::NotFound {
                reference: id.to_string(),
            })?;
        let path = self.blob_path(&record.config);
        let mut file = File::open(&path).map_err(failed("open", &path))?;
        let bytes = read_bounded(&mut file, self.limits.document, "the image configuration")?;
        let (config, _) = document::parse_config(&bytes, record.layers.len())?;
        let layers = record
            .layers
            .iter()
            .map(|layer| self.layer_path(&layer.diff_id))
            .collect();
        Ok(Image {
            id: *id,
            config,
            layers,
        })
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<ImageEntry> {
        let index = self.lock();
        let names = |id: &ImageId| {
            index
                .names
                .iter()
                .filter(|(_, named)| *named == id)
                .map(|(name, _)| name.clone())
                .collect()
        };
        let entry = |(id, record): (&ImageId, &Record)| ImageEntry {
            id: *id,
            names: names(id),
            size: record.size,
            layers: record.layers.len(),
        };
        index.images.iter().map(entry).collect()
    }

    /// Takes a name away, or an image with all its names where `reference` is a digest. What is then unreferenced stays
    /// on disk until [`Self::gc`].
    pub fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let writing = self.write();
        let id = self.resolve(reference)?;
        let name = match reference.starts_with("sha256:") {
            true => None,
            false => Some(normal_name(reference)?),
        };
        self.change(&writing, |index| match name {
            None => index.names.retain(|_, named| *named != id),
            Some(name) => drop(index.names.remove(&name)),
        })
    }

    /// Forgets images that have no name and are not in `keep` (those that pods run), and deletes blobs and layers that no
    /// image refers to. Gives the number of files and directories deleted.
    pub fn gc(&self, keep: &BTreeSet<ImageId>) -> Result<usize, ImageError> {
        let writing = self.write();
        // First the index: a crash after it leaves files that the next collection finds.
        self.change(&writing, |index| {
            let named: BTreeSet<ImageId> = index.names.values().copied().collect();
            index
                .images
                .retain(|id, _| named.contains(id) || keep.contains(id));
        })?;
        self.sweep_unreferenced()
    }

    /// Deletes blobs and layers that no image refers to, while nobody imports.
    fn sweep_unreferenced(&self) -> Result<usize, ImageError> {
        let index = self.lock().clone();
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for (id, record) in &index.images {
            blobs.extend([id.0.hex(), record.config.hex()]);
            blobs.extend(record.layers.iter().map(|layer| layer.blob.hex()));
            layers.extend(record.layers.iter().map(|layer| layer.diff_id.hex()));
        }
        let blobs = sweep(&self.root.join("blobs/sha256"), &blobs)?;
        let layers = sweep(&self.root.join("layers"), &layers)?;
        Ok(blobs + layers)
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // The index is replaced as a whole, so a panic elsewhere cannot have left it half changed.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Saves a changed index, then puts it in the place of the present one.
    fn change(&self, _writing: &MutexGuard<'_, ()>, edit: impl FnOnce(&mut Index)) -> Result<(), ImageError> {
        let mut next = self.lock().clone();
        edit(&mut next);
        self.save(&next)?;
        *self.lock() = next;
        Ok(())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }

    fn staging(&self) -> Result<PathBuf, ImageError> {
        let dir = self.root.join("tmp/import");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        Ok(dir)
    }

    fn import(
        &self,
        writing: &MutexGuard<'_, ()>,
        source: &Source,
        name: Option<&str>,
        staging: &Path,
    ) -> Result<ImageId, ImageError> {
        let top = document::parse_index(source.index())?;
        let chosen = document::choose(&top, name)?;
        let name = normal_name(name.or(document::name_of(chosen)).ok_or(ImageRefusal::Nameless)?)?;
        let mut descriptor = chosen.clone();
        let mut depth = 0;
        while document::is_index(&descriptor) {
            depth += 1;
            if depth > NESTING {
                let what = "the nesting of image indexes".into();
                return Err(ImageRefusal::TooLarge {
                    what,
                    limit: NESTING as u64,
                }
                .into());
            }
            let inner =
                document::parse_index(&self.document(source, &document::blob_of(&descriptor)?, staging)?)?;
            descriptor = document::choose(&inner, None)?.clone();
        }
        let manifest = document::blob_of(&descriptor)?;
        let (config, layers) =
            document::parse_manifest(&self.document(source, &manifest, staging)?, &self.limits)?;
        let (_, diff_ids) = document::parse_config(&self.document(source, &config, staging)?, layers.len())?;

        let mut budget = Budget {
            bytes: self.limits.unpacked,
            files: self.limits.files,
        };
        for (layer, diff_id) in layers.iter().zip(&diff_ids) {
            self.keep_layer(source, layer, diff_id, staging, &mut budget)?;
        }
        for blob in [&manifest, &config] {
            self.keep_blob(source, blob, staging)?;
        }
        for dir in ["blobs/sha256", "layers"] {
            sync_dir(&self.root.join(dir))?;
        }
        let id = ImageId(manifest.digest);
        let size = layers.iter().map(|layer| layer.blob.size).sum();
        let layers = layers
            .iter()
            .zip(diff_ids)
            .map(|(layer, diff_id)| LayerRecord {
                blob: layer.blob.digest,
                diff_id,
            })
            .collect();
        let record = Record {
            config: config.digest,
            layers,
            size,
        };
        self.change(writing, |index| {
            index.images.insert(id, record);
            index.names.insert(name, id);
        })?;
        Ok(id)
    }

    fn document(&self, source: &Source, blob: &BlobRef, staging: &Path) -> Result<Vec<u8>, ImageError> {
        if blob.size > self.limits.document {
            let what = format!("blob `{}`", blob.digest);
            return Err(ImageRefusal::TooLarge {
                what,
                limit: self.limits.document,
            }
            .into());
        }
        let path = staging.join("document");
        let _ = fs::remove_file(&path);
        source.obtain(blob, &path)?;
        fs::read(&path).map_err(failed("read", &path))
    }

    fn keep_blob(&self, source: &Source, blob: &BlobRef, staging: &Path) -> Result<PathBuf, ImageError> {
        let place = self.blob_path(&blob.digest);
        if !place.exists() {
            let fresh = staging.join("blob");
            let _ = fs::remove_file(&fresh);
            source.obtain(blob, &fresh)?;
            fs::rename(&fresh, &place).map_err(failed("rename", &fresh))?;
        }
        Ok(place)
    }

    fn keep_layer(
        &self,
        source: &Source,
        layer: &LayerRef,
        diff_id: &Digest,
        staging: &Path,
        budget: &mut Budget,
    ) -> Result<(), ImageError> {
        let place = self.layer_path(diff_id);
        let blob = self.keep_blob(source, &layer.blob, staging)?;
        if place.exists() {
            return Ok(());
        }
        let fresh = staging.join("layer");
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir(&fresh).map_err(failed("create", &fresh))?;
        let unpacked = layer::unpack(&blob, layer.packing, &fresh, budget).and_then(|found| {
            if found == *diff_id {
                Ok(())
            } else {
                let blob = layer.blob.digest;
                Err(ImageRefusal::WrongDiffId {
                    blob,
                    expected: *diff_id,
                    found,
                }
                .into())
            }
        });
        if let Err(err) = unpacked {
            let _ = fs::remove_dir_all(&fresh);
            return Err(err);
        }
        // One flush for the whole tree instead of one per file.
        let dir = File::open(&fresh).map_err(failed("open", &fresh))?;
        nix::unistd::syncfs(&dir).map_err(|err| failed("flush", &fresh)(err.into()))?;
        fs::rename(&fresh, &place).map_err(failed("rename", &fresh))
    }

    fn save(&self, index: &Index) -> Result<(), ImageError> {
        let path = self.root.join("index.json");
        let bytes = serde_json::to_vec(index).map_err(|err| failed("write", &path)(err.into()))?;
        write_durably(&path, &bytes).map_err(failed("write", &path))
    }
}

/// Replaces a small file as a whole: written aside, flushed, renamed, the directory flushed.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn sync_dir(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("flush", path))
}

/// Deletes what is in `dir` and not in `keep`.
fn sweep(dir: &Path, keep: &BTreeSet<String>) -> Result<usize, ImageError> {
    let mut deleted = 0;
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let entry = entry.map_err(failed("list", dir))?;
        if entry.file_name().to_str().is_some_and(|name| keep.contains(name)) {
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(failed("look at", &path))?;
        let gone = if kind.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        gone.map_err(failed("delete", &path))?;
        deleted += 1;
    }
    Ok(deleted)
}
