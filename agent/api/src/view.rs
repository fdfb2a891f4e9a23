//! What the REST interface shows: nodes, pods, events, logs, errors; and its paths.

pub use crate::assurance::{ASSURANCE_SELECTOR, DEMANDS, InvalidAssurance, NodeAssurance};
use crate::record::WorkloadId;
use crate::shim::{ContainerState, Phase};
use beemesh_ids::{Digest, NodeName, PeerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far a node's identity can be believed, as it claims when it joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Assurance {
    /// The key lies in a file: no TPM, or admission without a person.
    Low,
    /// The key is sealed in the machine's TPM.
    Tpm,
}

/// A member of the cell, as the answering node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Name.
    pub name: NodeName,
    /// Node id: the peer id of its first key.
    pub peer_id: PeerId,
    /// Peer id of the key that it has now.
    pub key: PeerId,
    /// How many keys it had before.
    pub generation: u32,
    /// Liveness as SWIM sees it.
    pub status: NodeStatus,
    /// How far it can be believed, as the answering node judges it.
    pub assurance: NodeAssurance,
    /// Addresses of the node, as `ip:port`, `ip` or multiaddr text.
    pub addresses: Vec<String>,
    /// Version of the OS.
    pub version: String,
    /// Pods it holds.
    pub pods: u32,
    /// Milliseconds from PID 1's first line to membership, as the node measured; `None` while unknown.
    pub joined_after_ms: Option<u64>,
}

/// Liveness of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeStatus {
    /// Answers.
    Ready,
    /// Does not answer, not yet declared dead.
    Suspect,
    /// Declared dead.
    Down,
}

/// One pod: one ordinal of one workload on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodView {
    /// Workload.
    pub workload: WorkloadId,
    /// Ordinal.
    pub ordinal: u32,
    /// Pod name.
    pub name: String,
    /// Id of this copy (a ULID); `None` while it is not placed.
    pub pod_id: Option<String>,
    /// Holder; `None` while it is not placed.
    pub node: Option<NodeName>,
    /// Phase.
    pub phase: Phase,
    /// All containers run.
    pub ready: bool,
    /// Address in the pod network of its node.
    pub ip: Option<String>,
    /// Published ports: node port -> container port.
    pub ports: Vec<(u16, u16)>,
    /// Containers.
    pub containers: Vec<ContainerState>,
    /// Milliseconds from accepted change to running container process, as the holder measured.
    pub start_ms: Option<u64>,
    /// Why it is not running, in words.
    pub reason: Option<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Sequence number on the node that answers, rising.
    pub seq: u64,
    /// Milliseconds since the Unix epoch by the node's clock.
    pub at_ms: u64,
    /// Node that saw it.
    pub node: NodeName,
    /// CamelCase reason, e.g. `Joined`, `PodStarted`, `NodeDown`, `PackRefused`.
    pub reason: String,
    /// What it is about: `node/<name>`, `pod/<name>`, `pack`.
    pub object: String,
    /// A sentence.
    pub message: String,
}

/// A line of a container's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds, UTC.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line without its end.
    pub line: String,
}

/// A record of a node's system log: what the kernel said, or PID 1 or a service printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordView {
    /// Microseconds since the Unix epoch by the node's clock, which may be wrong and may step.
    pub realtime_us: u64,
    /// Microseconds since the node's start (CLOCK_MONOTONIC).
    pub monotonic_us: u64,
    /// Boot id, 32 hexadecimal digits.
    pub boot: String,
    /// Who numbered it.
    pub source: RecordSource,
    /// Number; rises within boot and source.
    pub seq: u64,
    /// Service, `init` or `kernel`.
    pub unit: String,
    /// Syslog's priority, 0 (emergency) to 7 (debug).
    pub priority: u8,
    /// The line began in the record before of the same unit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
    /// The line goes on in the next record of the same unit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// Further facts; `LOST` counts the records that are missing before this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// The line; bytes that are not UTF-8 are replaced.
    pub message: String,
    /// Base64 of the line, where it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_base64: Option<String>,
}

/// Where a record comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordSource {
    /// PID 1 and services.
    Services,
    /// The kernel.
    Kernel,
}

/// An image in the answering node's store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageView {
    /// Reference as pods name it, e.g. `nginx:1.22`.
    pub name: String,
    /// Digest of the image's manifest.
    pub digest: Digest,
    /// Bytes of its blobs, manifest and configuration included.
    pub size: u64,
}

/// The body of every error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What, where and what to do.
    pub error: String,
}

