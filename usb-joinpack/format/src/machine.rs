//! Which place of a pack is for which machine. Reads no machine: its caller says what it is.
//!
//! Invariant: a place that is tied to a machine is given to no other.

use crate::{Manifest, NodeEntry, Refusal};
use beemesh_ids::{Digest, NodeName};

/// What a machine can be recognised by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// MAC addresses of its network cards, lower case.
    pub macs: Vec<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// The endorsement key of its TPM: the SHA-256 of its `TPMT_PUBLIC`.
    pub ek: Option<Digest>,
}

impl NodeEntry {
    /// Whether the entry is for a certain machine.
    pub fn is_tied(&self) -> bool {
        self.mac.is_some() || self.serial.is_some() || self.ek.is_some()
    }

    /// Whether the entry is tied to this machine: all that it names is the machine's.
    pub fn is_tied_to(&self, machine: &Machine) -> bool {
        self.is_tied()
            && self.mac.as_ref().is_none_or(|mac| machine.macs.contains(mac))
            && (self.serial.is_none() || self.serial == machine.serial)
            && (self.ek.is_none() || self.ek == machine.ek)
    }
}

impl Manifest {
    /// The place that is tied to this machine: the first one, where it fits several.
    pub fn entry_for(&self, machine: &Machine) -> Option<&NodeEntry> {
        self.nodes.iter().find(|node| node.is_tied_to(machine))
    }

    /// Whether finding the place of a machine needs the endorsement key of its TPM, which takes a while to make.
    pub fn names_endorsement_keys(&self) -> bool {
        self.nodes.iter().any(|node| node.ek.is_some())
    }

    /// [`Refusal::OtherBox`] where every place is tied to another machine. A member is known by the `name` it has, too:
    /// its cards may have been changed. A pack without places is for all, and so is one by which machines may ask, whether
    /// members or its maker.
    pub fn check_machine(&self, machine: &Machine, name: Option<&NodeName>) -> Result<(), Refusal> {
        let fits = |node: &NodeEntry| !node.is_tied() || node.is_tied_to(machine) || name == Some(&node.name);
        let may_ask = self.approval || self.requests;
        if self.nodes.is_empty() || may_ask || self.nodes.iter().any(fits) {
            Ok(())
        } else {
            Err(Refusal::OtherBox)
        }
    }
}
