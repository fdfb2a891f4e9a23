//! The keys that a command signs with: files that the operator keeps, and tokens. Makes no key, and decides nothing about roles.
//!
//! Invariant: a secret file that others can read is not used.

use crate::fabric::{KeyFile, read_json, refuse_shared};
use crate::failure::{Failure, invalid};
use anyhow::{Context as _, anyhow};
use beemesh_joinpack_format::{Envelope, KeyId, OperatorContext, Signer};
use beemesh_joinpack_token::{SCHEME, TokenKey};
use std::fs;
use std::path::Path;
use std::rc::Rc;

/// A key to sign with.
pub type Key = Rc<dyn Signer>;

/// Options of every command that signs.
#[derive(Debug, Default, clap::Args)]
pub struct KeyArgs {
    /// A key to sign with beside those in the folder of the fabric: a key file, or one on a token
    /// (pkcs11:token=LABEL;object=LABEL?module-path=LIBRARY&pin-source=file:PATH, RFC 7512); may be given several times
    #[arg(long = "key", value_name = "FILE|URI")]
    keys: Vec<String>,
}

impl KeyArgs {
    /// These keys.
    pub fn of(keys: Vec<String>) -> Self {
        Self { keys }
    }

    /// Reads the keys.
    pub fn open(&self) -> Result<Vec<Key>, Failure> {
        self.keys.iter().map(|text| open(text)).collect()
    }
}

/// Reads one key.
pub fn open(text: &str) -> Result<Key, Failure> {
    match text.starts_with(SCHEME) {
        true => Ok(Rc::new(TokenKey::open(text)?)),
        false => open_file(Path::new(text)),
    }
}

fn open_file(path: &Path) -> Result<Key, Failure> {
    if !path.is_file() {
        invalid!("`{}` is not a key file", path.display());
    }
    refuse_shared(path)?;
    let file: KeyFile = read_json(path)?;
    Ok(Rc::new(file.secret))
}

/// The keys in the folder `keys` of a fabric, and its operator's.
pub fn in_folder(dir: &Path) -> Result<Vec<Key>, Failure> {
    let failed = || format!("failed to read `{}/keys`", dir.display());
    let mut keys = Vec::new();
    for entry in fs::read_dir(dir.join("keys")).with_context(failed)? {
        let path = entry.with_context(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            keys.push(open_file(&path)?);
        }
    }
    let operator = dir.join("operator.json");
    if operator.is_file() {
        refuse_shared(&operator)?;
        let context: OperatorContext = read_json(&operator)?;
        keys.push(Rc::new(context.key));
    }
    Ok(keys)
}

/// Keeps one of each.
pub fn distinct(keys: impl IntoIterator<Item = Key>) -> Vec<Key> {
    let mut all: Vec<Key> = Vec::new();
    for key in keys {
        if !all.iter().any(|known| known.public() == key.public()) {
            all.push(key);
        }
    }
    all
}

/// The id of a key.
pub fn id(key: &Key) -> KeyId {
    key.public().key_id()
}

/// Signs a payload with each of `keys`.
pub fn sign(payload_type: &str, payload: &[u8], keys: &[Key]) -> Result<Envelope, Failure> {
    let signers: Vec<&dyn Signer> = keys.iter().map(Rc::as_ref).collect();
    let signed = Envelope::sign_by(payload_type, payload, &signers);
    Ok(signed.map_err(|error| anyhow!("{error}").context("failed to sign"))?)
}
