//! What people and scripts are shown: packs, receipts, fabrics. Decides nothing, and never shows a secret.

use crate::boot::BootView;
use crate::chance;
use crate::disk::in_words;
use crate::failure::Failure;
use crate::vendor::Unproven;
use anyhow::Context as _;
use beemesh_ids::{Digest, FabricId, NodeName, PeerId};
use beemesh_joinpack_format::{
    ApprovalCode, KeyOrder, KeyOrders, LogKey, Manifest, NodeEntry, Outcome, Part, PartKind, Receipt,
    ReceiptMachine, Refusal, ReleaseEntry, Request, RevocationSet, Revocations, Role, RootChain, TimeSource,
    Timestamp,
};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::PathBuf;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// What a pack is, without its secrets.
#[derive(Debug, Serialize)]
pub struct PackView {
    /// `accepted`, or `would-create` before it is made.
    pub result: &'static str,
    /// Name of the fabric.
    pub fabric_name: String,
    /// Id of the fabric.
    pub fabric: FabricId,
    /// Version of the newest root document.
    pub root_version: u32,
    /// Enrolment signatures demanded.
    pub threshold: usize,
    /// Serial.
    pub serial: String,
    /// When it was made.
    pub issued: Timestamp,
    /// Until when it can be used.
    pub expires: Timestamp,
    /// By this machine's clock.
    pub expired: bool,
    /// Cell.
    pub cell: String,
    /// Nodes of the cell in the end.
    pub roster_size: u32,
    /// Nodes.
    pub nodes: Vec<NodeEntry>,
    /// Number of vouchers.
    pub vouchers: usize,
    /// Those of them whose key is encrypted to a TPM.
    pub targeted: usize,
    /// What the pack says is revoked; `None` where it says nothing.
    pub revocations: Option<Revocations>,
    /// Orders to rotate node keys.
    pub orders: Vec<KeyOrder>,
    /// Peers.
    pub peers: Vec<String>,
    /// Images.
    pub images: Vec<ImageView>,
    /// Number of blobs.
    pub blobs: usize,
    /// Bytes of all blobs.
    pub blob_bytes: u64,
    /// The first node may found the cell alone.
    pub found: bool,
    /// Machines without a place may ask members.
    pub approval: bool,
    /// Machines without a place may write a request to the stick.
    pub requests: bool,
    /// An empty disk may be taken.
    pub blank_disk: bool,
    /// OS releases that members may have booted.
    pub releases: Vec<ReleaseEntry>,
    /// The key to which boxes encrypt the logs that they leave on the stick.
    pub log_key: Option<LogKey>,
}

/// An image.
#[derive(Debug, Serialize)]
pub struct ImageView {
    /// Name.
    pub name: String,
    /// Digest of its archive.
    pub digest: Digest,
    /// Bytes of its archive.
    pub size: u64,
}

impl PackView {
    /// The view of a manifest.
    pub fn new(result: &'static str, manifest: &Manifest, roots: &RootChain) -> Self {
        let images = manifest.images.iter();
        Self {
            result,
            fabric_name: roots.current().fabric_name.clone(),
            fabric: manifest.fabric.clone(),
            root_version: roots.version(),
            threshold: roots.role(Role::Enrolment).threshold(),
            serial: manifest.serial.clone(),
            issued: manifest.issued,
            expires: manifest.expires,
            expired: manifest.expires < chance::now(),
            cell: manifest.cell.clone(),
            roster_size: manifest.roster_size,
            nodes: manifest.nodes.clone(),
            vouchers: manifest.vouchers.len(),
            targeted: manifest
                .vouchers
                .iter()
                .filter(|voucher| voucher.sealed_key.is_some())
                .count(),
            revocations: (!manifest.revocations.is_empty())
                .then(|| RevocationSet::restore(&manifest.revocations, roots).union(&manifest.fabric)),
            orders: KeyOrders::restore(&manifest.orders, roots)
                .iter()
                .cloned()
                .collect(),
            peers: manifest.peers.clone(),
            images: images
                .map(|i| ImageView {
                    name: i.name.clone(),
                    digest: i.digest,
                    size: i.size,
                })
                .collect(),
            blobs: manifest.blobs.len(),
            blob_bytes: manifest
                .blobs
                .values()
                .fold(0, |sum, size| sum.saturating_add(*size)),
            found: manifest.found,
            approval: manifest.approval,
            requests: manifest.requests,
            blank_disk: manifest.state.blank_disk,
            releases: manifest.releases.clone(),
            log_key: manifest.log_key,
        }
    }

