//! Child processes that cannot outlive us: each is started with a parent-death signal, is ended by its own id, and
//! writes its complaints to a file.
//!
//! The kernel ties that signal to the *thread* that started the child, so one thread that lives as long as the
//! process starts all of them. Invariant: after [`Program`] is dropped its process is gone and reaped.

use anyhow::{Context, Result, anyhow};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

type Order = (Command, SyncSender<std::io::Result<Child>>);

fn launcher() -> &'static SyncSender<Order> {
    static LAUNCHER: OnceLock<SyncSender<Order>> = OnceLock::new();
    LAUNCHER.get_or_init(|| {
        let (orders, inbox): (SyncSender<Order>, Receiver<Order>) = sync_channel(16);
        // Without the thread the inbox is dropped and every start says so.
        let _ = std::thread::Builder::new()
            .name("launcher".to_owned())
            .spawn(move || {
                for (mut command, reply) in inbox {
                    let _ = reply.send(command.spawn());
                }
            });
        orders
    })
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Program {
    name: String,
    child: Child,
    complaints: PathBuf,
}

impl Program {
    /// Starts `program` with `arguments`; what it prints goes to the file `complaints`.
    pub(crate) fn start(program: &str, arguments: &[String], complaints: &Path) -> Result<Self> {
        let log =
            || File::create(complaints).with_context(|| format!("failed to make `{}`", complaints.display()));
        let out = log()?;
        let err = out
            .try_clone()
            .with_context(|| format!("failed to share `{}`", complaints.display()))?;
        // setpriv becomes the program, so the child's id is the program's.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", program])
            .args(arguments);
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let (reply, answer) = sync_channel(1);
        launcher()
            .send((command, reply))
            .map_err(|_| anyhow!("the thread that starts programs is gone"))?;
        let child = answer
            .recv()
            .context("the thread that starts programs gave no answer")?
            .with_context(|| format!("failed to run `{program}`: is its Debian package installed?"))?;
        Ok(Self {
            name: program.to_owned(),
            child,
            complaints: complaints.to_owned(),
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, once it has ended.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .with_context(|| format!("failed to ask after `{}`", self.name))
    }

    /// Waits for the end; `None` when it is still running after `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it at once (SIGKILL) and reaps it.
    pub(crate) fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        self.child
            .kill()
            .with_context(|| format!("failed to kill `{}` ({})", self.name, self.id()))?;
        self.child
            .wait()
            .with_context(|| format!("failed to wait for `{}`", self.name))
    }

    /// An error that says what the program itself said last.
    pub(crate) fn blame(&self, what: &str) -> anyhow::Error {
        let said = std::fs::read(&self.complaints).unwrap_or_default();
        let said = String::from_utf8_lossy(&said[said.len().saturating_sub(4096)..])
            .trim()
            .to_owned();
        let said = if said.is_empty() {
            "(nothing)".to_owned()
        } else {
            said
        };
        anyhow!("`{}` {what}; it said: {said}", self.name)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Err(e) = self.kill() {
            eprintln!("{e:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_started_by_a_thread_outlives_the_thread_but_not_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let arguments = ["60".to_owned()];
        let mut program = std::thread::spawn(move || Program::start("sleep", &arguments, &log).unwrap())
            .join()
            .unwrap();
        assert!(program.wait(Duration::from_millis(200)).unwrap().is_none());
        let proc = PathBuf::from(format!("/proc/{}", program.id()));
        assert!(proc.exists());
        drop(program);
        assert!(!proc.exists());
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let arguments = ["/no/such/folder".to_owned()];
        let mut program = Program::start("ls", &arguments, &dir.path().join("log")).unwrap();
        let status = program.wait(Duration::from_secs(10)).unwrap().unwrap();
        assert!(!status.success());
        assert!(program.blame("ended").to_string().contains("/no/such/folder"));
    }
}
