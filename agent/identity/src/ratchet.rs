//! Which of a node's keys counts: what every verifier remembers of the chains of rotations that it has seen.
//!
//! Pure: verified keys and monotonic time in, a verdict out; the node keeps it on disk with the members' credentials. Of two
//! chains that differ the one seen first wins, as with vouchers: whoever stole an old key can make a chain of its own, but not
//! one that a verifier takes which knows the right one. Invariant: no two keys of one generation of one node are accepted, and
//! an older key is accepted for [`OVERLAP_MS`] after a newer one was learned, and never after a restart.

use beemesh_ids::PeerId;
use beemesh_joinpack_format::NodeKeys;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// For so many milliseconds after it learned of a newer key a verifier accepts the older ones: ten minutes, in which a node
/// moves its connections over.
pub const OVERLAP_MS: u64 = 600_000;

/// Why a node's key does not count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum KeyRefusal {
    /// Another key of the same generation was seen before: somebody has an older key of that node.
    #[error(
        "key {generation} of node `{node}` is `{first}`, but `{second}` was shown: somebody else has a key of that node"
    )]
    Conflict {
        /// The node id.
        node: PeerId,
        /// Of the key.
        generation: u32,
        /// What was seen first.
        first: PeerId,
        /// What came later.
        second: PeerId,
    },
    /// The node has a newer key, and the time for the older ones is over.
    #[error("key {shown} of node `{node}` is superseded: it has key {newest} by now")]
    Superseded {
        /// The node id.
        node: PeerId,
        /// Generation of the key that was shown.
        shown: u32,
        /// Generation of the newest.
        newest: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    /// All keys, by generation; never empty.
    keys: Vec<PeerId>,
    /// When the newest was learned, in this run.
    learned_ms: Option<u64>,
}

impl Known {
    fn newest(&self) -> u32 {
        u32::try_from(self.keys.len().saturating_sub(1)).unwrap_or(u32::MAX)
    }

    fn accepts(&self, generation: u32, now_ms: u64) -> bool {
        let overlaps = |learned: u64| now_ms.saturating_sub(learned) < OVERLAP_MS;
        generation >= self.newest() || self.learned_ms.is_some_and(overlaps)
    }
}

/// The chains that a verifier has seen. As bounded as the members that it knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Vec<PeerId>>", into = "Vec<Vec<PeerId>>")]
pub struct KeyRatchet {
    nodes: BTreeMap<PeerId, Known>,
}

impl KeyRatchet {
    /// Takes what was remembered over a restart: from then on only the newest key is accepted.
    ///
    /// # Errors
    /// [`KeyRefusal::Conflict`] with what was remembered before.
    pub fn restore(&mut self, keys: &NodeKeys) -> Result<(), KeyRefusal> {
        self.take(keys, None).map(drop)
    }

    /// Takes the verified keys of a node, from wherever they came. Returns whether a newer one was among them.
    ///
    /// # Errors
    /// [`KeyRefusal::Conflict`]; what is known stays.
    pub fn learn(&mut self, keys: &NodeKeys, now_ms: u64) -> Result<bool, KeyRefusal> {
        self.take(keys, Some(now_ms))
    }

    /// As [`KeyRatchet::learn`], and judges the key that a peer has shown and that the handshake has proven.
    ///
    /// # Errors
    /// [`KeyRefusal`].
    pub fn judge(&mut self, keys: &NodeKeys, now_ms: u64) -> Result<(), KeyRefusal> {
        self.learn(keys, now_ms)?;
        match self.nodes.get(keys.node()) {
            Some(known) if !known.accepts(keys.shown(), now_ms) => Err(KeyRefusal::Superseded {
                node: keys.node().clone(),
                shown: keys.shown(),
                newest: known.newest(),
            }),
            _ => Ok(()),
        }
    }

    /// Whether a connection of this node by this key may go on.
    pub fn accepts(&self, node: &PeerId, key: &PeerId, now_ms: u64) -> bool {
        self.nodes.get(node).is_none_or(|known| {
            let generation = known.keys.iter().position(|known| known == key);
            let generation = generation.and_then(|at| u32::try_from(at).ok());
            generation.is_some_and(|generation| known.accepts(generation, now_ms))
        })
    }

    fn take(&mut self, keys: &NodeKeys, learned_ms: Option<u64>) -> Result<bool, KeyRefusal> {
        let shown: Vec<PeerId> = keys.all().cloned().collect();
        let Some(known) = self.nodes.get_mut(keys.node()) else {
            let known = Known {
                keys: shown,
                learned_ms,
            };
            self.nodes.insert(keys.node().clone(), known);
            return Ok(keys.generation() > 0);
        };
        let mut both = (0..).zip(known.keys.iter().zip(&shown));
        if let Some((generation, (first, second))) = both.find(|(_, (first, second))| first != second) {
            return Err(KeyRefusal::Conflict {
                node: keys.node().clone(),
                generation,
                first: first.clone(),
                second: second.clone(),
            });
        }
        let is_news = shown.len() > known.keys.len();
        if is_news {
            *known = Known {
                keys: shown,
                learned_ms,
            };
        }
        Ok(is_news)
    }
}

impl From<Vec<Vec<PeerId>>> for KeyRatchet {
    fn from(chains: Vec<Vec<PeerId>>) -> Self {
        let entry = |keys: Vec<PeerId>| {
            let node = keys.first()?.clone();
            let known = Known {
                keys,
                learned_ms: None,
            };
            Some((node, known))
        };
        Self {
            nodes: chains.into_iter().filter_map(entry).collect(),
        }
    }
}