    /// Everything in words.
    pub fn in_words(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<10} {value}");
        };
        line("fabric", format!("{} ({})", self.fabric_name, self.fabric));
        line(
            "trust",
            format!(
                "root document {}, {} enrolment signature(s) demanded",
                self.root_version, self.threshold
            ),
        );
        line("serial", self.serial.clone());
        line(
            "valid",
            format!(
                "{} to {}{}",
                self.issued,
                self.expires,
                if self.expired { " -- EXPIRED" } else { "" }
            ),
        );
        line(
            "cell",
            format!("{}, {} node(s) in the end", self.cell, self.roster_size),
        );
        line(
            "found",
            if self.found {
                "the first node may found the cell alone"
            } else {
                "nodes join members that exist"
            }
            .into(),
        );
        if self.approval {
            line(
                "approval",
                "machines without a voucher show a code and wait until an operator lets them in".into(),
            );
        }
        if self.requests {
            line(
                "requests",
                "machines without a voucher write a request to the stick, for `joinpack answer`".into(),
            );
        }
        for release in &self.releases {
            line(
                "release",
                format!("{}, PCR 11 {}", release.version, release.pcr11),
            );
        }
        if let Some(key) = &self.log_key {
            line(
                "logs",
                format!("boxes leave their log on the stick, encrypted to {key}"),
            );
        }
        line(
            "disks",
            if self.blank_disk {
                "an empty disk may be taken for the state"
            } else {
                "disks are left alone"
            }
            .into(),
        );
        line(
            "peers",
            if self.peers.is_empty() {
                "none, nodes find each other on the link".into()
            } else {
                self.peers.join(", ")
            },
        );
        line(
            "vouchers",
            match self.targeted {
                0 => format!("{}, for whoever holds the stick", self.vouchers),
                n => format!("{}, {n} of them for one machine's TPM only", self.vouchers),
            },
        );
        line(
            "revoked",
            match &self.revocations {
                None => "the pack says nothing".into(),
                Some(all) => format!(
                    "{} node(s), {} voucher(s), {} key(s), as of {}",
                    all.nodes.len(),
                    all.vouchers.len(),
                    all.keys.len(),
                    all.issued
                ),
            },
        );
        for order in &self.orders {
            let who = match &order.nodes {
                None => "all nodes".to_owned(),
                Some(nodes) => format!("{} node(s)", nodes.len()),
            };
            line("rotates", format!("the keys of {who}, order {}", order.id));
        }
        line("blobs", format!("{}, {}", self.blobs, in_words(self.blob_bytes)));
        let nodes = self.nodes.iter().map(|node| {
            let network = node.network.as_ref();
            let mut addresses = network.map(|n| n.addresses.clone()).unwrap_or_default();
            if network.is_none_or(|n| n.dhcp) {
                addresses.insert(0, "DHCP".into());
            }
            let ek = node
                .ek
                .map(|ek| format!("TPM {}", ek.hex().get(..16).unwrap_or_default()));
            let serial = node.serial.as_ref().map(|serial| format!("serial {serial}"));
            let known: Vec<String> = node.mac.iter().cloned().chain(serial).chain(ek).collect();
            let machine = match known.is_empty() {
                true => "any machine".into(),
                false => known.join(", "),
            };
            let gateway = network.and_then(|n| n.gateway.clone()).unwrap_or_default();
            vec![
                node.name.to_string(),
                machine,
                addresses.join(" "),
                gateway,
                network.map(|n| n.dns.join(" ")).unwrap_or_default(),
            ]
        });
        text += &table(&["NODE", "MACHINE", "ADDRESSES", "GATEWAY", "DNS"], nodes);
        if !self.images.is_empty() {
            let images = self
                .images
                .iter()
                .map(|i| vec![i.name.clone(), in_words(i.size), i.digest.to_string()]);
            text += &table(&["IMAGE", "SIZE", "DIGEST"], images);
        }
        text
    }
}

