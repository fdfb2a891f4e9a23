//! What this node knows to be revoked: kept on the state volume, merged from sticks, operators and members.
//!
//! Judges nothing by itself: `agent/identity` does. Invariant: what was taken is on disk before anybody is told that it
//! was; a document that cannot be read is announced, and begins anew with what the next member tells.

use crate::clock::{self, FloorKeeper};
use crate::join::Joined;
use crate::journal::Journal;
use crate::memory::Keepsake;
use crate::roots::RootKeeper;
use crate::store::Store;
use beemesh_agent_api::revocation::RevocationView;
use beemesh_agent_identity::{ADMISSION_AGE, Clock, Moment, RevocationDocument, Revoked, SharedRevocations};
use beemesh_agent_sched::RevocationNews;
use beemesh_joinpack_format::{Envelope, Member, Refusal, RootChain, Source, Timestamp};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Name of the document on the state volume.
const DOCUMENT: &str = "revocations.json";
/// The running time is made durable when it has grown by this much, in seconds.
const PERSIST: u64 = 3600;

/// Cheap to clone; all clones share one knowledge.
#[derive(Clone)]
pub struct Trust {
    shared: SharedRevocations,
    store: Store,
    journal: Journal,
    floors: FloorKeeper,
    kept_s: Arc<Mutex<u64>>,
    keeper: RootKeeper,
}

impl Trust {
    /// What an earlier run kept. `roots` is the chain of a member; a box without one knows nothing.
    pub fn open(
        store: Store,
        journal: Journal,
        floors: FloorKeeper,
        joined: Option<(&RootChain, Timestamp)>,
    ) -> Self {
        let document: RevocationDocument = match store.load(DOCUMENT) {
            Ok(document) => document.unwrap_or_default(),
            Err(error) => {
                journal.announce("RevocationsDamaged", "node/self", &crate::words(&error));
                RevocationDocument::default()
            }
        };
        let moment = moment(&floors);
        let revoked = match joined {
            Some((roots, issued)) => Revoked::restore(&document, roots, issued, moment),
            None => Revoked::new(Timestamp::EPOCH, moment),
        };
        Self {
            shared: Arc::new(RwLock::new(revoked)),
            keeper: RootKeeper::new(store.clone(), joined.map(|(roots, _)| roots)),
            store,
            journal,
            floors,
            kept_s: Arc::new(Mutex::new(document.ran_s)),
        }
    }

    /// With a TPM that keeps what belongs to the membership.
    pub fn with_keepsake(self, keepsake: Keepsake) -> Self {
        Self {
            keeper: self.keeper.with_keepsake(keepsake),
            ..self
        }
    }

    /// For whoever judges.
    pub fn shared(&self) -> SharedRevocations {
        Arc::clone(&self.shared)
    }

    /// Writes the membership, and with it the chain.
    pub fn keeper(&self) -> &RootKeeper {
        &self.keeper
    }

    /// For whoever judges.
    pub fn clock(&self) -> Clock {
        let floors = self.floors.clone();
        Arc::new(move || moment(&floors))
    }

    /// What a member judges signatures by: its chain without the keys that are revoked, as of the floor that packs and the build
    /// vouch for. Records do not raise that one: one operator's wrong clock must not make the keys of others expire.
    pub fn judging(&self, joined: &Joined) -> RootChain {
        let roots = self.keeper.longest(&joined.roots);
        self.without_revoked(&roots).as_of(joined.document.floor)
    }

    /// The chain without the keys that are revoked.
    pub fn without_revoked(&self, roots: &RootChain) -> RootChain {
        roots.clone().without(
            self.read(|revoked| revoked.set().keys().cloned().collect::<Vec<_>>())
                .iter(),
        )
    }

    /// Takes a snapshot of an operator, a stick or a member. Returns whether it brought news, which are on disk then.
    pub fn take(&self, envelope: &Envelope, roots: &RootChain, source: Source) -> Result<bool, Refusal> {
        let now = moment(&self.floors);
        let changed = {
            let mut revoked = self.shared.write().unwrap_or_else(PoisonError::into_inner);
            revoked.take(envelope, roots, source, now)?
        };
        if changed {
            self.keep();
        }
        Ok(changed)
    }

    /// The signer of a pack that was applied knew of no more revocations at this time.
    pub fn vouched(&self, issued: Timestamp) {
        let now = moment(&self.floors);
        self.shared
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .vouched(issued, now);
        self.keep();
    }

    /// Writes down how long the node has run without news, now and then.
    pub fn note(&self) {
        let ran_s = self.read(|revoked| revoked.ran_s(moment(&self.floors)));
        let kept = *self.kept_s.lock().unwrap_or_else(PoisonError::into_inner);
        if ran_s >= kept.saturating_add(PERSIST) {
            self.keep();
        }
    }

