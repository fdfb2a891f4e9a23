//! Workloads for the simulator.

use beemesh_agent_api::{Change, WorkloadId, WorkloadKind, WorkloadSpec, parse_manifests};

/// What an operator wants.
pub struct Wish {
    /// Which workload.
    pub workload: WorkloadId,
    /// Its specification; `None` deletes it.
    pub spec: Option<WorkloadSpec>,
}

impl Wish {
    /// The change with the number `n`: a greater one is newer.
    pub fn into_change(self, n: u64) -> Change {
        let id = format!("{n:026}");
        Change {
            id,
            fabric: "0".repeat(64).parse().unwrap(),
            workload: self.workload,
            spec: self.spec,
        }
    }

    /// The same with other lines in the container.
    pub fn with(name: &str, replicas: u32, image: &str, container: &str) -> Self {
        let yaml = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      containers:\n      - name: a\n        image: {image}\n{container}"
        );
        let spec = parse_manifests(&yaml).unwrap().remove(0);
        Self {
            workload: spec.id.clone(),
            spec: Some(spec),
        }
    }
}

/// A deployment of image `web:1`.
pub fn deployment(name: &str, replicas: u32) -> Wish {
    Wish::with(
        name,
        replicas,
        "web:1",
        "        resources: {requests: {cpu: 100m, memory: 64Mi}}\n",
    )
}

/// Deletes what [`deployment`] made.
pub fn deletion(name: &str) -> Wish {
    Wish {
        workload: workload(name),
        spec: None,
    }
}

/// The deployment of this name.
pub fn workload(name: &str) -> WorkloadId {
    WorkloadId {
        namespace: "default".into(),
        kind: WorkloadKind::Deployment,
        name: name.into(),
    }
}