/// A receipt as it was found.
#[derive(Debug, Default, Serialize)]
pub struct ReceiptView {
    /// Path on the stick.
    pub file: String,
    /// Node.
    pub node: Option<NodeName>,
    /// Peer id.
    pub peer_id: Option<PeerId>,
    /// Fabric.
    pub fabric: Option<FabricId>,
    /// The machine: cards, serial number, endorsement key.
    pub machine: Option<ReceiptMachine>,
    /// Boot id of the kernel that wrote it.
    pub boot_id: Option<String>,
    /// When, by the node's clock.
    pub at: Option<Timestamp>,
    /// What that clock goes by.
    pub time_source: Option<TimeSource>,
    /// Serial of the pack.
    pub serial: Option<String>,
    /// Digest of the pack.
    pub pack: Option<Digest>,
    /// `applied`, `refused`, or `bad` where the receipt itself is refused.
    pub result: &'static str,
    /// Code of the refusal, by the node or of the receipt itself.
    pub code: Option<String>,
    /// The sentence.
    pub message: Option<String>,
    /// What a pack that was applied brought.
    pub parts: Vec<Part>,
    /// The log beside it.
    pub log: Option<LogView>,
    /// What the machine booted, by its TPM; `None` where nobody signed.
    pub boot: Option<BootView>,
    /// The node's key signed it.
    pub signed: bool,
    /// `member` of the fabric that was given, `signed` by the node's key, `unsigned`, or `bad`.
    pub proof: &'static str,
    /// The fabric that was given revokes the node.
    pub revoked: bool,
}

impl ReceiptView {
    /// The view of a receipt that can be read.
    pub fn new(file: String, receipt: Receipt, proof: &'static str) -> Self {
        let (result, code, message) = match receipt.outcome {
            Outcome::Applied => ("applied", None, None),
            Outcome::Refused { code, message } => ("refused", Some(code), Some(message)),
        };
        Self {
            file,
            node: receipt.node,
            peer_id: receipt.peer_id,
            fabric: receipt.fabric,
            machine: Some(receipt.machine),
            boot_id: Some(receipt.boot_id),
            at: Some(receipt.at),
            time_source: Some(receipt.time_source),
            serial: receipt.serial,
            pack: receipt.pack,
            result,
            code,
            message,
            parts: receipt.parts,
            log: None,
            boot: None,
            signed: proof != "unsigned",
            proof,
            revoked: false,
        }
    }

    /// The view of one that is refused itself.
    pub fn bad(file: String, why: &Refusal) -> Self {
        Self {
            file,
            result: "bad",
            proof: "bad",
            code: Some(why.code().to_owned()),
            message: Some(why.to_string()),
            ..Self::default()
        }
    }
}

/// The log beside a receipt.
#[derive(Debug, Serialize)]
pub struct LogView {
    /// Path on the stick.
    pub file: String,
    /// Bytes of that file.
    pub size: u64,
    /// The key that it is encrypted to.
    pub key: LogKey,
    /// Where it was written to, in the clear.
    pub saved: Option<PathBuf>,
    /// Code of the refusal, where it could not be opened.
    pub code: Option<&'static str>,
    /// The sentence.
    pub message: Option<String>,
}

impl LogView {
    fn in_words(&self) -> String {
        match (&self.saved, self.code, &self.message) {
            (_, Some(code), Some(message)) => format!("log REFUSED ({code}), `{}`: {message}", self.file),
            (Some(path), ..) => format!("log in `{}`", path.display()),
            _ => format!("log of {}", in_words(self.size)),
        }
    }
}

