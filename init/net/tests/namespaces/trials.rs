//! A config that is tried: in use at once, and taken back by itself, whatever dies meanwhile.

use crate::site::{NODE_MAC, Site};
use std::fs;
use std::time::Duration;

fn config(address: &str, mtu: u32) -> String {
    format!(r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["{address}/24"],"mtu":{mtu}}}]}}"#)
}

fn try_for(site: &Site, config: &str, seconds: u64) {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let now: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let until_ms = (now * 1000.0) as u64 + seconds * 1000;
    let temporary = site.run.path().join("trial.new");
    fs::write(
        &temporary,
        format!(r#"{{"id":"T1","config":{config},"until_ms":{until_ms}}}"#),
    )
    .unwrap();
    fs::rename(temporary, site.run.path().join("network-trial.json")).unwrap();
}

#[test]
fn trial_ends_by_itself_even_if_the_program_dies_and_nobody_looks() {
    let mut site = Site::new();
    site.configure(&config("10.77.0.11", 1500));
    site.start_net();
    site.wait("confirmed address", 10, |s| s.has("10.77.0.11/24"));
    try_for(&site, &config("10.77.0.12", 1300), 8);
    site.wait("tried address", 5, |s| {
        s.has("10.77.0.12/24") && !s.has("10.77.0.11")
    });
    site.wait("status", 5, |s| s.network_status().trial.as_deref() == Some("T1"));
    assert!(site.in_node("link show n0").contains("mtu 1300"));
    site.kill_last();
    site.start_net();
    std::thread::sleep(Duration::from_secs(1));
    assert!(site.has("10.77.0.12/24"), "the trial goes on after a restart");
    site.wait("confirmed address again", 15, |s| {
        s.has("10.77.0.11/24") && !s.has("10.77.0.12")
    });
    site.wait("mtu", 5, |s| s.in_node("link show n0").contains("mtu 1500"));
    site.wait("status", 5, |s| s.network_status().trial.is_none());
}

#[test]
fn confirmed_trial_stays_and_touches_no_address_when_its_document_goes() {
    let mut site = Site::new();
    site.configure(&config("10.77.0.11", 1500));
    site.start_net();
    site.wait("confirmed address", 10, |s| s.has("10.77.0.11/24"));
    try_for(&site, &config("10.77.0.12", 1500), 6);
    site.wait("tried address", 5, |s| s.has("10.77.0.12/24"));
    // As the agent does when it is confirmed.
    site.configure(&config("10.77.0.12", 1500));
    fs::remove_file(site.run.path().join("network-trial.json")).unwrap();
    site.wait("status", 5, |s| s.network_status().trial.is_none());
    std::thread::sleep(Duration::from_secs(6));
    assert!(site.has("10.77.0.12/24") && !site.has("10.77.0.11"));
}

#[test]
fn document_of_an_ended_trial_is_not_used_at_the_start() {
    let mut site = Site::new();
    site.configure(&config("10.77.0.11", 1500));
    try_for(&site, &config("10.77.0.12", 1500), 0);
    site.start_net();
    site.wait("confirmed address", 10, |s| s.has("10.77.0.11/24"));
    assert!(!site.has("10.77.0.12"));
}
