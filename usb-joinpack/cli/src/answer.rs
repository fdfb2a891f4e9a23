//! Answering the requests on a stick: each is judged, and the pack gives way to a newer one with places for the machines that asked.
//! `SPEC.md`, section "Requests".
//!
//! Invariants: nothing is written where a request is refused, unless the operator leaves those out; a TPM has one name; the pack
//! that is there stays until the one that answers is whole.

use crate::boot::Boots;
use crate::boxes;
use crate::chance::{self, parse_span};
use crate::create::{self, as_input, voucher};
use crate::fabric::{Answered, Fabric};
use crate::failure::{Failure, invalid};
use crate::keyring::KeyArgs;
use crate::log_key;
use crate::media::Media;
use crate::show::{self, AnswerView, AnswersView, Form, RefusedView};
use crate::vendor::{Unproven, Vendors};
use crate::write::Target;
use anyhow::anyhow;
use beemesh_firmware_credential::EndorsementKey;
use beemesh_ids::NodeName;
use beemesh_joinpack_format::{Manifest, NodeEntry, Pack, Refusal, Request, Timestamp, Verified, limits};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What the command is told.
#[derive(Debug, clap::Args)]
pub struct AnswerArgs {
    /// The stick, an image of it, or its folder
    #[arg(long, value_name = "DEVICE|IMAGE|FOLDER")]
    to: PathBuf,
    /// Folder of the fabric
    #[arg(long, value_name = "DIR")]
    fabric: PathBuf,
    #[command(flatten)]
    keys: KeyArgs,
    /// Folder with the root certificates of the TPMs' makers, and such as lie between (.pem, .crt, .cer, .der)
    #[arg(long, value_name = "DIR")]
    vendor_roots: Option<PathBuf>,
    /// An OS release that counts: the `release.json` that `image build` wrote beside the image. Machines whose TPM says that they
    /// booted it are shown as `trusted`, others as `changed`; may be given several times
    #[arg(long = "release", value_name = "FILE")]
    releases: Vec<PathBuf>,
    /// Answer machines too whose TPM is not proven to be a genuine one
    #[arg(long)]
    accept_unproven: bool,
    /// Leave out requests that are refused, and answer the others
    #[arg(long)]
    skip_refused: bool,
    /// The name for a machine; MACHINE is the file of its request without .json, or its serial number [default: the name that its
    /// place in the pack or its TPM has already, then node-MACHINE]
    #[arg(long = "name", value_name = "MACHINE=NAME", value_parser = parse_name)]
    names: Vec<(String, NodeName)>,
    /// Names and addresses from the file that `create --csv` reads: the row with the machine's card, serial number or TPM counts
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// A member that new nodes can reach, beside those of the pack
    #[arg(long = "peer", value_name = "IP:PORT")]
    peers: Vec<String>,
    /// How long the answer can be used
    #[arg(long, value_name = "SPAN", value_parser = parse_span, default_value = "30d")]
    expires: i64,
    /// The answer lets further machines write requests
    #[arg(long)]
    requests: bool,
    /// Do not ask before writing to a device
    #[arg(long)]
    yes: bool,
    /// Show what would be answered and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

fn parse_name(text: &str) -> Result<(String, NodeName), String> {
    let (machine, name) = text
        .split_once('=')
        .ok_or_else(|| format!("`{text}` is not MACHINE=NAME"))?;
    let name = name.parse().map_err(|e: beemesh_ids::InvalidId| e.to_string())?;
    Ok((machine.to_owned(), name))
}

/// A request that can be answered.
struct Asking {
    file: String,
    request: Request,
    key: EndorsementKey,
    /// The name of the maker's root that it leads to, or why it does not.
    proof: Result<String, Unproven>,
}

/// Why a request is not answered: a word for machines, and a sentence.
type Why = (&'static str, String);

fn why(refusal: Refusal) -> Why {
    (refusal.code(), refusal.to_string())
}

/// Runs it.
pub fn answer(arguments: AnswerArgs) -> Result<(), Failure> {
    let fabric = Fabric::load(&arguments.fabric, &arguments.keys)?;
    let vendors = arguments.vendor_roots.as_deref().map(Vendors::load).transpose()?;
    let mut boots = Boots::new(&arguments.releases)?;
    let target = Target::resolve(&arguments.to)?;
    let media = Media::open(&arguments.to)?;
    // An answer may come late: that the pack it follows has expired is of no matter.
    let pack = media
        .pack()?
        .1
        .verify(Some(&fabric.roots), Timestamp::EPOCH, None)?;
    pack.check_listing(media.listing()?)?;
    if !pack.manifest().requests {
        invalid!(
            "the pack on `{}` lets no machine ask: make one with `joinpack create --requests`, or answer the stick that has one",
            arguments.to.display()
        );
    }
    let (mut asking, mut refused) = read_requests(&media, &pack, vendors.as_ref())?;
    drop(media);
    check_names(&arguments.names, &asking, &refused)?;
    settle(&fabric, &mut asking, &mut refused, arguments.accept_unproven)?;
    let draft = draft(&fabric, &pack, &asking, &arguments, &mut refused)?;
    let stands = draft.places.is_empty() || !(refused.is_empty() || arguments.skip_refused);
    let view = AnswersView {
        result: match (stands, arguments.dry_run) {
            (true, _) => "refused",
            (false, true) => "would-answer",
            (false, false) => "answered",
        },
        serial: draft.manifest.serial.clone(),
        expires: draft.manifest.expires,
        answers: draft
            .places
            .iter()
            .map(|place| place.view(&asking, &mut boots))
            .collect(),
        refused: refused
            .iter()
            .map(|(file, why)| RefusedView::new(file, why))
            .collect(),
    };
    if stands {
        show::print(arguments.output, &view, AnswersView::in_words)?;
        return Err(not_answered(&refused, &arguments));
    }
    if !arguments.dry_run {
        target.confirm(arguments.yes)?;
        let joinpack = create::sign(&fabric, &draft.manifest)?;
        // First: a name that went out is never given to another TPM, even if the stick breaks now.
        fabric.record(&draft.answered(&asking))?;
        fabric.remember(&draft.manifest.serial)?;
        let done: Vec<_> = draft
            .places
            .iter()
            .filter_map(|place| asking.get(place.asking))
            .map(|one| one.file.clone())
            .collect();
        target.replace(&joinpack, &fabric.roots, &done)?;
    }
    show::print(arguments.output, &view, AnswersView::in_words)
}

/// Requests that are not answered: the file, and why.
type Refused = Vec<(String, Why)>;

fn not_answered(refused: &[(String, Why)], arguments: &AnswerArgs) -> Failure {
    match refused.first() {
        None => Failure::Invalid(anyhow!(
            "there is no request on `{}`: put the stick into a machine that has no place in its pack",
            arguments.to.display()
        )),
        Some((file, (code, message))) => Failure::Forbidden(anyhow!(
            "nothing was written: `{file}` is not answered ({code}): {message}{}",
            match (refused.len(), arguments.skip_refused) {
                (n, false) if n > 1 =>
                    format!(" (and {} more; --skip-refused leaves such requests out)", n - 1),
                (_, false) => " (--skip-refused leaves such requests out)".to_owned(),
                (_, true) => String::new(),
            }
        )),
    }
}

/// The requests on the stick that can be believed so far, the latest first; and the others.
fn read_requests(
    media: &Media,
    pack: &Pack<Verified>,
    vendors: Option<&Vendors>,
) -> Result<(Vec<Asking>, Refused), Failure> {
    let (mut asking, mut refused) = (Vec::new(), Vec::new());
    let is_request = |name: &String| {
        let file = name.strip_prefix("requests/").unwrap_or_default();
        // Laptops leave hidden files of their own.
        file.ends_with(".json") && !file.starts_with('.') && !file.contains('/')
    };
    let mut names: Vec<_> = media.listing()?.into_iter().filter(is_request).collect();
    names.sort();
    if names.len() > limits::REQUESTS {
        invalid!(
            "there are more than {} requests: this is not the work of machines",
            limits::REQUESTS
        );
    }
    let now = chance::now();
    for file in names {
        let content = media.read(&file, limits::REQUEST_LIMIT)?.unwrap_or_default();
        match judge(&content, pack, vendors, now) {
            Ok((request, key, proof)) => asking.push(Asking {
                file,
                request,
                key,
                proof,
            }),
            Err(why) => refused.push((file, why)),
        }
    }
    asking.sort_by_key(|one| (Reverse(one.request.at), one.file.clone()));
    Ok((asking, refused))
}

fn judge(
    content: &[u8],
    pack: &Pack<Verified>,
    vendors: Option<&Vendors>,
    now: Timestamp,
) -> Result<(Request, EndorsementKey, Result<String, Unproven>), Why> {
    let request = Request::parse(content).map_err(why)?;
    let manifest = pack.manifest();
    request
        .check_asked(&manifest.fabric, &manifest.serial)
        .map_err(why)?;
    let file = request.endorsement().map_err(why)?;
    let public = file.public_key().map_err(why)?;
    let key = EndorsementKey::parse(&public).map_err(|error| ("malformed", error.to_string()))?;
    let certificate = file.certificate.as_deref().map(decode).transpose()?;
    let chain = request.chain().map_err(why)?;
    let proof = match vendors {
        Some(vendors) => vendors.prove(&key, certificate.as_deref(), &chain, now),
        None => Err(Unproven::NoRoots),
    };
    Ok((request, key, proof))
}

fn decode(text: &str) -> Result<Vec<u8>, Why> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let decoded = STANDARD.decode(text);
    decoded.map_err(|error| {
        (
            "malformed",
            format!("the TPM's certificate is not base64 ({error})"),
        )
    })
}

/// Refuses a name for a machine of which there is no request, good or bad: what is wrong with a bad one is said of itself.
fn check_names(
    names: &[(String, NodeName)],
    asking: &[Asking],
    refused: &[(String, Why)],
) -> Result<(), Failure> {
    for (machine, name) in names {
        let file = format!("requests/{machine}.json");
        let there = asking.iter().any(|one| is_called(one, machine));
        if !there && refused.iter().all(|(other, _)| *other != file) {
            invalid!("--name {machine}={name}: no request is of `{machine}`");
        }
    }
    Ok(())
}

/// Takes out what is not answered: a second request of one TPM, and what is not proven.
fn settle(
    fabric: &Fabric,
    asking: &mut Vec<Asking>,
    refused: &mut Refused,
    accept_unproven: bool,
) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    let all = std::mem::take(asking);
    for one in all {
        let ek = one.key.digest();
        let verdict: Result<(), Why> = match &one.proof {
            _ if seen.contains(&ek) => Err((
                "duplicate",
                "another request on this stick, made later, is of the same TPM".to_owned(),
            )),
            // A contradiction is worse than nothing.
            Err(unproven @ Unproven::OtherKey) => Err(("unproven", unproven.to_string())),
            Err(unproven) if !accept_unproven => Err((
                "unproven",
                format!("{unproven}; --accept-unproven answers it all the same"),
            )),
            _ if fabric.is_revoked(&one.request.peer_id) => {
                Err(("revoked", "this machine is revoked in this fabric".to_owned()))
            }
            _ => Ok(()),
        };
        match verdict {
            Ok(()) => {
                seen.insert(ek);
                asking.push(one);
            }
            Err(why) => refused.push((one.file, why)),
        }
    }
    Ok(())
}

