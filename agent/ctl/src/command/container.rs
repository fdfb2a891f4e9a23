//! What concerns one container: its output, and commands run in it.

use super::{LONG, path_name};
use crate::args::{ContainerArgs, Format};
use crate::client::{Client, ClientError, LogOptions};
use crate::failure::{Class, Failure};
use crate::output::{note, print, render_item, render_list};
use crate::session::Session;
use crate::table;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_agent_api::view::{ExecReply, ExecRequest, path};
use std::io::{self, Read as _, Write as _};

/// Most standard input that `exec -i` passes on, in bytes (the bound of [`ExecRequest::stdin`]).
const STDIN_LIMIT: u64 = 1 << 20;

pub(super) async fn logs(
    session: &Session,
    target: &ContainerArgs,
    options: LogOptions,
    timestamps: bool,
) -> Result<(), Failure> {
    let what = format!("show the logs of `{}`", target.pod);
    let client = session.client()?;
    let (pod, container) = find(&client, target, &what).await?;
    let names = (target.namespace.as_str(), pod, container.as_str());
    let mut lines = client
        .logs(names, options)
        .await
        .map_err(|error| error.into_failure(&what))?;
    while let Some(line) = lines.next().await.map_err(|error| error.into_failure(&what))? {
        print(render_item(session.global.output, &line, |line| {
            table::log_line(line, timestamps)
        })?)?;
    }
    Ok(())
}

/// Gives the command's exit code.
pub(super) async fn exec(
    session: &Session,
    target: &ContainerArgs,
    argv: Vec<String>,
    with_stdin: bool,
) -> Result<u8, Failure> {
    let what = format!(
        "run `{}` in `{}`",
        argv.first().map_or("", String::as_str),
        target.pod
    );
    let stdin = if with_stdin {
        STANDARD.encode(read_stdin(&what)?)
    } else {
        String::new()
    };
    let client = session.client_with(LONG)?;
    let (pod, container) = find(&client, target, &what).await?;
    let names = (target.namespace.as_str(), pod, container.as_str());
    let reply = client
        .exec(names, &ExecRequest { argv, stdin })
        .await
        .map_err(|error| error.into_failure(&what))?;
    match session.global.output {
        Format::Table => show(&reply).map_err(|error| error.into_failure(&what))??,
        // A list of one, as every other command prints lists.
        format => print(render_list(format, std::slice::from_ref(&reply), |_| {
            String::new()
        })?)?,
    }
    // Codes outside 0..=255 cannot be those of a process: 255 says "not 0" without lying about which.
    Ok(u8::try_from(reply.code).unwrap_or(u8::MAX))
}

fn show(reply: &ExecReply) -> Result<Result<(), Failure>, ClientError> {
    let decode = |field, text: &str| {
        STANDARD.decode(text).map_err(|_| ClientError::Base64 {
            path: path::EXEC.to_owned(),
            field,
        })
    };
    let (stdout, stderr) = (decode("stdout", &reply.stdout)?, decode("stderr", &reply.stderr)?);
    // As with `note`: standard error that nobody reads is not worth a failure.
    let _ = io::stderr().lock().write_all(&stderr);
    let printed = print(stdout);
    if reply.truncated {
        note("bmctl: the output was longer than 8 MiB and is cut");
    }
    Ok(printed)
}

fn read_stdin(what: &str) -> Result<Vec<u8>, Failure> {
    let mut input = Vec::new();
    let read = io::stdin().lock().take(STDIN_LIMIT + 1).read_to_end(&mut input);
    read.map_err(|error| {
        Failure::new(Class::Failed, what)
            .because("read standard input")
            .because(error)
    })?;
    if input.len() as u64 > STDIN_LIMIT {
        return Err(Failure::new(Class::Invalid, what)
            .because("standard input is longer than 1 MiB")
            .hint("split it, or let the command in the container fetch it"));
    }
    Ok(input)
}

/// The pod's and the container's name; asks the node for the pod's containers where none is given.
async fn find<'a>(
    client: &Client,
    target: &'a ContainerArgs,
    what: &str,
) -> Result<(&'a str, String), Failure> {
    path_name("namespace", &target.namespace)?;
    let pod = path_name("pod", target.pod.strip_prefix("pod/").unwrap_or(&target.pod))?;
    if let Some(container) = &target.container {
        return Ok((pod, path_name("container", container)?.to_owned()));
    }
    let pods = client.pods().await.map_err(|error| error.into_failure(what))?;
    let failed = |why: String| Failure::new(Class::Failed, what).because(why);
    let namespace = &target.namespace;
    // Of several copies (an old one may still be draining) the one that runs is meant.
    let found = pods
        .iter()
        .filter(|view| view.workload.namespace == *namespace && view.name == pod)
        .max_by_key(|view| (view.ready, view.containers.len()))
        .ok_or_else(|| {
            failed(format!("no such pod in the namespace `{namespace}`"))
                .hint("see what is there: bmctl pods -A")
        })?;
    let Some(first) = found.containers.first() else {
        let reason = found.reason.as_deref().unwrap_or("it is not placed yet");
        return Err(failed(format!("the pod has no container yet: {reason}")));
    };
    let container = path_name("container", &first.name)?.to_owned();
    if found.containers.len() > 1 {
        let names: Vec<&str> = found
            .containers
            .iter()
            .map(|container| container.name.as_str())
            .collect();
        note(&crate::failure::one_line(&format!(
            "container `{container}` of {}; choose another with -c",
            names.join(", ")
        )));
    }
    Ok((pod, container))
}
