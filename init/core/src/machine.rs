//! The machine as one state: events in, commands out. Holds no descriptor and no process id; `init/pid1` maps names
//! to those.
//!
//! Invariants (tested below under random events): a service never runs twice; nothing is started after a shutdown was
//! asked for; a shutdown ends with exactly one [`Command::Finish`], in bounded time, after which nothing happens.

use std::collections::BTreeSet;

use crate::backoff::Jitter;
use crate::links::Links;
use crate::modules::{DISKS, URGENT, urgency};
use crate::notify::{Ask, Notice};
use crate::service::{Actual, Ending, Kind, Need, Readiness, Service, ServiceSpec};
use crate::shutdown::{AFTER_KILL_MS, DISKS_UNTIL_MS, LEAST_DISKS_MS, LIMIT_MS, OTHERS_GRACE_MS, Stage};
use crate::stick::Sticks;
use crate::uevent::{Action, Uevent};
use crate::watchdog::{SOFTWARE, Watchdog};

/// Nobody waits longer than this for the drivers of the disks that were there at boot, in milliseconds. A machine that goes on
/// without its disk comes up as a stranger, so a slow one gets its time: a bad SATA link alone is tried for 30 s.
pub const COLD_PLUG_LIMIT_MS: u64 = 60_000;
/// The drivers that nobody waits for follow when the services have been ready for this long, in milliseconds: the
/// agent is joining its fabric then.
pub const REST_AFTER_MS: u64 = 2_000;
/// Or, so much later than [`COLD_PLUG_LIMIT_MS`], on a boot that does not get there, in milliseconds.
pub const REST_LIMIT_MS: u64 = 15_000;
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
    /// Stop for good, and stay on: someone wants to read the screen.
    Halt,
}

impl Shutdown {
    /// Reads `poweroff`, `reboot` or `halt`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "poweroff" => Some(Self::PowerOff),
            "reboot" => Some(Self::Reboot),
            "halt" => Some(Self::Halt),
            _ => None,
        }
    }
}

/// Something that a child does because it may block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Load the modules of the buses and controllers that disks and sticks hang on, of every device in sysfs.
    ColdPlugDisks,
    /// Load the modules that the boot waits for, of every device in sysfs: those of [`Job::ColdPlugDisks`] last.
    ColdPlug,
    /// Load the modules of all other devices in sysfs, at low priority.
    ColdPlugRest,
    /// Load the modules for these modaliases.
    LoadModules(Vec<String>),
    /// Mount this block device if it is a join stick.
    MountStick(String),
    /// Unmount the stick, lazily.
    UnmountStick,
    /// Take away the links below `/dev/disk` of block devices that are gone, then make those of others.
    LinkDevices {
        /// Those that are there.
        there: Vec<String>,
        /// Those that are gone.
        gone: Vec<String>,
    },
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
    /// It failed; for [`Job::MountStick`]: it is a join stick, and cannot be mounted.
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
    /// Somebody has connected to a service's socket.
    Demanded(&'static str),
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
    /// Wait for the next who connects to the service's socket; answered by [`Event::Demanded`].
    Listen(&'static str),
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
    /// Say that the disks of the boot have their drivers.
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
    /// Sync, unmount, close, and go down, whatever the disks do.
    Finish {
        /// To what.
        how: Shutdown,
        /// How long the disks get, in milliseconds.
        disks_ms: u64,
    },
}

/// The machine.
pub struct Init {
    services: Vec<Service>,
    sticks: Sticks,
    links: Links,
    jitter: Jitter,
    cold_plug: ColdPlug,
    loaders: u32,
    /// What those of them load that load what a built-in disk may hang on.
    disk_loaders: Vec<Vec<String>>,
    pending: BTreeSet<(u8, String)>,
    served: BTreeSet<String>,
    /// Every service has been as it should be.
    up: bool,
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
    disks_until_ms: u64,
}

#[derive(Debug, Default)]
struct ColdPlug {
    limit_ms: Option<u64>,
    disks: bool,
    running: bool,
    again: bool,
    settled: bool,
    rest: Rest,
}

/// The drivers that nobody waits for: keyboards, buttons, what the first pod needs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Not before the services are ready, or the boot has taken too long.
    #[default]
    Waiting,
    /// The services are ready: at this moment.
    Due { at_ms: u64 },
    /// Begun; what comes now is loaded at once.
    Begun,
}

