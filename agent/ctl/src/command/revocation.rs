//! Revocations: shows them, and makes a snapshot that holds all that is revoked already and more. And the endorsement key.
//!
//! Invariant: the operator signs only what verified snapshots hold and what was asked for, whatever the node says.

use crate::failure::{Class, Failure};
use crate::output::{note, print, render_document};
use crate::session::Session;
use crate::table;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Envelope, RevocationSet, Revocations, Source, Timestamp, limits};
use serde::Serialize;
use std::io::Read as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const WHAT: &str = "revoke";

/// What was signed, and its signed form: what a dry run prints.
#[derive(Serialize)]
struct Signed<'a> {
    snapshot: &'a Revocations,
    envelope: &'a Envelope,
}

/// What became of it.
#[derive(Serialize)]
struct Outcome {
    result: &'static str,
    nodes: usize,
    vouchers: usize,
}

pub(super) async fn endorsement(session: &Session) -> Result<(), Failure> {
    let file = session.client()?.endorsement().await;
    let file = file.map_err(|error| error.into_failure("show the endorsement key"))?;
    print(render_document(session.global.output, &file, |file| {
        let certificate = match &file.certificate {
            Some(text) => format!("{} bytes", text.len() / 4 * 3),
            None => "none in the TPM".to_owned(),
        };
        table::draw(
            &["EK", "KIND", "CERTIFICATE"],
            [vec![file.ek.to_string(), "ECC P-256".to_owned(), certificate]],
        )
    })?)
}

pub(super) async fn show(session: &Session) -> Result<(), Failure> {
    let view = session.client()?.revocations().await;
    let view = view.map_err(|error| error.into_failure("show the revocations"))?;
    print(render_document(session.global.output, &view, |view| {
        let admits = if view.admits {
            "yes"
        } else {
            "no: insert a newer join stick"
        };
        let summary = [view.issued.clone(), days(view.age_s), admits.to_owned()];
        let head = table::draw(&["AS-OF", "AGE", "ADMITS"], [summary.to_vec()]);
        let row = |kind: &str, what: &str| vec![kind.to_owned(), what.to_owned()];
        let nodes = view.nodes.iter().map(|peer| row("node", peer.as_str()));
        let vouchers = view.vouchers.iter().map(|id| row("voucher", id));
        let keys = view.keys.iter().map(|id| row("key", id));
        let all: Vec<_> = nodes.chain(vouchers).chain(keys).collect();
        match all.is_empty() {
            true => head,
            false => format!("{head}\n{}", table::draw(&["REVOKED", "WHICH"], all)),
        }
    })?)
}

/// `3d4h`, `5h12m`, `42s`: two units are enough.
fn days(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}

pub(super) async fn revoke(session: &Session, targets: &[String], dry_run: bool) -> Result<(), Failure> {
    let operator = session.operator()?;
    let client = session.client()?;
    let view = client
        .revocations()
        .await
        .map_err(|error| error.into_failure(WHAT))?;
    // A node may say what it likes; only what is signed goes into what this operator signs.
    let known = RevocationSet::restore(&view.snapshots, operator.roots());
    let mut snapshot = known.union(&operator.fabric());
    // Keys stay in the snapshot that recovery signed.
    snapshot.keys.clear();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    // Newer than what is known, or nobody's age would fall.
    snapshot.issued = known
        .issued()
        .map_or(now, |issued| now.max(issued.plus_seconds(1)));
    for target in targets {
        match target.split_once('/') {
            Some(("voucher", id)) => drop(snapshot.vouchers.insert(id.to_owned())),
            Some(("node", name)) => {
                let peer = match name.parse::<PeerId>() {
                    Ok(peer) => peer,
                    Err(_) => peer_of(&client, name).await?,
                };
                snapshot.nodes.insert(peer);
            }
            _ => {
                let shown: String = target.chars().take(80).collect();
                return Err(
                    Failure::new(Class::Invalid, format!("`{shown}` is nothing to revoke"))
                        .hint("write node/NAME, node/PEER-ID or voucher/ID"),
                );
            }
        }
    }
    let envelope = operator
        .sign(&snapshot)
        .map_err(|error| error.into_failure(WHAT))?;
    send(session, &client, &[(envelope, snapshot)], dry_run).await
}

/// The one member with this name.
async fn peer_of(client: &crate::client::Client, name: &str) -> Result<PeerId, Failure> {
    let nodes = client.nodes().await.map_err(|error| error.into_failure(WHAT))?;
    let mut named = nodes.into_iter().filter(|node| node.name.as_str() == name);
    match (named.next(), named.next()) {
        (Some(node), None) => Ok(node.peer_id),
        (None, _) => Err(Failure::new(Class::Failed, format!("revoke node `{name}`"))
            .because("no member has this name")
            .hint("see `bmctl nodes`; a node that is no member any more is named by its peer id")),
        _ => Err(Failure::new(Class::Failed, format!("revoke node `{name}`"))
            .because("several members have this name")
            .hint("name it by its peer id: see `bmctl nodes`")),
    }
}

pub(super) async fn send_file(session: &Session, path: &Path, dry_run: bool) -> Result<(), Failure> {
    let what = format!("send `{}`", path.display());
    let invalid = |why: String| Failure::new(Class::Invalid, what.clone()).because(why);
    let limit = limits::SNAPSHOTS * limits::REVOCATION_LIMIT;
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(limit as u64 + 1).read_to_end(&mut text))
        .map_err(|error| invalid(error.to_string()))?;
    if text.len() > limit {
        return Err(invalid(format!("it is larger than {limit} bytes")));
    }
    let envelopes: Vec<Envelope> =
        serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    let roots = session.operator()?;
    let mut snapshots = Vec::new();
    for envelope in envelopes.into_iter().take(limits::SNAPSHOTS) {
        let snapshot = Revocations::verify(&envelope, roots.roots(), Source::Member);
        let snapshot = snapshot.map_err(|refusal| invalid(refusal.to_string()))?;
        snapshots.push((envelope, snapshot));
    }
    send(session, &session.client()?, &snapshots, dry_run).await
}

async fn send(
    session: &Session,
    client: &crate::client::Client,
    snapshots: &[(Envelope, Revocations)],
    dry_run: bool,
) -> Result<(), Failure> {
    if dry_run {
        for (envelope, snapshot) in snapshots {
            let signed = Signed { snapshot, envelope };
            print(render_document(session.global.output, &signed, |signed| {
                let nodes = signed.snapshot.nodes.iter().map(|peer| format!("node {peer}\n"));
                nodes
                    .chain(
                        signed
                            .snapshot
                            .vouchers
                            .iter()
                            .map(|id| format!("voucher {id}\n")),
                    )
                    .collect()
            })?)?;
        }
        note("dry run: nothing was sent");
        return Ok(());
    }
    for (envelope, _) in snapshots {
        let sent = client.submit_revocations(envelope.to_json()).await;
        sent.map_err(|error| error.into_failure(WHAT))?;
    }
    let newest = snapshots.iter().map(|(_, snapshot)| snapshot);
    let (nodes, vouchers) = newest.fold((0, 0), |(nodes, vouchers), snapshot| {
        (
            snapshot.nodes.len().max(nodes),
            snapshot.vouchers.len().max(vouchers),
        )
    });
    let outcome = Outcome {
        result: "accepted",
        nodes,
        vouchers,
    };
    print(render_document(session.global.output, &outcome, |outcome| {
        format!(
            "revoked in all: {} node(s), {} voucher(s)\n",
            outcome.nodes, outcome.vouchers
        )
    })?)
}
