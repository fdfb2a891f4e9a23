//! The form of a sealed blob: JSON that names who sealed it. Does not interpret the sealed bytes.

use crate::{MAX_BLOB, TpmError};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// A sealed blob as it is stored. Binary fields are base64.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "sealed_by", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Blob {
    /// A keyed-hash object of a TPM 2.0: `TPMT_PUBLIC` and `TPM2B_PRIVATE` contents.
    Tpm {
        version: u32,
        public: String,
        private: String,
    },
    /// The secret itself.
    Software { version: u32, secret: String },
    /// Made by `FakeTpm`.
    Fake {
        version: u32,
        chip: u64,
        state: u64,
        secret: String,
    },
}

impl Blob {
    pub(crate) const VERSION: u32 = VERSION;

    /// Who sealed it, as the errors call it.
    pub(crate) fn sealed_by(&self) -> &'static str {
        match self {
            Blob::Tpm { .. } => "tpm",
            Blob::Software { .. } => "software",
            Blob::Fake { .. } => "fake",
        }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, TpmError> {
        serde_json::to_vec(self).map_err(malformed)
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        if bytes.len() > MAX_BLOB {
            return Err(malformed(format!(
                "{} bytes, at most {MAX_BLOB} are possible",
                bytes.len()
            )));
        }
        let blob: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        let (Blob::Tpm { version, .. } | Blob::Software { version, .. } | Blob::Fake { version, .. }) = &blob;
        if *version != VERSION {
            return Err(malformed(format!(
                "version {version}, this software reads version {VERSION}"
            )));
        }
        Ok(blob)
    }
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn decode(text: &str) -> Result<Vec<u8>, TpmError> {
    STANDARD.decode(text).map_err(malformed)
}

pub(crate) fn malformed(what: impl ToString) -> TpmError {
    TpmError::Malformed {
        what: what.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_that_are_too_long_of_another_version_or_no_json_are_refused() {
        let long = format!(
            "{{\"sealed_by\":\"software\",\"version\":1,\"secret\":\"{}\"}}",
            "A".repeat(MAX_BLOB)
        );
        let texts: [&[u8]; 4] = [
            long.as_bytes(),
            br#"{"sealed_by":"software","version":2,"secret":"AA=="}"#,
            br#"{"sealed_by":"someone","version":1}"#,
            b"\xff",
        ];
        for text in texts {
            assert!(matches!(Blob::parse(text), Err(TpmError::Malformed { .. })));
        }
    }
}