/// A place for a machine that asked.
struct Given {
    node: NodeName,
    /// Which of those that ask.
    asking: usize,
}

impl Given {
    fn view(&self, asking: &[Asking], boots: &mut Boots) -> AnswerView {
        let one = asking.get(self.asking);
        let request = one.map(|one| (one.file.as_str(), &one.request, &one.proof));
        AnswerView {
            boot: one.map(|one| boots.of_request(&one.request)),
            ..AnswerView::new(&self.node, request)
        }
    }
}

/// The pack that answers.
struct Draft {
    manifest: Manifest,
    places: Vec<Given>,
}

impl Draft {
    fn answered(&self, asking: &[Asking]) -> Vec<Answered> {
        let of = |place: &Given| {
            let one = asking.get(place.asking)?;
            Some(Answered {
                ek: one.key.digest(),
                node: place.node.clone(),
                peer_id: one.request.peer_id.clone(),
                serial: self.manifest.serial.clone(),
                at: self.manifest.issued,
            })
        };
        self.places.iter().filter_map(of).collect()
    }
}

/// The pack with a place for each of `asking` that no name stands against.
fn draft(
    fabric: &Fabric,
    pack: &Pack<Verified>,
    asking: &[Asking],
    arguments: &AnswerArgs,
    refused: &mut Refused,
) -> Result<Draft, Failure> {
    let issued = chance::now();
    let expires = issued.plus_seconds(arguments.expires);
    let (mut manifest, held) = follow_up(fabric, pack, issued, expires)?;
    manifest.requests = arguments.requests;
    for peer in &arguments.peers {
        if !manifest.peers.contains(peer) {
            manifest.peers.push(peer.clone());
        }
    }
    let rows = match &arguments.csv {
        Some(path) => boxes::read(path)?.into_iter().map(|place| place.entry).collect(),
        None => Vec::new(),
    };
    let mut names = Names {
        given: &arguments.names,
        held,
        used: BTreeSet::new(),
        rows,
        before: fabric.answered()?,
    };
    let mut places = Vec::new();
    for (index, one) in asking.iter().enumerate() {
        match names.place(&manifest, one) {
            Ok(entry) => {
                let node = entry.name.clone();
                let valid = (issued, expires);
                manifest.vouchers.push(voucher(
                    fabric,
                    &manifest.cell,
                    &node,
                    Some(&one.key),
                    chance::ulid(None)?,
                    valid,
                )?);
                match manifest.nodes.iter_mut().find(|other| other.name == node) {
                    Some(own) => *own = entry,
                    None => manifest.nodes.push(entry),
                }
                places.push(Given { node, asking: index });
            }
            Err(why) => refused.push((one.file.clone(), why)),
        }
    }
    let nodes = u32::try_from(manifest.nodes.len()).unwrap_or(u32::MAX);
    manifest.roster_size = manifest.roster_size.max(nodes);
    manifest.check().map_err(as_input)?;
    Ok(Draft { manifest, places })
}

