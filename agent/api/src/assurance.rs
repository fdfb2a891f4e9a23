//! How far a member can be believed, as the node that answers judges it; and what a manifest may demand of it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The node selector that demands an assurance. Nodes have no such label: whoever places a pod goes by its own judgement.
pub const ASSURANCE_SELECTOR: &str = "assurance";
/// What it may demand.
pub const DEMANDS: [&str; 2] = ["tpm", "trusted"];
/// Begins the word for an old release.
const OLD: &str = "old: release ";
/// Longest version of a release, in bytes.
const VERSION: usize = 64;
/// Registers of a TPM.
const PCRS: u8 = 24;

/// How far a member can be believed. In JSON as it is displayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum NodeAssurance {
    /// It has no TPM, or proves nothing with it.
    Low,
    /// Its key is sealed in a TPM. What it booted is not compared with anything.
    Tpm,
    /// Its TPM is proven, and it booted a release of the fabric, in the way in which it did when it was first seen.
    Trusted,
    /// Its TPM is proven, and it booted this release, which the fabric has left behind: an older image was put back.
    Old(String),
    /// Its TPM is proven, and these registers (PCRs) are not what they should be.
    Changed(Vec<u8>),
}

impl NodeAssurance {
    /// Whether it is at least what a node selector demands, one of [`DEMANDS`].
    #[must_use]
    pub fn meets(&self, demanded: &str) -> bool {
        match self {
            Self::Trusted => DEMANDS.contains(&demanded),
            Self::Tpm => demanded == "tpm",
            Self::Low | Self::Old(_) | Self::Changed(_) => false,
        }
    }
}

impl fmt::Display for NodeAssurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Low => f.pad("low"),
            Self::Tpm => f.pad("tpm"),
            Self::Trusted => f.pad("trusted"),
            Self::Old(version) => f.pad(&format!("{OLD}{version}")),
            Self::Changed(pcrs) => {
                let pcrs: Vec<String> = pcrs.iter().map(u8::to_string).collect();
                f.pad(&format!("changed: PCR {}", pcrs.join(",")))
            }
        }
    }
}

/// Not a [`NodeAssurance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected `low`, `tpm`, `trusted`, `old: release VERSION` or `changed: PCR N[,N]`")]
pub struct InvalidAssurance;

impl FromStr for NodeAssurance {
    type Err = InvalidAssurance;
    fn from_str(text: &str) -> Result<Self, InvalidAssurance> {
        match text {
            "low" => return Ok(Self::Low),
            "tpm" => return Ok(Self::Tpm),
            "trusted" => return Ok(Self::Trusted),
            _ => {}
        }
        if let Some(version) = text.strip_prefix(OLD) {
            let is_version =
                (1..=VERSION).contains(&version.len()) && version.bytes().all(|b| b.is_ascii_graphic());
            return is_version
                .then(|| Self::Old(version.to_owned()))
                .ok_or(InvalidAssurance);
        }
        let pcrs = text.strip_prefix("changed: PCR ").ok_or(InvalidAssurance)?;
        let pcrs = pcrs
            .split(',')
            .map(|pcr| pcr.parse().ok().filter(|pcr| *pcr < PCRS));
        let pcrs: Vec<u8> = pcrs
            .take(usize::from(PCRS) + 1)
            .collect::<Option<_>>()
            .ok_or(InvalidAssurance)?;
        match pcrs.len() <= usize::from(PCRS) {
            true => Ok(Self::Changed(pcrs)),
            false => Err(InvalidAssurance),
        }
    }
}

impl TryFrom<String> for NodeAssurance {
    type Error = InvalidAssurance;
    fn try_from(text: String) -> Result<Self, InvalidAssurance> {
        text.parse()
    }
}

impl From<NodeAssurance> for String {
    fn from(assurance: NodeAssurance) -> Self {
        assurance.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back_and_other_words_refused() {
        for good in [
            "low",
            "tpm",
            "trusted",
            "old: release 0.1.0",
            "changed: PCR 7",
            "changed: PCR 0,7,11",
        ] {
            assert_eq!(good.parse::<NodeAssurance>().unwrap().to_string(), good);
        }
        let many = format!("changed: PCR 1{}", ",1".repeat(24));
        for bad in [
            "",
            "Trusted",
            "old: release ",
            "old: release a b",
            "changed: PCR ",
            "changed: PCR 24",
            "changed: PCR 7,",
            &many,
        ] {
            assert!(bad.parse::<NodeAssurance>().is_err(), "{bad}");
        }
    }

    #[test]
    fn demand_is_met_by_what_is_at_least_as_good() {
        let all = [
            NodeAssurance::Low,
            NodeAssurance::Old("0.1.0".into()),
            NodeAssurance::Changed(vec![7]),
            NodeAssurance::Tpm,
            NodeAssurance::Trusted,
        ];
        let met = |demanded: &str| all.clone().map(|one| one.meets(demanded));
        assert_eq!(met("trusted"), [false, false, false, false, true]);
        assert_eq!(met("tpm"), [false, false, false, true, true]);
        assert_eq!(
            met("low"),
            [false; 5],
            "nothing is ever placed by an unknown word"
        );
    }
}
