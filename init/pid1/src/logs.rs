//! What services print: a pipe each, written to a file of at most 1 MiB with one older file beside it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use beemesh_init_api::path;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::chain::{Attempt, StepError};

/// Size at which a log begins anew, in bytes.
const FILE_LIMIT: u64 = 1 << 20;
/// The most that is taken before other events get their turn, in bytes.
const TURN_LIMIT: usize = 64 << 10;

/// One service's log.
pub struct ServiceLog {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    reader: File,
    writer: OwnedFd,
}

impl ServiceLog {
    /// Opens the pipe and the file.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn create(service: &str) -> Result<Self, StepError> {
        Self::create_at(PathBuf::from(path::LOG).join(format!("{service}.log")))
    }

    fn create_at(path: PathBuf) -> Result<Self, StepError> {
        // Only the reading end may not block; a service that prints faster than we read waits.
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).attempt("make a pipe for", &path)?;
        nix::fcntl::fcntl(&reader, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .attempt("set up", &path)?;
        let file = OpenOptions::new().create(true).append(true).open(&path).ok();
        Ok(Self {
            path,
            file,
            size: 0,
            reader: File::from(reader),
            writer,
        })
    }

    /// What to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    /// The end that a process prints to.
    ///
    /// # Errors
    /// [`StepError`] when there are too many open files.
    pub fn writer(&self) -> Result<OwnedFd, StepError> {
        self.writer.try_clone().attempt("open", &self.path)
    }

    /// Moves what is there from the pipe to the file, and returns it.
    pub fn drain(&mut self) -> Vec<u8> {
        let mut buffer = vec![0; TURN_LIMIT];
        let count = self.reader.read(&mut buffer).unwrap_or(0);
        buffer.truncate(count);
        self.size += count as u64;
        if self.size > FILE_LIMIT {
            let _ = std::fs::rename(&self.path, self.path.with_extension("log.1"));
            self.file = File::create(&self.path).ok();
            self.size = count as u64;
        }
        if let Some(file) = &mut self.file {
            let _ = file.write_all(&buffer);
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_stays_within_two_files_of_a_mebibyte_and_keeps_the_newest() {
        let dir = std::env::temp_dir().join(format!("beemesh-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut log = ServiceLog::create_at(dir.join("x.log")).unwrap();
        let mut writer = File::from(log.writer().unwrap());
        for n in 0..100 {
            writer.write_all(&vec![b'a'; 32 << 10]).unwrap();
            writer.write_all(format!("last {n}\n").as_bytes()).unwrap();
            while !log.drain().is_empty() {}
        }
        let sizes: Vec<u64> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|e| e.unwrap().metadata().unwrap().len())
            .collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= FILE_LIMIT), "{sizes:?}");
        assert!(
            std::fs::read_to_string(dir.join("x.log"))
                .unwrap()
                .ends_with("last 99\n")
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
