//! A TPM 2.0 in software (swtpm) for tests: a process with its state in a folder, reached over loopback.
//!
//! Stops with its value. Panics where something is missing: it is for tests alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A chip that is switched on. A later one on the same folder is the same chip after a reboot.
pub struct Swtpm {
    process: Child,
    tcti: String,
}

impl Swtpm {
    /// Starts the chip whose state lies in `state`.
    ///
    /// # Panics
    /// Where there is no `swtpm`, or it does not start.
    pub fn start(state: &Path) -> Self {
        // Of two that look for ports at the same time one could find the other's, and take it for its own.
        static STARTING: Mutex<()> = Mutex::new(());
        let _one_by_one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        (0..20)
            .find_map(|_| Self::try_start(state))
            .expect("swtpm did not start in 20 attempts")
    }

    /// swtpm wants two neighbouring ports: one for commands, the next for control.
    fn try_start(state: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let next = port.checked_add(1)?;
        TcpListener::bind(("127.0.0.1", next)).ok()?;
        let mut swtpm = Command::new("swtpm");
        // The TPM library's sockets stay open over exec: a chip that held another thread's would keep that one's chip waiting.
        beemesh_sys::inherit_streams_alone(&mut swtpm);
        let process = swtpm
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", state.display())])
            .args(["--server", &format!("type=tcp,bindaddr=127.0.0.1,port={port}")])
            .args(["--ctrl", &format!("type=tcp,bindaddr=127.0.0.1,port={next}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need `swtpm`: apt-get install swtpm tpm2-tools libtss2-tcti-swtpm0");
        let mut started = Self {
            process,
            tcti: format!("swtpm:host=127.0.0.1,port={port}"),
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            if started.process.try_wait().unwrap().is_some() {
                return None; // somebody took the port in between
            }
            // Only the control port is probed: a probe of the other one would be a client.
            if TcpStream::connect(("127.0.0.1", next)).is_ok() {
                return Some(started);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Where it is, in the form of tpm2-tools.
    pub fn tcti(&self) -> &str {
        &self.tcti
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
