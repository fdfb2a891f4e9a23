//! The standing orders that this node knows: to rotate node keys, acceptances of what nodes boot, and the releases that count.
//! Kept on the state volume, merged from sticks, operators and members.
//!
//! Obeys none: the member task and the cell do. Invariant: what was taken is on disk before anybody is told that it was.

use crate::journal::Journal;
use crate::store::Store;
use beemesh_agent_api::keys::OrderView;
use beemesh_agent_sched::OrderNews;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Envelope, NodeKeys, Refusal, RootChain, Source, Standing, limits};
use std::sync::{Arc, PoisonError, RwLock};

/// Name of the document on the state volume; all kinds lie in it.
const DOCUMENT: &str = "key-orders.json";

/// Cheap to clone; all clones share one knowledge.
#[derive(Clone)]
pub struct Orders {
    shared: Arc<RwLock<Standing>>,
    store: Store,
    journal: Journal,
}

impl Orders {
    /// What an earlier run kept. `roots` is the chain of a member; a box without one knows nothing.
    pub fn open(store: Store, journal: Journal, roots: Option<&RootChain>) -> Self {
        let envelopes: Vec<Envelope> = match store.load(DOCUMENT) {
            Ok(envelopes) => envelopes.unwrap_or_default(),
            Err(error) => {
                journal.announce("OrdersDamaged", "node/self", &crate::words(&error));
                Vec::new()
            }
        };
        let orders = roots.map(|roots| Standing::restore(&envelopes, roots));
        Self {
            shared: Arc::new(RwLock::new(orders.unwrap_or_default())),
            store,
            journal,
        }
    }

    /// Takes an order of an operator, a stick or a member. Returns whether it says something new, which is on disk then.
    pub fn take(&self, envelope: &Envelope, roots: &RootChain, source: Source) -> Result<bool, Refusal> {
        let changed = {
            let mut orders = self.shared.write().unwrap_or_else(PoisonError::into_inner);
            orders.take(envelope, roots, source)?
        };
        if changed {
            let envelopes: Vec<_> = self.read(|orders| orders.envelopes().cloned().collect());
            if let Err(error) = self.store.save(DOCUMENT, &envelopes) {
                self.journal
                    .announce("OrdersNotKept", "node/self", &crate::words(&error));
            }
        }
        Ok(changed)
    }

    /// Whether an order with this id is held.
    pub fn holds(&self, id: &str) -> bool {
        self.read(|orders| orders.holds(id))
    }

    /// The acceptances, as they were signed.
    pub fn acceptances(&self) -> Vec<Envelope> {
        self.read(|orders| orders.boots.envelopes().cloned().collect())
    }

    /// The newest order for `node` that a key as new as `as_of` is older than.
    pub fn outstanding(&self, node: &PeerId, as_of: &str) -> Option<String> {
        self.read(|orders| {
            let newest = orders.keys.newest_for(node)?;
            (newest > as_of).then(|| newest.to_owned())
        })
    }

    /// What the cell is told.
    pub fn news(&self) -> OrderNews {
        self.read(OrderNews::of)
    }

    /// What an operator is shown.
    pub fn view(&self) -> Vec<OrderView> {
        self.read(|orders| {
            let view = orders.keys.iter().map(|order| OrderView {
                id: order.id.clone(),
                issued: order.issued.to_string(),
                nodes: order.nodes.as_ref().map(|nodes| nodes.iter().cloned().collect()),
            });
            view.collect()
        })
    }

