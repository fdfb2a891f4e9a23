//! The manifest subset: Kubernetes `v1` Pod and `apps/v1` Deployment.
//!
//! Field names, defaults and meaning are Kubernetes'. Unknown and unsupported fields are errors that name their path.
//! Here are the types alone: `document.rs` reads texts, `check.rs` says which values are allowed.

pub use crate::check::{MAX_CONTAINERS, MAX_REPLICAS, check_workload};
pub use crate::document::{MAX_DOCUMENTS, MAX_SIZE, Manifest, parse_manifests, to_yaml};
pub use crate::fault::{ManifestError, ManifestFault};
pub use crate::quantity::{cpu, memory};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a pod runs: the supported subset of Kubernetes' PodSpec, defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSpec {
    /// 1 to 16 containers.
    pub containers: Vec<Container>,
    /// What happens when a container ends.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Seconds between SIGTERM and SIGKILL. Default 30, at most 3600.
    #[serde(default = "default_grace")]
    pub termination_grace_period_seconds: u32,
    /// Labels that the node must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The pod's host name; the pod's name where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

fn default_grace() -> u32 {
    30
}

impl PodSpec {
    /// What placement reserves for one such pod: (millicores, bytes), the sum over its containers.
    pub fn reserved(&self) -> (u64, u64) {
        self.containers.iter().fold((0, 0), |(cpu, memory), container| {
            let (requests, limits) = (&container.resources.requests, &container.resources.limits);
            (
                cpu.saturating_add(requests.cpu.or(limits.cpu).unwrap_or(0)),
                memory.saturating_add(requests.memory.or(limits.memory).unwrap_or(0)),
            )
        })
    }

    /// The ports that it takes on the node, without those that the node chooses.
    pub fn host_ports(&self) -> impl Iterator<Item = u16> + '_ {
        self.containers
            .iter()
            .flat_map(|container| &container.ports)
            .filter_map(|port| port.host_port.filter(|&port| port != 0))
    }
}

/// Kubernetes' `restartPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Restart whatever the exit code (the default).
    #[default]
    Always,
    /// Restart unless the exit code is 0.
    OnFailure,
    /// Never restart.
    Never,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Container {
    /// DNS label, unique in the pod.
    pub name: String,
    /// Image reference as the store knows it, e.g. `nginx:1.22` or `sha256:…`.
    pub image: String,
    /// Replaces the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    /// Added to the image's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Replaces the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ContainerPort>,
    /// Requests and limits.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
}

/// An environment variable with a literal value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value.
    #[serde(default)]
    pub value: String,
}

/// A port; published on the node where `hostPort` is given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerPort {
    /// Optional name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Port in the pod, 1 to 65535.
    pub container_port: u16,
    /// Port on the node. Two pods that want the same one are not placed on one node. 0 asks for any free port of the
    /// node, which the pod's view then shows; Kubernetes knows no such value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// Only `TCP`.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
}

/// Requests (what placement counts) and limits (what the kernel enforces).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// What placement reserves. Where absent: the limits.
    #[serde(default, skip_serializing_if = "Quantities::is_empty")]
    pub requests: Quantities,
    /// What cgroup v2 enforces. Where absent: no limit but the node's.
    #[serde(default, skip_serializing_if = "Quantities::is_empty")]
    pub limits: Quantities,
}

impl Resources {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// cpu and memory in Kubernetes' notation (`250m`, `64Mi`), parsed to millicores and bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quantities {
    /// Millicores.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::manifest::cpu"
    )]
    pub cpu: Option<u64>,
    /// Bytes.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "crate::manifest::memory"
    )]
    pub memory: Option<u64>,
    /// Processes and threads; not in Kubernetes, where the kubelet sets it.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "beemesh.org/pids")]
    pub pids: Option<u64>,
}

impl Quantities {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
