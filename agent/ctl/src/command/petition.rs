//! Machines that ask to be let in: lists them, and signs an operator's word about the one whose console shows a code.
//!
//! Invariant: what is signed is for the key from which this program made that very code itself; what the node says of codes is
//! not believed, and a code that two machines show lets in neither.

use crate::args::Format;
use crate::client::Client;
use crate::context::CannotSign;
use crate::failure::{Class, Failure};
use crate::output::{note, print, render_document, render_list};
use crate::session::Session;
use crate::table;
use beemesh_agent_api::petition::{PetitionState, PetitionView};
use beemesh_agent_api::view::Assurance;
use beemesh_ids::NodeName;
use beemesh_joinpack_format::{Admission, ApprovalCode, Denial, Envelope, PublicKey, Timestamp, Voucher};
use serde::Serialize;
use std::time::{SystemTime, UNIX_EPOCH};

/// How long an approval can be fetched and redeemed, in seconds.
const VALID_S: i64 = 3600;
/// Petitions that are looked at: more than a node holds.
const MOST: usize = 256;

/// What was signed, and its signed form: what a dry run prints.
#[derive(Serialize)]
struct Signed<'a, T> {
    document: &'a T,
    envelope: &'a Envelope,
}

/// What became of it.
#[derive(Serialize)]
struct Outcome {
    result: &'static str,
    code: ApprovalCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeName>,
}

pub(super) async fn pending(session: &Session) -> Result<(), Failure> {
    let all = session.client()?.petitions().await;
    let all = all.map_err(|error| error.into_failure("list the machines that ask"))?;
    if all.is_empty() && session.global.output == Format::Table {
        note("no machine asks this node to be let in: it holds only those that asked itself, for 15 minutes");
    }
    print(render_list(session.global.output, &all, |all| {
        let row = |one: &PetitionView| {
            vec![
                one.code.to_string(),
                one.name.as_ref().map(NodeName::to_string).unwrap_or_default(),
                match one.assurance {
                    Assurance::Low => "low",
                    Assurance::Tpm => "tpm",
                }
                .to_owned(),
                one.source.to_string(),
                format!("{}s", one.age_s),
                format!("{}s", one.left_s),
                match one.state {
                    PetitionState::Waiting => "waiting",
                    PetitionState::Approved => "approved",
                    PetitionState::Denied => "denied",
                }
                .to_owned(),
                one.peer_id.to_string(),
            ]
        };
        table::draw(
            &[
                "CODE",
                "NAME",
                "ASSURANCE",
                "FROM",
                "AGE",
                "LEFT",
                "STATE",
                "PEER-ID",
            ],
            all.iter().map(row),
        )
    })?)
}

pub(super) async fn approve(
    session: &Session,
    code: &ApprovalCode,
    name: Option<NodeName>,
    dry_run: bool,
) -> Result<(), Failure> {
    let what = format!("let in the machine that shows {code}");
    let operator = session.operator()?;
    let client = session.client()?;
    let machine = find(&client, &operator.fabric(), code, &what).await?;
    let issued = now();
    let id = ulid::Generator::new().generate();
    let voucher = Voucher {
        fabric: operator.fabric(),
        id: id
            .map_err(|error| Failure::new(Class::Failed, what.as_str()).because(error))?
            .to_string(),
        node: match name.or(machine.name) {
            Some(name) => name,
            None => default_name(code).ok_or_else(|| Failure::new(Class::Invalid, what.as_str()))?,
        },
        cell: machine.cell,
        issued,
        expires: issued.plus_seconds(VALID_S),
        key: PublicKey::from_bytes(machine.peer_id.to_ed25519()),
        admission: Admission::Approved,
        ek: None,
    };
    let signed = operator.sign(&voucher);
    send(session, &client, &voucher, signed, dry_run, &what, |result| {
        Outcome {
            result,
            code: code.clone(),
            node: Some(voucher.node.clone()),
        }
    })
    .await
}

pub(super) async fn deny(session: &Session, code: &ApprovalCode, dry_run: bool) -> Result<(), Failure> {
    let what = format!("send away the machine that shows {code}");
    let operator = session.operator()?;
    let client = session.client()?;
    let machine = find(&client, &operator.fabric(), code, &what).await?;
    let denial = Denial {
        fabric: operator.fabric(),
        peer_id: machine.peer_id,
        issued: now(),
    };
    let signed = operator.sign(&denial);
    send(session, &client, &denial, signed, dry_run, &what, |result| {
        Outcome {
            result,
            code: code.clone(),
            node: None,
        }
    })
    .await
}

/// The one machine whose key gives this code.
async fn find(
    client: &Client,
    fabric: &beemesh_ids::FabricId,
    code: &ApprovalCode,
    what: &str,
) -> Result<PetitionView, Failure> {
    let all = client
        .petitions()
        .await
        .map_err(|error| error.into_failure(what))?;
    let fits = |one: &PetitionView| ApprovalCode::of(fabric, &one.peer_id) == *code;
    let mut fitting = all.into_iter().take(MOST).filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(machine), None) => Ok(machine),
        (None, _) => Err(Failure::new(Class::Failed, what)
            .because("no machine with this code asks this node, or its 15 minutes are over")
            .hint("compare it with the console; ask a member that the join pack names as a peer: `bmctl node pending`")),
        _ => Err(Failure::new(Class::Failed, what)
            .because("two machines show this code: one of them forged it")
            .hint("let neither in: look at `bmctl node pending`, and find the other one")),
    }
}

fn default_name(code: &ApprovalCode) -> Option<NodeName> {
    let short: String = code.to_string().chars().take(5).collect();
    format!("node-{}", short.to_lowercase()).parse().ok()
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

async fn send<T: Serialize>(
    session: &Session,
    client: &Client,
    document: &T,
    signed: Result<Envelope, CannotSign>,
    dry_run: bool,
    what: &str,
    outcome: impl FnOnce(&'static str) -> Outcome,
) -> Result<(), Failure> {
    let envelope = signed.map_err(|error| error.into_failure(what))?;
    let format = session.global.output;
    let words = |outcome: &Outcome| match &outcome.node {
        Some(node) => format!("{} is let in as {node}\n", outcome.code),
        None => format!("{} is sent away\n", outcome.code),
    };
    if dry_run {
        let both = Signed {
            document,
            envelope: &envelope,
        };
        let outcome = outcome("dry run");
        print(render_document(format, &both, |_| words(&outcome))?)?;
        note("dry run: nothing was sent");
        return Ok(());
    }
    let sent = client.submit_decision(envelope.to_json()).await;
    sent.map_err(|error| error.into_failure(what))?;
    print(render_document(format, &outcome("accepted"), words)?)
}
