//! Which values a workload may have. Run on every manifest that is read and on every change that is taken in: a
//! signature says who asked, not that it makes sense.

use crate::assurance::{ASSURANCE_SELECTOR, DEMANDS};
use crate::fault::{ManifestError, ManifestFault};
use crate::manifest::{Container, PodSpec, RestartPolicy};
use crate::record::{WorkloadKind, WorkloadSpec};
use std::collections::{BTreeMap, BTreeSet};

/// Most replicas of one workload.
pub const MAX_REPLICAS: u32 = 1000;
/// Most containers of one pod.
pub const MAX_CONTAINERS: usize = 16;
/// Most ports, variables or arguments of one container.
pub const MAX_ITEMS: usize = 256;
/// Longest grace period in seconds.
pub const MAX_GRACE_SECONDS: u32 = 3600;
/// Longest text of one argument or variable, in bytes.
pub const MAX_TEXT: usize = 32 * 1024;

type Checked = Result<(), ManifestError>;

fn invalid(path: &str, what: impl Into<String>, hint: &str) -> Checked {
    Err(ManifestError::at(path, ManifestFault::Invalid(what.into()), hint))
}

/// Checks every value of `spec`.
///
/// # Errors
/// The first [`ManifestError`], with its path as in the manifest that `spec` came from.
pub fn check_workload(spec: &WorkloadSpec) -> Result<(), ManifestError> {
    // A Deployment's pods are named `name-ordinal`, and a host name has at most 63 characters.
    let longest = if spec.id.kind == WorkloadKind::Deployment {
        58
    } else {
        63
    };
    dns_label("metadata.name", &spec.id.name, longest)?;
    dns_label("metadata.namespace", &spec.id.namespace, 63)?;
    let (labels, pod) = match spec.id.kind {
        WorkloadKind::Pod => ("metadata.labels", "spec"),
        WorkloadKind::Deployment => ("spec.template.metadata.labels", "spec.template.spec"),
    };
    let most = if spec.id.kind == WorkloadKind::Pod {
        1
    } else {
        MAX_REPLICAS
    };
    if spec.replicas > most {
        return invalid(
            "spec.replicas",
            format!("{} replicas, at most {most} are allowed", spec.replicas),
            "",
        );
    }
    check_labels(labels, &spec.labels)?;
    if spec.id.kind == WorkloadKind::Deployment && spec.pod.restart_policy != RestartPolicy::Always {
        let path = format!("{pod}.restartPolicy");
        return invalid(
            &path,
            "a Deployment restarts its pods: only `Always` is allowed",
            "use a Pod",
        );
    }
    check_pod(pod, &spec.pod)
}

fn check_pod(at: &str, pod: &PodSpec) -> Checked {
    let containers = format!("{at}.containers");
    if pod.containers.is_empty() || pod.containers.len() > MAX_CONTAINERS {
        return invalid(
            &containers,
            format!(
                "{} containers, expected 1 to {MAX_CONTAINERS}",
                pod.containers.len()
            ),
            "",
        );
    }
    if pod.termination_grace_period_seconds > MAX_GRACE_SECONDS {
        let path = format!("{at}.terminationGracePeriodSeconds");
        return invalid(
            &path,
            format!("at most {MAX_GRACE_SECONDS} seconds are allowed"),
            "",
        );
    }
    check_labels(&format!("{at}.nodeSelector"), &pod.node_selector)?;
    let demanded = pod.node_selector.get(ASSURANCE_SELECTOR);
    if let Some(demanded) = demanded.filter(|word| !DEMANDS.contains(&word.as_str())) {
        let path = format!("{at}.nodeSelector.{ASSURANCE_SELECTOR}");
        let what = format!("`{demanded}` cannot be demanded of a node");
        return invalid(
            &path,
            what,
            "use `trusted`, or `tpm` for at least a TPM that is proven",
        );
    }
    if let Some(hostname) = &pod.hostname {
        dns_label(&format!("{at}.hostname"), hostname, 63)?;
    }
    let mut names = BTreeSet::new();
    let mut ports = Ports::default();
    for (index, container) in pod.containers.iter().enumerate() {
        let at = format!("{containers}[{index}]");
        check_container(&at, container)?;
        if !names.insert(&container.name) {
            return duplicate(&format!("{at}.name"), &container.name);
        }
        ports.check(&at, container)?;
    }
    Ok(())
}

fn check_container(at: &str, container: &Container) -> Checked {
    dns_label(&format!("{at}.name"), &container.name, 63)?;
    let image = &container.image;
    if image.is_empty() || image.len() > 255 || image.chars().any(|c| !c.is_ascii_graphic()) {
        let what = "not an image reference: expected up to 255 visible ASCII characters";
        return invalid(
            &format!("{at}.image"),
            what,
            "for example `nginx:1.22` or `sha256:…`",
        );
    }
    for (field, list) in [("command", &container.command), ("args", &container.args)] {
        let list = list.as_deref().unwrap_or_default();
        bounded(&format!("{at}.{field}"), list.len())?;
        for (index, text) in list.iter().enumerate() {
            check_text(&format!("{at}.{field}[{index}]"), text)?;
        }
    }
    if container
        .command
        .as_ref()
        .and_then(|command| command.first())
        .is_some_and(String::is_empty)
    {
        return invalid(
            &format!("{at}.command[0]"),
            "empty",
            "the first entry names the program",
        );
    }
    bounded(&format!("{at}.env"), container.env.len())?;
    let mut names = BTreeSet::new();
    for (index, variable) in container.env.iter().enumerate() {
        let at = format!("{at}.env[{index}]");
        let name = &variable.name;
        if name.is_empty() || name.len() > 255 || name.chars().any(|c| c == '=' || !c.is_ascii_graphic()) {
            return invalid(
                &format!("{at}.name"),
                format!("`{}` is not a variable's name", cut(name)),
                "",
            );
        }
        check_text(&format!("{at}.value"), &variable.value)?;
        if !names.insert(name) {
            return duplicate(&format!("{at}.name"), name);
        }
    }
    if let Some(dir) = &container.working_dir {
        check_text(&format!("{at}.workingDir"), dir)?;
        if !dir.starts_with('/') || dir.split('/').any(|part| part == "..") {
            return invalid(
                &format!("{at}.workingDir"),
                format!("`{}` is not absolute and free of `..`", cut(dir)),
                "",
            );
        }
    }
    check_resources(&format!("{at}.resources"), container)
}

