//! `joinpack receipts`: reads the receipts that nodes left on a stick, checks them, and takes the endorsement keys out of
//! them. Writes nothing to the stick.
//!
//! Invariant: one bad receipt hides no other: each is shown with its reason, and the command is refused in the end.

use crate::fabric;
use crate::failure::{Failure, invalid};
use crate::media::Media;
use crate::show::{self, Form, ReceiptView};
use anyhow::Context as _;
use beemesh_joinpack_format::{EndorsementFile, Proof, Receipt, Refusal, RootChain, limits};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Receipts that are looked at: more than nodes leave on one stick.
const RECEIPTS: usize = 2 * limits::RECEIPTS;

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct ReceiptsArgs {
    /// The stick, an image of it, or its folder
    path: PathBuf,
    /// Folder of the fabric: credentials in the receipts are checked against its roots
    #[arg(long, value_name = "DIR")]
    fabric: Option<PathBuf>,
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
    let media = Media::open(&arguments.path)?;
    let mut views = Vec::new();
    let mut bad = None;
    let mut keys = Vec::new();
    let names = media
        .listing()?
        .into_iter()
        .filter(|name| name.starts_with("receipts/") && name.ends_with(".json"));
    for name in names.take(RECEIPTS) {
        let content = media.read(&name, limits::RECEIPT_LIMIT)?.unwrap_or_default();
        views.push(match check(&content, roots.as_ref()) {
            Ok((receipt, proof)) => {
                if let (Some(peer), Some(ek), true) =
                    (&receipt.peer_id, &receipt.machine.ek, proof != "unsigned")
                {
                    keys.push((peer.short().to_owned(), ek.clone()));
                }
                ReceiptView::new(name, receipt, proof)
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

/// The receipt and how far it can be believed: `member` of the fabric whose roots are given, `signed` by the peer that it
/// names, or `unsigned`.
fn check(content: &[u8], roots: Option<&RootChain>) -> Result<(Receipt, &'static str), Refusal> {
    let (receipt, proof) = Receipt::parse(content)?;
    let member = match roots {
        Some(roots) => receipt.member(roots)?.is_some(),
        None => false,
    };
    let proof = match proof {
        Proof::Unsigned => "unsigned",
        Proof::SignedBy(_) if member => "member",
        Proof::SignedBy(_) => "signed",
    };
    Ok((receipt, proof))
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
