//! What goes into a [`Cell`](crate::Cell) and what comes out: configuration, events, commands, records.
//!
//! Types alone, no behaviour. Invariant: nothing here holds a handle to the world; all of it can be recorded.

use crate::attestation::{Baseline, ReleaseNews, Releases, Report};
use beemesh_agent_api::shim::{ContainerState, Phase};
use beemesh_agent_api::view::Assurance;
use beemesh_agent_api::{Change, WorkloadId, WorkloadSpec};
use beemesh_ids::{Digest, NodeName, PeerId};
use beemesh_joinpack_format::Registers;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Monotonic milliseconds of the driver's clock. Never compared between nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Millis(pub u64);

impl Millis {
    /// This moment plus `ms`.
    pub fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since `earlier`; 0 where that is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This moment less `ms`.
    pub fn before(self, ms: u64) -> Self {
        Self(self.0.saturating_sub(ms))
    }
}

/// One ordinal of one workload.
pub type Key = (WorkloadId, u32);

/// What a cell must know before its first step.
#[derive(Debug, Clone)]
pub struct CellConfig {
    /// This node.
    pub me: PeerId,
    /// This node as its own member.
    pub member: MemberInfo,
    /// Seed of every random choice; another one at each start, or pod ids repeat.
    pub seed: u64,
    /// Times and bounds.
    pub tuning: Tuning,
}

/// Times (milliseconds) and counts. The defaults are for a cell in one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Arbiters of one ordinal (design: R = 5).
    pub arbiters: usize,
    /// Members probed for one placement (design: k = 8).
    pub probes: usize,
    /// Longest wait for the answers of a probe.
    pub probe_timeout_ms: u64,
    /// After this the placer stops waiting for the slow third.
    pub hedge_ms: u64,
    /// A probe reserves this long.
    pub reserve_ms: u64,
    /// A grant outlives its dead holder this long.
    pub lease_ms: u64,
    /// A leased copy stops itself after this long without the renewals of more than a third of the roster.
    pub fence_ms: u64,
    /// Voters wait this long beyond `fence_ms` before they vote for another holder: drift and time to kill.
    pub fence_margin_ms: u64,
    /// A claim that has no majority by then is given up.
    pub claim_ms: u64,
    /// Heartbeat.
    pub status_ms: u64,
    /// A member never heard of since this node started counts as alive for this long.
    pub unknown_ms: u64,
    /// A step this late means that this node stood still: its timers are moved on instead of fired at once.
    pub stall_ms: u64,
    /// First wait before an ordinal is placed again.
    pub backoff_ms: u64,
    /// Longest wait.
    pub backoff_cap_ms: u64,
    /// cpu that may be reserved, in per cent of what there is.
    pub cpu_percent: u64,
    /// SWIM: one member is probed each period.
    pub swim_period_ms: u64,
    /// SWIM: a direct answer is awaited this long before others are asked.
    pub swim_rtt_ms: u64,
    /// SWIM: a suspect has this long to speak up.
    pub swim_suspect_ms: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            arbiters: 5,
            probes: 8,
            probe_timeout_ms: 350,
            hedge_ms: 60,
            reserve_ms: 3000,
            lease_ms: 3000,
            fence_ms: 10_000,
            fence_margin_ms: 3000,
            claim_ms: 1000,
            status_ms: 1000,
            unknown_ms: 8000,
            stall_ms: 500,
            backoff_ms: 100,
            backoff_cap_ms: 5000,
            cpu_percent: 120,
            swim_period_ms: 800,
            swim_rtt_ms: 350,
            swim_suspect_ms: 3000,
        }
    }
}

/// A member as its credential describes it. The driver has verified the credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Name.
    pub name: NodeName,
    /// How far its identity can be believed.
    pub assurance: Assurance,
    /// The voucher it redeemed; empty for a founder.
    pub voucher_id: String,
    /// When it redeemed it, as signed in the credential: orders two redemptions of one voucher.
    pub redeemed: u64,
    /// The credential, as other nodes verify it.
    #[serde(with = "crate::wire::bytes")]
    pub credential: Vec<u8>,
    /// The key that it has now.
    #[serde(default)]
    pub key: KeyInfo,
}

