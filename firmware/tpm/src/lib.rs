//! Seals small secrets so that only this machine, in this firmware state, gets them back; shows the TPM's endorsement key,
//! opens what others encrypted to it, and lets the TPM say what was booted.
//!
//! [`DeviceTpm`] binds a secret to a TPM 2.0 and to PCR 7 (Secure Boot state); [`SoftwareTpm`] stands in where there
//! is no TPM and protects nothing; [`FakeTpm`] and [`swtpm`] are for tests. Nothing here decides what a secret is for, stores a blob,
//! or falls back silently: a TPM that is present and fails is an error, and the [`Kind`] is visible to every caller.
//!
//! Invariant: a blob that one of them made is either opened to the same bytes or refused with the reason.

mod attestation;
mod blob;
mod device;
mod endorsement;
mod fake;
mod memory;
mod software;
pub mod swtpm;

pub use device::DeviceTpm;
pub use fake::FakeTpm;
pub use software::SoftwareTpm;
pub use zeroize::Zeroizing;

pub use beemesh_firmware_credential::{Credential, EndorsementKey, KeyError};
pub use beemesh_firmware_measure::{AttestationKey, PcrSet, Quote};

use std::{fmt, path::Path};

/// The kernel's resource-managed TPM 2.0 device.
pub const DEVICE: &str = "/dev/tpmrm0";

/// Longest secret that can be sealed, in bytes (TPM 2.0 Library, part 2, `MAX_SYM_DATA`).
pub const MAX_SECRET: usize = 128;

/// Longest sealed blob that is read, in bytes.
pub const MAX_BLOB: usize = 4096;

/// Most bytes that a TPM keeps for a machine without a disk ([`Tpm::remember`]): with their frame 1024, which TPMs take in one
/// command.
pub const MAX_MEMORY: usize = 986;

/// What stands behind a [`Tpm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TPM 2.0: the blob is useless on any other machine.
    Device,
    /// No TPM: the blob is the secret itself. Whoever copies the file has it.
    Software,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Device => "tpm",
            Kind::Software => "software",
        })
    }
}

/// The capability to bind secrets to this machine.
pub trait Tpm: Send + Sync {
    /// Whether a real TPM does the work.
    fn kind(&self) -> Kind;

    /// Seals `secret` (1 to [`MAX_SECRET`] bytes) to this machine and its present Secure Boot state, and sees to it that
    /// it comes back.
    /// The blob is at most [`MAX_BLOB`] bytes and may be stored anywhere.
    ///
    /// # Errors
    /// A secret of another length; a TPM that cannot be reached or refuses a command.
    fn seal(&self, secret: &[u8]) -> Result<Vec<u8>, TpmError>;

