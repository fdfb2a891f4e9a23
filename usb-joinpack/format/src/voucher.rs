//! Vouchers: each delegates one slot of a cell's roster to whoever holds its one-time key. Redeeming is `membership`'s.
//!
//! Invariant: an operator's signature makes a voucher for the key of one machine, and no other.

use crate::validate::{check_label, check_ulid, parse_payload, payload};
use crate::{Act, Deed, Envelope, PublicKey, Refusal, Role, RootChain, SecretKey, Source, Timestamp};
use beemesh_ids::{Digest, FabricId, NodeName};
use serde::{Deserialize, Serialize};

/// DSSE payload type of a [`Voucher`].
pub const VOUCHER_PAYLOAD_TYPE: &str = "application/vnd.beemesh.voucher.v1+json";
const WHAT: &str = "voucher";

/// How the holder of a voucher is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Admission {
    /// By the fabric's policy: whoever holds the one-time key, until the voucher expires.
    Policy,
    /// The machine whose TPM has the voucher's endorsement key: the one-time key was only given out encrypted to it.
    Targeted,
    /// An operator's word: signed by the role [`Role::Operator`], and its key is the node key of the machine that asked.
    Approved,
}

impl Admission {
    /// What the signers of a voucher of this admission do by it.
    pub fn act(self) -> Act<'static> {
        match self {
            Self::Policy | Self::Targeted => Act::Enrol,
            Self::Approved => Act::Approve,
        }
    }
}

/// A voucher: the payload of an envelope of type [`VOUCHER_PAYLOAD_TYPE`], signed by the role that its admission demands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voucher {
    /// The fabric.
    pub fabric: FabricId,
    /// Id of the voucher, a ULID.
    pub id: String,
    /// Name that the node gets.
    pub node: NodeName,
    /// Cell that the node joins, a DNS label.
    pub cell: String,
    /// Valid from.
    pub issued: Timestamp,
    /// Valid until, inclusive.
    pub expires: Timestamp,
    /// The one-time key: its holder may redeem.
    pub key: PublicKey,
    /// How the holder is let in.
    pub admission: Admission,
    /// The endorsement key that the one-time key is encrypted to: the SHA-256 of its `TPMT_PUBLIC`. There if, and only
    /// if, the admission is [`Admission::Targeted`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ek: Option<Digest>,
}

impl Deed for Voucher {
    const PAYLOAD_TYPE: &'static str = VOUCHER_PAYLOAD_TYPE;
    const WHAT: &'static str = WHAT;
    const ROLES: &'static [Role] = &[Role::Enrolment, Role::Operator];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        let voucher: Self = parse_payload(WHAT, payload)?;
        voucher.check()?;
        Ok(voucher)
    }

    fn act(&self) -> Act<'_> {
        self.admission.act()
    }

    fn at(&self) -> Timestamp {
        self.issued
    }

    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

impl Voucher {
    /// Signs the voucher with each of `keys` (of the role that its admission demands).
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Envelope, Refusal> {
        Ok(Envelope::sign(VOUCHER_PAYLOAD_TYPE, &self.to_payload()?, keys))
    }

    /// What is signed.
    pub fn to_payload(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        payload(WHAT, self)
    }

    /// The voucher in `envelope`, if the fabric of `roots` signed it. Says nothing about its expiry.
    pub fn verify(envelope: &Envelope, roots: &RootChain, source: Source) -> Result<Self, Refusal> {
        roots.accept(envelope, source)
    }

    /// As [`Voucher::verify`], whatever became of the key that signed it, as long as it is listed in the role: for members
    /// that were known before.
    pub(crate) fn verify_known(envelope: &Envelope, roots: &RootChain) -> Result<Self, Refusal> {
        let said = Self::read_unverified(envelope).map(|voucher| voucher.admission);
        let roles = said.map_or(Act::Enrol.roles(), |admission| admission.act().roles());
        let role = roles.first().copied().unwrap_or(Role::Enrolment);
        let payload = envelope.verify(VOUCHER_PAYLOAD_TYPE, &roots.current().role(role))?;
        roots.check_fabric(Self::read(&payload)?)
    }

    /// Reads a voucher without checking who signed it: for its holder, who cannot gain by lying to itself.
    pub(crate) fn read_unverified(envelope: &Envelope) -> Result<Self, Refusal> {
        envelope.check_type(VOUCHER_PAYLOAD_TYPE)?;
        Self::read(&envelope.unverified_payload()?)
    }

    /// [`Refusal::NotYetValid`] before it was issued, [`Refusal::Expired`] after its end.
    pub fn check_time(&self, at: Timestamp) -> Result<(), Refusal> {
        if at < self.issued {
            return Err(Refusal::NotYetValid {
                what: WHAT,
                issued: self.issued,
                now: at,
            });
        }
        if at > self.expires {
            return Err(Refusal::Expired {
                what: WHAT,
                expired: self.expires,
                now: at,
            });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Refusal> {
        check_ulid("voucher id", &self.id)?;
        check_label("cell name", &self.cell)?;
        if self.expires <= self.issued {
            return Err(Refusal::malformed(WHAT, "it expires before it is valid"));
        }
        if self.ek.is_some() != (self.admission == Admission::Targeted) {
            return Err(Refusal::malformed(
                WHAT,
                "an endorsement key belongs to the admission `targeted`, and to no other",
            ));
        }
        Ok(())
    }
}
