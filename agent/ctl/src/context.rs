//! The operator context as a file: the format is `beemesh_joinpack_format::OperatorContext`, written by
//! `joinpack fabric init`, or the root documents alone (`root.json`) beside a key on a token; here is who may read it, and what
//! to do when it cannot be used.
//!
//! Invariant: an [`Operator`] that exists has a verified root chain and a key with the role `operator` in it. The mode is
//! read from the opened file, so what is checked is what is read.

use crate::failure::{Class, Failure};
use beemesh_agent_identity::OperatorKey;
use beemesh_ids::FabricId;
use beemesh_joinpack_format::limits::OPERATOR_LIMIT;
use beemesh_joinpack_format::{
    Deed, Envelope, KeyId, OperatorContext, Refusal, Role, RootChain, SecretKey, SignError, Signer,
};
use beemesh_joinpack_token::{SCHEME, TokenError, TokenKey};
use serde::Serialize;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::{fs::File, io, io::Read as _, io::Write as _, path::Path};

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// It cannot be read.
    #[error("failed to read it")]
    Read(#[source] io::Error),
    /// It cannot be written.
    #[error("failed to write it")]
    Write(#[source] io::Error),
    /// A folder or a device.
    #[error("it is not a regular file")]
    NotAFile,
    /// Others than its owner may read or change it.
    #[error("its mode is {0:04o}: others may read the operator's secret key")]
    Mode(u32),
    /// Not an operator context, or its root documents do not verify.
    #[error("it cannot be used")]
    Content(#[source] Refusal),
    /// Root documents without a key.
    #[error("it holds root documents and no key")]
    NoKey,
    /// The reference to a key is none.
    #[error("the key is not named by a PKCS#11 URI")]
    NotAUri,
    /// The key on the token cannot be used.
    #[error("the key on the token cannot be used")]
    Token(#[source] TokenError),
    /// A key without the role.
    #[error("its key {key} does not have the role `operator` in fabric {fabric}")]
    NotOperator {
        /// The key.
        key: KeyId,
        /// The fabric.
        fabric: FabricId,
    },
}

impl ContextError {
    /// The failure of a command that wanted to use the context at `path`.
    pub fn into_failure(self, path: &Path) -> Failure {
        let shown = path.display();
        let class = match self {
            Self::NotOperator { .. } | Self::Token(TokenError::Forbidden(_)) => Class::NotAuthorised,
            Self::Token(TokenError::Failed { .. }) => Class::Failed,
            _ => Class::Invalid,
        };
        let hint = match self {
            Self::Mode(_) => format!("make it yours alone: chmod 600 {shown}"),
            Self::Read(_) => {
                "give the file that `joinpack fabric init` wrote with --context or BMCTL_CONTEXT".to_owned()
            }
            Self::NoKey => "name the key that goes with it: --key 'pkcs11:token=…;object=…'".to_owned(),
            Self::NotAUri => {
                "write --key 'pkcs11:token=LABEL;object=LABEL?module-path=LIBRARY' (RFC 7512)".to_owned()
            }
            Self::Token(_) => "see `bmctl --help` on keys on tokens".to_owned(),
            Self::NotOperator { .. } => {
                "ask who holds the fabric's root keys to give this key the role".to_owned()
            }
            Self::Content(Refusal::WrongVersion { .. }) => {
                "use a bmctl of the release that wrote it".to_owned()
            }
            _ => "take the file as `joinpack fabric init` wrote it, or a copy from a backup".to_owned(),
        };
        Failure::new(class, format!("operator context `{shown}`"))
            .because(self)
            .hint(hint)
    }
}

/// Why a document is not signed.
#[derive(Debug, thiserror::Error)]
pub enum CannotSign {
    /// It cannot be written as JSON.
    #[error("it cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    /// No reader would take it.
    #[error(transparent)]
    Refusal(Refusal),
    /// The token is gone or refuses.
    #[error("the key did not sign")]
    Key(#[source] SignError),
}

impl CannotSign {
    /// The failure of the command that wanted to do `what`.
    pub fn into_failure(self, what: impl Into<String>) -> Failure {
        let class = match self {
            Self::Refusal(_) => Class::Invalid,
            Self::Json(_) | Self::Key(_) => Class::Failed,
        };
        Failure::new(class, what).because(self)
    }
}

/// An operator of one fabric: its verified root chain, and a key with the role.
#[derive(Clone)]
pub struct Operator {
    /// The secret that the file holds; it is written anew with longer chains.
    secret: Option<SecretKey>,
    key: OperatorKey,
    roots: RootChain,
}

/// What a context file holds.
#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Context(Box<OperatorContext>),
    Roots(&'a [Envelope]),
}

impl Operator {
    /// Reads the context at `path`. `token` is the PKCS#11 URI of the operator's key (RFC 7512); it takes the place of the one in
    /// the file, which may hold the root documents alone then.
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn load(path: &Path, token: Option<&str>) -> Result<Self, ContextError> {
        // Without waiting: a pipe would keep the caller until somebody writes into it.
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        let file = File::options()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(ContextError::Read)?;
        let about = file.metadata().map_err(ContextError::Read)?;
        if !about.is_file() {
            return Err(ContextError::NotAFile);
        }
        let mut text = Vec::new();
        // One byte more than the limit lets the parser refuse the size.
        file.take(OPERATOR_LIMIT as u64 + 1)
            .read_to_end(&mut text)
            .map_err(ContextError::Read)?;
        let (secret, documents) = parse(&text)?;
        let mode = about.permissions().mode() & 0o7777;
        if secret.is_some() && mode & 0o077 != 0 {
            return Err(ContextError::Mode(mode));
        }
        let roots = RootChain::bootstrap(&documents).map_err(ContextError::Content)?;
        let key: OperatorKey = match (token, &secret) {
            (Some(uri), _) if !uri.starts_with(SCHEME) => return Err(ContextError::NotAUri),
            (Some(uri), _) => Arc::new(TokenKey::open(uri).map_err(ContextError::Token)?),
            (None, Some(secret)) => Arc::new(secret.clone()),
            (None, None) => return Err(ContextError::NoKey),
        };
        let id = key.public().key_id();
        if roots.role(Role::Operator).key(&id).is_none() {
            return Err(ContextError::NotOperator {
                key: id,
                fabric: roots.fabric_id().clone(),
            });
        }
        Ok(Self { secret, key, roots })
    }

    /// The fabric that the operator belongs to.
    pub fn fabric(&self) -> FabricId {
        self.roots.fabric_id().clone()
    }

    /// The operator's key, in memory or on a token.
    pub fn key(&self) -> OperatorKey {
        Arc::clone(&self.key)
    }

    /// The fabric's root chain.
    pub fn roots(&self) -> &RootChain {
        &self.roots
    }

    /// Writes the context anew with the longer of its chain and `roots`; returns the version that it has then.
    ///
    /// # Errors
    /// See [`ContextError`]; the file is as before.
    pub fn save_roots(self, path: &Path, roots: &RootChain) -> Result<u32, ContextError> {
        let longer = self
            .roots
            .extend(roots.envelopes())
            .map_err(ContextError::Content)?;
        if longer.version() > self.roots.version() {
            let roots = longer.envelopes();
            let (content, mode) = match self.secret {
                Some(key) => {
                    let (version, roots) = (1, roots.to_vec());
                    (
                        Content::Context(Box::new(OperatorContext { version, roots, key })),
                        0o600,
                    )
                }
                None => (Content::Roots(roots), 0o644),
            };
            let mut text = serde_json::to_vec_pretty(&content)
                .map_err(|error| ContextError::Write(io::Error::other(error)))?;
            text.push(b'\n');
            replace(path, &text, mode).map_err(ContextError::Write)?;
        }
        Ok(longer.version())
    }

    /// Signs a document, if readers would take it.
    ///
    /// # Errors
    /// See [`CannotSign`].
    pub fn sign<T: Deed + Serialize>(&self, document: &T) -> Result<Envelope, CannotSign> {
        let payload = serde_json::to_vec(document).map_err(CannotSign::Json)?;
        T::read(&payload).map_err(CannotSign::Refusal)?;
        let key: &dyn Signer = self.key.as_ref();
        Envelope::sign_by(T::PAYLOAD_TYPE, &payload, &[key]).map_err(CannotSign::Key)
    }
}

/// The secret, if there is one, and the root documents.
fn parse(text: &[u8]) -> Result<(Option<SecretKey>, Vec<Envelope>), ContextError> {
    let is_array = text.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if is_array && text.len() <= OPERATOR_LIMIT {
        let roots = serde_json::from_slice(text);
        let roots = roots.map_err(|error| ContextError::Read(io::Error::other(error)))?;
        return Ok((None, roots));
    }
    let context = OperatorContext::parse(text).map_err(ContextError::Content)?;
    Ok((Some(context.key), context.roots))
}

/// Replaces a file whole.
fn replace(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let staging = path.with_file_name(name);
    let write = || {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&staging)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&staging, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&staging)))
}
