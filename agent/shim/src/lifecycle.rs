//! The life of one pod's containers as a pure state machine: start order, restarts with back-off, ordered stop.
//!
//! It opens nothing, reads no clock and signals nobody: the driver executes [`Command`]s and feeds [`Event`]s back.
//! Invariants: a container has at most one process at a time; after a stop was asked for nothing is started; once the
//! stop is overdue by [`KILL_PATIENCE`] the shim exits whatever the kernel still holds.

use beemesh_agent_api::manifest::RestartPolicy;
use beemesh_agent_api::shim::{ContainerExit, ContainerState, Phase, PodPlan};
use std::time::Duration;

/// First wait before a restart; doubled each time (Kubernetes starts at 10 s: too slow for a single node's services).
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest wait before a restart.
pub const BACKOFF_MOST: Duration = Duration::from_secs(300);
/// A run this long sets the back-off back to its first step (the kubelet's rule).
pub const BACKOFF_FORGET: Duration = Duration::from_secs(600);
/// How long after the final kill the shim waits for the kernel to deliver the exits.
pub const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// The two clocks at the moment of an event.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Monotonic time since an arbitrary start: all waits are measured with it.
    pub mono: Duration,
    /// Wall clock in milliseconds since the Unix epoch: only shown, never compared.
    pub wall_ms: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The agent says that the network is ready.
    Start,
    /// The container's first process runs.
    Launched {
        /// Index in the plan.
        index: usize,
        /// Its process id.
        pid: i32,
    },
    /// The container could not be started.
    LaunchFailed {
        /// Index in the plan.
        index: usize,
        /// Why, in words.
        reason: String,
    },
    /// The container's first process ended.
    Exited {
        /// Index in the plan.
        index: usize,
        /// Exit code, 128 + signal where a signal ended it.
        code: i32,
        /// That signal.
        signal: Option<i32>,
        /// The kernel killed a process of the container for memory.
        oom: bool,
    },
    /// Stop everything; `None`: the plan's grace.
    Stop {
        /// Time between SIGTERM and SIGKILL.
        grace: Option<Duration>,
    },
    /// Time went by.
    Tick,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Create and start the container; answer with `Launched` or `LaunchFailed`.
    Launch(usize),
    /// Send the container's stop signal to its first process.
    Terminate(usize),
    /// SIGKILL to everything in the container's cgroup.
    Kill(usize),
    /// Nothing is left: leave.
    Exit,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Run {
    Waiting,
    Launching,
    Running { pid: i32, since: Duration },
    BackingOff { until: Duration },
    Done,
}

#[derive(Debug)]
struct Slot {
    name: String,
    run: Run,
    ever_ran: bool,
    restarts: u32,
    backoff: Duration,
    started_ms: Option<u64>,
    exit: Option<ContainerExit>,
    error: Option<String>,
}

/// The pod.
#[derive(Debug)]
pub struct Lifecycle {
    policy: RestartPolicy,
    grace: Duration,
    slots: Vec<Slot>,
    started: bool,
    /// When the final kill is due, once a stop was asked for.
    kill_at: Option<Duration>,
    killed: bool,
    over: bool,
}

impl Lifecycle {
    /// A pod that waits for [`Event::Start`].
    pub fn new(plan: &PodPlan) -> Self {
        let slot = |name: &String| Slot {
            name: name.clone(),
            run: Run::Waiting,
            ever_ran: false,
            restarts: 0,
            backoff: BACKOFF_FIRST,
            started_ms: None,
            exit: None,
            error: None,
        };
        Self {
            policy: plan.restart_policy,
            grace: Duration::from_secs(plan.grace_seconds.into()),
            slots: plan
                .containers
                .iter()
                .map(|container| slot(&container.name))
                .collect(),
            started: false,
            kill_at: None,
            killed: false,
            over: false,
        }
    }

