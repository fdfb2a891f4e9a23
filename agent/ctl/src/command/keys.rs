//! Keys of nodes: shows them, orders their rotation, and waits until it is done.
//!
//! An order is desired state: a node that is off obeys it when it comes back. Invariant: the operator signs the node ids that
//! were named, or `all`; what a node says of ids and times goes into nothing that is signed but the ids behind the names.

use super::wait::WAIT;
use crate::client::Client;
use crate::failure::{Class, Failure};
use crate::output::{note, print, render_document};
use crate::session::Session;
use crate::table;
use beemesh_agent_api::keys::{KeysView, NodeKeyView};
use beemesh_agent_api::view::NodeStatus;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Envelope, KeyOrder, Timestamp};
use serde::Serialize;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep};

const WHAT: &str = "rotate keys";
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Nodes that a sentence names.
const NAMED: usize = 8;

/// An order and its signed form: what a dry run prints.
#[derive(Serialize)]
struct Signed<'a> {
    order: &'a KeyOrder,
    envelope: &'a Envelope,
}

/// What became of it.
#[derive(Serialize)]
struct Outcome {
    result: &'static str,
    order: String,
    /// Nodes whose key is as new as the order.
    rotated: Vec<NodeKeyView>,
    /// Nodes that have not obeyed yet.
    old: Vec<NodeKeyView>,
}

/// How a rotation is ordered.
pub(super) struct How {
    pub(super) wait: bool,
    pub(super) dry_run: bool,
}

pub(super) async fn status(session: &Session) -> Result<(), Failure> {
    let view = look(&session.client()?).await?;
    print(render_document(session.global.output, &view, |view| {
        draw(&view.nodes)
    })?)
}

async fn look(client: &Client) -> Result<KeysView, Failure> {
    client
        .keys()
        .await
        .map_err(|error| error.into_failure("show the keys"))
}

fn draw(nodes: &[NodeKeyView]) -> String {
    let row = |node: &NodeKeyView| {
        let order = match (&node.order, node.used_up) {
            (None, _) => "done".to_owned(),
            (Some(_), true) => "cannot: its keys are used up".to_owned(),
            (Some(order), false) => format!("outstanding: {order}"),
        };
        vec![
            node.name.to_string(),
            status_word(node.status).to_owned(),
            node.generation.to_string(),
            node.since.clone(),
            order,
            node.key.to_string(),
            node.node.to_string(),
        ]
    };
    table::draw(
        &["NAME", "STATUS", "KEY", "SINCE", "ORDER", "PEER-ID", "NODE-ID"],
        nodes.iter().map(row),
    )
}

fn status_word(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Ready => "Ready",
        NodeStatus::Suspect => "Suspect",
        NodeStatus::Down => "Down",
    }
}

