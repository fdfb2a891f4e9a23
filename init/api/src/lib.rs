//! What init and the rest of the system agree on: paths, documents, environment.
//!
//! Init knows nothing of the agent but that it is a service; the agent knows nothing of init but this crate.

pub mod network;
pub mod time;
pub mod trial;

pub use network::{LinkConfig, LinkStatus, NetworkConfig, NetworkStatus};
pub use time::{PeerTime, TimeFloor, TimeStatus};
pub use trial::NetworkTrial;

use serde::{Deserialize, Serialize};

/// Paths that exist in a running system.
pub mod path {
    /// Where the state volume is mounted. Everything else writable is RAM.
    pub const STATE: &str = "/var/lib/beemesh";
    /// Runtime directory (tmpfs).
    pub const RUN: &str = "/run/beemesh";
    /// A stick whose file system is labelled `BEEMESHJOIN` is mounted here, read-only, for as long as it is present.
    pub const STICK: &str = "/run/beemesh/stick";
    /// Written by init (atomic rename) whenever a stick comes or goes: [`super::StickStatus`] as JSON.
    pub const STICK_STATUS: &str = "/run/beemesh/stick.json";
    /// Written by the agent (atomic rename): [`super::NetworkConfig`] as JSON. `beemesh-net` applies each new content.
    pub const NETWORK: &str = "/run/beemesh/network.json";
    /// Written by the agent (atomic rename) while a config is tried: [`super::NetworkTrial`] as JSON. It is in RAM, so a
    /// reboot ends the trial.
    pub const NETWORK_TRIAL: &str = "/run/beemesh/network-trial.json";
    /// Written by `beemesh-net` (atomic rename): [`super::NetworkStatus`] as JSON.
    pub const NETWORK_STATUS: &str = "/run/beemesh/network-status.json";
    /// Written by the agent (atomic rename) whenever it rises: [`super::TimeFloor`] as JSON.
    pub const TIME_FLOOR: &str = "/run/beemesh/time-floor.json";
    /// Written by the agent (atomic rename) while members' clocks are known: [`super::PeerTime`] as JSON.
    pub const PEER_TIME: &str = "/run/beemesh/peer-time.json";
    /// Written by `beemesh-net` (atomic rename): [`super::TimeStatus`] as JSON.
    pub const TIME_STATUS: &str = "/run/beemesh/time-status.json";
    /// Its modification time is when the image was made, as in systemd.
    pub const CLOCK_EPOCH: &str = "/usr/lib/clock-epoch";
    /// Written by `beemesh-unlock`: [`super::StateStatus`] as JSON.
    pub const STATE_STATUS: &str = "/run/beemesh/state.json";
    /// Written by init when it starts: milliseconds on CLOCK_BOOTTIME of PID 1's first line, decimal.
    pub const BOOT_STARTED: &str = "/run/beemesh/boot-started-ms";
    /// Written by init, empty, once the devices that were there at boot have their drivers, or waiting for that took
    /// too long. Before that a disk may be missing: `beemesh-unlock` formats none.
    pub const SETTLED: &str = "/run/beemesh/settled";
    /// A request to go down: whoever can write here (root) writes `poweroff`, `reboot` or `halt` (atomic rename).
    pub const SHUTDOWN: &str = "/run/beemesh/shutdown";
    /// Written by init (atomic rename) when something changes: a list of [`super::ServiceStatus`] as JSON.
    pub const SERVICES: &str = "/run/beemesh/init/services.json";
    /// Written by init (atomic rename) when a service or the machine changes its state: [`super::Changes`] as JSON.
    pub const CHANGES: &str = "/run/beemesh/init/changes.json";
    /// Written by init once: a list of [`super::PhaseTime`] as JSON.
    pub const BOOT_PHASES: &str = "/run/beemesh/init/boot.json";
    /// `org.beemesh.Init1`, peer to peer; for root alone (folder 0700, socket 0600).
    pub const CONTROL_SOCKET: &str = "/run/beemesh/control/init1";
    /// The system log's rings in RAM (`init/log/SPEC.md`): `services` and `kernel` below here.
    pub const LOG: &str = "/run/beemesh/log";
    /// Where `/etc/resolv.conf` of the image points. Written by `beemesh-net` (atomic rename).
    pub const RESOLV_CONF: &str = "/run/beemesh/resolv.conf";
    /// Services run below here, one cgroup each, all controllers delegated.
    pub const SERVICE_CGROUPS: &str = "/sys/fs/cgroup/beemesh/services";
    /// Pods run below here, all controllers delegated; init never kills what is in it before the shutdown.
    pub const POD_CGROUPS: &str = "/sys/fs/cgroup/beemesh/pods";
    /// The agent's REST socket.
    pub const AGENT_SOCKET: &str = "/run/beemesh/agent.sock";
    /// Lines written to this FIFO appear on every console, at most 400 bytes each.
    pub const CONSOLE: &str = "/run/beemesh/console";
}

