//! The machine as one state: events in, commands out. Holds no descriptor and no process id; `init/pid1` maps names
//! to those.
//!
//! Invariants (tested below under random events): a service never runs twice; nothing is started after a shutdown was
//! asked for; a shutdown ends with exactly one [`Command::Finish`], in bounded time, after which nothing happens.

use std::collections::BTreeSet;

use crate::backoff::Jitter;
use crate::modules::urgency;
use crate::notify::Notice;
use crate::service::{Actual, Ending, Kind, Need, Service, ServiceSpec};
use crate::shutdown::{AFTER_KILL_MS, LIMIT_MS, OTHERS_GRACE_MS, Stage};
use crate::stick::Sticks;
use crate::uevent::{Action, Uevent};
use crate::watchdog::{SOFTWARE, Watchdog};

/// Nobody waits longer than this for the drivers of the devices that were there at boot, in milliseconds.
pub const COLD_PLUG_LIMIT_MS: u64 = 4_000;
/// Loader children at the same time, besides the cold plug.
pub const LOADERS_LIMIT: u32 = 2;
/// Modaliases that wait for a loader; beyond that they are dropped and a new cold plug finds them.
pub const PENDING_LIMIT: usize = 1_024;
/// Modaliases that are remembered as served; beyond that all are forgotten (asking twice does no harm).
const SERVED_LIMIT: usize = 8_192;

/// What a machine should do at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Switch off.
    PowerOff,
    /// Start again.
    Reboot,
}

/// Something that a child does because it may block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Load the modules that the boot waits for, of every device in sysfs.
    ColdPlug,
    /// Load the modules of all other devices in sysfs, at low priority.
    ColdPlugRest,
    /// Load the modules for these modaliases.
    LoadModules(Vec<String>),
    /// Mount this block device if it is a join stick.
    MountStick(String),
    /// Unmount the stick, lazily.
    UnmountStick,
    /// Bring what the kernel said at its last fault from the firmware to the log and the state volume.
    RecoverCrash,
}

