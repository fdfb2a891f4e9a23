//! What a machine says on its serial console: read all the time, cleaned, kept with the time it came, searchable.
//!
//! It interprets nothing but control sequences. Invariant: the reader never stops reading unless told to, so that a
//! machine never waits for us; at most [`MAX_LINES`] lines of [`MAX_LINE`] bytes and a log of [`MAX_LOG`] bytes are kept.

mod clean;
mod wait;

pub use wait::{Pattern, WaitError};

use clean::Cleaner;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How many lines are kept; older ones are forgotten.
pub const MAX_LINES: usize = 20_000;

/// The longest line, in bytes; a longer one is kept as several.
pub const MAX_LINE: usize = 8 * 1024;

/// The largest log file, in bytes; later lines are not logged.
pub const MAX_LOG: u64 = 64 * 1024 * 1024;

/// A line of console output, without control sequences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number since the console was made, over all boots.
    pub number: u64,
    /// When its last byte came.
    pub at: Instant,
    /// The text.
    pub text: String,
}

/// A place in the output: everything that comes later is after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

#[derive(Debug)]
struct State {
    lines: VecDeque<Line>,
    /// Number of the line that is being received.
    next: u64,
    cleaner: Cleaner,
    partial_at: Instant,
    /// Counts attachments, so that the end of an old one does not look like the end of the present one.
    generation: u64,
    attached: bool,
    paused: bool,
    writer: Option<UnixStream>,
    log: Option<(File, u64)>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    made: Instant,
}

/// A serial console; clones are the same console.
#[derive(Debug, Clone)]
pub struct Console {
    shared: Arc<Shared>,
}

impl Console {
    /// A console that nothing is attached to yet; with `log`, every line is also written there with the seconds
    /// since now.
    ///
    /// # Errors
    /// When the log cannot be made.
    pub fn new(log: Option<&Path>) -> io::Result<Self> {
        let log = log.map(File::create).transpose()?.map(|f| (f, MAX_LOG));
        let now = Instant::now();
        let state = State {
            lines: VecDeque::new(),
            next: 0,
            cleaner: Cleaner::default(),
            partial_at: now,
            generation: 0,
            attached: false,
            paused: false,
            writer: None,
            log,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
                made: now,
            }),
        })
    }

    /// Starts to read from a serial line, in place of an earlier one. Ends by itself when the line closes.
    ///
    /// # Errors
    /// When the socket cannot be shared or the reader cannot be started.
    pub fn attach(&self, stream: UnixStream) -> io::Result<()> {
        let writer = stream.try_clone()?;
        let generation = {
            let mut state = self.lock();
            state.generation += 1;
            state.attached = true;
            state.paused = false;
            state.writer = Some(writer);
            state.generation
        };
        let console = self.clone();
        std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || console.read_all(stream, generation))?;
        Ok(())
    }

    /// Types text at the machine; a line end is `\r`.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`] while no serial line is attached, or when it refuses.
    pub fn write(&self, text: &str) -> io::Result<()> {
        let mut writer = match &self.lock().writer {
            Some(w) => w.try_clone()?,
            None => {
                return Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    "no serial line is attached",
                ));
            }
        };
        writer.write_all(text.as_bytes())
    }

    /// Stops reading, like a line that nobody listens to (what is under way is still taken), or goes on.
    pub fn pause(&self, paused: bool) {
        self.lock().paused = paused;
        self.shared.changed.notify_all();
    }

    /// The present end of the output.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let state = self.lock();
        // A line that has begun belongs to what came before.
        Mark(state.next + u64::from(!state.cleaner.partial().is_empty()))
    }

    /// The last `count` lines, oldest first, with an unfinished one at the end.
    #[must_use]
    pub fn tail(&self, count: usize) -> Vec<Line> {
        let state = self.lock();
        let mut lines: Vec<Line> = state.lines.iter().rev().take(count).rev().cloned().collect();
        lines.extend(state.partial());
        lines
    }

    /// All kept lines after the mark.
    #[must_use]
    pub fn lines_after(&self, mark: Mark) -> Vec<Line> {
        let state = self.lock();
        state
            .lines
            .iter()
            .filter(|l| l.number >= mark.0)
            .cloned()
            .collect()
    }

    fn read_all(&self, mut stream: UnixStream, generation: u64) {
        let mut chunk = [0u8; 4096];
        loop {
            self.wait_while_paused(generation);
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => self.lock().take(&chunk[..n], self.shared.made),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            }
            self.shared.changed.notify_all();
        }
        let mut state = self.lock();
        if state.generation == generation {
            state.take(b"\n", self.shared.made);
            state.attached = false;
            state.writer = None;
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    fn wait_while_paused(&self, generation: u64) {
        let state = self.lock();
        let paused = |state: &mut State| state.paused && state.generation == generation;
        drop(
            self.shared
                .changed
                .wait_while(state, paused)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, bytes: &[u8], made: Instant) {
        let at = Instant::now();
        let mut finished = Vec::new();
        self.cleaner.push(bytes, |text| finished.push(text));
        self.partial_at = at;
        for text in finished {
            if let Some((file, left)) = &mut self.log {
                let entry = format!("{:9.3} {text}\n", at.duration_since(made).as_secs_f64());
                // A log that cannot be written must not stop the reading.
                if entry.len() as u64 <= *left && file.write_all(entry.as_bytes()).is_ok() {
                    *left -= entry.len() as u64;
                }
            }
            self.lines.push_back(Line {
                number: self.next,
                at,
                text,
            });
            self.next += 1;
            if self.lines.len() > MAX_LINES {
                self.lines.pop_front();
            }
        }
    }

    fn partial(&self) -> Option<Line> {
        let bytes = self.cleaner.partial();
        let text = String::from_utf8_lossy(bytes).into_owned();
        (!bytes.is_empty()).then_some(Line {
            number: self.next,
            at: self.partial_at,
            text,
        })
    }
}
