//! The way down: services in reverse order, then everyone else, then the disks. Bounded: within 30 s of the request the
//! machine goes down, whatever hangs. The disks get what the programs leave of that, since a slow disk with much to write
//! is worth the wait, and a program that ignores SIGTERM is not.

/// From the request to the last command, in milliseconds.
pub(crate) const LIMIT_MS: u64 = 25_000;
/// From the request to the moment when the disks are left as they are, in milliseconds.
pub(crate) const DISKS_UNTIL_MS: u64 = 29_000;
/// The disks get at least this time, in milliseconds: what is left when the programs took all of [`LIMIT_MS`].
pub const LEAST_DISKS_MS: u64 = DISKS_UNTIL_MS - LIMIT_MS;
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
