//! The clocks, which are pretended, against a server that tells this machine's real time (busybox ntpd, which is kept
//! from setting anything).

use crate::site::{NODE_MAC, Site};
use beemesh_init_api::time::{RtcState, TimeSource};
use std::fs;

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
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn start_ntp(site: &mut Site) {
    let arguments = [
        "--bounding-set",
        "-sys_time",
        "--inh-caps",
        "-sys_time",
        "busybox",
        "ntpd",
        "-n",
        "-l",
    ];
    let arguments: Vec<String> = arguments.map(str::to_owned).to_vec();
    site.start(&site.server.clone(), "setpriv", &arguments, "ntp.log");
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
        start_ntp(&mut site);
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
    start_ntp(&mut site);
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