    /// Takes one event and says what follows from it. Events that do not fit the state are ignored.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Command> {
        let mut commands = Vec::new();
        match event {
            Event::Start => self.start(&mut commands),
            Event::Launched { index, pid } => self.launched(now, index, pid, &mut commands),
            Event::LaunchFailed { index, reason } => self.launch_failed(now, index, reason),
            Event::Exited {
                index,
                code,
                signal,
                oom,
            } => {
                self.exited(
                    now,
                    index,
                    ContainerExit {
                        code,
                        signal,
                        oom,
                        at_ms: now.wall_ms,
                    },
                );
            }
            Event::Stop { grace } => self.stop(now, grace, &mut commands),
            Event::Tick => {}
        }
        self.advance(now, &mut commands);
        commands
    }

    fn start(&mut self, commands: &mut Vec<Command>) {
        if self.started || self.kill_at.is_some() {
            return;
        }
        self.started = true;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.run = Run::Launching;
            commands.push(Command::Launch(index));
        }
    }

    fn launched(&mut self, now: Now, index: usize, pid: i32, commands: &mut Vec<Command>) {
        let stopping = self.kill_at.is_some();
        let Some(slot) = self
            .slots
            .get_mut(index)
            .filter(|slot| slot.run == Run::Launching)
        else {
            return;
        };
        slot.run = Run::Running { pid, since: now.mono };
        slot.ever_ran = true;
        slot.started_ms = Some(now.wall_ms);
        slot.error = None;
        if stopping {
            commands.push(Command::Terminate(index));
        }
    }

    fn launch_failed(&mut self, now: Now, index: usize, reason: String) {
        let (policy, stopping) = (self.policy, self.kill_at.is_some());
        let Some(slot) = self
            .slots
            .get_mut(index)
            .filter(|slot| slot.run == Run::Launching)
        else {
            return;
        };
        slot.error = Some(reason);
        slot.end(now, policy != RestartPolicy::Never && !stopping);
    }

    fn exited(&mut self, now: Now, index: usize, exit: ContainerExit) {
        let (policy, stopping) = (self.policy, self.kill_at.is_some());
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let Run::Running { since, .. } = slot.run else {
            return;
        };
        if now.mono.saturating_sub(since) >= BACKOFF_FORGET {
            slot.backoff = BACKOFF_FIRST;
        }
        let again = match policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit.code != 0,
            RestartPolicy::Never => false,
        };
        slot.exit = Some(exit);
        slot.end(now, again && !stopping);
    }

    fn stop(&mut self, now: Now, grace: Option<Duration>, commands: &mut Vec<Command>) {
        let due = now.mono.saturating_add(grace.unwrap_or(self.grace));
        // A second, shorter stop brings the kill forward; it never puts it off.
        let first = self.kill_at.is_none();
        self.kill_at = Some(self.kill_at.map_or(due, |already| already.min(due)));
        if !first {
            return;
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            match slot.run {
                Run::Running { .. } => commands.push(Command::Terminate(index)),
                Run::Waiting | Run::BackingOff { .. } => slot.run = Run::Done,
                Run::Launching | Run::Done => {}
            }
        }
    }

    /// What follows from the time and the state alone.
    fn advance(&mut self, now: Now, commands: &mut Vec<Command>) {
        if let Some(kill_at) = self.kill_at {
            let all_done = self.slots.iter().all(|slot| slot.run == Run::Done);
            let overdue = now.mono >= kill_at.saturating_add(KILL_PATIENCE);
            if !all_done && now.mono >= kill_at && !self.killed {
                self.killed = true;
                let alive = self
                    .slots
                    .iter()
                    .enumerate()
                    .filter(|(_, slot)| slot.run != Run::Done);
                commands.extend(alive.map(|(index, _)| Command::Kill(index)));
            }
            if (all_done || overdue) && !self.over {
                self.over = true;
                commands.push(Command::Exit);
            }
            return;
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot.run, Run::BackingOff { until } if now.mono >= until) {
                slot.run = Run::Launching;
                slot.restarts = slot.restarts.saturating_add(1);
                commands.push(Command::Launch(index));
            }
        }
    }

    /// When the driver has to send [`Event::Tick`] at the latest, on the monotonic clock.
    pub fn next_deadline(&self) -> Option<Duration> {
        match self.kill_at {
            Some(kill_at) if self.killed => Some(kill_at.saturating_add(KILL_PATIENCE)),
            Some(kill_at) => Some(kill_at),
            None => self
                .slots
                .iter()
                .filter_map(|slot| match slot.run {
                    Run::BackingOff { until } => Some(until),
                    _ => None,
                })
                .min(),
        }
    }

    /// The container whose first process is `pid`.
    pub fn index_of(&self, pid: i32) -> Option<usize> {
        self.slots
            .iter()
            .position(|slot| matches!(slot.run, Run::Running { pid: own, .. } if own == pid))
    }

    /// The first process of a container, while it runs.
    pub fn pid(&self, index: usize) -> Option<i32> {
        self.slots.get(index).and_then(Slot::pid)
    }

    /// Phase of the whole, by Kubernetes' rules.
    pub fn phase(&self) -> Phase {
        let live = |slot: &Slot| !matches!(slot.run, Run::Done);
        if self.slots.iter().any(|slot| live(slot) && !slot.ever_ran) {
            return Phase::Pending;
        }
        if self.slots.iter().any(live) {
            return Phase::Running;
        }
        let good =
            |slot: &Slot| slot.error.is_none() && slot.exit.as_ref().is_some_and(|exit| exit.code == 0);
        if self.slots.iter().all(good) {
            Phase::Succeeded
        } else {
            Phase::Failed
        }
    }

    /// The containers' states in the plan's order.
    pub fn containers(&self) -> Vec<ContainerState> {
        let state = |slot: &Slot| ContainerState {
            name: slot.name.clone(),
            pid: slot.pid(),
            restarts: slot.restarts,
            started_ms: slot.started_ms,
            exit: slot.exit.clone(),
            error: slot.error.clone(),
        };
        self.slots.iter().map(state).collect()
    }
}

impl Slot {
    fn pid(&self) -> Option<i32> {
        match self.run {
            Run::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    fn end(&mut self, now: Now, again: bool) {
        if again {
            self.run = Run::BackingOff {
                until: now.mono.saturating_add(self.backoff),
            };
            self.backoff = self.backoff.saturating_mul(2).min(BACKOFF_MOST);
        } else {
            self.run = Run::Done;
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
