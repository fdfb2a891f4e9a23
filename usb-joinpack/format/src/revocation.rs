//! Revocations: nodes, vouchers and role keys that count for nothing any more, as signed snapshots.
//!
//! Reads no clock: how old a snapshot is, and what follows from it, is its reader's business. Invariant: a
//! [`RevocationSet`] only grows. Snapshots are merged by union, so neither an old one, nor one of an operator who did not
//! know of another's, takes anything back, and the order of their arrival does not matter.

use crate::validate::{ascending, check_ulid, payload};
use crate::{Act, Deed, Envelope, KeyId, Refusal, Role, RootChain, SecretKey, Source, Timestamp, limits};
use beemesh_ids::{Digest, DigestHasher, FabricId, PeerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// DSSE payload type of a [`Revocations`].
pub const REVOCATION_PAYLOAD_TYPE: &str = "application/vnd.beemesh.revocations.v1+json";
const WHAT: &str = "revocation snapshot";

/// A snapshot: everything that its signer knows to be revoked. The payload of an envelope of type
/// [`REVOCATION_PAYLOAD_TYPE`], signed by a role that may: see [`Revocations::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocations {
    /// The fabric.
    pub fabric: FabricId,
    /// When it was made: what is not in it was not revoked then, as far as its signer knew.
    pub issued: Timestamp,
    /// Nodes, ascending, at most [`limits::REVOKED`].
    #[serde(deserialize_with = "ascending")]
    pub nodes: BTreeSet<PeerId>,
    /// Ids of vouchers, ascending, at most [`limits::REVOKED`].
    #[serde(deserialize_with = "ascending")]
    pub vouchers: BTreeSet<String>,
    /// Keys of roles, ascending, at most [`limits::KEYS`]. No root keys: those are replaced by a new root document.
    #[serde(deserialize_with = "ascending")]
    pub keys: BTreeSet<KeyId>,
}

impl Deed for Revocations {
    const PAYLOAD_TYPE: &'static str = REVOCATION_PAYLOAD_TYPE;
    const WHAT: &'static str = WHAT;
    const ROLES: &'static [Role] = &[Role::Recovery, Role::Enrolment, Role::Operator];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        check_length(payload)?;
        let snapshot: Self = serde_json::from_slice(payload).map_err(|e| Refusal::malformed(WHAT, e))?;
        snapshot.check()?;
        Ok(snapshot)
    }

    fn act(&self) -> Act<'_> {
        match self.keys.is_empty() {
            true => Act::Revoke,
            false => Act::RevokeKeys,
        }
    }

    fn at(&self) -> Timestamp {
        self.issued
    }

    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

impl Revocations {
    /// A snapshot in which nothing is revoked.
    pub fn none(fabric: FabricId, issued: Timestamp) -> Self {
        Self {
            fabric,
            issued,
            nodes: BTreeSet::new(),
            vouchers: BTreeSet::new(),
            keys: BTreeSet::new(),
        }
    }

    /// Signs the snapshot with each of `keys`. Refuses one that no reader would accept.
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Envelope, Refusal> {
        Ok(Envelope::sign(REVOCATION_PAYLOAD_TYPE, &self.to_payload()?, keys))
    }

    /// What is signed. Refuses a snapshot that no reader would accept.
    pub fn to_payload(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        let payload = payload(WHAT, self)?;
        check_length(&payload)?;
        Ok(payload)
    }

    /// The snapshot in `envelope`. Operators, enrolment and recovery may revoke nodes and vouchers; keys only recovery
    /// may, or one stolen key could shut out all the others.
    pub fn verify(envelope: &Envelope, roots: &RootChain, source: Source) -> Result<Self, Refusal> {
        let snapshot: Self = roots.accept(envelope, source)?;
        let root = roots.current().role(Role::Root);
        if let Some(id) = snapshot.keys.iter().find(|id| root.key(id).is_some()) {
            return Err(Refusal::Inconsistent {
                what: "revocation of root key",
                value: id.to_string(),
            });
        }
        Ok(snapshot)
    }

    fn check(&self) -> Result<(), Refusal> {
        for (what, count, limit) in [
            ("revoked nodes", self.nodes.len(), limits::REVOKED),
            ("revoked vouchers", self.vouchers.len(), limits::REVOKED),
            ("revoked keys", self.keys.len(), limits::KEYS),
        ] {
            if count > limit {
                return Err(Refusal::LimitExceeded { what, limit });
            }
        }
        self.vouchers
            .iter()
            .try_for_each(|id| check_ulid("voucher id", id))
    }

    /// Adds what `other` revokes. The caller decides about `issued`.
    pub fn add(&mut self, other: &Self) {
        self.nodes.extend(other.nodes.iter().cloned());
        self.vouchers.extend(other.vouchers.iter().cloned());
        self.keys.extend(other.keys.iter().cloned());
    }

