//! One container through libcontainer: create, start, clean up; and the executor that gives the program a clean start.
//!
//! The only module that names libcontainer (with `exec`). It does not decide when to start. Invariant: the program starts
//! with no signal blocked or ignored (Rust ignores SIGPIPE, and whoever started the agent may ignore more) and no descriptor but its three streams.

use crate::cgroup::ContainerCgroup;
use beemesh_agent_api::shim::ContainerPlan;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Spec};
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, Signal};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Annotation that carries the image's `StopSignal` (OCI image spec, "Conversion to OCI Runtime Configuration").
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";
/// The shim's own share of the kernel's mercy: it goes after the containers that it holds.
const OWN_OOM_SCORE: &str = "-998";

/// Why a container was not started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Something outside of libcontainer failed.
    #[error("failed to {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// libcontainer refused or failed.
    #[error("{0}")]
    Container(String),
}

/// A container that was just started.
pub struct Launched {
    /// Its first process, a child of this one.
    pub pid: i32,
    /// Read ends of its standard output and error, non-blocking.
    pub stdout: OwnedFd,
    /// See `stdout`.
    pub stderr: OwnedFd,
}

/// Creates and starts one container. What an earlier run left is removed first.
pub fn launch(
    state_root: &Path,
    plan: &ContainerPlan,
    cgroup: &ContainerCgroup,
) -> Result<Launched, LaunchError> {
    clean(state_root, &plan.name, cgroup)?;
    cgroup.make().map_err(|err| LaunchError::Container(chain(&err)))?;
    let io = |what: &str| {
        let what = what.to_owned();
        move |source: io::Error| LaunchError::Io { what, source }
    };
    let null = File::open("/dev/null").map_err(io("open `/dev/null`"))?;
    let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from);
    let (stdout, stdout_end) = pipe().map_err(io("make a pipe"))?;
    let (stderr, stderr_end) = pipe().map_err(io("make a pipe"))?;
    for end in [&stdout, &stderr] {
        // Only the reader: the flag belongs to the open file, and the container's end is another one.
        nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|err| {
            LaunchError::Io {
                what: "set up a pipe".into(),
                source: err.into(),
            }
        })?;
    }
    let built = ContainerBuilder::new(plan.name.clone(), SyscallType::default())
        .with_executor(Program { seccomp: None })
        .with_stdin(null)
        .with_stdout(stdout_end)
        .with_stderr(stderr_end)
        .with_root_path(state_root)
        .and_then(ContainerBuilder::validate_id)
        .and_then(|builder| {
            builder
                .as_init(&plan.bundle)
                .with_systemd(false)
                .with_detach(true)
                .build()
        });
    // libcontainer gave this process the container's score, to be inherited.
    let _ = fs::write("/proc/self/oom_score_adj", OWN_OOM_SCORE);
    let mut container = built.map_err(|err| LaunchError::Container(chain(&err)))?;
    container
        .start()
        .map_err(|err| LaunchError::Container(chain(&err)))?;
    // Not by libcontainer: under a tight limit it would take seconds to make the container.
    if let Some(quota) = plan.cpu_quota_us
        && let Err(err) = cgroup.limit_cpu(quota)
    {
        let _ = cgroup.kill();
        return Err(LaunchError::Container(chain(&err)));
    }
    let pid = container
        .pid()
        .ok_or_else(|| LaunchError::Container("the container has no process".into()))?;
    Ok(Launched {
        pid: pid.as_raw(),
        stdout,
        stderr,
    })
}

/// Removes the cgroup and the state of a run that has ended. libcontainer's own `delete` is not used: it signals the
/// process id on record, which may belong to someone else by now.
pub fn clean(state_root: &Path, name: &str, cgroup: &ContainerCgroup) -> Result<(), LaunchError> {
    cgroup
        .remove()
        .map_err(|err| LaunchError::Container(chain(&err)))?;
    let state = state_root.join(name);
    match fs::remove_dir_all(&state) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(LaunchError::Io {
            what: format!("remove `{}`", state.display()),
            source: err,
        }),
        _ => Ok(()),
    }
}

/// The signal that asks the container's program to end: the image's `StopSignal`, or SIGTERM.
pub fn stop_signal(bundle: &str) -> Signal {
    let named = load_spec(bundle).ok().and_then(|spec| {
        spec.annotations()
            .as_ref()
            .and_then(|all| all.get(STOP_SIGNAL).cloned())
    });
    named.as_deref().and_then(parse_signal).unwrap_or(Signal::SIGTERM)
}

/// `SIGQUIT`, `QUIT` or `3`.
fn parse_signal(text: &str) -> Option<Signal> {
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).ok();
    }
    let upper = text.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    full.parse().ok()
}

/// Reads a bundle's `config.json`.
pub fn load_spec(bundle: &str) -> Result<Spec, LaunchError> {
    let path = PathBuf::from(bundle).join("config.json");
    Spec::load(&path).map_err(|err| {
        LaunchError::Container(format!("failed to read `{}`: {}", path.display(), chain(&err)))
    })
}

/// An error with its causes, without repeating what a message already contains.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}

/// Starts the program: undoes what the shim set up for itself, then `exec`.
#[derive(Clone)]
pub struct Program {
    /// A filter to load first: for `exec`, whose processes libcontainer starts without one.
    pub seccomp: Option<LinuxSeccomp>,
}

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let other = |err: &dyn std::error::Error| ExecutorError::Other(chain(err));
        for signal in Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP))
        {
            beemesh_sys::reset_signal(signal).map_err(|err| other(&err))?;
        }
        SigSet::empty().thread_set_mask().map_err(|err| other(&err))?;
        if let Some(seccomp) = &self.seccomp {
            libcontainer::seccomp::initialize_seccomp(seccomp).map_err(|err| other(&err))?;
        }
        DefaultExecutor {}.exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_in_each_spelling() {
        for text in ["SIGQUIT", "quit", "3"] {
            assert_eq!(parse_signal(text), Some(Signal::SIGQUIT), "{text}");
        }
        assert_eq!(parse_signal("SIGNONSENSE"), None);
    }
}
