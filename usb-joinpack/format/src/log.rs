//! The log that a box leaves beside its receipt, encrypted to the operator: HPKE (RFC 9180), base mode, DHKEM(X25519,
//! HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. `SPEC.md`, section 17.
//!
//! Draws no randomness: callers bring it. Invariants: a log opens with its key alone, and only beside the receipt that it was
//! made for; a receipt names one log by its digest, so that another one in its place is noticed by whoever has no key.

use crate::key::unhex;
use crate::{Receipt, Refusal, limits};
use beemesh_ids::{Digest, FabricId};
use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256 as Kem;
use hpke::rand_core::{Infallible, TryCryptoRng, TryRng};
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

const WHAT: &str = "log";
/// What every file begins with.
const HEAD: &[u8] = b"beemesh log 1\n";
/// Bytes of the encapsulated key behind it.
const ENCAPSULATED: usize = 32;
/// Bytes of the digest in a file's name, in hexadecimal digits.
const NAMED: usize = 8;

/// The public half of a log key, an X25519 key (RFC 7748), written as 64 lower-case hexadecimal digits: whoever has it
/// encrypts logs to the operator.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LogKey([u8; 32]);

impl fmt::Display for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for LogKey {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        unhex("log key", &text).map(Self)
    }
}

impl From<LogKey> for String {
    fn from(key: LogKey) -> Self {
        key.to_string()
    }
}

/// The secret half of a log key, erased when dropped. `Debug` shows its public half only.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct LogSecret(<Kem as hpke::Kem>::PrivateKey);

impl LogSecret {
    /// The key of these 32 bytes (RFC 7748, section 5: three of their bits do not count). The caller answers for their
    /// randomness.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, Refusal> {
        let key = <Kem as hpke::Kem>::PrivateKey::from_bytes(bytes);
        key.map(Self)
            .map_err(|error| Refusal::malformed("log key", error))
    }

    /// The public half.
    pub fn public(&self) -> LogKey {
        LogKey(Kem::sk_to_pk(&self.0).to_bytes().into())
    }
}

impl fmt::Debug for LogSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogSecret(of {})", self.public())
    }
}

impl TryFrom<String> for LogSecret {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        Self::from_bytes(&unhex("log key", &text)?)
    }
}

impl Serialize for LogSecret {
    /// As 64 lower-case hexadecimal digits: only for the file that is meant to hold the secret.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0.to_bytes()))
    }
}

/// What a receipt says of the log beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEntry {
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// The key that it is encrypted to.
    pub key: LogKey,
}

/// Gives out one seed, once.
struct Seed([u8; 32]);

impl TryRng for Seed {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// HPKE asks once, for the 32 bytes that its key pair is derived from. A further question would get a digest of them.
    fn try_fill_bytes(&mut self, to: &mut [u8]) -> Result<(), Infallible> {
        for piece in to.chunks_mut(32) {
            let bytes = self.0.iter();
            piece.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            self.0 = *Digest::of(&self.0).as_bytes();
        }
        Ok(())
    }
}

impl TryCryptoRng for Seed {}

