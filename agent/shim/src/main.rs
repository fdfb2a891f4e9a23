//! Holds one pod: namespaces, log pipes and exit codes.
//!
//! `run` makes a pod's namespaces, says `waiting` on standard output (or what kept it from that), waits for the pod's directory (a
//! line on standard input), is its shim from then on, and says `ready` once it listens; `exec --pod DIR --container NAME [--timeout S] -- ARGV…` runs a command in a
//! container. It pulls no images and configures no network: the agent does. Invariants: one thread (libcontainer forks); a
//! shim that waits ends with whoever started it, one that has a pod outlives it.

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
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "usage: beemesh-shim run    (DIR of the pod is a line on standard input)\n       \
                     beemesh-shim exec --pod DIR --container NAME [--timeout SECONDS] -- PROGRAM [ARGUMENT]...";
/// `exec` could not start the command (the shell's code for it).
const NOT_STARTED: u8 = 126;
/// Longest run of a command where `--timeout` is not given.
const EXEC_TIMEOUT: Duration = Duration::from_secs(3600);
/// Said on standard output once the namespaces are made.
const WAITING: &str = "waiting";
/// Said on standard output once the socket listens.
const READY: &str = "ready";
/// Longest path of a pod's directory, with its line feed (`PATH_MAX`, limits.h).
const PATH_MOST: u64 = 4096;

enum Order {
    SelfTest,
    Run,
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
        Order::Run => (run().map(|()| 0), 1),
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
    match (order.as_str(), words.next()) {
        ("self-test", _) => Ok(Order::SelfTest),
        ("run", None) => Ok(Order::Run),
        ("run", Some(word)) => {
            bail!("`{word}` is too much: `run` reads the pod's directory from standard input")
        }
        ("exec", first) => parse_exec(first.into_iter().chain(words)),
        (other, _) => bail!("`{other}` is not a command"),
    }
}

fn parse_exec(mut words: impl Iterator<Item = String>) -> Result<Order> {
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

/// Waits for its pod, and is the pod's shim until that was stopped. Whoever started it may wait for the line on standard output,
/// and may end at any time: before it has a pod this process ends too; after that PID 1 inherits it, and it has left the
/// session and the cgroup of its parent by then.
fn run() -> Result<()> {
    // It fails where this process leads a group already, which is as good.
    let _ = nix::unistd::setsid();
    nix::unistd::chdir("/").context("failed to change to `/`")?;
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    if let Err(err) = unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)
    {
        // Without a pod there is no log that anybody reads.
        say(&format!("failed to make the pod's namespaces: {err}"))?;
        bail!("failed to make the pod's namespaces: {err}");
    }
    say(WAITING)?;
    let Some(pod) = next_pod()? else {
        return Ok(());
    };
    let log = pod.join("shim.log");
    let file = File::create(&log).with_context(|| format!("failed to create `{}`", log.display()))?;
    nix::unistd::dup2_stderr(file).context("failed to write to the pod's log")?;
    serve(&pod)
}

/// The pod's directory; `None` where whoever started this process ended, or needs it no more.
fn next_pod() -> Result<Option<PathBuf>> {
    let mut line = Vec::new();
    let mut input = std::io::stdin().lock().take(PATH_MOST);
    input
        .read_until(b'\n', &mut line)
        .context("failed to read the pod's directory from standard input")?;
    let null = File::open("/dev/null").context("failed to open `/dev/null`")?;
    nix::unistd::dup2_stdin(null).context("failed to let go of standard input")?;
    // Half a line is of somebody who ended while writing.
    let whole = line.strip_suffix(b"\n");
    Ok(whole.map(|path| OsString::from_vec(path.to_vec()).into()))
}

fn serve(pod: &Path) -> Result<()> {
    let path = pod.join("plan.json");
    let text = fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let plan: PodPlan =
        serde_json::from_slice(&text).with_context(|| format!("`{}` is not understood", path.display()))?;
    let cgroup = cgroup::PodCgroup::enter(&plan.cgroup)?;
    nix::unistd::sethostname(&plan.hostname)
        .with_context(|| format!("failed to set the host name `{}`", plan.hostname))?;
    let state = pod.join("state");
    fs::create_dir_all(&state).with_context(|| format!("failed to create `{}`", state.display()))?;
    let driver = driver::Driver::new(pod, plan, cgroup)?;
    say_ready()?;
    driver.run()
}

/// To whoever started this process.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")
        .and_then(|()| out.flush())
        .with_context(|| format!("failed to say `{line}` on standard output"))
}

/// Says so, then lets go of the pipe: whoever started the shim must not be able to block it.
fn say_ready() -> Result<()> {
    say(READY)?;
    let null = File::open("/dev/null").context("failed to open `/dev/null`")?;
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
            "run --pod /p",
            "exec --pod /p -- ls",
            "exec --pod /p --container c --",
            "fly --pod /p",
        ] {
            assert!(words(text).is_err(), "{text}");
        }
    }
}
