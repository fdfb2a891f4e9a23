//! What the agent and a pod's shim say to each other.
//!
//! `beemesh-shim run` unshares a pod's namespaces, says `waiting`, reads DIR, a line, from standard input and `DIR/plan.json` ([`PodPlan`]), writes
//! what goes wrong to `DIR/shim.log`, then serves `DIR/shim.sock` (unix stream, mode 0600): one JSON [`Request`] a line in, one JSON [`Reply`] a line out. The shim
//! outlives the agent; whoever connects later learns the whole state from [`Request::Status`]. It also writes each
//! state to `DIR/status.json` (atomic rename), so that nothing is lost while no agent runs.

use serde::{Deserialize, Serialize};

/// Everything the shim needs to run one pod. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodPlan {
    /// Pod id: a ULID, also the name of the pod's directory and cgroup.
    pub pod_id: String,
    /// Host name inside the pod.
    pub hostname: String,
    /// cgroup of the pod below /sys/fs/cgroup, e.g. `beemesh/pods/<id>`.
    pub cgroup: String,
    /// Containers, in start order.
    pub containers: Vec<ContainerPlan>,
    /// Restart policy of all containers.
    pub restart_policy: crate::manifest::RestartPolicy,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace_seconds: u32,
    /// Directory for log files `<container>.log` (and `.log.1` after rotation).
    pub log_dir: String,
    /// A container's log is rotated at this size, in bytes; one old file is kept.
    pub log_limit: u64,
}

/// One container: the OCI bundle is made by the agent (rootfs mounted, `config.json` written).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Name in the pod.
    pub name: String,
    /// OCI bundle directory.
    pub bundle: String,
    /// Microseconds of processor time in each [`CPU_PERIOD_US`]; `None`: no limit. Not in the bundle, because the making of
    /// the container would be slowed down by it: it is set when the program runs.
    pub cpu_quota_us: Option<u64>,
}

/// Period of processor limits, in microseconds. Source: kernel `Documentation/admin-guide/cgroup-v2.rst`, `cpu.max`.
pub const CPU_PERIOD_US: u64 = 100_000;

/// Agent to shim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// The pod network is ready: start the containers.
    Start,
    /// Reply with the pod's state.
    Status,
    /// SIGTERM, then SIGKILL after `grace_seconds`; the shim exits when all is gone.
    Stop {
        /// Seconds of grace; `None`: the plan's.
        grace_seconds: Option<u32>,
    },
}

/// Shim to agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The state of the pod now. Sent after each request, and unasked on every change to each open connection.
    State(PodState),
    /// The request failed.
    Failed {
        /// What, where and why.
        reason: String,
    },
}

/// State of a pod as its shim knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodState {
    /// The shim's process id: `/proc/<pid>/ns/net` is the pod's network namespace.
    pub shim_pid: i32,
    /// Phase of the whole.
    pub phase: Phase,
    /// Containers, in the plan's order.
    pub containers: Vec<ContainerState>,
}

/// Kubernetes' pod phases, without `Unknown`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not all containers have been started.
    Pending,
    /// At least one container runs or will be restarted.
    Running,
    /// All ended with 0 and none is restarted.
    Succeeded,
    /// All ended, at least one with a failure, and none is restarted.
    Failed,
}

/// State of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Name in the pod.
    pub name: String,
    /// Process id of its first process while it runs.
    pub pid: Option<i32>,
    /// Times it was restarted.
    pub restarts: u32,
    /// Start of the current or last run, milliseconds since the Unix epoch.
    pub started_ms: Option<u64>,
    /// End of the last run.
    pub exit: Option<ContainerExit>,
    /// Why it could not be started, in words.
    pub error: Option<String>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerExit {
    /// Exit code; 128 + signal number where a signal ended it.
    pub code: i32,
    /// The signal, where one ended it.
    pub signal: Option<i32>,
    /// The kernel killed it for memory.
    pub oom: bool,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
}