    fn keep(&self) {
        let document = self.read(|revoked| revoked.document(moment(&self.floors)));
        *self.kept_s.lock().unwrap_or_else(PoisonError::into_inner) = document.ran_s;
        if let Err(error) = self.store.save(DOCUMENT, &document) {
            self.journal
                .announce("RevocationsNotKept", "node/self", &crate::words(&error));
        }
    }

    /// What the cell is told.
    pub fn news(&self, roots: &RootChain) -> RevocationNews {
        self.read(|revoked| RevocationNews::of(revoked.set(), roots.fabric_id()))
    }

    /// Whether newcomers with vouchers as old as what this node knows are let in; see [`ADMISSION_AGE`].
    pub fn admits(&self) -> bool {
        let now = moment(&self.floors);
        self.read(|revoked| revoked.age_s(now) <= ADMISSION_AGE)
    }

    /// Whether a member's node or voucher is revoked.
    pub fn has(&self, member: &Member) -> bool {
        self.read(|revoked| revoked.has(member))
    }

    /// What an operator is shown.
    pub fn view(&self, roots: &RootChain) -> RevocationView {
        let now = moment(&self.floors);
        self.read(|revoked| {
            let union = revoked.set().union(roots.fabric_id());
            let age_s = revoked.age_s(now);
            RevocationView {
                issued: revoked.issued().to_string(),
                age_s,
                admits: age_s <= ADMISSION_AGE,
                nodes: union.nodes.into_iter().collect(),
                vouchers: union.vouchers.into_iter().collect(),
                keys: union.keys.into_iter().map(String::from).collect(),
                snapshots: revoked.set().envelopes().cloned().collect(),
            }
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Revoked) -> T) -> T {
        read(&self.shared.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn moment(floors: &FloorKeeper) -> Moment {
    Moment {
        up_ms: clock::boot_ms(),
        floor: floors.floor(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Floor;
    use crate::fixture::{NOW, key, operator, peer, roots, snapshot};

    fn open(folder: &tempfile::TempDir) -> (Trust, Journal) {
        let store = Store::open(&folder.path().join("state")).unwrap();
        let journal = Journal::new("/nonexistent/console".into());
        let floors = FloorKeeper::open(
            store.clone(),
            folder.path().join("run/time-floor.json"),
            Floor(NOW),
        );
        let roots = roots();
        (
            Trust::open(store, journal.clone(), floors, Some((&roots, NOW))),
            journal,
        )
    }

    #[test]
    fn what_was_taken_is_known_after_a_restart_and_an_older_snapshot_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (trust, _) = open(&folder);
        assert_eq!(trust.news(&roots()).digest, 0);
        let newer = snapshot(20, |all| {
            all.nodes.insert(peer(1));
        });
        assert!(trust.take(&newer, &roots(), Source::Person).unwrap());
        assert!(
            !trust
                .take(&snapshot(10, |_| ()), &roots(), Source::Person)
                .unwrap()
        );
        let news = trust.news(&roots());
        assert!(news.digest != 0 && news.nodes.contains(&peer(1)) && news.snapshots.len() == 1);
        assert_eq!(open(&folder).0.news(&roots()), news);
        let view = trust.view(&roots());
        assert!(view.admits && view.nodes == [peer(1)] && view.issued == NOW.plus_seconds(20).to_string());
    }

    #[test]
    fn revoked_keys_are_left_out_of_the_chain_and_strangers_revoke_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (trust, _) = open(&folder);
        let id = operator().public().key_id();
        let role = |trust: &Trust| {
            trust
                .without_revoked(&roots())
                .role(beemesh_joinpack_format::Role::Operator)
        };
        assert!(role(&trust).key(&id).is_some());
        // This fixture's recovery key is the root key too; it may sign, and is not revoked itself.
        assert!(
            trust
                .take(
                    &snapshot(1, |all| {
                        all.keys.insert(id.clone());
                    }),
                    &roots(),
                    Source::Person
                )
                .unwrap()
        );
        assert!(role(&trust).key(&id).is_none());
        let mut forged =
            beemesh_joinpack_format::Revocations::none(roots().fabric_id().clone(), NOW.plus_seconds(9));
        forged.nodes.insert(peer(1));
        let stranger = beemesh_joinpack_format::SecretKey::from_bytes([99; 32]);
        assert!(
            trust
                .take(&forged.sign(&[&stranger]).unwrap(), &roots(), Source::Person)
                .is_err()
        );
        forged.keys.insert(key().public().key_id());
        assert!(
            trust
                .take(&forged.sign(&[&key()]).unwrap(), &roots(), Source::Person)
                .is_err(),
            "a root key"
        );
        assert!(!trust.news(&roots()).nodes.contains(&peer(1)));
    }

    #[test]
    fn damaged_document_is_said_and_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("state")).unwrap();
        std::fs::write(folder.path().join("state").join(DOCUMENT), b"{").unwrap();
        let (trust, journal) = open(&folder);
        assert_eq!(trust.news(&roots()).digest, 0);
        assert_eq!(journal.subscribe().0[0].reason, "RevocationsDamaged");
    }
}
