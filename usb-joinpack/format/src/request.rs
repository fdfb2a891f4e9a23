//! Requests: what a machine without a place writes to the stick that it met, for the person who made it. `SPEC.md`, section
//! "Requests". Where they are stored is the node's business, what is answered the operator's.
//!
//! The machine's own key signs, which its peer id names; nothing but that machine's TPM opens an answer. Whether the TPM is
//! a genuine one is for its maker's certificates to say, and this module does not read those.
//! Invariant: what [`Request::parse`] gives was signed by the key of its peer id, keeps its bounds, and has an endorsement key.

use crate::boot_quote::{RESERVE, nonce};
use crate::refusal::clean;
use crate::validate::{check_mac, check_serial, check_ulid, parse_payload, payload};
use crate::{
    BootQuote, EndorsementFile, Envelope, Machine, PublicKey, ReceiptMachine, Refusal, RoleKeys, SecretKey,
    Timestamp, limits,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_ids::{Digest, FabricId, PeerId};
use serde::{Deserialize, Serialize};

/// DSSE payload type of a [`Request`].
pub const REQUEST_PAYLOAD_TYPE: &str = "application/vnd.beemesh.request.v1+json";
const WHAT: &str = "request";
/// Length of a boot id: a UUID.
const BOOT_ID: usize = 36;

/// A machine that asks for a place: the payload of an envelope of type [`REQUEST_PAYLOAD_TYPE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The fabric.
    pub fabric: FabricId,
    /// Serial of the pack that had no place for it.
    pub serial: String,
    /// Peer id of the machine.
    pub peer_id: PeerId,
    /// The machine, with the endorsement key of its TPM.
    pub machine: ReceiptMachine,
    /// Base64 of the certificates between the endorsement key's and its maker's root, as the TPM holds them: X.509, DER, one
    /// after the other, at most [`limits::CHAIN`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<String>,
    /// Boot id of the kernel that wrote it.
    pub boot_id: String,
    /// When, by the machine's clock.
    pub at: Timestamp,
    /// What the machine's TPM says of its boot, over [`Request::nonce`]. The last member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<BootQuote>,
}

impl Request {
    /// The request as a file's content, signed by the machine's `key`. What is past its bounds is left out: cards, a serial
    /// number of another form, the chain; [`Refusal::Malformed`] where it has no endorsement key.
    pub fn to_envelope(&self, key: &SecretKey) -> Result<Envelope, Refusal> {
        self.clone().fit(&[key], limits::REQUEST_LIMIT)
    }

    /// Brings the request into the form in which it is written, with room for a quote, and gives the quote's nonce. Nothing else
    /// of the request may change after this.
    pub fn settle(&mut self) -> Result<Digest, Refusal> {
        self.attestation = None;
        self.fit(&[], limits::REQUEST_LIMIT - RESERVE)?;
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
        self.machine.macs.retain(|mac| check_mac(mac).is_ok());
        self.machine.macs.truncate(limits::CARDS);
        self.machine.serial = self
            .machine
            .serial
            .take()
            .filter(|text| check_serial(text).is_ok());
        self.chain = self.chain.take().filter(|chain| chain_of(chain).is_ok());
        self.check()?;
        let sign = |request: &Self| {
            let payload = payload(WHAT, request)?;
            Ok::<_, Refusal>(Envelope::sign(REQUEST_PAYLOAD_TYPE, &payload, keys))
        };
        let envelope = sign(self)?;
        if envelope.to_json().len() <= limit {
            return Ok(envelope);
        }
        self.chain = None;
        self.machine.ek.iter_mut().for_each(|ek| ek.certificate = None);
        sign(self)
    }

