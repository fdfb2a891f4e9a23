//! Writes down what makes this box a member, and keeps its chain of root documents from getting shorter.
//!
//! The stick task and the member task both write that document, each with the chain that it knows. Invariant: what is on disk
//! has the longest chain that any of them has verified.

use crate::join::{DOCUMENT, FabricDocument, Joined, with_rotations_of};
use crate::memory::Keepsake;
use crate::store::{Store, StoreError};
use beemesh_joinpack_format::{Refusal, RootChain};
use std::sync::{Arc, Mutex, PoisonError};

/// Why a membership was not written down.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Its chain contradicts the one that is followed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The state volume.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to change.
    #[error("there is no membership on the disk")]
    Missing,
}

/// Cheap to clone; all clones share one chain.
#[derive(Clone)]
pub struct RootKeeper {
    store: Store,
    newest: Arc<Mutex<Option<RootChain>>>,
    keepsake: Keepsake,
}

impl RootKeeper {
    /// As an earlier run left it.
    pub fn new(store: Store, joined: Option<&RootChain>) -> Self {
        Self {
            store,
            newest: Arc::new(Mutex::new(joined.cloned())),
            keepsake: Keepsake::default(),
        }
    }

    /// With a TPM that keeps what belongs to the membership, for a box without a disk.
    pub fn with_keepsake(self, keepsake: Keepsake) -> Self {
        Self { keepsake, ..self }
    }

    /// What the TPM keeps.
    pub fn keepsake(&self) -> &Keepsake {
        &self.keepsake
    }

    /// `roots`, or the longer chain that is followed by now.
    pub fn longest(&self, roots: &RootChain) -> RootChain {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let longer = newest
            .as_ref()
            .filter(|newest| newest.fabric_id() == roots.fabric_id() && newest.version() > roots.version());
        longer.unwrap_or(roots).clone()
    }

    /// Changes the membership as the disk has it, and writes it back: others may have written it since the caller looked.
    ///
    /// # Errors
    /// [`KeepError`]. Where it is of the store, the change may be on the disk or not.
    pub fn change(
        &self,
        change: impl FnOnce(FabricDocument) -> Result<Joined, Refusal>,
    ) -> Result<Joined, KeepError> {
        let _alone = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let document = self.store.load(DOCUMENT)?.ok_or(KeepError::Missing)?;
        let joined = change(document)?;
        self.store.save(DOCUMENT, &joined.document)?;
        Ok(joined)
    }

    /// Makes a membership durable, with the longest chain and with the rotations of its key. What it returns is what was written.
    ///
    /// # Errors
    /// [`KeepError`]; then nothing has changed.
    pub fn commit(&self, mut joined: Joined) -> Result<Joined, KeepError> {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let roots = match newest.as_ref() {
            Some(newest) => newest.extend(joined.roots.envelopes())?,
            None => joined.roots.clone(),
        };
        let disk = self.store.load::<FabricDocument>(DOCUMENT).ok().flatten();
        let document = with_rotations_of(joined.document.clone(), disk.as_ref());
        if let Some(key) = document.membership.rotated_to()
            && document.membership != joined.document.membership
        {
            joined = Joined::check(document, &key)?;
        }
        joined.document.roots = roots.envelopes().to_vec();
        // Who may sign a root document may say what time it is, as who signs a pack may.
        joined.document.floor = joined.document.floor.max(roots.current().issued);
        self.store.save(DOCUMENT, &joined.document)?;
        *newest = Some(roots.clone());
        joined.roots = roots;
        self.keepsake.keep(&joined);
        Ok(joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, applicant, chain, pack, peer};
    use crate::join::{choose, plan};
    use beemesh_joinpack_format::Machine;

    fn joined() -> Joined {
        let (pack, peer, machine) = (pack(1, 0, &[]), peer(1), Machine::default());
        let applicant = applicant(&peer, &machine);
        let offer = choose(&pack, &applicant).unwrap();
        let document = plan(
            &pack,
            &applicant,
            Some((offer, offer.one_time_key.as_ref().unwrap())),
        );
        Joined::check(document.unwrap().document, &peer).unwrap()
    }

    fn with(version: u32) -> Joined {
        let mut joined = joined();
        joined.roots = chain(version);
        joined.document.roots = joined.roots.envelopes().to_vec();
        joined
    }

    fn on_disk(store: &Store) -> FabricDocument {
        store.load(DOCUMENT).unwrap().unwrap()
    }

    #[test]
    fn chain_on_disk_never_gets_shorter_whoever_writes_last() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let keeper = RootKeeper::new(store.clone(), Some(&chain(1)));
        assert_eq!(keeper.commit(with(4)).unwrap().roots.version(), 4);
        // A stick that was read before the others told of root 4.
        let late = keeper.commit(with(2)).unwrap();
        assert_eq!((late.roots.version(), on_disk(&store).roots.len()), (4, 4));
        assert_eq!(keeper.longest(&chain(2)).version(), 4);
        assert_eq!(keeper.longest(&chain(9)).version(), 9);
        // Every version moves the floor, so that a key that it retires is retired at once.
        assert_eq!(on_disk(&store).floor, NOW.plus_seconds(3));
    }

    #[test]
    fn box_that_was_away_for_ten_root_documents_takes_them_all_at_once_and_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let keeper = RootKeeper::new(store.clone(), Some(&chain(1)));
        for piece in chain(11).envelopes()[1..].chunks(3) {
            let mut joined = joined();
            joined.roots = keeper.longest(&joined.roots).extend(piece).unwrap();
            keeper.commit(joined).unwrap();
        }
        assert_eq!(on_disk(&store).roots, chain(11).envelopes());
        let again = Joined::check(on_disk(&store), &peer(1)).unwrap();
        assert_eq!(again.roots.version(), 11);
    }
}
