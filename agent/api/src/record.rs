//! Workloads as the fabric stores them: what an operator signed, and the names derived from it.

use crate::manifest::PodSpec;
use beemesh_joinpack_format::{Act, Deed, Refusal, Role, Timestamp};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// DSSE payload type of a signed [`Change`].
pub const CHANGE_PAYLOAD_TYPE: &str = "application/vnd.beemesh.change.v1+json";

/// Which controller a workload came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WorkloadKind {
    /// One pod, by name.
    Pod,
    /// `replicas` equal pods, spread over the nodes.
    Deployment,
}

/// `namespace/kind/name`: one workload.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkloadId {
    /// Namespace, a DNS label.
    pub namespace: String,
    /// Controller kind.
    pub kind: WorkloadKind,
    /// Name, a DNS label.
    pub name: String,
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            WorkloadKind::Pod => "pod",
            WorkloadKind::Deployment => "deployment",
        };
        write!(f, "{}/{kind}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl WorkloadId {
    /// The pod name of one ordinal: the workload's own name for a Pod, `name-ordinal` for a Deployment.
    pub fn pod_name(&self, ordinal: u32) -> String {
        match self.kind {
            WorkloadKind::Pod => self.name.clone(),
            WorkloadKind::Deployment => format!("{}-{ordinal}", self.name),
        }
    }
}

/// A workload, normalised from its manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    /// Which workload.
    pub id: WorkloadId,
    /// Number of pods wanted, ordinals `0..replicas`. At most 1,000.
    pub replicas: u32,
    /// Labels of the pods.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What each pod runs.
    pub pod: PodSpec,
}

/// One change that an operator signs: the payload of a DSSE envelope of type [`CHANGE_PAYLOAD_TYPE`].
///
/// Changes to one workload are ordered by `(id)`, a ULID: the greater one wins everywhere, whatever the order of arrival.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// ULID of the change, in its text form.
    pub id: String,
    /// The fabric that it is meant for: a change signed for another is refused.
    pub fabric: beemesh_ids::FabricId,
    /// The workload.
    pub workload: WorkloadId,
    /// `Some`: apply this; `None`: delete. `spec.id == workload`, else the change is refused.
    pub spec: Option<WorkloadSpec>,
}

impl Deed for Change {
    const PAYLOAD_TYPE: &'static str = CHANGE_PAYLOAD_TYPE;
    const WHAT: &'static str = "change";
    const ROLES: &'static [Role] = &[Role::Operator];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(payload).map_err(|error| Refusal::malformed(Self::WHAT, error))
    }

    fn act(&self) -> Act<'_> {
        Act::Workload {
            namespace: &self.workload.namespace,
            name: &self.workload.name,
        }
    }

    fn at(&self) -> Timestamp {
        time_of(&self.id)
    }

    fn fabric(&self) -> &beemesh_ids::FabricId {
        &self.fabric
    }
}

/// The time in a ULID, to the second; the epoch where it is none, which whoever takes the document refuses.
pub(crate) fn time_of(id: &str) -> Timestamp {
    let ms = id.parse::<ulid::Ulid>().map_or(0, |id| id.timestamp_ms());
    Timestamp(i64::try_from(ms / 1000).unwrap_or(i64::MAX))
}
