//! `GET /v1/logs`: this node's own log, streamed from its rings.
//!
//! A thread of the blocking pool reads; it ends when the client is gone. Bounds: [`QUEUE`] records wait for a slow client,
//! [`TAIL_MOST`] are held for a tail, and [`READERS`] clients are served at once, so that followers never hold the whole
//! pool.

use super::answer::{Answer, Refused, json_lines};
use base64::Engine as _;
use beemesh_agent_api::view::{RecordSource, RecordView};
use beemesh_init_log::Stream;
use beemesh_init_logd::{BootChoice, Clock, Entry, SystemLog, SystemReader};
use futures::stream;
use hyper::StatusCode;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Most records of a tail.
const TAIL_MOST: usize = 10_000;
/// How often a follower looks.
const POLL: Duration = Duration::from_millis(200);
const QUEUE: usize = 256;
/// Clients served at once.
const READERS: usize = 32;

static SERVED: AtomicUsize = AtomicUsize::new(0);

/// One of [`READERS`].
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let taken = SERVED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
            (n < READERS).then_some(n + 1)
        });
        taken.is_ok().then_some(Self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        SERVED.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    unit: Option<String>,
    kernel: bool,
    /// Not older, in microseconds since the Unix epoch.
    since_us: u64,
    boot: BootChoice,
    tail: Option<usize>,
    follow: bool,
}

impl Wanted {
    fn parse(query: &BTreeMap<String, String>, now_us: u64) -> Result<Self, Refused> {
        let bad = |name: &str, value: &str, form: &str| {
            Refused::new(
                StatusCode::BAD_REQUEST,
                format!("`{name}={value}`: expected {form}"),
            )
        };
        let number = |name: &str| match query.get(name) {
            None => Ok(None),
            Some(text) => text
                .parse::<u64>()
                .map(Some)
                .map_err(|_| bad(name, text, "a number")),
        };
        let flag = |name: &str| query.get(name).is_some_and(|value| value != "false");
        let boot = match query.get("boot").map(String::as_str) {
            None => BootChoice::Before(0),
            Some("all") => BootChoice::All,
            Some(text) => text
                .parse::<i64>()
                .ok()
                .and_then(|number| usize::try_from(number.checked_neg()?).ok())
                .map(BootChoice::Before)
                .ok_or_else(|| bad("boot", text, "0, -1, -2, … or `all`"))?,
        };
        let age_us = number("since_ms")?.map(|age| age.saturating_mul(1000));
        Ok(Self {
            unit: query.get("unit").cloned(),
            kernel: flag("kernel"),
            since_us: age_us.map_or(0, |age| now_us.saturating_sub(age)),
            boot,
            tail: number("tail")?.map(|tail| usize::try_from(tail).unwrap_or(TAIL_MOST).min(TAIL_MOST)),
            follow: flag("follow"),
        })
    }

    fn takes(&self, entry: &Entry) -> bool {
        let record = &entry.record;
        self.unit.as_ref().is_none_or(|unit| *unit == record.unit)
            && (!self.kernel || record.stream == Stream::Kernel)
            && record.realtime_us >= self.since_us
    }
}

/// Answers with the log.
pub fn answer(query: &BTreeMap<String, String>, log: &SystemLog) -> Result<Answer, Refused> {
    let wanted = Wanted::parse(query, Clock::now().realtime_us)?;
    let place = Place::take().ok_or_else(|| {
        let error = "too many clients read this node's log: end one, or try again";
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error)
    })?;
    let reader = log.read(wanted.boot).ok_or_else(|| {
        let error = "the log has no such boot: it was overwritten, or its end was never written to a disk";
        Refused::new(StatusCode::NOT_FOUND, error)
    })?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::task::spawn_blocking(move || {
        pump(reader, &wanted, &sender);
        drop(place);
    });
    let records = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|record| (Ok(record), receiver))
    });
    Ok(json_lines(records))
}

