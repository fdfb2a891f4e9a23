//! Admission by an operator's word: the code that a machine shows, and what an operator signs to say no. (What an operator
//! signs to say yes is a [`crate::Voucher`] with the admission `approved`.)
//!
//! Keeps no list of who asks: that is the member's. Invariant: the code follows from fabric and key alone, so whoever signs can
//! make it anew from what it is about to sign, and needs to believe nobody.

use crate::validate::{parse_payload, payload};
use crate::{Act, Deed, Envelope, Refusal, Role, RootChain, SecretKey, Source, Timestamp};
use beemesh_ids::{Digest, FabricId, PeerId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// DSSE payload type of a [`Denial`].
pub const DENIAL_PAYLOAD_TYPE: &str = "application/vnd.beemesh.denial.v1+json";
const WHAT: &str = "denial";
/// Crockford's base32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of a code, 5 bits each.
const CHARACTERS: usize = 10;
/// Hashes after the first: what a forger pays for each key that it tries.
const ROUNDS: u32 = 1 << 16;

/// The short authentication string of a machine that asks to be let in: `SPEC.md`, section "Approval". 50 bits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ApprovalCode(String);

/// A text that is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is not a code of {CHARACTERS} letters and digits, such as `7KQ2M-X9D4T`")]
pub struct NotACode;

impl ApprovalCode {
    /// The code of the machine `peer` at the door of `fabric`. Takes some tens of milliseconds, by intention.
    pub fn of(fabric: &FabricId, peer: &PeerId) -> Self {
        let first = Digest::of(format!("beemesh approval code v1\n{fabric}\n{peer}").as_bytes());
        let mut block = [0; 64];
        let mut last = first;
        for _ in 0..ROUNDS {
            let (left, right) = block.split_at_mut(32);
            left.copy_from_slice(last.as_bytes());
            right.copy_from_slice(first.as_bytes());
            last = Digest::of(&block);
        }
        let bits = last
            .as_bytes()
            .iter()
            .take(8)
            .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        let character = |n: usize| {
            let index = (bits >> (59 - 5 * n)) & 31;
            char::from(ALPHABET.get(index as usize).copied().unwrap_or(b'0'))
        };
        Self((0..CHARACTERS).map(character).collect())
    }
}

impl FromStr for ApprovalCode {
    type Err = NotACode;

    /// As people type it: in any case, with or without hyphens and spaces; I and L are 1, O is 0.
    fn from_str(text: &str) -> Result<Self, NotACode> {
        let mut code = String::with_capacity(CHARACTERS);
        for c in text.chars().filter(|c| !matches!(c, '-' | ' ')) {
            let c = match c.to_ascii_uppercase() {
                'I' | 'L' => '1',
                'O' => '0',
                c => c,
            };
            if code.len() == CHARACTERS || !c.is_ascii() || !ALPHABET.contains(&(c as u8)) {
                return Err(NotACode);
            }
            code.push(c);
        }
        if code.len() == CHARACTERS {
            Ok(Self(code))
        } else {
            Err(NotACode)
        }
    }
}

impl fmt::Display for ApprovalCode {
    /// Two groups of five.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, right) = self.0.split_at_checked(CHARACTERS / 2).unwrap_or((&self.0, ""));
        write!(f, "{left}-{right}")
    }
}

impl TryFrom<String> for ApprovalCode {
    type Error = NotACode;
    fn try_from(text: String) -> Result<Self, NotACode> {
        text.parse()
    }
}

impl From<ApprovalCode> for String {
    fn from(code: ApprovalCode) -> Self {
        code.to_string()
    }
}

/// An operator's no: the payload of an envelope of type [`DENIAL_PAYLOAD_TYPE`], signed by the role [`Role::Operator`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    /// The fabric.
    pub fabric: FabricId,
    /// Who is not let in.
    pub peer_id: PeerId,
    /// When, by the operator's clock.
    pub issued: Timestamp,
}

impl Denial {
    /// Signs the denial with each of `keys` (of the role [`Role::Operator`]).
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Envelope, Refusal> {
        Ok(Envelope::sign(DENIAL_PAYLOAD_TYPE, &payload(WHAT, self)?, keys))
    }

    /// The denial in `envelope`, if an operator of the fabric of `roots` signed it.
    pub fn verify(envelope: &Envelope, roots: &RootChain) -> Result<Self, Refusal> {
        roots.accept(envelope, Source::Person)
    }
}

impl Deed for Denial {
    const PAYLOAD_TYPE: &'static str = DENIAL_PAYLOAD_TYPE;
    const WHAT: &'static str = WHAT;
    const ROLES: &'static [Role] = &[Role::Operator];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        parse_payload(WHAT, payload)
    }

    fn act(&self) -> Act<'_> {
        Act::Approve
    }

    fn at(&self) -> Timestamp {
        self.issued
    }

    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fabric(n: u8) -> FabricId {
        FabricId::from_root(Digest::of(&[n]))
    }

    #[test]
    fn code_is_of_one_fabric_and_one_key_and_is_the_one_of_the_specification() {
        let code = ApprovalCode::of(&fabric(1), &PeerId::from_ed25519(&[1; 32]));
        assert_eq!(
            code,
            ApprovalCode::of(&fabric(1), &PeerId::from_ed25519(&[1; 32]))
        );
        assert_ne!(
            code,
            ApprovalCode::of(&fabric(2), &PeerId::from_ed25519(&[1; 32]))
        );
        assert_ne!(
            code,
            ApprovalCode::of(&fabric(1), &PeerId::from_ed25519(&[2; 32]))
        );
        // The value was made by the recipe of the specification, in another language.
        assert_eq!(code.to_string(), "Y0JW4-MH34E");
    }

    #[test]
    fn code_is_read_as_people_type_it() {
        let code: ApprovalCode = "01ABCDEFGH".parse().unwrap();
        for text in [
            "01ABC-DEFGH",
            "oiabc-defgh",
            " ol abc def gh ",
            "0-1-A-B-C-D-E-F-G-H",
        ] {
            assert_eq!(text.parse(), Ok(code.clone()), "{text}");
        }
        for text in [
            "",
            "01ABC-DEFG",
            "01ABC-DEFGHJ",
            "01ABC-DEFGU",
            "01ABC-DEFGé",
            "01ABC_DEFGH",
        ] {
            assert_eq!(text.parse::<ApprovalCode>(), Err(NotACode), "{text}");
        }
        let json = serde_json::to_string(&code).unwrap();
        assert_eq!(
            (json.as_str(), serde_json::from_str(&json).unwrap()),
            ("\"01ABC-DEFGH\"", code)
        );
    }
}
