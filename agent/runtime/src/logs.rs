//! Reads the CRI log files that shims write: the tail, all of it, and what is added, across rotation.
//!
//! It writes nothing. Invariants: memory is bounded by [`TAIL_MOST`] lines and [`LINE_MOST`] bytes a line; a follower that is
//! not read waits, it does not pile up lines; a line is given once, in order (two rotations within one poll of a follower
//! lose the file between them).

use crate::pod::LogQuery;
use beemesh_agent_api::view::LogLine;
use futures::stream::{self, BoxStream, StreamExt};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Most lines of a tail.
pub const TAIL_MOST: usize = 10_000;
/// Longest line put together from pieces, in bytes; a longer one is given in several.
pub const LINE_MOST: usize = 1 << 20;
/// How often a follower looks.
const POLL: Duration = Duration::from_millis(100);
const QUEUE: usize = 256;

/// Streams the log at `path`. While `alive` says so, a follower waits for more; then it ends.
pub fn read_log(
    path: PathBuf,
    query: LogQuery,
    alive: Arc<dyn Fn() -> bool + Send + Sync>,
) -> BoxStream<'static, LogLine> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    // A thread of the blocking pool: files are read with blocking calls. It ends when the receiver is dropped.
    tokio::task::spawn_blocking(move || {
        // An unreadable log is an empty one for the reader; the pod's state tells what is wrong with it.
        let _ = pump(&path, query, alive.as_ref(), &sender);
    });
    stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line| (line, receiver))
    })
    .boxed()
}

/// The receiver is gone.
struct Gone;

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Gone
    }
}

