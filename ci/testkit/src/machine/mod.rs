//! A QEMU machine: power, reset, sticks, monitor, console. What it runs is not its business.
//!
//! Invariant: a machine that is off has no process; a [`Machine`] that is dropped is off.

mod arguments;
mod config;
mod disks;
mod usb;

pub use config::{Boot, Disk, DiskBus, MachineConfig, Nic, NicModel, Stick};

use crate::console::{Console, Line, Mark, Pattern, WaitError};
use crate::process::Program;
use crate::qmp::{Qmp, QmpError};
use crate::tpm::SoftwareTpm;
use anyhow::{Context, Result, bail};
use arguments::{Sockets, arguments};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long QEMU may take to connect to us.
const CONNECT: Duration = Duration::from_secs(30);

/// How long QEMU may take to answer a command. Under emulation on a loaded machine it can be slow.
const ANSWER: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Running {
    qemu: Program,
    tpm: Option<SoftwareTpm>,
    qmp: Qmp,
}

/// A machine; see [`MachineConfig`] for what it is made of.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    // Not in the machine's folder: a unix socket's path has at most 107 bytes.
    sockets: tempfile::TempDir,
    console: Console,
    booted: Mark,
    running: Option<Running>,
}

impl Machine {
    /// Builds the machine and switches it on. Its console is logged to `console.log` in its folder.
    ///
    /// # Errors
    /// When a file cannot be made, or QEMU or swtpm do not start; the error quotes what they said.
    pub fn start(config: MachineConfig) -> Result<Self> {
        let folder = &config.folder;
        std::fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
        let sockets = tempfile::Builder::new()
            .prefix("bmvm-")
            .tempdir_in("/tmp")
            .context("failed to make a folder for the machine's sockets")?;
        let log = folder.join("console.log");
        let console = Console::new(Some(&log))
            .with_context(|| format!("failed to make the log `{}`", log.display()))?;
        let booted = console.mark();
        let mut machine = Self {
            config,
            sockets,
            console,
            booted,
            running: None,
        };
        machine.power_on()?;
        Ok(machine)
    }

    /// Switches the machine on again, with the disks, variables and TPM it had.
    ///
    /// # Errors
    /// When it is on, or as [`Machine::start`].
    pub fn power_on(&mut self) -> Result<()> {
        if self.is_on()? {
            bail!("the machine `{}` is on already", self.config.name);
        }
        self.booted = self.console.mark();
        let running = self
            .launch()
            .with_context(|| format!("failed to switch on the machine `{}`", self.config.name))?;
        self.running = Some(running);
        Ok(())
    }

    fn launch(&self) -> Result<Running> {
        let config = &self.config;
        for disk in &config.disks {
            create_sparse(&disk.image, disk.bytes)?;
        }
        let vars = config.folder.join("vars.fd");
        if let Boot::Uefi(firmware) = &config.boot {
            firmware.prepare_vars(&vars)?;
        }
        let place = |name: &str| self.sockets.path().join(name);
        let sockets = Sockets {
            console: place("console"),
            monitor: place("monitor"),
            tpm: place("tpm"),
        };
        let console = listen(&sockets.console)?;
        let monitor = listen(&sockets.monitor)?;
        remove(&sockets.tpm)?;
        let tpm = match &config.tpm {
            Some(state) => Some(SoftwareTpm::start(
                state,
                &sockets.tpm,
                &config.folder.join("swtpm.log"),
            )?),
            None => None,
        };
        let log = config.folder.join("qemu.log");
        let mut qemu = Program::start("qemu-system-x86_64", &arguments(config, &vars, &sockets), &log)?;
        let deadline = Instant::now() + CONNECT;
        self.console
            .attach(accept(&console, &mut qemu, deadline)?)
            .context("failed to read the console")?;
        let stream = accept(&monitor, &mut qemu, deadline)?;
        let qmp = match Qmp::connect(stream, ANSWER) {
            Ok(qmp) => qmp,
            // A device that cannot be made ends QEMU at this point; its words say which one.
            Err(QmpError::Closed) => {
                qemu.wait(ANSWER)?;
                return Err(qemu.blame("ended at once"));
            }
            Err(e) => return Err(e.into()),
        };
        Ok(Running { qemu, tpm, qmp })
    }

    /// The machine's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// What it was made of.
    #[must_use]
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Its serial console, over all its boots.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Where the console's output of the present boot begins.
    #[must_use]
    pub fn boot_mark(&self) -> Mark {
        self.booted
    }

    /// Waits for a line of the present boot.
    ///
    /// # Errors
    /// [`WaitError`], with the last lines.
    pub fn wait_for(&self, pattern: impl Into<Pattern>, timeout: Duration) -> Result<Line, WaitError> {
        self.console.wait_for_after(self.booted, pattern, timeout)
    }

