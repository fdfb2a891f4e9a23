//! Brings up the node key: opens the TPM, unseals, and says on the console what cannot be done.

use crate::journal::Journal;
use anyhow::{Context, Result};
pub use beemesh_agent_identity::NodeKey;
use beemesh_agent_identity::rotation::Leftover;
use beemesh_agent_identity::{KeyError, NewKey};
use beemesh_ids::PeerId;
use beemesh_joinpack_format::Timestamp;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::task::JoinHandle;

/// A volume that is not decided on after this time is most likely being made: this is a first boot.
const EARLY: Duration = Duration::from_millis(250);
/// Between two looks for the TPM's driver.
const PAUSE: Duration = Duration::from_millis(50);

type Early = JoinHandle<Result<NewKey, KeyError>>;

/// The node key as it is now: a rotation replaces it. Cheap to clone; all clones share one key.
#[derive(Clone)]
pub struct KeyRing(Arc<RwLock<Arc<NodeKey>>>);

impl KeyRing {
    /// A ring with this key.
    pub fn new(key: NodeKey) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(key))))
    }

    /// The present key.
    pub fn now(&self) -> Arc<NodeKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Goes on with another key, which the membership on the disk names.
    pub fn replace(&self, key: Arc<NodeKey>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

/// Waits for `volume` and makes a key meanwhile, if that takes long enough. Sealing it is a good part of the start of
/// a first boot.
pub async fn make_during(volume: impl Future<Output = ()>) -> Option<Early> {
    let mut volume = std::pin::pin!(volume);
    let mut pause = EARLY;
    loop {
        tokio::select! {
            () = &mut volume => return None,
            () = tokio::time::sleep(pause) => pause = PAUSE,
        }
        if Path::new(beemesh_firmware_tpm::DEVICE).exists() {
            let early = tokio::task::spawn_blocking(|| NewKey::make(beemesh_firmware_tpm::open().as_ref()));
            volume.await;
            return Some(early);
        }
    }
}

/// Loads the node key, or keeps the early one or makes one on the first boot; and tells what an interrupted rotation has left.
/// `named` is the key that the membership names after a rotation. A key that belongs to another machine's
/// TPM is an error: it is never replaced silently, because the box would come back as a stranger.
pub async fn load(
    folder: &Path,
    named: Option<PeerId>,
    early: Option<Early>,
    journal: &Journal,
) -> Result<(KeyRing, Leftover)> {
    let folder = folder.to_owned();
    let handle = tokio::runtime::Handle::current();
    let loaded = tokio::task::spawn_blocking(move || {
        let tpm = beemesh_firmware_tpm::open();
        // An early key that failed is tried again: whatever is wrong with the TPM is said then.
        let early = || early.and_then(|early| handle.block_on(early).ok()?.ok());
        NodeKey::load_named(&folder, tpm.as_ref(), named.as_ref(), || {
            early().map_or_else(|| NewKey::make(tpm.as_ref()), Ok)
        })
    });
    match loaded.await.context("the key task ended")? {
        Ok((key, leftover)) => {
            if key.assurance() == beemesh_joinpack_format::Assurance::Low {
                let message = "this machine has no TPM: its key lies in a file (assurance: low)";
                journal.announce("AssuranceLow", "node/self", message);
            }
            Ok((KeyRing::new(key), leftover))
        }
        Err(error) => {
            let words = crate::words(&error);
            journal.announce("KeyUnusable", "node/self", &words);
            Err(anyhow::Error::new(error).context("failed to load the node key"))
        }
    }
}

/// When the image was made: the modification time of `/usr/lib/clock-epoch`, as in systemd; the epoch without it.
pub fn built() -> Timestamp {
    let modified = std::fs::metadata("/usr/lib/clock-epoch")
        .and_then(|file| file.modified())
        .ok();
    let since = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    Timestamp(
        since
            .and_then(|since| i64::try_from(since.as_secs()).ok())
            .unwrap_or(0),
    )
}

/// Version of the OS (`VERSION_ID` in os-release); this crate's version where there is none.
pub fn version() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    match os_release(&text, "ID").as_deref() {
        Some("beemesh") => os_release(&text, "VERSION_ID"),
        _ => None,
    }
    .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
}

fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_values_are_read_with_and_without_quotes() {
        let text = "ID=beemesh\nVERSION_ID=\"0.1.0\"\n";
        assert_eq!(os_release(text, "VERSION_ID").as_deref(), Some("0.1.0"));
        assert_eq!(os_release(text, "ID").as_deref(), Some("beemesh"));
        assert_eq!(os_release(text, "VERSION"), None);
    }
}
