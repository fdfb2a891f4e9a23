//! Who is a member, as far as this node has seen, and the decision at the door.
//!
//! The roster is pure: verified members in, a verdict out; the node keeps it on disk. A voucher is good for one machine:
//! the first redemption that this node sees wins, whatever time a second one claims. The time in a redemption is written
//! by whoever redeems, so the holder of a copied stick could date it back.

use crate::{KeyRatchet, KeyRefusal, Moment, SharedRevocations, SharedRoots, read};
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Member, Membership, NodeKeys, Refusal};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Vouchers that a roster knows: four of the largest cells.
pub const MEMBERS: usize = 4096;
/// Keys in conflict that wait to be said; further ones are refused all the same.
const CONFLICTS: usize = 64;

/// Why a verified member is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Quarantine {
    /// Somebody else redeemed the voucher before: a stick was copied.
    #[error(
        "voucher `{voucher}` was redeemed by `{first}` before: `{second}` stays out until the operator decides"
    )]
    VoucherTaken {
        /// The voucher's id.
        voucher: String,
        /// Who has it.
        first: PeerId,
        /// Who wants it.
        second: PeerId,
    },
    /// No room for another voucher.
    #[error("the roster is full: it has {MEMBERS} members")]
    Full,
}

/// The members that this node has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Member>", into = "Vec<Member>")]
pub struct Roster {
    by_voucher: BTreeMap<String, Member>,
    /// The newest voucher of each peer.
    by_peer: BTreeMap<PeerId, String>,
}

impl Roster {
    /// Takes a verified member. The same member may come any number of times.
    ///
    /// # Errors
    /// [`Quarantine`]; the roster is as before.
    pub fn admit(&mut self, member: Member) -> Result<(), Quarantine> {
        match self.by_voucher.get(&member.voucher_id) {
            Some(first) if first.peer_id != member.peer_id => {
                return Err(Quarantine::VoucherTaken {
                    voucher: member.voucher_id,
                    first: first.peer_id.clone(),
                    second: member.peer_id,
                });
            }
            // The earliest redemption of the same machine is the one that was kept; a repetition changes nothing.
            Some(_) => return Ok(()),
            None if self.by_voucher.len() >= MEMBERS => return Err(Quarantine::Full),
            None => {}
        }
        // Ties by voucher, so that the outcome does not depend on the order of arrival.
        let order = |member: &Member| (member.redeemed, member.voucher_id.clone());
        let newest = self
            .by_peer(&member.peer_id)
            .is_none_or(|known| order(known) <= order(&member));
        if newest {
            self.by_peer
                .insert(member.peer_id.clone(), member.voucher_id.clone());
        }
        self.by_voucher.insert(member.voucher_id.clone(), member);
        Ok(())
    }

    /// The member with this peer id, by its newest voucher.
    pub fn by_peer(&self, peer: &PeerId) -> Option<&Member> {
        self.by_voucher.get(self.by_peer.get(peer)?)
    }

    /// Who redeemed this voucher.
    pub fn by_voucher(&self, voucher: &str) -> Option<&Member> {
        self.by_voucher.get(voucher)
    }

    /// Every member once, in the order of peer ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.by_peer
            .values()
            .filter_map(|voucher| self.by_voucher.get(voucher))
    }
}

impl From<Vec<Member>> for Roster {
    /// What contradicts an earlier entry is left out.
    fn from(members: Vec<Member>) -> Self {
        let mut roster = Self::default();
        for member in members {
            let _ = roster.admit(member);
        }
        roster
    }
}

impl From<Roster> for Vec<Member> {
    fn from(roster: Roster) -> Self {
        roster.by_voucher.into_values().collect()
    }
}

/// Why a peer is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionRefusal {
    /// Its credential does not make it a member.
    #[error("{0}")]
    Credential(#[from] Refusal),
    /// It would be a member, but.
    #[error("{0}")]
    Quarantine(#[from] Quarantine),
    /// The key that it has shown does not count.
    #[error("{0}")]
    Key(#[from] KeyRefusal),
    /// It was a member.
    #[error("node `{peer}` or its voucher was revoked: ask your operator")]
    Revoked {
        /// Who.
        peer: PeerId,
    },
    /// This node has heard of no revocations for too long to take in anybody by an old voucher.
    #[error(
        "this node has had no word of revocations for {days} days, and admits nobody by a voucher as old: \
         insert a newer join stick into either"
    )]
    OldRevocations {
        /// Full days.
        days: u64,
    },
}

/// Tells an admission what moment it is.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

