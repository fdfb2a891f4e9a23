//! Watches for sticks and takes what they bring. Runs for the agent's life, whether the box is a member or not.
//!
//! A stick is judged once for each time it is inserted. Whatever becomes of it is said on the console and written to
//! the stick as a receipt; what the box runs is not touched by a bad stick.

mod log;
mod receipt;
mod request;

use crate::clock::{self, Floor, FloorKeeper};
use crate::images::Images;
use crate::join::{
    Applicant, DOCUMENT, FabricDocument, Joined, choose, plan, standing, verify_again, with_rotations_of,
};
use crate::journal::Journal;
use crate::networks::Networks;
use crate::orders::Orders;
use crate::roots::KeepError;
use crate::start::Options;
use crate::stick::{self, StickError};
use crate::store::Store;
use crate::trust::Trust;
use crate::waiting::{self, End, Wish};
use crate::{identity, network};
use beemesh_ids::Digest;
use beemesh_init_api::{NetworkConfig, StickStatus, path};
use beemesh_init_logd::SystemLog;
use beemesh_joinpack_format::{
    EndorsementFile, Envelope, MANIFEST_LIMIT, Machine, Outcome, Pack, Part, PartKind, Request, Source,
    Timestamp, Verified,
};
use log::LogReader;
use receipt::Visit;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

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
    pub key: identity::KeyRing,
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
    /// The orders to rotate keys.
    pub orders: Orders,
    /// Hands network settings over.
    pub networks: Networks,
    /// Where news go.
    pub news: mpsc::Sender<News>,
    /// True once the box has joined.
    pub up: watch::Receiver<bool>,
    /// What the box waits for an operator with.
    pub waiting: Option<Waiting>,
    /// The box's own log.
    pub system_log: SystemLog,
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
    orders: Vec<Envelope>,
    /// When the pack was made.
    issued: Timestamp,
}

/// What a good pack means.
enum Found {
    /// The box is a member by it.
    Membership(Box<Taken>),
    /// The box may ask members to become one.
    Wish(Box<Wanted>),
    /// The box may ask the pack's maker for a place.
    Request(Box<Request>),
}

/// A pack by which the box asks to be let in.
struct Wanted {
    wish: Wish,
    images: Vec<(String, Digest)>,
    staging: PathBuf,
    revocations: Vec<Envelope>,
    orders: Vec<Envelope>,
    issued: Timestamp,
    /// What it may ask the pack's maker as well.
    request: Option<Request>,
}

/// A box that asks.
pub struct Waiting {
    wanted: Box<Wanted>,
    asking: JoinHandle<End>,
    /// Generation of the stick that it asks by.
    stick: u64,
    /// Digest of its pack.
    pack: Option<Digest>,
    /// Who may read the box's log.
    reader: Option<LogReader>,
}