    /// Reads a request file of at most [`limits::REQUEST_LIMIT`] bytes. One that its peer id's key did not sign is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let envelope = Envelope::parse(bytes, limits::REQUEST_LIMIT)?;
        envelope.check_type(REQUEST_PAYLOAD_TYPE)?;
        // Whose signature it must be is all that is read before it is checked.
        let said: Self = parse_payload(WHAT, &envelope.unverified_payload()?)?;
        let key = PublicKey::from_bytes(said.peer_id.to_ed25519());
        let payload = envelope.verify_all(REQUEST_PAYLOAD_TYPE, &RoleKeys::new([key], 1))?;
        let request: Self = parse_payload(WHAT, &payload)?;
        request.check()?;
        Ok(request)
    }

    fn check(&self) -> Result<(), Refusal> {
        check_ulid("serial", &self.serial)?;
        if self.machine.macs.len() > limits::CARDS {
            return Err(Refusal::LimitExceeded {
                what: "cards of one machine",
                limit: limits::CARDS,
            });
        }
        self.machine.macs.iter().try_for_each(|mac| check_mac(mac))?;
        self.machine
            .serial
            .iter()
            .try_for_each(|text| check_serial(text))?;
        if self.boot_id.len() > BOOT_ID || clean(&self.boot_id) != self.boot_id {
            return Err(Refusal::malformed(WHAT, "its boot id is none"));
        }
        self.endorsement()?.public_key()?;
        if let Some(quote) = &self.attestation {
            quote.parts()?;
        }
        self.chain.iter().try_for_each(|chain| chain_of(chain).map(drop))
    }

    /// The endorsement key of its machine's TPM.
    pub fn endorsement(&self) -> Result<&EndorsementFile, Refusal> {
        let missing = || Refusal::malformed(WHAT, "it names no endorsement key");
        self.machine.ek.as_ref().ok_or_else(missing)
    }

    /// The certificates between the endorsement key's and its maker's root, one after the other.
    pub fn chain(&self) -> Result<Vec<u8>, Refusal> {
        self.chain.as_deref().map_or(Ok(Vec::new()), chain_of)
    }

    /// Refuses one that was not made for the pack with this fabric and serial.
    pub fn check_asked(&self, fabric: &FabricId, serial: &str) -> Result<(), Refusal> {
        if self.fabric != *fabric {
            return Err(Refusal::OtherFabric {
                what: WHAT,
                found: self.fabric.clone(),
                expected: fabric.clone(),
            });
        }
        if self.serial != serial {
            return Err(Refusal::OtherTrip {
                asked: self.serial.clone(),
                serial: clean(serial),
            });
        }
        Ok(())
    }

    /// What its machine is recognised by.
    pub fn machine(&self) -> Machine {
        Machine {
            macs: self.machine.macs.clone(),
            serial: self.machine.serial.clone(),
            ek: self.machine.ek.as_ref().map(|file| file.ek),
        }
    }

    /// Relative path in the pack: `requests/<peer>.json`, fit for FAT. One for each machine.
    pub fn path(&self) -> String {
        format!("requests/{}.json", self.peer_id.short())
    }
}

fn chain_of(text: &str) -> Result<Vec<u8>, Refusal> {
    const WHAT: &str = "chain of certificates";
    // Four characters for three bytes.
    if text.len() > limits::CHAIN.div_ceil(3) * 4 {
        return Err(Refusal::TooLarge {
            what: WHAT,
            limit: limits::CHAIN,
        });
    }
    let bytes = STANDARD.decode(text);
    bytes.map_err(|error| Refusal::malformed(WHAT, error))
}

