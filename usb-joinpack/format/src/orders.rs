//! Orders of operators that stand until a newer one takes their place, and the set of those that a node holds.
//!
//! Reads no clock: an order is as new as its id. Invariant: [`Orders`] says the same whatever the order of arrival, and a replay
//! says nothing new.

use crate::{
    ACCEPTANCE_PAYLOAD_TYPE, Acceptances, Deed, Envelope, KeyOrders, RELEASE_LIST_PAYLOAD_TYPE, Refusal,
    ReleaseLists, RootChain, Source, limits,
};
use beemesh_ids::{Digest, DigestHasher, PeerId};

/// A signed document about nodes, of which the newest that names a node counts for it.
pub trait Order: Deed + Clone {
    /// What more than [`limits::ORDERS`] of them are called.
    const MANY: &'static str;

    /// A ULID: the greater one is the newer one, whatever the clocks said.
    fn id(&self) -> &str;
    /// Whether it is about this node.
    fn names(&self, node: &PeerId) -> bool;
    /// The nodes that it is about; `None`: all.
    fn nodes(&self) -> Option<impl Iterator<Item = &PeerId>>;
}

/// The orders of one kind that still say something, with what proves them: at most [`limits::ORDERS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orders<T> {
    /// By ascending id.
    held: Vec<(T, Envelope)>,
}

impl<T> Default for Orders<T> {
    fn default() -> Self {
        Self { held: Vec::new() }
    }
}

impl<T: Order> Orders<T> {
    /// The orders that `envelopes` prove. What does not verify any more (its signer has left the role) is left out.
    pub fn restore(envelopes: &[Envelope], roots: &RootChain) -> Self {
        let mut orders = Self::default();
        for envelope in envelopes.iter().take(limits::ORDERS) {
            let _ = orders.take(envelope, roots, Source::Member);
        }
        orders
    }

    /// Verifies an order and takes it. Returns whether it says something new: not what is known, nor to nodes of which each
    /// has a newer order. Orders that say nothing any more are dropped.
    pub fn take(&mut self, envelope: &Envelope, roots: &RootChain, source: Source) -> Result<bool, Refusal> {
        let order: T = roots.accept(envelope, source)?;
        if self.held.iter().any(|(known, _)| known.id() == order.id()) || self.is_outdated(&order) {
            return Ok(false);
        }
        let mut orders = self.clone();
        let at = orders.held.partition_point(|(known, _)| known.id() < order.id());
        orders.held.insert(at, (order, envelope.clone()));
        let all = orders.clone();
        orders.held.retain(|(order, _)| !all.is_outdated(order));
        if orders.held.len() > limits::ORDERS {
            return Err(Refusal::LimitExceeded {
                what: T::MANY,
                limit: limits::ORDERS,
            });
        }
        *self = orders;
        Ok(true)
    }

    fn is_outdated(&self, order: &T) -> bool {
        let newer = || self.held.iter().filter(|(known, _)| known.id() > order.id());
        let is_ordered = |node: &PeerId| newer().any(|(known, _)| known.names(node));
        newer().any(|(known, _)| known.nodes().is_none())
            || order.nodes().is_some_and(|mut nodes| nodes.all(is_ordered))
    }

    /// The newest order about a node.
    pub fn about(&self, node: &PeerId) -> Option<&T> {
        let mut newest_first = self.held.iter().rev();
        let (order, _) = newest_first.find(|(order, _)| order.names(node))?;
        Some(order)
    }

    /// Id of the newest order about a node.
    pub fn newest_for(&self, node: &PeerId) -> Option<&str> {
        self.about(node).map(Order::id)
    }

    /// The orders, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.held.iter().map(|(order, _)| order)
    }

    /// The orders, as they were signed.
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.held.iter().map(|(_, envelope)| envelope)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The same wherever the same orders are held.
    pub fn digest(&self) -> Digest {
        let mut hasher = DigestHasher::default();
        for order in self.iter() {
            hasher.update(format!("{}\n", order.id()).as_bytes());
        }
        hasher.finish()
    }
}

/// Standing orders of every kind. They lie and travel together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// To rotate keys.
    pub keys: KeyOrders,
    /// What nodes may boot.
    pub boots: Acceptances,
    /// Which releases there are.
    pub releases: ReleaseLists,
}

impl Standing {
    /// [`Orders::restore`] of every kind.
    pub fn restore(envelopes: &[Envelope], roots: &RootChain) -> Self {
        let mut standing = Self::default();
        for envelope in envelopes.iter().take(limits::STANDING) {
            let _ = standing.take(envelope, roots, Source::Member);
        }
        standing
    }

    /// [`Orders::take`] of the kind that the envelope says it is.
    pub fn take(&mut self, envelope: &Envelope, roots: &RootChain, source: Source) -> Result<bool, Refusal> {
        match envelope.payload_type() {
            ACCEPTANCE_PAYLOAD_TYPE => self.boots.take(envelope, roots, source),
            RELEASE_LIST_PAYLOAD_TYPE => self.releases.take(envelope, roots, source),
            _ => self.keys.take(envelope, roots, source),
        }
    }

    /// All of them, as they were signed; at most [`limits::STANDING`].
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        let keys = self.keys.envelopes();
        keys.chain(self.boots.envelopes())
            .chain(self.releases.envelopes())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.boots.is_empty() && self.releases.is_empty()
    }

    /// Whether one with this id is held.
    pub fn holds(&self, id: &str) -> bool {
        self.keys.iter().any(|order| order.id() == id)
            || self.boots.iter().any(|order| order.id() == id)
            || self.releases.iter().any(|order| order.id() == id)
    }

    /// The same wherever the same orders are held.
    pub fn digest(&self) -> Digest {
        if self.boots.is_empty() && self.releases.is_empty() {
            return self.keys.digest();
        }
        let all = [self.keys.digest(), self.boots.digest(), self.releases.digest()];
        Digest::of(&all.map(|digest| *digest.as_bytes()).concat())
    }
}
