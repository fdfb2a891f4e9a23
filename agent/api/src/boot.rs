//! What nodes booted, and the acceptances of it, as an operator sees them. How they are signed is `usb-joinpack/SPEC.md`, section 15.

use crate::view::NodeAssurance;
use beemesh_ids::{Digest, NodeName, PeerId};
use beemesh_joinpack_format::Envelope;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the answering node knows of what the members booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootsView {
    /// The members.
    pub nodes: Vec<BootView>,
    /// The acceptances that still say something, the oldest first: whoever accepts more verifies these and adds to them.
    pub acceptances: Vec<Envelope>,
}

/// One member's boot, as the answering node judges it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootView {
    /// Name.
    pub name: NodeName,
    /// Node id.
    pub node: PeerId,
    /// How far it can be believed.
    pub assurance: NodeAssurance,
    /// The release that it booted, where the fabric knows it.
    pub release: Option<String>,
    /// Registers (PCRs, SHA-256 bank) that its TPM signed last; empty where it is not judged now, or has no TPM.
    pub shown: BTreeMap<u8, Digest>,
    /// Registers that those are compared with; empty before it was first seen with a known release.
    pub recorded: BTreeMap<u8, Digest>,
    /// Digest of the registers that an operator has accepted for it.
    pub accepted: Option<Digest>,
}

impl BootView {
    /// The registers that are not what they should be: number, recorded, shown.
    pub fn changes(&self) -> Vec<(u8, Option<Digest>, Option<Digest>)> {
        let NodeAssurance::Changed(pcrs) = &self.assurance else {
            return Vec::new();
        };
        let change = |pcr: &u8| {
            (
                *pcr,
                self.recorded.get(pcr).copied(),
                self.shown.get(pcr).copied(),
            )
        };
        pcrs.iter().map(change).collect()
    }
}
