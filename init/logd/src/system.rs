//! All of a machine's log: the ring on disk, then what the rings in RAM have beyond it, each record once.

use crate::reader::{Entry, RingReader};
use crate::{KERNEL, SERVICES, boot_id};
use beemesh_init_log::{Record, Stream};
use std::path::{Path, PathBuf};

/// Which boots' records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootChoice {
    /// Every one that there is.
    All,
    /// The one that runs (0) or so many before it.
    Before(usize),
}

/// Where a machine's log lies.
#[derive(Debug, Clone)]
pub struct SystemLog {
    disk: PathBuf,
    ram: PathBuf,
    current: [u8; 16],
}

impl SystemLog {
    /// The log of the machine that runs, with its ring on disk and the directory of those in RAM.
    #[must_use]
    pub fn new(disk: &Path, ram: &Path) -> Self {
        Self::of_boot(disk, ram, boot_id())
    }

    /// The same where `current` is the boot that runs.
    #[must_use]
    pub fn of_boot(disk: &Path, ram: &Path, current: [u8; 16]) -> Self {
        Self {
            disk: disk.to_owned(),
            ram: ram.to_owned(),
            current,
        }
    }

    /// A reader of the boots chosen, oldest record first; `None`: no such boot is in the log.
    #[must_use]
    pub fn read(&self, choice: BootChoice) -> Option<SystemReader> {
        let boot = match choice {
            BootChoice::All => None,
            BootChoice::Before(0) => Some(self.current),
            BootChoice::Before(count) => {
                let mut boots = RingReader::boots(&self.disk);
                boots.retain(|boot| *boot != self.current);
                let at = boots.len().checked_sub(count)?;
                Some(*boots.get(at)?)
            }
        };
        let with_ram = boot.is_none_or(|boot| boot == self.current);
        let ram = |name: &str| with_ram.then(|| Source::new(&self.ram.join(name), self.current));
        Some(SystemReader {
            disk: Some(RingReader::new(&self.disk, boot)),
            current: self.current,
            had_of: self.current,
            had: [None; 2],
            ram: [ram(SERVICES), ram(KERNEL)],
        })
    }
}

struct Source {
    reader: RingReader,
    next: Option<Entry>,
}

impl Source {
    fn new(directory: &Path, boot: [u8; 16]) -> Self {
        Self {
            reader: RingReader::new(directory, Some(boot)),
            next: None,
        }
    }
}

/// Reads the log. After the end it can be asked again: what came meanwhile is given, where the current boot was chosen.
pub struct SystemReader {
    disk: Option<RingReader>,
    current: [u8; 16],
    /// The newest sequence numbers that were given of this boot, per stream.
    had_of: [u8; 16],
    had: [Option<u64>; 2],
    ram: [Option<Source>; 2],
}

impl SystemReader {
    /// A reader of the rings in RAM alone.
    pub(crate) fn of_ram(ram: &Path, current: [u8; 16]) -> Self {
        let source = |name| Some(Source::new(&ram.join(name), current));
        Self {
            disk: None,
            current,
            had_of: current,
            had: [None; 2],
            ram: [source(SERVICES), source(KERNEL)],
        }
    }

    /// The next record; `None`: there is none yet.
    pub fn next_entry(&mut self) -> Option<Entry> {
        if self.disk.is_some() {
            while let Some(entry) = self.disk.as_mut().and_then(RingReader::next_entry) {
                self.turn_to(entry.boot);
                if self.is_new(&entry.record) {
                    return Some(entry);
                }
            }
            self.disk = None;
            self.turn_to(self.current);
        }
        let [services, kernel] = &mut self.ram;
        let had = self.had;
        for source in [&mut *services, &mut *kernel].into_iter().flatten() {
            while source.next.is_none() {
                match source.reader.next_entry() {
                    Some(entry) if is_after(had, &entry.record) => source.next = Some(entry),
                    Some(_) => {}
                    None => break,
                }
            }
        }
        let time = |source: &Option<Source>| {
            let next = source.as_ref().and_then(|source| source.next.as_ref());
            next.map_or(u64::MAX, |entry| entry.record.monotonic_us)
        };
        let first = if time(services) <= time(kernel) {
            services
        } else {
            kernel
        };
        let entry = first.as_mut()?.next.take()?;
        self.is_new(&entry.record);
        Some(entry)
    }

    fn turn_to(&mut self, boot: [u8; 16]) {
        if self.had_of != boot {
            self.had_of = boot;
            self.had = [None; 2];
        }
    }

    fn is_new(&mut self, record: &Record) -> bool {
        let new = is_after(self.had, record);
        let [services, kernel] = &mut self.had;
        if new {
            match record.stream {
                Stream::Services => *services = Some(record.seq),
                Stream::Kernel => *kernel = Some(record.seq),
            }
        }
        new
    }
}

fn is_after([services, kernel]: [Option<u64>; 2], record: &Record) -> bool {
    let had = match record.stream {
        Stream::Services => services,
        Stream::Kernel => kernel,
    };
    had.is_none_or(|had| record.seq > had)
}
