//! What every [`Runtime`] promises, as claims that run against one.
//!
//! The claims see the trait alone, so the fake is held to what the real thing does. They need a runtime whose image
//! [`Subject::image`] has a shell ([`fake_behaviour`] plays its part for the fake). What only a kernel can show (isolation,
//! limits, recovery) is in the `runtime-contract` program.

use crate::fake::Act;
use crate::pod::{LogQuery, PodError, PodEvent, PodRequest, PodStatus, Runtime, StartError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use beemesh_agent_api::PodSpec;
use beemesh_agent_api::manifest::{Container, ContainerPort, Protocol, Resources, RestartPolicy};
use beemesh_agent_api::shim::Phase;
use beemesh_agent_api::view::{ExecReply, ExecRequest};
use futures::StreamExt;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The outcome of a claim: the error says what was seen instead.
pub type Outcome = Result<(), String>;
/// A claim: its name and the test of it.
pub type Claim = (&'static str, fn(Subject) -> BoxFuture<'static, Outcome>);

/// Runs until it is told to end.
pub const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
const RESIST: &str = "trap '' TERM; while :; do sleep 0.1; done";
const SPEAK: &str = "echo to out; echo to err >&2";
const COUNT: &str =
    "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done; trap 'exit 0' TERM; while :; do sleep 0.1; done";
const FAIL: &str = "exit 3";
const ECHO: &str = "cat; echo complaint >&2; exit 7";
/// Longest wait for something that should happen soon; an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is tested.
#[derive(Clone)]
pub struct Subject {
    /// The runtime.
    pub runtime: Arc<dyn Runtime>,
    /// An image with `/bin/sh`, `sleep`, `cat`.
    pub image: String,
}

/// The scripts above, as the fake plays them.
pub fn fake_behaviour(container: &Container) -> Vec<Act> {
    let line = |n: u32| {
        [
            Act::Out(format!("line {n}")),
            Act::Wait(Duration::from_millis(200)),
        ]
    };
    match container
        .command
        .as_deref()
        .and_then(|words| words.last())
        .map(String::as_str)
    {
        Some(RESIST) => vec![Act::Resist],
        Some(SPEAK) => vec![Act::Out("to out".into()), Act::Err("to err".into())],
        Some(COUNT) => (1..=5).flat_map(line).chain([Act::Stay]).collect(),
        Some(FAIL) => vec![Act::Exit(3)],
        _ => vec![Act::Stay],
    }
}

/// The commands that the claims run, as the fake answers them.
pub fn fake_commands(argv: &[String], input: &[u8]) -> (i32, Vec<u8>, Vec<u8>) {
    match argv.last().map(String::as_str) {
        Some(ECHO) => (7, input.to_vec(), b"complaint\n".to_vec()),
        _ => (0, Vec::new(), Vec::new()),
    }
}

/// A container of the subject's image that runs a shell script.
pub fn shell(subject: &Subject, name: &str, script: &str) -> Container {
    Container {
        name: name.into(),
        image: subject.image.clone(),
        command: Some(vec!["/bin/sh".into(), "-c".into(), script.into()]),
        args: None,
        env: Vec::new(),
        working_dir: None,
        ports: Vec::new(),
        resources: Resources::default(),
    }
}

/// A new pod of these containers.
pub fn request(containers: Vec<Container>, restart_policy: RestartPolicy) -> PodRequest {
    PodRequest {
        pod_id: ulid::Ulid::new().to_string(),
        namespace: "default".into(),
        workload: "claim".into(),
        ordinal: 0,
        name: "claim-0".into(),
        spec: PodSpec {
            containers,
            restart_policy,
            termination_grace_period_seconds: 5,
            node_selector: BTreeMap::new(),
            hostname: None,
        },
    }
}

/// A published port of a container.
pub fn port(host: u16, inside: u16) -> ContainerPort {
    ContainerPort {
        name: None,
        container_port: inside,
        host_port: Some(host),
        protocol: Protocol::Tcp,
    }
}

/// Fails the claim unless `seen` holds.
pub fn ensure(seen: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if seen { Ok(()) } else { Err(otherwise()) }
}

/// The text of an error.
pub fn text(err: impl std::fmt::Display) -> String {
    err.to_string()
}

impl Subject {
    /// Starts a pod of one script.
    pub async fn script(&self, script: &str, policy: RestartPolicy) -> Result<PodStatus, String> {
        self.runtime
            .start(request(vec![shell(self, "main", script)], policy))
            .await
            .map_err(text)
    }

    /// The pod as it is now.
    pub async fn pod(&self, id: &str) -> Option<PodStatus> {
        self.runtime
            .pods()
            .await
            .into_iter()
            .find(|pod| pod.request.pod_id == id)
    }

    /// Waits until the pod is as wanted.
    pub async fn until(&self, id: &str, wanted: impl Fn(&PodStatus) -> bool) -> Result<PodStatus, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.pod(id).await {
                Some(pod) if wanted(&pod) => return Ok(pod),
                other if Instant::now() > deadline => {
                    return Err(format!("still {:?}", other.map(|pod| pod.state)));
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Stops the pod.
    pub async fn end(&self, id: &str) -> Outcome {
        self.runtime.stop(id, Some(5)).await.map_err(text)
    }

    /// Runs a shell script in the pod's container `main`.
    pub async fn sh(&self, id: &str, script: &str, input: &[u8]) -> Result<ExecReply, PodError> {
        let argv = vec!["/bin/sh".into(), "-c".into(), script.into()];
        self.runtime
            .exec(
                id,
                "main",
                ExecRequest {
                    argv,
                    stdin: BASE64.encode(input),
                },
            )
            .await
    }

    /// What a shell script in the pod says on standard output, without the last line's end.
    pub async fn said(&self, id: &str, script: &str) -> Result<String, String> {
        let reply = self.sh(id, script, b"").await.map_err(text)?;
        let out = String::from_utf8_lossy(&BASE64.decode(&reply.stdout).map_err(text)?)
            .trim_end()
            .to_owned();
        let err = String::from_utf8_lossy(&BASE64.decode(&reply.stderr).map_err(text)?).into_owned();
        if reply.code == 0 {
            Ok(out)
        } else {
            Err(format!("`{script}` ended with {}: {out} {err}", reply.code))
        }
    }

    /// The lines of the log of `main`.
    pub async fn log(&self, id: &str, query: LogQuery) -> Result<Vec<(String, String)>, String> {
        let stream = self.runtime.logs(id, "main", query).await.map_err(text)?;
        let lines = stream.map(|line| (line.stream, line.line)).collect::<Vec<_>>();
        tokio::time::timeout(PATIENCE, lines)
            .await
            .map_err(|_| "the log does not end".into())
    }
}

/// All claims.
pub fn claims() -> Vec<Claim> {
    vec![
        ("a_started_pod_runs_with_an_address_and_is_listed", |s| {
            Box::pin(runs(s))
        }),
        ("a_pod_id_cannot_be_used_twice", |s| Box::pin(twice(s))),
        ("an_unknown_image_is_told_and_leaves_nothing", |s| {
            Box::pin(unknown_image(s))
        }),
        ("a_bad_request_is_refused", |s| Box::pin(bad_request(s))),
        ("both_streams_are_logged_and_the_code_0_is_success", |s| {
            Box::pin(streams(s))
        }),
        ("a_tail_gives_the_last_lines_and_a_follower_the_later_ones", |s| {
            Box::pin(follow(s))
        }),
        ("a_failure_under_never_stands_with_its_code", |s| {
            Box::pin(failure(s))
        }),
        ("a_failure_under_always_is_restarted_and_counted", |s| {
            Box::pin(restart(s))
        }),
        ("a_command_gets_its_input_and_gives_outputs_and_code", |s| {
            Box::pin(command(s))
        }),
        ("an_unknown_container_is_told", |s| Box::pin(unknown_container(s))),
        ("a_pod_that_resists_is_killed_after_its_grace", |s| {
            Box::pin(resists(s))
        }),
        ("a_stopped_pod_is_gone_and_its_id_unknown", |s| Box::pin(gone(s))),
        ("a_taken_port_is_refused_and_free_again_after_the_stop", |s| {
            Box::pin(taken_port(s))
        }),
        ("node_port_zero_is_any_free_port_and_is_told", |s| {
            Box::pin(any_port(s))
        }),
        ("several_containers_run_side_by_side", |s| Box::pin(several(s))),
    ]
}

async fn runs(subject: Subject) -> Outcome {
    let mut events = subject.runtime.events();
    let started = subject.script(STAY, RestartPolicy::Always).await?;
    let id = started.request.pod_id.clone();
    ensure(started.is_ready(), || format!("not ready: {:?}", started.state))?;
    ensure(started.ip.is_some() && started.start_ms.is_some(), || {
        "no address or no time".into()
    })?;
    let listed = subject.pod(&id).await.ok_or("not listed")?;
    ensure(listed.state.containers[0].restarts == 0, || {
        format!("restarted: {:?}", listed.state)
    })?;
    let about_it = |event: PodEvent| matches!(event, PodEvent::Changed(pod) if pod.request.pod_id == id && pod.is_ready());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, events.recv()).await {
            Ok(Ok(event)) if about_it(event.clone()) => break,
            Ok(Ok(_)) => {}
            other => return Err(format!("no event: {other:?}")),
        }
    }
    subject.end(&id).await
}

async fn twice(subject: Subject) -> Outcome {
    let first = subject.script(STAY, RestartPolicy::Always).await?;
    let again = subject.runtime.start(first.request.clone()).await;
    ensure(
        matches!(&again, Err(StartError::Exists(id)) if *id == first.request.pod_id),
        || format!("{again:?}"),
    )?;
    let still = subject
        .pod(&first.request.pod_id)
        .await
        .ok_or("the first is gone")?;
    ensure(still.is_ready(), || "the first was hurt".into())?;
    subject.end(&first.request.pod_id).await
}

async fn unknown_image(subject: Subject) -> Outcome {
    let mut bad = request(vec![shell(&subject, "main", STAY)], RestartPolicy::Always);
    bad.spec.containers[0].image = "no/such:image".into();
    let refused = subject.runtime.start(bad.clone()).await;
    ensure(
        matches!(&refused, Err(StartError::Image { container, .. }) if container == "main"),
        || format!("{refused:?}"),
    )?;
    ensure(subject.pod(&bad.pod_id).await.is_none(), || "it is listed".into())
}

async fn bad_request(subject: Subject) -> Outcome {
    let good = || request(vec![shell(&subject, "main", STAY)], RestartPolicy::Always);
    let (mut id, mut name, mut double, mut none) = (good(), good(), good(), good());
    id.pod_id = "../../etc".into();
    name.spec.containers[0].name = "a/../b".into();
    double.spec.containers.push(shell(&subject, "main", STAY));
    none.spec.containers.clear();
    for bad in [id, name, double, none] {
        let refused = subject.runtime.start(bad).await;
        ensure(matches!(refused, Err(StartError::Invalid(_))), || {
            format!("{refused:?}")
        })?;
    }
    Ok(())
}

async fn streams(subject: Subject) -> Outcome {
    let id = subject.script(SPEAK, RestartPolicy::Never).await?.request.pod_id;
    let done = subject
        .until(&id, |pod| pod.state.phase == Phase::Succeeded)
        .await?;
    ensure(
        done.state.containers[0]
            .exit
            .as_ref()
            .is_some_and(|exit| exit.code == 0),
        || format!("{done:?}"),
    )?;
    let mut lines = subject.log(&id, LogQuery::default()).await?;
    lines.sort();
    let wanted = [
        ("stderr".to_owned(), "to err".to_owned()),
        ("stdout".to_owned(), "to out".to_owned()),
    ];
    ensure(lines == wanted, || format!("{lines:?}"))?;
    // A follower of an ended container ends too.
    subject
        .log(
            &id,
            LogQuery {
                tail: None,
                follow: true,
            },
        )
        .await?;
    subject.end(&id).await
}

async fn follow(subject: Subject) -> Outcome {
    let id = subject.script(COUNT, RestartPolicy::Always).await?.request.pod_id;
    let query = LogQuery {
        tail: None,
        follow: true,
    };
    let stream = subject.runtime.logs(&id, "main", query).await.map_err(text)?;
    let lines: Vec<String> = tokio::time::timeout(PATIENCE, stream.take(5).map(|line| line.line).collect())
        .await
        .map_err(|_| "the lines did not come")?;
    let wanted: Vec<String> = (1..=5).map(|n| format!("line {n}")).collect();
    ensure(lines == wanted, || format!("{lines:?}"))?;
    let tail = subject
        .log(
            &id,
            LogQuery {
                tail: Some(2),
                follow: false,
            },
        )
        .await?;
    ensure(
        tail.iter()
            .map(|(_, line)| line.as_str())
            .eq(["line 4", "line 5"]),
        || format!("tail {tail:?}"),
    )?;
    let (other, pod) = (subject.clone(), id.clone());
    let follower = tokio::spawn(async move { other.log(&pod, query).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    subject.end(&id).await?;
    let all = follower.await.map_err(text)??;
    ensure(all.len() == 5, || format!("the follower saw {all:?}"))
}

async fn failure(subject: Subject) -> Outcome {
    let id = subject.script(FAIL, RestartPolicy::Never).await?.request.pod_id;
    let done = subject.until(&id, |pod| pod.state.phase == Phase::Failed).await?;
    let state = &done.state.containers[0];
    let exit = state.exit.clone().ok_or("no exit")?;
    ensure(
        (exit.code, exit.signal, exit.oom, state.restarts) == (3, None, false, 0),
        || format!("{state:?}"),
    )?;
    subject.end(&id).await
}

async fn restart(subject: Subject) -> Outcome {
    let id = subject.script(FAIL, RestartPolicy::Always).await?.request.pod_id;
    let again = subject
        .until(&id, |pod| pod.state.containers[0].restarts >= 1)
        .await?;
    ensure(
        again.state.containers[0]
            .exit
            .as_ref()
            .is_some_and(|exit| exit.code == 3),
        || format!("{again:?}"),
    )?;
    subject.end(&id).await
}

async fn command(subject: Subject) -> Outcome {
    let id = subject.script(STAY, RestartPolicy::Always).await?.request.pod_id;
    let input = vec![b'i'; 200_000];
    let reply = subject.sh(&id, ECHO, &input).await.map_err(text)?;
    let out = BASE64.decode(&reply.stdout).map_err(text)?;
    let err = BASE64.decode(&reply.stderr).map_err(text)?;
    ensure(out == input, || {
        format!("{} bytes came back, code {}", out.len(), reply.code)
    })?;
    ensure(
        (reply.code, err.as_slice(), reply.truncated) == (7, b"complaint\n", false),
        || format!("{} {err:?}", reply.code),
    )?;
    subject.end(&id).await
}

async fn unknown_container(subject: Subject) -> Outcome {
    let id = subject.script(STAY, RestartPolicy::Always).await?.request.pod_id;
    let logs = subject
        .runtime
        .logs(&id, "other", LogQuery::default())
        .await
        .err();
    ensure(matches!(logs, Some(PodError::NoContainer { .. })), || {
        format!("{logs:?}")
    })?;
    let command = ExecRequest {
        argv: vec!["true".into()],
        stdin: String::new(),
    };
    let exec = subject.runtime.exec(&id, "other", command.clone()).await;
    ensure(matches!(exec, Err(PodError::NoContainer { .. })), || {
        format!("{exec:?}")
    })?;
    let exec = subject
        .runtime
        .exec("01ARZ3NDEKTSV4RRFFQ69G5FAV", "main", command)
        .await;
    ensure(matches!(exec, Err(PodError::NoPod(_))), || format!("{exec:?}"))?;
    subject.end(&id).await
}

async fn resists(subject: Subject) -> Outcome {
    let id = subject
        .script(RESIST, RestartPolicy::Always)
        .await?
        .request
        .pod_id;
    // The shell sets its trap within this time.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    subject.runtime.stop(&id, Some(1)).await.map_err(text)?;
    let took = begun.elapsed();
    ensure(
        took >= Duration::from_secs(1) && took < Duration::from_secs(8),
        || format!("it took {took:?}"),
    )
}

async fn gone(subject: Subject) -> Outcome {
    let mut events = subject.runtime.events();
    let id = subject.script(STAY, RestartPolicy::Always).await?.request.pod_id;
    subject.end(&id).await?;
    ensure(subject.pod(&id).await.is_none(), || "it is still listed".into())?;
    let again = subject.runtime.stop(&id, None).await;
    ensure(matches!(again, Err(PodError::NoPod(_))), || format!("{again:?}"))?;
    let mut removed = false;
    while let Ok(event) = events.try_recv() {
        removed |= matches!(event, PodEvent::Removed { pod_id } if pod_id == id);
    }
    ensure(removed, || "no event".into())
}

async fn taken_port(subject: Subject) -> Outcome {
    let with_port = || {
        let mut container = shell(&subject, "main", STAY);
        container.ports = vec![port(18_080, 80)];
        request(vec![container], RestartPolicy::Always)
    };
    let first = subject.runtime.start(with_port()).await.map_err(text)?;
    ensure(first.ports == [(18_080, 80)], || format!("{:?}", first.ports))?;
    let second = subject.runtime.start(with_port()).await;
    ensure(
        matches!(second, Err(StartError::PortTaken { port: 18_080 })),
        || format!("{second:?}"),
    )?;
    subject.end(&first.request.pod_id).await?;
    let third = subject.runtime.start(with_port()).await.map_err(text)?;
    subject.end(&third.request.pod_id).await
}

async fn any_port(subject: Subject) -> Outcome {
    let mut pods = Vec::new();
    for _ in 0..2 {
        let mut container = shell(&subject, "main", STAY);
        container.ports = vec![port(0, 80)];
        pods.push(
            subject
                .runtime
                .start(request(vec![container], RestartPolicy::Always))
                .await
                .map_err(text)?,
        );
    }
    let told: Vec<_> = pods.iter().map(|pod| pod.ports.clone()).collect();
    for pod in &pods {
        subject.end(&pod.request.pod_id).await?;
    }
    let real = told
        .iter()
        .all(|ports| matches!(ports.as_slice(), [(port, 80)] if *port != 0));
    ensure(real && told[0] != told[1], || format!("{told:?}"))
}

async fn several(subject: Subject) -> Outcome {
    let containers = vec![shell(&subject, "main", STAY), shell(&subject, "side", STAY)];
    let started = subject
        .runtime
        .start(request(containers, RestartPolicy::Always))
        .await
        .map_err(text)?;
    let names: Vec<&str> = started
        .state
        .containers
        .iter()
        .map(|container| container.name.as_str())
        .collect();
    ensure(started.is_ready() && names == ["main", "side"], || {
        format!("{:?}", started.state)
    })?;
    subject.end(&started.request.pod_id).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeRuntime;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_fake_keeps_every_claim() {
        for (name, claim) in claims() {
            let fake = FakeRuntime::new(&["box:1"], Arc::new(fake_behaviour), Arc::new(fake_commands));
            let subject = Subject {
                runtime: Arc::new(fake),
                image: "box:1".into(),
            };
            if let Err(why) = claim(subject).await {
                panic!("{name}: {why}");
            }
        }
    }
}
