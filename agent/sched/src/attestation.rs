//! Judges what members booted, by quotes of their TPMs: each node judges all others, and itself, by its own questions.
//!
//! A member is asked when it connects and then once an hour. It shows a quote over a nonce that is bound to both nodes, and
//! proves once that the key which signed it is in the TPM of its endorsement key. What registers 0 to 7 and 12 hold is
//! recorded when a member is first seen with a release that the fabric knows (trust on first use), and compared from then on;
//! an operator's acceptance takes the place of what was recorded.
//! Draws no randomness and speaks to nobody: the driver asks ([`Command::Attest`](crate::Command::Attest)) and brings the answer.
//! Invariants (tested below): nobody is [`NodeAssurance::Trusted`] whose nonce, key, signature or a register differs; a judgement
//! ends with the connection, or after [`VALID_MS`]; what is kept is bounded by the roster.

use crate::cell::Cell;
use crate::model::{Command, Millis, Record};
pub use crate::releases::{MAX_RELEASES, Release, ReleaseNews, Releases};
use beemesh_agent_api::boot::BootView;
use beemesh_agent_api::view::{Assurance, NodeAssurance};
use beemesh_firmware_measure::{AttestationKey, PcrSet, Quote, QuoteRefusal};
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::Registers;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The registers that are quoted: 0 to 7 firmware and boot loader, 11 the unified kernel image, 12 what it was given besides
/// (UAPI group, "Linux TPM PCR Registry").
pub const QUOTED: PcrSet = PcrSet::of(&[0, 1, 2, 3, 4, 5, 6, 7, IMAGE, 12]);
/// The register that a release says the value of.
const IMAGE: u8 = 11;
/// Registers that another release changes: the digests of what was loaded, and the command line.
const OF_RELEASE: PcrSet = PcrSet::of(&[4, 12]);

/// From connecting to the first question, in milliseconds: a joining box has other things to do.
pub const FIRST_MS: u64 = 5_000;
/// Between two questions to a member.
pub const EVERY_MS: u64 = 3_600_000;
/// Between two questions to a member that did not answer or came back, at least; doubles with each failure.
pub const AGAIN_MS: u64 = 60_000;
/// Whoever was not judged anew for this long counts as not judged.
pub const VALID_MS: u64 = 2 * EVERY_MS;
/// A question that was not answered by then is lost.
pub const LOST_MS: u64 = 60_000;
/// Questions at once.
pub const AT_ONCE: usize = 4;

/// What a member showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// Digest of its endorsement key.
    pub ek: Digest,
    /// The endorsement key that its voucher is for, where it is for one TPM alone.
    pub vouched_ek: Option<Digest>,
    /// `TPMT_PUBLIC` of its attestation key.
    pub ak: Vec<u8>,
    /// What it was asked with: fresh randomness of this node.
    pub nonce: [u8; 32],
    /// What its TPM signed.
    pub quote: Quote,
    /// The answer to a credential, where one was made.
    pub activation: Option<Activation>,
}

/// A credential and what came back for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Activation {
    /// The endorsement key that it was encrypted to.
    pub ek: Digest,
    /// The attestation key whose name it is bound to.
    pub ak: Digest,
    /// The secret in it: fresh randomness of this node.
    pub secret: [u8; 32],
    /// What the member answered.
    pub proof: Digest,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// It has no TPM, it says.
    NoTpm,
    /// It has one.
    Evidence(Box<Evidence>),
}

/// What is remembered of a member. Durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baseline {
    /// Its endorsement key.
    pub ek: Digest,
    /// Its attestation key, which was proven to be in the TPM of that one.
    pub ak: Digest,
    /// The registers as they were when it was first seen with a known release; empty before.
    pub pcrs: BTreeMap<u8, Digest>,
    /// Digest of what an operator has accepted for it last, and `pcrs` began with.
    #[serde(default)]
    pub accepted: Option<Digest>,
}

impl Baseline {
    /// From now on it is to boot like this; once for each acceptance, or an update since would be taken back.
    fn accept(&mut self, accepted: &Registers) {
        let digest = accepted.digest();
        if self.accepted != Some(digest) {
            self.accepted = Some(digest);
            self.pcrs.clone_from(&accepted.0);
        }
    }
}

