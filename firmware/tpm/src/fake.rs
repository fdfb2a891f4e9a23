//! A TPM for tests: remembers nothing, hides nothing, and refuses what a real one refuses.

use crate::{Kind, MAX_MEMORY, Tpm, TpmError, Zeroizing, blob, blob::Blob, check_secret, memory};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Behaves as a [`Kind::Device`] with a chip number in place of a seed and a counter in place of PCR 7. Two values with
/// the same chip number seal alike, so a test can drop one and make it again to play a reboot; what the chip keeps in its own
/// storage survives in [`FakeTpm::rebooted`] alone.
#[derive(Debug, Default)]
pub struct FakeTpm {
    chip: u64,
    state: AtomicU64,
    memory: Arc<Mutex<Memory>>,
}

/// The chip's storage.
#[derive(Debug, Default)]
struct Memory {
    /// The framed bytes, with the state that they are bound to.
    area: Option<(u64, Vec<u8>)>,
    writes: u64,
    full: bool,
}

impl FakeTpm {
    /// The chip with this number, in its first firmware state.
    pub fn new(chip: u64) -> Self {
        Self {
            chip,
            state: AtomicU64::new(0),
            memory: Arc::default(),
        }
    }

    /// The same chip after a reboot, with the same settings.
    pub fn rebooted(&self) -> Self {
        Self {
            chip: self.chip,
            state: AtomicU64::new(self.state.load(Ordering::Relaxed)),
            memory: Arc::clone(&self.memory),
        }
    }

    /// Flips a bit of what the chip keeps, as a write that was cut short would.
    pub fn tear_memory(&self) {
        if let Some(byte) = self.memory().area.as_mut().and_then(|(_, area)| area.last_mut()) {
            *byte ^= 1;
        }
    }

    /// From now on there is room for nothing more.
    pub fn fill_memory(&self) {
        self.memory().full = true;
    }

    /// How often the storage was written: it wears out.
    pub fn memory_writes(&self) -> u64 {
        self.memory().writes
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_state(&self, memory: &Memory) -> Result<(), TpmError> {
        match &memory.area {
            Some((state, _)) if *state != self.state.load(Ordering::Relaxed) => Err(TpmError::StateChanged),
            _ => Ok(()),
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

    fn recall(&self) -> Result<Option<Vec<u8>>, TpmError> {
        let memory = self.memory();
        self.check_state(&memory)?;
        memory
            .area
            .as_ref()
            .map(|(_, area)| memory::unframe(area))
            .transpose()
    }

    fn remember(&self, bytes: &[u8]) -> Result<(), TpmError> {
        let mut memory = self.memory();
        self.check_state(&memory)?;
        let area = memory::frame(bytes)?;
        if memory.full && memory.area.is_none() {
            return Err(TpmError::MemoryFull { bytes: MAX_MEMORY });
        }
        memory.area = Some((self.state.load(Ordering::Relaxed), area));
        memory.writes += 1;
        Ok(())
    }

    fn forget(&self) -> Result<(), TpmError> {
        self.memory().area = None;
        Ok(())
    }
}