/// The present key of a member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its peer id; `None` where it is the node id.
    pub peer: Option<PeerId>,
    /// How many keys the member had before.
    pub generation: u32,
    /// Id of the order, or of the voucher, that the key is as new as.
    pub as_of: String,
    /// When it was taken, in seconds since 1970, as the member says. For people.
    pub since: i64,
}

/// What this node has and is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Millicores that workloads may use.
    pub cpu_millis: u64,
    /// Bytes that workloads may use.
    pub memory_bytes: u64,
    /// Labels of the node.
    pub labels: BTreeMap<String, String>,
    /// References of the images in its store, each as a manifest would write it.
    pub images: BTreeSet<String>,
    /// Addresses, for people.
    pub addresses: Vec<String>,
    /// OS version.
    pub version: String,
    /// PID 1's first line to membership.
    pub joined_after_ms: Option<u64>,
}

/// What the runtime knows of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodReport {
    /// Phase.
    pub phase: Phase,
    /// All containers run.
    pub ready: bool,
    /// Address in the pod network.
    pub ip: Option<String>,
    /// Node port to container port.
    pub ports: Vec<(u16, u16)>,
    /// Containers.
    pub containers: Vec<ContainerState>,
    /// Accepted change to running process, in milliseconds.
    pub start_ms: Option<u64>,
    /// Why it does not run, in words.
    pub reason: Option<String>,
}

impl Default for PodReport {
    fn default() -> Self {
        Self {
            phase: Phase::Pending,
            ready: false,
            ip: None,
            ports: Vec::new(),
            containers: Vec::new(),
            start_ms: None,
            reason: None,
        }
    }
}

/// A pod whose shim outlived the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredPod {
    /// Pod id, as in [`Command::Start`].
    pub pod_id: String,
    /// Workload.
    pub workload: WorkloadId,
    /// Ordinal.
    pub ordinal: u32,
    /// As in [`Command::Start`].
    pub stamp: Stamp,
}

/// What the driver keeps beside a pod and brings back by [`RecoveredPod`], without looking at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Token of the grant.
    pub token: u64,
    /// Digest of the part of the specification that the pod was made from.
    pub template: u64,
    /// The copy stops itself where it cannot renew its lease.
    pub leased: bool,
}

/// What the driver tells the cell.
#[derive(Debug, Clone)]
pub enum Event {
    /// Time passed; every 100 ms. The other events carry time too.
    Tick,
    /// A member whose credential was verified: from the disk, a handshake, or after [`Command::VerifyMember`].
    Member {
        /// Its peer id.
        peer: PeerId,
        /// What the credential says.
        member: MemberInfo,
    },
    /// A connection to a member stands.
    Connected {
        /// The member.
        peer: PeerId,
    },
    /// The last connection to it is gone.
    Disconnected {
        /// The member.
        peer: PeerId,
    },
    /// A member's message, at most [`crate::wire::MAX_MESSAGE`] bytes.
    Message {
        /// Who sent it, as the connection proves.
        from: PeerId,
        /// A [`Command::Send`] of that member.
        bytes: Vec<u8>,
    },
    /// A change whose signature and fabric were verified: from an operator, or after [`Command::VerifyChange`].
    Change {
        /// The change.
        change: Change,
        /// The signed envelope around it.
        envelope: Vec<u8>,
    },
    /// What this node has and is; at the start and whenever it differs.
    Capacity(Capacity),
    /// A pod's state differs.
    Pod {
        /// Which.
        pod_id: String,
        /// Its state.
        state: PodReport,
    },
    /// A pod is gone: stopped, or it could not be made.
    PodGone {
        /// Which.
        pod_id: String,
    },
    /// What is revoked, verified: at the start and whenever more is known. From an operator, a stick, or after
    /// [`Command::VerifyRevocations`].
    Revocations(RevocationNews),
    /// The chain of root documents, verified: at the start and whenever it is longer. From an operator, a stick, or after
    /// [`Command::VerifyRoots`].
    Roots(RootNews),
    /// The standing orders, verified: at the start and whenever others are known. From an operator, a stick, or after
    /// [`Command::VerifyOrder`].
    Orders(OrderNews),
    /// The releases that a join pack without a signed list names; at the start and whenever they differ.
    Releases(ReleaseNews),
    /// What a member has answered to [`Command::Attest`], or why it has not.
    Attested {
        /// The member; may be this node itself.
        peer: PeerId,
        /// As in the command.
        round: u64,
        /// The answer.
        report: Result<Report, String>,
    },
    /// What still runs. Sent once after the start, empty where nothing does: before it, no pod is taken.
    Recovered {
        /// The pods.
        pods: Vec<RecoveredPod>,
    },
}

