//! The images of this node: staged archives of a stick, archives that operators send, and what is listed.
//!
//! Importing runs on blocking threads, one image at a time; a box is a member before its images are unpacked.

use crate::journal::Journal;
use crate::store::{Store, StoreError};
use beemesh_agent_api::view::ImageView;
use beemesh_agent_runtime::{ImageError, ImageStore};
use beemesh_ids::Digest;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Document: which archive of a join pack became which image.
const ARCHIVES: &str = "archives.json";

/// Cheap to clone.
#[derive(Clone)]
pub struct Images {
    store: Arc<ImageStore>,
    documents: Store,
    journal: Journal,
}

impl Images {
    /// Over an open image store.
    pub fn new(store: Arc<ImageStore>, documents: Store, journal: Journal) -> Self {
        Self {
            store,
            documents,
            journal,
        }
    }

    /// All images, one entry for each name.
    pub fn list(&self) -> Vec<ImageView> {
        let named = self.store.list().into_iter().flat_map(|entry| {
            let (digest, size) = (*entry.id.digest(), entry.size);
            entry
                .names
                .into_iter()
                .map(move |name| ImageView { name, digest, size })
        });
        named.collect()
    }

    /// Imports an archive under a name, or under the name that it carries. Blocks.
    pub fn import(&self, archive: impl Read, name: Option<&str>) -> Result<Vec<ImageView>, ImageError> {
        let id = self.store.import_archive(archive, name)?;
        Ok(self
            .list()
            .into_iter()
            .filter(|image| image.digest == *id.digest())
            .collect())
    }

    /// Whether the archive of a pack was imported under this name and still is.
    pub fn has_archive(&self, name: &str, archive: &Digest) -> bool {
        let known: BTreeMap<String, Digest> =
            self.documents.load(ARCHIVES).ok().flatten().unwrap_or_default();
        known.get(name) == Some(archive) && self.store.resolve(name).is_ok()
    }

    /// Imports staged archives one after the other and removes each when it is done. What fails is announced, the
    /// others go on. Blocks.
    pub fn import_staged(&self, staging: &Path, images: &[(String, Digest)]) {
        for (name, digest) in images {
            let path = staging.join(digest.hex());
            let imported = File::open(&path).map_err(|source| ImageError::Io {
                what: "open",
                path: path.clone(),
                source,
            });
            let imported = imported.and_then(|archive| self.store.import_archive(archive, Some(name)));
            let object = format!("image/{name}");
            match imported {
                Ok(_) => {
                    self.remember(name, *digest);
                    self.journal
                        .announce("ImageImported", &object, &format!("image {name} is ready"));
                }
                Err(error) => {
                    let message = format!("image {name} was refused: {}", crate::words(&error));
                    self.journal.announce("ImageRefused", &object, &message);
                }
            }
            remove(&path);
        }
        let _ = std::fs::remove_dir(staging);
    }

    fn remember(&self, name: &str, digest: Digest) {
        let known: Result<Option<BTreeMap<String, Digest>>, StoreError> = self.documents.load(ARCHIVES);
        let mut known = known.ok().flatten().unwrap_or_default();
        known.insert(name.to_owned(), digest);
        if let Err(error) = self.documents.save(ARCHIVES, &known) {
            // Harmless: the next stick brings the image again.
            tracing::warn!(error = crate::words(&error), "failed to remember an archive");
        }
    }
}

fn remove(path: &PathBuf) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "failed to remove a staged image");
    }
}