/// Why evidence is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an attestation key.
    #[error("its attestation key is none")]
    Key,
    /// Another TPM than the voucher's, or than before.
    #[error("its tpm is another one than {0}")]
    OtherTpm(&'static str),
    /// The key that signs was not shown to be in that TPM.
    #[error("it does not prove that its attestation key is in its tpm")]
    Unproven,
    /// The quote.
    #[error("{0}")]
    Quote(#[from] QuoteRefusal),
}

/// What a quote for `verifier` is made over. Bound to both nodes, so that no node can show the quote of another as its own.
pub fn quote_nonce(nonce: &[u8; 32], verifier: &PeerId, prover: &PeerId) -> Digest {
    bound("beemesh attestation: quote", nonce, verifier, prover)
}

/// What proves to `verifier` that a credential was activated, without telling the secret to anybody who only passes it on.
pub fn activation_proof(secret: &[u8; 32], verifier: &PeerId, prover: &PeerId) -> Digest {
    bound("beemesh attestation: activation", secret, verifier, prover)
}

fn bound(what: &str, random: &[u8; 32], verifier: &PeerId, prover: &PeerId) -> Digest {
    // Peer ids are text without zeros.
    let parts = [
        what.as_bytes(),
        verifier.as_str().as_bytes(),
        prover.as_str().as_bytes(),
    ];
    Digest::of(&[parts.join(&0).as_slice(), &[0], random].concat())
}

/// What evidence of `prover` means to `verifier`, and what to remember of it from now on. `accepted` is what an operator has
/// accepted for it.
///
/// # Errors
/// [`Refusal`]: it proves nothing.
pub fn judge(
    verifier: &PeerId,
    prover: &PeerId,
    evidence: &Evidence,
    known: Option<&Baseline>,
    accepted: Option<&Registers>,
    releases: &Releases,
) -> Result<(NodeAssurance, Baseline), Refusal> {
    let ak = AttestationKey::parse(&evidence.ak).map_err(|_| Refusal::Key)?;
    if evidence.vouched_ek.is_some_and(|vouched| vouched != evidence.ek) {
        return Err(Refusal::OtherTpm("its voucher is for"));
    }
    let proven = evidence.activation.as_ref().is_some_and(|activation| {
        (activation.ek, activation.ak) == (evidence.ek, ak.digest())
            && activation.proof == activation_proof(&activation.secret, verifier, prover)
    });
    if known.is_none() && !proven {
        return Err(Refusal::Unproven);
    }
    let mut baseline = recorded(evidence.ek, &ak, known)?;
    let nonce = quote_nonce(&evidence.nonce, verifier, prover);
    evidence.quote.verify(&ak, nonce.as_bytes(), QUOTED)?;
    if let Some(accepted) = accepted {
        baseline.accept(accepted);
    }
    Ok(compare(&evidence.quote.pcrs, baseline, releases))
}

/// What a quote means that a machine left in writing, for a reader who cannot ask it anything: `nonce` is the rest of the document,
/// `known` what its documents before have shown. That the key which signed is in the TPM of `ek` is not proven by it: the machine
/// says so, and a later document must say the same.
///
/// # Errors
/// [`Refusal`]: it proves nothing.
pub fn judge_written(
    ek: Digest,
    ak: &[u8],
    quote: &Quote,
    nonce: &Digest,
    known: Option<&Baseline>,
    releases: &Releases,
) -> Result<(NodeAssurance, Baseline), Refusal> {
    let ak = AttestationKey::parse(ak).map_err(|_| Refusal::Key)?;
    let baseline = recorded(ek, &ak, known)?;
    quote.verify(&ak, nonce.as_bytes(), QUOTED)?;
    Ok(compare(&quote.pcrs, baseline, releases))
}

/// What is compared with: what is known of this TPM, or nothing yet.
fn recorded(ek: Digest, ak: &AttestationKey, known: Option<&Baseline>) -> Result<Baseline, Refusal> {
    match known {
        Some(known) if (known.ek, known.ak) == (ek, ak.digest()) => Ok(known.clone()),
        Some(_) => Err(Refusal::OtherTpm("it had when it was first seen")),
        None => Ok(Baseline {
            ek,
            ak: ak.digest(),
            pcrs: BTreeMap::new(),
            accepted: None,
        }),
    }
}

/// What the registers, which are those that the TPM signed, mean.
fn compare(
    pcrs: &BTreeMap<u8, Digest>,
    mut baseline: Baseline,
    releases: &Releases,
) -> (NodeAssurance, Baseline) {
    if releases.is_empty() {
        return (NodeAssurance::Tpm, baseline);
    }
    let image = pcrs.get(&IMAGE);
    let mut changed = PcrSet::EMPTY;
    let old = releases.old(image);
    let named = releases.current(image).is_some();
    if !named && old.is_none() {
        changed.insert(IMAGE);
    }
    let is_new = baseline.pcrs.is_empty();
    // From one known release to another one, or back.
    let updated = (named || old.is_some()) && baseline.pcrs.get(&IMAGE) != image;
    let compared = QUOTED.iter().filter(|pcr| *pcr != IMAGE && !is_new);
    for pcr in compared.filter(|pcr| !(updated && OF_RELEASE.has(*pcr))) {
        if baseline.pcrs.get(&pcr) != pcrs.get(&pcr) {
            changed.insert(pcr);
        }
    }
    if !changed.is_empty() {
        return (NodeAssurance::Changed(changed.iter().collect()), baseline);
    }
    // What it booted by a release that was left behind is not what it is to be compared with.
    if let Some(old) = old {
        return (NodeAssurance::Old(old.version.clone()), baseline);
    }
    baseline.pcrs.clone_from(pcrs);
    (NodeAssurance::Trusted, baseline)
}

/// What is known of one member.
#[derive(Default)]
struct Known {
    /// When to ask.
    next: Millis,
    /// Which question is out, and since when.
    asked: Option<(u64, Millis)>,
    /// When it was last asked.
    last: Option<Millis>,
    /// Questions in a row without an answer.
    failures: u32,
    judged: Option<(Millis, NodeAssurance)>,
    /// The registers that it was judged by.
    shown: BTreeMap<u8, Digest>,
    /// What people were told last.
    told: Option<String>,
}

/// The judgements of one node.
#[derive(Default)]
pub(crate) struct Attestations {
    releases: Releases,
    known: BTreeMap<PeerId, Known>,
    baselines: BTreeMap<PeerId, Baseline>,
    /// What operators have accepted.
    accepted: BTreeMap<PeerId, Registers>,
    rounds: u64,
}

impl Attestations {
    pub(crate) fn new(baselines: Vec<(PeerId, Baseline)>, releases: Releases) -> Self {
        Self {
            releases,
            baselines: baselines.into_iter().collect(),
            ..Self::default()
        }
    }

    /// A member is there: soon asked, and not judged by what it was before.
    pub(crate) fn connected(&mut self, peer: &PeerId, now: Millis) {
        let known = self.known.entry(peer.clone()).or_default();
        let again = known.last.map_or(Millis(0), |last| last.after(AGAIN_MS));
        known.next = now.after(FIRST_MS).max(again);
        known.failures = 0;
        known.forget();
    }

    pub(crate) fn disconnected(&mut self, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer) {
            known.forget();
        }
    }

    fn judged(&self, peer: &PeerId, now: Millis) -> Option<&NodeAssurance> {
        let (at, judgement) = self.known.get(peer)?.judged.as_ref()?;
        (now.since(*at) <= VALID_MS).then_some(judgement)
    }

    /// Whom to ask now, of the members that are there: the longest due first.
    fn due(
        &mut self,
        now: Millis,
        is_member: impl Fn(&PeerId) -> bool,
        is_there: impl Fn(&PeerId) -> bool,
    ) -> Vec<(PeerId, u64)> {
        let mut out = 0;
        for known in self.known.values_mut() {
            match known.asked {
                Some((_, at)) if now.since(at) > LOST_MS => known.fail(now),
                Some(_) => out += 1,
                None => {}
            }
        }
        let waiting = self
            .known
            .iter()
            .filter(|(_, known)| known.asked.is_none() && known.next <= now);
        let mut waiting: Vec<(Millis, &PeerId)> = waiting.map(|(peer, known)| (known.next, peer)).collect();
        waiting.sort_unstable();
        // In a large cell a thousand wait for their turn, every second: only those whose turn it is are looked at.
        let (mut due, mut gone) = (Vec::new(), Vec::new());
        for (_, peer) in waiting {
            if due.len() >= AT_ONCE.saturating_sub(out) {
                break;
            }
            if !is_member(peer) {
                gone.push(peer.clone());
            } else if is_there(peer) {
                due.push(peer.clone());
            }
        }
        gone.iter().for_each(|peer| drop(self.known.remove(peer)));
        let mut asked = Vec::with_capacity(due.len());
        for peer in due {
            if let Some(known) = self.known.get_mut(&peer) {
                self.rounds += 1;
                known.asked = Some((self.rounds, now));
                known.last = Some(now);
                known.next = now.after(AGAIN_MS);
                asked.push((peer, self.rounds));
            }
        }
        asked
    }
}

