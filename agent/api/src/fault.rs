//! What is wrong with a manifest: where it is, what it is, what to do about it.

use std::fmt;

/// Why a manifest is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ManifestError {
    /// Which document of the input, from 1; 0 where the input as a whole is meant.
    pub document: usize,
    /// Path of the field, e.g. `spec.template.spec.containers[0].livenessProbe`; empty for the document itself.
    pub path: String,
    /// Line of the input, from 1, where it is known.
    pub line: Option<u64>,
    /// What is wrong.
    #[source]
    pub what: ManifestFault,
    /// What to do; empty where the fault says it all.
    pub hint: String,
}

/// What is wrong. A refusal, not a failure: the caller can match on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestFault {
    /// The input is larger than the bound.
    #[error("{size} bytes, at most {max} are read")]
    TooLarge {
        /// Size of the input in bytes.
        size: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// There is no document in the input, or too many.
    #[error("{found} documents, expected 1 to {max}")]
    Documents {
        /// Documents found.
        found: usize,
        /// The bound.
        max: usize,
    },
    /// Neither YAML nor JSON.
    #[error("not YAML: {0}")]
    Syntax(String),
    /// A kind or an `apiVersion` outside the subset.
    #[error("`{0}` is not supported")]
    Kind(String),
    /// A field outside the subset.
    #[error("not supported")]
    Unsupported,
    /// A field that must be there.
    #[error("missing")]
    Missing,
    /// A value of the wrong type or outside its range.
    #[error("{0}")]
    Invalid(String),
    /// A value that must be unique.
    #[error("`{0}` is there twice")]
    Duplicate(String),
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{}", self.what)?;
        match (self.document, self.line) {
            (0, None) => {}
            (0, Some(line)) => write!(f, " (line {line})")?,
            (document, None) => write!(f, " (document {document})")?,
            (document, Some(line)) => write!(f, " (document {document}, line {line})")?,
        }
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

impl ManifestError {
    /// A fault of the field at `path`; document and line are filled in by the reader of the input.
    pub(crate) fn at(path: impl Into<String>, what: ManifestFault, hint: impl Into<String>) -> Self {
        Self {
            document: 0,
            path: path.into(),
            line: None,
            what,
            hint: hint.into(),
        }
    }
}
