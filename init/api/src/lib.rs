//! What init and the rest of the system agree on: paths, documents, environment.
//!
//! Init knows nothing of the agent but that it is a service; the agent knows nothing of init but this crate.

pub mod network;
pub mod time;
pub mod trial;

pub use network::{LinkConfig, LinkStatus, NetworkConfig, NetworkStatus};
pub use time::{TimeFloor, TimeStatus};
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
    /// A request to power off or reboot: whoever can write here (root) writes `poweroff` or `reboot` (atomic rename).
    pub const SHUTDOWN: &str = "/run/beemesh/shutdown";
    /// Written by init (atomic rename) when something changes: a list of [`super::ServiceStatus`] as JSON.
    pub const SERVICES: &str = "/run/beemesh/init/services.json";
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

/// A service of init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// `waiting`, `starting`, `running`, `ready`, `stopping`, `paused` or `ended`.
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
