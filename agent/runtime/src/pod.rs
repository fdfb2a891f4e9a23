//! The capability to run pods, as its users see it: [`Runtime`], its requests, states, events and errors.
//!
//! It runs nothing. Invariant: one pod id is one pod, from `start` until `stop` has taken everything away again.

use crate::image::ImageError;
use beemesh_agent_api::PodSpec;
use beemesh_agent_api::shim::{Phase, PodState};
use beemesh_agent_api::view::{ExecReply, ExecRequest, LogLine};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use tokio::sync::broadcast;

/// Most pods on a node.
pub const PODS_MOST: usize = 1000;
/// Events that a slow subscriber may lag behind before it is told that it missed some (`RecvError::Lagged`).
pub const EVENTS_MOST: usize = 1024;

/// A pod to be started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodRequest {
    /// Id of this copy: a ULID in its text form; names its directory, cgroup and link.
    pub pod_id: String,
    /// Namespace of the workload.
    pub namespace: String,
    /// Name of the workload.
    pub workload: String,
    /// Ordinal in the workload.
    pub ordinal: u32,
    /// Name of the pod; its host name where the specification has none.
    pub name: String,
    /// What to run.
    pub spec: PodSpec,
}

/// A pod as the runtime knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodStatus {
    /// What was asked for.
    pub request: PodRequest,
    /// Address in the node's pod network.
    pub ip: Option<Ipv4Addr>,
    /// Published ports: node port, container port.
    pub ports: Vec<(u16, u16)>,
    /// State as its shim told it last.
    pub state: PodState,
    /// Milliseconds from the call of `start` to running container processes; `None` for a recovered pod.
    pub start_ms: Option<u64>,
    /// Why it does not run, where the containers' states do not say it.
    pub reason: Option<String>,
}

impl PodStatus {
    /// All containers run.
    pub fn is_ready(&self) -> bool {
        self.state.phase == Phase::Running && self.state.containers.iter().all(|c| c.pid.is_some())
    }
}

/// Something changed.
#[derive(Debug, Clone, PartialEq)]
pub enum PodEvent {
    /// The pod is new or its state has changed.
    Changed(Box<PodStatus>),
    /// The pod was stopped and everything of it removed.
    Removed {
        /// Which pod.
        pod_id: String,
    },
}

/// What to read of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only the last lines, at most [`crate::logs::TAIL_MOST`]; `None`: all that is kept.
    pub tail: Option<usize>,
    /// Go on with lines as they are written, until the pod is gone.
    pub follow: bool,
}

/// What [`Runtime::recover`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Pods that run on, sorted.
    pub restored: Vec<String>,
    /// Pods that were dead and are cleaned away, sorted.
    pub cleaned: Vec<String>,
    /// What could not be restored or cleaned, in words.
    pub errors: Vec<String>,
}

/// Why a pod was not started. Whatever was set up for it is taken away again.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is a pod with this id.
    #[error("pod `{0}` exists already")]
    Exists(String),
    /// The request cannot be carried out by any node.
    #[error("the pod cannot be started: {0}")]
    Invalid(String),
    /// An image is not there or not usable.
    #[error("container `{container}`: {source}")]
    Image {
        /// Which container.
        container: String,
        /// Why.
        #[source]
        source: Box<ImageError>,
    },
    /// A node port is in use.
    #[error("port {port} of the node is in use: stop what listens there or choose another `hostPort`")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// A bound of the node is reached.
    #[error("the node is full: {0}")]
    Full(String),
    /// The node failed.
    #[error("failed to {what}: {reason}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// Why, with causes.
        reason: String,
    },
}

/// Why a pod could not be addressed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No such pod.
    #[error("no pod `{0}` on this node")]
    NoPod(String),
    /// No such container in it.
    #[error("pod `{pod}` has no container `{container}`")]
    NoContainer {
        /// The pod.
        pod: String,
        /// The container asked for.
        container: String,
    },
    /// The request is not one.
    #[error("{0}")]
    Invalid(String),
    /// The node failed.
    #[error("failed to {what}: {reason}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// Why, with causes.
        reason: String,
    },
}

/// Runs pods on this node.
pub trait Runtime: Send + Sync + 'static {
    /// Starts a pod and returns once its containers were started (or have failed to: that is in the state, and retried
    /// by the pod's restart policy).
    fn start(&self, request: PodRequest) -> BoxFuture<'_, Result<PodStatus, StartError>>;

    /// Stops a pod and takes everything of it away. `grace`: seconds between SIGTERM and SIGKILL, the pod's own where
    /// `None`. All that could not be removed is named in one error; the pod is forgotten nevertheless.
    fn stop<'a>(&'a self, pod_id: &'a str, grace: Option<u32>) -> BoxFuture<'a, Result<(), PodError>>;

    /// All pods, by id.
    fn pods(&self) -> BoxFuture<'_, Vec<PodStatus>>;

    /// Lines of a container's log, oldest first.
    fn logs<'a>(
        &'a self,
        pod_id: &'a str,
        container: &'a str,
        query: LogQuery,
    ) -> BoxFuture<'a, Result<BoxStream<'static, LogLine>, PodError>>;

    /// Runs a command in a container to its end.
    fn exec<'a>(
        &'a self,
        pod_id: &'a str,
        container: &'a str,
        request: ExecRequest,
    ) -> BoxFuture<'a, Result<ExecReply, PodError>>;

    /// Finds the pods of an earlier run of the agent: those that live are taken over, the others cleaned away. To be
    /// called once, before anything is started.
    fn recover(&self) -> BoxFuture<'_, Recovery>;

    /// Events from now on.
    fn events(&self) -> broadcast::Receiver<PodEvent>;
}

/// Checks what every runtime checks before it starts a pod.
pub(crate) fn check(request: &PodRequest) -> Result<(), StartError> {
    let invalid = |reason: String| Err(StartError::Invalid(reason));
    let id = &request.pod_id;
    if id.len() != 26
        || !id
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
    {
        return invalid(format!(
            "`{}` is not a pod id",
            id.chars().take(40).collect::<String>()
        ));
    }
    let containers = &request.spec.containers;
    if containers.is_empty() || containers.len() > 16 {
        return invalid("a pod has 1 to 16 containers".into());
    }
    for (index, container) in containers.iter().enumerate() {
        if !is_label(&container.name) {
            let name: String = container.name.chars().take(80).collect();
            return invalid(format!("`{name}` is not a container name (a DNS label)"));
        }
        if containers[..index]
            .iter()
            .any(|other| other.name == container.name)
        {
            return invalid(format!("two containers are named `{}`", container.name));
        }
    }
    let hostname = request.spec.hostname.as_ref().unwrap_or(&request.name);
    if hostname.is_empty() || hostname.len() > 63 || !hostname.split('.').all(is_label) {
        let name: String = hostname.chars().take(80).collect();
        return invalid(format!("`{name}` is not a host name"));
    }
    Ok(())
}

fn is_label(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Published ports of a specification: node port, container port.
pub(crate) fn published(spec: &PodSpec) -> Vec<(u16, u16)> {
    let ports = spec.containers.iter().flat_map(|container| &container.ports);
    ports
        .filter_map(|port| port.host_port.map(|host| (host, port.container_port)))
        .collect()
}

/// An error with its causes, without repeating what a message already contains.
pub(crate) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}