    fn read<T>(&self, read: impl FnOnce(&Standing) -> T) -> T {
        read(&self.shared.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether a node with these keys can rotate no more.
pub fn is_used_up(generation: u32) -> bool {
    usize::try_from(generation).unwrap_or(usize::MAX) >= limits::ROTATIONS
}

/// The order that a node with these keys has to obey.
pub fn to_obey(orders: &Orders, keys: &NodeKeys) -> Option<String> {
    let outstanding = orders.outstanding(keys.node(), keys.as_of());
    outstanding.filter(|_| !is_used_up(keys.generation()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, operator, peer, roots};
    use beemesh_joinpack_format::{Acceptance, KeyOrder, Registers, ReleaseEntry, ReleaseList};

    fn order(n: u8, nodes: &[u8]) -> Envelope {
        let order = KeyOrder {
            fabric: roots().fabric_id().clone(),
            id: format!("01KDVKFD00000000000001{n:04}"),
            issued: NOW,
            nodes: (!nodes.is_empty()).then(|| nodes.iter().map(|n| peer(*n)).collect()),
        };
        order.sign(&[&operator()]).unwrap()
    }

    fn open(folder: &std::path::Path) -> Orders {
        let journal = Journal::new(folder.join("console"));
        Orders::open(Store::open(folder).unwrap(), journal, Some(&roots()))
    }

    #[test]
    fn what_was_taken_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let orders = open(folder.path());
        assert_eq!(orders.news(), OrderNews::default());
        assert_eq!(orders.take(&order(1, &[1]), &roots(), Source::Person), Ok(true));
        assert_eq!(orders.take(&order(2, &[2]), &roots(), Source::Person), Ok(true));
        assert_eq!(
            orders.take(&order(1, &[1]), &roots(), Source::Person),
            Ok(false),
            "a replay"
        );
        let again = open(folder.path());
        assert_eq!((again.news(), again.view()), (orders.news(), orders.view()));
        assert_ne!(again.news().digest, 0);
    }

    #[test]
    fn acceptance_is_known_after_a_restart_beside_the_orders_and_a_replay_of_an_older_one_takes_nothing_back()
    {
        let accept = |n: u8, value: u8| {
            let registers = Registers([(0, beemesh_ids::Digest::of(&[value]))].into());
            let acceptance = Acceptance {
                fabric: roots().fabric_id().clone(),
                id: format!("01KDVKFD00000000000001{n:04}"),
                issued: NOW,
                reason: None,
                nodes: [(peer(1), registers)].into(),
            };
            acceptance.sign(&[&operator()]).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let orders = open(folder.path());
        orders.take(&order(1, &[1]), &roots(), Source::Person).unwrap();
        let without = orders.news();
        assert_eq!(orders.take(&accept(3, 1), &roots(), Source::Person), Ok(true));
        assert_eq!(orders.take(&accept(5, 2), &roots(), Source::Member), Ok(true));
        let news = orders.news();
        assert_ne!(news.digest, without.digest);
        assert_eq!(news.accepted[&peer(1)].0[&0], beemesh_ids::Digest::of(&[2]));
        assert_eq!((news.orders.len(), orders.acceptances()), (2, vec![accept(5, 2)]));
        assert_eq!(
            orders.take(&accept(3, 1), &roots(), Source::Person),
            Ok(false),
            "a replay"
        );
        assert_eq!(open(folder.path()).news(), news);
    }

    #[test]
    fn downgrade_of_releases_by_an_older_list_is_no_news_after_a_restart_too() {
        let list = |n: u8| {
            let list = ReleaseList {
                fabric: roots().fabric_id().clone(),
                id: format!("01KDVKFD00000000000001{n:04}"),
                issued: NOW,
                releases: vec![ReleaseEntry {
                    version: format!("0.{n}.0"),
                    pcr11: beemesh_ids::Digest::of(&[n]),
                }],
            };
            list.sign(&[&crate::fixture::key()]).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        let orders = open(folder.path());
        assert_eq!(orders.take(&list(2), &roots(), Source::Member), Ok(true));
        let orders = open(folder.path());
        assert_eq!(orders.take(&list(1), &roots(), Source::Person), Ok(false));
        assert_eq!(orders.take(&list(1), &roots(), Source::Member), Ok(false));
        assert_eq!(orders.news().releases.unwrap().releases[0].version, "0.2.0");
        assert_eq!(orders.take(&list(3), &roots(), Source::Member), Ok(true));
        assert_eq!(orders.news().orders.len(), 1, "the newest list alone is kept");
        // An operator's key, which may not sign packs, signs no list either.
        let by_operator = ReleaseList {
            fabric: roots().fabric_id().clone(),
            id: format!("01KDVKFD00000000000001{:04}", 9),
            issued: NOW,
            releases: vec![ReleaseEntry {
                version: "9".into(),
                pcr11: beemesh_ids::Digest::of(b"9"),
            }],
        };
        let forged = by_operator.sign(&[&operator()]).unwrap();
        assert_eq!(
            orders.take(&forged, &roots(), Source::Member).unwrap_err().code(),
            "unknown-key"
        );
    }

    #[test]
    fn order_is_outstanding_for_keys_that_are_older_alone() {
        let folder = tempfile::tempdir().unwrap();
        let orders = open(folder.path());
        orders.take(&order(5, &[1]), &roots(), Source::Person).unwrap();
        let id = |n: u8| format!("01KDVKFD00000000000001{n:04}");
        let voucher = "01KDVKFD000000000000000001".to_owned();
        let old = NodeKeys::first(peer(1), voucher.clone(), NOW);
        assert_eq!(to_obey(&orders, &old), Some(id(5)));
        assert_eq!(
            to_obey(&orders, &NodeKeys::first(peer(2), voucher, NOW)),
            None,
            "not named"
        );
        // Who joined by a voucher that was made after the order has a key that is newer.
        assert_eq!(to_obey(&orders, &NodeKeys::first(peer(1), id(6), NOW)), None);
        orders.take(&order(9, &[]), &roots(), Source::Person).unwrap();
        assert_eq!(to_obey(&orders, &old), Some(id(9)), "the newest alone");
    }
}
