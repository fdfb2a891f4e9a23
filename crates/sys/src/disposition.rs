//! Signal dispositions that a program started by `exec` inherits.
//!
//! It does not install handlers: only the kernel's default can be put back, which no running code can be surprised by.

use nix::sys::signal::{SigHandler, Signal, signal};

/// Why a disposition could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("failed to reset the disposition of `{signal}`")]
pub struct DispositionError {
    signal: Signal,
    #[source]
    source: nix::Error,
}

/// Gives `signal` its default disposition. Rust's start-up code ignores SIGPIPE, and an ignored signal stays ignored
/// across `exec`: a program that is to behave as usual needs this first (signal(7), execve(2)).
pub fn reset_signal(which: Signal) -> Result<(), DispositionError> {
    // SAFETY: SIG_DFL installs no handler, so no code of ours can be called in signal context.
    #[allow(unsafe_code)]
    unsafe { signal(which, SigHandler::SigDfl) }
        .map(drop)
        .map_err(|source| DispositionError {
            signal: which,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sigpipe_is_no_longer_ignored_after_a_reset() {
        reset_signal(Signal::SIGPIPE).unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let ignored = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .unwrap();
        let mask = u64::from_str_radix(ignored.trim(), 16).unwrap();
        assert_eq!(mask & (1 << (libc::SIGPIPE - 1)), 0);
    }

    #[test]
    fn sigkill_is_refused() {
        assert!(reset_signal(Signal::SIGKILL).is_err());
    }
}