fn pump(
    path: &Path,
    query: LogQuery,
    alive: &(dyn Fn() -> bool + Send + Sync),
    sender: &mpsc::Sender<LogLine>,
) -> Result<(), Gone> {
    let send = |line: LogLine| sender.blocking_send(line).map_err(|_| Gone);
    let mut tail = query.tail.map(|wanted| Tail {
        lines: VecDeque::new(),
        most: wanted.min(TAIL_MOST),
    });
    let give = |line: LogLine, tail: &mut Option<Tail>| match tail {
        Some(tail) => {
            tail.push(line);
            Ok(())
        }
        None => send(line),
    };
    // Opened before the old file is read, so that a rotation in between shows as a changed file, not as lost lines.
    let mut current = Reader::open(path)?;
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    if let Some(mut reader) = Reader::open(Path::new(&old))? {
        let rotated_meanwhile = current
            .as_ref()
            .is_some_and(|current| current.inode == reader.inode);
        if !rotated_meanwhile {
            while let Some(line) = reader.next()? {
                give(line, &mut tail)?;
            }
        }
    }
    if let Some(reader) = &mut current {
        while let Some(line) = reader.next()? {
            give(line, &mut tail)?;
        }
    }
    if let Some(tail) = tail.take() {
        for line in tail.lines {
            send(line)?;
        }
    }
    if !query.follow {
        return Ok(());
    }
    loop {
        let going_on = alive();
        let mut idle = true;
        if let Some(reader) = &mut current {
            while let Some(line) = reader.next()? {
                idle = false;
                send(line)?;
            }
        }
        let now = std::fs::metadata(path).map(|meta| meta.ino()).ok();
        if now.is_some() && now != current.as_ref().map(|reader| reader.inode) {
            if let Some(reader) = &mut current {
                // What was written between the last read and the rotation.
                while let Some(line) = reader.next()? {
                    send(line)?;
                }
            }
            current = Reader::open(path)?;
            continue;
        }
        if idle {
            if !going_on || sender.is_closed() {
                break;
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(())
}

struct Tail {
    lines: VecDeque<LogLine>,
    most: usize,
}

impl Tail {
    fn push(&mut self, line: LogLine) {
        if self.most == 0 {
            return;
        }
        if self.lines.len() == self.most {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// One file, from its beginning; `next` gives whole lines and takes up where the file has grown.
struct Reader {
    input: BufReader<File>,
    inode: u64,
    raw: Vec<u8>,
    parts: [String; 2],
}

impl Reader {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                let parts = [String::new(), String::new()];
                Ok(Some(Self {
                    input: BufReader::new(file),
                    inode,
                    raw: Vec::new(),
                    parts,
                }))
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    fn next(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            // A line without its end is being written: what is there of it stays in `raw` until the rest comes.
            let room = (LINE_MOST - self.raw.len().min(LINE_MOST)) as u64;
            io::Read::take(&mut self.input, room).read_until(b'\n', &mut self.raw)?;
            let whole = self.raw.last() == Some(&b'\n');
            if !whole && self.raw.len() < LINE_MOST {
                return Ok(None);
            }
            let raw = std::mem::take(&mut self.raw);
            if let Some(line) = self.complete(&raw) {
                return Ok(Some(line));
            }
        }
    }

    /// Takes one line of the file; gives the container's line once its last piece is there.
    fn complete(&mut self, raw: &[u8]) -> Option<LogLine> {
        let text = String::from_utf8_lossy(raw);
        let mut fields = text.strip_suffix('\n').unwrap_or(&text).splitn(4, ' ');
        let (time, stream, mark) = (fields.next()?, fields.next()?, fields.next()?);
        let text = fields.next().unwrap_or("");
        let part = match stream {
            "stdout" => &mut self.parts[0],
            "stderr" => &mut self.parts[1],
            _ => return None,
        };
        part.push_str(text);
        if mark == "P" && part.len() < LINE_MOST {
            return None;
        }
        Some(LogLine {
            time: time.into(),
            stream: stream.into(),
            line: std::mem::take(part),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn write(path: &Path, text: &str) {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    fn cri(mark: &str, text: &str) -> String {
        format!("2026-01-02T03:04:05.000000000Z stdout {mark} {text}\n")
    }

    async fn all(path: &Path, query: LogQuery) -> Vec<String> {
        read_log(path.into(), query, Arc::new(|| false))
            .map(|line| line.line)
            .collect()
            .await
    }

    #[tokio::test]
    async fn old_and_new_file_are_one_log_and_pieces_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        write(&dir.path().join("c.log.1"), &cri("F", "one"));
        write(
            &path,
            &(cri("P", "tw") + &cri("F", "o") + "garbage\n" + &cri("F", "three and more")),
        );
        assert_eq!(
            all(&path, LogQuery::default()).await,
            ["one", "two", "three and more"]
        );
        let tail = LogQuery {
            tail: Some(2),
            follow: false,
        };
        assert_eq!(all(&path, tail).await, ["two", "three and more"]);
        assert!(
            all(
                &path,
                LogQuery {
                    tail: Some(0),
                    follow: false
                }
            )
            .await
            .is_empty()
        );
        assert!(
            all(&dir.path().join("none.log"), LogQuery::default())
                .await
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_follower_sees_each_line_once_across_a_rotation_and_ends_with_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        write(&path, &cri("F", "0"));
        let alive = Arc::new(AtomicBool::new(true));
        let seen = alive.clone();
        let query = LogQuery {
            tail: None,
            follow: true,
        };
        let stream = read_log(path.clone(), query, Arc::new(move || seen.load(Ordering::SeqCst)));
        let reader = tokio::spawn(stream.map(|line| line.line).collect::<Vec<_>>());
        let pause = || tokio::time::sleep(Duration::from_millis(250));
        pause().await;
        write(&path, &cri("F", "1")[..20]);
        pause().await;
        write(&path, &cri("F", "1")[20..]);
        write(&path, &cri("F", "2"));
        std::fs::rename(&path, dir.path().join("c.log.1")).unwrap();
        write(&path, &cri("F", "3"));
        pause().await;
        write(&path, &cri("F", "4"));
        alive.store(false, Ordering::SeqCst);
        let lines = tokio::time::timeout(Duration::from_secs(5), reader)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(lines, ["0", "1", "2", "3", "4"]);
    }

    #[tokio::test]
    async fn an_endless_line_is_given_in_bounded_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        for _ in 0..160 {
            write(&path, &cri("P", &"x".repeat(16 * 1024)));
        }
        write(&path, &cri("F", "end"));
        let lines = all(&path, LogQuery::default()).await;
        assert!(lines.len() >= 2 && lines.iter().all(|line| line.len() <= LINE_MOST + 16 * 1024));
        assert_eq!(lines.concat().len(), 160 * 16 * 1024 + 3);
    }
}
