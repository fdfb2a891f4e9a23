//! What machines booted, by the quotes in their receipts and requests: judged as members judge each other
//! (`agent/sched/src/attestation.rs`), as far as that is possible in writing.
//!
//! Invariant: nobody is more than `low` whose quote is not over this very document.

use crate::failure::{Failure, invalid};
use crate::plan::read_release;
use beemesh_agent_api::view::NodeAssurance;
use beemesh_agent_sched::attestation::{
    Baseline, MAX_RELEASES, Release, ReleaseNews, Releases, judge_written,
};
use beemesh_firmware_measure::Quote;
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{BootQuote, EndorsementFile, Receipt, Refusal, Registers, Request};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a machine booted.
#[derive(Debug, Serialize)]
pub struct BootView {
    /// `trusted`, `tpm`, `low` or `changed: PCR N`.
    pub assurance: NodeAssurance,
    /// Why it is no more than `low`.
    pub why: Option<String>,
    /// Digest of the key that signed.
    pub ak: Option<Digest>,
    /// What it booted, by register.
    pub pcrs: Registers,
}

impl BootView {
    fn low(why: String) -> Self {
        Self {
            assurance: NodeAssurance::Low,
            why: Some(why),
            ak: None,
            pcrs: Registers::default(),
        }
    }

    /// In words.
    pub fn in_words(&self) -> String {
        match &self.why {
            Some(why) => format!("{} ({why})", self.assurance),
            None => self.assurance.to_string(),
        }
    }
}

/// The judgements of one command: what a machine shows is compared with what it showed before.
pub struct Boots {
    releases: Releases,
    known: BTreeMap<PeerId, Baseline>,
}

impl Boots {
    /// Where these releases count, each a `release.json`; without any, whatever was booted.
    pub fn new(files: &[PathBuf]) -> Result<Self, Failure> {
        if files.len() > MAX_RELEASES {
            invalid!("--release can be given {MAX_RELEASES} times at most");
        }
        let mut releases = Releases::default();
        let named = files.iter().map(|path| {
            read_release(path).map(|release| Release {
                version: release.version,
                pcr11: release.pcr11,
            })
        });
        releases.learn(ReleaseNews {
            id: String::new(),
            releases: named.collect::<Result<_, Failure>>()?,
        });
        Ok(Self {
            releases,
            known: BTreeMap::new(),
        })
    }

    /// What the writer of a receipt booted, which its peer has signed. Older receipts come first.
    pub fn of_receipt(&mut self, receipt: &Receipt) -> BootView {
        let (quote, ek) = (receipt.attestation.as_ref(), receipt.machine.ek.as_ref());
        self.judge(receipt.peer_id.as_ref(), quote, ek, receipt.nonce())
    }

    /// What the writer of a request booted.
    pub fn of_request(&mut self, request: &Request) -> BootView {
        let (quote, ek) = (request.attestation.as_ref(), request.machine.ek.as_ref());
        self.judge(Some(&request.peer_id), quote, ek, request.nonce())
    }

    fn judge(
        &mut self,
        peer: Option<&PeerId>,
        quote: Option<&BootQuote>,
        ek: Option<&EndorsementFile>,
        nonce: Result<Digest, Refusal>,
    ) -> BootView {
        let (Some(peer), Some(ek)) = (peer, ek) else {
            return BootView::low("it shows no tpm".to_owned());
        };
        let Some(quote) = quote else {
            return BootView::low("its tpm says nothing of its boot".to_owned());
        };
        let (parts, nonce) = match (quote.parts(), nonce) {
            (Ok(parts), Ok(nonce)) => (parts, nonce),
            (Err(refusal), _) | (_, Err(refusal)) => return BootView::low(refusal.to_string()),
        };
        let signed = Quote {
            attest: parts.attest,
            signature: parts.signature,
            pcrs: quote.pcrs.0.clone(),
        };
        let known = self.known.get(peer);
        match judge_written(ek.ek, &parts.ak, &signed, &nonce, known, &self.releases) {
            Ok((assurance, baseline)) => {
                self.known.insert(peer.clone(), baseline);
                BootView {
                    assurance,
                    why: None,
                    ak: Some(Digest::of(&parts.ak)),
                    pcrs: quote.pcrs.clone(),
                }
            }
            Err(refusal) => BootView::low(refusal.to_string()),
        }
    }
}
