//! Root documents: which keys a fabric trusts for what, and the chain that lets the keys change (TUF 1.0.33, section 5.3).
//!
//! Knows no pack. Invariant: a [`RootChain`] that exists was verified from root 1 on, each successor by thresholds of its
//! predecessor's root keys and of its own; a chain never gets shorter and never changes what it already holds.

use crate::authority::{KeyLimits, check_limits};
use crate::validate::{check_label, parse_payload, payload, unique_map};
use crate::{Envelope, KeyId, PublicKey, Refusal, SecretKey, Timestamp, limits};
use beemesh_ids::{Digest, FabricId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// DSSE payload type of a [`Root`].
pub const ROOT_PAYLOAD_TYPE: &str = "application/vnd.beemesh.root.v1+json";
const WHAT: &str = "root document";

/// What a key may sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Root documents.
    Root,
    /// Join packs and vouchers, and revocations of nodes and vouchers.
    Enrolment,
    /// Changes of the workloads, and revocations of nodes and vouchers.
    Operator,
    /// OS releases.
    Release,
    /// Revocations of keys. Recovery keys of the state volumes are escrowed to it.
    Recovery,
}

impl Role {
    /// Every role: a root document must have each.
    pub const ALL: [Self; 5] = [
        Self::Root,
        Self::Enrolment,
        Self::Operator,
        Self::Release,
        Self::Recovery,
    ];
}

/// A role as a root document writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleSpec {
    /// Ids of the role's keys, each once, each in [`Root::keys`].
    pub keyids: Vec<KeyId>,
    /// How many different keys must sign: 1 to the number of keys.
    pub threshold: u32,
    /// Until when its keys sign, and what; each in [`RoleSpec::keyids`]. Keys that are not here are not limited.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "unique_map"
    )]
    pub limits: BTreeMap<KeyId, KeyLimits>,
}

/// The keys of a role, ready to verify with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoleKeys {
    keys: BTreeMap<KeyId, PublicKey>,
    threshold: u32,
}

impl RoleKeys {
    /// `threshold` of `keys` must sign; a threshold of 0 counts as 1. Equal keys are one.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>, threshold: u32) -> Self {
        let keys = keys.into_iter().map(|key| (key.key_id(), key)).collect();
        Self {
            keys,
            threshold: threshold.max(1),
        }
    }

    /// The key with this id, if it has the role.
    pub fn key(&self, id: &KeyId) -> Option<&PublicKey> {
        self.keys.get(id)
    }

    /// All keys of the role.
    pub fn keys(&self) -> impl Iterator<Item = (&KeyId, &PublicKey)> {
        self.keys.iter()
    }

    /// How many different keys must sign, at least 1.
    pub fn threshold(&self) -> usize {
        self.threshold as usize
    }
}

/// A root document: the payload of an envelope of type [`ROOT_PAYLOAD_TYPE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Name for people, a DNS label. The same in every version.
    pub fabric_name: String,
    /// 1, 2, 3, … without gaps.
    pub version: u32,
    /// When it was made. Root documents do not expire: that could brick a node that was offline.
    pub issued: Timestamp,
    /// All keys, by id.
    #[serde(deserialize_with = "unique_map")]
    pub keys: BTreeMap<KeyId, PublicKey>,
    /// All five roles.
    #[serde(deserialize_with = "unique_map")]
    pub roles: BTreeMap<Role, RoleSpec>,
    /// 16 random bytes, 32 lower-case hexadecimal digits: makes the fabric's id its own. The same in every version.
    pub nonce: String,
}

impl Root {
    /// Signs the document with each of `keys`. Refuses a document that no reader would accept.
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Envelope, Refusal> {
        Ok(Envelope::sign(ROOT_PAYLOAD_TYPE, &self.to_payload()?, keys))
    }

    /// What is signed. Refuses a document that no reader would accept.
    pub fn to_payload(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        payload(WHAT, self)
    }

