//! Receipts: what a node writes back to the stick. Where they are stored is the node's business.
//!
//! Signed by the node's own key, which its peer id names, and carrying its credential where it has one: so a receipt proves
//! which member wrote it. A node that has no identity yet writes an unsigned receipt: for people, not for proof.
//! Invariant: what [`Receipt::parse`] gives keeps the bounds below, and names nobody whose credential says otherwise.

use crate::boot_quote::{RESERVE, nonce};
use crate::refusal::clean;
use crate::validate::{parse_payload, payload};
use crate::{
    BootQuote, EndorsementFile, Envelope, LogEntry, Member, Membership, PublicKey, Refusal, RoleKeys,
    RootChain, SecretKey, Timestamp, limits,
};
use beemesh_ids::{Digest, FabricId, NodeName, PeerId};
use serde::{Deserialize, Serialize};

/// DSSE payload type of a [`Receipt`].
pub const RECEIPT_PAYLOAD_TYPE: &str = "application/vnd.beemesh.receipt.v1+json";
const WHAT: &str = "receipt";
/// Parts that are reported.
const PARTS: usize = 16;
/// Bytes of the longest text: a sentence that [`clean`] has cut, at four bytes a character.
const TEXT: usize = 1024;

/// What a node did with a pack: the payload of an envelope of type [`RECEIPT_PAYLOAD_TYPE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Name of the node, if it has one.
    pub node: Option<NodeName>,
    /// Peer id of the node, if it has an identity. A signed receipt has one.
    pub peer_id: Option<PeerId>,
    /// Fabric of the node, if it has one.
    pub fabric: Option<FabricId>,
    /// The node's credential, if it has one: what `node` and `fabric` are believed by.
    pub membership: Option<Membership>,
    /// The machine.
    pub machine: ReceiptMachine,
    /// Boot id of the kernel that wrote it (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// When, by the node's clock.
    pub at: Timestamp,
    /// What that clock goes by.
    pub time_source: TimeSource,
    /// Serial of the pack, if it was verified so far that it can be believed.
    pub serial: Option<String>,
    /// SHA-256 of the pack's `joinpack.json`, if it could be read to its end.
    pub pack: Option<Digest>,
    /// What happened.
    pub outcome: Outcome,
    /// What a pack that was applied brought, and what of it was not taken.
    pub parts: Vec<Part>,
    /// The log that lies beside it, at [`Receipt::log_path`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogEntry>,
    /// What the machine's TPM says of its boot, over [`Receipt::nonce`]. The last member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<BootQuote>,
}

/// What the machine is recognised by, so that a place of a later pack can be tied to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptMachine {
    /// MAC addresses of its network cards.
    pub macs: Vec<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// The endorsement key of its TPM, as `bmctl node ek -o json` shows it.
    pub ek: Option<EndorsementFile>,
}

/// Where a node's time is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeSource {
    /// The time floor: nothing better was there.
    Floor,
    /// The battery-backed clock.
    Rtc,
    /// The median of the other members' clocks.
    Peers,
    /// An NTP server.
    Ntp,
}

/// What became of a pack.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// The node follows the pack.
    Applied,
    /// The node did not take the pack.
    Refused {
        /// [`Refusal::code`].
        code: String,
        /// The sentence.
        message: String,
    },
}

/// A part of a pack that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which.
    pub part: PartKind,
    /// What it brought, for people.
    pub what: String,
    /// Why it was not taken; `None` where it was.
    pub refused: Option<String>,
}

/// The parts that are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartKind {
    /// A place in the fabric.
    Place,
    /// Network settings.
    Network,
    /// Revocations.
    Revocations,
    /// Orders to rotate keys.
    Orders,
    /// Images, whose content was checked and copied.
    Images,
}

/// How far a receipt can be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// The key of this peer id signed it.
    SignedBy(PeerId),
    /// Nobody signed it.
    Unsigned,
}

