//! The stand-in for machines without a TPM. It protects nothing and says so in the blob.

use crate::{Kind, Tpm, TpmError, Zeroizing, blob, blob::Blob, check_secret};

/// No TPM: the blob holds the secret in the clear, marked `software`.
#[derive(Debug, Clone, Copy, Default)]
pub struct SoftwareTpm;

impl Tpm for SoftwareTpm {
    fn kind(&self) -> Kind {
        Kind::Software
    }

    fn seal(&self, secret: &[u8]) -> Result<Vec<u8>, TpmError> {
        check_secret(secret)?;
        Blob::Software {
            version: Blob::VERSION,
            secret: blob::encode(secret),
        }
        .to_bytes()
    }

    fn unseal(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        match Blob::parse(bytes)? {
            Blob::Software { secret, .. } => Ok(Zeroizing::new(blob::decode(&secret)?)),
            other => Err(TpmError::OtherKind {
                sealed_by: other.sealed_by(),
                present: "software",
            }),
        }
    }
}