impl Init {
    /// A machine with these services, in start order. `seed` spreads the back-off.
    #[must_use]
    pub fn new(services: Vec<ServiceSpec>, seed: u64) -> Self {
        Self {
            services: services.into_iter().map(Service::new).collect(),
            sticks: Sticks::default(),
            links: Links::default(),
            jitter: Jitter::new(seed),
            cold_plug: ColdPlug::default(),
            loaders: 0,
            disk_loaders: Vec::new(),
            pending: BTreeSet::new(),
            served: BTreeSet::new(),
            up: false,
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

    /// One word for the whole: `starting`, `running`, `degraded` (some service does not do what it should) or `stopping`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (self.shutdown, self.services.iter().all(Service::is_as_wanted)) {
            (Some(_), _) => "stopping",
            (None, true) => "running",
            (None, false) if self.up => "degraded",
            (None, false) => "starting",
        }
    }

    /// When the next [`Event::Tick`] is due, in milliseconds; `None`: nothing waits for the time.
    #[must_use]
    pub fn deadline_ms(&self) -> Option<u64> {
        if self.is_finished() {
            return None;
        }
        let services = self.services.iter().filter_map(Service::deadline_ms);
        let settle = self.cold_plug.limit_ms.filter(|_| !self.cold_plug.settled);
        let rest = self.rest_at_ms().filter(|_| self.shutdown.is_none());
        // After the last SIGKILL the limit has nothing left to hasten.
        let way = self.shutdown.map(|way| match way.stage {
            Stage::Killed { finish_at_ms } => finish_at_ms,
            Stage::Others { kill_at_ms } => kill_at_ms.min(way.limit_ms),
            Stage::Services | Stage::Finished => way.limit_ms,
        });
        let pet = self.watchdog.deadline_ms().filter(|_| self.shutdown.is_none());
        services.chain(settle).chain(rest).chain(way).chain(pet).min()
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
        commands.extend(self.begin_rest(now_ms));
        commands.extend(self.software_watchdog(now_ms));
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
        commands.extend(self.link_devices());
        self.up |= self.services.iter().all(Service::is_as_wanted);
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
            Event::JobEnded(job, outcome) => self.job_ended(now_ms, job, outcome),
            Event::Started(name) => self
                .service(name)
                .and_then(|s| s.started(now_ms))
                .into_iter()
                .collect(),
            Event::Notified(name, mut notice) => {
                let ask = notice.ask.take();
                let Some(service) = self.service(name) else {
                    return Vec::new();
                };
                let ask = ask.filter(|_| service.spec.may_ask);
                let mut commands = service.notified(now_ms, notice);
                match ask {
                    Some(Ask::Service(wish, name)) => {
                        commands.extend(
                            self.service(&name)
                                .map(|s| s.wish(now_ms, wish))
                                .unwrap_or_default(),
                        );
                    }
                    Some(Ask::Shutdown(kind)) => commands.extend(self.ask_shutdown(now_ms, kind)),
                    None => {}
                }
                commands
            }
            Event::Demanded(name) => {
                if let Some(service) = self.service(name) {
                    service.demand();
                }
                Vec::new()
            }
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
                Vec::new()
            }
        }
    }

    fn software_watchdog(&mut self, now_ms: u64) -> Vec<Command> {
        if self.shutdown.is_none() && self.watchdog.wants_software(now_ms) {
            self.wish(DISKS, SOFTWARE.to_owned())
        } else {
            Vec::new()
        }
    }

    fn booted(&mut self, now_ms: u64) -> Vec<Command> {
        if self.cold_plug.limit_ms.is_some() || self.shutdown.is_some() {
            return Vec::new();
        }
        self.cold_plug.limit_ms = Some(now_ms.saturating_add(COLD_PLUG_LIMIT_MS));
        self.cold_plug.disks = true;
        self.cold_plug.running = true;
        vec![
            Command::Run(Job::ColdPlugDisks),
            Command::Run(Job::ColdPlug),
            Command::Scan,
        ]
    }

    /// The disks of the boot have their drivers, or waiting for them took too long. Whoever looks for a disk waits for
    /// this, and not for the drivers of all the rest.
    fn settle(&mut self, now_ms: u64) -> Option<Command> {
        let limit_ms = self.cold_plug.limit_ms?;
        let pending = self.pending.first().is_some_and(|(urgency, _)| *urgency == DISKS);
        let idle = !self.cold_plug.disks && self.disk_loaders.is_empty() && !pending;
        let now = !self.cold_plug.settled && (idle || limit_ms <= now_ms);
        self.cold_plug.settled |= now;
        now.then_some(Command::AnnounceSettled)
    }

    /// When the drivers that nobody waits for are due; `None`: they have begun, or other loaders come first.
    fn rest_at_ms(&self) -> Option<u64> {
        let limit_ms = self.cold_plug.limit_ms?.saturating_add(REST_LIMIT_MS);
        match self.cold_plug.rest {
            _ if self.cold_plug.running => None,
            Rest::Waiting => Some(limit_ms),
            Rest::Due { at_ms } => Some(at_ms.min(limit_ms)),
            Rest::Begun => None,
        }
    }

    fn begin_rest(&mut self, now_ms: u64) -> Option<Command> {
        let awaited = |s: &&Service| s.spec.readiness == Readiness::Notified && s.spec.socket.is_none();
        let ready = self.services.iter().filter(awaited).all(Service::satisfies);
        if self.cold_plug.rest == Rest::Waiting && ready && self.cold_plug.limit_ms.is_some() {
            self.cold_plug.rest = Rest::Due {
                at_ms: now_ms.saturating_add(REST_AFTER_MS),
            };
        }
        let due = self.shutdown.is_none() && self.rest_at_ms().is_some_and(|at_ms| at_ms <= now_ms);
        due.then(|| {
            self.cold_plug.rest = Rest::Begun;
            Command::Run(Job::ColdPlugRest)
        })
    }

    /// Nothing waits for links: first the drivers of the boot are loaded.
    fn link_devices(&mut self) -> Option<Command> {
        if self.shutdown.is_some() || self.cold_plug.rest != Rest::Begun {
            return None;
        }
        self.links.take()
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
        if let (Action::Add | Action::Change, Some(modalias)) = (uevent.action, uevent.modalias.clone()) {
            // A state volume is made on a built-in disk only: nobody waits for what hangs on USB.
            let urgency = match urgency(&modalias) {
                DISKS if uevent.on_usb() => DISKS + 1,
                urgency => urgency,
            };
            commands.extend(self.wish(urgency, modalias));
        }
        let Some(device) = uevent.devname else {
            return commands;
        };
        match (uevent.subsystem.as_str(), uevent.action) {
            ("block", Action::Add | Action::Change) => self.links.appeared(&device),
            ("block", Action::Remove) => self.links.vanished(&device),
            _ => {}
        }
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
        self.links.reconcile(&blocks);
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

    fn wish(&mut self, urgency: u8, modalias: String) -> Vec<Command> {
        if urgency >= URGENT && self.cold_plug.rest != Rest::Begun {
            // The cold plug of the rest finds it.
            return Vec::new();
        }
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
        self.pending.insert((urgency, modalias));
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
        let pending = std::mem::take(&mut self.pending);
        let disks = pending.first().is_some_and(|(urgency, _)| *urgency == DISKS);
        let batch: Vec<String> = pending.into_iter().map(|(_, modalias)| modalias).collect();
        if disks {
            self.disk_loaders.push(batch.clone());
        }
        vec![Command::Run(Job::LoadModules(batch))]
    }

    fn job_ended(&mut self, now_ms: u64, job: Job, outcome: Outcome) -> Vec<Command> {
        let commands = match job {
            Job::ColdPlugDisks => {
                self.cold_plug.disks = false;
                Vec::new()
            }
            Job::ColdPlug => {
                self.cold_plug.running = false;
                let again = std::mem::take(&mut self.cold_plug.again);
                if again {
                    self.cold_plug_again()
                } else if self.cold_plug.rest == Rest::Begun {
                    vec![Command::Run(Job::ColdPlugRest)]
                } else {
                    Vec::new()
                }
            }
            Job::ColdPlugRest => {
                self.crash.drivers_loaded = true;
                self.watchdog.drivers_loaded(now_ms);
                Vec::new()
            }
            Job::LoadModules(batch) => {
                self.loaders = self.loaders.saturating_sub(1);
                self.disk_loaders.retain(|disks| *disks != batch);
                self.load_pending()
            }
            Job::MountStick(device) => self.sticks.probed(&device, outcome),
            Job::UnmountStick => self.sticks.unmounted(),
            Job::LinkDevices { there, gone } => {
                self.links.ended(&there, &gone);
                Vec::new()
            }
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
            disks_until_ms: now_ms.saturating_add(DISKS_UNTIL_MS),
        });
        self.services.iter_mut().for_each(Service::want_down);
        let what = match kind {
            Shutdown::PowerOff => "switching off",
            Shutdown::Reboot => "starting again",
            Shutdown::Halt => "stopping for good",
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
            commands.push(Command::Finish {
                how: way.kind,
                disks_ms: way.disks_until_ms.saturating_sub(now_ms).max(LEAST_DISKS_MS),
            });
            way.stage = Stage::Finished;
        }
        self.shutdown = Some(way);
        commands
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
