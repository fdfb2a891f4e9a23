//! Rendezvous hashing: who is arbiter, who is placer. Every node with the same roster gives the same answer.
//!
//! It knows nothing of liveness. Source: Thaler and Ravishankar, "A name-based mapping scheme for rendezvous", 1996.

use crate::model::Key;
use beemesh_agent_api::WorkloadId;
use beemesh_ids::PeerId;
use sha2::{Digest, Sha256};

/// Ordinals placed by one placer: neighbours are spread by one mind, big workloads by many.
pub const PLACER_BATCH: u32 = 16;

/// A 64-bit digest of `parts`, each with its length before it.
pub fn digest64(parts: &[&[u8]]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: [u8; 32] = hash.finalize().into();
    hash.iter()
        .take(8)
        .fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

/// Hash of a peer, to be kept beside it.
pub fn peer_hash(peer: &PeerId) -> u64 {
    digest64(&[b"peer", peer.as_str().as_bytes()])
}

/// Hash of an ordinal for its arbiters.
pub fn key_hash(key: &Key) -> u64 {
    digest64(&[b"grant", key.0.to_string().as_bytes(), &key.1.to_be_bytes()])
}

/// Hash of an ordinal for its placer: the same for a batch of ordinals.
pub fn placer_hash(workload: &WorkloadId, ordinal: u32) -> u64 {
    digest64(&[
        b"place",
        workload.to_string().as_bytes(),
        &(ordinal / PLACER_BATCH).to_be_bytes(),
    ])
}

/// Weight of a peer for a thing: the highest wins. splitmix64's finaliser over both hashes.
pub fn weight(peer: u64, thing: u64) -> u64 {
    let mut x = peer ^ thing.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The `count` peers of the greatest weight for `thing`, in order of weight.
pub fn top<'a>(peers: impl Iterator<Item = (&'a PeerId, u64)>, thing: u64, count: usize) -> Vec<PeerId> {
    let mut weighed: Vec<(u64, &PeerId)> = peers.map(|(peer, hash)| (weight(hash, thing), peer)).collect();
    // A few of many are asked for: only they are sorted.
    if let Some(last) = count.checked_sub(1).filter(|last| *last < weighed.len()) {
        weighed.select_nth_unstable_by(last, |a, b| b.cmp(a));
        weighed.truncate(count);
    }
    weighed.sort_unstable_by(|a, b| b.cmp(a));
    weighed
        .into_iter()
        .take(count)
        .map(|(_, peer)| peer.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn peers(count: u8) -> Vec<PeerId> {
        (0..count).map(|n| PeerId::from_ed25519(&[n; 32])).collect()
    }

    #[test]
    fn a_new_peer_takes_and_does_not_reshuffle() {
        let many = peers(40);
        for thing in 0..200 {
            let before = top(many[..39].iter().map(|p| (p, peer_hash(p))), thing, 5);
            let after = top(many.iter().map(|p| (p, peer_hash(p))), thing, 5);
            let stayed = after.iter().filter(|peer| before.contains(peer)).count();
            assert!(stayed >= 4, "{stayed}");
        }
    }

    #[test]
    fn the_load_is_even() {
        let many = peers(20);
        let mut load: BTreeMap<PeerId, u32> = BTreeMap::new();
        for n in 0..4000u64 {
            let thing = digest64(&[&n.to_be_bytes()]);
            for peer in top(many.iter().map(|p| (p, peer_hash(p))), thing, 5) {
                *load.entry(peer).or_default() += 1;
            }
        }
        assert!(load.values().all(|n| (800..1200).contains(n)), "{load:?}");
    }
}
