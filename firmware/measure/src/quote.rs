//! A quote: values of registers, signed by a TPM over a nonce (TPM 2.0 Library, part 2, `TPMS_ATTEST`; part 3, "TPM2_Quote").
//!
//! Invariant: [`Quote::verify`] passes nothing whose signature, nonce, set of registers or values differ from what was asked.

use crate::key::AttestationKey;
use crate::pcr::PcrSet;
use crate::reader::{CutOff, Reader};
use beemesh_ids::{Digest, DigestHasher};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use std::collections::BTreeMap;

/// Longest `TPMS_ATTEST` that is read, in bytes.
pub const MAX_ATTEST: usize = 512;
/// Bytes of a signature: r, s.
pub const SIGNATURE: usize = 64;
/// Longest nonce, in bytes: a TPM takes no longer one than its longest digest and an algorithm.
const MAX_NONCE: usize = 66;

/// `TPM_GENERATED_VALUE`: a restricted key signs nothing from outside that begins with it.
pub(crate) const GENERATED: u32 = 0xff54_4347;
pub(crate) const ST_ATTEST_QUOTE: u16 = 0x8018;
pub(crate) const ALG_SHA256: u16 = 0x000b;

/// What a TPM says of its registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// `TPMS_ATTEST`, at most [`MAX_ATTEST`] bytes.
    pub attest: Vec<u8>,
    /// ECDSA with SHA-256: r and s, 32 bytes each.
    pub signature: Vec<u8>,
    /// The values, by number. Not signed themselves: `attest` holds the digest over all of them.
    pub pcrs: BTreeMap<u8, Digest>,
}

/// How often the TPM was started. Both numbers rise only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Starts of the machine.
    pub resets: u32,
    /// Wake-ups since.
    pub restarts: u32,
}

/// Why a quote is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuoteRefusal {
    /// Too long, cut off, or with bytes behind its end.
    #[error("the quote is malformed")]
    Malformed,
    /// A TPM signed something else than a quote, or no TPM did.
    #[error("it is no quote of a tpm")]
    OtherKind,
    /// Another key signed, or something was altered.
    #[error("the quote's signature does not fit")]
    Signature,
    /// It answers another question.
    #[error("the quote's nonce is another one: it is old or for somebody else")]
    Nonce,
    /// Other registers, or another bank.
    #[error("the quote is over other registers than were asked for")]
    Selection,
    /// The values are not those that were signed.
    #[error("the registers' values are not those that were quoted")]
    Values,
}

impl From<CutOff> for QuoteRefusal {
    fn from(_: CutOff) -> Self {
        Self::Malformed
    }
}

/// The parts of a `TPMS_ATTEST` of a quote that count.
struct Attest<'a> {
    nonce: &'a [u8],
    session: Session,
    bitmap: &'a [u8],
    digest: &'a [u8],
}

impl Quote {
    /// Whether `key` signed this over `nonce` and exactly the registers `asked`.
    ///
    /// # Errors
    /// [`QuoteRefusal`] says what differs.
    pub fn verify(&self, key: &AttestationKey, nonce: &[u8], asked: PcrSet) -> Result<Session, QuoteRefusal> {
        if self.attest.len() > MAX_ATTEST || self.signature.len() != SIGNATURE || nonce.len() > MAX_NONCE {
            return Err(QuoteRefusal::Malformed);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.point())
            .verify(&self.attest, &self.signature)
            .map_err(|_| QuoteRefusal::Signature)?;
        let attest = parse(&self.attest)?;
        if attest.nonce != nonce {
            return Err(QuoteRefusal::Nonce);
        }
        let bitmap = asked.bitmap();
        if attest.bitmap != bitmap || self.pcrs.keys().copied().collect::<PcrSet>() != asked {
            return Err(QuoteRefusal::Selection);
        }
        if self.pcrs.len() != asked.iter().count() {
            return Err(QuoteRefusal::Selection);
        }
        let mut values = DigestHasher::default();
        self.pcrs
            .values()
            .for_each(|value| values.update(value.as_bytes()));
        if attest.digest != values.finish().as_bytes() {
            return Err(QuoteRefusal::Values);
        }
        Ok(attest.session)
    }
}