/// The pack again, newer, and the names that have a voucher in it: without vouchers that nobody can redeem any more, and without places that these leave open to anyone.
fn follow_up(
    fabric: &Fabric,
    pack: &Pack<Verified>,
    issued: Timestamp,
    expires: Timestamp,
) -> Result<(Manifest, BTreeSet<NodeName>), Failure> {
    let mut manifest = pack.manifest().clone();
    let good: Vec<bool> = pack
        .vouchers()
        .iter()
        .map(|voucher| voucher.expires >= issued && !fabric.revoked.has_voucher(&voucher.id))
        .collect();
    let mut keep = good.iter();
    manifest.vouchers.retain(|_| keep.next() == Some(&true));
    let held: BTreeSet<_> = pack
        .vouchers()
        .iter()
        .zip(&good)
        .filter(|(_, good)| **good)
        .map(|(voucher, _)| voucher.node.clone())
        .collect();
    manifest
        .nodes
        .retain(|node| node.is_tied() || held.contains(&node.name));
    manifest.serial = fabric.next_serial()?.to_string();
    if manifest.serial <= pack.manifest().serial {
        invalid!(
            "the pack on the stick is newer than this folder of the fabric knows: use the folder that made it"
        );
    }
    manifest.roots = fabric.roots.envelopes().to_vec();
    manifest.revocations = fabric.snapshots(issued)?;
    manifest.log_key = log_key::public(fabric.dir())?.or(manifest.log_key);
    (manifest.issued, manifest.expires) = (issued, expires);
    Ok((manifest, held))
}