/// Sends what is wanted, until the end or until the client is gone.
fn pump(mut reader: SystemReader, wanted: &Wanted, sender: &mpsc::Sender<RecordView>) {
    let mut tail = VecDeque::new();
    while let Some(entry) = reader.next_entry() {
        if sender.is_closed() {
            return;
        }
        if !wanted.takes(&entry) {
            continue;
        }
        match wanted.tail {
            None => {
                if sender.blocking_send(record_view(entry)).is_err() {
                    return;
                }
            }
            Some(most) => {
                tail.push_back(entry);
                if tail.len() > most {
                    tail.pop_front();
                }
            }
        }
    }
    for entry in tail {
        if sender.blocking_send(record_view(entry)).is_err() {
            return;
        }
    }
    while wanted.follow && !sender.is_closed() {
        match reader.next_entry() {
            Some(entry) if wanted.takes(&entry) => {
                if sender.blocking_send(record_view(entry)).is_err() {
                    return;
                }
            }
            Some(_) => {}
            None => std::thread::sleep(POLL),
        }
    }
}

/// A record as clients get it.
pub fn record_view(Entry { boot, record }: Entry) -> RecordView {
    let (message, message_base64) = match String::from_utf8(record.message) {
        Ok(message) => (message, None),
        Err(error) => (
            String::from_utf8_lossy(error.as_bytes()).into_owned(),
            Some(base64::engine::general_purpose::STANDARD.encode(error.as_bytes())),
        ),
    };
    RecordView {
        realtime_us: record.realtime_us,
        monotonic_us: record.monotonic_us,
        boot: format!("{:032x}", u128::from_be_bytes(boot)),
        source: match record.stream {
            Stream::Services => RecordSource::Services,
            Stream::Kernel => RecordSource::Kernel,
        },
        seq: record.seq,
        unit: record.unit,
        priority: record.priority,
        continues: record.flags.continues,
        cut: record.flags.cut,
        fields: record.fields.into_iter().collect(),
        message,
        message_base64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_init_log::{Flags, Limits, Record};
    use beemesh_init_logd::{KERNEL, RingWriter, SERVICES};
    use std::path::Path;

    fn query(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    fn write(root: &Path, stream: Stream, unit: &str, seq: u64, message: &[u8]) {
        let name = match stream {
            Stream::Services => SERVICES,
            Stream::Kernel => KERNEL,
        };
        let limits = Limits {
            segment_bytes: 1 << 20,
            total_bytes: 8 << 20,
            segments: 64,
        };
        let mut ring = RingWriter::open(&root.join(name), limits, [1; 16]).unwrap();
        let record = Record {
            stream,
            seq,
            realtime_us: seq * 1_000_000,
            monotonic_us: seq * 1_000_000,
            priority: 6,
            flags: Flags::default(),
            unit: unit.into(),
            fields: Vec::new(),
            message: message.to_vec(),
        };
        ring.append(&record).unwrap();
    }

    fn messages(root: &Path, text: &str, now_us: u64) -> Vec<String> {
        let wanted = Wanted::parse(&query(text), now_us).unwrap();
        let log = SystemLog::of_boot(&root.join("disk"), root, [1; 16]);
        let (sender, mut receiver) = mpsc::channel(100);
        pump(log.read(wanted.boot).unwrap(), &wanted, &sender);
        std::iter::from_fn(|| receiver.try_recv().ok())
            .map(|record| record.message)
            .collect()
    }

    #[test]
    fn unit_kernel_age_and_tail_choose() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), Stream::Services, "net", 1, b"a");
        write(root.path(), Stream::Kernel, "kernel", 2, b"k");
        write(root.path(), Stream::Services, "agent", 3, b"b");
        write(root.path(), Stream::Services, "agent", 4, b"c\xff");
        let of = |text| messages(root.path(), text, 5_000_000);
        assert_eq!(of(""), ["a", "k", "b", "c\u{fffd}"]);
        assert_eq!(of("unit=agent"), ["b", "c\u{fffd}"]);
        assert_eq!(of("kernel=true"), ["k"]);
        assert_eq!(of("since_ms=2500"), ["b", "c\u{fffd}"]);
        assert_eq!(of("tail=1&unit=agent"), ["c\u{fffd}"]);
        assert_eq!(of("tail=0"), [""; 0]);
    }

    #[test]
    fn odd_wishes_are_refused_by_name() {
        for text in [
            "boot=1",
            "boot=x",
            "boot=-9223372036854775808",
            "tail=-1",
            "since_ms=1h",
        ] {
            let refused = Wanted::parse(&query(text), 0).unwrap_err();
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{text}");
            assert!(refused.error.contains(text), "{}", refused.error);
        }
        let wanted = Wanted::parse(&query("boot=-2"), 0).unwrap();
        assert_eq!(wanted.boot, BootChoice::Before(2));
    }
}