impl Waiting {
    /// Nobody needs the images that were copied.
    fn clear(&self) {
        let _ = std::fs::remove_dir_all(&self.wanted.staging);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.asking.abort();
    }
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
                    self.inserted(&device, generation).await;
                }
                Some(StickStatus {
                    generation,
                    device: None,
                }) => seen = generation,
                _ => {}
            }
            if let Some(waiting) = self.waiting.take_if(|waiting| waiting.asking.is_finished()) {
                self.answered(waiting, seen).await;
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

    async fn inserted(&mut self, device: &str, generation: u64) {
        self.journal.announce(
            "StickInserted",
            "pack",
            &format!("reading the join stick {device}"),
        );
        let mount = self.options.run_path(path::STICK);
        let mut reader = None;
        let (digest, taken) = {
            // Reading a slow stick must not hold up the agent's other tasks.
            let this = &*self;
            tokio::task::block_in_place(|| {
                let read = stick::read_manifest(&mount);
                let whole = read.as_ref().ok().filter(|bytes| bytes.len() <= MANIFEST_LIMIT);
                let digest = whole.map(|bytes| Digest::of(bytes));
                (
                    digest,
                    read.and_then(|bytes| this.take(&mount, &bytes, &mut reader)),
                )
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
        let request = match &taken {
            Ok(Found::Request(request)) => Some(request.as_ref()),
            Ok(Found::Wish(wanted)) => wanted.request.as_ref(),
            _ => None,
        };
        let asked = request.map(|request| self.leave_request(request));
        let rejoins = matches!(&taken, Ok(Found::Membership(taken)) if taken.rejoins);
        let (serial, outcome) = match &taken {
            Ok(Found::Membership(taken)) => (Some(taken.joined.document.serial.clone()), Outcome::Applied),
            Ok(Found::Wish(wanted)) => {
                let code = "waits-for-approval".to_owned();
                let message = format!(
                    "the box shows the code {} and waits for an operator",
                    wanted.wish.code
                );
                (
                    Some(wanted.wish.serial.clone()),
                    Outcome::Refused { code, message },
                )
            }
            Ok(Found::Request(request)) => {
                let outcome = asked.as_ref().map(|asked| asked.outcome());
                (Some(request.serial.clone()), outcome.unwrap_or(Outcome::Applied))
            }
            Err(error) => {
                let (code, message) = (error.code().to_owned(), crate::words(error));
                (None, Outcome::Refused { code, message })
            }
        };
        let parts = match taken {
            Ok(Found::Membership(taken)) => {
                self.waiting = None;
                self.accept(*taken).await
            }
            Ok(Found::Wish(wanted)) => {
                self.ask(wanted, generation, digest, reader.clone());
                Vec::new()
            }
            Ok(Found::Request(_)) | Err(StickError::NoPack) => Vec::new(),
            Err(error) => {
                self.refuse(&error);
                Vec::new()
            }
        };
        self.leave_receipt(Visit {
            serial,
            pack: digest,
            outcome,
            parts,
            reader,
        });
        // Who reads it pulls the stick out: nothing is written to it after this.
        if let Some(asked) = asked {
            self.journal.announce(asked.event(), "pack", &asked.message);
        }
        if rejoins {
            start_again();
        }
    }

    /// The member task writes it down when another machine proves to have redeemed the voucher first.
    fn has_lost_its_place(&self) -> bool {
        let document = self.store.load::<FabricDocument>(DOCUMENT).ok().flatten();
        document.is_some_and(|document| document.lost)
    }

    /// Verifies the pack, stages its images, commits the membership. Before the commit nothing has changed. `reader` becomes
    /// who may read the box's log, once the pack is verified, whatever becomes of it.
    fn take(
        &self,
        mount: &std::path::Path,
        manifest: &[u8],
        reader: &mut Option<LogReader>,
    ) -> Result<Found, StickError> {
        let kept = self.as_it_stands();
        let joined = kept.as_ref();
        let trusted = joined.map(|joined| self.trust.judging(joined));
        let trusted = trusted.as_ref();
        let last = joined.map(|joined| joined.document.serial.as_str());
        // A member's own documents say more than its TPM.
        let again = self
            .trust
            .keeper()
            .keepsake()
            .record()
            .filter(|_| joined.is_none());
        let pack = match &again {
            Some(memory) => verify_again(manifest, self.floor, memory)?,
            None => Pack::parse(manifest)?.verify(trusted, self.floor.0, last)?,
        };
        *reader = LogReader::of(pack.manifest());
        pack.check_listing(stick::list_blobs(mount)?)?;
        let rejoins = joined.is_some() && self.has_lost_its_place();
        let joined = standing(joined, rejoins, &pack.manifest().serial)?;
        let key = self.key.now();
        let peer = key.peer_id();
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
            assurance: key.assurance(),
            machine: &machine,
            floor: self.floor,
            system: clock::system_now(),
            joined,
            again: again.as_ref(),
            spent: &spent,
        };
        let redeemed = match joined {
            Some(_) => None,
            None => match choose(&pack, &applicant) {
                Ok(offer) => Some((offer, stick::open_key(offer, tpm.as_ref())?)),
                Err(StickError::NoVoucher) if pack.manifest().approval => {
                    let wish = Wish::new(&pack, &applicant);
                    // A box without a TPM can ask members all the same.
                    let request = pack.manifest().requests.then(|| self.request(pack.manifest()));
                    let (images, staging) = self.stage(mount, &pack, wish.images.clone())?;
                    return Ok(Found::Wish(Box::new(Wanted {
                        wish,
                        images,
                        staging,
                        revocations: pack.revocations().envelopes().cloned().collect(),
                        orders: pack.orders().envelopes().cloned().collect(),
                        issued: pack.manifest().issued,
                        request: request.and_then(Result::ok),
                    })));
                }
                Err(StickError::NoVoucher) if pack.manifest().requests => {
                    return Ok(Found::Request(Box::new(self.request(pack.manifest())?)));
                }
                Err(error) => return Err(error),
            },
        };
        let redeemed = redeemed.as_ref().map(|(offer, key)| (*offer, key));
        let plan = plan(&pack, &applicant, redeemed)?;
        let (images, staging) = self.stage(mount, &pack, plan.images)?;
        let joined = Joined::check(plan.document, &peer)?;
        let joined = self.commit(joined)?;
        Ok(Found::Membership(Box::new(Taken {
            joined,
            images,
            staging,
            first: !plan.already_member,
            rejoins,
            revocations: pack.revocations().envelopes().cloned().collect(),
            orders: pack.orders().envelopes().cloned().collect(),
            issued: pack.manifest().issued,
        })))
    }

    /// The membership with the rotations that the member task has written since this task heard of it.
    fn as_it_stands(&self) -> Option<Joined> {
        let joined = self.joined.clone()?;
        let disk = self.store.load::<FabricDocument>(DOCUMENT).ok().flatten();
        let document = with_rotations_of(joined.document.clone(), disk.as_ref());
        Some(Joined::check(document, &self.key.now().peer_id()).unwrap_or(joined))
    }

    /// Copies the images that this box lacks. Returns which, and where they lie.
    fn stage(
        &self,
        mount: &std::path::Path,
        pack: &Pack<Verified>,
        wanted: Vec<(String, Digest)>,
    ) -> Result<(Vec<(String, Digest)>, PathBuf), StickError> {
        let images: Vec<_> = wanted
            .into_iter()
            .filter(|(name, digest)| !self.images.has_archive(name, digest))
            .collect();
        // A folder for each pack: the images of the stick before may still wait for their import.
        let staging = self.store.path("staging").join(&pack.manifest().serial);
        let blobs: Vec<_> = images.iter().map(|(_, digest)| *digest).collect();
        stick::stage_blobs(mount, pack, &blobs, &staging)?;
        Ok((images, staging))
    }

    /// Makes a membership durable. What it returns may have a longer chain of root documents: others told of it meanwhile.
    fn commit(&self, joined: Joined) -> Result<Joined, StickError> {
        self.trust.keeper().commit(joined).map_err(|error| match error {
            KeepError::Refused(refusal) => refusal.into(),
            error => StickError::Keep {
                path: self.store.path(DOCUMENT),
                source: std::io::Error::other(error),
            },
        })
    }

    /// Shows the code and begins to ask, in place of what was asked before.
    fn ask(&mut self, wanted: Box<Wanted>, stick: u64, pack: Option<Digest>, reader: Option<LogReader>) {
        let settings = self.networks.take_from_pack(&wanted.wish.network, None);
        if let Err(error) = settings {
            let message = format!("the network settings were not taken: {}", crate::words(&error));
            self.journal.announce("NetworkFailed", "pack", &message);
        }
        wanted.wish.show(&self.journal);
        let key = self.key.now().secret_key().clone();
        let asking = tokio::spawn(waiting::wait(wanted.wish.clone(), key, self.journal.clone()));
        self.waiting = Some(Waiting {
            wanted,
            asking,
            stick,
            pack,
            reader,
        });
    }

    /// The end of the waiting; `seen` is the stick that is there now.
    async fn answered(&mut self, mut waiting: Waiting, seen: u64) {
        let fresh = match (&mut waiting.asking).await {
            Ok(End::Joined(joined)) => *joined,
            Ok(End::Denied) => {
                waiting.clear();
                let message = "an operator did not let this box in: insert the join stick again to ask again";
                return self.journal.announce("NotLetIn", "pack", message);
            }
            Ok(End::Expired) => {
                waiting.clear();
                let message = "nobody let this box in within a quarter of an hour, and its code is good no more: insert the \
                               join stick again to ask again";
                return self.journal.announce("NotLetIn", "pack", message);
            }
            Err(error) => return tracing::error!(%error, "the question to the members broke off"),
        };
        let joined = match tokio::task::block_in_place(|| self.commit(fresh)) {
            Ok(joined) => joined,
            Err(error) => return self.refuse(&error),
        };
        let wanted = &waiting.wanted;
        let serial = joined.document.serial.clone();
        let rejoins = self.joined.is_some();
        let taken = Taken {
            joined,
            images: wanted.images.clone(),
            staging: wanted.staging.clone(),
            first: true,
            rejoins,
            revocations: wanted.revocations.clone(),
            orders: wanted.orders.clone(),
            issued: wanted.issued,
        };
        let parts = self.accept(taken).await;
        // The stick may have been pulled out: then it keeps the word that the box waits.
        if waiting.stick == seen && self.stick_is_in() {
            self.leave_receipt(Visit {
                serial: Some(serial),
                pack: waiting.pack,
                outcome: Outcome::Applied,
                parts,
                reader: waiting.reader.clone(),
            });
        }
        if rejoins {
            start_again();
        }
    }

    fn stick_is_in(&self) -> bool {
        let status = std::fs::read(self.options.run_path(path::STICK_STATUS)).ok();
        let status = status.and_then(|bytes| serde_json::from_slice::<StickStatus>(&bytes).ok());
        status.is_some_and(|status| status.device.is_some())
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
            orders,
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
            if let Err(refusal) = self.trust.take(envelope, &joined.roots, Source::Member) {
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
        let mut refused = None;
        for envelope in &orders {
            if let Err(refusal) = self.orders.take(envelope, &joined.roots, Source::Member) {
                let message = format!("a standing order of the pack was not taken: {refusal}");
                self.journal.announce("OrderRefused", "pack", &message);
                refused = Some(format!("{}: {refusal}", refusal.code()));
            }
        }
        if !orders.is_empty() {
            parts.push(Part {
                part: PartKind::Orders,
                what: format!("{} standing order(s)", orders.len()),
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

/// Connections and cell hold the old credential; the supervisor starts the agent again with the new one.
fn start_again() -> ! {
    std::process::exit(1)
}