impl Receipt {
    /// Encrypts `log`, at most [`limits::LOG`] bytes, to `key` of `fabric`, and names it in the receipt: returns the file's
    /// content, whose place is [`Receipt::log_path`]. `seed` is fresh randomness. Comes before [`Receipt::settle`], and what
    /// the log is bound to (peer id, time, pack, boot id) must not change any more.
    pub fn attach_log(
        &mut self,
        log: &[u8],
        fabric: &FabricId,
        key: &LogKey,
        seed: [u8; 32],
    ) -> Result<Vec<u8>, Refusal> {
        if log.len() > limits::LOG {
            return Err(Refusal::TooLarge {
                what: WHAT,
                limit: limits::LOG,
            });
        }
        let fail = |error| Refusal::malformed("log key", error);
        let public = <Kem as hpke::Kem>::PublicKey::from_bytes(&key.0).map_err(fail)?;
        let (encapsulated, sealed) = hpke::single_shot_seal_with_rng::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeS::Base,
            &public,
            &self.log_context(fabric),
            log,
            &[],
            &mut Seed(seed),
        )
        .map_err(fail)?;
        let file = [HEAD, &encapsulated.to_bytes(), &sealed].concat();
        self.log = Some(LogEntry {
            digest: Digest::of(&file),
            size: file.len() as u64,
            key: *key,
        });
        Ok(file)
    }

    /// What the box's log said: `file` is what lies at [`Receipt::log_path`], `None` where there is nothing, and `secrets` are
    /// the log keys of `fabric`. `None`: the receipt names no log.
    pub fn open_log(
        &self,
        file: Option<&[u8]>,
        fabric: &FabricId,
        secrets: &[LogSecret],
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(entry) = &self.log else {
            return Ok(None);
        };
        let file = file.ok_or(Refusal::LogMissing)?;
        let found = file.len() as u64;
        if found < entry.size {
            return Err(Refusal::LogCutOff {
                size: entry.size,
                found,
            });
        }
        if found != entry.size || Digest::of(file) != entry.digest {
            return Err(Refusal::LogAltered);
        }
        let key = secrets.iter().find(|secret| secret.public() == entry.key);
        let key = key.ok_or(Refusal::OtherLogKey { key: entry.key })?;
        let not_one = || Refusal::malformed(WHAT, "it is no encrypted log");
        let sealed = file.strip_prefix(HEAD).ok_or_else(not_one)?;
        let (encapsulated, sealed) = sealed.split_at_checked(ENCAPSULATED).ok_or_else(not_one)?;
        let encapsulated =
            <Kem as hpke::Kem>::EncappedKey::from_bytes(encapsulated).map_err(|_| not_one())?;
        hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &key.0,
            &encapsulated,
            &self.log_context(fabric),
            sealed,
            &[],
        )
        .map(Some)
        // The file is what the receipt's signer wrote: it was made beside another receipt, or for another fabric.
        .map_err(|_| Refusal::LogAltered)
    }

    /// What a log is bound to: HPKE's `info`. The last part alone is free text.
    fn log_context(&self, fabric: &FabricId) -> Vec<u8> {
        let peer = self.peer_id.as_ref().map_or("-", |peer| peer.as_str());
        let pack = self
            .pack
            .as_ref()
            .map_or_else(|| "-".to_owned(), Digest::to_string);
        let parts = [
            "beemesh log v1",
            fabric.as_str(),
            peer,
            &self.at.to_string(),
            &pack,
            &self.boot_id,
        ];
        parts.join("\n").into_bytes()
    }

    /// Relative path of its log in the pack: `receipts/<peer>-<what>-<digest>.log`, fit for FAT. A name of its own for each
    /// log, so that the one before stays whole until the receipt that names the new one is.
    pub fn log_path(&self) -> Option<String> {
        let entry = self.log.as_ref()?;
        let digest: String = entry.digest.hex().chars().take(NAMED).collect();
        Some(format!("receipts/{}-{digest}.log", self.stem()))
    }
}

/// Which logs must go, of those on a stick by their names, once a receipt was written as `receipts`' newest: those that the
/// receipt before named (`kept` is the name of the one that stays, `None` where the receipt has none), and of more than
/// [`limits::RECEIPTS`] those first of which no receipt in `receipts` is left.
pub fn surplus_logs(
    receipt: &str,
    kept: Option<&str>,
    logs: Vec<String>,
    receipts: &BTreeSet<String>,
) -> Vec<String> {
    let own = receipt.strip_suffix(".json").unwrap_or(receipt);
    let (mut gone, mut left): (Vec<_>, Vec<_>) = logs
        .into_iter()
        .partition(|name| stem_of(name) == Some(own) && Some(name.as_str()) != kept);
    let surplus = left.len().saturating_sub(limits::RECEIPTS);
    left.retain(|name| Some(name.as_str()) != kept);
    let named = |name: &String| stem_of(name).is_some_and(|stem| receipts.contains(&format!("{stem}.json")));
    left.sort_by(|a, b| (named(a), a).cmp(&(named(b), b)));
    gone.extend(left.into_iter().take(surplus));
    gone
}