    /// Gives back what [`Tpm::seal`] was given.
    ///
    /// # Errors
    /// [`TpmError::Foreign`] for a blob of another machine, [`TpmError::StateChanged`] when Secure Boot differs from
    /// the time of sealing, [`TpmError::OtherKind`] when the blob was made with a TPM and there is none, or the reverse.
    fn unseal(&self, blob: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError>;

    /// What [`Tpm::remember`] was given last; `None` where it was given nothing, the TPM was cleared since, or there is none.
    ///
    /// # Errors
    /// [`TpmError::StateChanged`] when Secure Boot differs from the time of the first [`Tpm::remember`],
    /// [`TpmError::MemoryDamaged`] after a write that was cut short, [`TpmError::MemoryTaken`] where somebody else uses the place.
    fn recall(&self) -> Result<Option<Vec<u8>>, TpmError> {
        Ok(None)
    }

    /// Keeps `bytes` (at most [`MAX_MEMORY`]) in the TPM itself, in place of what was there, and sees to it that they come back.
    /// They are bound to the present Secure Boot state, and cross the bus in the clear: a secret among them must be sealed. The
    /// storage wears out after some 100,000 writes: write only what has changed.
    ///
    /// # Errors
    /// As [`Tpm::recall`]; [`TpmError::MemoryFull`], [`TpmError::MemoryLength`]; [`TpmError::NoEndorsement`] where no TPM is.
    fn remember(&self, bytes: &[u8]) -> Result<(), TpmError> {
        let _ = bytes;
        Err(TpmError::NoEndorsement)
    }

    /// Removes what [`Tpm::remember`] was given, and the place for it; nothing where there is none.
    ///
    /// # Errors
    /// A TPM that cannot be reached or refuses a command; [`TpmError::MemoryTaken`].
    fn forget(&self) -> Result<(), TpmError> {
        Ok(())
    }

    /// The endorsement key, made anew from the TPM's seed: the same each time, until somebody changes the seed.
    ///
    /// # Errors
    /// [`TpmError::NoEndorsement`] where no TPM is.
    fn endorsement(&self) -> Result<Endorsement, TpmError> {
        Err(TpmError::NoEndorsement)
    }

    /// The certificates between that of the endorsement key and its maker's root, where the TPM holds them: X.509, DER, one
    /// after the other. Nobody has judged them. Empty where there are none.
    ///
    /// # Errors
    /// A TPM that cannot be reached or refuses a command.
    fn endorsement_chain(&self) -> Result<Vec<u8>, TpmError> {
        Ok(Vec::new())
    }

    /// The secret that [`beemesh_firmware_credential::make`] encrypted to this TPM.
    ///
    /// # Errors
    /// [`TpmError::Foreign`] for a credential of another TPM, or one that was altered; [`TpmError::NoEndorsement`] where no
    /// TPM is.
    fn activate(&self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let _ = credential;
        Err(TpmError::NoEndorsement)
    }

    /// The attestation key, made anew from the TPM's seed: the same each time, until somebody changes the seed.
    ///
    /// # Errors
    /// [`TpmError::NoEndorsement`] where no TPM is.
    fn attestation_key(&self) -> Result<AttestationKey, TpmError> {
        Err(TpmError::NoEndorsement)
    }

    /// What the TPM says of the registers `pcrs` (SHA-256 bank), signed with the attestation key over `nonce` (at most 66
    /// bytes).
    ///
    /// # Errors
    /// [`TpmError::NoEndorsement`] where no TPM is.
    fn attest(&self, nonce: &[u8], pcrs: PcrSet) -> Result<Attested, TpmError> {
        let _ = (nonce, pcrs);
        Err(TpmError::NoEndorsement)
    }

    /// The secret that [`beemesh_firmware_credential::make_for`] encrypted to this TPM and the name of its attestation key:
    /// who has it holds both.
    ///
    /// # Errors
    /// As [`Tpm::activate`]; [`TpmError::Foreign`] also for a credential of another key's name.
    fn activate_for_attestation(&self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let _ = credential;
        Err(TpmError::NoEndorsement)
    }
}

/// What a TPM says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attested {
    /// The key that signed.
    pub key: AttestationKey,
    /// What it signed.
    pub quote: Quote,
}

/// A TPM's endorsement key and what its maker says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endorsement {
    /// Its public part.
    pub key: EndorsementKey,
    /// The maker's certificate (X.509, DER), where the TPM holds one for this kind of key.
    pub certificate: Option<Vec<u8>>,
}