fn check_resources(at: &str, container: &Container) -> Checked {
    let (requests, limits) = (&container.resources.requests, &container.resources.limits);
    if requests.pids.is_some() {
        let path = format!("{at}.requests.beemesh.org/pids");
        return invalid(
            &path,
            "processes cannot be requested, only limited",
            "move it to `limits`",
        );
    }
    for (name, request, limit) in [
        ("cpu", requests.cpu, limits.cpu),
        ("memory", requests.memory, limits.memory),
    ] {
        if limit == Some(0) {
            return invalid(
                &format!("{at}.limits.{name}"),
                "a limit of 0 lets nothing run",
                "leave it out for no limit",
            );
        }
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            return invalid(
                &format!("{at}.requests.{name}"),
                "greater than the limit",
                "raise the limit",
            );
        }
    }
    if limits.pids == Some(0) {
        return invalid(
            &format!("{at}.limits.beemesh.org/pids"),
            "a limit of 0 lets nothing run",
            "",
        );
    }
    Ok(())
}

/// Ports of one pod: names and node ports are unique in it, container ports in each container.
#[derive(Default)]
struct Ports {
    names: BTreeSet<String>,
    host: BTreeSet<u16>,
}

impl Ports {
    fn check(&mut self, at: &str, container: &Container) -> Checked {
        bounded(&format!("{at}.ports"), container.ports.len())?;
        let mut inside = BTreeSet::new();
        for (index, port) in container.ports.iter().enumerate() {
            let at = format!("{at}.ports[{index}]");
            if port.container_port == 0 {
                return invalid(
                    &format!("{at}.containerPort"),
                    "0 is not a port: expected 1 to 65535",
                    "",
                );
            }
            if !inside.insert(port.container_port) {
                return duplicate(&format!("{at}.containerPort"), &port.container_port.to_string());
            }
            if let Some(host) = port.host_port {
                // 0 asks for any free port: several may.
                if host != 0 && !self.host.insert(host) {
                    return duplicate(&format!("{at}.hostPort"), &host.to_string());
                }
            }
            if let Some(name) = &port.name {
                dns_label(&format!("{at}.name"), name, 15)?;
                if !self.names.insert(name.clone()) {
                    return duplicate(&format!("{at}.name"), name);
                }
            }
        }
        Ok(())
    }
}

fn check_labels(at: &str, labels: &BTreeMap<String, String>) -> Checked {
    bounded(at, labels.len())?;
    let name_ok = |text: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= 63
            && edge(text.chars().next())
            && edge(text.chars().next_back())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    for (key, value) in labels {
        let (prefix, name) = key
            .split_once('/')
            .map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        let prefix_ok = prefix.is_none_or(|prefix| {
            prefix.len() <= 253 && prefix.split('.').all(|part| dns_label("", part, 63).is_ok())
        });
        if !prefix_ok || !name_ok(name) {
            let hint = "a label's name has at most 63 of A-Z, a-z, 0-9, `-`, `_` and `.`, with an optional `domain/` before it";
            return invalid(at, format!("`{}` is not a label's name", cut(key)), hint);
        }
        if !value.is_empty() && !name_ok(value) {
            return invalid(
                &format!("{at}.{key}"),
                format!("`{}` is not a label's value", cut(value)),
                "",
            );
        }
    }
    Ok(())
}

fn dns_label(path: &str, text: &str, longest: usize) -> Checked {
    let inner = text
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if inner && !text.is_empty() && text.len() <= longest && !text.starts_with('-') && !text.ends_with('-') {
        return Ok(());
    }
    let hint = format!("expected 1 to {longest} of a-z, 0-9 and `-`, not starting or ending with `-`");
    invalid(path, format!("`{}` is not a DNS label", cut(text)), &hint)
}

fn check_text(path: &str, text: &str) -> Checked {
    if text.len() > MAX_TEXT || text.contains('\0') {
        return invalid(
            path,
            format!("longer than {MAX_TEXT} bytes or with a NUL in it"),
            "",
        );
    }
    Ok(())
}

fn bounded(path: &str, count: usize) -> Checked {
    if count > MAX_ITEMS {
        invalid(
            path,
            format!("{count} entries, at most {MAX_ITEMS} are allowed"),
            "",
        )
    } else {
        Ok(())
    }
}

fn duplicate(path: &str, value: &str) -> Checked {
    Err(ManifestError::at(path, ManifestFault::Duplicate(cut(value)), ""))
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}
