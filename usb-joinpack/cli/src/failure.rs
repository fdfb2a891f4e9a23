//! How a command ends badly, and with which exit code. Prints nothing.

use beemesh_joinpack_format::Refusal;
use beemesh_joinpack_token::TokenError;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The command line or a file that the operator wrote is wrong: exit code 2.
    Invalid(anyhow::Error),
    /// A pack, credential or device is refused: exit code 3.
    Refused(Refusal),
    /// A safety rule of this tool says no: exit code 3.
    Forbidden(anyhow::Error),
    /// Something did not work: exit code 1.
    Failed(anyhow::Error),
}

impl Failure {
    /// The exit code (requirements, "Command line").
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Invalid(_) => 2,
            Self::Refused(_) | Self::Forbidden(_) => 3,
        }
    }

    /// A word for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Failed(_) => "failed",
            Self::Invalid(_) => "invalid-input",
            Self::Forbidden(_) => "forbidden",
            Self::Refused(refusal) => refusal.code(),
        }
    }
}

impl std::fmt::Display for Failure {
    /// The whole chain of causes in one line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(error) | Self::Failed(error) | Self::Forbidden(error) => write!(f, "{error:#}"),
            Self::Refused(refusal) => write!(f, "refused ({}): {refusal}", refusal.code()),
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Invalid(_) => Self::Invalid(error.into()),
            TokenError::Forbidden(_) => Self::Forbidden(error.into()),
            TokenError::Failed { .. } => Self::Failed(error.into()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Returns [`Failure::Invalid`] with a formatted message.
macro_rules! invalid {
    ($($text:tt)*) => { return Err($crate::failure::Failure::Invalid(anyhow::anyhow!($($text)*))) };
}
pub(crate) use invalid;
