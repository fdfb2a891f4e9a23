//! Waits until workloads are as they were asked for, by looking at the pods again and again. It changes nothing.
//!
//! A node that is away for a moment is asked again until the time is over; a node that refuses ends the wait. What is
//! missing is decided by [`missing`], which knows no node and no clock.

use crate::client::Client;
use crate::failure::{Class, Failure};
use crate::output::note;
use crate::table;
use beemesh_agent_api::manifest::RestartPolicy;
use beemesh_agent_api::shim::Phase;
use beemesh_agent_api::view::PodView;
use beemesh_agent_api::{WorkloadId, WorkloadSpec};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long `--wait` waits where `--timeout` does not say.
pub(super) const WAIT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// How far a workload is from what its specification wants.
#[derive(Debug, PartialEq, Eq)]
enum Gap {
    /// Nothing is missing.
    None,
    /// Something is; a sentence says what.
    Some(String),
    /// It will never be reached; a sentence says why.
    Never(String),
}

/// Until all pods of all `specs` are ready, or have ended well where their restart policy lets them end.
pub(super) async fn wait_ready(
    client: &Client,
    specs: &[WorkloadSpec],
    patience: Duration,
) -> Result<(), Failure> {
    poll(client, patience, "wait until all pods are ready", |pods| {
        first_gap(specs.iter().map(|spec| missing(spec, pods)))
    })
    .await
}

/// Until no pod of `ids` is left.
pub(super) async fn wait_gone(
    client: &Client,
    ids: &[WorkloadId],
    patience: Duration,
) -> Result<(), Failure> {
    poll(client, patience, "wait until all pods are gone", |pods| {
        first_gap(
            ids.iter()
                .map(|id| match pods.iter().filter(|pod| pod.workload == *id).count() {
                    0 => Gap::None,
                    left => Gap::Some(format!("{id}: {left} pods are left")),
                }),
        )
    })
    .await
}

/// What is never reached first, then what is missing.
fn first_gap(gaps: impl Iterator<Item = Gap>) -> Gap {
    let mut first = Gap::None;
    for gap in gaps {
        match gap {
            Gap::Never(why) => return Gap::Never(why),
            Gap::Some(what) if first == Gap::None => first = Gap::Some(what),
            _ => {}
        }
    }
    first
}

async fn poll(
    client: &Client,
    patience: Duration,
    what: &str,
    look: impl Fn(&[PodView]) -> Gap,
) -> Result<(), Failure> {
    let end = Instant::now() + patience;
    let mut state = "no node has answered".to_owned();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::new(Class::TimedOut, what)
                .because(format!("timed out after {patience:?}: {state}"))
                .hint("see more with `bmctl pods -A` and `bmctl events`, or wait longer with --timeout"));
        }
        let seen = match client.clone().with_timeout(left).pods().await {
            Ok(pods) => match look(&pods) {
                Gap::None => return Ok(()),
                Gap::Some(seen) => seen,
                Gap::Never(why) => return Err(Failure::new(Class::Failed, what).because(why)),
            },
            Err(error) if error.is_transient() => error.to_string(),
            Err(error) => return Err(error.into_failure(what)),
        };
        if seen != state {
            note(&format!("waiting: {}", crate::failure::one_line(&seen)));
            state = seen;
        }
        sleep(PAUSE.min(left)).await;
    }
}

/// What `spec` lacks among `pods`.
fn missing(spec: &WorkloadSpec, pods: &[PodView]) -> Gap {
    let may_end = spec.pod.restart_policy != RestartPolicy::Always;
    let mut done = BTreeSet::new();
    let mut problem = None;
    for pod in pods
        .iter()
        .filter(|pod| pod.workload == spec.id && pod.ordinal < spec.replicas)
    {
        if pod.ready || (may_end && pod.phase == Phase::Succeeded) {
            done.insert(pod.ordinal);
            continue;
        }
        let why = why(pod);
        if spec.pod.restart_policy == RestartPolicy::Never && pod.phase == Phase::Failed {
            return Gap::Never(format!("{}: pod `{}` failed: {why}", spec.id, pod.name));
        }
        problem.get_or_insert_with(|| format!("; {}: {why}", pod.name));
    }
    if done.len() == spec.replicas as usize {
        return Gap::None;
    }
    let problem = problem.unwrap_or_default();
    Gap::Some(format!(
        "{}: {} of {} pods ready{problem}",
        spec.id,
        done.len(),
        spec.replicas
    ))
}

