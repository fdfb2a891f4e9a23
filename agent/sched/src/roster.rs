//! Who may be a member: verified credentials, and vouchers that were redeemed twice.
//!
//! It does not know who is alive. Invariant: of all redemptions of one voucher only the first is active, whatever the
//! order in which they arrive; the digest is the same wherever the same members are known.

use crate::model::{MemberInfo, Millis};
use crate::rendezvous::{digest64, peer_hash, top};
use beemesh_ids::PeerId;
use std::collections::{BTreeMap, BTreeSet};

/// Most members, quarantined ones included.
pub const MAX_MEMBERS: usize = beemesh_joinpack_format::limits::MEMBERS;

/// Of so many members of the greatest weight one is up, but for a cell that has just been switched on or has lost most of them.
const LIKELY: usize = 4;

pub(crate) struct Entry {
    pub(crate) info: MemberInfo,
    hash: u64,
    pub(crate) since: Millis,
    quarantined: bool,
    revoked: bool,
}

/// What a member's key adds to the digest of all keys.
fn key_term(peer: &PeerId, generation: u32) -> u64 {
    digest64(&[b"key", peer.as_str().as_bytes(), &generation.to_be_bytes()])
}

#[derive(Default)]
pub(crate) struct Roster {
    entries: BTreeMap<PeerId, Entry>,
    /// Members that show a voucher, by voucher.
    vouchers: BTreeMap<String, usize>,
    digest: u64,
    /// Members that have had more than one key: how many, and the sum of [`key_term`] of each.
    rotated: (usize, u64),
    revoked_nodes: BTreeSet<PeerId>,
    revoked_vouchers: BTreeSet<String>,
}

/// What adding a member did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// Nothing new.
    Known,
    /// There is no room.
    Full,
    /// A member has a later key; nothing else of it differs.
    Rotated,
    /// New; `loser` is the peer whose redemption of the same voucher is the later one, and `first` the earlier.
    New { quarantined: Option<(PeerId, PeerId)> },
}

impl Roster {
    /// The roster of `members`; beyond the bound they are left out.
    pub(crate) fn of(members: impl IntoIterator<Item = (PeerId, MemberInfo)>, now: Millis) -> Self {
        let mut roster = Self::default();
        for (peer, info) in members {
            roster.insert(peer, info, now);
        }
        roster.update_digest();
        roster
    }

    pub(crate) fn add(&mut self, peer: PeerId, info: MemberInfo, now: Millis) -> Added {
        let added = self.insert(peer, info, now);
        match added {
            Added::New { .. } => self.update_digest(),
            Added::Rotated | Added::Known | Added::Full => {}
        }
        added
    }

