//! Watches for sticks and takes what they bring. Runs for the agent's life, whether the box is a member or not.
//!
//! A stick is judged once for each time it is inserted. Whatever becomes of it is said on the console and written to
//! the stick as a receipt; what the box runs is not touched by a bad stick.

use crate::clock::{self, Floor, FloorKeeper};
use crate::images::Images;
use crate::join::{Applicant, DOCUMENT, Joined, choose, plan};
use crate::journal::Journal;
use crate::networks::Networks;
use crate::start::Options;
use crate::stick::{self, StickError};
use crate::store::Store;
use crate::trust::Trust;
use crate::{identity, network};
use beemesh_ids::Digest;
use beemesh_init_api::{StickStatus, path};
use beemesh_joinpack_format::{Envelope, Machine, Outcome, Receipt, Timestamp};
use std::path::PathBuf;
use std::sync::Arc;
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
}

/// What was taken from a stick.
struct Taken {
    joined: Joined,
    images: Vec<(String, Digest)>,
    staging: PathBuf,
    first: bool,
    revocations: Vec<Envelope>,
    /// When the pack was made.
    issued: Timestamp,
}

/// A TPM that has none to show is a machine that no endorsement key names.
fn own_endorsement_key(tpm: &dyn beemesh_firmware_tpm::Tpm) -> Option<Digest> {
    match tpm.endorsement() {
        Ok(endorsement) => Some(endorsement.key.digest()),
        Err(error) => {
            tracing::warn!(error = crate::words(&error), "no endorsement key");
            None
        }
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
        let taken = {
            // Reading a slow stick must not hold up the agent's other tasks.
            let this = &*self;
            tokio::task::block_in_place(|| this.take(&mount))
        };
        if matches!(taken, Err(StickError::NoPack)) {
            let message =
                "the stick holds no join pack: insert a join stick, or write one with `joinpack write`";
            match self.joined {
                Some(_) => self.journal.emit("NoPack", "pack", message),
                None => self.journal.announce("NoPack", "pack", message),
            }
            return;
        }
        let (serial, outcome) = match &taken {
            Ok(taken) => (Some(taken.joined.document.serial.clone()), Outcome::Applied),
            Err(error) => {
                let (code, message) = (error.code().to_owned(), crate::words(error));
                (None, Outcome::Refused { code, message })
            }
        };
        match taken {
            Ok(taken) => self.accept(taken).await,
            Err(error) => self.refuse(&error),
        }
        let receipt = self.receipt(serial, outcome);
        let secret = self.key.secret_key();
        if let Err(error) =
            tokio::task::block_in_place(|| stick::write_receipt(&mount, &receipt, Some(secret)))
        {
            self.journal.announce(
                "ReceiptFailed",
                "pack",
                &format!("no receipt was written to the stick: {error}"),
            );
        }
    }

    /// Verifies the pack, stages its images, commits the membership. Before the commit nothing has changed.
    fn take(&self, mount: &std::path::Path) -> Result<Taken, StickError> {
        let joined = self.joined.as_ref();
        let trusted = joined.map(|joined| self.trust.without_revoked(&joined.roots));
        let trusted = trusted.as_ref();
        let last = joined.map(|joined| joined.document.serial.as_str());
        let pack = stick::read_pack(mount)?.verify(trusted, self.floor.0, last)?;
        pack.check_listing(stick::list_blobs(mount)?)?;
        let peer = self.key.peer_id();
        let tpm = beemesh_firmware_tpm::open();
        let machine = Machine {
            macs: network::own_macs("/sys/class/net".as_ref()),
            serial: network::own_serial("/sys/class/dmi/id".as_ref()),
            // Slow, and only for packs that ask.
            ek: match pack.manifest().names_endorsement_keys() {
                true => own_endorsement_key(tpm.as_ref()),
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
            revocations: pack.revocations().envelopes().cloned().collect(),
            issued: pack.manifest().issued,
        })
    }

    async fn accept(&mut self, taken: Taken) {
        let Taken {
            joined,
            images,
            staging,
            first,
            revocations,
            issued,
        } = taken;
        let document = &joined.document;
        self.floor.raise(document.floor);
        self.floors.raise_to(self.floor);
        let before = self.joined.as_ref().map(|joined| &joined.document.network);
        if let Err(error) = self.networks.take_from_pack(&document.network, before) {
            self.journal.announce(
                "NetworkFailed",
                "pack",
                &format!("the network settings were not taken: {}", crate::words(&error)),
            );
        }
        let fabric = joined.member.fabric.short();
        let message = match first {
            true => format!(
                "the join stick is good: this box is {} in fabric {fabric}",
                joined.member.name
            ),
            false => format!("the join stick is good: its news for fabric {fabric} were taken"),
        };
        self.journal.announce("PackApplied", "pack", &message);
        for envelope in &revocations {
            if let Err(refusal) = self.trust.take(envelope, &joined.roots) {
                let message = format!("a revocation of the pack was not taken: {refusal}");
                self.journal.announce("RevocationRefused", "pack", &message);
            }
        }
        self.trust.vouched(issued);
        self.joined = Some(joined.clone());
        if self.news.send(joined).await.is_err() {
            return;
        }
        let (store, mut up) = (self.images.clone(), self.up.clone());
        tokio::spawn(async move {
            // Unpacking takes the processor from joining; who cannot join has its images all the same.
            let _ = tokio::time::timeout(JOIN_FIRST, up.wait_for(|up| *up)).await;
            tokio::task::spawn_blocking(move || store.import_staged(&staging, &images));
        });
    }

    fn refuse(&self, error: &StickError) {
        let message = format!(
            "the join stick was refused ({}): {}",
            error.code(),
            crate::words(error)
        );
        self.journal.announce("PackRefused", "pack", &message);
    }

    fn receipt(&self, serial: Option<String>, outcome: Outcome) -> Receipt {
        let member = self.joined.as_ref().map(|joined| &joined.member);
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Receipt {
            node: member.map(|member| member.name.clone()),
            peer_id: Some(self.key.peer_id()),
            fabric: member.map(|member| member.fabric.clone()),
            serial,
            boot_id: boot_id.trim().to_owned(),
            at: clock::system_now().max(self.floor.0),
            outcome,
        }
    }
}
