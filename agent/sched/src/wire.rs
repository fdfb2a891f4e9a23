//! What cells say to each other: one version byte, then CBOR. See `SPEC.md`, "Messages".
//!
//! It checks size and form, not truth. Invariant: what it writes is at most [`MAX_MESSAGE`] bytes and is read back
//! the same; what it cannot read is refused whole, never half taken.

use crate::model::{Capacity, Key, MemberInfo, PodReport};
use beemesh_agent_api::WorkloadId;
use beemesh_agent_api::view::ASSURANCE_SELECTOR;
use beemesh_ids::PeerId;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Largest message, in bytes.
pub const MAX_MESSAGE: usize = 1 << 20;
/// First byte of every message.
pub const VERSION: u8 = 1;

/// Why bytes are not a message, or a message cannot be bytes.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Over the bound.
    #[error("message of {0} bytes, at most {MAX_MESSAGE} are allowed")]
    TooLarge(usize),
    /// Another version.
    #[error("message version {0}, expected {VERSION}")]
    Version(u8),
    /// Not the CBOR of a message.
    #[error("malformed message: {0}")]
    Malformed(String),
}

/// Bytes as CBOR has them: a list of numbers would be twice as long.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Blob(#[serde(with = "bytes")] pub Vec<u8>);

/// One message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// A SWIM datagram.
    Swim(#[serde(with = "bytes")] Vec<u8>),
    /// Liveness of the sender's knowledge.
    Heartbeat(Box<Heartbeat>),
    /// Send the status body.
    StatusWanted,
    /// All members that the sender knows.
    Roster(Vec<PeerId>),
    /// Send these members' credentials.
    MembersWanted(Vec<PeerId>),
    /// Members and their credentials.
    Members(Vec<(PeerId, MemberInfo)>),
    /// The newest change of each workload that the sender knows.
    Changes(Vec<(WorkloadId, String)>),
    /// Send these workloads' changes.
    ChangesWanted(Vec<WorkloadId>),
    /// A signed change.
    Envelope {
        /// Change id, to be believed only after verification.
        id: String,
        /// Milliseconds since it was accepted.
        age_ms: u64,
        /// The signed envelope.
        #[serde(with = "bytes")]
        envelope: Vec<u8>,
    },
    /// A signed revocation snapshot.
    Revocations(#[serde(with = "bytes")] Vec<u8>),
    /// Send the revocation snapshots.
    RevocationsWanted,
    /// Signed root documents, consecutive.
    Roots(Vec<Blob>),
    /// How many keys each member has had, as far as the sender knows: members that have had more than one.
    Keys(Vec<(PeerId, u32)>),
    /// A signed order to rotate keys.
    Order(#[serde(with = "bytes")] Vec<u8>),
    /// Send the orders to rotate keys.
    OrdersWanted,
    /// Would you take this pod? Reserves.
    Probe(Probe),
    /// Answer to a probe.
    Offer {
        /// Of the probe.
        key: Key,
        /// Of the probe.
        round: u64,
        /// The offer, or why not.
        offer: Result<Offer, String>,
    },
    /// Another was chosen.
    Unreserve {
        /// Of the probe.
        key: Key,
    },
    /// Take this pod.
    Assign(Assign),
    /// It was not taken, or could not be kept.
    Declined {
        /// Of the assignment.
        key: Key,
        /// Of the assignment.
        round: u64,
        /// Why.
        reason: Decline,
    },
    /// May I hold this ordinal?
    Claim(Claim),
    /// Answer to a claim.
    Verdict {
        /// Of the claim.
        key: Key,
        /// Of the claim.
        token: u64,
        /// Of the claim.
        roster: u64,
        /// Of the claim.
        third: bool,
        /// The ghosts that the arbiter knows, or why not.
        verdict: Result<BTreeSet<PeerId>, Refusal>,
    },
    /// I still hold these; here is what I know of ghosts.
    Renew {
        /// Number of the round.
        round: u64,
        /// Which.
        items: Vec<Renewal>,
    },
    /// These renewals were recorded, with the ghosts that the receiver of the renewal knows.
    Renewed {
        /// Number of the round.
        round: u64,
        /// Which.
        items: Vec<Renewal>,
    },
    /// I hold it no more.
    Release {
        /// Which.
        key: Key,
        /// Token of the grant.
        token: u64,
    },
    /// A live member holds it by a higher token.
    Superseded {
        /// Which.
        key: Key,
        /// The higher token.
        token: u64,
        /// Who.
        holder: PeerId,
    },
}

/// Small and regular; the body only where it is new.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Generation of the sender: rises with each start.
    pub generation: u64,
    /// Generation of the receiver that the sender knows; 0 where none.
    pub yours: u64,
    /// Rises with each heartbeat of a generation.
    pub seq: u64,
    /// Rises with each change of the body.
    pub version: u64,
    /// Digest of the roster.
    pub roster: u64,
    /// Digest of the changes.
    pub changes: u64,
    /// Digest of what is revoked; 0 where nothing is known.
    #[serde(default)]
    pub revocations: u64,
    /// How many root documents the sender's chain has; 0 where it does not say.
    #[serde(default)]
    pub roots: u32,
    /// Digest of the members' keys; 0 where no member has rotated.
    #[serde(default)]
    pub keys: u64,
    /// Digest of the orders to rotate keys; 0 where there is none.
    #[serde(default)]
    pub orders: u64,
    /// The sender knows what it holds.
    pub recovered: bool,
    /// The body.
    pub body: Option<StatusBody>,
}

/// What a member has and holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusBody {
    /// What it has.
    pub capacity: Capacity,
    /// Millicores that are not reserved.
    pub free_cpu: u64,
    /// Bytes that are not reserved.
    pub free_memory: u64,
    /// Node ports in use.
    pub ports: BTreeSet<u16>,
    /// Pods.
    pub pods: Vec<HeldPod>,
}