impl From<KeyRatchet> for Vec<Vec<PeerId>> {
    fn from(ratchet: KeyRatchet) -> Self {
        ratchet.nodes.into_values().map(|known| known.keys).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_joinpack_format::Timestamp;
    use proptest::prelude::*;

    fn peer(name: (u8, u8)) -> PeerId {
        let mut key = [0; 32];
        (key[0], key[1]) = name;
        PeerId::from_ed25519(&key)
    }

    /// A node with these later keys, of which it shows the one of generation `shown`.
    fn keys(later: &[u8], shown: usize) -> NodeKeys {
        let chain: Vec<_> = (1..).zip(later).map(|(n, fork)| peer((n, *fork))).collect();
        let all: Vec<_> = std::iter::once(peer((0, 0))).chain(chain.clone()).collect();
        let document = serde_json::json!({
            "node": peer((0, 0)), "later": chain, "shown": shown.min(all.len() - 1),
            "voucher": "01KDVKFD000000000000000001", "order": null, "since": Timestamp(0),
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn older_key_is_good_for_ten_minutes_after_the_newer_was_learned() {
        let mut ratchet = KeyRatchet::default();
        assert_eq!(ratchet.judge(&keys(&[], 0), 0), Ok(()));
        assert_eq!(ratchet.learn(&keys(&[1], 0), 1_000), Ok(true));
        assert_eq!(ratchet.judge(&keys(&[], 0), 1_000 + OVERLAP_MS - 1), Ok(()));
        assert_eq!(ratchet.judge(&keys(&[1], 0), 1_000 + OVERLAP_MS - 1), Ok(()));
        let late = ratchet.judge(&keys(&[1], 0), 1_000 + OVERLAP_MS);
        assert!(
            matches!(
                late,
                Err(KeyRefusal::Superseded {
                    shown: 0,
                    newest: 1,
                    ..
                })
            ),
            "{late:?}"
        );
        assert!(ratchet.judge(&keys(&[], 0), 1_000 + OVERLAP_MS).is_err());
        assert_eq!(ratchet.judge(&keys(&[1], 1), 1_000 + OVERLAP_MS), Ok(()));
        assert!(ratchet.accepts(&peer((0, 0)), &peer((1, 1)), u64::MAX));
        assert!(!ratchet.accepts(&peer((0, 0)), &peer((0, 0)), u64::MAX));
        assert!(
            !ratchet.accepts(&peer((0, 0)), &peer((1, 2)), 1_000),
            "a key that the node never had"
        );
    }

    #[test]
    fn after_a_restart_only_the_newest_key_is_good() {
        let mut ratchet = KeyRatchet::default();
        ratchet.learn(&keys(&[1, 1], 0), 5).unwrap();
        let text = serde_json::to_string(&ratchet).unwrap();
        let mut again: KeyRatchet = serde_json::from_str(&text).unwrap();
        assert!(matches!(
            again.judge(&keys(&[1], 1), 6),
            Err(KeyRefusal::Superseded { .. })
        ));
        assert_eq!(again.judge(&keys(&[1, 1], 2), 6), Ok(()));
        assert!(matches!(
            again.judge(&keys(&[1, 2], 2), 6),
            Err(KeyRefusal::Conflict { generation: 2, .. })
        ));
    }

    #[test]
    fn thief_of_an_old_key_is_told_apart_whatever_the_length_of_its_chain() {
        let mut ratchet = KeyRatchet::default();
        ratchet.learn(&keys(&[1, 1], 2), 0).unwrap();
        for stolen in [&[2][..], &[2, 2], &[2, 2, 2, 2], &[1, 2, 2]] {
            let refused = ratchet.judge(&keys(stolen, stolen.len()), 1);
            assert!(
                matches!(refused, Err(KeyRefusal::Conflict { .. })),
                "{stolen:?}: {refused:?}"
            );
        }
        assert_eq!(
            ratchet.judge(&keys(&[1, 1], 2), 1),
            Ok(()),
            "and the node itself stays"
        );
    }

    proptest! {
        /// Chains of two rivals who fork at some generation, in any order, with restarts and time between them.
        #[test]
        fn invariant_one_key_for_each_generation_and_nothing_is_forgotten(
            arrivals in proptest::collection::vec((0usize..5, 0usize..6, 0usize..6, any::<bool>(), 0u64..OVERLAP_MS), 1..40)
        ) {
            let mut ratchet = KeyRatchet::default();
            let mut accepted: BTreeMap<u32, PeerId> = BTreeMap::new();
            let (mut now, mut newest) = (0, 0);
            for (fork, length, shown, restart, pause) in arrivals {
                now += pause;
                // The rival's keys differ from generation `fork + 1` on; fork 4 is the node itself.
                let later: Vec<u8> = (0..length).map(|n| if n < fork || fork == 4 { 1 } else { 2 }).collect();
                let keys = keys(&later, shown);
                if ratchet.judge(&keys, now).is_ok() {
                    newest = newest.max(keys.generation());
                    for (generation, key) in (0..).zip(keys.all()) {
                        let first = accepted.entry(generation).or_insert_with(|| key.clone());
                        prop_assert_eq!(&*first, key, "two keys of generation {}", generation);
                    }
                }
                if restart {
                    let text = serde_json::to_string(&ratchet).unwrap();
                    ratchet = serde_json::from_str(&text).unwrap();
                    let chain = ratchet.nodes.get(&peer((0, 0))).map_or(0, Known::newest);
                    prop_assert!(chain >= newest, "what was accepted is not forgotten");
                    // What is older is refused from now on.
                    for (generation, key) in &accepted {
                        prop_assert_eq!(ratchet.accepts(&peer((0, 0)), key, now), *generation == chain);
                    }
                }
            }
        }
    }
}
