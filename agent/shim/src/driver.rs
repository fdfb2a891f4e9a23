//! The shim's loop: sockets, pipes, child exits and time become events; commands become launches and signals.
//!
//! It holds no policy: what follows from an event is `lifecycle`'s. Invariant: one thread, nothing in the loop blocks
//! but `poll` (a launch blocks for as long as libcontainer needs, some tens of milliseconds).

use crate::cgroup::PodCgroup;
use crate::container;
use crate::lifecycle::{Command, Event, Lifecycle, Now};
use crate::log::{ContainerLog, Stream};
use crate::server::{self, CONNECTIONS, Connection};
use anyhow::{Context, Result};
use beemesh_agent_api::shim::{PodPlan, PodState, Reply, Request};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

struct Output {
    log: ContainerLog,
    pipes: Vec<(Stream, OwnedFd)>,
}

/// A pod whose namespaces exist and whose socket listens.
pub struct Driver {
    dir: PathBuf,
    plan: PodPlan,
    cgroup: PodCgroup,
    lifecycle: Lifecycle,
    outputs: Vec<Output>,
    listener: UnixListener,
    connections: Vec<Connection>,
    signals: SignalFd,
    started: Instant,
    shown: Option<PodState>,
    over: bool,
}

enum Ready {
    Signal,
    Listener,
    Connection(usize),
    Pipe(usize, usize),
}

