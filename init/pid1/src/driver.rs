//! The event loop: epoll -> [`Event`], [`Command`] -> system call. One thread, nothing that blocks.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use beemesh_init_api::{ServiceStatus, StickStatus, path};
use beemesh_init_core::boot::{Phase, ROOT};
use beemesh_init_core::service::Ending;
use beemesh_init_core::{Command, Event, Init, Job, Outcome, Shutdown};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use crate::cgroup::total_memory;
use crate::chain::{Attempt, StepError, words};
use crate::changes::StateChanges;
use crate::console::{Console, Fifo};
use crate::devices::{UeventSocket, scan};
use crate::logs::ServiceLog;
use crate::phases::PhaseTimes;
use crate::power::PowerButtons;
use crate::services::{PATH, Process};
use crate::{Fatal, SELF, bench, emergency, jobs, system, watchdog};

/// Events of epoll taken at once.
const BATCH: usize = 32;

const SIGNALS: u64 = 0;
const UEVENTS: u64 = 1;
const CONSOLE: u64 = 2;
const RUN_DIRECTORY: u64 = 3;
const JOB_LOG: u64 = 4;
const BUTTONS: u64 = 5;
const LOGS: u64 = 100;
const NOTIFY: u64 = 200;
const SOCKETS: u64 = 300;

/// What the child that closes the disks is given less than PID 1 waits for it: its verdict comes in time.
const CLOSING_SPARE_MS: u64 = 300;

/// Milliseconds on CLOCK_BOOTTIME.
pub fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Carries out the boot phases of the real root, then the loop; comes back only when that is impossible.
pub fn run(started_ms: u64) -> Fatal {
    let mut times = PhaseTimes::inherited();
    times.ended(Phase::SwitchRoot);
    for phase in ROOT {
        let done = match phase {
            Phase::MountSystem => system::mount_system(),
            Phase::DelegateCgroups => system::delegate_cgroups(),
            Phase::PrepareSystem => system::prepare(started_ms),
            // The last phase, since the driver owns what it opens.
            Phase::OpenDevices => match Driver::open() {
                Ok(mut driver) => {
                    times.ended(phase);
                    times.write();
                    return driver.run();
                }
                Err(error) => Err(error),
            },
            _ => Ok(()),
        };
        if let Err(error) = done {
            return Fatal::of(phase, &error);
        }
        times.ended(phase);
    }
    Fatal {
        what: "go on",
        detail: "the boot phases ended".to_owned(),
        remedy: emergency::SUPPORT,
    }
}

struct Driver {
    init: Init,
    queue: VecDeque<Event>,
    console: Console,
    epoll: Epoll,
    signals: SignalFd,
    uevents: UeventSocket,
    fifo: Fifo,
    run_directory: OwnedFd,
    job_log: ServiceLog,
    jobs: BTreeMap<Pid, Job>,
    services: Vec<Process>,
    /// What was last written to [`path::SERVICES`].
    written: Vec<ServiceStatus>,
    changes: StateChanges,
    buttons: PowerButtons,
    /// What services print is shown on the console too: for those who develop.
    verbose: bool,
    /// The figures of the bench are shown when the agent is ready.
    bench: bool,
}