#[derive(Default)]
struct Known {
    roster: Roster,
    /// Credentials of who redeemed which voucher: proof for whoever comes second.
    credentials: BTreeMap<String, Vec<u8>>,
    keys: KeyRatchet,
    /// What was found out about keys and not said yet.
    conflicts: std::collections::BTreeSet<KeyRefusal>,
    /// What was said already.
    said: std::collections::BTreeSet<KeyRefusal>,
}

impl Known {
    fn note(&mut self, refusal: &KeyRefusal) {
        let is_conflict = matches!(refusal, KeyRefusal::Conflict { .. });
        if is_conflict && self.said.len() < CONFLICTS && self.said.insert(refusal.clone()) {
            self.conflicts.insert(refusal.clone());
        }
    }
}

/// The decision at the door: a credential that verifies against the root chain, of a voucher that nobody else redeemed, of a
/// node that is not revoked.
#[derive(Clone)]
pub struct MembershipAdmission {
    roots: SharedRoots,
    known: Arc<Mutex<Known>>,
    revocations: Option<(SharedRevocations, Clock)>,
}

impl MembershipAdmission {
    /// Judges by `roots`, as they are at each moment. The roster holds this node itself, so a copy of its own voucher
    /// stays out from the start.
    pub fn new(roots: SharedRoots, own: Member) -> Self {
        let mut known = Known::default();
        // Nothing was known before that could contradict.
        let _ = known.keys.restore(&own.keys);
        known.roster = Roster::from(vec![own]);
        Self {
            roots,
            known: Arc::new(Mutex::new(known)),
            revocations: None,
        }
    }

    /// Judges by revocations too.
    pub fn with_revocations(mut self, revocations: SharedRevocations, clock: Clock) -> Self {
        self.revocations = Some((revocations, clock));
        self
    }

    /// Verifies and takes a peer. `peer` must be proven by the handshake.
    ///
    /// # Errors
    /// [`AdmissionRefusal`], whose text is fit for the peer too.
    pub fn judge(&self, peer: &PeerId, credential: &[u8]) -> Result<Member, AdmissionRefusal> {
        self.take(peer, credential, false)
    }

    /// Takes a peer that was a member when this node last ran: neither an enrolment key that was revoked since nor old
    /// revocations keep it out.
    ///
    /// # Errors
    /// As [`MembershipAdmission::judge`].
    pub fn recall(&self, peer: &PeerId, credential: &[u8]) -> Result<Member, AdmissionRefusal> {
        self.take(peer, credential, true)
    }

    fn take(&self, peer: &PeerId, credential: &[u8], recalled: bool) -> Result<Member, AdmissionRefusal> {
        let membership = Membership::parse(credential)?;
        let mut known = self.lock();
        let is_known = |member: &Member| {
            let taken = known.roster.by_voucher(&member.voucher_id);
            recalled || taken.is_some_and(|taken| taken.peer_id == member.peer_id)
        };
        let roots = read(&self.roots);
        let member = match membership.verify(&roots, peer) {
            Err(refusal @ (Refusal::UnknownKey { .. } | Refusal::ThresholdNotMet { .. })) => {
                let member = membership.verify_known(&roots, peer)?;
                if !is_known(&member) {
                    return Err(refusal.into());
                }
                member
            }
            verified => verified?,
        };
        drop(roots);
        if let Some((revocations, clock)) = &self.revocations {
            let revocations = revocations.read().unwrap_or_else(PoisonError::into_inner);
            if revocations.has(&member) {
                return Err(AdmissionRefusal::Revoked { peer: peer.clone() });
            }
            let now = clock();
            if !is_known(&member) && !revocations.admits(member.vouched, now) {
                let days = revocations.age_s(now) / 86_400;
                return Err(AdmissionRefusal::OldRevocations { days });
            }
        }
        known.roster.admit(member.clone())?;
        let judged = match recalled {
            true => known.keys.restore(&member.keys),
            false => known.keys.judge(&member.keys, self.now_ms()),
        };
        if let Err(refusal) = judged {
            known.note(&refusal);
            return Err(refusal.into());
        }
        // As bounded as the roster.
        let credentials = &mut known.credentials;
        credentials
            .entry(member.voucher_id.clone())
            .or_insert_with(|| credential.to_owned());
        Ok(member)
    }

    /// Takes note of a member's keys that came from somewhere else than the door. They must be verified.
    ///
    /// # Errors
    /// [`KeyRefusal::Conflict`].
    pub fn learn(&self, keys: &NodeKeys) -> Result<bool, KeyRefusal> {
        let now_ms = self.now_ms();
        let mut known = self.lock();
        let learned = known.keys.learn(keys, now_ms);
        if let Err(refusal) = &learned {
            known.note(refusal);
        }
        learned
    }

