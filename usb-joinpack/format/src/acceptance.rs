//! Acceptances: an operator says that a node boots in another way from now on, and is to be believed as it does so.
//!
//! It names the values of the registers, so that nothing else is accepted than what the operator was shown. Reads no clock: of
//! two acceptances of a node the one with the greater id counts ([`crate::Order`]).

use crate::validate::{check_ulid, parse_payload, payload, unique_map};
use crate::{Act, Deed, Envelope, Order, Orders, Refusal, Role, SecretKey, Timestamp, limits};
use beemesh_ids::{Digest, FabricId, PeerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// DSSE payload type of an [`Acceptance`].
pub const ACCEPTANCE_PAYLOAD_TYPE: &str = "application/vnd.beemesh.acceptance.v1+json";
const WHAT: &str = "acceptance";

/// Registers (PCRs) of a TPM, each with its value in the SHA-256 bank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Registers(#[serde(deserialize_with = "unique_map")] pub BTreeMap<u8, Digest>);

impl Registers {
    /// Digest over exactly these registers and values (`usb-joinpack/SPEC.md`, section 15): what people compare.
    pub fn digest(&self) -> Digest {
        let lines: String = self
            .0
            .iter()
            .map(|(pcr, value)| format!("{pcr} {value}\n"))
            .collect();
        Digest::of(lines.as_bytes())
    }
}

/// What nodes may boot from now on. The payload of an envelope of type [`ACCEPTANCE_PAYLOAD_TYPE`], signed by the role
/// [`Role::Operator`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// The fabric.
    pub fabric: FabricId,
    /// A ULID: the greater one is the newer one, whatever the clocks said.
    pub id: String,
    /// When, by the operator's clock. For people.
    pub issued: Timestamp,
    /// Why, for people: at most [`limits::REASON`] bytes without control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Node ids, 1 to [`limits::ACCEPTED`], each with all registers that members compare.
    #[serde(deserialize_with = "unique_map")]
    pub nodes: BTreeMap<PeerId, Registers>,
}

impl Acceptance {
    /// Signs the acceptance with each of `keys`. Refuses one that no reader would accept.
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Envelope, Refusal> {
        Ok(Envelope::sign(ACCEPTANCE_PAYLOAD_TYPE, &self.to_payload()?, keys))
    }

    /// What is signed. Refuses an acceptance that no reader would accept.
    pub fn to_payload(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        payload(WHAT, self)
    }

    fn check(&self) -> Result<(), Refusal> {
        let fail = |reason: &str| Err(Refusal::malformed(WHAT, reason));
        check_ulid("acceptance id", &self.id)?;
        if self.nodes.is_empty() {
            return fail("it names no node");
        }
        if self.nodes.len() > limits::ACCEPTED {
            return Err(Refusal::LimitExceeded {
                what: "nodes in one acceptance",
                limit: limits::ACCEPTED,
            });
        }
        let named = |registers: &Registers| {
            !registers.0.is_empty() && registers.0.keys().all(|pcr| *pcr < limits::REGISTERS)
        };
        if !self.nodes.values().all(named) {
            return fail("the registers of a node are none, or not those of a TPM");
        }
        match &self.reason {
            Some(reason) if reason.is_empty() || reason.len() > limits::REASON => {
                fail("its reason is empty or longer than 256 bytes")
            }
            Some(reason) if reason.chars().any(char::is_control) => {
                fail("its reason holds a control character")
            }
            _ => Ok(()),
        }
    }
}

impl Deed for Acceptance {
    const PAYLOAD_TYPE: &'static str = ACCEPTANCE_PAYLOAD_TYPE;
    const WHAT: &'static str = WHAT;
    const ROLES: &'static [Role] = &[Role::Operator];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        let acceptance: Self = parse_payload(WHAT, payload)?;
        acceptance.check()?;
        Ok(acceptance)
    }

    fn act(&self) -> Act<'_> {
        Act::AcceptBoot
    }

    fn at(&self) -> Timestamp {
        self.issued
    }

    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

impl Order for Acceptance {
    const MANY: &'static str = "acceptances that each name another node";

    fn id(&self) -> &str {
        &self.id
    }

    fn names(&self, node: &PeerId) -> bool {
        self.nodes.contains_key(node)
    }

    fn nodes(&self) -> Option<impl Iterator<Item = &PeerId>> {
        Some(self.nodes.keys())
    }
}

/// The acceptances that still say something.
pub type Acceptances = Orders<Acceptance>;

impl Acceptances {
    /// What each node may boot, by the newest acceptance that names it.
    pub fn accepted(&self) -> BTreeMap<PeerId, Registers> {
        // The newest comes last, and stays.
        self.iter()
            .flat_map(|acceptance| acceptance.nodes.clone())
            .collect()
    }
}
