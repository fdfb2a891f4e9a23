//! The way down: services in reverse order, then everyone else, then the disks. Bounded: [`LIMIT_MS`] after the
//! request the machine goes down, whatever hangs.

/// From the request to the last command, in milliseconds. The driver adds at most five seconds for the disks.
pub(crate) const LIMIT_MS: u64 = 25_000;
/// From SIGTERM to SIGKILL for all that is not a service (pods), in milliseconds.
pub(crate) const OTHERS_GRACE_MS: u64 = 5_000;
/// From SIGKILL to the end, in milliseconds: only processes stuck in the kernel are left then.
pub(crate) const AFTER_KILL_MS: u64 = 1_000;

/// Where the way down has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Services,
    Others { kill_at_ms: u64 },
    Killed { finish_at_ms: u64 },
    Finished,
}
