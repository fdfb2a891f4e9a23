//! A TPM for tests: remembers nothing, hides nothing, and refuses what a real one refuses.

use crate::{Kind, Tpm, TpmError, Zeroizing, blob, blob::Blob, check_secret};
use std::sync::atomic::{AtomicU64, Ordering};

/// Behaves as a [`Kind::Device`] with a chip number in place of a seed and a counter in place of PCR 7. Two values with
/// the same chip number are the same chip, so a test can drop one and make it again to play a reboot.
#[derive(Debug, Default)]
pub struct FakeTpm {
    chip: u64,
    state: AtomicU64,
}

impl FakeTpm {
    /// The chip with this number, in its first firmware state.
    pub fn new(chip: u64) -> Self {
        Self {
            chip,
            state: AtomicU64::new(0),
        }
    }

    /// As when someone changes the Secure Boot settings: what was sealed before is refused.
    pub fn change_state(&self) {
        self.state.fetch_add(1, Ordering::Relaxed);
    }
}

impl Tpm for FakeTpm {
    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn seal(&self, secret: &[u8]) -> Result<Vec<u8>, TpmError> {
        check_secret(secret)?;
        let state = self.state.load(Ordering::Relaxed);
        Blob::Fake {
            version: Blob::VERSION,
            chip: self.chip,
            state,
            secret: blob::encode(secret),
        }
        .to_bytes()
    }

    fn unseal(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        match Blob::parse(bytes)? {
            Blob::Fake { chip, .. } if chip != self.chip => Err(TpmError::Foreign),
            Blob::Fake { state, .. } if state != self.state.load(Ordering::Relaxed) => {
                Err(TpmError::StateChanged)
            }
            Blob::Fake { secret, .. } => Ok(Zeroizing::new(blob::decode(&secret)?)),
            other => Err(TpmError::OtherKind {
                sealed_by: other.sealed_by(),
                present: "tpm",
            }),
        }
    }
}