/// Why a secret was not sealed or unsealed.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// The secret is empty or longer than [`MAX_SECRET`].
    #[error("cannot seal a secret of {len} bytes: 1 to {MAX_SECRET} bytes are possible")]
    SecretLength {
        /// Its length in bytes.
        len: usize,
    },
    /// Not a sealed blob at all.
    #[error("the sealed blob is damaged: {what}")]
    Malformed {
        /// What is wrong with it.
        what: String,
    },
    /// Sealed with a TPM and there is none now, or the reverse.
    #[error("the blob was sealed by `{sealed_by}`, but this machine now offers `{present}`")]
    OtherKind {
        /// What made the blob.
        sealed_by: &'static str,
        /// What is here.
        present: &'static str,
    },
    /// Sealed by the TPM of another machine, or this TPM was cleared since.
    #[error("it was sealed or encrypted to the tpm of another machine, or this tpm was cleared since")]
    Foreign,
    /// PCR 7 differs from the time of sealing.
    #[error(
        "the secure boot settings of this machine changed since the blob was sealed: restore them in the firmware set-up"
    )]
    StateChanged,
    /// The TPM gave back something else than it was given.
    #[error("the tpm does not give back what it sealed")]
    Forgetful,
    /// More than a TPM is asked to keep.
    #[error("cannot keep {len} bytes in the tpm: at most {MAX_MEMORY} are possible")]
    MemoryLength {
        /// How many it were.
        len: usize,
    },
    /// No room in the TPM's storage.
    #[error(
        "the tpm has no room for {bytes} bytes more: remove indices that nobody needs (`tpm2_nvundefine`), or clear the tpm in \
         the firmware set-up"
    )]
    MemoryFull {
        /// How many it would take.
        bytes: usize,
    },
    /// The place in the TPM's storage is somebody else's.
    #[error(
        "the index {index:#010x} of the tpm is used by other software: remove it (`tpm2_nvundefine {index:#010x}`), or clear the \
         tpm in the firmware set-up"
    )]
    MemoryTaken {
        /// Its number.
        index: u32,
    },
    /// What the TPM kept is not what it was given: a write was cut short.
    #[error("what the tpm has kept is damaged")]
    MemoryDamaged,
    /// Only a TPM has an endorsement key.
    #[error(
        "this machine has no tpm: it has no endorsement key, and opens nothing that was encrypted to one"
    )]
    NoEndorsement,
    /// The TPM's endorsement key has another form than its template.
    #[error("the tpm made an endorsement key of another form")]
    Endorsement(#[source] KeyError),
    /// The TPM's attestation key has another form than its template.
    #[error("the tpm made an attestation key of another form")]
    Attestation(#[source] beemesh_firmware_measure::KeyError),
    /// The TPM cannot be opened.
    #[error("failed to open the tpm at `{tcti}`")]
    Unavailable {
        /// Where it was looked for (a TCTI name and configuration).
        tcti: String,
        /// The answer of the TPM software stack.
        #[source]
        source: tss_esapi::Error,
    },
    /// The TPM refused a command.
    #[error("the tpm refused the command `{command}`")]
    Command {
        /// The command's name in the TPM 2.0 Library specification, part 3.
        command: &'static str,
        /// Its answer.
        #[source]
        source: tss_esapi::Error,
    },
}

/// The machine's TPM if the kernel offers [`DEVICE`], otherwise [`SoftwareTpm`]. Opens nothing yet: a TPM that is
/// present and broken shows itself at the first use, and is never replaced by software.
pub fn open() -> Box<dyn Tpm> {
    open_at(Path::new(DEVICE))
}

/// As [`open`], for a device node at `path`.
pub fn open_at(path: &Path) -> Box<dyn Tpm> {
    if path.exists() {
        Box::new(DeviceTpm::at(path))
    } else {
        tracing::warn!(device = %path.display(), "no tpm: secrets of this machine can be copied with its disk");
        Box::new(SoftwareTpm)
    }
}

fn check_secret(secret: &[u8]) -> Result<(), TpmError> {
    if secret.is_empty() || secret.len() > MAX_SECRET {
        return Err(TpmError::SecretLength { len: secret.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_tpm_gets_the_software_kind() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(open_at(&folder.path().join("tpmrm0")).kind(), Kind::Software);
    }

    #[test]
    fn a_tpm_that_is_present_and_broken_is_an_error_and_not_replaced_by_software() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tpmrm0");
        std::fs::write(&path, b"not a device").unwrap();
        let tpm = open_at(&path);
        assert_eq!(tpm.kind(), Kind::Device);
        let error = tpm.seal(b"secret").unwrap_err();
        assert!(
            matches!(error, TpmError::Unavailable { .. } | TpmError::Command { .. }),
            "{error}"
        );
    }
}
