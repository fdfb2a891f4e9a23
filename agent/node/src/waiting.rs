//! The newcomer's side of admission by an operator's word: shows its code, asks the members that the pack names, and becomes
//! a member by what an operator signed.
//!
//! Whoever answers is a stranger: only a voucher for this box's own key that verifies by the pack's root chain counts, whatever
//! else is said. Asks for as long as a member would hear it, and no longer; nothing is written before the voucher is there.

use crate::clock::{self, Floor};
use crate::join::{Applicant, FabricDocument, Joined};
use crate::journal::Journal;
use crate::network;
use beemesh_agent_fabric::{PetitionError, petition};
use beemesh_agent_identity::petition::{Answer, Petition, VALID_S};
use beemesh_ids::Digest;
use beemesh_init_api::NetworkConfig;
use beemesh_joinpack_format::{
    Admission, ApprovalCode, Assurance, Envelope, LogKey, Membership, Pack, Refusal, ReleaseEntry, RootChain,
    SecretKey, Source, Timestamp, Verified, Voucher,
};
use futures::future::join_all;
use qrcode::render::unicode::Dense1x2;
use qrcode::{EcLevel, QrCode};
use std::time::Duration;
use tokio::time::Instant;

/// Between two rounds of questions.
const AGAIN: Duration = Duration::from_secs(3);
/// How often the code is shown again.
const REMIND: Duration = Duration::from_secs(60);
/// A box that nobody has answered for this long says so.
const UNHEARD: Duration = Duration::from_secs(20);
/// The box gives up before the members forget it, so that its last question is not a new petition.
const MARGIN_S: u64 = 10;

/// What a box keeps of a pack by which it may ask.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The chain that an approval is judged by: without the keys that the pack revokes.
    judged_by: RootChain,
    roots: Vec<Envelope>,
    /// Serial of the pack.
    pub serial: String,
    /// Members to ask.
    pub peers: Vec<String>,
    /// This box's network settings.
    pub network: NetworkConfig,
    /// The pack's images: (name, digest).
    pub images: Vec<(String, Digest)>,
    /// OS releases that members may have booted.
    pub releases: Vec<ReleaseEntry>,
    /// The key to which this box encrypts its log.
    pub log_key: Option<LogKey>,
    floor: Timestamp,
    /// What is asked.
    pub petition: Petition,
    /// What the console shows.
    pub code: ApprovalCode,
}

impl Wish {
    /// Of a pack that has no voucher for this box and lets it ask.
    pub fn new(pack: &Pack<Verified>, applicant: &Applicant<'_>) -> Self {
        let manifest = pack.manifest();
        let entry = manifest.entry_for(applicant.machine);
        let mut floor = applicant.floor;
        floor.raise(manifest.issued);
        let images = manifest.images.iter();
        Self {
            judged_by: pack.roots().clone().without(pack.revocations().keys()),
            roots: pack.roots().envelopes().to_vec(),
            serial: manifest.serial.clone(),
            peers: manifest.peers.clone(),
            releases: manifest.releases.clone(),
            log_key: manifest.log_key,
            network: network::config_for(entry, applicant.machine.macs.first()),
            images: images.map(|image| (image.name.clone(), image.digest)).collect(),
            floor: floor.0,
            petition: Petition {
                fabric: manifest.fabric.clone(),
                name: entry.map(|entry| entry.name.clone()),
                assurance: applicant.assurance,
            },
            code: ApprovalCode::of(&manifest.fabric, applicant.peer),
        }
    }

    /// The membership that an operator's voucher gives to the holder of `key`; refuses every other voucher.
    pub fn fulfil(&self, voucher: &Envelope, key: &SecretKey, system: Timestamp) -> Result<Joined, Refusal> {
        let document = Voucher::verify(voucher, &self.judged_by, Source::Person)?;
        if document.admission != Admission::Approved {
            return Err(Refusal::Inconsistent {
                what: "approval",
                value: document.node.to_string(),
            });
        }
        let peer = beemesh_ids::PeerId::from_ed25519(key.public().as_bytes());
        let now = Floor(self.floor).now_within(system, document.issued, document.expires);
        let membership = Membership::redeem(voucher, key, &peer, self.petition.assurance, now)?;
        membership.verify(&self.judged_by, &peer)?;
        let document = FabricDocument {
            roots: self.roots.clone(),
            membership,
            serial: self.serial.clone(),
            peers: self.peers.clone(),
            network: self.network.clone(),
            // Who was let in by members does not found a cell of its own.
            found: false,
            floor: self.floor,
            spare: Vec::new(),
            lost: false,
            releases: self.releases.clone(),
            log_key: self.log_key,
        };
        Joined::check(document, &peer)
    }

