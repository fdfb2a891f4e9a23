//! Writes a ring's segments.

use beemesh_init_log::{Header, Limits, Record, Ring, append, segment_name, segment_number};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A ring cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to {what} `{path}`")]
pub struct RingError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The one writer of a ring.
pub struct RingWriter {
    directory: PathBuf,
    boot: [u8; 16],
    ring: Ring,
    current: Option<(Header, File)>,
}

impl RingWriter {
    /// Makes the directory (0700) and looks at what is there. Writes nothing yet.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn open(directory: &Path, limits: Limits, boot: [u8; 16]) -> Result<Self, RingError> {
        let fail = |what, source| RingError {
            what,
            path: directory.to_owned(),
            source,
        };
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(fail("make", e)),
            _ => {}
        }
        let mut there = Vec::new();
        for entry in fs::read_dir(directory).map_err(|e| fail("list", e))?.flatten() {
            let number = entry.file_name().to_str().and_then(segment_number);
            let size = entry.metadata().map(|about| about.len()).unwrap_or(0);
            there.extend(number.map(|number| (number, size)));
        }
        Ok(Self {
            directory: directory.to_owned(),
            boot,
            ring: Ring::new(limits, there),
            current: None,
        })
    }

    /// Appends a record. After an error the next record begins a new segment.
    ///
    /// # Errors
    /// [`RingError`]: the record is not written, or torn.
    pub fn append(&mut self, record: &Record) -> Result<(), RingError> {
        let written = self.try_append(record);
        if written.is_err() {
            self.leave();
        }
        written
    }

    /// The next record begins a new segment.
    pub fn leave(&mut self) {
        self.ring.close();
        self.current = None;
    }

    fn try_append(&mut self, record: &Record) -> Result<(), RingError> {
        let unplaced = Header {
            number: 0,
            boot: self.boot,
            salt: 0,
        };
        let placed = self.ring.place(append(&unplaced, 0, record).len() as u64);
        for number in placed.remove {
            let path = self.directory.join(segment_name(number));
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    let what = "remove";
                    return Err(RingError { what, path, source });
                }
                _ => {}
            }
        }
        let path = self.directory.join(segment_name(placed.number));
        let fail = |what| {
            let path = path.clone();
            move |source| RingError { what, path, source }
        };
        if !placed.fresh {
            return self.put(placed.offset, record).map_err(fail("write"));
        }
        let begun = self.begin(placed.number, &path).and_then(|()| {
            let put = self.put(placed.offset, record);
            put.map_err(fail("write"))
        });
        if begun.is_err()
            && fs::remove_file(&path).map_or_else(|e| e.kind() == io::ErrorKind::NotFound, |()| true)
        {
            self.ring.forget_newest();
        }
        begun
    }

    /// Makes a segment and its header.
    fn begin(&mut self, number: u64, path: &Path) -> Result<(), RingError> {
        let fail = |what| {
            let path = path.to_owned();
            move |source| RingError { what, path, source }
        };
        // What was written to the old one is not lost by going on to the next.
        self.sync()?;
        let header = Header {
            number,
            boot: self.boot,
            salt: salt().map_err(fail("draw a salt for"))?,
        };
        let mut options = OpenOptions::new();
        let options = options.append(true).create_new(true).mode(0o600);
        let mut file = options.open(path).map_err(fail("make"))?;
        file.write_all(&header.encode()).map_err(fail("write"))?;
        self.current = Some((header, file));
        Ok(())
    }

    fn put(&mut self, offset: u64, record: &Record) -> io::Result<()> {
        let (header, file) = self.current.as_mut().ok_or(io::ErrorKind::NotFound)?;
        file.write_all(&append(header, offset, record))
    }

    /// What was appended survives a loss of power from now on.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn sync(&mut self) -> Result<(), RingError> {
        let Some((_, file)) = &self.current else {
            return Ok(());
        };
        // The directory too: the segment may be new.
        let synced = file
            .sync_data()
            .and_then(|()| File::open(&self.directory)?.sync_all());
        synced.map_err(|source| RingError {
            what: "write",
            path: self.directory.clone(),
            source,
        })
    }
}

/// Never blocks, not even before the kernel has gathered randomness.
fn salt() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}