/// Paths of the REST interface. Lists answer with JSON arrays of the views, streams with one JSON document a line.
pub mod path {
    /// GET: this node and its fabric ([`super::NodeView`] of itself is the first entry of [`NODES`]).
    pub const NODES: &str = "/v1/nodes";
    /// GET: all pods of the fabric.
    pub const PODS: &str = "/v1/pods";
    /// POST: a DSSE envelope around a [`crate::record::Change`]; 202 with `{"accepted": true}`; 404 for the deletion of a
    /// workload that is not known; 409 where a newer change of the workload is known.
    pub const CHANGES: &str = "/v1/changes";
    /// GET: events; `?follow=true` streams.
    pub const EVENTS: &str = "/v1/events";
    /// GET `…/{namespace}/{pod}/{container}`: logs; `?follow=true&tail=N`. Answered by the holder, others forward. A
    /// stream of [`super::LogLine`] whether it is followed or not: a log can be longer than a list may be.
    pub const LOGS: &str = "/v1/logs";
    /// GET: the system log of a node as a stream of [`super::RecordView`]. `unit=NAME`; `kernel=true`: the kernel's alone;
    /// `since_ms=N`: not older than so many milliseconds; `boot=0` (the one that runs, if not given), `-1` (the one
    /// before), …, `all`; `tail=N`, at most 10000; `follow=true`; `node=NAME`: of another member, which is asked for it.
    pub const SYSTEM_LOG: &str = "/v1/logs";
    /// POST `…/{namespace}/{pod}/{container}`: [`super::ExecRequest`] -> [`super::ExecReply`].
    pub const EXEC: &str = "/v1/exec";
    /// GET: images of this node ([`super::ImageView`]). POST: import an OCI archive (body: tar), needs an operator;
    /// answers with the array of the imported images.
    pub const IMAGES: &str = "/v1/images";
    /// GET: the answering node's network ([`crate::network::NetworkView`]). POST: a DSSE envelope around a
    /// [`crate::network::NetworkChange`] for that node; 202 with `{"accepted": true}`; 409 where it is for another node,
    /// not newer than the last, or where no such trial runs.
    pub const NETWORK: &str = "/v1/network";
    /// GET: what is revoked ([`crate::revocation::RevocationView`]). POST: a signed snapshot; 202 with `{"accepted": true}`.
    pub const REVOCATIONS: &str = "/v1/revocations";
    /// GET: the chain of root documents ([`crate::roots::RootsView`]). POST: root documents, a JSON array of envelopes such as
    /// `root.json`; they prove themselves, so no operator's key is needed; answers with [`crate::roots::RootsTaken`], or 403
    /// where they do not follow from what the node trusts.
    pub const ROOTS: &str = "/v1/roots";
    /// GET: the machines that ask the answering node to be let in ([`crate::petition::PetitionView`]). POST: an operator's word
    /// about one of them, a signed voucher or denial (`usb-joinpack/SPEC.md`, section 12); 202 with `{"accepted": true}`; 404 for
    /// a machine that does not ask, 409 where the name is in use, the cell another one, or an operator decided before.
    pub const PETITIONS: &str = "/v1/petitions";
    /// GET: the members' keys and the orders to rotate them ([`crate::keys::KeysView`]). POST: a signed order; 202 with
    /// `{"accepted": true}`; 409 where it is older than what is known.
    pub const KEYS: &str = "/v1/keys";
    /// GET: what the members booted ([`crate::boot::BootsView`]). POST: a signed acceptance; 202 with `{"accepted": true}`; 409
    /// where it is older than what is known.
    pub const BOOTS: &str = "/v1/boots";
    /// GET: the endorsement key of the answering node's TPM (`usb-joinpack/SPEC.md`, section 10); 404 where it has no TPM.
    pub const ENDORSEMENT: &str = "/v1/endorsement";
    /// GET: the answering node's time ([`crate::network::TimeView`]).
    pub const TIME: &str = "/v1/time";
    /// POST, for members alone: an [`crate::attestation::AttestationQuestion`] to this node's TPM; 404 where it has none, 503
    /// where too many wait.
    pub const ATTESTATION: &str = "/v1/attestation";
}

/// A command to run in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program and arguments; not empty.
    pub argv: Vec<String>,
    /// Base64 of standard input, at most 1 MiB.
    #[serde(default)]
    pub stdin: String,
}

/// What the command left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecReply {
    /// Exit code; 128 + signal.
    pub code: i32,
    /// Base64 of standard output, at most 8 MiB.
    pub stdout: String,
    /// Base64 of standard error, at most 8 MiB.
    pub stderr: String,
    /// Output was cut at the bound.
    pub truncated: bool,
}