    /// Says on the console what the person in front of it can do.
    pub fn show(&self, journal: &Journal) {
        let assurance = match self.petition.assurance {
            Assurance::Tpm => "",
            Assurance::Low => " (this box has no TPM)",
        };
        let message = format!(
            "this box waits to be let in{assurance}. Its code is {}. Tell it to your operator, who types: {}",
            self.code,
            self.command()
        );
        journal.announce("WaitsForApproval", "pack", &message);
        for line in picture(&self.command()) {
            journal.console(&line);
        }
    }

    fn command(&self) -> String {
        format!("bmctl node approve {}", self.code)
    }
}

/// A QR code in half blocks, light on dark consoles; nothing where the text is too long.
fn picture(text: &str) -> Vec<String> {
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::L) else {
        return Vec::new();
    };
    // The names are for print: what is dark there is the background of a console.
    let mut drawing = code.render::<Dense1x2>();
    drawing.dark_color(Dense1x2::Light).light_color(Dense1x2::Dark);
    drawing.build().lines().map(str::to_owned).collect()
}

/// How it ended.
#[derive(Debug)]
pub enum End {
    /// An operator let the box in.
    Joined(Box<Joined>),
    /// All who answered say that an operator did not.
    Denied,
    /// Nobody decided in time.
    Expired,
}

/// Asks until there is an end. `key` is the node key.
pub async fn wait(wish: Wish, key: SecretKey, journal: Journal) -> End {
    let begin = Instant::now();
    let end = begin + Duration::from_secs(VALID_S - MARGIN_S);
    let mut reminder = begin + REMIND;
    let mut heard = false;
    let mut told = String::new();
    let mut say = |words: String| {
        if told != words {
            journal.announce("NotLetIn", "pack", &words);
            told = words;
        }
    };
    let bytes = wish.petition.to_bytes();
    while Instant::now() < end {
        let round = wish
            .peers
            .iter()
            .map(|address| petition(key.to_bytes(), address, &bytes));
        let mut answers = Vec::new();
        for (address, answer) in wish.peers.iter().zip(join_all(round).await) {
            match read(answer) {
                Ok(answer) => answers.push((address, answer)),
                Err(why) => tracing::debug!(address, why, "no answer to the petition"),
            }
        }
        heard |= !answers.is_empty();
        for (address, answer) in &answers {
            match answer {
                Answer::Approved { voucher } => match wish.fulfil(voucher, &key, clock::system_now()) {
                    Ok(joined) => return End::Joined(Box::new(joined)),
                    Err(refusal) => say(format!(
                        "what {address} answers lets this box in nowhere: {refusal}"
                    )),
                },
                Answer::Refused { reason } => say(format!("{address} does not let this box ask: {reason}")),
                Answer::Waiting | Answer::Denied => {}
            }
        }
        if !answers.is_empty() && answers.iter().all(|(_, answer)| *answer == Answer::Denied) {
            return End::Denied;
        }
        if !heard && begin.elapsed() > UNHEARD {
            say(format!(
                "no member answers at {}: check this box's network cable and settings",
                wish.peers.join(", ")
            ));
        }
        if Instant::now() >= reminder {
            reminder += REMIND;
            journal.console(&format!(
                "this box still waits to be let in. Its code is {}",
                wish.code
            ));
        }
        tokio::time::sleep(AGAIN).await;
    }
    End::Expired
}

fn read(answer: Result<Vec<u8>, PetitionError>) -> Result<Answer, String> {
    let bytes = answer.map_err(|error| crate::words(&error))?;
    let mut answer = Answer::parse(&bytes).ok_or("it is no answer")?;
    // A stranger's text, which the console will show.
    if let Answer::Refused { reason } = &mut answer {
        *reason = reason.chars().filter(|c| !c.is_control()).take(200).collect();
    }
    Ok(answer)
}