/// Who is called what.
struct Names<'a> {
    given: &'a [(String, NodeName)],
    /// Who has a voucher already.
    held: BTreeSet<NodeName>,
    used: BTreeSet<NodeName>,
    rows: Vec<NodeEntry>,
    before: Vec<Answered>,
}

impl Names<'_> {
    /// The place that a machine gets in the pack that answers.
    fn place(&mut self, manifest: &Manifest, one: &Asking) -> Result<NodeEntry, Why> {
        let machine = one.request.machine();
        let ek = one.key.digest();
        let own = manifest.nodes.iter().find(|node| node.is_tied_to(&machine));
        if let Some(own) = own.filter(|own| self.held.contains(&own.name)) {
            return Err((
                "duplicate",
                format!(
                    "its place `{}` has a voucher in this pack: it need not ask",
                    own.name
                ),
            ));
        }
        let row = self.rows.iter().find(|row| row.is_tied_to(&machine));
        let given = self.given.iter().find(|(text, _)| is_called(one, text));
        let before = self.before.iter().find(|answered| answered.ek == ek);
        let known = own.map(|node| &node.name).or(given.map(|(_, name)| name));
        let known = known.or(row.map(|row| &row.name)).or(before.map(|old| &old.node));
        let name = match known {
            Some(name) => name.clone(),
            None => own_name(one)?,
        };
        if let Some(old) = before.filter(|old| old.node != name) {
            return Err((
                "already-answered",
                format!(
                    "its TPM was answered as `{}` on {}: name it so, or take it out of `answered.json` of the fabric",
                    old.node, old.at
                ),
            ));
        }
        if let Some((_, other)) = given.filter(|(_, other)| *other != name) {
            return Err((
                "inconsistent",
                format!("its place in the pack is `{name}`, not `{other}`"),
            ));
        }
        if let Some(other) = self.before.iter().find(|old| old.node == name && old.ek != ek) {
            return Err((
                "duplicate",
                format!(
                    "`{name}` was given to another TPM on {}: choose another name",
                    other.at
                ),
            ));
        }
        let taken = own.is_none() && manifest.nodes.iter().any(|node| node.name == name);
        if taken || !self.used.insert(name.clone()) {
            return Err((
                "duplicate",
                format!("`{name}` is the name of another place: choose another"),
            ));
        }
        let settings = own.or(row);
        Ok(NodeEntry {
            mac: settings.and_then(|node| node.mac.clone()),
            serial: settings.and_then(|node| node.serial.clone()),
            ek: Some(ek),
            network: settings.and_then(|node| node.network.clone()),
            name,
        })
    }
}

/// The name of a machine that nobody has named: of its own, since the members that other packs made have the numbers.
fn own_name(one: &Asking) -> Result<NodeName, Why> {
    let name = format!("node-{}", one.request.peer_id.short().to_lowercase());
    name.parse()
        .map_err(|error: beemesh_ids::InvalidId| ("malformed", error.to_string()))
}

/// Whether the operator means this machine: by the end of its peer id, or by its serial number.
fn is_called(one: &Asking, text: &str) -> bool {
    text == one.request.peer_id.short() || one.request.machine.serial.as_deref() == Some(text)
}