impl Known {
    /// What it was judged by, and what it was asked, was before.
    fn forget(&mut self) {
        self.judged = None;
        self.shown.clear();
        self.asked = None;
    }

    /// What it was judged by does not count any more: it is asked anew, soon.
    fn reconsider(&mut self, now: Millis) {
        self.forget();
        let again = self.last.map_or(Millis(0), |last| last.after(AGAIN_MS));
        self.next = now.after(FIRST_MS).max(again);
    }

    fn fail(&mut self, now: Millis) {
        self.asked = None;
        let wait = AGAIN_MS.saturating_mul(1 << self.failures.min(6)).min(EVERY_MS);
        self.failures = self.failures.saturating_add(1);
        self.next = now.after(wait);
    }
}

impl Cell {
    /// Asks whoever is due.
    pub(crate) fn tick_attestations(&mut self) {
        let (me, connected, roster) = (&self.config.me, &self.connected, &self.roster);
        let is_member = |peer: &PeerId| roster.contains(peer);
        let is_there = |peer: &PeerId| peer == me || connected.contains(peer);
        for (peer, round) in self.attestations.due(self.now, is_member, is_there) {
            let proven = self.attestations.baselines.get(&peer).map(|baseline| baseline.ak);
            self.out.push(Command::Attest { peer, proven, round });
        }
    }

