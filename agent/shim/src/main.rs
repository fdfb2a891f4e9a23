//! Holds one pod: namespaces, log pipes and exit codes.
//!
//! `run --pod DIR` is the pod's shim, and says `ready` on standard output once it listens; `exec --pod DIR --container NAME [--timeout S] --
//! ARGV…` runs a command in a container. It pulls no images and configures no network: the agent does. Invariants: one
//! thread (libcontainer forks); the shim outlives whoever started it.

mod cgroup;
mod container;
mod driver;
mod exec;
mod lifecycle;
mod log;
mod server;

use anyhow::{Context, Result, anyhow, bail};
use beemesh_agent_api::shim::PodPlan;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: beemesh-shim run --pod DIR\n       \
                     beemesh-shim exec --pod DIR --container NAME [--timeout SECONDS] -- PROGRAM [ARGUMENT]...";
/// `exec` could not start the command (the shell's code for it).
const NOT_STARTED: u8 = 126;
/// Longest run of a command where `--timeout` is not given.
const EXEC_TIMEOUT: Duration = Duration::from_secs(3600);
/// Said on standard output once the socket listens.
const READY: &str = "ready";

enum Order {
    SelfTest,
    Run(PathBuf),
    Exec(exec::ExecPlan),
}

fn main() -> ExitCode {
    let order = match parse(std::env::args().skip(1)) {
        Ok(order) => order,
        Err(err) => {
            complain(&format!("{err}\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    let (result, failed) = match order {
        // It runs in a container: that it runs is the test.
        Order::SelfTest => (Ok(0), 1),
        Order::Run(pod) => (run(&pod).map(|()| 0), 1),
        Order::Exec(plan) => (exec::run(&plan), NOT_STARTED),
    };
    match result {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(err) => {
            complain(&format!("{err:#}"));
            ExitCode::from(failed)
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Order> {
    let order = words.next().ok_or_else(|| anyhow!("no command given"))?;
    if order == "self-test" {
        return Ok(Order::SelfTest);
    }
    let (mut pod, mut container, mut timeout, mut argv) = (None, None, EXEC_TIMEOUT, Vec::new());
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| anyhow!("`{word}` needs a value"));
        match word.as_str() {
            "--pod" => pod = Some(PathBuf::from(value()?)),
            "--container" => container = Some(value()?),
            "--timeout" => {
                timeout = Duration::from_secs(value()?.parse().context("`--timeout` takes seconds")?)
            }
            "--" => argv = words.by_ref().collect(),
            _ => bail!("`{word}` is not an option"),
        }
    }
    let pod = pod.ok_or_else(|| anyhow!("`--pod` is missing"))?;
    match order.as_str() {
        "run" => Ok(Order::Run(pod)),
        "exec" => {
            let container = container.ok_or_else(|| anyhow!("`--container` is missing"))?;
            if argv.is_empty() {
                bail!("no program given after `--`");
            }
            Ok(Order::Exec(exec::ExecPlan {
                pod,
                container,
                argv,
                timeout,
            }))
        }
        other => bail!("`{other}` is not a command"),
    }
}

/// Is the pod's shim until the pod was stopped. Whoever started it may wait for the line on standard output, and may end
/// at any time: PID 1 inherits this process, which has left the session and the cgroup of its parent by then.
fn run(pod: &Path) -> Result<()> {
    let path = pod.join("plan.json");
    let text = fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let plan: PodPlan =
        serde_json::from_slice(&text).with_context(|| format!("`{}` is not understood", path.display()))?;
    // It fails where this process leads a group already, which is as good.
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/").context("failed to change to `/`")?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    let cgroup = cgroup::PodCgroup::enter(&plan.cgroup)?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
        .context("failed to make the pod's namespaces")?;
    nix::unistd::sethostname(&plan.hostname)
        .with_context(|| format!("failed to set the host name `{}`", plan.hostname))?;
    let state = pod.join("state");
    fs::create_dir_all(&state).with_context(|| format!("failed to create `{}`", state.display()))?;
    let driver = driver::Driver::new(pod, plan, cgroup)?;
    say_ready()?;
    driver.run()
}

/// Says so, then lets go of the pipe: whoever started the shim must not be able to block it.
fn say_ready() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")
        .and_then(|()| out.flush())
        .context("failed to report that the shim listens")?;
    let null = fs::File::open("/dev/null").context("failed to open `/dev/null`")?;
    nix::unistd::dup2_stdout(null).context("failed to let go of standard output")
}

fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "beemesh-shim: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Order> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn everything_after_the_dashes_belongs_to_the_command() {
        let Ok(Order::Exec(plan)) = words("exec --pod /p --container c --timeout 5 -- ls --pod x") else {
            panic!()
        };
        assert_eq!(plan.argv, ["ls", "--pod", "x"]);
        assert_eq!(
            (plan.container.as_str(), plan.timeout),
            ("c", Duration::from_secs(5))
        );
    }

    #[test]
    fn incomplete_orders_are_refused() {
        for text in [
            "",
            "run",
            "run --pod",
            "exec --pod /p -- ls",
            "exec --pod /p --container c --",
            "fly --pod /p",
        ] {
            assert!(words(text).is_err(), "{text}");
        }
    }
}
