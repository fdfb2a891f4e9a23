//! How a process ended, and how that is said. Nothing here guesses: an end for want of memory is one that the kernel's
//! counters show ([`MemoryEvents`]), not any signal 9.

/// Exit code of `run-service` when the sandbox could not be made. Source: systemd.exec(5), `EXIT_NAMESPACE`.
pub const SANDBOX_FAILED: u8 = 226;
/// Exit code of `run-service` when the program could not be run. Source: systemd.exec(5), `EXIT_EXEC`.
pub const EXEC_FAILED: u8 = 203;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// exit(2) with this code.
    Exited(i32),
    /// A signal.
    Signalled(i32),
    /// The kernel ended it: it reached its own limit of so many MiB, or (`None`) the machine had no memory left.
    OutOfMemory(Option<u64>),
    /// The program could not be run at all; the errno.
    NotStarted(i32),
    /// It was not started, because processes of its last run are still being ended.
    StillPopulated,
}

impl Ending {
    /// Ended as it should.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Exited(0)
    }

    pub(crate) fn words(self) -> String {
        match self {
            Self::Exited(code) if code == i32::from(EXEC_FAILED) => {
                "cannot be run: is it missing from the system image?".to_owned()
            }
            Self::Exited(code) if code == i32::from(SANDBOX_FAILED) => {
                "was not started, since its sandbox could not be made".to_owned()
            }
            Self::Exited(code) => format!("ended with code {code}"),
            Self::Signalled(9) => "was killed (signal 9)".to_owned(),
            Self::Signalled(signal) => format!("was ended by signal {signal}"),
            Self::OutOfMemory(Some(mib)) => format!("was ended because it used more than {mib} MiB"),
            Self::OutOfMemory(None) => "was ended because the machine ran out of memory".to_owned(),
            Self::NotStarted(errno) => format!("could not be started (error {errno})"),
            Self::StillPopulated => "waits for processes of its last run to end".to_owned(),
        }
    }
}

/// Counters of a cgroup's `memory.events`. Source: Linux `Documentation/admin-guide/cgroup-v2.rst`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// `oom`: how often the limit was reached and nothing could be reclaimed.
    pub oom: u64,
    /// `oom_kill`: processes that were killed for want of memory, of the group or of the machine.
    pub oom_kill: u64,
}

impl MemoryEvents {
    /// From the file's text; what is missing counts as 0.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let value = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(' '))
                .find(|(key, _)| *key == name)
                .and_then(|(_, number)| number.trim().parse().ok())
                .unwrap_or(0)
        };
        Self {
            oom: value("oom"),
            oom_kill: value("oom_kill"),
        }
    }

    /// `ending`, or what is behind it when the counters were `before` at the start and are these now.
    #[must_use]
    pub fn explain(self, before: Self, ending: Ending, limit_bytes: u64) -> Ending {
        if ending.is_success() || self.oom_kill <= before.oom_kill {
            return ending;
        }
        Ending::OutOfMemory((self.oom > before.oom).then_some(limit_bytes >> 20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "low 0\nhigh 3\nmax 7\noom 2\noom_kill 1\noom_group_kill 1\n";

    #[test]
    fn signal_9_is_want_of_memory_only_when_the_counters_rose() {
        let now = MemoryEvents::parse(TEXT);
        assert_eq!((now.oom, now.oom_kill), (2, 1));
        let killed = Ending::Signalled(9);
        assert_eq!(now.explain(now, killed, 64 << 20), killed);
        let before = MemoryEvents { oom: 1, oom_kill: 0 };
        assert_eq!(
            now.explain(before, killed, 64 << 20),
            Ending::OutOfMemory(Some(64))
        );
        let machine = MemoryEvents { oom: 2, oom_kill: 0 };
        assert_eq!(now.explain(machine, killed, 64 << 20), Ending::OutOfMemory(None));
        assert_eq!(now.explain(before, Ending::Exited(0), 1), Ending::Exited(0));
    }

    #[test]
    fn damaged_counters_count_as_nothing() {
        assert_eq!(
            MemoryEvents::parse("oom x\noom_kill\n\0"),
            MemoryEvents::default()
        );
    }
}
