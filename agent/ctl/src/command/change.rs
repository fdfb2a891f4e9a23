//! `apply` and `delete`: turns workloads into changes, signs each and sends it. Nothing is sent before all are signed.
//!
//! Changes are sent one after the other; where one is refused, those before it stand and are printed. Change ids rise
//! within a run.

use super::manifest::read_manifests;
use super::path_name;
use super::wait::{WAIT, wait_gone, wait_ready};
use crate::args::{ChangeArgs, Format};
use crate::client::Client;
use crate::context::Operator;
use crate::failure::{Class, Failure};
use crate::output::{note, print, render_list};
use crate::session::Session;
use crate::table;
use beemesh_agent_api::{Change, WorkloadId, WorkloadKind, WorkloadSpec};
use beemesh_joinpack_format::dsse::Envelope;
use serde::Serialize;
use std::path::PathBuf;

/// A change and its signed form: what a dry run prints.
#[derive(Serialize)]
struct Signed {
    change: Change,
    envelope: Envelope,
}

/// What became of a change.
#[derive(Serialize)]
struct Outcome<'a> {
    workload: &'a WorkloadId,
    action: &'static str,
    replicas: Option<u32>,
    change: &'a str,
    result: &'static str,
}

pub(super) async fn apply(session: &Session, files: &[PathBuf], how: ChangeArgs) -> Result<(), Failure> {
    let specs = read_manifests(files)?;
    let changes = specs
        .iter()
        .map(|spec| (spec.id.clone(), Some(spec.clone())))
        .collect();
    let Some(client) = submit(session, changes, how.dry_run).await? else {
        return Ok(());
    };
    if how.wait {
        wait_ready(&client, &specs, session.global.timeout.unwrap_or(WAIT)).await?;
    }
    Ok(())
}

pub(super) async fn delete(
    session: &Session,
    targets: &[String],
    files: &[PathBuf],
    namespace: &str,
    how: ChangeArgs,
) -> Result<(), Failure> {
    path_name("namespace", namespace)?;
    let mut ids: Vec<WorkloadId> = read_manifests(files)?.into_iter().map(|spec| spec.id).collect();
    for target in targets {
        let id = parse_target(target, namespace)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let changes = ids.iter().map(|id| (id.clone(), None)).collect();
    let Some(client) = submit(session, changes, how.dry_run).await? else {
        return Ok(());
    };
    if how.wait {
        wait_gone(&client, &ids, session.global.timeout.unwrap_or(WAIT)).await?;
    }
    Ok(())
}

/// Signs all changes and sends them; gives the client for what comes after, `None` after a dry run.
async fn submit(
    session: &Session,
    changes: Vec<(WorkloadId, Option<WorkloadSpec>)>,
    dry_run: bool,
) -> Result<Option<Client>, Failure> {
    let operator = session.operator()?;
    let signed = sign_all(&operator, changes)?;
    if dry_run {
        match session.global.output {
            Format::Table => {
                print(outcomes(session.global.output, &signed, "not sent")?)?;
                note("dry run: nothing was sent; -o yaml shows the changes and their signatures");
            }
            format => print(render_list(format, &signed, |_| String::new())?)?,
        }
        return Ok(None);
    }
    let client = session.client()?;
    for (sent, item) in signed.iter().enumerate() {
        if let Err(error) = client.submit(item.envelope.to_json()).await {
            // Those before it are in force: say so before saying what failed.
            if sent > 0 {
                print(outcomes(session.global.output, &signed[..sent], "accepted")?)?;
            }
            let verb = if item.change.spec.is_some() {
                "apply"
            } else {
                "delete"
            };
            return Err(error.into_failure(format!("{verb} `{}`", item.change.workload)));
        }
    }
    print(outcomes(session.global.output, &signed, "accepted")?)?;
    Ok(Some(client))
}

fn sign_all(
    operator: &Operator,
    changes: Vec<(WorkloadId, Option<WorkloadSpec>)>,
) -> Result<Vec<Signed>, Failure> {
    let mut ids = ulid::Generator::new();
    let mut signed = Vec::with_capacity(changes.len());
    for (workload, spec) in changes {
        let what = format!("sign the change of `{workload}`");
        let id = ids
            .generate()
            .map_err(|error| Failure::new(Class::Failed, &what).because(error))?;
        let change = Change {
            id: id.to_string(),
            fabric: operator.fabric(),
            workload,
            spec,
        };
        let envelope = operator
            .sign(&change)
            .map_err(|error| error.into_failure(&what))?;
        signed.push(Signed { change, envelope });
    }
    Ok(signed)
}

fn outcomes(format: Format, signed: &[Signed], result: &'static str) -> Result<String, Failure> {
    let outcome = |item: &'_ Signed| -> (&'static str, Option<u32>) {
        match &item.change.spec {
            Some(spec) => ("apply", Some(spec.replicas)),
            None => ("delete", None),
        }
    };
    let list: Vec<Outcome<'_>> = signed
        .iter()
        .map(|item| {
            let (action, replicas) = outcome(item);
            Outcome {
                workload: &item.change.workload,
                action,
                replicas,
                change: &item.change.id,
                result,
            }
        })
        .collect();
    render_list(format, &list, |list| {
        let rows = list.iter().map(|row| {
            vec![
                row.workload.to_string(),
                row.action.to_owned(),
                row.replicas
                    .map_or_else(String::new, |replicas| replicas.to_string()),
                row.change.to_owned(),
                row.result.to_owned(),
            ]
        });
        table::draw(&["WORKLOAD", "ACTION", "REPLICAS", "CHANGE", "RESULT"], rows)
    })
}

/// `pod/NAME` or `deployment/NAME`, with the plurals and short forms that `kubectl` knows.
fn parse_target(target: &str, namespace: &str) -> Result<WorkloadId, Failure> {
    let refused = |why: &str| {
        let shown: String = target.chars().take(80).collect();
        Failure::new(Class::Invalid, format!("`{shown}` cannot be deleted"))
            .because(why.to_owned())
            .hint("write pod/NAME or deployment/NAME, for instance deployment/web")
    };
    let (kind, name) = target
        .split_once('/')
        .ok_or_else(|| refused("it does not say of which kind it is"))?;
    let kind = match kind.to_ascii_lowercase().as_str() {
        "pod" | "pods" | "po" => WorkloadKind::Pod,
        "deployment" | "deployments" | "deploy" => WorkloadKind::Deployment,
        _ => return Err(refused("there is no such kind of workload")),
    };
    let name = path_name("workload", name)?.to_owned();
    Ok(WorkloadId {
        namespace: namespace.to_owned(),
        kind,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_name_kind_and_workload() {
        for (text, id) in [
            ("pod/a", "x/pod/a"),
            ("deploy/b", "x/deployment/b"),
            ("Deployments/c", "x/deployment/c"),
        ] {
            assert_eq!(parse_target(text, "x").unwrap().to_string(), id);
        }
        for text in ["a", "pod/", "pod/a/b", "service/a", "/a", "pod/../a", ""] {
            assert_eq!(
                parse_target(text, "x").map_err(|failure| failure.class()),
                Err(Class::Invalid),
                "{text}"
            );
        }
    }
}