    fn insert(&mut self, peer: PeerId, info: MemberInfo, now: Millis) -> Added {
        if let Some(known) = self.entries.get_mut(&peer) {
            // A renewed credential of the same redemption replaces the old one.
            if known.info == info || known.info.redeemed > info.redeemed {
                return Added::Known;
            }
            let same = (&known.info.voucher_id, known.info.redeemed) == (&info.voucher_id, info.redeemed);
            if same && known.info.key.generation > 0 && known.info.key.generation >= info.key.generation {
                return Added::Known;
            }
            if same && info.key.generation > 0 {
                let generations = [known.info.key.generation, info.key.generation];
                known.info = info;
                self.count_key(&peer, generations);
                return Added::Rotated;
            }
        } else if self.entries.len() >= MAX_MEMBERS {
            return Added::Full;
        }
        let since = self.entries.get(&peer).map_or(now, |known| known.since);
        let mut quarantined = None;
        let revoked = self.revoked_nodes.contains(&peer) || self.revoked_vouchers.contains(&info.voucher_id);
        let mut entry = Entry {
            hash: peer_hash(&peer),
            info,
            since,
            quarantined: revoked,
            revoked,
        };
        let mut before = 0;
        if let Some(old) = self.entries.remove(&peer) {
            before = old.info.key.generation;
            if let Some(count) = self.vouchers.get_mut(&old.info.voucher_id) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.vouchers.remove(&old.info.voucher_id);
                }
            }
        }
        self.count_key(&peer, [before, entry.info.key.generation]);
        let shown = self.vouchers.entry(entry.info.voucher_id.clone()).or_default();
        *shown = shown.saturating_add(1);
        if !entry.info.voucher_id.is_empty() && *shown > 1 {
            let rival = self.entries.iter_mut().find(|(other, known)| {
                // Who was revoked keeps the voucher that it redeemed: nobody inherits it.
                **other != peer
                    && (!known.quarantined || known.revoked)
                    && known.info.voucher_id == entry.info.voucher_id
            });
            if let Some((other, known)) = rival {
                if (known.info.redeemed, other) <= (entry.info.redeemed, &peer) {
                    entry.quarantined = true;
                    quarantined = (!revoked).then(|| (peer.clone(), other.clone()));
                } else {
                    quarantined = (!known.quarantined).then(|| (other.clone(), peer.clone()));
                    known.quarantined = true;
                }
            }
        }
        self.entries.insert(peer, entry);
        Added::New { quarantined }
    }

    /// Takes note of everything that is revoked. Returns the members that are out by it.
    pub(crate) fn revoke(&mut self, nodes: BTreeSet<PeerId>, vouchers: BTreeSet<String>) -> Vec<PeerId> {
        // Only ever more: what the driver forgets is not taken back.
        self.revoked_nodes.extend(nodes);
        self.revoked_vouchers.extend(vouchers);
        let mut out = Vec::new();
        for (peer, entry) in &mut self.entries {
            let named =
                self.revoked_nodes.contains(peer) || self.revoked_vouchers.contains(&entry.info.voucher_id);
            if named && !entry.revoked {
                entry.revoked = true;
                entry.quarantined = true;
                out.push(peer.clone());
            }
        }
        self.update_digest();
        out
    }

    fn update_digest(&mut self) {
        // Who is revoked is left out: whoever joins after that never learns of it, and must agree with the others all the same.
        let there = self.entries.iter().filter(|(_, entry)| !entry.revoked);
        self.digest = digest64(
            &there
                .flat_map(|(peer, entry)| {
                    [
                        peer.as_str().as_bytes(),
                        if entry.quarantined { b"q" } else { b"a" } as &[u8],
                    ]
                })
                .collect::<Vec<_>>(),
        );
    }

    /// Digest of the keys of members that have had more than one; 0 where none has. Kept up to date with each key, because it
    /// is in every heartbeat: of a thousand members that rotate, each hears a thousand keys within seconds and speaks between
    /// any two of them.
    pub(crate) fn key_digest(&self) -> u64 {
        match self.rotated {
            (0, _) => 0,
            (_, sum) => sum.max(1),
        }
    }

    /// A member's generation was the first of the two, and is the second.
    fn count_key(&mut self, peer: &PeerId, [before, now]: [u32; 2]) {
        let (count, sum) = &mut self.rotated;
        if before > 0 {
            *count = count.saturating_sub(1);
            *sum = sum.wrapping_sub(key_term(peer, before));
        }
        if now > 0 {
            *count = count.saturating_add(1);
            *sum = sum.wrapping_add(key_term(peer, now));
        }
    }

    /// Members that have had more than one key, and how many before the present one.
    pub(crate) fn generations(&self) -> impl Iterator<Item = (PeerId, u32)> {
        let rotated = self.all().filter(|(_, info)| info.key.generation > 0);
        rotated.map(|(peer, info)| (peer.clone(), info.key.generation))
    }

    /// How many keys a member had before its present one, quarantined or not.
    pub(crate) fn generation(&self, peer: &PeerId) -> Option<u32> {
        self.entries.get(peer).map(|entry| entry.info.key.generation)
    }

    /// Digest of all members that are not revoked, and of who of them is quarantined.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// An active member.
    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Entry> {
        self.entries.get(peer).filter(|entry| !entry.quarantined)
    }

    pub(crate) fn contains(&self, peer: &PeerId) -> bool {
        self.get(peer).is_some()
    }

    pub(crate) fn is_quarantined(&self, peer: &PeerId) -> bool {
        self.entries.get(peer).is_some_and(|entry| entry.quarantined)
    }

    /// Active members.
    pub(crate) fn active(&self) -> impl Iterator<Item = (&PeerId, &Entry)> {
        self.entries.iter().filter(|(_, entry)| !entry.quarantined)
    }

    /// A member, for handing on, quarantined or not.
    pub(crate) fn info(&self, peer: &PeerId) -> Option<(&PeerId, &MemberInfo)> {
        let (peer, entry) = self.entries.get_key_value(peer)?;
        Some((peer, &entry.info))
    }

    /// All members, for handing on.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&PeerId, &MemberInfo)> {
        self.entries.iter().map(|(peer, entry)| (peer, &entry.info))
    }

    /// Name of a member, or the end of its peer id.
    pub(crate) fn name(&self, peer: &PeerId) -> String {
        self.entries
            .get(peer)
            .map_or_else(|| peer.short().to_owned(), |entry| entry.info.name.to_string())
    }

    /// The arbiters of `thing`: over the whole roster, dead or alive.
    pub(crate) fn arbiters(&self, thing: u64, count: usize) -> Vec<PeerId> {
        top(
            self.active().map(|(peer, entry)| (peer, entry.hash)),
            thing,
            count,
        )
    }

    /// The first of those that `wanted` lets through.
    pub(crate) fn first(&self, thing: u64, wanted: impl Fn(&PeerId) -> bool) -> Option<PeerId> {
        // Mostly it is one of the very first: asking about all thousand of them is what costs.
        for peer in self.arbiters(thing, LIKELY) {
            if wanted(&peer) {
                return Some(peer);
            }
        }
        self.top(thing, 1, wanted).pop()
    }

    /// The first `count` of those that `wanted` lets through.
    pub(crate) fn top(&self, thing: u64, count: usize, wanted: impl Fn(&PeerId) -> bool) -> Vec<PeerId> {
        let wanted = self.active().filter(|(peer, _)| wanted(peer));
        top(wanted.map(|(peer, entry)| (peer, entry.hash)), thing, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_api::view::Assurance;
    use proptest::prelude::*;

    fn peer(n: u16) -> PeerId {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        PeerId::from_ed25519(&key)
    }

    fn info(voucher: &str, redeemed: u64) -> MemberInfo {
        MemberInfo {
            name: "n".parse().unwrap(),
            assurance: Assurance::Low,
            voucher_id: voucher.into(),
            redeemed,
            credential: vec![],
            key: crate::model::KeyInfo::default(),
        }
    }

    #[test]
    fn the_first_redemption_of_a_voucher_wins_in_either_order() {
        for order in [[1, 2], [2, 1]] {
            let mut roster = Roster::default();
            let mut last = Added::Known;
            for n in order {
                last = roster.add(peer(n), info("v", u64::from(n) * 10), Millis(0));
            }
            assert_eq!(
                last,
                Added::New {
                    quarantined: Some((peer(2), peer(1)))
                }
            );
            assert!(roster.contains(&peer(1)) && roster.is_quarantined(&peer(2)));
        }
    }

    #[test]
    fn who_joins_after_a_revocation_agrees_with_those_who_knew_the_revoked() {
        let roster = |members: &[u16], revoked: &[u16]| {
            let members = members.iter().map(|n| (peer(*n), info(&format!("v{n}"), 1)));
            let mut roster = Roster::of(members, Millis(0));
            roster.revoke(revoked.iter().map(|n| peer(*n)).collect(), BTreeSet::new());
            roster.digest()
        };
        // A driver hands no credential of a revoked node to the cell, and a node that was not there has heard of none.
        assert_eq!(roster(&[1, 2, 3], &[1]), roster(&[2, 3], &[1]));
        assert_eq!(roster(&[1, 2, 3], &[1]), roster(&[2, 3], &[]));
        assert_ne!(roster(&[1, 2, 3], &[1]), roster(&[1, 2, 3], &[]), "it is out");
        // Who is out by a copied stick still counts: members must agree about it.
        let mut copied = Roster::of([(peer(2), info("v", 1)), (peer(3), info("v", 2))], Millis(0));
        assert!(copied.is_quarantined(&peer(3)));
        copied.revoke(BTreeSet::new(), BTreeSet::new());
        assert_ne!(copied.digest(), roster(&[2], &[]));
    }

    #[test]
    fn who_is_revoked_is_out_for_good_and_nobody_inherits_its_voucher() {
        let revoke = |roster: &mut Roster, peers: &[u16]| {
            roster.revoke(peers.iter().map(|n| peer(*n)).collect(), BTreeSet::new())
        };
        let (mut early, mut late) = (Roster::default(), Roster::default());
        early.add(peer(1), info("v", 10), Millis(0));
        assert_eq!(revoke(&mut early, &[1]), [peer(1)]);
        assert_eq!(revoke(&mut early, &[1]), [], "once");
        early.add(peer(2), info("v", 20), Millis(0));
        revoke(&mut late, &[1]);
        late.add(peer(1), info("v", 10), Millis(0));
        late.add(peer(2), info("v", 20), Millis(0));
        for roster in [&early, &late] {
            assert!(!roster.contains(&peer(1)) && !roster.contains(&peer(2)));
        }
        assert_eq!(early.digest(), late.digest());
        early.add(peer(1), info("fresh", 30), Millis(0));
        assert!(
            !early.contains(&peer(1)),
            "a new voucher does not bring a revoked node back"
        );
        assert_eq!(
            early.revoke(BTreeSet::new(), BTreeSet::from(["w".to_owned()])),
            []
        );
        early.add(peer(3), info("w", 1), Millis(0));
        assert!(!early.contains(&peer(3)));
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order() {
        let digest = |order: &[u16]| {
            let mut roster = Roster::default();
            for n in order {
                roster.add(peer(*n), info("", 0), Millis(0));
            }
            roster.digest()
        };
        assert_eq!(digest(&[1, 2, 3]), digest(&[3, 1, 2]));
        assert_ne!(digest(&[1, 2, 3]), digest(&[1, 2]));
    }

    proptest! {
        #[test]
        fn key_digest_says_who_has_which_key_whatever_the_way_there(
            news in prop::collection::vec((0..6u16, 0..4u32, 0..2u64), 0..40),
            seed in any::<u64>(),
        ) {
            let rotated = |generation: u32, redeemed: u64| {
                let mut info = info("", redeemed);
                info.key.generation = generation;
                info
            };
            let mut roster = Roster::default();
            for (n, generation, redeemed) in news {
                roster.add(peer(n), rotated(generation, redeemed), Millis(0));
            }
            // The same keys, heard at once and in another order.
            let mut known: Vec<(PeerId, MemberInfo)> =
                roster.all().map(|(peer, info)| (peer.clone(), info.clone())).collect();
            known.sort_by_key(|(peer, _)| peer_hash(peer) ^ seed);
            let mut other = Roster::of(known.clone(), Millis(0));
            prop_assert_eq!(roster.key_digest(), other.key_digest());
            prop_assert_eq!(roster.key_digest() == 0, roster.generations().next().is_none());
            if let Some((peer, mut info)) = known.pop() {
                info.key.generation += 1;
                other.add(peer, info, Millis(0));
                prop_assert_ne!(roster.key_digest(), other.key_digest());
            }
        }
    }

    #[test]
    fn the_roster_is_bounded() {
        let mut roster = Roster::default();
        for n in 0..MAX_MEMBERS {
            assert_ne!(
                roster.add(peer(u16::try_from(n).unwrap()), info("", 0), Millis(0)),
                Added::Full
            );
        }
        assert_eq!(roster.add(peer(9999), info("", 0), Millis(0)), Added::Full);
    }
}