/// Label of the FAT file system that holds a join pack.
pub const JOIN_LABEL: &str = "BEEMESHJOIN";
/// Label of the state volume's file system and GPT partition name.
pub const STATE_LABEL: &str = "BEEMESHSTATE";

/// Name of the opened state volume below `/dev/mapper`.
pub const STATE_MAPPER: &str = "beemesh-state";

/// The name of the descriptor under which PID 1 passes on the socket that it listens on for a service.
pub const SOCKET_NAME: &str = "socket";

/// A service of init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// `waiting`, `starting`, `running`, `ready`, `stopping`, `paused`, `stopped` or `ended`.
    pub state: String,
    /// The main process.
    pub pid: Option<i32>,
    /// How often it was started again.
    pub restarts: u64,
    /// What it last said about itself.
    pub status: Option<String>,
    /// Names of the descriptors that are kept for it.
    pub descriptors: Vec<String>,
    /// Descriptors that were refused because too many are kept.
    pub descriptors_refused: u64,
    /// `daemon`, `oneshot` or `on-demand`. Only a daemon can be started and stopped by a request.
    pub kind: String,
    /// How it ended the last time, in words.
    pub last_end: Option<String>,
}

/// A service came into another state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChange {
    /// Rises by one for each change of any service since the boot, from 1.
    pub number: u64,
    /// The service.
    pub name: String,
    /// Its new state, as in [`ServiceStatus`].
    pub state: String,
    /// How it ended the last time, in words.
    pub last_end: Option<String>,
    /// When, in milliseconds on CLOCK_BOOTTIME.
    pub at_ms: u64,
}

/// What changed last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The machine: `starting`, `running`, `degraded` (some service does not do what it should) or `stopping`.
    pub machine: String,
    /// The latest changes, oldest first, at most [`CHANGES_KEPT`]; who reads too seldom sees a gap in their numbers.
    pub latest: Vec<ServiceChange>,
}

/// How many changes are kept.
pub const CHANGES_KEPT: usize = 64;

/// A phase of the boot, and when it was through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Its name, as in `ARCHITECTURE.md`.
    pub phase: String,
    /// In milliseconds on CLOCK_BOOTTIME.
    pub ended_ms: u64,
}

/// What can be asked of PID 1 over its notify socket (`X_BEEMESH_ASK=`) by a service whose spec allows that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Start this daemon.
    Start(String),
    /// Stop it until it is asked for again.
    Stop(String),
    /// End it and start it again.
    Restart(String),
    /// Switch the machine off.
    PowerOff,
    /// Start the machine again.
    Reboot,
    /// Stop the machine and leave it on.
    Halt,
}

impl std::fmt::Display for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start(name) => write!(f, "start {name}"),
            Self::Stop(name) => write!(f, "stop {name}"),
            Self::Restart(name) => write!(f, "restart {name}"),
            Self::PowerOff => f.write_str("poweroff"),
            Self::Reboot => f.write_str("reboot"),
            Self::Halt => f.write_str("halt"),
        }
    }
}

/// A stick came or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StickStatus {
    /// Rises by one for each change: the same stick put in again is a new event.
    pub generation: u64,
    /// The block device, e.g. `/dev/sdb2`, while it is mounted at [`path::STICK`].
    pub device: Option<String>,
}

/// The state volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateStatus {
    /// Block device; `None`: the state lies in RAM and is gone after a reboot.
    pub device: Option<String>,
    /// LUKS2 with a key sealed in the TPM.
    pub encrypted: bool,
    /// A sentence for the console.
    pub message: String,
}
