//! Views as a node gives them.

use beemesh_agent_api::shim::{ContainerState, Phase};
use beemesh_agent_api::view::{EventView, ImageView, LogLine, NodeAssurance, NodeStatus, NodeView, PodView};
use beemesh_agent_api::{WorkloadId, WorkloadKind};
use beemesh_ids::{Digest, PeerId};

pub fn nodes() -> Vec<NodeView> {
    let node = |name: &str, seed, status, assurance, joined_after_ms| NodeView {
        name: name.parse().unwrap(),
        peer_id: PeerId::from_ed25519(&[seed; 32]),
        key: PeerId::from_ed25519(&[seed + 100; 32]),
        generation: 1,
        status,
        assurance,
        addresses: vec![format!("192.168.1.2{seed}:7443"), "fe80::1".into()],
        version: "0.1.0".into(),
        pods: u32::from(seed),
        joined_after_ms,
    };
    vec![
        node("node-1", 1, NodeStatus::Ready, NodeAssurance::Trusted, Some(3120)),
        node("till", 2, NodeStatus::Suspect, NodeAssurance::Low, None),
        NodeView {
            addresses: vec![],
            ..node(
                "node-3",
                3,
                NodeStatus::Down,
                NodeAssurance::Changed(vec![7, 11]),
                Some(4001),
            )
        },
    ]
}

pub fn pod(namespace: &str, name: &str, ordinal: u32, containers: &[&str]) -> PodView {
    PodView {
        workload: WorkloadId {
            namespace: namespace.into(),
            kind: WorkloadKind::Deployment,
            name: name.into(),
        },
        ordinal,
        name: format!("{name}-{ordinal}"),
        pod_id: Some(format!("01J0000000000000000000000{ordinal}")),
        node: Some("node-1".parse().unwrap()),
        phase: Phase::Running,
        ready: true,
        ip: Some(format!("10.42.0.{}", ordinal + 2)),
        ports: vec![(8080, 80), (8443, 443)],
        containers: containers.iter().map(|name| container(name)).collect(),
        start_ms: Some(212),
        reason: None,
    }
}

fn container(name: &str) -> ContainerState {
    ContainerState {
        name: name.into(),
        pid: Some(4711),
        restarts: 1,
        started_ms: Some(1_767_323_045_678),
        exit: None,
        error: None,
    }
}

/// A pod that no node holds yet.
pub fn unplaced(namespace: &str, name: &str, ordinal: u32) -> PodView {
    PodView {
        pod_id: None,
        node: None,
        phase: Phase::Pending,
        ready: false,
        ip: None,
        ports: vec![],
        containers: vec![],
        start_ms: None,
        reason: Some("no node has the image `nginx:1.22`".into()),
        ..pod(namespace, name, ordinal, &[])
    }
}

pub fn events() -> Vec<EventView> {
    let event = |seq, reason: &str, object: &str, message: &str| EventView {
        seq,
        at_ms: 1_767_323_045_678 + seq,
        node: "node-1".parse().unwrap(),
        reason: reason.into(),
        object: object.into(),
        message: message.into(),
    };
    vec![
        event(
            1,
            "Joined",
            "node/node-1",
            "joined fabric shop with assurance tpm",
        ),
        event(2, "PodStarted", "pod/web-0", "started in 212 ms"),
    ]
}

pub fn images() -> Vec<ImageView> {
    let image = |name: &str, size| ImageView {
        name: name.into(),
        digest: Digest::of(name.as_bytes()),
        size,
    };
    vec![image("nginx:1.22", 61_000_000), image("busybox:1", 4096)]
}

pub fn log(text: &str) -> LogLine {
    LogLine {
        time: "2026-01-02T03:04:05.000000001Z".into(),
        stream: "stdout".into(),
        line: text.into(),
    }
}
