//! The operator's context: what `bmctl` needs to reach a fabric and to sign changes. A secret file, mode 0600.

use crate::{Envelope, Refusal, Role, RootChain, SecretKey, limits};
use serde::{Deserialize, Serialize};

const WHAT: &str = "operator context";

/// The content of `operator.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorContext {
    /// Always 1.
    pub version: u32,
    /// Root documents 1..N.
    pub roots: Vec<Envelope>,
    /// The operator's secret key, as hexadecimal digits.
    pub key: SecretKey,
}

impl OperatorContext {
    /// Reads the file's content, at most [`limits::OPERATOR_LIMIT`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > limits::OPERATOR_LIMIT {
            return Err(Refusal::TooLarge {
                what: WHAT,
                limit: limits::OPERATOR_LIMIT,
            });
        }
        let context: Self = serde_json::from_slice(bytes).map_err(|e| Refusal::malformed(WHAT, e))?;
        if context.version != 1 {
            return Err(Refusal::WrongVersion {
                what: WHAT,
                found: context.version,
                supported: 1,
            });
        }
        Ok(context)
    }

    /// The verified root chain; [`Refusal::UnknownKey`] if the key has not the role [`Role::Operator`]. Whether it has expired
    /// is for the fabric to say, which may know a newer root document.
    pub fn chain(&self) -> Result<RootChain, Refusal> {
        let chain = RootChain::bootstrap(&self.roots)?;
        let id = self.key.public().key_id();
        match chain.role(Role::Operator).key(&id) {
            Some(_) => Ok(chain),
            None => Err(Refusal::UnknownKey {
                what: WHAT.to_owned(),
                key: id,
            }),
        }
    }
}