fn parse(bytes: &[u8]) -> Result<Attest<'_>, QuoteRefusal> {
    let mut rest = Reader(bytes);
    if rest.u32()? != GENERATED || rest.u16()? != ST_ATTEST_QUOTE {
        return Err(QuoteRefusal::OtherKind);
    }
    rest.sized()?; // qualified name of the signer: the signature says it
    let nonce = rest.sized()?;
    rest.u64()?; // clock
    let session = Session {
        resets: rest.u32()?,
        restarts: rest.u32()?,
    };
    rest.u8()?; // whether the clock is safe
    rest.u64()?; // firmware version
    let banks = rest.u32()?;
    if banks != 1 || rest.u16()? != ALG_SHA256 {
        return Err(QuoteRefusal::Selection);
    }
    let size = rest.u8()?;
    let bitmap = rest.take(usize::from(size))?;
    let digest = rest.sized()?;
    match rest.is_empty() {
        true => Ok(Attest {
            nonce,
            session,
            bitmap,
            digest,
        }),
        false => Err(QuoteRefusal::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeChip;
    use proptest::prelude::*;

    const ASKED: PcrSet = PcrSet::of(&[0, 7, 11]);

    fn key(chip: &FakeChip) -> AttestationKey {
        AttestationKey::parse(&chip.public()).unwrap()
    }

    fn quote(chip: &FakeChip, nonce: &[u8], set: PcrSet) -> Quote {
        chip.quote(nonce, &set.iter().map(|n| (n, Digest::of(&[n]))).collect())
    }

    #[test]
    fn quote_over_the_nonce_and_the_registers_passes_and_tells_the_starts() {
        let chip = FakeChip::new();
        let session = quote(&chip, b"nonce", ASKED).verify(&key(&chip), b"nonce", ASKED);
        assert_eq!(
            session,
            Ok(Session {
                resets: 5,
                restarts: 2
            })
        );
    }

    #[test]
    fn each_difference_is_refused_by_its_name() {
        let (chip, other) = (FakeChip::new(), FakeChip::new());
        let good = quote(&chip, b"nonce", ASKED);
        let verify = |quote: &Quote| quote.verify(&key(&chip), b"nonce", ASKED);
        assert_eq!(
            verify(&quote(&other, b"nonce", ASKED)),
            Err(QuoteRefusal::Signature)
        );
        assert_eq!(verify(&quote(&chip, b"nonc", ASKED)), Err(QuoteRefusal::Nonce));
        assert_eq!(verify(&quote(&chip, b"", ASKED)), Err(QuoteRefusal::Nonce));
        let fewer = quote(&chip, b"nonce", PcrSet::of(&[0, 7]));
        assert_eq!(verify(&fewer), Err(QuoteRefusal::Selection));
        let mut values = good.clone();
        values.pcrs.insert(7, Digest::of(b"other"));
        assert_eq!(verify(&values), Err(QuoteRefusal::Values));
        let mut missing = good.clone();
        missing.pcrs.remove(&7);
        assert_eq!(verify(&missing), Err(QuoteRefusal::Selection));
        let mut beyond = good.clone();
        beyond.pcrs.insert(99, Digest::of(b"x"));
        assert_eq!(verify(&beyond), Err(QuoteRefusal::Selection));
        // Signed by the right key, and yet not by a TPM as a quote.
        for at in 0..6 {
            let mut kind = good.attest.clone();
            kind[at] ^= 1;
            let kind = chip.sign(kind, good.pcrs.clone());
            assert_eq!(verify(&kind), Err(QuoteRefusal::OtherKind), "byte {at}");
        }
        let sha1 = chip.sign(
            {
                let mut bytes = good.attest.clone();
                let bank = bytes.len() - 34 - 4 - 2;
                bytes[bank + 1] = 4;
                bytes
            },
            good.pcrs.clone(),
        );
        assert_eq!(verify(&sha1), Err(QuoteRefusal::Selection));
        let trailing = chip.sign([good.attest.clone(), vec![0]].concat(), good.pcrs.clone());
        assert_eq!(verify(&trailing), Err(QuoteRefusal::Malformed));
        let mut long = good.clone();
        long.attest.resize(MAX_ATTEST + 1, 0);
        assert_eq!(verify(&long), Err(QuoteRefusal::Malformed));
    }

    proptest! {
        #[test]
        fn invariant_no_altered_byte_passes(at in any::<prop::sample::Index>(), bit in 0u8..8, part in 0..2) {
            let chip = FakeChip::new();
            let mut quote = quote(&chip, b"nonce", ASKED);
            let bytes = if part == 0 { &mut quote.attest } else { &mut quote.signature };
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(quote.verify(&key(&chip), b"nonce", ASKED).is_err());
        }

        #[test]
        fn invariant_signed_garbage_is_an_answer_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 0usize..200) {
            let chip = FakeChip::new();
            prop_assert!(chip.sign(bytes, BTreeMap::new()).verify(&key(&chip), b"", PcrSet::EMPTY).is_err());
            let good = quote(&chip, b"nonce", ASKED);
            let length = good.attest.len().saturating_sub(1).min(cut);
            let cut = chip.sign(good.attest[..length].to_vec(), good.pcrs);
            prop_assert!(cut.verify(&key(&chip), b"nonce", ASKED).is_err());
        }
    }
}
