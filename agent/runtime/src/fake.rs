//! A [`Runtime`] in memory, for tests of what uses one: containers are scripts of [`Act`]s.
//!
//! It starts no process, listens on no port and keeps nothing. Invariant: it keeps every claim of [`crate::contract`].

use crate::container::{command, has_container};
use crate::image::ImageError;
use crate::logs::TAIL_MOST;
use crate::pod::{
    self, EVENTS_MOST, LogQuery, PODS_MOST, PodError, PodEvent, PodRequest, PodStatus, Recovery, Runtime,
    StartError,
};
use beemesh_agent_api::manifest::{Container, RestartPolicy};
use beemesh_agent_api::shim::{ContainerExit, ContainerState, Phase, PodState};
use beemesh_agent_api::view::{ExecReply, ExecRequest, LogLine};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, BoxStream, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

/// The fake's back-off before a restart.
const BACKOFF: Duration = Duration::from_millis(100);

/// One step of a container's script. Behind the last step the container ends with 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A line on standard output.
    Out(String),
    /// A line on standard error.
    Err(String),
    /// Time passes.
    Wait(Duration),
    /// Ends with this code.
    Exit(i32),
    /// Runs until it is told to end, then ends with 0.
    Stay,
    /// Runs until it is killed.
    Resist,
}

/// What a container does.
pub type Behaviour = Arc<dyn Fn(&Container) -> Vec<Act> + Send + Sync>;
/// What a command in a container does: arguments and input to code, output, errors.
pub type Commands = Arc<dyn Fn(&[String], &[u8]) -> (i32, Vec<u8>, Vec<u8>) + Send + Sync>;

/// Pods in memory.
#[derive(Clone)]
pub struct FakeRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    images: BTreeSet<String>,
    behaviour: Behaviour,
    commands: Commands,
    pods: Mutex<BTreeMap<String, Arc<FakePod>>>,
    events: broadcast::Sender<PodEvent>,
}