    /// Whether a connection of `node` that was made with `key` may go on.
    pub fn still_accepts(&self, node: &PeerId, key: &PeerId) -> bool {
        let now_ms = self.now_ms();
        self.lock().keys.accepts(node, key, now_ms)
    }

    /// The conflicts of keys since the last call, each once.
    pub fn conflicts(&self) -> Vec<KeyRefusal> {
        std::mem::take(&mut self.lock().conflicts).into_iter().collect()
    }

    /// Monotonic; 0 for a door without a clock.
    fn now_ms(&self) -> u64 {
        self.revocations.as_ref().map_or(0, |(_, clock)| clock().up_ms)
    }

    /// The credential of who redeemed the voucher of `refused` first, if that is why it was refused: its proof.
    pub fn rival(&self, refused: &AdmissionRefusal) -> Option<Vec<u8>> {
        match refused {
            AdmissionRefusal::Quarantine(Quarantine::VoucherTaken { voucher, .. }) => {
                self.lock().credentials.get(voucher).cloned()
            }
            _ => None,
        }
    }

    /// A copy of the roster, to be kept.
    pub fn roster(&self) -> Roster {
        self.lock().roster.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_ids::{Digest, FabricId};
    use beemesh_joinpack_format::{Assurance, Timestamp};
    use proptest::prelude::*;

    fn member(voucher: u16, peer: u8, redeemed: i64) -> Member {
        Member {
            fabric: FabricId::from_root(Digest::of(b"root")),
            name: format!("node-{voucher}").parse().unwrap(),
            peer_id: PeerId::from_ed25519(&[peer; 32]),
            keys: NodeKeys::first(
                PeerId::from_ed25519(&[peer; 32]),
                format!("voucher-{voucher}"),
                Timestamp(redeemed),
            ),
            voucher_id: format!("voucher-{voucher}"),
            vouched: Timestamp(0),
            cell: "cell".to_owned(),
            assurance: Assurance::Low,
            redeemed: Timestamp(redeemed),
        }
    }

    #[test]
    fn a_voucher_is_good_for_one_machine_even_if_the_second_claims_to_be_earlier() {
        let mut roster = Roster::default();
        assert_eq!(roster.admit(member(1, 1, 100)), Ok(()));
        assert_eq!(roster.admit(member(1, 1, 100)), Ok(()), "again");
        let copied = roster.admit(member(1, 2, 50));
        assert!(
            matches!(copied, Err(Quarantine::VoucherTaken { .. })),
            "{copied:?}"
        );
        assert_eq!(roster.by_voucher("voucher-1"), Some(&member(1, 1, 100)));
        assert_eq!(roster.by_peer(&PeerId::from_ed25519(&[2; 32])), None);
    }

    #[test]
    fn a_machine_that_enrols_anew_is_known_by_its_newest_voucher_and_keeps_both() {
        let mut roster = Roster::default();
        roster.admit(member(2, 1, 200)).unwrap();
        roster.admit(member(1, 1, 100)).unwrap();
        assert_eq!(
            roster.by_peer(&PeerId::from_ed25519(&[1; 32])),
            Some(&member(2, 1, 200))
        );
        assert_eq!(roster.members().count(), 1);
        assert!(roster.admit(member(1, 3, 100)).is_err() && roster.admit(member(2, 3, 200)).is_err());
    }

    #[test]
    fn a_full_roster_refuses_new_vouchers_and_takes_known_ones() {
        let mut roster = Roster::default();
        for voucher in 0..MEMBERS as u16 {
            roster.admit(member(voucher, 1, 1)).unwrap();
        }
        assert_eq!(roster.admit(member(MEMBERS as u16, 2, 1)), Err(Quarantine::Full));
        assert_eq!(roster.admit(member(0, 1, 1)), Ok(()));
    }

    proptest! {
        #[test]
        fn invariant_no_voucher_has_two_machines_and_what_is_kept_is_read_back(
            arrivals in proptest::collection::vec((0u16..6, 0u8..6, 0i64..100), 0..60)
        ) {
            let mut roster = Roster::default();
            let mut first = BTreeMap::new();
            for (voucher, peer, redeemed) in arrivals {
                let taken = roster.admit(member(voucher, peer, redeemed)).is_ok();
                prop_assert_eq!(taken, *first.entry(voucher).or_insert(peer) == peer);
            }
            for (voucher, peer) in first {
                let known = roster.by_voucher(&format!("voucher-{voucher}")).map(|member| member.peer_id.clone());
                prop_assert_eq!(known, Some(PeerId::from_ed25519(&[peer; 32])));
            }
            let text = serde_json::to_string(&roster).unwrap();
            prop_assert_eq!(serde_json::from_str::<Roster>(&text).unwrap(), roster);
        }
    }
}
