//! Watches for sticks and takes what they bring. Runs for the agent's life, whether the box is a member or not.
//!
//! A stick is judged once for each time it is inserted. Whatever becomes of it is said on the console and written to
//! the stick as a receipt; what the box runs is not touched by a bad stick.

use crate::clock::{self, Floor, FloorKeeper};
use crate::images::Images;
use crate::join::{Applicant, DOCUMENT, FabricDocument, Joined, choose, plan, standing};
use crate::journal::Journal;
use crate::networks::Networks;
use crate::start::Options;
use crate::stick::{self, StickError};
use crate::store::Store;
use crate::trust::Trust;
use crate::{identity, network};
use beemesh_ids::Digest;
use beemesh_init_api::{NetworkConfig, StickStatus, TimeStatus, path};
use beemesh_joinpack_format::{
    EndorsementFile, Envelope, MANIFEST_LIMIT, Machine, Outcome, Pack, Part, PartKind, Receipt,
    ReceiptMachine, TimeSource, Timestamp,
};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How often init's stick status is read. It is a small file in RAM.
const LOOK: Duration = Duration::from_millis(200);

/// How long images that were copied from a stick wait for the box to join.
const JOIN_FIRST: Duration = Duration::from_secs(5);

/// What the member task learns: this is the membership from now on. What the pack revoked is in [`Trust`] by then.
pub type News = Joined;

/// The task's parts.
pub struct Sticks {
    /// Options.
    pub options: Options,
    /// Events and console.
    pub journal: Journal,
    /// Documents.
    pub store: Store,
    /// Node key.
    pub key: Arc<identity::NodeKey>,
    /// Takes images.
    pub images: Images,
    /// Membership as it stands.
    pub joined: Option<Joined>,
    /// Time floor.
    pub floor: Floor,
    /// Hands the floor over.
    pub floors: FloorKeeper,
    /// What is revoked.
    pub trust: Trust,
    /// Hands network settings over.
    pub networks: Networks,
    /// Where news go.
    pub news: mpsc::Sender<News>,
    /// True once the box has joined.
    pub up: watch::Receiver<bool>,
    /// The endorsement key of the machine, once it was asked for: making it is slow.
    pub endorsement: OnceLock<EndorsementFile>,
}

/// What was taken from a stick.
struct Taken {
    joined: Joined,
    images: Vec<(String, Digest)>,
    staging: PathBuf,
    first: bool,
    /// The box was a member that had lost its place.
    rejoins: bool,
    revocations: Vec<Envelope>,
    /// When the pack was made.
    issued: Timestamp,
}