/// Which requests must go, of those on a stick by (name, serial of the pack that was asked), so that one more fits for the
/// pack `serial`: those that nobody can read, then those of other trips. `None`: the stick is full of requests of this one.
pub fn surplus_requests(mut there: Vec<(String, Option<String>)>, serial: &str) -> Option<Vec<String>> {
    let surplus = (there.len() + 1).saturating_sub(limits::REQUESTS);
    there.retain(|(_, asked)| asked.as_deref() != Some(serial));
    there.sort_by(|a, b| (&a.1, &a.0).cmp(&(&b.1, &b.0)));
    (there.len() >= surplus).then(|| there.into_iter().take(surplus).map(|(name, _)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERIAL: &str = "01KDVKFD00000000000000000A";
    const OLDER: &str = "01KDVKFC00000000000000000A";

    fn request(key: &SecretKey) -> Request {
        Request {
            fabric: FabricId::from_root(Digest::of(b"root")),
            serial: SERIAL.to_owned(),
            peer_id: PeerId::from_ed25519(key.public().as_bytes()),
            machine: ReceiptMachine {
                macs: vec!["52:54:00:00:00:01".to_owned()],
                serial: Some("SN 1".to_owned()),
                ek: Some(EndorsementFile::new(b"a key", Some(b"a certificate"))),
            },
            chain: Some(STANDARD.encode(b"more certificates")),
            boot_id: "d5e4c4fe-0f5e-4b0f-8f0b-6c1d3c9a7e55".to_owned(),
            at: Timestamp(1_767_323_045),
            attestation: None,
        }
    }

    #[test]
    fn quote_is_over_all_else_and_has_room_in_the_fullest_request() {
        let key = SecretKey::from_bytes([1; 32]);
        let mut full = request(&key);
        full.machine.ek = Some(EndorsementFile::new(&[1; 512], Some(&[2; 12 * 1024])));
        full.chain = Some(STANDARD.encode([3; limits::CHAIN]));
        let nonce = full.settle().unwrap();
        let parts = crate::QuoteParts {
            ak: vec![1; 90],
            attest: vec![2; 512],
            signature: vec![3; 64],
        };
        full.attestation = Some(BootQuote::new(&parts, crate::Registers::default()));
        let read = Request::parse(&full.to_envelope(&key).unwrap().to_json()).unwrap();
        assert_eq!((&read, read.nonce()), (&full, Ok(nonce)));
        let mut other = read;
        other.at = other.at.plus_seconds(1);
        assert_ne!(other.nonce(), Ok(nonce));
        // What is past its bounds is no request.
        let long = BootQuote {
            ak: "A".repeat(4096),
            ..full.attestation.clone().unwrap()
        };
        full.attestation = Some(long);
        assert_eq!(full.to_envelope(&key).map_err(|r| r.code()), Err("too-large"));
    }

    #[test]
    fn request_reads_back_and_no_bit_of_it_can_change() {
        let key = SecretKey::from_bytes([1; 32]);
        let (request, text) = (request(&key), request(&key).to_envelope(&key).unwrap().to_json());
        assert_eq!(Request::parse(&text), Ok(request.clone()));
        assert_eq!(request.chain(), Ok(b"more certificates".to_vec()));
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 1;
            assert!(Request::parse(&changed).is_err(), "byte {at}");
        }
        let other = request.to_envelope(&SecretKey::from_bytes([2; 32])).unwrap();
        assert_eq!(
            Request::parse(&other.to_json()).map_err(|r| r.code()),
            Err("unknown-key")
        );
    }

    #[test]
    fn what_a_machine_says_oddly_of_itself_is_left_out_and_the_key_is_not() {
        let key = SecretKey::from_bytes([1; 32]);
        let mut odd = request(&key);
        odd.machine.macs = vec!["00:11:22".to_owned(); 40];
        odd.machine.serial = Some("a\u{1b}[2J".to_owned());
        odd.chain = Some("A".repeat(limits::CHAIN * 2));
        let read = Request::parse(&odd.to_envelope(&key).unwrap().to_json()).unwrap();
        assert_eq!(
            (read.machine.macs.len(), &read.machine.serial, &read.chain),
            (0, &None, &None)
        );
        odd.machine.ek = None;
        assert_eq!(odd.to_envelope(&key).map_err(|r| r.code()), Err("malformed"));
        // The most that fits: nothing is left out, and nothing is past the file's bound.
        let mut full = request(&key);
        full.machine.macs = (0..limits::CARDS)
            .map(|n| format!("52:54:00:00:00:{n:02x}"))
            .collect();
        full.machine.ek = Some(EndorsementFile::new(&[1; 512], Some(&[2; 8 * 1024])));
        full.chain = Some(STANDARD.encode([3; limits::CHAIN]));
        let text = full.to_envelope(&key).unwrap().to_json();
        assert!(text.len() <= limits::REQUEST_LIMIT, "{}", text.len());
        assert_eq!(Request::parse(&text), Ok(full));
    }

    #[test]
    fn request_counts_for_its_pack_alone() {
        let request = request(&SecretKey::from_bytes([1; 32]));
        let code = |fabric: &FabricId, serial| request.check_asked(fabric, serial).map_err(|r| r.code());
        assert_eq!(code(&request.fabric, SERIAL), Ok(()));
        assert_eq!(code(&request.fabric, OLDER), Err("other-trip"));
        let other = FabricId::from_root(Digest::of(b"other"));
        assert_eq!(code(&other, SERIAL), Err("other-fabric"));
        assert!(request.path().starts_with("requests/") && request.path().ends_with(".json"));
    }

    #[test]
    fn full_stick_loses_noise_and_older_trips_and_no_request_of_this_one() {
        let of = |count: usize, asked: Option<&str>| {
            let name = asked.map_or("noise", |serial| &serial[..8]);
            (0..count)
                .map(|n| (format!("{name}-{n:03}"), asked.map(str::to_owned)))
                .collect::<Vec<_>>()
        };
        let most = limits::REQUESTS;
        assert_eq!(
            surplus_requests(of(most - 1, Some(SERIAL)), SERIAL),
            Some(Vec::new())
        );
        assert_eq!(surplus_requests(of(most, Some(SERIAL)), SERIAL), None);
        let mixed = [of(most - 2, Some(SERIAL)), of(1, Some(OLDER)), of(1, None)].concat();
        assert_eq!(
            surplus_requests(mixed.clone(), SERIAL),
            Some(vec!["noise-000".to_owned()])
        );
        let more = [mixed, of(1, Some("01KDVKFE00000000000000000A"))].concat();
        let gone = surplus_requests(more, SERIAL).unwrap();
        assert_eq!(gone, ["noise-000".to_owned(), "01KDVKFC-000".to_owned()]);
    }
}
