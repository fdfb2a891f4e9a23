//! Brings up the node key: opens the TPM, unseals, and says on the console what cannot be done.

use crate::journal::Journal;
use anyhow::{Context, Result};
pub use beemesh_agent_identity::NodeKey;
use beemesh_joinpack_format::Timestamp;
use std::path::Path;
use std::sync::Arc;

/// Loads the node key, or makes one on the first boot. A key that belongs to another machine's TPM is an error: it is
/// never replaced silently, because the box would come back as a stranger.
pub async fn load(folder: &Path, journal: &Journal) -> Result<Arc<NodeKey>> {
    let folder = folder.to_owned();
    let loaded = tokio::task::spawn_blocking(move || {
        let tpm = beemesh_firmware_tpm::open();
        NodeKey::load_or_create(&folder, tpm.as_ref())
    });
    match loaded.await.context("the key task ended")? {
        Ok(key) => {
            if key.assurance() == beemesh_joinpack_format::Assurance::Low {
                let message = "this machine has no TPM: its key lies in a file (assurance: low)";
                journal.announce("AssuranceLow", "node/self", message);
            }
            Ok(Arc::new(key))
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
