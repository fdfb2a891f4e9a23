//! The operator context as a file: the format is `beemesh_joinpack_format::OperatorContext`, written by
//! `joinpack fabric init`; here is who may read it, and what to do when it cannot be used.
//!
//! Invariant: an [`Operator`] that exists has a verified root chain and a key with the role `operator` in it. The mode is
//! read from the opened file, so what is checked is what is read.

use crate::failure::{Class, Failure};
use beemesh_agent_api::network::{NETWORK_PAYLOAD_TYPE, NetworkChange};
use beemesh_agent_api::record::{CHANGE_PAYLOAD_TYPE, Change};
use beemesh_ids::FabricId;
use beemesh_joinpack_format::limits::OPERATOR_LIMIT;
use beemesh_joinpack_format::{Envelope, KeyId, OperatorContext, Refusal, Role, RootChain, SecretKey};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
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
            Self::NotOperator { .. } => Class::NotAuthorised,
            _ => Class::Invalid,
        };
        let hint = match self {
            Self::Mode(_) => format!("make it yours alone: chmod 600 {shown}"),
            Self::Read(_) => {
                "give the file that `joinpack fabric init` wrote with --context or BMCTL_CONTEXT".to_owned()
            }
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

/// An operator of one fabric: its verified root chain, and a key with the role.
#[derive(Debug)]
pub struct Operator {
    context: OperatorContext,
    roots: RootChain,
}

impl Operator {
    /// Reads the context at `path`.
    ///
    /// # Errors
    /// See [`ContextError`].
    pub fn load(path: &Path) -> Result<Self, ContextError> {
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
        let mode = about.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(ContextError::Mode(mode));
        }
        let mut text = Vec::new();
        // One byte more than the limit lets the parser refuse the size.
        file.take(OPERATOR_LIMIT as u64 + 1)
            .read_to_end(&mut text)
            .map_err(ContextError::Read)?;
        let context = OperatorContext::parse(&text).map_err(ContextError::Content)?;
        let roots = RootChain::bootstrap(&context.roots).map_err(ContextError::Content)?;
        let key = context.key.public().key_id();
        if roots.role(Role::Operator).key(&key).is_none() {
            return Err(ContextError::NotOperator {
                key,
                fabric: roots.fabric_id().clone(),
            });
        }
        Ok(Self { context, roots })
    }

    /// The fabric that the operator belongs to.
    pub fn fabric(&self) -> FabricId {
        self.roots.fabric_id().clone()
    }

    /// The operator's secret key.
    pub fn key(&self) -> &SecretKey {
        &self.context.key
    }

    /// The fabric's root chain.
    pub fn roots(&self) -> &RootChain {
        &self.roots
    }

    /// Writes the context anew with the longer of its chain and `roots`; returns the version that it has then.
    ///
    /// # Errors
    /// See [`ContextError`]; the file is as before.
    pub fn save_roots(mut self, path: &Path, roots: &RootChain) -> Result<u32, ContextError> {
        let longer = self
            .roots
            .extend(roots.envelopes())
            .map_err(ContextError::Content)?;
        if longer.version() > self.roots.version() {
            self.context.roots = longer.envelopes().to_vec();
            let mut text = serde_json::to_vec_pretty(&self.context)
                .map_err(|error| ContextError::Write(io::Error::other(error)))?;
            text.push(b'\n');
            replace(path, &text).map_err(ContextError::Write)?;
        }
        Ok(longer.version())
    }

    /// Signs a change of a node's network.
    ///
    /// # Errors
    /// A change that cannot be written as JSON.
    pub fn sign_network(&self, change: &NetworkChange) -> Result<Envelope, serde_json::Error> {
        let payload = serde_json::to_vec(change)?;
        Ok(Envelope::sign(NETWORK_PAYLOAD_TYPE, &payload, &[self.key()]))
    }

    /// Signs a change.
    ///
    /// # Errors
    /// A change that cannot be written as JSON.
    pub fn sign(&self, change: &Change) -> Result<Envelope, serde_json::Error> {
        let payload = serde_json::to_vec(change)?;
        Ok(Envelope::sign(CHANGE_PAYLOAD_TYPE, &payload, &[self.key()]))
    }
}

/// Replaces a secret file whole.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let staging = path.with_file_name(name);
    let write = || {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staging)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&staging, path)
    };
    write().inspect_err(|_| drop(std::fs::remove_file(&staging)))
}