struct FakePod {
    status: Mutex<PodStatus>,
    logs: Mutex<BTreeMap<String, VecDeque<LogLine>>>,
    /// Counts changes of the logs and the state, for followers.
    changes: watch::Sender<u64>,
    /// 0 runs, 1 told to end, 2 killed.
    order: watch::Sender<u8>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl FakeRuntime {
    /// A node that has `images`, whose containers follow `behaviour` and whose commands answer by `commands`.
    pub fn new(images: &[&str], behaviour: Behaviour, commands: Commands) -> Self {
        let inner = Inner {
            images: images.iter().map(|name| (*name).to_owned()).collect(),
            behaviour,
            commands,
            pods: Mutex::new(BTreeMap::new()),
            events: broadcast::Sender::new(EVENTS_MOST),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// A node that has `images`, whose containers just run.
    pub fn steady(images: &[&str]) -> Self {
        Self::new(
            images,
            Arc::new(|_| vec![Act::Stay]),
            Arc::new(|_, _| (0, Vec::new(), Vec::new())),
        )
    }
}

impl Inner {
    fn find(&self, pod_id: &str) -> Result<Arc<FakePod>, PodError> {
        lock(&self.pods)
            .get(pod_id)
            .cloned()
            .ok_or_else(|| PodError::NoPod(pod_id.into()))
    }

    fn enter(&self, request: PodRequest) -> Result<Arc<FakePod>, StartError> {
        pod::check(&request)?;
        let mut pods = lock(&self.pods);
        if pods.contains_key(&request.pod_id) {
            return Err(StartError::Exists(request.pod_id));
        }
        if pods.len() >= PODS_MOST {
            return Err(StartError::Full(format!("it holds {PODS_MOST} pods")));
        }
        let taken: BTreeSet<u16> = pods
            .values()
            .flat_map(|pod| lock(&pod.status).ports.clone())
            .map(|(port, _)| port)
            .collect();
        let mut ports = pod::published(&request.spec);
        for (index, (port, _)) in ports.iter_mut().enumerate() {
            if *port == 0 {
                // Any free one: each pod has at most some, and the fake no listeners that could clash.
                let first = 40_000 + u16::try_from(index).unwrap_or(0);
                *port = (first..u16::MAX)
                    .step_by(64)
                    .find(|free| !taken.contains(free))
                    .unwrap_or(u16::MAX);
            } else if taken.contains(port) {
                return Err(StartError::PortTaken { port: *port });
            }
        }
        for container in &request.spec.containers {
            if !self.images.contains(&container.image) {
                let source = Box::new(ImageError::NotFound {
                    reference: container.image.clone(),
                });
                return Err(StartError::Image {
                    container: container.name.clone(),
                    source,
                });
            }
        }
        let used: BTreeSet<_> = pods.values().filter_map(|pod| lock(&pod.status).ip).collect();
        let ip = (2..=u8::MAX)
            .map(|last| Ipv4Addr::new(169, 254, 64, last))
            .find(|ip| !used.contains(ip));
        let containers = request.spec.containers.iter().map(|container| ContainerState {
            name: container.name.clone(),
            pid: None,
            restarts: 0,
            started_ms: None,
            exit: None,
            error: None,
        });
        let state = PodState {
            shim_pid: 1,
            phase: Phase::Pending,
            containers: containers.collect(),
        };
        let id = request.pod_id.clone();
        let status = PodStatus {
            request,
            ip,
            ports,
            state,
            start_ms: None,
            reason: None,
        };
        let pod = Arc::new(FakePod {
            status: Mutex::new(status),
            logs: Mutex::new(BTreeMap::new()),
            changes: watch::Sender::new(0),
            order: watch::Sender::new(0),
            tasks: Mutex::new(Vec::new()),
        });
        pods.insert(id, pod.clone());
        Ok(pod)
    }

    fn change(&self, pod: &FakePod, index: usize, change: impl FnOnce(&mut ContainerState)) {
        let status = {
            let mut status = lock(&pod.status);
            if let Some(container) = status.state.containers.get_mut(index) {
                change(container);
            }
            status.clone()
        };
        pod.changes.send_modify(|count| *count += 1);
        let _ = self.events.send(PodEvent::Changed(Box::new(status)));
    }

    async fn live(
        self: Arc<Self>,
        pod: Arc<FakePod>,
        index: usize,
        container: Container,
        policy: RestartPolicy,
    ) {
        loop {
            let code = self.act(&pod, &container).await;
            let signal = (code > 128).then_some(code - 128);
            let again = match policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => code != 0,
                RestartPolicy::Never => false,
            } && *pod.order.borrow() == 0;
            if !again {
                // The phase of a pod of one container; of more, the last to end decides.
                let phase = if code == 0 {
                    Phase::Succeeded
                } else {
                    Phase::Failed
                };
                let mut status = lock(&pod.status);
                let others = |(at, other): (usize, &ContainerState)| at != index && other.pid.is_some();
                if !status.state.containers.iter().enumerate().any(others) {
                    status.state.phase = phase;
                }
            }
            self.change(&pod, index, |state| {
                state.pid = None;
                state.exit = Some(ContainerExit {
                    code,
                    signal,
                    oom: false,
                    at_ms: now_ms(),
                });
            });
            if !again {
                return;
            }
            tokio::time::sleep(BACKOFF).await;
            if *pod.order.borrow() != 0 {
                return;
            }
            self.change(&pod, index, |state| {
                state.restarts += 1;
                state.pid = Some(1000);
                state.started_ms = Some(now_ms());
            });
        }
    }

    async fn act(&self, pod: &FakePod, container: &Container) -> i32 {
        let mut order = pod.order.subscribe();
        for act in (self.behaviour)(container) {
            match act {
                Act::Out(line) => say(pod, &container.name, "stdout", line),
                Act::Err(line) => say(pod, &container.name, "stderr", line),
                Act::Wait(time) => {
                    if tokio::time::timeout(time, order.wait_for(|order| *order > 0))
                        .await
                        .is_ok()
                    {
                        return 143;
                    }
                }
                Act::Exit(code) => return code,
                Act::Stay => {
                    let _ = order.wait_for(|order| *order > 0).await;
                    return 0;
                }
                Act::Resist => {
                    let _ = order.wait_for(|order| *order > 1).await;
                    return 137;
                }
            }
        }
        0
    }

    async fn start(self: Arc<Self>, request: PodRequest) -> Result<PodStatus, StartError> {
        let begun = Instant::now();
        let pod = self.enter(request)?;
        let spec = lock(&pod.status).request.spec.clone();
        lock(&pod.status).state.phase = Phase::Running;
        for (index, container) in spec.containers.iter().enumerate() {
            self.change(&pod, index, |state| {
                state.pid = Some(1000);
                state.started_ms = Some(now_ms());
            });
            let task = self
                .clone()
                .live(pod.clone(), index, container.clone(), spec.restart_policy);
            lock(&pod.tasks).push(tokio::spawn(task));
        }
        let mut status = lock(&pod.status);
        status.start_ms = u64::try_from(begun.elapsed().as_millis()).ok();
        Ok(status.clone())
    }

    async fn stop(&self, pod_id: &str, grace: Option<u32>) -> Result<(), PodError> {
        let pod = self.find(pod_id)?;
        let seconds = grace.unwrap_or(lock(&pod.status).request.spec.termination_grace_period_seconds);
        let tasks = std::mem::take(&mut *lock(&pod.tasks));
        if tasks.is_empty() {
            return Err(PodError::NoPod(pod_id.into()));
        }
        pod.order.send_replace(1);
        let mut all = futures::future::join_all(tasks);
        if tokio::time::timeout(Duration::from_secs(seconds.into()), &mut all)
            .await
            .is_err()
        {
            pod.order.send_replace(2);
            all.await;
        }
        lock(&self.pods).remove(pod_id);
        pod.order.send_replace(2);
        pod.changes.send_modify(|count| *count += 1);
        let _ = self.events.send(PodEvent::Removed {
            pod_id: pod_id.into(),
        });
        Ok(())
    }

    fn logs(
        &self,
        pod_id: &str,
        container: &str,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, PodError> {
        let pod = self.find(pod_id)?;
        has_container(&lock(&pod.status).request, container)?;
        let name = container.to_owned();
        let kept = lock(&pod.logs).get(&name).map_or(0, VecDeque::len);
        let first = query
            .tail
            .map_or(0, |tail| kept.saturating_sub(tail.min(TAIL_MOST)));
        if !query.follow {
            let lines: Vec<_> = lock(&pod.logs)
                .get(&name)
                .map(|lines| lines.iter().skip(first).cloned().collect())
                .unwrap_or_default();
            return Ok(stream::iter(lines).boxed());
        }
        let changes = pod.changes.subscribe();
        Ok(stream::unfold(
            (pod, name, first, changes),
            |(pod, name, at, mut changes)| async move {
                loop {
                    let over = *pod.order.borrow() == 2
                        || matches!(lock(&pod.status).state.phase, Phase::Succeeded | Phase::Failed);
                    let line = lock(&pod.logs)
                        .get(&name)
                        .and_then(|lines| lines.get(at).cloned());
                    if let Some(line) = line {
                        return Some((line, (pod, name, at + 1, changes)));
                    }
                    if over || changes.changed().await.is_err() {
                        return None;
                    }
                }
            },
        )
        .boxed())
    }
}

fn say(pod: &FakePod, container: &str, stream: &str, line: String) {
    let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    {
        let mut logs = lock(&pod.logs);
        let lines = logs.entry(container.into()).or_default();
        // A script that says more than this is not a test's.
        if lines.len() < TAIL_MOST {
            lines.push_back(LogLine {
                time,
                stream: stream.into(),
                line,
            });
        }
    }
    pod.changes.send_modify(|count| *count += 1);
}

impl Runtime for FakeRuntime {
    fn start(&self, request: PodRequest) -> BoxFuture<'_, Result<PodStatus, StartError>> {
        self.inner.clone().start(request).boxed()
    }

    fn stop<'a>(&'a self, pod_id: &'a str, grace: Option<u32>) -> BoxFuture<'a, Result<(), PodError>> {
        self.inner.stop(pod_id, grace).boxed()
    }

    fn pods(&self) -> BoxFuture<'_, Vec<PodStatus>> {
        async move {
            lock(&self.inner.pods)
                .values()
                .map(|pod| lock(&pod.status).clone())
                .collect()
        }
        .boxed()
    }

    fn logs<'a>(
        &'a self,
        pod_id: &'a str,
        container: &'a str,
        query: LogQuery,
    ) -> BoxFuture<'a, Result<BoxStream<'static, LogLine>, PodError>> {
        async move { self.inner.logs(pod_id, container, query) }.boxed()
    }

    fn exec<'a>(
        &'a self,
        pod_id: &'a str,
        container: &'a str,
        request: ExecRequest,
    ) -> BoxFuture<'a, Result<ExecReply, PodError>> {
        async move {
            let pod = self.inner.find(pod_id)?;
            has_container(&lock(&pod.status).request, container)?;
            let input = command::check(&request)?;
            let (code, stdout, stderr) = (self.inner.commands)(&request.argv, &input);
            Ok(command::reply(code, (stdout, false), (stderr, false)))
        }
        .boxed()
    }

    fn recover(&self) -> BoxFuture<'_, Recovery> {
        async { Recovery::default() }.boxed()
    }

    fn events(&self) -> broadcast::Receiver<PodEvent> {
        self.inner.events.subscribe()
    }
}
