//! What a box without a disk keeps in its TPM, so that it is the same box after a power cut.
//!
//! Recalls it at the start, writes it when the membership is written and something of it has changed, and says on the console what
//! cannot be kept and what to do; the box goes on in any case. A box with a disk keeps nothing there. One that was given its disk
//! later takes the record over, once, and removes it when the disk has everything. Invariant: a record that this start could not
//! read and that could be read again some day is not written over.

use crate::attestation::OpenTpm;
use crate::identity::NodeKey;
use crate::join::Joined;
use crate::journal::Journal;
use beemesh_agent_identity::{Memory, NewKey};
use beemesh_firmware_tpm::Kind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What there is to do with the memory in this boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The state lies in RAM: the TPM keeps the record.
    Keep,
    /// There is a disk, and the record of the time before it: it goes once the disk has what it says.
    Remove,
}

struct Inner {
    mode: Mode,
    /// Where the node key lies.
    identity: PathBuf,
    open: OpenTpm,
    journal: Journal,
    /// The record as the TPM has it.
    kept: Mutex<Option<Memory>>,
}

/// Cheap to clone; all clones share one record. The default keeps nothing.
#[derive(Clone, Default)]
pub struct Keepsake(Option<Arc<Inner>>);

impl Keepsake {
    /// Recalls what the TPM keeps, with the node key in it. `in_memory`: the state lies in RAM in this boot. Blocks on the TPM.
    pub fn open(
        in_memory: bool,
        identity: &Path,
        open: OpenTpm,
        journal: &Journal,
    ) -> (Self, Option<NewKey>) {
        let nothing = (Self::default(), None);
        let tpm = open();
        // A disk that holds a key has no need of the TPM's memory.
        if tpm.kind() != Kind::Device || (!in_memory && NodeKey::exists(identity)) {
            return nothing;
        }
        let recalled = Memory::recall(tpm.as_ref());
        let (kept, key) = match recalled {
            Ok(Some((memory, key))) => (Some(memory), Some(key)),
            Ok(None) => (None, None),
            Err(error) => {
                tracing::warn!(error = crate::words(&error), "the TPM's memory is of no use");
                let next = match (in_memory, error.is_final()) {
                    (false, _) => return nothing,
                    (true, true) => {
                        "it comes as a new box: revoke the one that it was, and insert a join stick with a free place"
                    }
                    (true, false) => {
                        "make that undone and switch it off and on to have it back; until then it comes as a new box"
                    }
                };
                let message =
                    format!("this box has no disk, and cannot be the one that it was: {error}; {next}");
                journal.announce("IdentityLost", "node/self", &message);
                if !error.is_final() {
                    return nothing;
                }
                (None, None)
            }
        };
        let mode = match in_memory {
            true => Mode::Keep,
            false if kept.is_some() => Mode::Remove,
            false => return nothing,
        };
        if key.is_some() {
            let message = match mode {
                Mode::Keep => "this box has no disk: its TPM kept its key",
                Mode::Remove => "this box has a new disk: it goes on with the key that its TPM kept",
            };
            journal.emit("IdentityKept", "node/self", message);
        }
        let inner = Inner {
            mode,
            identity: identity.to_owned(),
            open,
            journal: journal.clone(),
            kept: Mutex::new(kept),
        };
        (Self(Some(Arc::new(inner))), key)
    }

