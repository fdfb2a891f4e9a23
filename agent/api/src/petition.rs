//! Machines that ask to be let in, as an operator sees them on a member. How they ask is `usb-joinpack/SPEC.md`, section 12.

use crate::view::Assurance;
use beemesh_ids::{NodeName, PeerId};
use beemesh_joinpack_format::ApprovalCode;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One machine that asked the answering node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PetitionView {
    /// What the machine's console shows, says the node. Whoever signs makes it anew from `peer_id`.
    pub code: ApprovalCode,
    /// The machine's key.
    pub peer_id: PeerId,
    /// The name that its join pack has for it.
    pub name: Option<NodeName>,
    /// How far its key can be believed, says the machine.
    pub assurance: Assurance,
    /// Where it asks from; the network of an IPv6 address.
    pub source: IpAddr,
    /// Cell of the answering node, which the machine would join.
    pub cell: String,
    /// Seconds since it asked first.
    pub age_s: u64,
    /// Seconds for which it can still be decided.
    pub left_s: u64,
    /// What was decided.
    pub state: PetitionState,
}

/// What was decided about a petition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PetitionState {
    /// Nothing yet.
    Waiting,
    /// It is let in.
    Approved,
    /// It is not.
    Denied,
}
