//! The service model: desired x actual state of one service, and who decides what.
//!
//! - `desired` is set by the machine alone: up from the boot on, down from the shutdown on. It never goes up again.
//! - `actual` follows from what the driver reports. A service runs at most once: it is started only from `Waiting` and
//!   `Paused`, and leaves `Starting`, `Running` and `Stopping` only by an exit (or a failure to start).
//! - A daemon that exits is started again after a pause (`backoff`), without end. A oneshot that fails is tried
//!   [`ONESHOT_ATTEMPTS`] times; then those who wait for it go on without it, and that is said on the console.
//! - Only the main process and the service's own cgroup are killed: what has moved to another cgroup (the pods'
//!   shims) survives the restart of the service that started it.

use crate::backoff::{Jitter, WELL_AFTER_MS, pause_ms};
use crate::machine::Command;

/// How often a oneshot is tried.
pub const ONESHOT_ATTEMPTS: u32 = 2;
/// How long a oneshot may run before it is killed and counted as failed, in milliseconds.
pub const ONESHOT_LIMIT_MS: u64 = 60_000;

/// How a service ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs once, to its end.
    Oneshot,
    /// Runs for as long as the machine.
    Daemon,
}

/// What must be before a service is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// This service has ended (oneshot) or was started (daemon).
    Service(&'static str),
}

/// What a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name: of its log, its cgroup and its notify socket.
    pub name: &'static str,
    /// Absolute path of the program.
    pub program: &'static str,
    /// How it ends.
    pub kind: Kind,
    /// What must be before it is started.
    pub needs: Vec<Need>,
    /// From SIGTERM to SIGKILL, in milliseconds.
    pub grace_ms: u64,
}

/// The services of the product, in start order; they are stopped in reverse.
#[must_use]
pub fn product_services() -> Vec<ServiceSpec> {
    vec![
        // First to come and last to go: it keeps what the others print.
        ServiceSpec {
            name: "logd",
            program: "/usr/lib/beemesh/beemesh-logd",
            kind: Kind::Daemon,
            needs: Vec::new(),
            grace_ms: 2_000,
        },
        ServiceSpec {
            name: "net",
            program: "/usr/lib/beemesh/beemesh-net",
            kind: Kind::Daemon,
            needs: Vec::new(),
            grace_ms: 2_000,
        },
        ServiceSpec {
            name: "unlock",
            program: "/usr/lib/beemesh/beemesh-unlock",
            kind: Kind::Oneshot,
            needs: Vec::new(),
            grace_ms: 2_000,
        },
        ServiceSpec {
            name: "agent",
            program: "/usr/lib/beemesh/beemesh-agent",
            kind: Kind::Daemon,
            needs: vec![Need::Service("unlock")],
            grace_ms: 8_000,
        },
    ]
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// exit(2) with this code.
    Exited(i32),
    /// A signal.
    Signalled(i32),
    /// The program could not be run at all; the errno.
    NotStarted(i32),
}

impl Ending {
    /// Ended as it should.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Exited(0)
    }

    fn words(self) -> String {
        match self {
            Self::Exited(code) => format!("ended with code {code}"),
            Self::Signalled(9) => "was killed (signal 9; out of memory, perhaps)".to_owned(),
            Self::Signalled(signal) => format!("was ended by signal {signal}"),
            Self::NotStarted(2) => "is missing from the system image".to_owned(),
            Self::NotStarted(errno) => format!("could not be started (error {errno})"),
        }
    }
}

/// What a service is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actual {
    /// Its needs are not met yet.
    Waiting,
    /// The driver was told to start it.
    Starting,
    /// It runs.
    Running {
        /// Since when, in milliseconds of the machine's clock.
        since_ms: u64,
        /// It has said `READY=1`.
        ready: bool,
    },
    /// SIGTERM was sent.
    Stopping {
        /// When SIGKILL follows.
        kill_at_ms: u64,
    },
    /// SIGKILL was sent; the kernel will report the exit.
    Killed,
    /// Failed, and started again then.
    Paused {
        /// When.
        until_ms: u64,
    },
    /// Will not run again.
    Ended,
}

/// A service and its state.
#[derive(Debug, Clone)]
pub struct Service {
    /// What it is.
    pub spec: ServiceSpec,
    /// What it is doing.
    pub actual: Actual,
    failures: u32,
    desired_up: bool,
}

impl Service {
    /// A service that waits to be started.
    #[must_use]
    pub fn new(spec: ServiceSpec) -> Self {
        Self {
            spec,
            actual: Actual::Waiting,
            failures: 0,
            desired_up: true,
        }
    }

