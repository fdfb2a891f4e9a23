//! The key derivations and the cipher that a credential is made with, all with SHA-256 and AES-128.
//!
//! Sources: TPM 2.0 Library, part 1, sections "KDFa", "KDFe", "Cipher Feedback Mode", "Credential Protection". Pure.

use aes::Aes128;
use cfb_mode::cipher::{AsyncStreamCipher as _, KeyIvInit as _};
use ring::{digest, hmac};

/// Bytes of a seed and of a digest.
const DIGEST: usize = 32;
/// Bytes of a key and of a block of AES-128.
const BLOCK: usize = 16;

/// KDFe: one digest over the shared point `z` and the x coordinates of both sides.
pub(crate) fn kdfe(z: &[u8], label: &str, u: &[u8], v: &[u8]) -> [u8; DIGEST] {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&1_u32.to_be_bytes());
    hash.update(z);
    hash.update(label.as_bytes());
    hash.update(&[0]);
    hash.update(u);
    hash.update(v);
    fixed(hash.finish().as_ref())
}

/// KDFa for at most 256 bits: one round of HMAC in counter mode (SP 800-108).
fn kdfa(key: &[u8], label: &str, context: &[u8], bits: u32) -> [u8; DIGEST] {
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    mac.update(&1_u32.to_be_bytes());
    mac.update(label.as_bytes());
    mac.update(&[0]);
    mac.update(context);
    mac.update(&bits.to_be_bytes());
    fixed(mac.sign().as_ref())
}

/// AES-128-CFB with the vector zero, under the key that `seed` and the object's `name` give.
pub(crate) fn encrypt(seed: &[u8; DIGEST], name: &[u8], plain: &[u8]) -> Vec<u8> {
    let key = kdfa(seed, "STORAGE", name, 128);
    let key: [u8; BLOCK] = std::array::from_fn(|at| key[at]);
    let mut text = plain.to_vec();
    cfb_mode::Encryptor::<Aes128>::new(&key.into(), &[0; BLOCK].into()).encrypt(&mut text);
    text
}

/// The outer HMAC over what is encrypted and the object's `name`.
pub(crate) fn integrity(seed: &[u8; DIGEST], encrypted: &[u8], name: &[u8]) -> [u8; DIGEST] {
    let key = kdfa(seed, "INTEGRITY", &[], 256);
    let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key));
    mac.update(encrypted);
    mac.update(name);
    fixed(mac.sign().as_ref())
}

fn fixed(bytes: &[u8]) -> [u8; DIGEST] {
    let mut fixed = [0; DIGEST];
    fixed.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    fixed
}