impl Driver {
    /// Blocks the signals it handles, opens the logs, binds the socket and writes the first state.
    pub fn new(dir: &Path, plan: PodPlan, cgroup: PodCgroup) -> Result<Self> {
        let mut mask = SigSet::empty();
        for handled in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            mask.add(handled);
        }
        mask.thread_block().context("failed to block signals")?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("failed to open a signal descriptor")?;
        let logs = PathBuf::from(&plan.log_dir);
        fs::create_dir_all(&logs).with_context(|| format!("failed to create `{}`", logs.display()))?;
        let mut outputs = Vec::new();
        for container in &plan.containers {
            let path = logs.join(format!("{}.log", container.name));
            let log = ContainerLog::open(&path, plan.log_limit)
                .with_context(|| format!("failed to open `{}`", path.display()))?;
            outputs.push(Output {
                log,
                pipes: Vec::new(),
            });
        }
        let socket = dir.join("shim.sock");
        let listener =
            server::listen(&socket).with_context(|| format!("failed to listen on `{}`", socket.display()))?;
        let lifecycle = Lifecycle::new(&plan);
        let mut driver = Self {
            dir: dir.into(),
            plan,
            cgroup,
            lifecycle,
            outputs,
            listener,
            connections: Vec::new(),
            signals,
            started: Instant::now(),
            shown: None,
            over: false,
        };
        driver.show();
        Ok(driver)
    }

    /// Runs until the pod was stopped.
    pub fn run(mut self) -> Result<()> {
        while !self.over {
            for ready in self.wait()? {
                match ready {
                    Ready::Signal => self.take_signals(),
                    Ready::Listener => self.accept(),
                    Ready::Connection(index) => self.serve(index),
                    Ready::Pipe(container, pipe) => self.read_pipe(container, pipe),
                }
            }
            for output in &mut self.outputs {
                output.pipes.retain(|(_, end)| !is_ended(end));
            }
            self.step(Event::Tick);
            self.connections.retain(|connection| !connection.is_closed());
        }
        self.leave();
        Ok(())
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            mono: self.started.elapsed(),
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn wait(&self) -> Result<Vec<Ready>> {
        let mut what = vec![Ready::Signal, Ready::Listener];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        for (index, connection) in self.connections.iter().enumerate() {
            what.push(Ready::Connection(index));
            fds.push(PollFd::new(connection.stream().as_fd(), connection.interest()));
        }
        for (index, output) in self.outputs.iter().enumerate() {
            for (pipe, (_, end)) in output.pipes.iter().enumerate() {
                what.push(Ready::Pipe(index, pipe));
                fds.push(PollFd::new(end.as_fd(), PollFlags::POLLIN));
            }
        }
        let timeout = match self.lifecycle.next_deadline() {
            None => PollTimeout::NONE,
            Some(due) => {
                // Rounded up, so that the deadline has passed when poll returns.
                let wait = due.saturating_sub(self.started.elapsed()) + Duration::from_millis(1);
                PollTimeout::try_from(wait.min(Duration::from_secs(600))).unwrap_or(PollTimeout::MAX)
            }
        };
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(err) => return Err(err).context("failed to poll"),
        }
        let fired: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        Ok(what
            .into_iter()
            .zip(fired)
            .filter_map(|(ready, fired)| fired.then_some(ready))
            .collect())
    }

    fn step(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.now();
            for command in self.lifecycle.step(now, event) {
                events.extend(self.execute(command));
            }
        }
        self.show();
    }

    fn execute(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Launch(index) => Some(self.launch(index)),
            Command::Terminate(index) => {
                let bundle = self.plan.containers.get(index).map(|plan| plan.bundle.clone())?;
                let pid = self.lifecycle.pid(index)?;
                // The child is not reaped yet, so the id is still its own.
                let _ = signal::kill(Pid::from_raw(pid), container::stop_signal(&bundle));
                None
            }
            Command::Kill(index) => {
                let name = self.plan.containers.get(index).map(|plan| plan.name.clone())?;
                if let Err(err) = self.cgroup.container(&name).kill() {
                    complain(&container::chain(&err));
                }
                if let Some(pid) = self.lifecycle.pid(index) {
                    let _ = signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                None
            }
            Command::Exit => {
                self.over = true;
                None
            }
        }
    }

    fn launch(&mut self, index: usize) -> Event {
        let Some(plan) = self.plan.containers.get(index) else {
            return Event::LaunchFailed {
                index,
                reason: "no such container".into(),
            };
        };
        let cgroup = self.cgroup.container(&plan.name);
        let result = container::launch(&self.dir.join("state"), plan, &cgroup);
        match result {
            Ok(launched) => {
                if let Some(output) = self.outputs.get_mut(index) {
                    output.pipes = vec![
                        (Stream::Stdout, launched.stdout),
                        (Stream::Stderr, launched.stderr),
                    ];
                }
                Event::Launched {
                    index,
                    pid: launched.pid,
                }
            }
            Err(err) => {
                if let Err(err) = container::clean(&self.dir.join("state"), &plan.name, &cgroup) {
                    complain(&container::chain(&err));
                }
                Event::LaunchFailed {
                    index,
                    reason: container::chain(&err),
                }
            }
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            // SIGHUP is blocked so that a closing terminal does not end the pod; SIGCHLD is handled below.
            if let Ok(Signal::SIGTERM | Signal::SIGINT) = Signal::try_from(info.ssi_signo as i32) {
                self.step(Event::Stop { grace: None });
            }
        }
        self.reap();
    }

    fn reap(&mut self) {
        loop {
            let (pid, code, signal) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(_) => break,
            };
            let Some(index) = self.lifecycle.index_of(pid.as_raw()) else {
                continue;
            };
            let oom = self
                .plan
                .containers
                .get(index)
                .is_some_and(|plan| self.cgroup.container(&plan.name).oom_kills() > 0);
            self.drain(index);
            self.step(Event::Exited {
                index,
                code,
                signal,
                oom,
            });
        }
    }

    /// Reads what the ended container left in its pipes; its other processes died with its pid namespace.
    fn drain(&mut self, index: usize) {
        let pipes = self.outputs.get(index).map_or(0, |output| output.pipes.len());
        for pipe in 0..pipes {
            self.read_pipe(index, pipe);
        }
    }

    fn read_pipe(&mut self, index: usize, pipe: usize) {
        let Some(output) = self.outputs.get_mut(index) else {
            return;
        };
        let Some((stream, end)) = output.pipes.get(pipe) else {
            return;
        };
        let mut buffer = [0; 16 * 1024];
        // Bounded, so that a container which writes without end does not starve the sockets; poll comes back here.
        for _ in 0..64 {
            match nix::unistd::read(end, &mut buffer) {
                Ok(0) => {
                    output.log.end(*stream, OffsetDateTime::now_utc());
                    break;
                }
                Ok(count) => output
                    .log
                    .take(*stream, &buffer[..count], OffsetDateTime::now_utc()),
                Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= CONNECTIONS {
                continue;
            }
            if let Ok(connection) = Connection::new(stream) {
                self.connections.push(connection);
            }
        }
    }

    fn serve(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        connection.flush();
        for request in connection.receive() {
            match request {
                Request::Start => self.step(Event::Start),
                Request::Status => {}
                Request::Stop { grace_seconds } => {
                    let grace = grace_seconds.map(|seconds| Duration::from_secs(seconds.into()));
                    self.step(Event::Stop { grace });
                }
            }
            let state = self.state();
            if let Some(connection) = self.connections.get_mut(index) {
                connection.send(&Reply::State(state));
            }
        }
    }

    fn state(&self) -> PodState {
        PodState {
            shim_pid: Pid::this().as_raw(),
            phase: self.lifecycle.phase(),
            containers: self.lifecycle.containers(),
        }
    }

    /// Tells a changed state to every connection and writes it down.
    fn show(&mut self) {
        let state = self.state();
        if self.shown.as_ref() == Some(&state) {
            return;
        }
        if let Err(err) = write_state(&self.dir, &state) {
            complain(&format!("failed to write `status.json`: {err}"));
        }
        for connection in &mut self.connections {
            connection.send(&Reply::State(state.clone()));
        }
        self.shown = Some(state);
    }

    fn leave(&mut self) {
        for (index, plan) in self.plan.containers.clone().iter().enumerate() {
            self.drain(index);
            if let Err(err) = container::clean(
                &self.dir.join("state"),
                &plan.name,
                &self.cgroup.container(&plan.name),
            ) {
                complain(&container::chain(&err));
            }
        }
        let _ = fs::remove_file(self.dir.join("shim.sock"));
    }
}

/// The writers of a pipe are gone and nothing is left in it.
fn is_ended(end: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
    match nix::poll::poll(&mut fds, PollTimeout::ZERO) {
        Ok(_) => fds[0]
            .revents()
            .is_some_and(|got| got.contains(PollFlags::POLLHUP) && !got.contains(PollFlags::POLLIN)),
        Err(_) => false,
    }
}

fn write_state(dir: &Path, state: &PodState) -> std::io::Result<()> {
    let fresh = dir.join("status.json.new");
    let mut file = fs::File::create(&fresh)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    fs::rename(fresh, dir.join("status.json"))
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "beemesh-shim: {text}");
}