    fn revokes_no_more_than(&self, other: &Self) -> bool {
        self.nodes.is_subset(&other.nodes)
            && self.vouchers.is_subset(&other.vouchers)
            && self.keys.is_subset(&other.keys)
    }
}

fn check_length(payload: &[u8]) -> Result<(), Refusal> {
    if payload.len() > limits::REVOCATION_PAYLOAD {
        return Err(Refusal::TooLarge {
            what: WHAT,
            limit: limits::REVOCATION_PAYLOAD,
        });
    }
    Ok(())
}

/// Everything that is known to be revoked, with the snapshots that prove it: at most [`limits::SNAPSHOTS`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationSet {
    held: Vec<(Revocations, Envelope)>,
}

impl RevocationSet {
    /// The set of what `envelopes` prove. What does not verify any more (its signer has left the role) is left out.
    pub fn restore(envelopes: &[Envelope], roots: &RootChain) -> Self {
        let mut set = Self::default();
        for envelope in envelopes.iter().take(limits::SNAPSHOTS) {
            let _ = set.take(envelope, roots, Source::Member);
        }
        set
    }

    /// Verifies a snapshot and merges it. Returns whether the set knows more than before: another revocation, or the
    /// same at a later time.
    pub fn take(&mut self, envelope: &Envelope, roots: &RootChain, source: Source) -> Result<bool, Refusal> {
        let snapshot = Revocations::verify(envelope, roots, source)?;
        let new_time = self.issued().is_none_or(|newest| snapshot.issued > newest);
        if !new_time && snapshot.revokes_no_more_than(&self.union(&snapshot.fabric)) {
            return Ok(false);
        }
        let mut held = self.held.clone();
        held.push((snapshot, envelope.clone()));
        prune(&mut held);
        if held.len() > limits::SNAPSHOTS {
            return Err(Refusal::LimitExceeded {
                what: "revocation snapshots that each lack what another has",
                limit: limits::SNAPSHOTS,
            });
        }
        self.held = held;
        Ok(true)
    }

    /// Everything that is revoked, as one snapshot of the newest time.
    pub fn union(&self, fabric: &FabricId) -> Revocations {
        let mut union = Revocations::none(fabric.clone(), self.issued().unwrap_or(Timestamp::EPOCH));
        for (snapshot, _) in &self.held {
            union.add(snapshot);
        }
        union
    }

    /// When the newest snapshot was made.
    pub fn issued(&self) -> Option<Timestamp> {
        self.held.iter().map(|(snapshot, _)| snapshot.issued).max()
    }

    /// Whether a node is revoked.
    pub fn has_node(&self, peer: &PeerId) -> bool {
        self.held
            .iter()
            .any(|(snapshot, _)| snapshot.nodes.contains(peer))
    }

    /// Whether a voucher is revoked.
    pub fn has_voucher(&self, id: &str) -> bool {
        self.held
            .iter()
            .any(|(snapshot, _)| snapshot.vouchers.contains(id))
    }

    /// The keys that are revoked.
    pub fn keys(&self) -> impl Iterator<Item = &KeyId> {
        self.held.iter().flat_map(|(snapshot, _)| &snapshot.keys)
    }

    /// The snapshots, as they were signed.
    pub fn envelopes(&self) -> impl Iterator<Item = &Envelope> {
        self.held.iter().map(|(_, envelope)| envelope)
    }

    /// The same wherever the same is revoked as of the same time, whichever snapshots prove it.
    pub fn digest(&self) -> Digest {
        let mut hasher = DigestHasher::default();
        let mut all = Revocations::none(FabricId::from_root(Digest::of(b"")), Timestamp::EPOCH);
        self.held.iter().for_each(|(snapshot, _)| all.add(snapshot));
        let mut item = |kind: &str, text: &str| hasher.update(format!("{kind} {text}\n").as_bytes());
        item(
            "issued",
            &self.issued().map_or_else(String::new, |at| at.to_string()),
        );
        all.nodes.iter().for_each(|peer| item("node", peer.as_str()));
        all.vouchers.iter().for_each(|id| item("voucher", id));
        all.keys.iter().for_each(|id| item("key", id.as_str()));
        hasher.finish()
    }
}

/// Drops, oldest first, each snapshot that adds nothing to the others; the newest stays.
fn prune(held: &mut Vec<(Revocations, Envelope)>) {
    held.sort_by_key(|(snapshot, _)| snapshot.issued);
    let mut at = 0;
    while at + 1 < held.len() {
        let candidate = held.remove(at);
        let mut others = Revocations::none(candidate.0.fabric.clone(), Timestamp::EPOCH);
        held.iter().for_each(|(other, _)| others.add(other));
        if !candidate.0.revokes_no_more_than(&others) {
            held.insert(at, candidate);
            at += 1;
        }
    }
}
