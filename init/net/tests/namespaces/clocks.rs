//! The clocks, which are pretended, against a server that tells this machine's real time. The server is a few lines
//! here: programs that serve NTP want to set the clock of the machine they are installed on.

use crate::site::{NODE_MAC, Site};
use beemesh_init_api::time::{RtcState, TimeSource};
use nix::sched::{CloneFlags, setns};
use std::fs;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const YEAR_1970: i64 = 86_400;
const YEAR_2099: i64 = 4_085_000_000;

fn hand_over_floor(site: &Site, unix: u64) {
    fs::write(
        site.run.path().join("time-floor.json"),
        format!(r#"{{"unix":{unix}}}"#),
    )
    .unwrap();
}

fn real_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Answers NTP questions in the server's namespace until it is dropped.
struct Ntp {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ntp {
    fn start(site: &Site) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, namespace) = (stop.clone(), format!("/run/netns/{}", site.server));
        let thread = std::thread::spawn(move || {
            // Only this thread moves.
            let namespace = fs::File::open(namespace).unwrap();
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let socket = UdpSocket::bind("0.0.0.0:123").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut question = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((48, from)) = socket.recv_from(&mut question) {
                    socket.send_to(&answer(&question[..48]), from).unwrap();
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Ntp {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// RFC 5905, figure 8: stratum 2, the question's transmit timestamp as origin, real time for the other ones.
fn answer(question: &[u8]) -> Vec<u8> {
    assert_eq!(question[0], 0x23, "version 4, client");
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seconds = (since.as_secs() + 2_208_988_800) as u32;
    let fraction = ((u64::from(since.subsec_nanos()) << 32) / 1_000_000_000) as u32;
    let now = [seconds.to_be_bytes(), fraction.to_be_bytes()].concat();
    [
        &[0x24, 2, 6, 0xec],
        &[0; 12][..],
        &now,
        &question[40..48],
        &now,
        &now,
    ]
    .concat()
}

fn configure(site: &Site) {
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["10.77.0.11/24"]}}],"ntp":["10.77.0.1"]}}"#
    ));
}

#[test]
fn clock_of_1970_or_2099_starts_at_the_floor_and_is_set_by_a_server_that_appears_later() {
    for (year, state) in [(YEAR_1970, RtcState::Behind), (YEAR_2099, RtcState::Ahead)] {
        let mut site = Site::new();
        hand_over_floor(&site, real_now() - 3_600);
        configure(&site);
        site.start_net_at(year);
        site.wait("floor", 5, |s| {
            s.time_status()
                .is_some_and(|t| t.source == TimeSource::Floor && t.rtc == state)
        });
        // The network does not wait for the time, nor the time for the network.
        site.wait("address", 10, |s| s.has("10.77.0.11/24"));
        let _ntp = Ntp::start(&site);
        site.wait("server's time", 30, |s| {
            s.time_status().is_some_and(|t| t.source == TimeSource::Ntp)
        });
        let status = site.time_status().unwrap();
        assert_eq!(
            (status.server.as_deref(), status.rtc),
            (Some("10.77.0.1"), RtcState::Written)
        );
        let off = status.offset_us.unwrap() / 1_000_000;
        assert!(
            (3_500..3_660).contains(&off),
            "the clock stood at the floor, an hour behind: {status:?}"
        );
        assert!(
            site.read("net.log").contains("time: set by the server 10.77.0.1"),
            "{}",
            site.read("net.log")
        );
    }
}

#[test]
fn server_whose_time_is_certainly_past_is_not_believed() {
    let mut site = Site::new();
    // Something trusted vouches for tomorrow.
    hand_over_floor(&site, real_now() + 86_400);
    configure(&site);
    let _ntp = Ntp::start(&site);
    site.start_net_at(YEAR_1970);
    site.wait("refusal", 20, |s| {
        s.time_status()
            .is_some_and(|t| t.reason.contains("is not believed"))
    });
    assert_eq!(site.time_status().unwrap().source, TimeSource::Floor);
}

#[test]
fn floor_that_rises_later_sets_the_clock() {
    let mut site = Site::new();
    site.start_net_at(YEAR_1970);
    site.wait("status", 5, |s| s.time_status().is_some());
    let later = real_now() + 86_400;
    hand_over_floor(&site, later);
    site.wait("floor", 5, |s| {
        s.time_status()
            .is_some_and(|t| u64::try_from(t.floor) == Ok(later))
    });
    site.wait("reason", 5, |s| {
        s.time_status()
            .is_some_and(|t| t.reason.contains("a signature vouches for"))
    });
}

#[test]
fn members_set_the_clock_where_there_is_no_server() {
    let mut site = Site::new();
    site.start_net_at(YEAR_1970);
    site.wait("floor", 10, |s| {
        s.time_status().is_some_and(|t| t.source == TimeSource::Floor)
    });
    let up_ms = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from);
    let up_ms = u64::try_from(up_ms.unwrap().as_millis()).unwrap();
    let origin_us = (real_now() * 1_000 - up_ms) * 1_000;
    let document = format!(r#"{{"origin_us":{origin_us},"error_us":900,"members":3,"heard_ms":{up_ms}}}"#);
    fs::write(site.run.path().join("peer-time.json"), document).unwrap();
    site.wait("members' time", 10, |s| {
        s.time_status().is_some_and(|t| t.source == TimeSource::Peers)
    });
    let status = site.time_status().unwrap();
    let peers = status.peers.unwrap();
    assert_eq!((peers.members, peers.heard_ms), (3, up_ms));
    assert_eq!(status.rtc, RtcState::Written);
    assert!(
        site.read("net.log")
            .contains("time: set by the median of 3 members"),
        "{status:?}"
    );
}
