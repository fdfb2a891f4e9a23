//! The network settings and the time of one node: shows them, and tries and confirms settings, signed like every change.
//!
//! Settings are checked before anything is sent, by the rules that the node applies too.

use super::manifest::read_text;
use crate::args::Format;
use crate::client::Client;
use crate::failure::{Class, Failure};
use crate::output::{note, print, render_document};
use crate::session::Session;
use crate::table;
use beemesh_agent_api::manifest::MAX_SIZE;
use beemesh_agent_api::network::{NetworkAction, NetworkChange, NetworkView};
use beemesh_ids::NodeName;
use beemesh_init_api::NetworkConfig;
use beemesh_joinpack_format::dsse::Envelope;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// A change and its signed form: what a dry run prints.
#[derive(Serialize)]
struct Signed {
    change: NetworkChange,
    envelope: Envelope,
}

/// What became of a change.
#[derive(Serialize)]
struct Outcome {
    node: NodeName,
    trial: String,
    action: &'static str,
    result: &'static str,
}

pub(super) async fn show(session: &Session) -> Result<(), Failure> {
    let view = look(&session.client()?).await?;
    print(render_document(session.global.output, &view, table::network)?)
}

pub(super) async fn time(session: &Session) -> Result<(), Failure> {
    let view = session.client()?.time().await;
    let view = view.map_err(|error| error.into_failure("show the time"))?;
    print(render_document(session.global.output, &view, table::clock)?)
}

pub(super) async fn try_settings(
    session: &Session,
    file: &Path,
    duration: Duration,
    dry_run: bool,
) -> Result<(), Failure> {
    let config = read_settings(file)?;
    let for_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let client = session.client()?;
    let node = member(look(&client).await?)?.0;
    let action = NetworkAction::Try { config, for_ms };
    let Some(id) = send(session, &client, node, action, dry_run).await? else {
        return Ok(());
    };
    note(&format!(
        "trial {id} runs: look with `bmctl network show`, keep it with `bmctl network confirm` within {}s",
        duration.as_secs()
    ));
    Ok(())
}

pub(super) async fn confirm(session: &Session, dry_run: bool) -> Result<(), Failure> {
    let client = session.client()?;
    let (node, view) = member(look(&client).await?)?;
    let trial = view.trial.ok_or_else(|| {
        Failure::new(Class::Failed, "confirm the network settings")
            .because("no trial runs")
            .hint("it was confirmed already or its time was over: run `bmctl network try` again")
    })?;
    let action = NetworkAction::Confirm { trial: trial.id };
    send(session, &client, node, action, dry_run).await.map(drop)
}

async fn look(client: &Client) -> Result<NetworkView, Failure> {
    let view = client.network().await;
    view.map_err(|error| error.into_failure("show the network"))
}

fn member(view: NetworkView) -> Result<(NodeName, NetworkView), Failure> {
    let node = view.node.clone().ok_or_else(|| {
        Failure::new(Class::Failed, "change the network settings")
            .because("this box is not a member of a fabric yet")
            .hint("insert a join stick; its pack may hold network settings")
    })?;
    Ok((node, view))
}

/// Signs and sends; gives the change's id, `None` after a dry run.
async fn send(
    session: &Session,
    client: &Client,
    node: NodeName,
    action: NetworkAction,
    dry_run: bool,
) -> Result<Option<String>, Failure> {
    let (verb, what) = match action {
        NetworkAction::Try { .. } => ("try", "try the network settings"),
        NetworkAction::Confirm { .. } => ("confirm", "confirm the network settings"),
    };
    let operator = session.operator()?;
    let id = ulid::Generator::new().generate();
    let id = id
        .map_err(|error| Failure::new(Class::Failed, what).because(error))?
        .to_string();
    let trial = match &action {
        NetworkAction::Try { .. } => id.clone(),
        NetworkAction::Confirm { trial } => trial.clone(),
    };
    let change = NetworkChange {
        id: id.clone(),
        fabric: operator.fabric(),
        node: node.clone(),
        action,
    };
    let envelope = operator.sign(&change);
    let envelope = envelope.map_err(|error| error.into_failure(what))?;
    let outcome = |result| Outcome {
        node,
        trial,
        action: verb,
        result,
    };
    let row = |outcome: &Outcome| {
        let cells = [
            outcome.node.as_str(),
            outcome.action,
            &outcome.trial,
            outcome.result,
        ];
        table::draw(
            &["NODE", "ACTION", "TRIAL", "RESULT"],
            [cells.map(str::to_owned).to_vec()],
        )
    };
    if dry_run {
        if session.global.output == Format::Table {
            print(row(&outcome("not sent")))?;
            note("dry run: nothing was sent; -o yaml shows the change and its signature");
        } else {
            print(render_document(
                session.global.output,
                &Signed { change, envelope },
                |_| String::new(),
            )?)?;
        }
        return Ok(None);
    }
    let sent = client.submit_network(envelope.to_json()).await;
    sent.map_err(|error| error.into_failure(what))?;
    print(render_document(session.global.output, &outcome("accepted"), row)?)?;
    Ok(Some(id))
}

fn read_settings(path: &Path) -> Result<NetworkConfig, Failure> {
    let shown = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        format!("`{}`", path.display())
    };
    let invalid = || Failure::new(Class::Invalid, format!("network settings in {shown}"));
    let hint = "see the example of `bmctl network --help`";
    let text = read_text(path).map_err(|error| invalid().because(error).hint(hint))?;
    if text.len() > MAX_SIZE {
        return Err(invalid().because(format!("it is larger than {MAX_SIZE} bytes")));
    }
    let config: NetworkConfig =
        serde_saphyr::from_str(&text).map_err(|error| invalid().because(error.to_string()).hint(hint))?;
    config.check().map_err(|error| invalid().because(error))?;
    Ok(config)
}