impl Receipt {
    /// The receipt as a file's content, signed by `key` if there is one. Texts are cut to their bounds; what makes it too
    /// long all the same is left out: the TPM maker's certificate first, then the credential.
    pub fn to_envelope(&self, key: Option<&SecretKey>) -> Result<Envelope, Refusal> {
        let keys: Vec<_> = key.into_iter().collect();
        let mut receipt = self.clone();
        receipt.fit(&keys, limits::RECEIPT_LIMIT)
    }

    /// Brings the receipt into the form in which it is written, with room for a quote, and gives the quote's nonce. Nothing else
    /// of the receipt may change after this.
    pub fn settle(&mut self) -> Result<Digest, Refusal> {
        self.attestation = None;
        self.fit(&[], limits::RECEIPT_LIMIT - RESERVE)?;
        self.nonce()
    }

    /// What the quote in it is made over: everything else that it says.
    pub fn nonce(&self) -> Result<Digest, Refusal> {
        let without = Self {
            attestation: None,
            ..self.clone()
        };
        nonce(WHAT, &without)
    }

    /// Cuts it to its bounds, and to `limit` bytes as a file.
    fn fit(&mut self, keys: &[&SecretKey], limit: usize) -> Result<Envelope, Refusal> {
        self.cut();
        let sign = |receipt: &Self| {
            Ok::<_, Refusal>(Envelope::sign(
                RECEIPT_PAYLOAD_TYPE,
                &payload(WHAT, receipt)?,
                keys,
            ))
        };
        let fits = |envelope: &Envelope| envelope.to_json().len() <= limit;
        let mut envelope = sign(self)?;
        if !fits(&envelope) {
            self.machine.ek.iter_mut().for_each(|ek| ek.certificate = None);
            envelope = sign(self)?;
        }
        if !fits(&envelope) {
            self.membership = None;
            envelope = sign(self)?;
        }
        Ok(envelope)
    }

    fn cut(&mut self) {
        self.machine.macs.truncate(limits::CARDS);
        self.parts.truncate(PARTS);
        self.boot_id = clean(&self.boot_id);
        self.machine.serial = self.machine.serial.as_deref().map(clean);
        if let Outcome::Refused { code, message } = &mut self.outcome {
            (*code, *message) = (clean(code), clean(message));
        }
        for part in &mut self.parts {
            part.what = clean(&part.what);
            part.refused = part.refused.as_deref().map(clean);
        }
    }

    /// Reads a receipt file of at most [`limits::RECEIPT_LIMIT`] bytes and tells who signed it. A signature that is not the
    /// node's own is a refusal, and so is a credential that another peer, name or fabric has.
    pub fn parse(bytes: &[u8]) -> Result<(Self, Proof), Refusal> {
        let envelope = Envelope::parse(bytes, limits::RECEIPT_LIMIT)?;
        envelope.check_type(RECEIPT_PAYLOAD_TYPE)?;
        let receipt: Self = parse_payload(WHAT, &envelope.unverified_payload()?)?;
        let proof = match (envelope.signatures(), &receipt.peer_id) {
            ([], _) => Proof::Unsigned,
            (_, None) => return Err(Refusal::malformed(WHAT, "it is signed but names no peer id")),
            (_, Some(peer)) => {
                let key = PublicKey::from_bytes(peer.to_ed25519());
                envelope.verify_all(RECEIPT_PAYLOAD_TYPE, &RoleKeys::new([key], 1))?;
                Proof::SignedBy(peer.clone())
            }
        };
        receipt.check()?;
        Ok((receipt, proof))
    }

