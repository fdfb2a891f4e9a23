//! A part of a file as if it were a file of its own. Invariant: nothing outside the part is read or written.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

#[derive(Debug)]
pub(super) struct Window {
    file: File,
    start: u64,
    length: u64,
    position: u64,
}

impl Window {
    pub(super) fn new(mut file: File, start: u64, length: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(start))?;
        Ok(Self {
            file,
            start,
            length,
            position: 0,
        })
    }

    /// How much of `wanted` is left before the end.
    fn fits(&self, wanted: usize) -> usize {
        usize::try_from(self.length.saturating_sub(self.position)).map_or(wanted, |left| left.min(wanted))
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let fits = self.fits(buffer.len());
        let n = self.file.read(&mut buffer[..fits])?;
        self.position += n as u64;
        Ok(n)
    }
}

impl Write for Window {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = self.fits(bytes.len());
        let n = self.file.write(&bytes[..fits])?;
        self.position += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        let target = target.filter(|t| *t <= self.length).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the position is outside the partition",
            )
        })?;
        self.file.seek(SeekFrom::Start(self.start + target))?;
        self.position = target;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_part_is_touched() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"aaaabbbbcccc").unwrap();
        let mut part = Window::new(file.try_clone().unwrap(), 4, 4).unwrap();
        let mut seen = String::new();
        part.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "bbbb");
        part.seek(SeekFrom::End(-2)).unwrap();
        assert!(part.write_all(b"XYZ").is_err(), "only two bytes fit");
        assert!(part.seek(SeekFrom::Current(1)).is_err());
        assert!(part.seek(SeekFrom::Start(5)).is_err());
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut all = String::new();
        file.read_to_string(&mut all).unwrap();
        assert_eq!(all, "aaaabbXYcccc");
    }
}