    /// The keys of a role; none if the document lacks it (a checked one does not).
    pub fn role(&self, role: Role) -> RoleKeys {
        let Some(spec) = self.roles.get(&role) else {
            return RoleKeys::new([], 1);
        };
        RoleKeys::new(
            spec.keyids.iter().filter_map(|id| self.keys.get(id).copied()),
            spec.threshold,
        )
    }

    /// Until when a key of a role signs, and what.
    pub fn limits_of(&self, role: Role, key: &KeyId) -> KeyLimits {
        let limits = self.roles.get(&role).and_then(|spec| spec.limits.get(key));
        limits.cloned().unwrap_or_default()
    }

    fn check(&self) -> Result<(), Refusal> {
        let fail = |reason: String| Err(Refusal::malformed(WHAT, reason));
        check_label("fabric name", &self.fabric_name)?;
        if self.nonce.len() != 32
            || self
                .nonce
                .bytes()
                .any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return fail("its nonce is not 32 lower-case hexadecimal digits".into());
        }
        if self.version == 0 {
            return fail("its version is 0".into());
        }
        if self.keys.len() > limits::KEYS {
            return Err(Refusal::LimitExceeded {
                what: "keys in a root document",
                limit: limits::KEYS,
            });
        }
        if let Some((id, _)) = self.keys.iter().find(|(id, key)| key.key_id() != **id) {
            return fail(format!("key {id} does not have this id"));
        }
        for role in Role::ALL {
            let Some(spec) = self.roles.get(&role) else {
                return fail(format!("it lacks the role {role:?}"));
            };
            let keys = self.role(role).keys.len();
            if keys != spec.keyids.len() {
                return fail(format!(
                    "role {role:?} names a key twice or one that the document lacks"
                ));
            }
            if spec.threshold == 0 || spec.threshold as usize > keys {
                return fail(format!("role {role:?} demands {} of {keys} keys", spec.threshold));
            }
            for (id, limits) in &spec.limits {
                if !spec.keyids.contains(id) {
                    return fail(format!("role {role:?} limits key {id}, which it does not have"));
                }
                check_limits(role, limits)?;
            }
        }
        Ok(())
    }
}

/// Root documents 1..N, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootChain {
    fabric: FabricId,
    envelopes: Vec<Envelope>,
    current: Root,
    digests: Vec<Digest>,
    /// Keys that sign nothing any more, whatever the roots say.
    revoked: BTreeSet<KeyId>,
    /// What is certainly past: see [`RootChain::past`].
    past: Timestamp,
}

impl RootChain {
    /// Verifies a chain from root 1 on. Root 1 vouches for itself: whoever calls this decides to trust it, or compares
    /// [`RootChain::fabric_id`] with what is expected.
    pub fn bootstrap(envelopes: &[Envelope]) -> Result<Self, Refusal> {
        bound(envelopes)?;
        let [first, rest @ ..] = envelopes else {
            return Err(Refusal::RootGap {
                expected: 1,
                found: 0,
            });
        };
        let (root, digest) = read(first)?;
        if root.version != 1 {
            return Err(Refusal::RootGap {
                expected: 1,
                found: root.version,
            });
        }
        first.verify(ROOT_PAYLOAD_TYPE, &root.role(Role::Root))?;
        let fabric = FabricId::from_root(digest);
        let mut chain = Self {
            fabric,
            envelopes: vec![first.clone()],
            past: root.issued,
            current: root,
            digests: vec![digest],
            revoked: BTreeSet::new(),
        };
        rest.iter().try_for_each(|envelope| chain.append(envelope))?;
        Ok(chain)
    }