/// The name of the receipt that a log lies beside, without its ending.
fn stem_of(log: &str) -> Option<&str> {
    let (stem, digest) = log.strip_suffix(".log")?.rsplit_once('-')?;
    (digest.len() == NAMED).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, ReceiptMachine, SecretKey, TimeSource, Timestamp};
    use beemesh_ids::PeerId;
    use proptest::prelude::*;

    fn fabric(name: &str) -> FabricId {
        FabricId::from_root(Digest::of(name.as_bytes()))
    }

    fn secret(n: u8) -> LogSecret {
        LogSecret::from_bytes(&[n; 32]).unwrap()
    }

    fn receipt() -> Receipt {
        let key = SecretKey::from_bytes([1; 32]);
        Receipt {
            node: None,
            peer_id: Some(PeerId::from_ed25519(key.public().as_bytes())),
            fabric: None,
            membership: None,
            machine: ReceiptMachine::default(),
            boot_id: "d5e4c4fe-0f5e-4b0f-8f0b-6c1d3c9a7e55".to_owned(),
            at: Timestamp(1_767_323_045),
            time_source: TimeSource::Floor,
            serial: None,
            pack: Some(Digest::of(b"joinpack.json")),
            outcome: Outcome::Applied,
            parts: Vec::new(),
            log: None,
            attestation: None,
        }
    }

    fn attached(log: &[u8]) -> (Receipt, Vec<u8>) {
        let mut receipt = receipt();
        let file = receipt.attach_log(log, &fabric("shop"), &secret(7).public(), [3; 32]);
        (receipt, file.unwrap())
    }

    fn code(result: Result<Option<Vec<u8>>, Refusal>) -> &'static str {
        result.map_or_else(|refusal| refusal.code(), |_| "opened")
    }

    /// RFC 9180, A.2.1: the receiver's key, and the sender's from its keying material.
    #[test]
    fn keys_are_those_of_rfc_9180() {
        let bytes = |text| unhex("bytes", text).unwrap();
        let secret = LogSecret::from_bytes(&bytes(
            "8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb",
        ));
        let public = secret.unwrap().public();
        assert_eq!(
            public.to_string(),
            "4310ee97d88cc1f088a5576c77ab0cf5c3ac797f3d95139c6c84b5429c59662a"
        );
        let seed = bytes("909a9b35d3dc4713a5e72a4da274b55d3d3821a37e5d099e74a647db583a904b");
        let file = receipt()
            .attach_log(b"Beauty is truth", &fabric("urn"), &public, seed)
            .unwrap();
        assert_eq!(
            hex::encode(&file[HEAD.len()..HEAD.len() + ENCAPSULATED]),
            "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a"
        );
    }

    #[test]
    fn log_opens_with_its_key_alone_and_beside_its_receipt_alone() {
        let (receipt, file) = attached(b"the box was here");
        let open = |receipt: &Receipt, file: Option<&[u8]>, name: &str, keys: &[LogSecret]| {
            receipt.open_log(file, &fabric(name), keys)
        };
        let (whole, keys) = (Some(file.as_slice()), [secret(6), secret(7)]);
        assert_eq!(
            open(&receipt, whole, "shop", &keys),
            Ok(Some(b"the box was here".to_vec()))
        );
        assert_eq!(code(open(&receipt, whole, "shop", &keys[..1])), "other-log-key");
        assert_eq!(code(open(&receipt, whole, "other", &keys)), "log-altered");
        assert_eq!(code(open(&receipt, None, "shop", &keys)), "log-missing");
        // Each thing that it is bound to.
        let bend: [fn(&mut Receipt); 4] = [
            |receipt| receipt.at = receipt.at.plus_seconds(1),
            |receipt| receipt.boot_id.push('0'),
            |receipt| receipt.pack = None,
            |receipt| receipt.peer_id = Some(PeerId::from_ed25519(&[9; 32])),
        ];
        for bend in bend {
            let mut other = receipt.clone();
            bend(&mut other);
            assert_eq!(
                code(open(&other, whole, "shop", &keys)),
                "log-altered",
                "{other:?}"
            );
        }
        let without = Receipt { log: None, ..receipt };
        assert_eq!(open(&without, whole, "shop", &keys), Ok(None));
    }

    #[test]
    fn what_is_too_long_is_refused_and_the_longest_fits() {
        let mut receipt = receipt();
        let mut attach =
            |size| receipt.attach_log(&vec![7; size], &fabric("shop"), &secret(7).public(), [3; 32]);
        assert_eq!(attach(limits::LOG).unwrap().len(), limits::LOG_LIMIT);
        assert_eq!(attach(limits::LOG + 1).map_err(|r| r.code()), Err("too-large"));
    }

    #[test]
    fn key_of_small_order_takes_no_log() {
        let neutral = LogKey::try_from("0".repeat(64)).unwrap();
        let attached = receipt().attach_log(b"x", &fabric("shop"), &neutral, [3; 32]);
        assert_eq!(attached.map_err(|r| r.code()), Err("malformed"));
    }

    #[test]
    fn log_before_goes_once_the_new_receipt_is_there_and_others_stay() {
        let name = |stem: &str, n: u32| format!("{stem}-{n:08x}.log");
        let receipts = BTreeSet::from(["a-1.json".to_owned(), "b-1.json".to_owned()]);
        let logs = vec![
            name("a-1", 1),
            name("a-1", 2),
            name("b-1", 3),
            "a-1.log".to_owned(),
        ];
        let gone = |kept: Option<&str>| surplus_logs("a-1.json", kept, logs.clone(), &receipts);
        assert_eq!(gone(Some(&name("a-1", 2))), [name("a-1", 1)]);
        assert_eq!(gone(None), [name("a-1", 1), name("a-1", 2)]);
        // A stick that is full loses those first that prove nothing any more.
        let mut many: Vec<_> = (0..u32::try_from(limits::RECEIPTS).unwrap() - 1)
            .map(|n| name("b-1", n))
            .collect();
        many.extend([name("a-1", 2), name("c-1", 9)]);
        let kept = name("a-1", 2);
        assert_eq!(
            surplus_logs("a-1.json", Some(&kept), many, &receipts),
            [name("c-1", 9)]
        );
    }

    proptest! {
        #[test]
        fn invariant_no_altered_or_shortened_file_opens(at: prop::sample::Index, bit in 0u8..8, log: Vec<u8>) {
            let (receipt, file) = attached(&log);
            let at = at.index(file.len());
            let open = |file: &[u8]| code(receipt.open_log(Some(file), &fabric("shop"), &[secret(7)]));
            prop_assert_eq!(open(&file), "opened");
            prop_assert_eq!(open(&file[..at]), "log-cut-off");
            let mut altered = file.clone();
            altered[at] ^= 1 << bit;
            prop_assert_eq!(open(&altered), "log-altered");
            altered.clone_from(&file);
            altered.push(0);
            prop_assert_eq!(open(&altered), "log-altered");
            // Whoever signs the receipt anew, to the digest of an altered file, gets no further.
            altered.clone_from(&file);
            altered[at] ^= 1 << bit;
            let mut forged = receipt.clone();
            forged.log.as_mut().unwrap().digest = Digest::of(&altered);
            let forged = code(forged.open_log(Some(&altered), &fabric("shop"), &[secret(7)]));
            prop_assert!(forged == "log-altered" || forged == "malformed", "{}", forged);
        }
    }
}
