//! `beemesh-shim exec`: one more process in a running container, with the streams of this process.
//!
//! A process of its own, apart from the pod's shim, so that a stuck command never holds the pod. Invariant: the command
//! gets the container's user, capabilities, environment and seccomp filter, never more.

use crate::container::{Program, chain, load_spec};
use anyhow::{Context, Result, anyhow, bail};
use beemesh_agent_api::shim::{PodPlan, PodState};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{self, SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to run and where.
pub struct ExecPlan {
    /// The pod's directory.
    pub pod: PathBuf,
    /// The container's name.
    pub container: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The command is killed after this time.
    pub timeout: Duration,
}

/// Runs the command and gives its exit code (128 + signal where a signal ended it).
pub fn run(plan: &ExecPlan) -> Result<i32> {
    let pod: PodPlan = read(&plan.pod.join("plan.json"))?;
    let state: PodState = read(&plan.pod.join("status.json"))?;
    let bundle = pod
        .containers
        .iter()
        .find(|container| container.name == plan.container)
        .map(|container| container.bundle.clone())
        .ok_or_else(|| anyhow!("the pod has no container `{}`", plan.container))?;
    if !state
        .containers
        .iter()
        .any(|container| container.name == plan.container && container.pid.is_some())
    {
        bail!("container `{}` does not run", plan.container);
    }
    join_pod(state.shim_pid)?;

    let spec = load_spec(&bundle)?;
    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| anyhow!("the bundle `{bundle}` has no process"))?;
    process.set_args(Some(plan.argv.clone()));
    let state_root = plan.pod.join("state");
    let file = state_root
        .join(&plan.container)
        .join(format!("exec-{}.json", Pid::this()));
    fs::write(&file, serde_json::to_vec(&process)?)
        .with_context(|| format!("failed to write `{}`", file.display()))?;

    let mut mask = SigSet::empty();
    for handled in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        mask.add(handled);
    }
    mask.thread_block().context("failed to block signals")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("failed to open a signal descriptor")?;

    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    let started = ContainerBuilder::new(plan.container.clone(), SyscallType::default())
        .with_executor(Program { seccomp })
        .with_root_path(&state_root)
        .and_then(|builder| {
            builder
                .as_tenant()
                .with_detach(true)
                .with_process(Some(&file))
                .build()
        });
    let _ = fs::remove_file(&file);
    let pid = started.map_err(|err| anyhow!("{}", chain(&err)))?;
    wait(Pid::from_raw(pid.as_raw()), &signals, plan.timeout)
}

/// libcontainer enters the container's namespaces; those that the whole pod shares are the shim's.
fn join_pod(shim: i32) -> Result<()> {
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
    ];
    for (name, kind) in kinds {
        let path = format!("/proc/{shim}/ns/{name}");
        let namespace =
            File::open(&path).with_context(|| format!("failed to open `{path}`: is the pod gone?"))?;
        setns(namespace, kind).with_context(|| format!("failed to enter `{path}`"))?;
    }
    Ok(())
}

fn wait(pid: Pid, signals: &SignalFd, timeout: Duration) -> Result<i32> {
    let deadline = Instant::now() + timeout;
    let mut killed = false;
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)).context("failed to wait for the command")? {
            WaitStatus::Exited(_, code) => return Ok(code),
            WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as i32),
            _ => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() && !killed {
            killed = true;
            signal::kill(pid, Signal::SIGKILL).context("failed to kill the command that took too long")?;
        }
        let pause = if killed {
            Duration::from_secs(1)
        } else {
            left.min(Duration::from_secs(60))
        };
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = nix::poll::poll(&mut fds, PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX));
        while let Ok(Some(info)) = signals.read_signal() {
            if info.ssi_signo as i32 != Signal::SIGCHLD as i32 {
                signal::kill(pid, Signal::SIGKILL).context("failed to kill the command")?;
            }
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("`{}` is not understood", path.display()))
}
