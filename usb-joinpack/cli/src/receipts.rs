//! `joinpack receipts`: reads the receipts that nodes left on a stick, checks them, opens the logs beside them, and takes the
//! endorsement keys out of them; judges what each machine booted. Writes nothing to the stick.
//!
//! Invariant: one bad receipt or log hides no other: each is shown with its reason, and the command is refused in the end.

use crate::boot::Boots;
use crate::fabric::{self, Fabric};
use crate::failure::{Failure, invalid};
use crate::log_key;
use crate::media::Media;
use crate::show::{self, Form, LogView, ReceiptView};
use anyhow::Context as _;
use beemesh_ids::FabricId;
use beemesh_joinpack_format::{
    EndorsementFile, LogSecret, Proof, Receipt, Refusal, RevocationSet, RootChain, limits,
};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Receipts that are looked at: more than nodes leave on one stick.
const RECEIPTS: usize = 2 * limits::RECEIPTS;

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct ReceiptsArgs {
    /// The stick, an image of it, or its folder
    path: PathBuf,
    /// Folder of the fabric: credentials in the receipts are checked against its roots, and nodes that it revokes are marked
    #[arg(long, value_name = "DIR")]
    fabric: Option<PathBuf>,
    /// Opens the logs beside the receipts with the log key of the fabric, and writes each to a file NODE-TIME.log in this folder
    #[arg(long, value_name = "DIR", requires = "fabric")]
    logs: Option<PathBuf>,
    /// An OS release that counts: the `release.json` that `image build` wrote beside the image. Machines whose TPM says that they
    /// booted it are shown as `trusted`, others as `changed`; may be given several times
    #[arg(long = "release", value_name = "FILE")]
    releases: Vec<PathBuf>,
    /// Writes the endorsement key of each machine to a file in this folder, for `joinpack create --node …,ek=FILE`
    #[arg(long, value_name = "DIR")]
    ek_to: Option<PathBuf>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

/// Runs it.
pub fn receipts(arguments: &ReceiptsArgs) -> Result<(), Failure> {
    let roots = arguments
        .fabric
        .as_deref()
        .map(|dir| fabric::load_roots(&dir.join("root.json")))
        .transpose()?;
    let revoked = match &arguments.fabric {
        Some(dir) => Fabric::open(dir)?.revoked,
        None => RevocationSet::default(),
    };
    let mut logs = match (&arguments.logs, &arguments.fabric, &roots) {
        (Some(to), Some(dir), Some(roots)) => Some(Logs::new(to, dir, roots)?),
        _ => None,
    };
    let mut boots = Boots::new(&arguments.releases)?;
    let media = Media::open(&arguments.path)?;
    let mut views = Vec::new();
    let mut bad = None;
    let mut keys = Vec::new();
    let mut names: Vec<_> = media.listing()?;
    names.retain(|name| name.starts_with("receipts/") && name.ends_with(".json"));
    names.sort();
    let mut found = Vec::new();
    for name in names.into_iter().take(RECEIPTS) {
        let content = media.read(&name, limits::RECEIPT_LIMIT)?.unwrap_or_default();
        found.push((name, check(&content, roots.as_ref(), &revoked)));
    }
    // What a machine booted is compared with what it booted before.
    let at = |found: &Result<Checked, Refusal>| found.as_ref().ok().map(|checked| checked.receipt.at);
    found.sort_by(|a, b| (at(&a.1), &a.0).cmp(&(at(&b.1), &b.0)));
    for (name, checked) in found {
        views.push(match checked {
            Ok(Checked {
                receipt,
                proof,
                revoked,
            }) => {
                if let (Some(peer), Some(ek), true) =
                    (&receipt.peer_id, &receipt.machine.ek, proof != "unsigned")
                {
                    keys.push((peer.short().to_owned(), ek.clone()));
                }
                let mut log = log_of(&receipt);
                if let (Some(logs), Some(view)) = (&mut logs, &mut log)
                    && let Err(why) = logs.open(&media, &receipt, view)?
                {
                    (view.code, view.message) = (Some(why.code()), Some(why.to_string()));
                    bad.get_or_insert(why);
                }
                ReceiptView {
                    log,
                    revoked,
                    boot: (proof != "unsigned").then(|| boots.of_receipt(&receipt)),
                    ..ReceiptView::new(name, receipt, proof)
                }
            }
            Err(why) => {
                let view = ReceiptView::bad(name, &why);
                bad.get_or_insert(why);
                view
            }
        });
    }
    views.sort_by(|a, b| a.file.cmp(&b.file));
    show::print(arguments.output, &views, |views| show::receipts_in_words(views))?;
    if let Some(folder) = &arguments.ek_to {
        save_keys(folder, &keys)?;
    }
    bad.map_or(Ok(()), |why| Err(why.into()))
}

/// A receipt that can be read.
struct Checked {
    receipt: Receipt,
    /// `member` of the fabric whose roots are given, `signed` by the peer that it names, or `unsigned`.
    proof: &'static str,
    /// The fabric revokes its node, or the voucher that made it one.
    revoked: bool,
}

/// The receipt and how far it can be believed.
fn check(content: &[u8], roots: Option<&RootChain>, revoked: &RevocationSet) -> Result<Checked, Refusal> {
    let (receipt, proof) = Receipt::parse(content)?;
    let member = match roots {
        Some(roots) => receipt.member(roots)?,
        None => None,
    };
    // A node is revoked by its node id, whatever its key is now.
    let gone = match (&member, &receipt.peer_id) {
        (Some(member), _) => revoked.has_node(&member.peer_id) || revoked.has_voucher(&member.voucher_id),
        (None, Some(peer)) => revoked.has_node(peer),
        (None, None) => false,
    };
    let proof = match proof {
        Proof::Unsigned => "unsigned",
        Proof::SignedBy(_) if member.is_some() => "member",
        Proof::SignedBy(_) => "signed",
    };
    Ok(Checked {
        receipt,
        proof,
        revoked: gone,
    })
}

fn log_of(receipt: &Receipt) -> Option<LogView> {
    let (file, entry) = (receipt.log_path()?, receipt.log.as_ref()?);
    Some(LogView {
        file,
        size: entry.size,
        key: entry.key,
        saved: None,
        code: None,
        message: None,
    })
}

/// Where logs go, and what opens them.
struct Logs {
    to: PathBuf,
    fabric: FabricId,
    secrets: Vec<LogSecret>,
    /// Names that were given to logs of this stick.
    taken: BTreeSet<String>,
}

impl Logs {
    fn new(to: &Path, fabric: &Path, roots: &RootChain) -> Result<Self, Failure> {
        let secrets = log_key::secrets(fabric)?;
        fs::create_dir_all(to).with_context(|| format!("failed to make `{}`", to.display()))?;
        Ok(Self {
            to: to.to_owned(),
            fabric: roots.fabric_id().clone(),
            secrets,
            taken: BTreeSet::new(),
        })
    }

    /// Opens the log beside a receipt and writes it down; or why it cannot be opened.
    fn open(
        &mut self,
        media: &Media,
        receipt: &Receipt,
        view: &mut LogView,
    ) -> Result<Result<(), Refusal>, Failure> {
        // One byte too many is enough to know that it is another file.
        let file = media.read(&view.file, limits::LOG_LIMIT)?;
        let log = match receipt.open_log(file.as_deref(), &self.fabric, &self.secrets) {
            Ok(log) => log.unwrap_or_default(),
            Err(why) => return Ok(Err(why)),
        };
        let name = self.name(receipt);
        let path = self.to.join(name);
        save(&path, &log)?;
        view.saved = Some(path);
        Ok(Ok(()))
    }

    /// `<node>-<time>.log`, with a number where two receipts say the same.
    fn name(&mut self, receipt: &Receipt) -> String {
        let node = match (&receipt.node, &receipt.peer_id) {
            (Some(node), _) => node.as_str(),
            (None, Some(peer)) => peer.short(),
            (None, None) => "unknown",
        };
        let time: String = receipt.at.to_string();
        let time: String = time.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut name = format!("{node}-{time}.log");
        let mut number = 1_u32;
        while !self.taken.insert(name.clone()) {
            number = number.saturating_add(1);
            name = format!("{node}-{time}-{number}.log");
        }
        name
    }
}

/// Writes a file for its owner's eyes. One that is there already must hold the same.
fn save(path: &Path, content: &[u8]) -> Result<(), Failure> {
    if path.exists() {
        let there = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
        match there == content {
            true => return Ok(()),
            false => invalid!("`{}` holds something else: choose another folder", path.display()),
        }
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    Ok(file
        .and_then(|mut file| file.write_all(content))
        .with_context(|| format!("failed to write `{}`", path.display()))?)
}

/// One file for each machine, named by the end of its peer id. A file that is there already must hold the same.
fn save_keys(folder: &Path, keys: &[(String, EndorsementFile)]) -> Result<(), Failure> {
    fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
    for (peer, key) in keys {
        let path = folder.join(format!("{peer}.ek"));
        let text = serde_json::to_string_pretty(key).context("failed to write JSON")? + "\n";
        if path.exists() {
            let there = fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
            match EndorsementFile::parse(&there) {
                Ok((there, _)) if there.ek == key.ek => continue,
                _ => invalid!("`{}` holds something else: choose another folder", path.display()),
            }
        }
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("failed to write `{}`", path.display()))?;
    }
    Ok(())
}