/// Everything that is revoked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationNews {
    /// The same wherever the same is revoked as of the same time; 0 where nothing is known.
    pub digest: u64,
    /// The signed snapshots that prove it, at most [`crate::revocation::MAX_SNAPSHOTS`], each at most
    /// [`crate::revocation::MAX_SNAPSHOT`] bytes.
    pub snapshots: Vec<Vec<u8>>,
    /// Nodes.
    pub nodes: BTreeSet<PeerId>,
    /// Vouchers.
    pub vouchers: BTreeSet<String>,
}

/// The chain of root documents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RootNews {
    /// Roots 1 to N as they were signed, at most [`crate::roots::MAX_ROOTS`].
    pub documents: Vec<Vec<u8>>,
}

/// All standing orders that say something: to rotate keys, acceptances of what nodes boot, and the releases that count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrderNews {
    /// The same wherever the same orders are known; 0 where none is.
    pub digest: u64,
    /// The signed orders, at most [`crate::keys::MAX_ORDERS`], each at most [`crate::keys::MAX_ORDER`] bytes.
    pub orders: Vec<Vec<u8>>,
    /// What nodes may boot from now on, by the acceptances among them.
    pub accepted: BTreeMap<PeerId, Registers>,
    /// The newest list of releases among them.
    pub releases: Option<ReleaseNews>,
}

/// What the driver must do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Send to a member; dropped silently where no connection stands.
    Send {
        /// To whom.
        to: PeerId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Verify a change that a member handed on; then [`Event::Change`], or nothing.
    VerifyChange {
        /// The signed envelope.
        envelope: Vec<u8>,
    },
    /// Verify a member that another one told of; then [`Event::Member`], or nothing.
    VerifyMember {
        /// Its peer id.
        peer: PeerId,
        /// Its credential.
        credential: Vec<u8>,
    },
    /// Verify a revocation snapshot that a member handed on; then [`Event::Revocations`] where it brings news.
    VerifyRevocations {
        /// The signed envelope.
        envelope: Vec<u8>,
    },
    /// Verify root documents that a member handed on; then [`Event::Roots`] where the chain is longer by them.
    VerifyRoots {
        /// Signed envelopes, consecutive if the member is honest.
        documents: Vec<Vec<u8>>,
    },
    /// Verify a standing order that a member handed on; then [`Event::Orders`] where it brings news.
    VerifyOrder {
        /// The signed envelope.
        envelope: Vec<u8>,
    },
    /// Ask a member, or this node's own TPM, for a quote over fresh randomness; then [`Event::Attested`].
    Attest {
        /// The member; may be this node itself.
        peer: PeerId,
        /// The attestation key that it has proven. For another one it must activate a credential.
        proven: Option<Digest>,
        /// Tells the answer from those to earlier questions.
        round: u64,
    },
    /// This member is revoked. Close its connections, take none.
    Revoked {
        /// The peer; may be this node itself.
        peer: PeerId,
    },
    /// A voucher was redeemed twice: this peer came second. Close its connections, take none.
    Quarantine {
        /// The peer.
        peer: PeerId,
        /// The voucher.
        voucher_id: String,
        /// The peer that came first.
        first: PeerId,
    },
    /// Make and start a pod.
    Start {
        /// Id of this copy, a ULID.
        pod_id: String,
        /// Workload.
        workload: WorkloadId,
        /// Ordinal.
        ordinal: u32,
        /// To be kept beside the pod.
        stamp: Stamp,
        /// The specification.
        spec: Box<WorkloadSpec>,
        /// When the change was accepted, or the loss of the copy before was noticed, by this node's clock.
        accepted_at: Millis,
    },
    /// Stop a pod; then [`Event::PodGone`]. May be repeated.
    Stop {
        /// Which.
        pod_id: String,
        /// Seconds between SIGTERM and SIGKILL.
        grace_seconds: u32,
    },
    /// Make durable before the commands after this one are carried out.
    Persist(Record),
    /// Tell people.
    Emit {
        /// Somebody has to do something about it: it is shown on the box's console too.
        alarm: bool,
        /// CamelCase.
        reason: &'static str,
        /// `node/<name>`, `pod/<name>` or `workload/<id>`.
        object: String,
        /// A sentence.
        message: String,
    },
}