/// A pod that a member holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldPod {
    /// Pod id.
    pub pod_id: String,
    /// Workload and ordinal.
    pub key: Key,
    /// Token of the grant.
    pub token: u64,
    /// Ghosts that the holder knows.
    pub ghosts: BTreeSet<PeerId>,
    /// The holder fences itself.
    pub leased: bool,
    /// How far.
    pub stage: Stage,
    /// Template that it was made from.
    pub template: u64,
    /// State.
    pub report: PodReport,
}

/// How far a holding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Asking the arbiters; nothing runs.
    Claiming,
    /// Start was commanded.
    Running,
    /// Stop was commanded.
    Draining,
}

/// What a placement asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Workload and ordinal.
    pub key: Key,
    /// Tells answers of this placement from those of earlier ones.
    pub round: u64,
    /// What it needs.
    pub need: Need,
}

/// What a pod needs of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// Millicores.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Node ports.
    pub ports: BTreeSet<u16>,
    /// Labels.
    pub selector: BTreeMap<String, String>,
    /// Images.
    pub images: BTreeSet<String>,
}

impl Need {
    /// The assurance that it demands of its node.
    pub(crate) fn assurance(&self) -> Option<&str> {
        self.selector.get(ASSURANCE_SELECTOR).map(String::as_str)
    }
}

/// What a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Pods of the same workload that it holds.
    pub siblings: u32,
    /// Pods of the same workload that are reserved on it beside this one.
    pub reserved: u32,
    /// 0 to 1000.
    pub score: u32,
}

/// An assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assign {
    /// Workload and ordinal.
    pub key: Key,
    /// Of the probe.
    pub round: u64,
    /// The change that it is placed for.
    pub change: String,
    /// Siblings at most: more have come meanwhile where there are more.
    pub siblings: u32,
    /// Milliseconds since the change was accepted or the loss was noticed.
    pub age_ms: u64,
    /// Highest token known.
    pub token: u64,
}

/// Why an assignment was not taken or not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decline {
    /// The change has not arrived there.
    ChangeUnknown,
    /// It holds this ordinal already, perhaps draining.
    Busy,
    /// It has no room for it any more, in words.
    Unfit(String),
    /// The arbiters did not grant it, in words.
    NotGranted(String),
}

/// A claim of an ordinal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Workload and ordinal.
    pub key: Key,
    /// Token that is asked for.
    pub token: u64,
    /// Digest of the claimant's roster: the arbiters are chosen by it.
    pub roster: u64,
    /// Asked of all members, for the votes of more than a third of them: arbiters or earlier copies are lost.
    pub third: bool,
}