    /// Takes a list of releases. Where it says something new, everybody is asked anew.
    pub(crate) fn on_releases(&mut self, news: ReleaseNews) {
        if !self.attestations.releases.learn(news) {
            return;
        }
        let releases = self.attestations.releases.clone();
        self.out.push(Command::Persist(Record::Releases(releases)));
        let now = self.now;
        for known in self.attestations.known.values_mut() {
            known.reconsider(now);
        }
    }

    /// From now on this is what operators have accepted; those whom it concerns are asked anew.
    pub(crate) fn on_accepted(&mut self, accepted: BTreeMap<PeerId, Registers>) {
        let before = std::mem::replace(&mut self.attestations.accepted, accepted);
        let now = self.now;
        for (peer, known) in &mut self.attestations.known {
            if before.get(peer) != self.attestations.accepted.get(peer) {
                known.reconsider(now);
            }
        }
    }

    /// What each member booted, and what it is compared with, by this node's own judgement.
    pub fn boots(&self) -> Vec<BootView> {
        let view = |(peer, entry): (&PeerId, &crate::roster::Entry)| {
            let judged = self.attestations.judged(peer, self.now).is_some();
            let known = self.attestations.known.get(peer).filter(|_| judged);
            let shown = known.map(|known| known.shown.clone()).unwrap_or_default();
            let baseline = self.attestations.baselines.get(peer);
            BootView {
                name: entry.info.name.clone(),
                node: peer.clone(),
                assurance: self.assurance_of(peer),
                release: self
                    .attestations
                    .release_of(&shown)
                    .map(|release| release.version.clone()),
                shown,
                recorded: baseline.map(|known| known.pcrs.clone()).unwrap_or_default(),
                accepted: self.attestations.accepted.get(peer).map(Registers::digest),
            }
        };
        self.roster.active().map(view).collect()
    }

    /// What a member that was asked has answered, or why it did not.
    pub(crate) fn on_attested(&mut self, peer: PeerId, round: u64, report: Result<Report, String>) {
        let now = self.now;
        let Some(known) = self.attestations.known.get_mut(&peer) else {
            return;
        };
        // The answer to a question that was given up, or asked over a connection that is gone.
        if known.asked.is_none_or(|(asked, _)| asked != round) {
            return;
        }
        let report = match report {
            Ok(report) => report,
            Err(_) => return known.fail(now),
        };
        known.asked = None;
        known.failures = 0;
        known.next = now.after(EVERY_MS);
        known.shown.clear();
        let before = self.attestations.baselines.get(&peer);
        let (judgement, why) = match &report {
            Report::NoTpm => (NodeAssurance::Low, "it says that it has no TPM".to_owned()),
            Report::Evidence(evidence) => {
                match judge(
                    &self.config.me,
                    &peer,
                    evidence,
                    before,
                    self.attestations.accepted.get(&peer),
                    &self.attestations.releases,
                ) {
                    Ok((judgement, baseline)) => {
                        known.shown.clone_from(&evidence.quote.pcrs);
                        let why = self.attestations.words(evidence, &judgement);
                        if before != Some(&baseline) {
                            self.out
                                .push(Command::Persist(Record::Baseline(peer.clone(), baseline.clone())));
                            self.attestations.baselines.insert(peer.clone(), baseline);
                        }
                        (judgement, why)
                    }
                    Err(refusal) => (NodeAssurance::Low, refusal.to_string()),
                }
            }
        };
        self.take_judgement(peer, judgement, &why);
    }

