//! Processes of services: start in their own cgroup, session and sandbox, signals, logs, and what they say (sd_notify).
//!
//! Decides nothing but whose messages count: those of the main process and of processes in the service's cgroup, as the
//! kernel vouches (SCM_CREDENTIALS). Descriptors that arrive otherwise are closed; a BARRIER is answered by that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};

use beemesh_init_api::{SOCKET_NAME, ServiceStatus, path};
use beemesh_init_core::ending::Ending;
use beemesh_init_core::notify::{MESSAGE_LIMIT, Notice, Store};
use beemesh_init_core::service::{Kind, Service, ServiceSpec};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

use crate::SELF;
use crate::cgroup::ServiceCgroup;
use crate::chain::{Attempt, StepError};
use crate::logs::ServiceLog;

/// Where programs look for programs.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Messages taken from a notify socket before other events get their turn.
const TURN_LIMIT: usize = 16;

/// What the driver holds for a service.
pub struct Process {
    /// What it is.
    pub spec: ServiceSpec,
    /// The main process while it runs.
    pub pid: Option<Pid>,
    /// What it prints.
    pub log: ServiceLog,
    cgroup: ServiceCgroup,
    notify: UnixDatagram,
    notify_path: String,
    store: Store<OwnedFd>,
    refused: u64,
    /// The socket of its spec.
    listener: Option<UnixListener>,
}

impl Process {
    /// Makes the log, the cgroup and the notify socket, on a machine with `memory` bytes.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn prepare(spec: ServiceSpec, memory: u64) -> Result<Self, StepError> {
        let notify_path = format!("{}/notify/{}", path::RUN, spec.name);
        let notify = UnixDatagram::bind(&notify_path).attempt("open", &notify_path)?;
        notify.set_nonblocking(true).attempt("set up", &notify_path)?;
        setsockopt(&notify, sockopt::PassCred, &true).attempt("set up", &notify_path)?;
        Ok(Self {
            log: ServiceLog::create(spec.name)?,
            pid: None,
            cgroup: ServiceCgroup::create(spec.name, spec.limits, memory)?,
            notify,
            notify_path,
            store: Store::new(spec.stored_limit),
            refused: 0,
            listener: spec.socket.map(listen).transpose()?,
            spec,
        })
    }

    /// What to wait for, for those who want the service to run.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// What to wait for, for messages.
    pub fn notify_descriptor(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }

    /// Starts the main process: this program again, as `run-service`, which makes the sandbox and executes the service.
    ///
    /// # Errors
    /// How it ended before it began.
    pub fn start(&mut self) -> Result<(), Ending> {
        let not_started = |e: std::io::Error| Ending::NotStarted(e.raw_os_error().unwrap_or(0));
        if self.cgroup.is_populated() {
            self.cgroup.kill();
            return Err(Ending::StillPopulated);
        }
        let output = || {
            self.log
                .writer()
                .map(Stdio::from)
                .map_err(|_| Ending::NotStarted(libc::EMFILE))
        };
        let mut command = Command::new(SELF);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("NOTIFY_SOCKET", &self.notify_path)
            .current_dir("/");
        if let Some(ms) = self.spec.watchdog_ms {
            command.env("WATCHDOG_USEC", ms.saturating_mul(1_000).to_string());
        }
        command.stdin(Stdio::null()).stdout(output()?).stderr(output()?);
        let socket = self.listener().map(|fd| (SOCKET_NAME, fd)).into_iter();
        let passed: Vec<(&str, BorrowedFd<'_>)> = socket
            .chain(self.store.iter().map(|(name, fd)| (name, fd.as_fd())))
            .collect();
        let copies: Vec<OwnedFd> = passed
            .iter()
            .map(|(_, fd)| fd.try_clone_to_owned())
            .collect::<Result<_, _>>()
            .map_err(not_started)?;
        let numbers = beemesh_sys::keep_open_over_exec(&mut command, copies);
        let names = passed.iter().map(|(name, _)| *name);
        command.args(["run-service", self.spec.name]).args(
            numbers
                .iter()
                .zip(names)
                .map(|(number, name)| format!("{number}={name}")),
        );
        beemesh_sys::join_before_exec(&mut command, self.cgroup.open_for_start());
        let child = command.spawn().map_err(not_started)?;
        self.pid = i32::try_from(child.id()).ok().map(Pid::from_raw);
        Ok(())
    }

    /// The main process has ended: what is behind it.
    pub fn ended(&mut self, ending: Ending) -> Ending {
        self.pid = None;
        self.cgroup.explain(ending)
    }

    /// Sends a signal to the main process.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, signal);
        }
    }

    /// Kills all that is in the service's cgroup.
    pub fn kill_cgroup(&self) {
        self.cgroup.kill();
    }

    /// Drops what is kept for it.
    pub fn forget_descriptors(&mut self) {
        self.store.clear();
    }

    /// What the service said since the last call; descriptors are kept, dropped or closed as it says.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut buffer = [0; MESSAGE_LIMIT];
        for _ in 0..TURN_LIMIT {
            let Ok(received) = beemesh_sys::receive(&self.notify, &mut buffer) else {
                break;
            };
            let own = received.sender.map(Pid::from_raw).is_some_and(|sender| {
                self.pid
                    .is_some_and(|main| main == sender || self.cgroup.contains(sender))
            });
            if received.truncated || !own {
                continue;
            }
            let notice = Notice::parse(buffer.get(..received.length).unwrap_or_default());
            if let (true, Some(name)) = (notice.remove, &notice.name) {
                self.store.remove(name);
            }
            if notice.store {
                let refused = self.store.put(notice.stored_name(), received.descriptors);
                self.refused = self.refused.saturating_add(refused as u64);
            }
            notices.push(notice);
        }
        notices
    }

    /// For whoever asks.
    pub fn status(&self, service: &Service) -> ServiceStatus {
        ServiceStatus {
            name: self.spec.name.to_owned(),
            state: service.actual.word().to_owned(),
            kind: match (self.spec.socket, self.spec.kind) {
                (Some(_), _) => "on-demand",
                (None, Kind::Daemon) => "daemon",
                (None, Kind::Oneshot) => "oneshot",
            }
            .to_owned(),
            last_end: service.last_end.clone(),
            pid: self.pid.map(Pid::as_raw),
            restarts: service.restarts,
            status: service.status.clone(),
            descriptors: self.store.iter().map(|(name, _)| name.to_owned()).collect(),
            descriptors_refused: self.refused,
        }
    }
}

/// A socket for root alone, in a folder for root alone: whoever can connect may ask PID 1 for whatever the service does.
fn listen(path: &str) -> Result<UnixListener, StepError> {
    if let Some(folder) = Path::new(path).parent() {
        let mut builder = std::fs::DirBuilder::new();
        match builder.mode(0o700).create(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e).attempt("make", folder),
            _ => {}
        }
    }
    let listener = UnixListener::bind(path).attempt("open", path)?;
    listener.set_nonblocking(true).attempt("set up", path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).attempt("set up", path)?;
    Ok(listener)
}