/// All receipts for people.
pub fn receipts_in_words(receipts: &[ReceiptView]) -> String {
    let text = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let rows = receipts.iter().map(|r| {
        let peer = r.peer_id.as_ref().map(|peer| peer.short().to_owned());
        let at = r.at.zip(r.time_source).map(|(at, source)| match source {
            TimeSource::Floor => format!("{at} at least"),
            TimeSource::Rtc => format!("{at} by its own clock"),
            TimeSource::Peers => format!("{at} by the other members"),
            TimeSource::Ntp => format!("{at} by NTP"),
        });
        vec![
            text(r.node.as_ref().map(|n| n.to_string())),
            text(peer),
            text(r.machine.as_ref().map(machine_in_words)),
            text(at),
            text(r.serial.clone()),
            match r.revoked {
                true => format!("{}, REVOKED", r.proof),
                false => r.proof.to_owned(),
            },
            text(r.boot.as_ref().map(BootView::in_words)),
            outcome_in_words(r),
        ]
    });
    table(
        &[
            "NODE", "PEER", "MACHINE", "AT", "PACK", "PROOF", "BOOT", "OUTCOME",
        ],
        rows,
    )
}

fn machine_in_words(machine: &ReceiptMachine) -> String {
    let serial = machine.serial.iter().map(|serial| format!("serial {serial}"));
    let macs = machine.macs.iter().take(2).cloned();
    let ek = machine.ek.iter().map(|file| {
        let hex: String = file.ek.hex().chars().take(8).collect();
        format!("EK {hex}")
    });
    serial.chain(macs).chain(ek).collect::<Vec<_>>().join(", ")
}

fn outcome_in_words(receipt: &ReceiptView) -> String {
    let outcome = deed_in_words(receipt);
    match &receipt.log {
        Some(log) => format!("{outcome}; {}", log.in_words()),
        None => outcome,
    }
}

fn deed_in_words(receipt: &ReceiptView) -> String {
    if let (Some(code), Some(message)) = (&receipt.code, &receipt.message) {
        // A bad receipt has no node to be found by.
        return match receipt.result {
            "bad" => format!("bad ({code}), `{}`: {message}", receipt.file),
            result => format!("{result} ({code}): {message}"),
        };
    }
    let parts = receipt.parts.iter().map(|part| {
        let kind = match part.part {
            PartKind::Place => "place",
            PartKind::Network => "network",
            PartKind::Revocations => "revocations",
            PartKind::Orders => "orders",
            PartKind::Images => "images",
        };
        match &part.refused {
            Some(why) => format!("{kind} REFUSED ({why})"),
            None => format!("{kind} {}", part.what),
        }
    });
    let parts: Vec<_> = parts.collect();
    match parts.is_empty() {
        true => receipt.result.to_owned(),
        false => format!("{}: {}", receipt.result, parts.join("; ")),
    }
}

/// A request that is answered.
#[derive(Debug, Serialize)]
pub struct AnswerView {
    /// Path of the request on the stick.
    pub file: String,
    /// The name that its machine gets.
    pub node: NodeName,
    /// The machine.
    pub peer_id: Option<PeerId>,
    /// What the machine's console shows.
    pub code: Option<ApprovalCode>,
    /// Cards, serial number, TPM.
    pub machine: Option<ReceiptMachine>,
    /// When it asked, by its own clock.
    pub at: Option<Timestamp>,
    /// The root of the TPM's maker; `None`: not proven.
    pub maker: Option<String>,
    /// Why it is not proven.
    pub unproven: Option<String>,
    /// What it booted, by its TPM.
    pub boot: Option<BootView>,
}