/// What a job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done; for [`Job::MountStick`]: it is mounted.
    Done,
    /// There was nothing to do; for [`Job::MountStick`]: no join stick.
    Nothing,
    /// It failed.
    Failed,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The boot phases are through.
    Booted,
    /// A device event.
    Uevent(Uevent),
    /// Device events were lost: the kernel's buffer ran over.
    UeventsLost,
    /// All block and input devices and watchdogs, after [`Command::Scan`].
    Scanned(Vec<Uevent>),
    /// A job's child ended.
    JobEnded(Job, Outcome),
    /// [`Command::Start`] was carried out.
    Started(&'static str),
    /// A process of a service said something.
    Notified(&'static str, Notice),
    /// A service's main process ended, or could not be started.
    Ended(&'static str, Ending),
    /// Someone asked for it: a signal, the request file, the power button.
    ShutdownAsked(Shutdown),
    /// No child is left.
    NoChildren,
    /// [`Command::OpenWatchdog`] was carried out.
    WatchdogOpened {
        /// How long the device waits for a sign of life, in milliseconds.
        timeout_ms: u64,
        /// What it calls itself.
        name: String,
        /// It has started the machine this time.
        fired: bool,
    },
    /// [`Command::OpenWatchdog`] failed.
    WatchdogRefused,
    /// Time has passed; comes at [`Init::deadline_ms`] at the latest.
    Tick,
}

/// What the driver shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// On every console.
    Say(String),
    /// Start the service; answered by [`Event::Started`] or [`Event::Ended`].
    Start(&'static str),
    /// SIGTERM to the main process.
    Terminate(&'static str),
    /// SIGKILL to the main process and its cgroup.
    Kill(&'static str),
    /// SIGKILL to what is left in the service's cgroup.
    KillCgroup(&'static str),
    /// Drop the descriptors that are kept for the service.
    ForgetDescriptors(&'static str),
    /// Run a job in a child; answered by [`Event::JobEnded`].
    Run(Job),
    /// List block and input devices and watchdogs; answered by [`Event::Scanned`].
    Scan,
    /// Write the stick's status.
    WriteStick {
        /// Its generation.
        generation: u64,
        /// The device node.
        device: Option<String>,
    },
    /// Say that the devices of the boot have their drivers.
    AnnounceSettled,
    /// Listen for the power button on this input device (name below `/dev`).
    WatchInput(String),
    /// Open this watchdog (name below `/dev`) for good, with [`crate::watchdog::TIMEOUT_S`]; answered by
    /// [`Event::WatchdogOpened`] or [`Event::WatchdogRefused`].
    OpenWatchdog(String),
    /// Give the watchdog a sign of life.
    PetWatchdog,
    /// SIGTERM to every process.
    TerminateEveryone,
    /// SIGKILL to every process.
    KillEveryone,
    /// Sync, unmount, close, and go down.
    Finish(Shutdown),
}

/// The machine.
pub struct Init {
    services: Vec<Service>,
    sticks: Sticks,
    jitter: Jitter,
    cold_plug: ColdPlug,
    loaders: u32,
    pending: BTreeSet<(u8, String)>,
    served: BTreeSet<String>,
    shutdown: Option<Way>,
    watchdog: Watchdog,
    crash: Recovery,
}

/// Whether what is left of the last fault was looked for.
#[derive(Debug, Default)]
struct Recovery {
    drivers_loaded: bool,
    asked: bool,
}

#[derive(Debug, Clone, Copy)]
struct Way {
    kind: Shutdown,
    stage: Stage,
    limit_ms: u64,
}

#[derive(Debug, Default)]
struct ColdPlug {
    limit_ms: Option<u64>,
    running: bool,
    again: bool,
    settled: bool,
}

impl Init {
    /// A machine with these services, in start order. `seed` spreads the back-off.
    #[must_use]
    pub fn new(services: Vec<ServiceSpec>, seed: u64) -> Self {
        Self {
            services: services.into_iter().map(Service::new).collect(),
            sticks: Sticks::default(),
            jitter: Jitter::new(seed),
            cold_plug: ColdPlug::default(),
            loaders: 0,
            pending: BTreeSet::new(),
            served: BTreeSet::new(),
            shutdown: None,
            watchdog: Watchdog::default(),
            crash: Recovery::default(),
        }
    }

    /// The services and their states.
    #[must_use]
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// When the next [`Event::Tick`] is due, in milliseconds; `None`: nothing waits for the time.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.is_finished() {
            return None;
        }
        let services = self.services.iter().filter_map(Service::deadline_ms);
        let settle = self.cold_plug.limit_ms.filter(|_| !self.cold_plug.settled);
        // After the last SIGKILL the limit has nothing left to hasten.
        let way = self.shutdown.map(|way| match way.stage {
            Stage::Killed { finish_at_ms } => finish_at_ms,
            Stage::Others { kill_at_ms } => kill_at_ms.min(way.limit_ms),
            Stage::Services | Stage::Finished => way.limit_ms,
        });
        let pet = self.watchdog.deadline_ms().filter(|_| self.shutdown.is_none());
        services.chain(settle).chain(way).chain(pet).min()
    }

    fn is_finished(&self) -> bool {
        self.shutdown.is_some_and(|way| way.stage == Stage::Finished)
    }

    /// Takes one event at `now_ms` (milliseconds on a clock that never goes back).
    pub fn step(&mut self, now_ms: u64, event: Event) -> Vec<Command> {
        if self.is_finished() {
            return Vec::new();
        }
        let mut commands = self.take(now_ms, event);
        commands.extend(self.settle(now_ms));
        commands.extend(
            self.services
                .iter_mut()
                .filter_map(|service| service.tick(now_ms)),
        );
        commands.extend(self.give_up(now_ms));
        commands.extend(self.descend(now_ms));
        if self.shutdown.is_none() && self.cold_plug.limit_ms.is_some() {
            commands.extend(self.start_services(now_ms));
            commands.extend(self.recover_crash());
            commands.extend(self.watchdog.pet(now_ms));
        }
        commands
    }

    /// A vital service that does not come back takes the machine with it: a new start is the last thing that may help.
    fn give_up(&mut self, now_ms: u64) -> Vec<Command> {
        let lost = |service: &mut Service| service.is_lost(now_ms).then_some(service.spec.name);
        let Some(name) = self.services.iter_mut().find_map(lost) else {
            return Vec::new();
        };
        if self.shutdown.is_some() {
            return Vec::new();
        }
        let line = format!("beemesh: the service `{name}` does not come back: this machine starts again");
        let mut commands = vec![Command::Say(line)];
        commands.extend(self.ask_shutdown(now_ms, Shutdown::Reboot));
        commands
    }

    /// Once, when the state volume is there (or is known to be missing) and the driver of the firmware's storage is.
    fn recover_crash(&mut self) -> Option<Command> {
        let done = |service: &Service| service.spec.kind != Kind::Oneshot || service.actual == Actual::Ended;
        let now = !self.crash.asked && self.crash.drivers_loaded && self.services.iter().all(done);
        self.crash.asked |= now;
        now.then_some(Command::Run(Job::RecoverCrash))
    }

    fn take(&mut self, now_ms: u64, event: Event) -> Vec<Command> {
        match event {
            Event::Booted => self.booted(now_ms),
            Event::Tick => Vec::new(),
            Event::NoChildren => self.nobody_left(now_ms),
            Event::Uevent(uevent) => self.device(uevent),
            Event::UeventsLost => {
                let mut commands = vec![Command::Scan];
                commands.extend(self.cold_plug_again());
                self.unless_going_down(commands)
            }
            Event::Scanned(devices) => self.scanned(devices),
            Event::JobEnded(job, outcome) => self.job_ended(job, outcome),
            Event::Started(name) => self
                .service(name)
                .and_then(|s| s.started(now_ms))
                .into_iter()
                .collect(),
            Event::Notified(name, notice) => self
                .service(name)
                .map(|s| s.notified(now_ms, notice))
                .unwrap_or_default(),
            Event::Ended(name, ending) => {
                let jitter = &mut self.jitter;
                let service = self.services.iter_mut().find(|s| s.spec.name == name);
                service
                    .map(|s| s.ended(now_ms, ending, jitter))
                    .unwrap_or_default()
            }
            Event::ShutdownAsked(kind) => self.ask_shutdown(now_ms, kind),
            Event::WatchdogOpened {
                timeout_ms,
                name,
                fired,
            } => {
                self.watchdog.opened(now_ms, timeout_ms);
                let line = format!(
                    "beemesh: this machine did not answer and was started again by its watchdog ({name})"
                );
                fired.then_some(Command::Say(line)).into_iter().collect()
            }
            Event::WatchdogRefused => {
                self.watchdog.refused();
                self.software_watchdog()
            }
        }
    }

    fn software_watchdog(&mut self) -> Vec<Command> {
        if self.shutdown.is_none() && self.watchdog.wants_software() {
            self.wish(SOFTWARE.to_owned())
        } else {
            Vec::new()
        }
    }

    fn booted(&mut self, now_ms: u64) -> Vec<Command> {
        if self.cold_plug.limit_ms.is_some() || self.shutdown.is_some() {
            return Vec::new();
        }
        self.cold_plug.limit_ms = Some(now_ms.saturating_add(COLD_PLUG_LIMIT_MS));
        self.cold_plug.running = true;
        vec![Command::Run(Job::ColdPlug), Command::Scan]
    }

    /// The devices of the boot have their drivers, or waiting for them took too long.
    fn settle(&mut self, now_ms: u64) -> Option<Command> {
        let limit_ms = self.cold_plug.limit_ms?;
        let idle = !self.cold_plug.running && self.loaders == 0;
        let now = !self.cold_plug.settled && (idle || limit_ms <= now_ms);
        self.cold_plug.settled |= now;
        now.then_some(Command::AnnounceSettled)
    }

    fn service(&mut self, name: &str) -> Option<&mut Service> {
        self.services.iter_mut().find(|service| service.spec.name == name)
    }

    fn start_services(&mut self, now_ms: u64) -> Vec<Command> {
        let satisfied: Vec<&'static str> = self
            .services
            .iter()
            .filter(|s| s.satisfies())
            .map(|s| s.spec.name)
            .collect();
        let met = |Need::Service(name): &Need| satisfied.contains(name);
        self.services
            .iter_mut()
            .filter_map(|s| s.start(now_ms, s.spec.needs.iter().all(met)))
            .collect()
    }

    // Devices.

    fn device(&mut self, uevent: Uevent) -> Vec<Command> {
        let mut commands = Vec::new();
        if let (Action::Add | Action::Change, Some(modalias)) = (uevent.action, uevent.modalias) {
            commands.extend(self.wish(modalias));
        }
        let Some(device) = uevent.devname else {
            return commands;
        };
        let found = match (uevent.subsystem.as_str(), uevent.action) {
            ("block", Action::Add) => self.sticks.appeared(&device),
            ("block", Action::Remove) => self.sticks.vanished(&device),
            ("block", Action::Change) if uevent.medium_changed => self.sticks.changed(&device),
            ("input", Action::Add) if device.starts_with("input/event") => vec![Command::WatchInput(device)],
            ("watchdog", Action::Add) => self.watchdog.appeared(&device).into_iter().collect(),
            _ => Vec::new(),
        };
        commands.extend(found);
        self.unless_going_down(commands)
    }

    fn scanned(&mut self, devices: Vec<Uevent>) -> Vec<Command> {
        let named = |subsystem: &str| -> BTreeSet<String> {
            devices
                .iter()
                .filter(|d| d.subsystem == subsystem)
                .filter_map(|d| d.devname.clone())
                .collect()
        };
        let (blocks, inputs, watchdogs) = (named("block"), named("input"), named("watchdog"));
        let mut commands = self.sticks.reconcile(&blocks);
        let events = inputs
            .into_iter()
            .filter(|device| device.starts_with("input/event"));
        commands.extend(events.map(Command::WatchInput));
        commands.extend(watchdogs.iter().filter_map(|name| self.watchdog.appeared(name)));
        self.unless_going_down(commands)
    }

    /// On the way down no new child is started, and no watchdog either.
    fn unless_going_down(&self, mut commands: Vec<Command>) -> Vec<Command> {
        if self.shutdown.is_some() {
            commands.retain(|command| !matches!(command, Command::Run(_) | Command::OpenWatchdog(_)));
        }
        commands
    }

    fn wish(&mut self, modalias: String) -> Vec<Command> {
        if self.served.len() >= SERVED_LIMIT {
            self.served.clear();
        }
        if !self.served.insert(modalias.clone()) {
            return Vec::new();
        }
        if self.pending.len() >= PENDING_LIMIT {
            self.served.remove(&modalias);
            return self.cold_plug_again();
        }
        self.pending.insert((urgency(&modalias), modalias));
        self.load_pending()
    }

    fn cold_plug_again(&mut self) -> Vec<Command> {
        if self.cold_plug.limit_ms.is_none() {
            return Vec::new();
        }
        if std::mem::replace(&mut self.cold_plug.running, true) {
            self.cold_plug.again = true;
            return Vec::new();
        }
        vec![Command::Run(Job::ColdPlug)]
    }

    fn load_pending(&mut self) -> Vec<Command> {
        if self.pending.is_empty() || self.loaders >= LOADERS_LIMIT || self.shutdown.is_some() {
            return Vec::new();
        }
        self.loaders += 1;
        let batch = std::mem::take(&mut self.pending)
            .into_iter()
            .map(|(_, modalias)| modalias)
            .collect();
        vec![Command::Run(Job::LoadModules(batch))]
    }

    fn job_ended(&mut self, job: Job, outcome: Outcome) -> Vec<Command> {
        let commands = match job {
            Job::ColdPlug => {
                self.cold_plug.running = false;
                let again = std::mem::take(&mut self.cold_plug.again);
                if again {
                    self.cold_plug_again()
                } else {
                    vec![Command::Run(Job::ColdPlugRest)]
                }
            }
            Job::ColdPlugRest => {
                self.crash.drivers_loaded = true;
                self.watchdog.drivers_loaded();
                self.software_watchdog()
            }
            Job::LoadModules(_) => {
                self.loaders = self.loaders.saturating_sub(1);
                self.load_pending()
            }
            Job::MountStick(device) => self.sticks.probed(&device, outcome == Outcome::Done),
            Job::UnmountStick => self.sticks.unmounted(),
            Job::RecoverCrash => Vec::new(),
        };
        self.unless_going_down(commands)
    }

    // The way down.

    fn ask_shutdown(&mut self, now_ms: u64, kind: Shutdown) -> Vec<Command> {
        if self.shutdown.is_some() {
            return Vec::new();
        }
        let limit_ms = now_ms.saturating_add(LIMIT_MS);
        self.shutdown = Some(Way {
            kind,
            stage: Stage::Services,
            limit_ms,
        });
        self.services.iter_mut().for_each(Service::want_down);
        let what = match kind {
            Shutdown::PowerOff => "switching off",
            Shutdown::Reboot => "starting again",
        };
        let say = Command::Say(format!("beemesh: {what}; please wait"));
        std::iter::once(say).chain(self.watchdog.last_pet()).collect()
    }

    fn nobody_left(&mut self, now_ms: u64) -> Vec<Command> {
        match &mut self.shutdown {
            Some(Way { stage, .. }) if matches!(stage, Stage::Others { .. } | Stage::Killed { .. }) => {
                *stage = Stage::Killed { finish_at_ms: now_ms };
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// Steps down, as far as this moment allows.
    fn descend(&mut self, now_ms: u64) -> Vec<Command> {
        let Some(mut way) = self.shutdown else {
            return Vec::new();
        };
        let mut commands = Vec::new();
        if way.limit_ms <= now_ms && !matches!(way.stage, Stage::Killed { .. }) {
            commands.push(Command::Say(
                "beemesh: some programs do not stop; going down without them".to_owned(),
            ));
            commands.push(Command::KillEveryone);
            way.stage = Stage::Killed { finish_at_ms: now_ms };
        }
        if way.stage == Stage::Services {
            // Reverse order: a service is asked when all that were started after it are gone.
            let mut alive = false;
            for service in self.services.iter_mut().rev() {
                if !alive {
                    commands.extend(service.stop(now_ms));
                    alive = service.is_alive();
                }
            }
            if !alive {
                commands.push(Command::TerminateEveryone);
                way.stage = Stage::Others {
                    kill_at_ms: now_ms.saturating_add(OTHERS_GRACE_MS),
                };
            }
        }
        if matches!(way.stage, Stage::Others { kill_at_ms } if kill_at_ms <= now_ms) {
            commands.push(Command::KillEveryone);
            way.stage = Stage::Killed {
                finish_at_ms: now_ms.saturating_add(AFTER_KILL_MS),
            };
        }
        if matches!(way.stage, Stage::Killed { finish_at_ms } if finish_at_ms <= now_ms) {
            commands.push(Command::Finish(way.kind));
            way.stage = Stage::Finished;
        }
        self.shutdown = Some(way);
        commands
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
