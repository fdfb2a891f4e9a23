//! A container's output as CRI log lines: `<RFC 3339 nanoseconds> <stdout|stderr> <F|P> <text>`, rotated by size.
//!
//! It does not read pipes. Invariants: a line longer than [`CHUNK`] is written in pieces marked `P`, the last one `F`;
//! the two files together never exceed twice the limit by more than one chunk; a full disk loses lines and never blocks
//! the container. Format: Kubernetes' CRI logging (kubelet `pkg/kubelet/kuberuntime/logs`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// Longest text of one log line in bytes; a longer line is split.
pub const CHUNK: usize = 16 * 1024;
/// Smallest accepted limit: below this a single chunk would rotate the file away.
pub const LIMIT_LEAST: u64 = 64 * 1024;

const STAMP: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");

/// Which of the two streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The log of one container.
pub struct ContainerLog {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    limit: u64,
    pending: [Vec<u8>; 2],
    /// Writes that failed since the log was opened (a full disk); the lines are lost.
    pub lost: u64,
}

impl ContainerLog {
    /// Opens `path` for appending; it is rotated to `<path>.1` when it would exceed `limit` bytes.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        let limit = limit.max(LIMIT_LEAST);
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
            size,
            limit,
            pending: [Vec::new(), Vec::new()],
            lost: 0,
        })
    }

    /// Takes what was read from one stream at `now` and writes the lines that it completes.
    pub fn take(&mut self, stream: Stream, data: &[u8], now: OffsetDateTime) {
        let mut rest = data;
        let mut out = Vec::new();
        while !rest.is_empty() {
            let pending = &mut self.pending[stream as usize];
            let room = CHUNK - pending.len();
            let window = &rest[..rest.len().min(room)];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                pending.extend_from_slice(&rest[..end]);
                rest = &rest[end + 1..];
                line(&mut out, now, stream, 'F', pending);
                pending.clear();
            } else {
                pending.extend_from_slice(window);
                rest = &rest[window.len()..];
                if pending.len() == CHUNK {
                    line(&mut out, now, stream, 'P', pending);
                    pending.clear();
                }
            }
            if out.len() >= CHUNK {
                self.write(&out);
                out.clear();
            }
        }
        if !out.is_empty() {
            self.write(&out);
        }
    }

    /// The stream has ended: what is left of an unfinished line is written as a line.
    pub fn end(&mut self, stream: Stream, now: OffsetDateTime) {
        let pending = std::mem::take(&mut self.pending[stream as usize]);
        if !pending.is_empty() {
            let mut out = Vec::new();
            line(&mut out, now, stream, 'F', &pending);
            self.write(&out);
        }
    }

    fn write(&mut self, lines: &[u8]) {
        if self.try_write(lines).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
    }

    fn try_write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size.saturating_add(lines.len() as u64) > self.limit {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            self.file = None;
            self.size = 0;
        }
        if self.file.is_none() {
            self.file = Some(append(&self.path)?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(lines)?;
            self.size = self.size.saturating_add(lines.len() as u64);
        }
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn line(out: &mut Vec<u8>, now: OffsetDateTime, stream: Stream, mark: char, text: &[u8]) {
    let stamp = now
        .format(STAMP)
        .unwrap_or_else(|_| "1970-01-01T00:00:00.000000000Z".into());
    out.extend_from_slice(format!("{stamp} {} {mark} ", stream.name()).as_bytes());
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05.000000006 UTC);

    fn log(limit: u64) -> (tempfile::TempDir, PathBuf, ContainerLog) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let log = ContainerLog::open(&path, limit).unwrap();
        (dir, path, log)
    }

    #[test]
    fn a_line_has_time_stream_mark_and_text() {
        let (_dir, path, mut log) = log(1 << 20);
        log.take(Stream::Stderr, b"hel", NOW);
        log.take(Stream::Stdout, b"other\n", NOW);
        log.take(Stream::Stderr, b"lo\n\nrest", NOW);
        log.end(Stream::Stderr, NOW);
        let stamp = "2026-01-02T03:04:05.000000006Z";
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            format!(
                "{stamp} stdout F other\n{stamp} stderr F hello\n{stamp} stderr F \n{stamp} stderr F rest\n"
            )
        );
    }

    #[test]
    fn a_long_line_is_split_and_only_its_end_is_final() {
        let (_dir, path, mut log) = log(1 << 20);
        let mut text = vec![b'x'; CHUNK * 2 + 5];
        text.push(b'\n');
        log.take(Stream::Stdout, &text, NOW);
        let written = std::fs::read_to_string(path).unwrap();
        let marks: Vec<&str> = written
            .lines()
            .map(|line| line.split(' ').nth(2).unwrap())
            .collect();
        assert_eq!(marks, ["P", "P", "F"]);
        assert_eq!(written.matches('x').count(), CHUNK * 2 + 5);
    }

    #[test]
    fn rotation_keeps_one_old_file_and_the_newest_line() {
        let (_dir, path, mut log) = log(LIMIT_LEAST);
        for n in 0..10_000 {
            log.take(Stream::Stdout, format!("line {n}\n").as_bytes(), NOW);
        }
        let old = path.with_file_name("c.log.1");
        assert!(std::fs::metadata(&path).unwrap().len() <= LIMIT_LEAST);
        assert!(std::fs::metadata(&old).unwrap().len() <= LIMIT_LEAST);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with(" line 9999\n"));
        let first = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .next()
            .unwrap()
            .to_owned();
        let last_old = std::fs::read_to_string(&old)
            .unwrap()
            .lines()
            .last()
            .unwrap()
            .to_owned();
        let number = |line: &str| line.rsplit(' ').next().unwrap().parse::<u32>().unwrap();
        assert_eq!(
            number(&first),
            number(&last_old) + 1,
            "no line is lost at the seam"
        );
    }

    #[test]
    fn a_log_that_cannot_be_written_counts_what_it_lost() {
        let (dir, path, mut log) = log(LIMIT_LEAST);
        log.take(Stream::Stdout, &[b'y'; 60 * 1024], NOW);
        std::fs::remove_file(&path).unwrap();
        drop(dir);
        log.take(Stream::Stdout, &[b'\n'; 4096], NOW);
        assert!(log.lost > 0);
    }
}