    /// The record that was recalled or kept last.
    pub fn record(&self) -> Option<Memory> {
        let inner = self.0.as_ref()?;
        inner.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the box comes back from a power cut with what its TPM keeps, and nothing else.
    pub fn is_all_there_is(&self) -> bool {
        self.0.as_ref().is_some_and(|inner| inner.mode == Mode::Keep)
    }

    /// The membership was written: keeps what belongs to it. A TPM that does not keep it is said, and stops nobody. Blocks on the
    /// TPM where something has changed.
    pub fn keep(&self, joined: &Joined) {
        let Some(inner) = &self.0 else { return };
        let mut kept = inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let done = match inner.mode {
            Mode::Remove if kept.is_none() => return,
            Mode::Remove => (inner.open)().forget().map_err(|error| crate::words(&error)),
            Mode::Keep => match inner.memory_of(joined) {
                Some(memory) if kept.as_ref() == Some(&memory) => return,
                Some(memory) => {
                    let done = memory.keep((inner.open)().as_ref());
                    let done = done.map_err(|error| crate::words(&error));
                    if done.is_ok() {
                        *kept = Some(memory);
                    }
                    done
                }
                None => return,
            },
        };
        match (done, inner.mode) {
            (Ok(()), Mode::Keep) => {}
            (Ok(()), Mode::Remove) => *kept = None,
            (Err(why), Mode::Keep) => {
                let message = format!(
                    "this box has no disk, and its TPM cannot keep who it is ({why}): after a power cut it comes as a new box, unless \
                     that is mended or a blank disk is put in"
                );
                inner.journal.announce("IdentityNotKept", "node/self", &message);
            }
            (Err(why), Mode::Remove) => {
                let message = format!("the record of the time without a disk stays in the TPM: {why}");
                inner.journal.emit("IdentityNotRemoved", "node/self", &message);
            }
        }
    }
}

impl Inner {
    /// The record of this membership. A key that no TPM sealed, or that is not the first of its node, is not kept.
    fn memory_of(&self, joined: &Joined) -> Option<Memory> {
        let sealed = NodeKey::sealed(&self.identity).unwrap_or_else(|error| {
            tracing::warn!(error = crate::words(&error), "no node key to keep");
            None
        })?;
        let (member, document) = (&joined.member, &joined.document);
        let is_first = member.keys.generation() == 0;
        is_first.then(|| Memory::of(sealed, member, &document.serial, document.floor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{applicant, pack};
    use crate::join::{choose, plan};
    use beemesh_firmware_tpm::{FakeTpm, SoftwareTpm, Tpm};
    use beemesh_joinpack_format::Machine;

    /// A box: its TPM outlives its RAM.
    struct Cold {
        tpm: Arc<FakeTpm>,
        ram: tempfile::TempDir,
        journal: Journal,
    }

    impl Cold {
        fn new(tpm: FakeTpm) -> Self {
            Self {
                tpm: Arc::new(tpm),
                ram: tempfile::tempdir().unwrap(),
                journal: Journal::new(PathBuf::from("/dev/null")),
            }
        }

        fn power_cycled(&self) -> Self {
            Self::new(self.tpm.rebooted())
        }

        fn start(&self, in_memory: bool) -> (Keepsake, NodeKey) {
            let tpm = Arc::clone(&self.tpm);
            let open: OpenTpm = Arc::new(move || Box::new(tpm.rebooted()));
            let (keepsake, key) = Keepsake::open(in_memory, self.ram.path(), open, &self.journal);
            let make = || key.map_or_else(|| NewKey::make(self.tpm.as_ref()), Ok);
            let key = NodeKey::load_or_keep(self.ram.path(), self.tpm.as_ref(), make).unwrap();
            (keepsake, key)
        }

        fn said(&self, reason: &str) -> bool {
            self.journal
                .subscribe()
                .0
                .iter()
                .any(|event| event.reason == reason)
        }
    }

    fn join(key: &NodeKey, keepsake: &Keepsake) -> Joined {
        let (pack, peer, machine) = (pack(3, 0, &[]), key.peer_id(), Machine::default());
        let again = keepsake.record();
        let applicant = crate::join::Applicant {
            assurance: key.assurance(),
            again: again.as_ref(),
            ..applicant(&peer, &machine)
        };
        let offer = choose(&pack, &applicant).unwrap();
        let document = plan(
            &pack,
            &applicant,
            Some((offer, offer.one_time_key.as_ref().unwrap())),
        );
        Joined::check(document.unwrap().document, &peer).unwrap()
    }

    #[test]
    fn box_without_a_disk_makes_the_same_redemption_again_after_a_power_cut_and_writes_once() {
        let first = Cold::new(FakeTpm::new(1));
        let (keepsake, key) = first.start(true);
        assert!(keepsake.is_all_there_is() && keepsake.record().is_none());
        let joined = join(&key, &keepsake);
        keepsake.keep(&joined);
        keepsake.keep(&joined);
        let second = first.power_cycled();
        let (keepsake, again) = second.start(true);
        assert_eq!(again.peer_id(), key.peer_id());
        let rejoined = join(&again, &keepsake);
        assert_eq!(rejoined.document.membership, joined.document.membership);
        keepsake.keep(&rejoined);
        assert_eq!(second.tpm.memory_writes(), 1, "the storage wears out");
        // An agent that is started again without a power cut has its key in RAM, and the record all the same.
        let (keepsake, same) = second.start(true);
        assert_eq!(same.peer_id(), key.peer_id());
        assert!(keepsake.record().is_some());
    }

    #[test]
    fn newer_pack_is_kept_too() {
        let cold = Cold::new(FakeTpm::new(1));
        let (keepsake, key) = cold.start(true);
        let mut joined = join(&key, &keepsake);
        keepsake.keep(&joined);
        joined.document.serial = "01KDVKFD00000000000000000Z".to_owned();
        joined.document.floor = joined.document.floor.plus_seconds(60);
        keepsake.keep(&joined);
        let (keepsake, _) = cold.power_cycled().start(true);
        let record = keepsake.record().unwrap();
        assert_eq!(
            (record.serial, record.floor),
            (joined.document.serial, joined.document.floor)
        );
    }

    #[test]
    fn another_tpm_damage_other_settings_and_no_room_are_said_and_the_box_goes_on_as_a_new_one() {
        let good = Cold::new(FakeTpm::new(1));
        let (keepsake, key) = good.start(true);
        let joined = join(&key, &keepsake);
        keepsake.keep(&joined);

        let foreign = Cold::new(FakeTpm::new(2));
        foreign
            .tpm
            .remember(&good.tpm.recall().unwrap().unwrap())
            .unwrap();
        let (keepsake, other) = foreign.start(true);
        assert!(foreign.said("IdentityLost") && other.peer_id() != key.peer_id());
        assert!(keepsake.is_all_there_is(), "it keeps the new identity");

        let locked = good.power_cycled();
        locked.tpm.change_state();
        let (keepsake, other) = locked.start(true);
        assert!(locked.said("IdentityLost") && other.peer_id() != key.peer_id());
        keepsake.keep(&join(&other, &keepsake));
        assert_eq!(
            good.tpm.memory_writes(),
            1,
            "what could be had back is not written over"
        );
        assert_eq!(good.power_cycled().start(true).1.peer_id(), key.peer_id());

        let torn = good.power_cycled();
        torn.tpm.tear_memory();
        let (keepsake, other) = torn.start(true);
        assert!(torn.said("IdentityLost") && other.peer_id() != key.peer_id());
        keepsake.keep(&join(&other, &keepsake));
        assert_eq!(torn.power_cycled().start(true).1.peer_id(), other.peer_id());

        let full = Cold::new(FakeTpm::new(3));
        full.tpm.fill_memory();
        let (keepsake, other) = full.start(true);
        keepsake.keep(&join(&other, &keepsake));
        assert!(full.said("IdentityNotKept"));
        assert_ne!(full.power_cycled().start(true).1.peer_id(), other.peer_id());
    }

    #[test]
    fn box_that_gets_a_disk_takes_its_key_along_and_the_tpm_forgets_it_once_the_disk_has_it() {
        let cold = Cold::new(FakeTpm::new(1));
        let (keepsake, key) = cold.start(true);
        keepsake.keep(&join(&key, &keepsake));
        let with_disk = cold.power_cycled();
        let (keepsake, again) = with_disk.start(false);
        assert_eq!(again.peer_id(), key.peer_id());
        assert!(!keepsake.is_all_there_is() && with_disk.tpm.recall().unwrap().is_some());
        keepsake.keep(&join(&again, &keepsake));
        assert_eq!(with_disk.tpm.recall().unwrap(), None);
    }

    #[test]
    fn box_with_a_disk_keeps_nothing_in_its_tpm_and_one_without_a_tpm_nothing_at_all() {
        let disk = Cold::new(FakeTpm::new(1));
        let (keepsake, key) = disk.start(false);
        keepsake.keep(&join(&key, &keepsake));
        assert!(keepsake.record().is_none() && disk.tpm.memory_writes() == 0);
        // A record that a disk with a key never asked for stays where it is.
        disk.tpm.remember(b"somebody's").unwrap();
        let (keepsake, _) = disk.start(false);
        keepsake.keep(&join(&key, &keepsake));
        assert_eq!(disk.tpm.memory_writes(), 1);
        let open: OpenTpm = Arc::new(|| Box::new(SoftwareTpm));
        let (keepsake, key) = Keepsake::open(true, disk.ram.path(), open, &disk.journal);
        assert!(key.is_none() && !keepsake.is_all_there_is());
    }
}
