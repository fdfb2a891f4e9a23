//! Processes of services: start in their own cgroup and session, signals, logs, `READY=1`.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use beemesh_init_api::path;
use beemesh_init_core::service::{Ending, ServiceSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

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
    cgroup: PathBuf,
    notify: UnixDatagram,
    notify_path: String,
}

impl Process {
    /// Makes the log, the cgroup and the notify socket.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn prepare(spec: ServiceSpec) -> Result<Self, StepError> {
        let notify_path = format!("{}/notify/{}", path::RUN, spec.name);
        let notify = UnixDatagram::bind(&notify_path).attempt("open", &notify_path)?;
        notify.set_nonblocking(true).attempt("set up", &notify_path)?;
        let cgroup = PathBuf::from(path::SERVICE_CGROUPS).join(spec.name);
        fs::create_dir_all(&cgroup).attempt("make", &cgroup)?;
        Ok(Self {
            log: ServiceLog::create(spec.name)?,
            pid: None,
            cgroup,
            notify,
            notify_path,
            spec,
        })
    }

    /// What to wait for, for `READY=1`.
    pub fn notify_descriptor(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }

    /// Starts the main process.
    ///
    /// # Errors
    /// How it ended before it began.
    pub fn start(&mut self) -> Result<(), Ending> {
        let not_started = |e: std::io::Error| Ending::NotStarted(e.raw_os_error().unwrap_or(0));
        let output = || {
            self.log
                .writer()
                .map(Stdio::from)
                .map_err(|_| Ending::NotStarted(libc::EMFILE))
        };
        let mut command = Command::new(self.spec.program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("NOTIFY_SOCKET", &self.notify_path)
            .current_dir("/");
        command.stdin(Stdio::null()).stdout(output()?).stderr(output()?);
        let procs = OpenOptions::new()
            .write(true)
            .open(self.cgroup.join("cgroup.procs"))
            .map(OwnedFd::from);
        beemesh_sys::join_before_exec(&mut command, procs.ok());
        let child = command.spawn().map_err(not_started)?;
        self.pid = i32::try_from(child.id()).ok().map(Pid::from_raw);
        Ok(())
    }

    /// Sends a signal to the main process.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, signal);
        }
    }

    /// Kills all that is in the service's cgroup. What moved to another cgroup lives on.
    pub fn kill_cgroup(&self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
    }

    /// `true`: the service said `READY=1` since the last call. Source: sd_notify(3).
    pub fn take_ready(&self) -> bool {
        let mut ready = false;
        let mut buffer = [0; 4096];
        for _ in 0..TURN_LIMIT {
            let Ok(count) = self.notify.recv(&mut buffer) else {
                break;
            };
            let message = buffer.get(..count).unwrap_or_default();
            ready |= message.split(|b| *b == b'\n').any(|line| line == b"READY=1");
        }
        ready && self.pid.is_some()
    }
}