    /// The chain with `envelopes` added. They are consecutive, and may repeat what is known: a repeated root that is equal
    /// is skipped, one that differs is [`Refusal::OtherFabric`] (version 1) or [`Refusal::RootConflict`], a hole is
    /// [`Refusal::RootGap`]. So the result is never older than `self`.
    pub fn extend(&self, envelopes: &[Envelope]) -> Result<Self, Refusal> {
        bound(envelopes)?;
        let mut chain = self.clone();
        let mut previous = None;
        for envelope in envelopes {
            let (root, digest) = read(envelope)?;
            if let Some(expected) = previous.map(|version: u32| version.saturating_add(1))
                && expected != root.version
            {
                return Err(Refusal::RootGap {
                    expected,
                    found: root.version,
                });
            }
            previous = Some(root.version);
            match chain.digests.get((root.version as usize).saturating_sub(1)) {
                Some(known) if *known == digest => {}
                Some(_) if root.version == 1 => {
                    let found = FabricId::from_root(digest);
                    return Err(Refusal::OtherFabric {
                        what: WHAT,
                        found,
                        expected: self.fabric.clone(),
                    });
                }
                Some(_) => {
                    return Err(Refusal::RootConflict {
                        version: root.version,
                    });
                }
                None => chain.append(envelope)?,
            }
        }
        Ok(chain)
    }

    /// The fabric: it names itself by its root 1.
    pub fn fabric_id(&self) -> &FabricId {
        &self.fabric
    }

    /// Version of the newest root.
    pub fn version(&self) -> u32 {
        self.current.version
    }

    /// The newest root.
    pub fn current(&self) -> &Root {
        &self.current
    }

    /// The keys of a role, by the newest root and without those that are revoked. [`RootChain::current`] has them all. What
    /// each of them may do, [`RootChain::may`] says.
    pub fn role(&self, role: Role) -> RoleKeys {
        let mut keys = self.current.role(role);
        if role != Role::Root {
            keys.keys.retain(|id, _| !self.revoked.contains(id));
        }
        keys
    }

    /// The chain with `keys` revoked beside those that are already: they have no role any more. Root keys are not
    /// concerned: a new root document replaces them.
    pub fn without<'a>(mut self, keys: impl IntoIterator<Item = &'a KeyId>) -> Self {
        self.revoked.extend(keys.into_iter().cloned());
        self
    }

    /// The chain with a time floor: what was certainly past when somebody last looked.
    pub fn as_of(mut self, floor: Timestamp) -> Self {
        self.past = self.past.max(floor);
        self
    }

    /// What is certainly past: the time floor, or the newest `issued` of a root document.
    pub fn past(&self) -> Timestamp {
        self.past
    }

    /// All roots, 1..N, as they were signed.
    pub fn envelopes(&self) -> &[Envelope] {
        &self.envelopes
    }

    fn append(&mut self, envelope: &Envelope) -> Result<(), Refusal> {
        let (root, digest) = read(envelope)?;
        let expected = self.current.version.saturating_add(1);
        if root.version != expected {
            return Err(Refusal::RootGap {
                expected,
                found: root.version,
            });
        }
        envelope.verify(ROOT_PAYLOAD_TYPE, &self.current.role(Role::Root))?;
        envelope.verify(ROOT_PAYLOAD_TYPE, &root.role(Role::Root))?;
        if root.nonce != self.current.nonce || root.fabric_name != self.current.fabric_name {
            let found = FabricId::from_root(digest);
            return Err(Refusal::OtherFabric {
                what: WHAT,
                found,
                expected: self.fabric.clone(),
            });
        }
        if self.envelopes.len() >= limits::ROOTS {
            return Err(Refusal::LimitExceeded {
                what: "root documents",
                limit: limits::ROOTS,
            });
        }
        self.envelopes.push(envelope.clone());
        self.digests.push(digest);
        self.past = self.past.max(root.issued);
        self.current = root;
        Ok(())
    }
}

fn bound(envelopes: &[Envelope]) -> Result<(), Refusal> {
    if envelopes.len() > limits::ROOTS {
        return Err(Refusal::LimitExceeded {
            what: "root documents",
            limit: limits::ROOTS,
        });
    }
    Ok(())
}

/// The document in an envelope, well formed but not yet verified: its own keys are needed for that.
fn read(envelope: &Envelope) -> Result<(Root, Digest), Refusal> {
    envelope.check_type(ROOT_PAYLOAD_TYPE)?;
    envelope.check_form()?;
    let payload = envelope.unverified_payload()?;
    let root: Root = parse_payload(WHAT, &payload)?;
    root.check()?;
    Ok((root, Digest::of(&payload)))
}
