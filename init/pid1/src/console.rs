//! Every console of the machine, and the FIFO through which others speak there.
//!
//! Invariant: a write never blocks: a console that does not drain (a serial line with flow control that nobody reads)
//! loses text, never time.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use beemesh_init_api::path;
use nix::sys::stat::Mode;

use crate::chain::{Attempt, StepError};

/// The longest line that the FIFO passes on, in bytes.
const LINE_LIMIT: usize = 400;
/// The most that is taken from the FIFO before other events get their turn, in bytes.
const TURN_LIMIT: usize = 8192;

/// The consoles, opened.
pub struct Console {
    outputs: Vec<File>,
}

impl Console {
    /// Opens what the kernel lists as active, or `/dev/console` where it lists nothing.
    pub fn open() -> Self {
        let listed = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut outputs: Vec<File> = listed
            .split_whitespace()
            .take(8)
            .filter_map(|name| open(&format!("/dev/{name}")))
            .collect();
        if outputs.is_empty() {
            outputs.extend(open("/dev/console"));
        }
        Self { outputs }
    }

    /// There is no console.
    pub fn is_mute(&self) -> bool {
        self.outputs.is_empty()
    }

    /// Writes one line everywhere; what does not fit now is lost.
    pub fn say(&mut self, line: &str) {
        let line = format!("{line}\n");
        for output in &mut self.outputs {
            let _ = output.write(line.as_bytes());
        }
    }
}

fn open(device: &str) -> Option<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(device)
        .ok()
}

/// The reading end of [`path::CONSOLE`].
pub struct Fifo {
    file: File,
    rest: Vec<u8>,
}

impl Fifo {
    /// Makes and opens the FIFO.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn create() -> Result<Self, StepError> {
        nix::unistd::mkfifo(path::CONSOLE, Mode::from_bits_truncate(0o600)).attempt("make", path::CONSOLE)?;
        // Open for writing too: with a writer of our own there is never an end of file.
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path::CONSOLE);
        Ok(Self {
            file: file.attempt("open", path::CONSOLE)?,
            rest: Vec::new(),
        })
    }

    /// The descriptor to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The whole lines that are there, made safe for a terminal.
    pub fn read_lines(&mut self) -> Vec<String> {
        let mut buffer = [0; TURN_LIMIT];
        let count = self.file.read(&mut buffer).unwrap_or(0);
        self.rest.extend(buffer.get(..count).unwrap_or_default());
        let mut lines = Vec::new();
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            lines.extend(printable(&line));
        }
        if self.rest.len() > LINE_LIMIT {
            let line = std::mem::take(&mut self.rest);
            lines.extend(printable(&line));
        }
        lines
    }
}

/// At most [`LINE_LIMIT`] bytes without control characters, and marked as ours; `None` for an empty line.
fn printable(line: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(line.get(..LINE_LIMIT).unwrap_or(line));
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    let text = text.trim_end();
    match text {
        "" => None,
        _ if text.starts_with("beemesh: ") => Some(text.to_owned()),
        _ => Some(format!("beemesh: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(
            printable(b"\x1b[2Jhello\r\n").as_deref(),
            Some("beemesh: [2Jhello")
        );
    }

    #[test]
    fn long_line_is_cut_at_the_limit() {
        let line = printable(&[b'a'; 1000]).unwrap();
        assert_eq!(line.len(), LINE_LIMIT + "beemesh: ".len());
    }

    #[test]
    fn mark_is_not_doubled_and_empty_lines_vanish() {
        assert_eq!(printable(b"beemesh: x\n").as_deref(), Some("beemesh: x"));
        assert_eq!(printable(b"\n"), None);
    }
}
