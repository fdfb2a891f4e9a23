//! The service model: desired x actual state of one service, and who decides what.
//!
//! - `desired` is set by the machine alone: up from the boot on, down for good from the shutdown on. In between someone may
//!   ask that a daemon is stopped, and started again. A oneshot has done its work and cannot be asked for.
//! - A service with a socket runs from the moment that somebody connects until it ends by itself; it cannot be asked for
//!   either, since connecting is how.
//! - `actual` follows from what the driver reports. A service runs at most once: it is started only from `Waiting` and
//!   `Paused` (never from `Stopped`), and leaves `Starting`, `Running`, `Stopping` and `Killed` only by an exit (or a failure to start). The
//!   driver refuses a start while processes of the last run are left ([`Ending::StillPopulated`]).
//! - The machine decides when a service's needs are met; the service decides when it is ready (`READY=1`), that it goes
//!   down (`STOPPING=1`), and asks for time (`EXTEND_TIMEOUT_USEC`), within [`EXTENSION_LIMIT_MS`]. The kernel decides
//!   what its main process is and how it ended; a message never does.
//! - A daemon that exits is started again after a pause (`backoff`), without end. A oneshot that fails is tried
//!   [`ONESHOT_ATTEMPTS`] times; then those who wait for it go on without it, and that is said on the console.
//! - A daemon that is not ready in time, or ready and silent for longer than its watchdog, is killed and started again.
//! - Stored descriptors outlive the process; a service that fails [`UNREADY_LIMIT`] times in a row before it is ready
//!   loses them, since they may be the cause.
//! - Only the main process and the service's own cgroup are killed: what has moved to another cgroup (the pods'
//!   shims) survives the restart of the service that started it.

use crate::backoff::{Jitter, WELL_AFTER_MS};
use crate::machine::Command;
use crate::notify::{Notice, Sign, Wish};

pub use crate::ending::Ending;
pub use crate::spec::{Kind, Need, Readiness, ServiceSpec, product_services};

/// How often a oneshot is tried.
pub const ONESHOT_ATTEMPTS: u32 = 2;
/// How much longer than its spec says a start or an end may be made by `EXTEND_TIMEOUT_USEC`, in milliseconds.
pub const EXTENSION_LIMIT_MS: u64 = 300_000;
/// A watchdog's time that a service may ask for, in milliseconds.
pub const WATCHDOG_RANGE_MS: std::ops::RangeInclusive<u64> = 1_000..=600_000;
/// Failures in a row before `READY=1` after which stored descriptors are dropped.
pub const UNREADY_LIMIT: u32 = 8;
/// What a person can do when a vital service fails so often.
const HELPLESS: &str = "beemesh: without it this machine is no use to its fabric. What you can do: switch it off and on once; if \
                        these lines come again, please read them to your support.";

/// A service with a socket that ends sooner than this has not served who woke it, in milliseconds: that is a failure, or the
/// two would wake each other without end.
pub const SERVED_MS: u64 = 500;

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
        /// When it is killed unless something is heard before.
        kill_at_ms: Option<u64>,
    },
    /// SIGTERM was sent, or it said `STOPPING=1`.
    Stopping {
        /// When SIGKILL follows.
        kill_at_ms: u64,
        /// To what that may be put off.
        latest_ms: u64,
    },
    /// SIGKILL was sent; the kernel will report the exit.
    Killed,
    /// Failed, and started again then.
    Paused {
        /// When.
        until_ms: u64,
    },
    /// Was stopped because somebody asked for that; runs again when somebody asks.
    Stopped,
    /// Will not run again.
    Ended,
}

/// Whether it should run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Desired {
    Up,
    /// As asked, until it is asked for again.
    Stopped,
    /// For good: the machine goes down.
    Down,
}

impl Actual {
    /// One word for documents.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Running { ready: false, .. } => "running",
            Self::Running { ready: true, .. } => "ready",
            Self::Stopping { .. } | Self::Killed => "stopping",
            Self::Paused { .. } => "paused",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
        }
    }
}

/// A service and its state.
#[derive(Debug, Clone)]
pub struct Service {
    /// What it is.
    pub spec: ServiceSpec,
    /// What it is doing.
    pub actual: Actual,
    /// What it last said about itself (`STATUS=`).
    pub status: Option<String>,
    /// How often it was started again.
    pub restarts: u64,
    /// How it ended the last time, in words.
    pub last_end: Option<String>,
    failures: u32,
    unready: u32,
    watchdog_ms: Option<u64>,
    /// Why PID 1 killed it.
    reason: Option<String>,
    desired: Desired,
    /// Somebody has connected to its socket.
    demanded: bool,
    /// It ends because somebody asked that it is started again.
    restarting: bool,
    ran: bool,
    /// Since when it has been neither ready nor waiting for others.
    unwell_since_ms: Option<u64>,
}