/// Orders the rotation of the keys of `targets`, of all nodes where there are none.
pub(super) async fn rotate(session: &Session, targets: &[String], how: How) -> Result<(), Failure> {
    let operator = session.operator()?;
    let nodes = match targets {
        [] => None,
        targets => {
            let view = look(&session.client()?).await?;
            let ids = targets.iter().map(|target| node_of(&view, target));
            Some(ids.collect::<Result<BTreeSet<PeerId>, _>>()?)
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let id = ulid::Generator::new().generate();
    let id = id.map_err(|error| Failure::new(Class::Failed, WHAT).because(error))?;
    let order = KeyOrder {
        fabric: operator.fabric(),
        id: id.to_string(),
        issued: Timestamp(i64::try_from(now.as_secs()).unwrap_or(i64::MAX)),
        nodes,
    };
    let envelope = operator.sign(&order).map_err(|error| error.into_failure(WHAT))?;
    if how.dry_run {
        let signed = Signed {
            order: &order,
            envelope: &envelope,
        };
        print(render_document(session.global.output, &signed, |signed| {
            let which = signed.order.nodes.as_ref();
            which.map_or_else(
                || "all nodes\n".to_owned(),
                |nodes| nodes.iter().map(|node| format!("{node}\n")).collect(),
            )
        })?)?;
        note("dry run: nothing was sent");
        return Ok(());
    }
    let client = session.client()?;
    let sent = client.submit_key_order(envelope.to_json()).await;
    sent.map_err(|error| error.into_failure(WHAT))?;
    let outcome = match how.wait {
        true => wait(&client, &order, session.global.timeout.unwrap_or(WAIT)).await,
        false => report(&client, &order).await.map(|outcome| (outcome, None)),
    };
    let (outcome, failure) = outcome?;
    print(render_document(session.global.output, &outcome, |outcome| {
        let (done, old) = (outcome.rotated.len(), outcome.old.len());
        let all: Vec<_> = outcome.rotated.iter().chain(&outcome.old).cloned().collect();
        format!("order {}: {done} done, {old} old\n{}", outcome.order, draw(&all))
    })?)?;
    failure.map_or(Ok(()), Err)
}

/// The one member with this name, or this node id, or this peer id.
fn node_of(view: &KeysView, target: &str) -> Result<PeerId, Failure> {
    let peer = target.parse::<PeerId>().ok();
    let is_meant = |node: &&NodeKeyView| match &peer {
        Some(peer) => node.node == *peer || node.key == *peer,
        None => node.name.as_str() == target,
    };
    let mut found = view.nodes.iter().filter(is_meant);
    let shown: String = target.chars().take(80).collect();
    let failure =
        |why: &str| Failure::new(Class::Failed, format!("rotate the key of `{shown}`")).because(why);
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(node.node.clone()),
        (None, _) => Err(failure("no member has this name or id").hint("see `bmctl keys status`")),
        _ => {
            Err(failure("several members have this name")
                .hint("name it by its node id: see `bmctl keys status`"))
        }
    }
}

/// How far the nodes of an order are.
async fn report(client: &Client, order: &KeyOrder) -> Result<Outcome, Failure> {
    Ok(sort(look(client).await?, order))
}

fn sort(view: KeysView, order: &KeyOrder) -> Outcome {
    let meant = view.nodes.into_iter().filter(|node| order.names(&node.node));
    let (rotated, old) = meant.partition(|node| node.as_of >= order.id);
    Outcome {
        result: "accepted",
        order: order.id.clone(),
        rotated,
        old,
    }
}

/// Until all nodes of the order have obeyed. At the end of the time, what there is, and the failure that says so.
async fn wait(
    client: &Client,
    order: &KeyOrder,
    patience: Duration,
) -> Result<(Outcome, Option<Failure>), Failure> {
    let end = Instant::now() + patience;
    let mut said = None;
    let mut last = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let state = last
                .as_ref()
                .map_or_else(|| "no node has answered".to_owned(), still_old);
            let failure = Failure::new(Class::TimedOut, "wait until all keys are rotated")
                .because(format!("timed out after {patience:?}: {state}"))
                .hint("the order stands: nodes that are off obey it when they come back; see `bmctl keys status`");
            return match last {
                Some(outcome) => Ok((outcome, Some(failure))),
                None => Err(failure),
            };
        }
        match client.clone().with_timeout(left).keys().await {
            Ok(view) => {
                let outcome = sort(view, order);
                if outcome.old.is_empty() && !outcome.rotated.is_empty() {
                    return Ok((outcome, None));
                }
                let progress = (outcome.rotated.len(), outcome.old.len());
                if said != Some(progress) {
                    said = Some(progress);
                    let all = progress.0 + progress.1;
                    note(&format!("waiting: {} of {all} keys rotated", progress.0));
                }
                if outcome.old.iter().all(|node| node.used_up) && !outcome.old.is_empty() {
                    let failure = Failure::new(Class::Failed, WHAT).because(still_old(&outcome)).hint(
                        "a node whose keys are used up is revoked, reset, and joins again by a new voucher",
                    );
                    return Ok((outcome, Some(failure)));
                }
                last = Some(outcome);
            }
            // The node that is asked may change its own key at this moment.
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error.into_failure(WHAT)),
        }
        sleep(PAUSE.min(left)).await;
    }
}

fn still_old(outcome: &Outcome) -> String {
    let named = outcome.old.iter().take(NAMED).map(|node| match node.used_up {
        true => format!("{} (used up)", node.name),
        false => format!("{} ({})", node.name, status_word(node.status)),
    });
    let named: Vec<_> = named.collect();
    let more = outcome.old.len().saturating_sub(NAMED);
    let more = match more {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    crate::failure::one_line(&format!(
        "{} keys are old: {}{more}",
        outcome.old.len(),
        named.join(", ")
    ))
}
