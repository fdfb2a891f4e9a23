//! `beemesh-logd`: the kernel's messages into RAM, and all of the log from RAM to the state volume.
//!
//! It decides nothing but when to write. Invariant: whatever the disk does, RAM goes on; a disk that does not take the log
//! is said once, and once more when it does again.

use beemesh_init_api::{StateStatus, path};
use beemesh_init_log::parse_kernel_message;
use beemesh_init_logd::{
    Clock, Copied, Copier, DISK, DISK_LIMITS, KERNEL, KERNEL_LIMITS, RAM, RingReader, RingWriter, boot_id,
};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often the rings in RAM are looked at, in milliseconds.
const TICK_MS: u16 = 250;
/// A disk that failed is tried again after this time.
const PAUSE: Duration = Duration::from_secs(30);
/// Messages of the kernel taken before other work gets its turn.
const TURN: usize = 4096;
/// The kernel's longest record fits (`CONSOLE_EXT_LOG_MAX` is 8192).
const RECORD: usize = 16 << 10;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>{}", words(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn words(error: &dyn Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let boot = boot_id();
    let mut kernel = Kernel::open(boot)?;
    if let Some(file) = kernel.messages.as_ref() {
        epoll.add(file, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    }
    let mut disk = Disk::Awaited;
    loop {
        let mut batch = [EpollEvent::empty(); 2];
        match epoll.wait(&mut batch, TICK_MS) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ending = signals.read_signal()?.is_some();
        kernel.take();
        disk.turn(boot);
        if ending {
            if let Disk::Works(copier) = &mut disk {
                copier.sync()?;
            }
            return Ok(());
        }
    }
}

/// `/dev/kmsg` and its ring.
struct Kernel {
    messages: Option<File>,
    ring: RingWriter,
    newest: Option<u64>,
}

impl Kernel {
    fn open(boot: [u8; 16]) -> Result<Self, Box<dyn Error>> {
        let directory = Path::new(RAM).join(KERNEL);
        let ring = RingWriter::open(&directory, KERNEL_LIMITS, boot)?;
        // After a restart the kernel shows again what is in the ring already.
        let mut newest = None;
        let mut reader = RingReader::new(&directory, Some(boot));
        while let Some(entry) = reader.next_entry() {
            newest = Some(entry.record.seq);
        }
        let messages = OpenOptions::new()
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
            .open("/dev/kmsg")
            .map_err(|error| {
                eprintln!("<3>failed to open `/dev/kmsg`: {error}; the kernel is not in the log")
            })
            .ok();
        Ok(Self {
            messages,
            ring,
            newest,
        })
    }

    fn take(&mut self) {
        let Some(messages) = &mut self.messages else {
            return;
        };
        let offset = Clock::now().offset_us();
        let mut buffer = vec![0; RECORD];
        for _ in 0..TURN {
            let count = match messages.read(&mut buffer) {
                Ok(count) => count,
                // The kernel has overwritten what was next: the gap shows in the numbers.
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let record = buffer
                .get(..count)
                .and_then(|text| parse_kernel_message(text, offset));
            let Some(mut record) = record else { continue };
            let step = self.newest.map(|newest| record.seq.checked_sub(newest));
            match step {
                Some(None | Some(0)) => continue,
                Some(Some(step)) if step > 1 => {
                    record.fields.push(("LOST".to_owned(), (step - 1).to_string()));
                }
                None if record.seq > 0 => record.fields.push(("LOST".to_owned(), record.seq.to_string())),
                _ => {}
            }
            // What memory has no room for shows as a gap before the next one that it has.
            if self.ring.append(&record).is_ok() {
                self.newest = Some(record.seq);
            }
        }
    }
}

/// The way to the state volume.
enum Disk {
    /// Not mounted yet.
    Awaited,
    /// The state lies in RAM: a copy would gain nothing.
    None,
    Works(Box<Copier>),
    Failed {
        copier: Option<Box<Copier>>,
        until: Instant,
    },
}

impl Disk {
    fn turn(&mut self, boot: [u8; 16]) {
        let now = Instant::now();
        let (copier, before) = match std::mem::replace(self, Self::Awaited) {
            Self::Awaited => match state() {
                None => return,
                Some(StateStatus { device: None, .. }) => {
                    *self = Self::None;
                    return;
                }
                Some(_) => (None, false),
            },
            Self::None => {
                *self = Self::None;
                return;
            }
            Self::Failed { copier, until } if until > now => {
                *self = Self::Failed { copier, until };
                return;
            }
            Self::Failed { copier, .. } => (copier, true),
            Self::Works(copier) => (Some(copier), false),
        };
        let opened = copier.map_or_else(
            || Copier::open(Path::new(RAM), Path::new(DISK), DISK_LIMITS, boot).map(Box::new),
            Ok,
        );
        let (copier, error) = match opened {
            Err(error) => (None, Some(error)),
            Ok(mut copier) => match copier.turn(now) {
                Ok(Copied::All | Copied::More) => (Some(copier), None),
                Err(error) => (Some(copier), Some(error)),
            },
        };
        *self = match (copier, error) {
            (Some(copier), None) => {
                if before {
                    eprintln!("<5>the state volume takes the log again");
                }
                Self::Works(copier)
            }
            (copier, error) => {
                if let (false, Some(error)) = (before, &error) {
                    eprintln!("<3>{}; the log stays in memory", words(error));
                }
                Self::Failed {
                    copier,
                    until: now + PAUSE,
                }
            }
        };
    }
}

fn state() -> Option<StateStatus> {
    let text = std::fs::read(path::STATE_STATUS).ok()?;
    serde_json::from_slice(&text).ok()
}