/// A renewal of one ordinal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// Workload and ordinal.
    pub key: Key,
    /// Token of the grant.
    pub token: u64,
    /// Ghosts.
    pub ghosts: BTreeSet<PeerId>,
    /// The holder fences itself; otherwise it asks to do so no more.
    pub leased: bool,
}

/// Why an arbiter does not grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// Another roster, or no arbiter of it.
    Roster,
    /// The arbiter does not know yet what the live members hold.
    Unsettled,
    /// Someone holds it.
    Held {
        /// Who.
        holder: PeerId,
    },
    /// The token is not above the last one.
    Stale {
        /// The last one.
        token: u64,
    },
    /// The arbiter's table is full.
    Full,
}

impl Message {
    /// The bytes of this message. A status that is too large goes without its pods' containers.
    ///
    /// # Errors
    /// [`WireError::TooLarge`] where it does not fit.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let mut bytes = vec![VERSION];
        ciborium::into_writer(self, &mut bytes).map_err(|error| WireError::Malformed(error.to_string()))?;
        if bytes.len() <= MAX_MESSAGE {
            return Ok(bytes);
        }
        if let Self::Heartbeat(heartbeat) = self
            && let Some(body) = &heartbeat.body
            && body.pods.iter().any(|pod| !pod.report.containers.is_empty())
        {
            let mut shorter = heartbeat.clone();
            for pod in shorter.body.iter_mut().flat_map(|body| &mut body.pods) {
                pod.report.containers.clear();
            }
            return Self::Heartbeat(shorter).encode();
        }
        Err(WireError::TooLarge(bytes.len()))
    }

    /// The message of `bytes`.
    ///
    /// # Errors
    /// [`WireError`] where it is none.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::TooLarge(bytes.len()));
        }
        let (version, rest) = bytes
            .split_first()
            .ok_or_else(|| WireError::Malformed("empty".into()))?;
        if *version != VERSION {
            return Err(WireError::Version(*version));
        }
        let mut rest = rest;
        let message = ciborium::de::from_reader_with_recursion_limit(&mut rest, 32)
            .map_err(|error| WireError::Malformed(error.to_string()))?;
        if rest.is_empty() {
            Ok(message)
        } else {
            Err(WireError::Malformed("bytes after the message".into()))
        }
    }
}

/// Byte strings as CBOR byte strings instead of lists of numbers.
pub mod bytes {
    use serde::de::{Deserializer, Error, SeqAccess, Visitor};
    use serde::ser::Serializer;

    /// Writes a byte string.
    ///
    /// # Errors
    /// What the serializer returns.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    /// Reads a byte string; a list of numbers too, as JSON writes them.
    ///
    /// # Errors
    /// Where it is neither.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct BytesVisitor;
        impl<'de> Visitor<'de> for BytesVisitor {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_read_back() {
        let key: Key = (
            WorkloadId {
                namespace: "a".into(),
                kind: beemesh_agent_api::WorkloadKind::Pod,
                name: "b".into(),
            },
            1,
        );
        for message in [
            Message::Swim(vec![0, 1, 255]),
            Message::StatusWanted,
            Message::Declined {
                key: key.clone(),
                round: 7,
                reason: Decline::Unfit("no room".into()),
            },
            Message::Claim(Claim {
                key,
                token: u64::MAX,
                roster: 3,
                third: true,
            }),
        ] {
            assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
        }
    }

    #[test]
    fn messages_over_the_bound_are_refused_both_ways() {
        assert!(matches!(
            Message::Swim(vec![0; MAX_MESSAGE]).encode(),
            Err(WireError::TooLarge(_))
        ));
        assert!(matches!(
            Message::decode(&vec![VERSION; MAX_MESSAGE + 1]),
            Err(WireError::TooLarge(_))
        ));
    }

    #[test]
    fn other_versions_and_trailing_bytes_are_refused() {
        let mut bytes = Message::StatusWanted.encode().unwrap();
        bytes.push(0);
        assert!(matches!(Message::decode(&bytes), Err(WireError::Malformed(_))));
        bytes[0] = 2;
        assert!(matches!(Message::decode(&bytes), Err(WireError::Version(2))));
        assert!(Message::decode(&[]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Some(first) = bytes.first_mut() { *first = VERSION; }
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(Message::decode(&message.encode().unwrap()).unwrap(), message);
            }
        }
    }
}