    fn take_judgement(&mut self, peer: PeerId, judgement: NodeAssurance, why: &str) {
        let name = self.roster.name(&peer);
        let Some(known) = self.attestations.known.get_mut(&peer) else {
            return;
        };
        known.judged = Some((self.now, judgement.clone()));
        let words = format!("node `{name}` is {judgement}: {why}");
        if known.told.as_ref() != Some(&words) {
            known.told = Some(words.clone());
            let had_boot = self
                .attestations
                .baselines
                .get(&peer)
                .is_some_and(|known| !known.pcrs.is_empty());
            // Who was trusted once and proves nothing now is as much an alarm as who booted something else.
            let is_alarm = match judgement {
                NodeAssurance::Trusted | NodeAssurance::Tpm => false,
                NodeAssurance::Low => had_boot,
                NodeAssurance::Old(_) | NodeAssurance::Changed(_) => true,
            };
            let object = format!("node/{name}");
            match is_alarm {
                false => self.emit("Attested", object, words),
                true => {
                    let message = format!(
                        "do not trust node `{name}`: {why} ({judgement}). It gets no pod that demands trust"
                    );
                    self.alarm("AssuranceChanged", object, message);
                }
            }
        }
        self.scan_due = true;
    }

    /// How far a member can be believed: by this node's own judgement, else by what its credential claims.
    pub(crate) fn assurance_of(&self, peer: &PeerId) -> NodeAssurance {
        let judged = self.attestations.judged(peer, self.now).cloned();
        judged.unwrap_or_else(|| match self.roster.get(peer).map(|entry| entry.info.assurance) {
            Some(Assurance::Tpm) => NodeAssurance::Tpm,
            Some(Assurance::Low) | None => NodeAssurance::Low,
        })
    }

    /// Whether a member may get a pod that demands this assurance, as this node judges it; if not, why, in words.
    pub(crate) fn assured(&self, peer: &PeerId, demanded: Option<&str>) -> Result<(), String> {
        let Some(demanded) = demanded else { return Ok(()) };
        let Some(judgement) = self.attestations.judged(peer, self.now) else {
            return Err("what it booted is not judged yet".to_owned());
        };
        match judgement.meets(demanded) {
            true => Ok(()),
            false => Err(format!("its assurance is `{judgement}`, not `{demanded}`")),
        }
    }
}

impl Attestations {
    /// The release that leaves these registers.
    fn release_of(&self, pcrs: &BTreeMap<u8, Digest>) -> Option<&Release> {
        let image = pcrs.get(&IMAGE);
        self.releases.current(image).or(self.releases.old(image))
    }

    /// Why evidence that holds was judged like this.
    fn words(&self, evidence: &Evidence, judgement: &NodeAssurance) -> String {
        match (judgement, self.release_of(&evidence.quote.pcrs)) {
            (NodeAssurance::Trusted, Some(release)) => format!("it booted release {}", release.version),
            (NodeAssurance::Old(version), _) => {
                format!("it booted release {version}, which the fabric has left behind: update it, and if nobody has put that image \
                         back, look at its disk")
            }
            (NodeAssurance::Changed(_), Some(_)) => {
                "it boots in another way than when it was first seen; look at its firmware settings and disks, and if that is \
                 meant, accept it: `bmctl node show` and `bmctl node accept`"
                    .to_owned()
            }
            (NodeAssurance::Changed(_), None) => {
                "it booted an image that no join pack of this fabric names as a release".to_owned()
            }
            _ => "its TPM is proven; no join pack names a release to compare its boot with".to_owned(),
        }
    }
}

#[cfg(test)]
#[path = "attestation_tests.rs"]
mod tests;
