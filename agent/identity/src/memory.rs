//! What a box without a disk must know again after a power cut, to take its own place in its fabric: a record that its TPM keeps
//! (`firmware/tpm`, [`Tpm::remember`]).
//!
//! The node key lies in it sealed, as it would in its file. Voucher and time make the same redemption again, bit for bit, of the
//! join pack on the stick; serial and floor refuse an older pack. Decides nothing, and holds no rotation: a box that keeps such a
//! record keeps its key. Invariant: what is written can be read, and fits.
//!
//! [`Tpm::remember`]: beemesh_firmware_tpm::Tpm::remember

use crate::{KeyError, NewKey, SealedKey};
use beemesh_firmware_tpm::{Tpm, TpmError};
use beemesh_ids::FabricId;
use beemesh_joinpack_format::{Member, Timestamp};
use serde::{Deserialize, Serialize};

/// The record. Its form is JSON, without spaces; a field that it does not know makes it none of this software's.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The node key, sealed to the TPM.
    pub key: SealedKey,
    /// The fabric that the box belongs to.
    pub fabric: FabricId,
    /// Serial of the newest pack that was applied.
    pub serial: String,
    /// Id of the voucher that the box redeemed.
    pub voucher: String,
    /// When it did, by its time floor: the same time makes the same redemption.
    pub redeemed: Timestamp,
    /// The time floor, as packs and root documents vouch for it.
    pub floor: Timestamp,
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// It keeps something that is not such a record.
    #[error("what the tpm has kept is no record of this software")]
    Form(#[source] serde_json::Error),
    /// The key in it cannot be opened.
    #[error("the node key that it kept is damaged, or of another tpm")]
    Key(#[source] KeyError),
}

impl MemoryError {
    /// Whether the record is of no use to anybody any more, so that another may take its place. One that a change of the firmware's
    /// settings brings back stays.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Tpm(error) => matches!(error, TpmError::MemoryDamaged),
            Self::Form(_) => true,
            Self::Key(error) => matches!(error, KeyError::ForeignTpm { .. } | KeyError::Damaged { .. }),
        }
    }
}

impl Memory {
    /// The record of a member. `key` is its first and only one.
    pub fn of(key: SealedKey, member: &Member, serial: &str, floor: Timestamp) -> Self {
        Self {
            key,
            fabric: member.fabric.clone(),
            serial: serial.to_owned(),
            voucher: member.voucher_id.clone(),
            redeemed: member.redeemed,
            floor,
        }
    }

    /// What `tpm` keeps, and the key in it; `None` where it keeps nothing.
    ///
    /// # Errors
    /// [`MemoryError`]; nothing was changed.
    pub fn recall(tpm: &dyn Tpm) -> Result<Option<(Self, NewKey)>, MemoryError> {
        let Some(bytes) = tpm.recall()? else {
            return Ok(None);
        };
        let memory: Self = serde_json::from_slice(&bytes).map_err(MemoryError::Form)?;
        let key = NewKey::restore(memory.key.clone(), tpm).map_err(MemoryError::Key)?;
        Ok(Some((memory, key)))
    }

