//! A window of a file: a partition as if it were a device of its own. Knows no file system.
//!
//! Invariants: nothing outside the window is read or written; a window opened for reading gives up after a fixed amount,
//! so that a directory that points to itself cannot keep the reader for ever.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};

/// `length` bytes of a file from `start` on.
pub struct Slice {
    file: File,
    start: u64,
    length: u64,
    position: u64,
    /// Bytes that may still be read.
    budget: u64,
}

impl Slice {
    /// A window for reading: at most four times its length, and 64 MiB, are read.
    pub fn reading(file: File, start: u64, length: u64) -> Self {
        let budget = length.saturating_mul(4).saturating_add(64 << 20);
        Self {
            file,
            start,
            length,
            position: 0,
            budget,
        }
    }

    /// A window for writing, without that bound.
    pub fn writing(file: File, start: u64, length: u64) -> Self {
        Self {
            file,
            start,
            length,
            position: 0,
            budget: u64::MAX,
        }
    }

    /// What was written is on the medium after this.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn remaining(&self, wanted: usize) -> usize {
        let left = self.length.saturating_sub(self.position);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    }

    fn place(&mut self) -> io::Result<()> {
        let at = self
            .start
            .checked_add(self.position)
            .ok_or(ErrorKind::InvalidInput)?;
        self.file.seek(SeekFrom::Start(at)).map(|_| ())
    }
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.remaining(buffer.len());
        if length as u64 > self.budget {
            return Err(io::Error::other("the file system on it leads in circles"));
        }
        self.place()?;
        let Some(buffer) = buffer.get_mut(..length) else {
            return Ok(0);
        };
        let read = self.file.read(buffer)?;
        self.position += read as u64;
        self.budget -= read as u64;
        Ok(read)
    }
}

impl Write for Slice {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = self.remaining(buffer.len());
        self.place()?;
        let written = self.file.write(buffer.get(..length).unwrap_or_default())?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Slice {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target
            .filter(|at| *at <= self.length)
            .ok_or(ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        file
    }

    #[test]
    fn nothing_outside_the_window_is_touched() {
        let mut slice = Slice::writing(file(), 2, 4);
        assert!(slice.write_all(b"abcdef").is_err());
        assert!(slice.seek(SeekFrom::Start(5)).is_err());
        slice.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        slice.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcd");
        let mut whole = slice.file;
        whole.seek(SeekFrom::Start(0)).unwrap();
        text.clear();
        whole.read_to_string(&mut text).unwrap();
        assert_eq!(text, "01abcd6789");
    }

    #[test]
    fn reading_in_circles_ends() {
        let mut slice = Slice::reading(file(), 0, 10);
        slice.budget = 25;
        let mut buffer = [0; 10];
        for expected in [true, true, false] {
            slice.seek(SeekFrom::Start(0)).unwrap();
            assert_eq!(slice.read_exact(&mut buffer).is_ok(), expected);
        }
    }
}