    fn check(&self) -> Result<(), Refusal> {
        let (code, message) = match &self.outcome {
            Outcome::Applied => (None, None),
            Outcome::Refused { code, message } => (Some(code), Some(message)),
        };
        let texts = self.machine.macs.iter().chain(&self.machine.serial);
        let texts = texts.chain([&self.boot_id]).chain(code).chain(message);
        let mut texts = texts.chain(
            self.parts
                .iter()
                .flat_map(|p| [&p.what].into_iter().chain(&p.refused)),
        );
        let many = self.machine.macs.len() > limits::CARDS || self.parts.len() > PARTS;
        if many || texts.any(|text| text.len() > TEXT) {
            return Err(Refusal::malformed(WHAT, "it is past its bounds"));
        }
        if let Some(ek) = &self.machine.ek {
            ek.public_key()?;
        }
        if let Some(quote) = &self.attestation {
            quote.parts()?;
        }
        match (&self.membership, &self.peer_id) {
            (None, _) => Ok(()),
            (Some(_), None) => Err(Refusal::OtherPeer),
            (Some(membership), Some(peer)) => self.check_named(&membership.claim(peer)?),
        }
    }

    fn check_named(&self, member: &Member) -> Result<(), Refusal> {
        let same = self.node.as_ref() == Some(&member.name) && self.fabric.as_ref() == Some(&member.fabric);
        if same {
            return Ok(());
        }
        Err(Refusal::Inconsistent {
            what: WHAT,
            value: member.name.to_string(),
        })
    }

    /// The member of the fabric of `roots` that the credential in the receipt makes of its writer; `None` where it has none. Of
    /// use only for a receipt that its peer has signed: anyone can copy a credential. [`Refusal::OtherFabric`] where the
    /// receipt names another fabric.
    pub fn member(&self, roots: &RootChain) -> Result<Option<Member>, Refusal> {
        if let Some(found) = self.fabric.as_ref().filter(|fabric| *fabric != roots.fabric_id()) {
            return Err(Refusal::OtherFabric {
                what: WHAT,
                found: found.clone(),
                expected: roots.fabric_id().clone(),
            });
        }
        let (Some(membership), Some(peer)) = (&self.membership, &self.peer_id) else {
            return Ok(None);
        };
        membership.verify_known(roots, peer).map(Some)
    }

    /// Relative path in the pack: `receipts/<peer>-<what>.json`, fit for FAT. One for each machine and pack: the same pack
    /// again replaces the receipt.
    pub fn path(&self) -> String {
        format!("receipts/{}.json", self.stem())
    }

    /// Its name without the ending.
    pub(crate) fn stem(&self) -> String {
        let peer = self.peer_id.as_ref().map_or("unknown", |peer| peer.short());
        let serial = self
            .serial
            .as_deref()
            .filter(|s| s.len() == 26 && s.bytes().all(|b| b.is_ascii_alphanumeric()));
        let tail = match (serial, &self.pack) {
            (Some(serial), _) => serial.to_owned(),
            (None, Some(pack)) => pack.hex().chars().take(26).collect(),
            (None, None) => "none".to_owned(),
        };
        format!("{peer}-{tail}")
    }
}

/// Which receipts must go, of those on a stick by (name, time of writing), so that one more fits: the oldest, and before
/// them those that nobody can read (`None`). At most [`limits::RECEIPTS`] stay.
pub fn surplus_receipts(mut receipts: Vec<(String, Option<Timestamp>)>) -> Vec<String> {
    let most = limits::RECEIPTS.saturating_sub(1);
    receipts.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
    let surplus = receipts.len().saturating_sub(most);
    receipts.into_iter().take(surplus).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_receipts_make_room_and_unreadable_ones_before_them() {
        let all = |n: usize| {
            (0..n)
                .map(|n| (format!("{n:04}.json"), Some(Timestamp(10_000 - n as i64))))
                .collect::<Vec<_>>()
        };
        assert!(surplus_receipts(all(limits::RECEIPTS - 1)).is_empty());
        assert_eq!(
            surplus_receipts(all(limits::RECEIPTS)),
            [format!("{:04}.json", limits::RECEIPTS - 1)]
        );
        let mut noisy = all(limits::RECEIPTS);
        noisy.push(("noise.json".to_owned(), None));
        assert_eq!(
            surplus_receipts(noisy),
            [
                "noise.json".to_owned(),
                format!("{:04}.json", limits::RECEIPTS - 1)
            ]
        );
    }
}