impl Service {
    /// A service that waits to be started.
    #[must_use]
    pub fn new(spec: ServiceSpec) -> Self {
        Self {
            watchdog_ms: spec.watchdog_ms,
            spec,
            actual: Actual::Waiting,
            status: None,
            restarts: 0,
            last_end: None,
            failures: 0,
            unready: 0,
            reason: None,
            desired: Desired::Up,
            demanded: false,
            restarting: false,
            ran: false,
            unwell_since_ms: None,
        }
    }

    /// Those who need this service may go on.
    #[must_use]
    pub fn satisfies(&self) -> bool {
        match (self.spec.kind, self.spec.readiness, self.actual) {
            (Kind::Oneshot, _, actual) => actual == Actual::Ended,
            (Kind::Daemon, Readiness::Started, Actual::Running { .. }) => true,
            (Kind::Daemon, Readiness::Notified, Actual::Running { ready, .. }) => ready,
            _ => false,
        }
    }

    /// It does what it should: it serves, is done, waits for someone to connect, or was stopped as asked.
    #[must_use]
    pub fn is_as_wanted(&self) -> bool {
        let on_demand = self.spec.socket.is_some() && !matches!(self.actual, Actual::Paused { .. });
        self.satisfies() || on_demand || self.actual == Actual::Stopped
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
            Actual::Waiting => needs_met && (self.demanded || self.spec.socket.is_none()),
            Actual::Paused { until_ms } => until_ms <= now_ms,
            _ => false,
        };
        (due && self.desired == Desired::Up).then(|| {
            self.restarts += u64::from(std::mem::replace(&mut self.ran, true));
            self.actual = Actual::Starting;
            self.watchdog_ms = self.spec.watchdog_ms;
            self.reason = None;
            Command::Start(self.spec.name)
        })
    }

    pub(crate) fn started(&mut self, now_ms: u64) -> Option<Command> {
        match self.actual {
            Actual::Starting if self.desired == Desired::Up => {
                let limited = self.spec.kind == Kind::Oneshot || self.spec.readiness == Readiness::Notified;
                self.actual = Actual::Running {
                    since_ms: now_ms,
                    ready: false,
                    kill_at_ms: limited.then(|| now_ms.saturating_add(self.spec.start_limit_ms)),
                };
                None
            }
            // A shutdown, or someone's wish, came between the command and its execution.
            Actual::Starting => Some(self.terminate(now_ms)),
            _ => None,
        }
    }

    /// Takes a message of the running service.
    pub(crate) fn notified(&mut self, now_ms: u64, notice: Notice) -> Vec<Command> {
        let mut commands = Vec::new();
        if !matches!(self.actual, Actual::Running { .. } | Actual::Stopping { .. }) {
            return commands;
        }
        if notice.status.is_some() {
            self.status = notice.status;
        }
        let asked = notice.watchdog_ms.filter(|ms| WATCHDOG_RANGE_MS.contains(ms));
        // Only a service that has a watchdog can change its time.
        self.watchdog_ms = asked.filter(|_| self.watchdog_ms.is_some()).or(self.watchdog_ms);
        let (name, watchdog, worth) = (self.spec.name, self.watchdog_ms, self.is_worth_a_line());
        let until = |ms: u64| now_ms.saturating_add(ms);
        match &mut self.actual {
            Actual::Running {
                since_ms,
                ready,
                kill_at_ms,
            } => {
                // A oneshot is done when it ends, not when it says so.
                if notice.ready && self.spec.kind == Kind::Daemon && !std::mem::replace(ready, true) {
                    *kill_at_ms = watchdog.map(until);
                    self.unready = 0;
                    commands.extend(
                        worth.then(|| Command::Say(format!("beemesh: the service `{name}` is ready"))),
                    );
                }
                let told = notice.watchdog == Some(Sign::Alive) || asked.is_some();
                if *ready && told {
                    *kill_at_ms = watchdog.map(until);
                }
                if let (false, Some(at), Some(extend)) = (*ready, kill_at_ms, notice.extend_ms) {
                    let latest = since_ms
                        .saturating_add(self.spec.start_limit_ms)
                        .saturating_add(EXTENSION_LIMIT_MS);
                    *at = until(extend).min(latest).max(*at);
                }
            }
            Actual::Stopping {
                kill_at_ms,
                latest_ms,
            } => {
                if let Some(extend) = notice.extend_ms {
                    *kill_at_ms = until(extend).min(*latest_ms).max(*kill_at_ms);
                }
            }
            _ => {}
        }
        if notice.watchdog == Some(Sign::Trigger) && self.watchdog_ms.is_some() {
            commands.extend(self.kill("asked to be ended by its watchdog".to_owned()));
        } else if notice.stopping && matches!(self.actual, Actual::Running { .. }) {
            self.actual = self.stopping(now_ms);
        }
        commands
    }

    pub(crate) fn ended(&mut self, now_ms: u64, ending: Ending, jitter: &mut Jitter) -> Vec<Command> {
        let before = self.actual;
        if !self.is_alive() {
            return Vec::new();
        }
        let mut commands = vec![Command::KillCgroup(self.spec.name)];
        let restarting = std::mem::take(&mut self.restarting);
        self.last_end = Some(ending.words());
        if self.desired == Desired::Stopped {
            self.actual = Actual::Stopped;
            commands.push(Command::ForgetDescriptors(self.spec.name));
            return commands;
        }
        if self.desired == Desired::Up && restarting {
            self.actual = Actual::Paused { until_ms: now_ms };
            return commands;
        }
        let served = matches!(before, Actual::Running { since_ms, .. } if now_ms.saturating_sub(since_ms) >= SERVED_MS);
        if self.desired == Desired::Up && self.spec.socket.is_some() && ending.is_success() && served {
            // It had nothing left to do. Who connects next starts it again.
            self.actual = Actual::Waiting;
            self.demanded = false;
            commands.push(Command::Listen(self.spec.name));
            return commands;
        }
        if self.desired == Desired::Down || (self.spec.kind == Kind::Oneshot && ending.is_success()) {
            self.actual = Actual::Ended;
            commands.push(Command::ForgetDescriptors(self.spec.name));
            return commands;
        }
        let well = matches!(before, Actual::Running { since_ms, .. } if now_ms.saturating_sub(since_ms) >= WELL_AFTER_MS);
        // The attempts of a oneshot are counted to their end, however long each takes.
        if well && self.spec.kind == Kind::Daemon {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        if matches!(before, Actual::Starting | Actual::Running { ready: false, .. }) {
            self.unready = self.unready.saturating_add(1);
            if self.unready == UNREADY_LIMIT {
                commands.push(Command::ForgetDescriptors(self.spec.name));
            }
        }
        let what = self.obituary(ending);
        if self.spec.kind == Kind::Oneshot && self.failures >= ONESHOT_ATTEMPTS {
            self.actual = Actual::Ended;
            commands.push(Command::Say(format!("{what}; going on without it")));
        } else {
            let pause = self.spec.restart.pause_ms(self.failures, jitter.draw());
            self.actual = Actual::Paused {
                until_ms: now_ms.saturating_add(pause),
            };
            if self.is_worth_a_line() {
                let times = if self.failures == 1 {
                    String::new()
                } else {
                    format!(", {} times in a row", self.failures)
                };
                commands.push(Command::Say(format!("{what}{times}; it is started again")));
            }
            if self.failures == UNREADY_LIMIT && self.spec.vital_ms.is_some() {
                commands.push(Command::Say(HELPLESS.to_owned()));
            }
        }
        commands
    }

    /// A console full of the same line helps nobody: the 1st, 2nd, 4th, 8th... failure is said, and what follows it.
    fn is_worth_a_line(&self) -> bool {
        self.failures == 0 || self.failures.is_power_of_two()
    }

    fn obituary(&mut self, ending: Ending) -> String {
        let last = self
            .status
            .take()
            .map(|status| format!(" (its last words: {status})"));
        // The kernel's reason comes before ours: memory that was short may be why it did not answer.
        let how = match (ending, self.reason.take()) {
            (Ending::OutOfMemory(_), _) | (_, None) => ending.words(),
            (_, Some(reason)) => reason,
        };
        format!(
            "beemesh: the service `{}` {how}{}",
            self.spec.name,
            last.unwrap_or_default()
        )
    }

    /// From now on it should not run.
    pub(crate) fn want_down(&mut self) {
        self.desired = Desired::Down;
        if matches!(
            self.actual,
            Actual::Waiting | Actual::Paused { .. } | Actual::Stopped
        ) {
            self.actual = Actual::Ended;
        }
    }

    /// Somebody has connected to its socket.
    pub(crate) fn demand(&mut self) {
        self.demanded = true;
    }

    /// Takes what somebody asks for; what it cannot do (see the head of this file) is passed over.
    pub(crate) fn wish(&mut self, now_ms: u64, wish: Wish) -> Vec<Command> {
        let fixed = self.spec.kind == Kind::Oneshot || self.spec.socket.is_some();
        if fixed || self.desired == Desired::Down || self.actual == Actual::Ended {
            return Vec::new();
        }
        self.desired = match wish {
            Wish::Stop => Desired::Stopped,
            Wish::Start | Wish::Restart => Desired::Up,
        };
        // A person has looked after it: what failed before does not count any more.
        self.failures = 0;
        self.restarting = wish == Wish::Restart && self.is_alive() && self.actual != Actual::Starting;
        let mut commands = Vec::new();
        match (wish, self.actual) {
            (Wish::Stop, Actual::Waiting | Actual::Paused { .. }) => self.actual = Actual::Stopped,
            (Wish::Stop | Wish::Restart, Actual::Running { .. }) => commands.push(self.terminate(now_ms)),
            (Wish::Start | Wish::Restart, Actual::Stopped) => self.actual = Actual::Waiting,
            (Wish::Start | Wish::Restart, Actual::Paused { .. }) => {
                self.actual = Actual::Paused { until_ms: now_ms };
            }
            // It is on its way out already, and comes back at once.
            (Wish::Start, Actual::Stopping { .. } | Actual::Killed) => self.restarting = true,
            _ => {}
        }
        let what = match wish {
            Wish::Start => "started",
            Wish::Stop => "stopped",
            Wish::Restart => "started again",
        };
        let name = self.spec.name;
        commands.push(Command::Say(format!(
            "beemesh: the service `{name}` is {what}, since someone asked for that"
        )));
        commands
    }

    /// Its turn to be stopped has come.
    pub(crate) fn stop(&mut self, now_ms: u64) -> Option<Command> {
        matches!(self.actual, Actual::Running { .. }).then(|| self.terminate(now_ms))
    }

    fn terminate(&mut self, now_ms: u64) -> Command {
        self.actual = self.stopping(now_ms);
        Command::Terminate(self.spec.name)
    }

    fn stopping(&self, now_ms: u64) -> Actual {
        let kill_at_ms = now_ms.saturating_add(self.spec.grace_ms);
        Actual::Stopping {
            kill_at_ms,
            latest_ms: kill_at_ms.saturating_add(EXTENSION_LIMIT_MS),
        }
    }

    fn kill(&mut self, reason: String) -> Option<Command> {
        if !matches!(self.actual, Actual::Running { .. } | Actual::Stopping { .. }) {
            return None;
        }
        self.actual = Actual::Killed;
        self.reason = Some(reason);
        Some(Command::Kill(self.spec.name))
    }

    /// What the passing of time brings: the kill after the grace, the end of what does not answer.
    pub(crate) fn tick(&mut self, now_ms: u64) -> Option<Command> {
        let seconds = |ms: u64| ms.div_ceil(1_000);
        let reason = match self.actual {
            Actual::Stopping { kill_at_ms, .. } if kill_at_ms <= now_ms => "did not stop in time".to_owned(),
            Actual::Running {
                ready,
                since_ms,
                kill_at_ms: Some(at),
            } if at <= now_ms => match (ready, self.watchdog_ms) {
                (true, Some(ms)) => format!("did not answer for {} s (its watchdog)", seconds(ms)),
                _ => {
                    let after = seconds(now_ms.saturating_sub(since_ms));
                    let done = match self.spec.kind {
                        Kind::Oneshot => "done",
                        Kind::Daemon => "ready",
                    };
                    format!("was not {done} after {after} s")
                }
            },
            _ => return None,
        };
        self.kill(reason)
    }

    /// It is vital, should run, and was not ready for longer than the machine can do without it.
    pub(crate) fn is_lost(&mut self, now_ms: u64) -> bool {
        let Some(vital_ms) = self.spec.vital_ms.filter(|_| self.desired == Desired::Up) else {
            return false;
        };
        if matches!(self.actual, Actual::Waiting | Actual::Running { ready: true, .. }) {
            self.unwell_since_ms = None;
        } else {
            self.unwell_since_ms.get_or_insert(now_ms);
        }
        self.unwell_since_ms
            .is_some_and(|since| now_ms.saturating_sub(since) >= vital_ms)
    }

    /// When [`Self::tick`], [`Self::start`] or [`Self::is_lost`] has something to do.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        let own = match self.actual {
            Actual::Stopping { kill_at_ms, .. } => Some(kill_at_ms),
            Actual::Paused { until_ms } => Some(until_ms),
            Actual::Running { kill_at_ms, .. } => kill_at_ms,
            _ => None,
        };
        let vital_ms = self
            .spec
            .vital_ms
            .filter(|_| self.desired == Desired::Up)
            .unwrap_or(u64::MAX);
        let lost = self.unwell_since_ms.map(|since| since.saturating_add(vital_ms));
        own.into_iter()
            .chain(lost.filter(|_| self.desired == Desired::Up))
            .min()
    }
}