    /// The machine has a running QEMU.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn is_on(&mut self) -> Result<bool> {
        let Some(running) = &mut self.running else {
            return Ok(false);
        };
        let on = running.qemu.ended()?.is_none();
        if !on {
            self.clean_up()?;
        }
        Ok(on)
    }

    /// The process ids of QEMU and swtpm, while they run.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        let Some(running) = &self.running else {
            return Vec::new();
        };
        std::iter::once(running.qemu.id())
            .chain(running.tpm.as_ref().map(SoftwareTpm::id))
            .collect()
    }

    /// Presses the power button and waits until the machine is off; returns how long that took.
    ///
    /// # Errors
    /// When it is not on, or still on after `timeout`.
    pub fn power_off(&mut self, timeout: Duration) -> Result<Duration> {
        let pressed = Instant::now();
        match self.execute("system_powerdown", json!({})) {
            Ok(_) => {}
            // It went off by itself just now.
            Err(e) if matches!(e.downcast_ref(), Some(QmpError::Closed)) => {}
            Err(e) => return Err(e),
        }
        self.wait_off(timeout)?;
        Ok(pressed.elapsed())
    }

    /// Waits until the machine has switched itself off.
    ///
    /// # Errors
    /// When it is still on after `timeout`.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<()> {
        if let Some(running) = &mut self.running
            && running.qemu.wait(timeout)?.is_none()
        {
            let tail = self
                .console
                .tail(20)
                .into_iter()
                .map(|l| l.text)
                .collect::<Vec<_>>()
                .join("\n  | ");
            bail!(
                "the machine `{}` is still on after {timeout:?}; it says:\n  | {tail}",
                self.config.name
            );
        }
        self.clean_up()
    }

    /// Pulls the mains plug: QEMU is killed and nothing gets a chance to say goodbye.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(running) = &mut self.running {
            running.qemu.kill()?;
        }
        self.clean_up()
    }

    /// Presses the reset button. Disks, variables and TPM keep their state; the console's boot mark moves on.
    ///
    /// # Errors
    /// When the machine is not on.
    pub fn reset(&mut self) -> Result<()> {
        let mark = self.console.mark();
        self.execute("system_reset", json!({}))?;
        self.booted = mark;
        Ok(())
    }

    /// Makes the network card `number` see its cable go out (`false`) or in.
    ///
    /// # Errors
    /// When the machine is not on or has no such card.
    pub fn set_link(&self, number: usize, up: bool) -> Result<()> {
        self.execute("set_link", json!({ "name": format!("nic{number}"), "up": up }))?;
        Ok(())
    }

    /// Carries out a QMP command, such as `stop` and `cont` to freeze and thaw the machine.
    ///
    /// # Errors
    /// When the machine is not on, or QEMU refuses.
    pub fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let answer = self.qmp()?.execute(command, arguments, ANSWER);
        answer.with_context(|| format!("the machine `{}` did not do as told", self.config.name))
    }

    fn qmp(&self) -> Result<&Qmp> {
        self.running
            .as_ref()
            .map(|r| &r.qmp)
            .with_context(|| format!("the machine `{}` is off", self.config.name))
    }

    /// Reaps what a machine that went off leaves behind.
    fn clean_up(&mut self) -> Result<()> {
        if let Some(Running { tpm: Some(tpm), .. }) = self.running.take() {
            tpm.stop()?;
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let ids = self.process_ids();
        match self.kill() {
            Ok(()) if ids.is_empty() => {}
            Ok(()) => eprintln!(
                "the machine `{}` was on; its processes {ids:?} are ended",
                self.config.name
            ),
            Err(e) => eprintln!(
                "the machine `{}` was on and could not be ended: {e:#}",
                self.config.name
            ),
        }
    }
}

/// Makes an empty file of this size that takes no space, unless it exists.
fn create_sparse(path: &Path, bytes: u64) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let file = File::create(path).with_context(|| format!("failed to make the disk `{}`", path.display()))?;
    file.set_len(bytes)
        .with_context(|| format!("failed to give the disk `{}` its size", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("failed to remove `{}`", path.display()))
        }
        _ => Ok(()),
    }
}

fn listen(path: &PathBuf) -> Result<UnixListener> {
    remove(path)?;
    let listener =
        UnixListener::bind(path).with_context(|| format!("failed to listen on `{}`", path.display()))?;
    listener
        .set_nonblocking(true)
        .with_context(|| format!("failed to set up `{}`", path.display()))?;
    Ok(listener)
}

fn accept(listener: &UnixListener, qemu: &mut Program, deadline: Instant) -> Result<UnixStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream
                    .set_nonblocking(false)
                    .context("failed to set up qemu's connection")?;
                return Ok(stream);
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).context("failed to accept qemu's connection"),
        }
        if qemu.ended()?.is_some() {
            return Err(qemu.blame("ended at once"));
        }
        if Instant::now() > deadline {
            return Err(qemu.blame("did not connect within 30 s"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
