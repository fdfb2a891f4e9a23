//! The commands. Each asks the node through the client and prints the answer; none decides about the fabric.

mod boot;
mod change;
mod container;
mod keys;
mod list;
mod manifest;
mod network;
mod petition;
mod revocation;
mod roots;
mod system_log;
mod wait;

use crate::args::{
    Bmctl, Command, ContainerArgs, Format, ImagesCommand, KeysCommand, NetworkCommand, NodesCommand,
};
use crate::failure::{Class, Failure};
use crate::session::Session;
use std::time::Duration;

/// Patience for what moves much data or runs a foreign command.
const LONG: Duration = Duration::from_secs(600);

/// Runs one command line. Gives the exit code: 0, or that of a command run by `exec`.
///
/// # Errors
/// What could not be done, with its class.
pub async fn run(line: Bmctl) -> Result<u8, Failure> {
    let session = Session::new(line.global);
    let of_a_node = match &line.command {
        Command::Logs { pod, .. } => pod.is_none(),
        command => matches!(command, Command::Dmesg { .. }),
    };
    if session.global.output == Format::Export && !of_a_node {
        return Err(
            Failure::new(Class::Invalid, "`-o export` is for a node's own log")
                .hint("bmctl logs --system -o export"),
        );
    }
    match line.command {
        Command::Nodes { command: None } => list::nodes(&session).await?,
        Command::Nodes {
            command: Some(NodesCommand::Ek),
        } => revocation::endorsement(&session).await?,
        Command::Nodes {
            command: Some(NodesCommand::Pending),
        } => petition::pending(&session).await?,
        Command::Nodes {
            command: Some(NodesCommand::Approve { code, name, dry_run }),
        } => petition::approve(&session, &code, name, dry_run).await?,
        Command::Nodes {
            command: Some(NodesCommand::Deny { code, dry_run }),
        } => petition::deny(&session, &code, dry_run).await?,
        Command::Nodes {
            command: Some(NodesCommand::Show { node }),
        } => boot::show(&session, &node).await?,
        Command::Nodes {
            command:
                Some(NodesCommand::Accept {
                    node,
                    reason,
                    digest,
                    dry_run,
                }),
        } => {
            let how = boot::How {
                reason,
                digest,
                dry_run,
            };
            boot::accept(&session, &node, how).await?;
        }
        Command::Keys {
            command: KeysCommand::Roots { command },
        } => roots::run(&session, command).await?,
        Command::Keys {
            command: KeysCommand::Status,
        } => keys::status(&session).await?,
        Command::Keys {
            command:
                KeysCommand::Rotate {
                    nodes,
                    all: _,
                    wait,
                    dry_run,
                },
        } => keys::rotate(&session, &nodes, keys::How { wait, dry_run }).await?,
        Command::Revocations => revocation::show(&session).await?,
        Command::Revoke {
            targets,
            file,
            dry_run,
        } => match file {
            Some(file) => revocation::send_file(&session, &file, dry_run).await?,
            None => revocation::revoke(&session, &targets, dry_run).await?,
        },
        Command::Pods {
            namespace,
            all_namespaces,
        } => {
            let namespace = if all_namespaces {
                None
            } else {
                Some(path_name("namespace", &namespace)?)
            };
            list::pods(&session, namespace).await?;
        }
        Command::Events { follow: false } => list::events(&session).await?,
        Command::Events { follow: true } => list::follow_events(&session).await?,
        Command::Network { command } => match command {
            NetworkCommand::Show => network::show(&session).await?,
            NetworkCommand::Try {
                file,
                duration,
                dry_run,
            } => network::try_settings(&session, &file, duration, dry_run).await?,
            NetworkCommand::Confirm { dry_run } => network::confirm(&session, dry_run).await?,
        },
        Command::Time => network::time(&session).await?,
        Command::Images { command: None } => list::images(&session).await?,
        Command::Images {
            command: Some(ImagesCommand::Import { file }),
        } => list::import(&session, &file).await?,
        Command::Apply { file, change } => change::apply(&session, &file, change).await?,
        Command::Delete {
            targets,
            file,
            namespace,
            change,
        } => {
            change::delete(&session, &targets, &file, &namespace, change).await?;
        }
        Command::Logs {
            follow,
            tail,
            timestamps,
            namespace,
            container,
            pod,
            whose,
            which,
        } => {
            let options = crate::client::LogOptions { follow, tail };
            match pod {
                Some(pod) => {
                    let target = ContainerArgs {
                        namespace,
                        container,
                        pod,
                    };
                    container::logs(&session, &target, options, timestamps).await?;
                }
                None => system_log::logs(&session, &whose, &which, options).await?,
            }
        }
        Command::Dmesg { follow, tail, which } => {
            system_log::dmesg(&session, &which, crate::client::LogOptions { follow, tail }).await?;
        }
        Command::Exec { stdin, target, argv } => {
            return container::exec(&session, &target, argv, stdin).await;
        }
    }
    Ok(0)
}

/// `name`, if it can be the name of a `what`.
fn path_name<'a>(what: &str, name: &'a str) -> Result<&'a str, Failure> {
    if crate::client::is_path_name(name) {
        return Ok(name);
    }
    let shown: String = name.chars().take(80).collect();
    Err(
        Failure::new(Class::Invalid, format!("`{shown}` is not the name of a {what}"))
            .hint("names are made of a-z, 0-9, `-` and `.`, and begin and end with a letter or digit"),
    )
}