/// The best words there are for why `pod` is not ready.
fn why(pod: &PodView) -> String {
    if let Some(reason) = &pod.reason {
        return reason.clone();
    }
    for container in &pod.containers {
        if let Some(error) = &container.error {
            return format!("container `{}`: {error}", container.name);
        }
        if let Some(exit) = &container.exit {
            let oom = if exit.oom { ", out of memory" } else { "" };
            return format!("container `{}` ended with {}{oom}", container.name, exit.code);
        }
    }
    match &pod.node {
        Some(node) => format!("{} on {node}", table::phase(pod.phase)),
        None => "not placed yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_api::parse_manifests;
    use beemesh_agent_api::shim::{ContainerExit, ContainerState};

    fn spec(policy: &str, kind: &str) -> WorkloadSpec {
        let pod = format!("{{restartPolicy: {policy}, containers: [{{name: c, image: i}}]}}");
        let text = match kind {
            "Pod" => format!("{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {pod}}}"),
            _ => format!(
                "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: a}}, spec: {{replicas: 2, selector: \
                 {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {pod}}}}}}}"
            ),
        };
        parse_manifests(&text).unwrap().remove(0)
    }

    fn pod(spec: &WorkloadSpec, ordinal: u32, phase: Phase, ready: bool) -> PodView {
        PodView {
            workload: spec.id.clone(),
            ordinal,
            name: spec.id.pod_name(ordinal),
            pod_id: None,
            node: None,
            phase,
            ready,
            ip: None,
            ports: Vec::new(),
            containers: Vec::new(),
            start_ms: None,
            reason: None,
        }
    }

    #[test]
    fn a_workload_is_ready_when_every_ordinal_is() {
        let spec = spec("Always", "Deployment");
        let ready = |ordinal| pod(&spec, ordinal, Phase::Running, true);
        let some = |text: &str| Gap::Some(text.to_owned());
        assert_eq!(
            missing(&spec, &[]),
            some("default/deployment/a: 0 of 2 pods ready")
        );
        let twice = [ready(0), ready(0)];
        assert_eq!(
            missing(&spec, &twice),
            some("default/deployment/a: 1 of 2 pods ready")
        );
        let surplus = [ready(0), ready(2)];
        assert_eq!(
            missing(&spec, &surplus),
            some("default/deployment/a: 1 of 2 pods ready")
        );
        assert_eq!(missing(&spec, &[ready(1), ready(0)]), Gap::None);
    }

    #[test]
    fn what_may_end_is_done_when_it_ended_well_and_lost_when_it_may_not_run_again() {
        let never = spec("Never", "Pod");
        assert_eq!(
            missing(&never, &[pod(&never, 0, Phase::Succeeded, false)]),
            Gap::None
        );
        let mut failed = pod(&never, 0, Phase::Failed, false);
        failed.containers.push(ContainerState {
            name: "c".into(),
            pid: None,
            restarts: 0,
            started_ms: None,
            exit: Some(ContainerExit {
                code: 137,
                signal: Some(9),
                oom: true,
                at_ms: 0,
            }),
            error: None,
        });
        let why = "default/pod/a: pod `a` failed: container `c` ended with 137, out of memory";
        assert_eq!(missing(&never, &[failed]), Gap::Never(why.into()));
        let always = spec("Always", "Pod");
        assert!(matches!(
            missing(&always, &[pod(&always, 0, Phase::Succeeded, false)]),
            Gap::Some(_)
        ));
    }
}