impl Sticks {
    /// Watches until the member task is gone.
    pub async fn run(mut self) {
        let status = self.options.run_path(path::STICK_STATUS);
        let mut seen = 0;
        let mut hinted = false;
        loop {
            let now: Option<StickStatus> = std::fs::read(&status)
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match now {
                Some(StickStatus {
                    generation,
                    device: Some(device),
                }) if generation != seen => {
                    seen = generation;
                    self.inserted(&device).await;
                }
                Some(StickStatus {
                    generation,
                    device: None,
                }) => seen = generation,
                _ => {}
            }
            if self.joined.is_none() && !hinted && seen == 0 && clock::boot_ms() > 5_000 {
                hinted = true;
                self.journal
                    .console("this box is not a member of a fabric yet: insert a join stick");
            }
            if self.news.is_closed() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn inserted(&mut self, device: &str) {
        self.journal.announce(
            "StickInserted",
            "pack",
            &format!("reading the join stick {device}"),
        );
        let mount = self.options.run_path(path::STICK);
        let (digest, taken) = {
            // Reading a slow stick must not hold up the agent's other tasks.
            let this = &*self;
            tokio::task::block_in_place(|| {
                let read = stick::read_manifest(&mount);
                let whole = read.as_ref().ok().filter(|bytes| bytes.len() <= MANIFEST_LIMIT);
                let digest = whole.map(|bytes| Digest::of(bytes));
                (digest, read.and_then(|bytes| this.take(&mount, &bytes)))
            })
        };
        if matches!(taken, Err(StickError::NoPack)) {
            let message =
                "the stick holds no join pack: insert a join stick, or write one with `joinpack write`";
            match self.joined {
                Some(_) => self.journal.emit("NoPack", "pack", message),
                None => self.journal.announce("NoPack", "pack", message),
            }
            if self.joined.is_some() {
                return;
            }
            // A new box tells by any stick who it is, so that a pack can be made for it alone.
        }
        let rejoins = matches!(&taken, Ok(taken) if taken.rejoins);
        let (serial, outcome) = match &taken {
            Ok(taken) => (Some(taken.joined.document.serial.clone()), Outcome::Applied),
            Err(error) => {
                let (code, message) = (error.code().to_owned(), crate::words(error));
                (None, Outcome::Refused { code, message })
            }
        };
        let parts = match taken {
            Ok(taken) => self.accept(taken).await,
            Err(StickError::NoPack) => Vec::new(),
            Err(error) => {
                self.refuse(&error);
                Vec::new()
            }
        };
        let secret = self.key.secret_key();
        let written = tokio::task::block_in_place(|| {
            let receipt = self.receipt(serial, digest, outcome, parts);
            stick::write_receipt(&mount, &receipt, Some(secret))
        });
        if let Err(error) = written {
            self.journal.announce(
                "ReceiptFailed",
                "pack",
                &format!("no receipt was written to the stick: {error}"),
            );
        }
        if rejoins {
            // Connections and cell hold the old credential; the supervisor starts the agent again with the new one.
            std::process::exit(1);
        }
    }

    /// The member task writes it down when another machine proves to have redeemed the voucher first.
    fn has_lost_its_place(&self) -> bool {
        let document = self.store.load::<FabricDocument>(DOCUMENT).ok().flatten();
        document.is_some_and(|document| document.lost)
    }

    /// Verifies the pack, stages its images, commits the membership. Before the commit nothing has changed.
    fn take(&self, mount: &std::path::Path, manifest: &[u8]) -> Result<Taken, StickError> {
        let joined = self.joined.as_ref();
        let trusted = joined.map(|joined| self.trust.without_revoked(&joined.roots));
        let trusted = trusted.as_ref();
        let last = joined.map(|joined| joined.document.serial.as_str());
        let pack = Pack::parse(manifest)?.verify(trusted, self.floor.0, last)?;
        pack.check_listing(stick::list_blobs(mount)?)?;
        let rejoins = joined.is_some() && self.has_lost_its_place();
        let joined = standing(joined, rejoins, &pack.manifest().serial)?;
        let peer = self.key.peer_id();
        let tpm = beemesh_firmware_tpm::open();
        let machine = Machine {
            macs: network::own_macs("/sys/class/net".as_ref()),
            serial: network::own_serial("/sys/class/dmi/id".as_ref()),
            // Slow, and only for packs that ask.
            ek: match pack.manifest().names_endorsement_keys() {
                true => self.endorsement().map(|file| file.ek),
                false => None,
            },
        };
        pack.manifest()
            .check_machine(&machine, joined.map(|joined| &joined.member.name))?;
        let spent = stick::spent_places(mount, &peer, &pack.manifest().serial);
        let applicant = Applicant {
            peer: &peer,
            assurance: self.key.assurance(),
            machine: &machine,
            floor: self.floor,
            system: clock::system_now(),
            joined,
            spent: &spent,
        };
        let redeemed = match joined {
            Some(_) => None,
            None => {
                let offer = choose(&pack, &applicant)?;
                Some((offer, stick::open_key(offer, tpm.as_ref())?))
            }
        };
        let redeemed = redeemed.as_ref().map(|(offer, key)| (*offer, key));
        let plan = plan(&pack, &applicant, redeemed)?;
        let wanted = plan.images.into_iter();
        let images: Vec<_> = wanted
            .filter(|(name, digest)| !self.images.has_archive(name, digest))
            .collect();
        // A folder for each pack: the images of the stick before may still wait for their import.
        let staging = self.store.path("staging").join(&plan.document.serial);
        let blobs: Vec<_> = images.iter().map(|(_, digest)| *digest).collect();
        stick::stage_blobs(mount, &pack, &blobs, &staging)?;
        let joined = Joined::check(plan.document, &peer)?;
        self.store
            .save(DOCUMENT, &joined.document)
            .map_err(|error| StickError::Keep {
                path: self.store.path(DOCUMENT),
                source: std::io::Error::other(error),
            })?;
        Ok(Taken {
            joined,
            images,
            staging,
            first: !plan.already_member,
            rejoins,
            revocations: pack.revocations().envelopes().cloned().collect(),
            issued: pack.manifest().issued,
        })
    }

    /// Returns what the pack brought, for the receipt.
    async fn accept(&mut self, taken: Taken) -> Vec<Part> {
        let Taken {
            joined,
            images,
            staging,
            first,
            rejoins,
            revocations,
            issued,
        } = taken;
        let document = &joined.document;
        self.floor.raise(document.floor);
        self.floors.raise_to(self.floor);
        let mut parts = vec![Part {
            part: PartKind::Place,
            what: format!("{} in cell {}", joined.member.name, joined.member.cell),
            refused: None,
        }];
        let before = self.joined.as_ref().map(|joined| &joined.document.network);
        let taken = self.networks.take_from_pack(&document.network, before);
        let refused = taken.err().map(|error| crate::words(&error));
        if let Some(why) = &refused {
            self.journal.announce(
                "NetworkFailed",
                "pack",
                &format!("the network settings were not taken: {why}"),
            );
        }
        parts.push(Part {
            part: PartKind::Network,
            what: network_in_words(&document.network),
            refused,
        });
        let fabric = joined.member.fabric.short();
        let message = match first {
            true => format!(
                "the join stick is good: this box is {} in fabric {fabric}",
                joined.member.name
            ),
            false => format!("the join stick is good: its news for fabric {fabric} were taken"),
        };
        self.journal.announce("PackApplied", "pack", &message);
        let mut refused = None;
        for envelope in &revocations {
            if let Err(refusal) = self.trust.take(envelope, &joined.roots) {
                let message = format!("a revocation of the pack was not taken: {refusal}");
                self.journal.announce("RevocationRefused", "pack", &message);
                refused = Some(format!("{}: {refusal}", refusal.code()));
            }
        }
        if !revocations.is_empty() {
            parts.push(Part {
                part: PartKind::Revocations,
                what: format!("{} snapshot(s)", revocations.len()),
                refused,
            });
        }
        if !images.is_empty() {
            let names: Vec<_> = images.iter().map(|(name, _)| name.as_str()).collect();
            parts.push(Part {
                part: PartKind::Images,
                what: names.join(", "),
                refused: None,
            });
        }
        self.trust.vouched(issued);
        self.joined = Some(joined.clone());
        if rejoins {
            tokio::task::block_in_place(|| self.images.import_staged(&staging, &images));
            return parts;
        }
        if self.news.send(joined).await.is_err() {
            return parts;
        }
        let (store, mut up) = (self.images.clone(), self.up.clone());
        tokio::spawn(async move {
            // Unpacking takes the processor from joining; who cannot join has its images all the same.
            let _ = tokio::time::timeout(JOIN_FIRST, up.wait_for(|up| *up)).await;
            tokio::task::spawn_blocking(move || store.import_staged(&staging, &images));
        });
        parts
    }

    fn refuse(&self, error: &StickError) {
        let message = format!(
            "the join stick was refused ({}): {}",
            error.code(),
            crate::words(error)
        );
        self.journal.announce("PackRefused", "pack", &message);
    }

    /// What this machine's TPM shows itself by. One that has none to show is a machine that no endorsement key names.
    fn endorsement(&self) -> Option<&EndorsementFile> {
        if self.endorsement.get().is_none() {
            match beemesh_firmware_tpm::open().endorsement() {
                Ok(found) => {
                    let file = EndorsementFile::new(found.key.public(), found.certificate.as_deref());
                    // Set before by nobody: one task watches the sticks.
                    let _ = self.endorsement.set(file);
                }
                Err(error) => tracing::warn!(error = crate::words(&error), "no endorsement key"),
            }
        }
        self.endorsement.get()
    }

    /// Blocks on the TPM the first time.
    fn receipt(
        &self,
        serial: Option<String>,
        pack: Option<Digest>,
        outcome: Outcome,
        parts: Vec<Part>,
    ) -> Receipt {
        let joined = self.joined.as_ref();
        let member = joined.map(|joined| &joined.member);
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let status = std::fs::read(self.options.run_path(path::TIME_STATUS)).ok();
        let status = status.and_then(|bytes| serde_json::from_slice::<TimeStatus>(&bytes).ok());
        let system = clock::system_now();
        Receipt {
            node: member.map(|member| member.name.clone()),
            peer_id: Some(self.key.peer_id()),
            fabric: member.map(|member| member.fabric.clone()),
            membership: joined.map(|joined| joined.document.membership.clone()),
            machine: ReceiptMachine {
                macs: network::own_macs("/sys/class/net".as_ref()),
                serial: network::own_serial("/sys/class/dmi/id".as_ref()),
                ek: self.endorsement().cloned(),
            },
            boot_id: boot_id.trim().to_owned(),
            at: system.max(self.floor.0),
            time_source: time_source(status.as_ref(), system, self.floor.0),
            serial,
            pack,
            outcome,
            parts,
        }
    }
}

/// What the time in a receipt is from: the floor where the clock is behind it, and else what `beemesh-net` set the clock
/// by; before it has said anything, the clock is the battery-backed one.
fn time_source(status: Option<&TimeStatus>, system: Timestamp, floor: Timestamp) -> TimeSource {
    use beemesh_init_api::time::TimeSource as Clock;
    match status.map(|status| status.source) {
        _ if system < floor => TimeSource::Floor,
        Some(Clock::Floor) => TimeSource::Floor,
        Some(Clock::Ntp) => TimeSource::Ntp,
        Some(Clock::Rtc) | None => TimeSource::Rtc,
    }
}

fn network_in_words(network: &NetworkConfig) -> String {
    let links = network.links.iter().map(|link| match link.addresses.is_empty() {
        true => format!("{} by DHCP", link.mac),
        false => format!("{} with {}", link.mac, link.addresses.join(", ")),
    });
    let words: Vec<_> = links.collect();
    match words.is_empty() {
        true => "DHCP".to_owned(),
        false => words.join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_init_api::time::{RtcState, TimeSource as Clock};

    #[test]
    fn time_is_said_to_be_from_what_the_clock_goes_by_and_from_the_floor_where_it_is_behind() {
        let status = |source| TimeStatus {
            source,
            reason: String::new(),
            server: None,
            offset_us: None,
            heard_ms: None,
            floor: 0,
            rtc: RtcState::Plausible,
        };
        let from = |source: Option<Clock>, system| {
            time_source(source.map(status).as_ref(), Timestamp(system), Timestamp(100))
        };
        assert_eq!(from(Some(Clock::Ntp), 200), TimeSource::Ntp);
        assert_eq!(from(Some(Clock::Ntp), 50), TimeSource::Floor);
        assert_eq!(from(Some(Clock::Rtc), 200), TimeSource::Rtc);
        assert_eq!(from(Some(Clock::Floor), 200), TimeSource::Floor);
        assert_eq!(from(None, 200), TimeSource::Rtc);
    }
}