    /// Those who need this service may go on.
    #[must_use]
    pub fn satisfies(&self) -> bool {
        match self.spec.kind {
            Kind::Oneshot => self.actual == Actual::Ended,
            Kind::Daemon => matches!(self.actual, Actual::Running { .. }),
        }
    }

    /// A process of it may exist.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(
            self.actual,
            Actual::Starting | Actual::Running { .. } | Actual::Stopping { .. } | Actual::Killed
        )
    }

    /// Starts it if it should run, does not, and `needs_met`.
    pub(crate) fn start(&mut self, now_ms: u64, needs_met: bool) -> Option<Command> {
        let due = match self.actual {
            Actual::Waiting => needs_met,
            Actual::Paused { until_ms } => until_ms <= now_ms,
            _ => false,
        };
        (due && self.desired_up).then(|| {
            self.actual = Actual::Starting;
            Command::Start(self.spec.name)
        })
    }

    pub(crate) fn started(&mut self, now_ms: u64) -> Option<Command> {
        match self.actual {
            Actual::Starting if self.desired_up => {
                self.actual = Actual::Running {
                    since_ms: now_ms,
                    ready: false,
                };
                None
            }
            // Shutdown came between the command and its execution.
            Actual::Starting => Some(self.terminate(now_ms)),
            _ => None,
        }
    }

    pub(crate) fn ready(&mut self) -> bool {
        match &mut self.actual {
            Actual::Running { ready, .. } => !std::mem::replace(ready, true),
            _ => false,
        }
    }

    pub(crate) fn ended(&mut self, now_ms: u64, ending: Ending, jitter: &mut Jitter) -> Vec<Command> {
        let before = self.actual;
        if !self.is_alive() {
            return Vec::new();
        }
        let mut commands = vec![Command::KillCgroup(self.spec.name)];
        if !self.desired_up || (self.spec.kind == Kind::Oneshot && ending.is_success()) {
            self.actual = Actual::Ended;
            return commands;
        }
        if matches!(before, Actual::Running { since_ms, .. } if now_ms.saturating_sub(since_ms) >= WELL_AFTER_MS)
        {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let what = format!("beemesh: the service `{}` {}", self.spec.name, ending.words());
        if self.spec.kind == Kind::Oneshot && self.failures >= ONESHOT_ATTEMPTS {
            self.actual = Actual::Ended;
            commands.push(Command::Say(format!("{what}; going on without it")));
        } else {
            let pause = pause_ms(self.failures, jitter.draw());
            self.actual = Actual::Paused {
                until_ms: now_ms.saturating_add(pause),
            };
            // A console full of the same line helps nobody: the 1st, 2nd, 4th, 8th... failure is said.
            if self.failures.is_power_of_two() {
                let times = if self.failures == 1 {
                    String::new()
                } else {
                    format!(" for the {}th time", self.failures)
                };
                commands.push(Command::Say(format!("{what}{times}; it is started again")));
            }
        }
        commands
    }

    /// From now on it should not run.
    pub(crate) fn want_down(&mut self) {
        self.desired_up = false;
        if matches!(self.actual, Actual::Waiting | Actual::Paused { .. }) {
            self.actual = Actual::Ended;
        }
    }

    /// Its turn to be stopped has come.
    pub(crate) fn stop(&mut self, now_ms: u64) -> Option<Command> {
        matches!(self.actual, Actual::Running { .. }).then(|| self.terminate(now_ms))
    }

    fn terminate(&mut self, now_ms: u64) -> Command {
        self.actual = Actual::Stopping {
            kill_at_ms: now_ms.saturating_add(self.spec.grace_ms),
        };
        Command::Terminate(self.spec.name)
    }

    /// What the passing of time brings: the kill after the grace, the end of a oneshot that hangs.
    pub(crate) fn tick(&mut self, now_ms: u64) -> Option<Command> {
        if self.deadline_ms().is_some_and(|at| at <= now_ms)
            && matches!(self.actual, Actual::Stopping { .. } | Actual::Running { .. })
        {
            self.actual = Actual::Killed;
            return Some(Command::Kill(self.spec.name));
        }
        None
    }

    /// When [`Self::tick`] or [`Self::start`] has something to do.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        match self.actual {
            Actual::Stopping { kill_at_ms } => Some(kill_at_ms),
            Actual::Paused { until_ms } => Some(until_ms),
            Actual::Running { since_ms, .. } if self.spec.kind == Kind::Oneshot => {
                Some(since_ms.saturating_add(ONESHOT_LIMIT_MS))
            }
            _ => None,
        }
    }
}