    /// Has `tpm` keep it, in place of what it keeps.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn keep(&self, tpm: &dyn Tpm) -> Result<(), MemoryError> {
        let bytes = serde_json::to_vec(self).map_err(MemoryError::Form)?;
        Ok(tpm.remember(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeKey;
    use beemesh_firmware_tpm::{DeviceTpm, FakeTpm, MAX_MEMORY, SoftwareTpm, swtpm::Swtpm};
    use beemesh_ids::Digest;
    use proptest::prelude::*;

    /// A record of a key that `tpm` sealed. All fields but the key are as long as they ever are.
    fn memory(tpm: &dyn Tpm) -> (NodeKey, Memory) {
        let folder = tempfile::tempdir().unwrap();
        let key = NodeKey::load_or_create(folder.path(), tpm).unwrap();
        let sealed = NodeKey::sealed(folder.path()).unwrap().unwrap();
        let memory = Memory {
            key: sealed,
            fabric: FabricId::from_root(Digest::of(b"root")),
            serial: "01KDVKFD00000000000000000A".to_owned(),
            voucher: "01KDVKFD00000000000000000B".to_owned(),
            redeemed: Timestamp(1_767_323_045),
            floor: Timestamp(1_767_323_045),
        };
        (key, memory)
    }

    #[test]
    fn box_that_keeps_it_in_its_tpm_has_the_same_key_after_a_reboot_and_another_tpm_has_none() {
        let tpm = FakeTpm::new(1);
        let (key, memory) = memory(&tpm);
        assert!(Memory::recall(&tpm).unwrap().is_none());
        memory.keep(&tpm).unwrap();
        let tpm = tpm.rebooted();
        let (recalled, new) = Memory::recall(&tpm).unwrap().unwrap();
        assert!(recalled == memory);
        let empty = tempfile::tempdir().unwrap();
        let again = NodeKey::load_or_keep(empty.path(), &tpm, || Ok(new)).unwrap();
        assert_eq!(
            (again.peer_id(), again.assurance()),
            (key.peer_id(), key.assurance())
        );
        assert!(NodeKey::sealed(empty.path()).unwrap().unwrap() == memory.key);
        // Whoever reads the bytes and puts them into another TPM.
        let thief = FakeTpm::new(2);
        thief.remember(&tpm.recall().unwrap().unwrap()).unwrap();
        let stolen = Memory::recall(&thief).map(drop).unwrap_err();
        assert!(
            matches!(stolen, MemoryError::Key(KeyError::ForeignTpm { .. })) && stolen.is_final(),
            "{stolen:?}"
        );
    }

    #[test]
    fn record_fits_into_a_real_tpm_with_room_to_spare() {
        let state = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(state.path());
        let tpm = DeviceTpm::with_tcti(swtpm.tcti());
        let (key, memory) = memory(&tpm);
        memory.keep(&tpm).unwrap();
        // Room for a sealed object that is 80 bytes longer than this one's: 144 in base64 twice over.
        let length = serde_json::to_vec(&memory).unwrap().len();
        assert!(length + 144 <= MAX_MEMORY, "{length} bytes");
        let (_, new) = Memory::recall(&tpm).unwrap().unwrap();
        let empty = tempfile::tempdir().unwrap();
        let again = NodeKey::load_or_keep(empty.path(), &tpm, || Ok(new)).unwrap();
        assert_eq!(again.peer_id(), key.peer_id());
    }

    #[test]
    fn key_that_no_tpm_sealed_is_never_given_out_for_keeping() {
        let folder = tempfile::tempdir().unwrap();
        NodeKey::load_or_create(folder.path(), &SoftwareTpm).unwrap();
        assert!(NodeKey::sealed(folder.path()).unwrap().is_none());
    }

    #[test]
    fn damaged_record_may_be_replaced_and_one_that_the_firmware_locks_may_not() {
        let tpm = FakeTpm::new(1);
        memory(&tpm).1.keep(&tpm).unwrap();
        tpm.change_state();
        let locked = Memory::recall(&tpm).map(drop).unwrap_err();
        assert!(
            matches!(locked, MemoryError::Tpm(TpmError::StateChanged)) && !locked.is_final(),
            "{locked:?}"
        );
        let tpm = FakeTpm::new(1);
        memory(&tpm).1.keep(&tpm).unwrap();
        tpm.tear_memory();
        assert!(Memory::recall(&tpm).map(drop).unwrap_err().is_final());
    }

    proptest! {
        #[test]
        fn invariant_whatever_the_tpm_kept_is_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..MAX_MEMORY)) {
            let tpm = FakeTpm::new(1);
            tpm.remember(&bytes).unwrap();
            let error = Memory::recall(&tpm).map(drop).unwrap_err();
            prop_assert!(matches!(error, MemoryError::Form(_)) && error.is_final());
        }

        #[test]
        fn invariant_record_with_a_changed_byte_opens_no_other_key(at in 0usize..MAX_MEMORY, to in any::<u8>()) {
            let tpm = FakeTpm::new(1);
            let (key, memory) = memory(&tpm);
            let mut bytes = serde_json::to_vec(&memory).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            tpm.remember(&bytes).unwrap();
            if let Ok(Some((_, new))) = Memory::recall(&tpm) {
                let empty = tempfile::tempdir().unwrap();
                let again = NodeKey::load_or_keep(empty.path(), &tpm, || Ok(new)).unwrap();
                prop_assert_eq!(again.peer_id(), key.peer_id());
            }
        }
    }
}