/// Something to keep. Later ones of the same kind and key replace earlier ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// Highest boot counter that was used.
    Boot(u64),
    /// A grant given or taken back.
    Grant(GrantRecord),
    /// A change and its envelope.
    Change(Change, #[serde(with = "crate::wire::bytes")] Vec<u8>),
    /// A member.
    Member(PeerId, MemberInfo),
    /// How a member boots.
    Baseline(PeerId, Baseline),
    /// Which OS releases count.
    Releases(Releases),
}

/// What an arbiter promised about one ordinal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantRecord {
    /// Workload.
    pub workload: WorkloadId,
    /// Ordinal.
    pub ordinal: u32,
    /// Rises with each grant.
    pub token: u64,
    /// Who holds it; `None` after a release.
    pub holder: Option<PeerId>,
    /// Earlier holders that were declared dead and never seen to have stopped.
    pub ghosts: BTreeSet<PeerId>,
    /// The holder fences itself: see `SPEC.md`.
    pub leased: bool,
}

/// What came back from the disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Persisted {
    /// [`Record::Boot`].
    pub boot: u64,
    /// [`Record::Grant`] by ordinal.
    pub grants: Vec<GrantRecord>,
    /// [`Record::Change`] by workload.
    pub changes: Vec<(Change, Vec<u8>)>,
    /// [`Record::Member`] by peer.
    pub members: BTreeMap<PeerId, MemberInfo>,
    /// [`Record::Baseline`] by peer.
    #[serde(default)]
    pub baselines: Vec<(PeerId, Baseline)>,
    /// [`Record::Releases`].
    #[serde(default)]
    pub releases: Releases,
}

impl Persisted {
    /// Folds one record in, replacing its predecessor.
    pub fn apply(&mut self, record: Record) {
        match record {
            Record::Releases(releases) => self.releases = releases,
            Record::Boot(boot) => self.boot = self.boot.max(boot),
            Record::Grant(grant) => {
                let same =
                    |old: &GrantRecord| (&old.workload, old.ordinal) == (&grant.workload, grant.ordinal);
                match self.grants.iter_mut().find(|old| same(old)) {
                    Some(old) => *old = grant,
                    None => self.grants.push(grant),
                }
            }
            Record::Change(change, envelope) => {
                match self
                    .changes
                    .iter_mut()
                    .find(|(old, _)| old.workload == change.workload)
                {
                    Some(old) => *old = (change, envelope),
                    None => self.changes.push((change, envelope)),
                }
            }
            Record::Member(peer, member) => {
                self.members.insert(peer, member);
            }
            Record::Baseline(peer, baseline) => {
                match self.baselines.iter_mut().find(|(old, _)| *old == peer) {
                    Some(old) => old.1 = baseline,
                    None => self.baselines.push((peer, baseline)),
                }
            }
        }
    }
}
