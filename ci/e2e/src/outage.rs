//! How long a workload was not to be had, seen by somebody who fetches its page again and again.
//!
//! The workload is up while any of its addresses serves the page. Times are the observer's monotonic clock.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause between two fetches from one address.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one fetch may take: a box that is off does not answer at all.
const ANSWER: Duration = Duration::from_secs(2);
/// What lies between two good fetches and is no outage: a pause, and an answer that an emulated machine was slow with.
const GRACE: Duration = Duration::from_millis(1500);

/// The outages of one workload, from its good moments alone.
#[derive(Debug, Default)]
struct Outages {
    last_good: Option<Duration>,
    total: Duration,
    longest: Duration,
}

impl Outages {
    /// The page was served at this moment since the start. Moments may come a little out of order.
    fn good(&mut self, at: Duration) {
        if let Some(gap) = self.last_good.map(|last| at.saturating_sub(last))
            && gap > GRACE
        {
            self.total += gap;
            self.longest = self.longest.max(gap);
        }
        self.last_good = Some(self.last_good.map_or(at, |last| last.max(at)));
    }

    /// Nobody looked until now: what lies before is no outage.
    fn look_away(&mut self) {
        self.last_good = None;
    }

    /// Looking again: an outage from this moment on counts.
    fn look(&mut self, at: Duration) {
        self.last_good = Some(at);
    }
}

/// Fetches a workload's page from all its addresses until it is dropped.
pub struct Watch {
    outages: Arc<Mutex<Outages>>,
    start: Instant,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Looks for `page` at these addresses. Counts nothing before the first [`Watch::resume`].
    pub fn start(addresses: &[SocketAddr], page: &'static str) -> Self {
        let (outages, ends) = (
            Arc::new(Mutex::new(Outages::default())),
            Arc::new(AtomicBool::new(false)),
        );
        let start = Instant::now();
        let watcher = |&address: &SocketAddr| {
            let (outages, ends) = (Arc::clone(&outages), Arc::clone(&ends));
            std::thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    if serves(address, page) {
                        let mut outages = lock(&outages);
                        if outages.last_good.is_some() {
                            outages.good(start.elapsed());
                        }
                    }
                    std::thread::sleep(PAUSE);
                }
            })
        };
        let threads = addresses.iter().map(watcher).collect();
        Self {
            outages,
            start,
            ends,
            threads,
        }
    }

    /// From now on the workload is expected to serve.
    pub fn resume(&self) {
        lock(&self.outages).look(self.start.elapsed());
    }

    /// From now on nothing is expected, such as while the site is switched off.
    pub fn pause(&self) {
        let mut outages = lock(&self.outages);
        if outages.last_good.is_some() {
            outages.good(self.start.elapsed());
        }
        outages.look_away();
    }

    /// Time without service so far, while it was expected; an outage that goes on counts up to now.
    pub fn total(&self) -> Duration {
        let outages = lock(&self.outages);
        let now = self.start.elapsed();
        let open = outages.last_good.map(|last| now.saturating_sub(last));
        outages.total + open.filter(|gap| *gap > GRACE).unwrap_or_default()
    }

    /// The longest outage that is over.
    pub fn longest(&self) -> Duration {
        lock(&self.outages).longest
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A panic leaves whole values behind.
fn lock(outages: &Mutex<Outages>) -> MutexGuard<'_, Outages> {
    outages.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One HTTP/1.0 GET; true if the answer is a 200 whose body is the page.
fn serves(address: SocketAddr, page: &str) -> bool {
    let fetch = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_write_timeout(Some(ANSWER))?;
        stream.write_all(b"GET / HTTP/1.0\r\nHost: site\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(16 << 10).read_to_string(&mut answer)?;
        Ok(answer)
    };
    fetch().is_ok_and(|answer| {
        let status = answer.split(' ').nth(1);
        status == Some("200") && answer.ends_with(page)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn gaps_between_good_moments_add_up_and_pauses_do_not_count() {
        let mut outages = Outages::default();
        outages.look(ms(0));
        for at in [200, 400, 5_400, 5_300, 5_600] {
            outages.good(ms(at));
        }
        assert_eq!((outages.total, outages.longest), (ms(5_000), ms(5_000)));
        outages.look_away();
        outages.look(ms(60_000));
        outages.good(ms(62_000));
        assert_eq!((outages.total, outages.longest), (ms(7_000), ms(5_000)));
    }

    proptest! {
        #[test]
        fn invariant_outages_are_never_more_than_the_time_that_was_watched(
            moments in proptest::collection::vec(0u64..100_000, 1..50)
        ) {
            let mut outages = Outages::default();
            outages.look(ms(0));
            for at in &moments {
                outages.good(ms(*at));
            }
            let end = ms(*moments.iter().max().unwrap());
            prop_assert!(outages.total <= end && outages.longest <= outages.total);
            prop_assert_eq!(outages.last_good, Some(end));
        }
    }

    #[test]
    fn watch_sees_a_server_that_goes_away_and_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serve = |listener: &TcpListener, until: Instant| {
            listener.set_nonblocking(true).unwrap();
            while Instant::now() < until {
                if let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nonblocking(false).unwrap();
                    let _ = stream.read(&mut [0; 512]);
                    let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\npage\n");
                }
                std::thread::sleep(ms(5));
            }
        };
        let watch = Watch::start(&[address], "page\n");
        assert_eq!(watch.total(), ms(0), "nothing is expected yet");
        watch.resume();
        serve(&listener, Instant::now() + ms(700));
        assert_eq!(watch.total(), ms(0));
        drop(listener);
        std::thread::sleep(ms(2_500));
        let open = watch.total();
        assert!(open >= ms(2_000), "{open:?}");
        let listener = TcpListener::bind(address).unwrap();
        serve(&listener, Instant::now() + ms(1_500));
        let (total, longest) = (watch.total(), watch.longest());
        assert!(total >= open && total == longest, "{total:?} {longest:?}");
        watch.pause();
        std::thread::sleep(ms(2_000));
        assert_eq!(watch.total(), total, "nobody looks");
    }
}
