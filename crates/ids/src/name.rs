//! Names of fabrics and nodes.

use crate::{Digest, InvalidId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

macro_rules! text_id {
    ($type:ident) => {
        impl $type {
            /// The text of the identifier.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> Self {
                id.0
            }
        }
    };
}
pub(crate) use text_id;

/// A fabric: the SHA-256 of its first root document, in hexadecimal. It names itself, nobody assigns it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FabricId(String);

impl FabricId {
    /// The id of the fabric whose first root document has `digest`.
    pub fn from_root(digest: Digest) -> Self {
        Self(digest.hex())
    }

    /// The first eight digits, for people. Not unique enough to decide anything.
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or(&self.0)
    }
}

impl FromStr for FabricId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match format!("sha256:{text}").parse::<Digest>() {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(InvalidId::Fabric(text.chars().take(80).collect())),
        }
    }
}
text_id!(FabricId);

/// The name of a node: a DNS label (RFC 1123, section 2.1), at most 63 characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NodeName(String);

impl FromStr for NodeName {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let inner = text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if !inner || text.is_empty() || text.len() > 63 || text.starts_with('-') || text.ends_with('-') {
            return Err(InvalidId::NodeName(text.chars().take(80).collect()));
        }
        Ok(Self(text.to_owned()))
    }
}
text_id!(NodeName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_dns_labels() {
        assert!("node-1".parse::<NodeName>().is_ok());
        for text in ["", "-a", "a-", "A", "a.b", "../x", &"a".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_fabric_names_itself() {
        let id = FabricId::from_root(Digest::of(b"root"));
        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        assert_eq!(id.short().len(), 8);
    }
}
