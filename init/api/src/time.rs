//! What the agent and `beemesh-net` tell each other about the time. Pure documents.

use serde::{Deserialize, Serialize};

/// The time that is certainly past, by the signatures that the agent has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeFloor {
    /// Seconds since the Unix epoch.
    pub unix: i64,
}

/// What time the members of the fabric have: the median of their clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerTime {
    /// When this machine started by that time, in microseconds since the Unix epoch: whatever sets the system clock
    /// meanwhile does not change it.
    pub origin_us: i64,
    /// How far it may be off, in microseconds.
    pub error_us: u64,
    /// Members that were heard.
    pub members: u32,
    /// When, in milliseconds on CLOCK_BOOTTIME.
    pub heard_ms: u64,
}

/// What was last heard of the members' clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersHeard {
    /// Members that were heard.
    pub members: u32,
    /// What the median of their clocks was ahead of this machine's, in microseconds.
    pub offset_us: i64,
    /// CLOCK_BOOTTIME of the median, in milliseconds.
    pub heard_ms: u64,
}

/// The system clock: where its time is from and how good it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeStatus {
    /// What the clock was last set or confirmed by.
    pub source: TimeSource,
    /// Why, in words.
    pub reason: String,
    /// The server that was last heard, where one was.
    #[serde(default)]
    pub server: Option<String>,
    /// What the server's time was ahead of the clock at the last look, in microseconds.
    #[serde(default)]
    pub offset_us: Option<i64>,
    /// CLOCK_BOOTTIME of the last answer, in milliseconds.
    #[serde(default)]
    pub heard_ms: Option<u64>,
    /// The members' clocks, while they are what this one follows.
    #[serde(default)]
    pub peers: Option<PeersHeard>,
    /// The floor, in seconds since the Unix epoch.
    pub floor: i64,
    /// The battery-backed clock.
    pub rtc: RtcState,
}

/// Where the time of the system clock is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeSource {
    /// Nothing better was there: the clock stands at the floor or counts on from it.
    Floor,
    /// The battery-backed clock, which is plausible.
    Rtc,
    /// The median of the fabric's members.
    Peers,
    /// An NTP server.
    Ntp,
}

/// The battery-backed clock as it was found at the start, and after it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RtcState {
    /// There is none, or it cannot be read.
    Absent,
    /// Between the floor and the ceiling.
    Plausible,
    /// Before the floor, as with an empty battery.
    Behind,
    /// Absurdly after the floor.
    Ahead,
    /// Written since.
    Written,
}