impl Driver {
    fn open() -> Result<Self, StepError> {
        let mut mask = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGUSR1,
            Signal::SIGUSR2,
            Signal::SIGPWR,
        ] {
            mask.add(signal);
        }
        mask.thread_block().attempt("block", "signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).attempt("open", "epoll")?;
        let run_directory = beemesh_sys::watch_directory(Path::new(path::RUN));
        let specs = crate::specs();
        let memory = total_memory();
        #[cfg(feature = "planted-faults")]
        crate::planted::prepare();
        let services = specs
            .iter()
            .cloned()
            .map(|spec| Process::prepare(spec, memory))
            .collect::<Result<Vec<_>, _>>()?;
        let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let driver = Self {
            init: Init::new(specs, seed()),
            queue: VecDeque::from([Event::Booted]),
            console: Console::open(),
            epoll,
            signals: signals.attempt("open", "signalfd")?,
            uevents: UeventSocket::open()?,
            fifo: Fifo::create()?,
            run_directory: run_directory
                .map_err(std::io::Error::other)
                .attempt("watch", path::RUN)?,
            job_log: ServiceLog::create("init")?,
            jobs: BTreeMap::new(),
            services,
            written: Vec::new(),
            changes: StateChanges::default(),
            buttons: PowerButtons::default(),
            verbose: command_line
                .split_whitespace()
                .any(|word| word == "beemesh.verbose"),
            bench: command_line.split_whitespace().any(|word| word == bench::WORD),
        };
        driver.listen(&driver.signals, SIGNALS)?;
        driver.listen(driver.uevents.descriptor(), UEVENTS)?;
        driver.listen(driver.fifo.descriptor(), CONSOLE)?;
        driver.listen(&driver.run_directory, RUN_DIRECTORY)?;
        driver.listen(driver.job_log.descriptor(), JOB_LOG)?;
        for (number, service) in (0u64..).zip(&driver.services) {
            driver.listen(service.log.descriptor(), LOGS + number)?;
            driver.listen(service.notify_descriptor(), NOTIFY + number)?;
            if let Some(socket) = service.listener() {
                let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, SOCKETS + number);
                driver
                    .epoll
                    .add(socket, event)
                    .attempt("listen to", service.spec.name)?;
            }
        }
        Ok(driver)
    }

    fn listen(&self, source: impl AsFd, token: u64) -> Result<(), StepError> {
        self.epoll
            .add(source, EpollEvent::new(EpollFlags::EPOLLIN, token))
            .attempt("listen to", token.to_string())
    }

    fn run(&mut self) -> Fatal {
        self.console.say(&format!(
            "beemesh: Beemesh OS {} is starting",
            system::release_version()
        ));
        loop {
            while let Some(event) = self.queue.pop_front() {
                for command in self.init.step(now_ms(), event) {
                    self.execute(command);
                }
                self.changes.look(&self.init, now_ms());
            }
            self.write_services();
            self.changes.write();
            let timeout = match self.init.deadline_ms() {
                Some(at) => {
                    u16::try_from(at.saturating_sub(now_ms())).map_or(EpollTimeout::MAX, EpollTimeout::from)
                }
                None => EpollTimeout::NONE,
            };
            let mut batch = [EpollEvent::empty(); BATCH];
            match self.epoll.wait(&mut batch, timeout) {
                Ok(count) => batch.iter().take(count).for_each(|event| self.wake(event.data())),
                Err(Errno::EINTR) => {}
                Err(e) => {
                    let (what, remedy) = (Phase::OpenDevices.what(), emergency::SUPPORT);
                    return Fatal {
                        what,
                        detail: format!("epoll: {e}"),
                        remedy,
                    };
                }
            }
            if self.init.deadline_ms().is_some_and(|at| at <= now_ms()) {
                self.queue.push_back(Event::Tick);
            }
        }
    }

    // Events.

    fn wake(&mut self, token: u64) {
        match token {
            SIGNALS => self.read_signals(),
            UEVENTS => self.read_uevents(),
            CONSOLE => {
                for line in self.fifo.read_lines() {
                    self.console.say(&line);
                }
            }
            RUN_DIRECTORY => self.read_request(),
            JOB_LOG => {
                let text = self.job_log.drain();
                self.show("init", &text);
            }
            BUTTONS if self.buttons.read_all() => {
                self.queue.push_back(Event::ShutdownAsked(Shutdown::PowerOff));
            }
            SOCKETS.. => {
                if let Some(service) = self.service_number(token - SOCKETS) {
                    let name = service.spec.name;
                    self.queue.push_back(Event::Demanded(name));
                }
            }
            NOTIFY.. => {
                let number = usize::try_from(token - NOTIFY).ok();
                if let Some(service) = number.and_then(|number| self.services.get_mut(number)) {
                    take_notices(service, &mut self.queue);
                }
                let is_ready =
                    |event: &Event| matches!(event, Event::Notified("agent", notice) if notice.ready);
                if self.bench && self.queue.iter().any(is_ready) {
                    self.console.say(&bench::record());
                }
            }
            LOGS.. => {
                let drained = self
                    .service_number(token - LOGS)
                    .map(|s| (s.spec.name, s.log.drain()));
                if let Some((name, text)) = drained {
                    self.show(name, &text);
                }
            }
            _ => {}
        }
    }

    fn service_number(&mut self, number: u64) -> Option<&mut Process> {
        usize::try_from(number)
            .ok()
            .and_then(|number| self.services.get_mut(number))
    }

    fn service(&mut self, name: &str) -> Option<&mut Process> {
        self.services.iter_mut().find(|service| service.spec.name == name)
    }

    fn show(&mut self, name: &str, text: &[u8]) {
        if self.verbose {
            for line in String::from_utf8_lossy(text).lines() {
                self.console.say(&format!("{name}: {line}"));
            }
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match i32::try_from(info.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGCHLD)) => self.reap(),
                // Ctrl-Alt-Del.
                Ok(Ok(Signal::SIGINT)) => self.queue.push_back(Event::ShutdownAsked(Shutdown::Reboot)),
                Ok(Ok(Signal::SIGTERM | Signal::SIGUSR2 | Signal::SIGPWR)) => {
                    self.queue.push_back(Event::ShutdownAsked(Shutdown::PowerOff));
                }
                _ => {}
            }
        }
    }

    /// Takes every child that ended, ours and orphans.
    fn read_uevents(&mut self) {
        let received = self.uevents.receive();
        if received.lost {
            self.queue.push_back(Event::UeventsLost);
        }
        self.queue.extend(received.events.into_iter().map(Event::Uevent));
    }

    fn reap(&mut self) {
        // What a loader's driver found comes before the loader's end.
        self.read_uevents();
        loop {
            let (pid, code, ending) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Some(code), Ending::Exited(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, None, Ending::Signalled(signal as i32)),
                Ok(WaitStatus::StillAlive) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => {
                    self.queue.push_back(Event::NoChildren);
                    return;
                }
            };
            if let Some(job) = self.jobs.remove(&pid) {
                self.queue.push_back(Event::JobEnded(job, jobs::outcome(code)));
            } else if let Some(service) = self.services.iter_mut().find(|s| s.pid == Some(pid)) {
                // What it said before it ended comes first.
                take_notices(service, &mut self.queue);
                let ending = service.ended(ending);
                self.queue.push_back(Event::Ended(service.spec.name, ending));
            }
        }
    }

    fn read_request(&mut self) {
        #[cfg(feature = "planted-faults")]
        crate::planted::fault_if_asked();
        let mut buffer = [0; 4096];
        while nix::unistd::read(&self.run_directory, &mut buffer).is_ok_and(|count| count > 0) {}
        let Ok(text) = std::fs::read_to_string(path::SHUTDOWN) else {
            return;
        };
        let _ = std::fs::remove_file(path::SHUTDOWN);
        match Shutdown::parse(text.trim()) {
            Some(kind) => self.queue.push_back(Event::ShutdownAsked(kind)),
            None => self.console.say(
                "beemesh: a shutdown was asked for in words that are not `poweroff`, `reboot` or `halt`",
            ),
        }
    }

    // Commands.

    fn execute(&mut self, command: Command) {
        match command {
            Command::Say(line) => {
                crate::logs::record(&line);
                self.console.say(&line);
            }
            Command::Start(name) => {
                if let Some(service) = self.service(name) {
                    let event = service
                        .start()
                        .map_or_else(|e| Event::Ended(name, e), |()| Event::Started(name));
                    self.queue.push_back(event);
                }
            }
            Command::Terminate(name) => self.with(name, |service| service.signal(Signal::SIGTERM)),
            Command::Kill(name) => self.with(name, |service| {
                service.signal(Signal::SIGKILL);
                service.kill_cgroup();
            }),
            Command::ForgetDescriptors(name) => {
                if let Some(service) = self.service(name) {
                    service.forget_descriptors();
                }
            }
            Command::Listen(name) => self.listen_again(name),
            Command::KillCgroup(name) => self.with(name, |service| service.kill_cgroup()),
            Command::Run(job) => self.run_job(job),
            Command::Scan => self.queue.push_back(Event::Scanned(scan())),
            Command::WriteStick { generation, device } => self.write_stick(generation, device),
            Command::AnnounceSettled => {
                if let Err(error) = system::write_atomically(path::SETTLED, "") {
                    self.console.say(&format!(
                        "beemesh: cannot announce the devices: {}",
                        words(&error)
                    ));
                }
            }
            Command::WatchInput(name) => self.watch_input(&name),
            Command::OpenWatchdog(name) => self.queue.push_back(watchdog::open(&name)),
            Command::PetWatchdog => {
                if let Err(error) = watchdog::pet() {
                    crate::logs::record(&format!("the watchdog takes no sign of life: {error}"));
                }
            }
            Command::TerminateEveryone => self.signal_everyone(Signal::SIGTERM),
            Command::KillEveryone => self.signal_everyone(Signal::SIGKILL),
            Command::Finish { how, disks_ms } => self.finish(how, disks_ms),
        }
    }

    fn with(&mut self, name: &str, act: impl FnOnce(&Process)) {
        if let Some(service) = self.service(name) {
            act(service);
        }
    }

    /// The socket wakes the loop once; the service then takes who connects, until it ends.
    fn listen_again(&self, name: &str) {
        for (number, service) in (0u64..).zip(&self.services) {
            if let (true, Some(socket)) = (service.spec.name == name, service.listener()) {
                let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
                let _ = self
                    .epoll
                    .modify(socket, &mut EpollEvent::new(flags, SOCKETS + number));
            }
        }
    }

    fn run_job(&mut self, job: Job) {
        match self.spawn(&jobs::arguments(&job)) {
            Some(pid) => drop(self.jobs.insert(pid, job)),
            None => self.queue.push_back(Event::JobEnded(job, Outcome::Failed)),
        }
    }

    fn spawn(&self, arguments: &[String]) -> Option<Pid> {
        let output = || self.job_log.writer().map_or_else(|_| Stdio::null(), Stdio::from);
        let mut command = process::Command::new(SELF);
        command.args(arguments).env_clear().env("PATH", PATH);
        beemesh_sys::join_before_exec(&mut command, None);
        let child = command
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output())
            .spawn();
        child
            .ok()
            .and_then(|child| i32::try_from(child.id()).ok())
            .map(Pid::from_raw)
    }

    /// Tells whoever asks what the services do, when that has changed.
    fn write_services(&mut self) {
        let states = self.init.services().iter();
        let now: Vec<ServiceStatus> = states
            .zip(&self.services)
            .map(|(state, process)| process.status(state))
            .collect();
        if now != self.written {
            // Only a view: where it cannot be written (memory is full), the services go on.
            if let Ok(text) = serde_json::to_string(&now) {
                let _ = system::write_atomically(path::SERVICES, &text);
            }
            self.written = now;
        }
    }

    fn write_stick(&mut self, generation: u64, device: Option<String>) {
        let status =
            serde_json::to_string(&StickStatus { generation, device }).map_err(std::io::Error::other);
        let written = status.attempt("write", path::STICK_STATUS);
        if let Err(error) = written.and_then(|text| system::write_atomically(path::STICK_STATUS, &text)) {
            self.console
                .say(&format!("beemesh: cannot announce the stick: {}", words(&error)));
        }
    }

    fn watch_input(&mut self, name: &str) {
        if self.buttons.watch(name) {
            let new = self
                .buttons
                .descriptors()
                .find(|(known, _)| *known == name)
                .map(|(_, fd)| fd);
            if let Some(fd) = new {
                let _ = self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, BUTTONS));
            }
        }
    }

    fn signal_everyone(&mut self, signal: Signal) {
        let _ = kill(Pid::from_raw(-1), signal);
        // Where nobody is left, no SIGCHLD will say so.
        self.reap();
    }

    /// The last command: never comes back. A disk that hangs costs `disks_ms` and no more: the child that waits for it is
    /// left behind.
    fn finish(&mut self, how: Shutdown, disks_ms: u64) {
        self.console.say("beemesh: closing the disks");
        let end = Instant::now() + Duration::from_millis(disks_ms);
        let mut ended = None;
        let for_child = disks_ms.saturating_sub(CLOSING_SPARE_MS);
        if let Some(child) = self.spawn(&["close-disks".to_owned(), for_child.to_string()]) {
            while ended.is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
                match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                    Ok(WaitStatus::StillAlive) => {}
                    Ok(WaitStatus::Exited(_, code)) => ended = Some(jobs::outcome(Some(code))),
                    _ => ended = Some(Outcome::Failed),
                }
            }
        }
        self.console.say(match ended {
            Some(Outcome::Done) => "beemesh: the disks are closed",
            Some(Outcome::Failed) => {
                "beemesh: not all disks could be closed; what they hold is checked at the next start"
            }
            Some(Outcome::Nothing) | None => "beemesh: a disk does not answer; going down without it",
        });
        let (how, line) = match how {
            Shutdown::PowerOff => (
                RebootMode::RB_POWER_OFF,
                "beemesh: the machine can be unplugged now",
            ),
            Shutdown::Reboot => (RebootMode::RB_AUTOBOOT, "beemesh: starting again now"),
            Shutdown::Halt => (
                RebootMode::RB_HALT_SYSTEM,
                "beemesh: stopped; the machine can be switched off now",
            ),
        };
        self.console.say(line);
        let error = reboot(how).map_or_else(|e| e.to_string(), |never| match never {});
        emergency::enter(
            "switch off",
            &error,
            "Hold the power button until the machine is off.",
        );
    }
}

fn take_notices(service: &mut Process, queue: &mut VecDeque<Event>) {
    let name = service.spec.name;
    let notices = service.take_notices().into_iter();
    queue.extend(notices.map(|notice| Event::Notified(name, notice)));
}

/// Bits for jitter; not for keys.
fn seed() -> u64 {
    use std::io::Read;
    let mut bytes = [0; 8];
    // Never blocks, not even before the kernel has gathered randomness.
    let read = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    read.map_or_else(|_| now_ms(), |()| u64::from_ne_bytes(bytes))
}