impl AnswerView {
    /// The view of a request (path, content, proof) whose machine becomes `node`.
    pub fn new(node: &NodeName, request: Option<(&str, &Request, &Result<String, Unproven>)>) -> Self {
        let content = request.map(|(_, request, _)| request);
        let proof = request.map(|(_, _, proof)| proof);
        Self {
            boot: None,
            file: request.map(|(file, ..)| file.to_owned()).unwrap_or_default(),
            node: node.clone(),
            peer_id: content.map(|request| request.peer_id.clone()),
            code: content.map(|request| ApprovalCode::of(&request.fabric, &request.peer_id)),
            machine: content.map(|request| request.machine.clone()),
            at: content.map(|request| request.at),
            maker: proof.and_then(|proof| proof.as_ref().ok().cloned()),
            unproven: proof.and_then(|proof| proof.as_ref().err().map(ToString::to_string)),
        }
    }
}

/// A request that is not answered.
#[derive(Debug, Serialize)]
pub struct RefusedView {
    /// Path on the stick.
    pub file: String,
    /// A word.
    pub code: &'static str,
    /// A sentence.
    pub message: String,
}

impl RefusedView {
    /// The view of a refusal.
    pub fn new(file: &str, why: &(&'static str, String)) -> Self {
        Self {
            file: file.to_owned(),
            code: why.0,
            message: why.1.clone(),
        }
    }
}

/// What becomes of the requests on a stick.
#[derive(Debug, Serialize)]
pub struct AnswersView {
    /// `answered`, `would-answer` or `refused`.
    pub result: &'static str,
    /// Serial of the pack that answers.
    pub serial: String,
    /// Until when it can be used.
    pub expires: Timestamp,
    /// The machines that get a place.
    pub answers: Vec<AnswerView>,
    /// Those that do not.
    pub refused: Vec<RefusedView>,
}

impl AnswersView {
    /// Everything in words.
    pub fn in_words(&self) -> String {
        let mut text = String::new();
        if self.result != "refused" {
            let will = if self.result == "answered" {
                ""
            } else {
                "would be "
            };
            text += &format!(
                "{will}answered by pack {}, valid until {}: compare each code with the one that the machine's console shows\n",
                self.serial, self.expires
            );
            let rows = self.answers.iter().map(|answer| {
                vec![
                    answer.node.to_string(),
                    answer.code.as_ref().map(ToString::to_string).unwrap_or_default(),
                    answer.machine.as_ref().map(machine_in_words).unwrap_or_default(),
                    match (&answer.maker, &answer.unproven) {
                        (Some(maker), _) => format!("a TPM by {maker}"),
                        (None, Some(why)) => format!("UNPROVEN: {why}"),
                        (None, None) => "UNPROVEN".to_owned(),
                    },
                    answer.boot.as_ref().map(BootView::in_words).unwrap_or_default(),
                    answer.file.clone(),
                ]
            });
            text += &table(&["NODE", "CODE", "MACHINE", "PROOF", "BOOT", "REQUEST"], rows);
        }
        if !self.refused.is_empty() {
            let rows = self
                .refused
                .iter()
                .map(|one| vec![one.file.clone(), one.code.to_owned(), one.message.clone()]);
            text += &table(&["NOT ANSWERED", "WORD", "WHY"], rows);
        }
        text
    }
}

/// A plain table, control characters removed: some of it was written by strangers.
pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(head.iter().copied());
    for row in rows {
        table.add_row(
            row.into_iter()
                .map(|cell| cell.chars().filter(|c| !c.is_control()).collect::<String>()),
        );
    }
    format!("{}\n", table.trim_fmt())
}

/// Prints a result in the form asked for.
pub fn print<T: Serialize>(
    form: Form,
    value: &T,
    in_words: impl FnOnce(&T) -> String,
) -> Result<(), Failure> {
    let text = match form {
        Form::Table => in_words(value),
        Form::Json => serde_json::to_string_pretty(value).context("failed to write JSON")? + "\n",
        Form::Yaml => serde_saphyr::to_string(value).context("failed to write YAML")?,
    };
    use std::io::Write as _;
    Ok(std::io::stdout()
        .write_all(text.as_bytes())
        .context("failed to print")?)
}
