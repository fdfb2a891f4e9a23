//! The program against the kernel and an independent DHCP server (dnsmasq), in network namespaces of its own. Needs
//! root, `ip` and `dnsmasq`; without them it fails and says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod clocks;
mod conflicts;
mod links;
mod site;
mod trials;
mod v6;

use crate::site::{NODE_MAC, Site};
use std::path::Path;
use std::time::Duration;

#[test]
fn without_a_config_every_link_asks_by_dhcp_and_the_lease_is_applied_and_renewed() {
    let mut site = Site::new();
    let extra = [
        "--dhcp-option=3,10.77.0.1",
        "--dhcp-option=6,10.77.0.53",
        "--dhcp-option=42,10.77.0.123",
        "--dhcp-option=26,1400",
        "--dhcp-option=119,shop.example",
    ];
    site.start_dhcp("s0", "10.77.0.50,10.77.0.50", &extra);
    site.start_net();
    site.wait("lease", 15, |s| s.has("10.77.0.50/24"));
    site.wait("status", 5, |s| {
        s.status("n0")
            .is_some_and(|l| l.source == "dhcp" && l.error.is_none())
    });
    assert_eq!(site.status("n0").unwrap().mac, NODE_MAC);
    assert!(
        site.in_node("route").contains("default via 10.77.0.1 dev n0"),
        "{}",
        site.in_node("route")
    );
    let resolv = site.read("resolv.conf");
    assert!(
        resolv.contains("nameserver 10.77.0.53\n") && resolv.contains("search shop.example\n"),
        "{resolv}"
    );
    let status = site.network_status();
    assert_eq!(status.ntp, ["10.77.0.123"]);
    assert_eq!(
        (status.links[0].mtu, status.links[0].mtu_before),
        (1400, Some(1500))
    );
    assert!(site.in_node("link show lo").contains("UP"));
    // The shortest lease of dnsmasq is two minutes, so it is renewed after one.
    site.wait("renewal", 90, |s| {
        s.read("dhcp-s0.log").matches("DHCPACK").count() >= 2
    });
    assert!(site.has("10.77.0.50/24"));
}

#[test]
fn config_that_appears_replaces_dhcp_and_its_removal_from_the_list_takes_the_address_away() {
    let mut site = Site::new();
    site.start_dhcp("s0", "10.77.0.50,10.77.0.60", &[]);
    site.start_net();
    site.wait("lease", 15, |s| s.has("10.77.0.5") || s.has("10.77.0.6"));
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["10.77.0.11/24","fd77::11/64"],"gateway":"10.77.0.1","dns":["10.77.0.2"]}}]}}"#
    ));
    site.wait("static address", 5, |s| {
        s.has("10.77.0.11/24") && s.has("fd77::11/64")
    });
    site.wait("status", 5, |s| {
        s.status("n0")
            .is_some_and(|l| l.source == "static" && l.error.is_none())
    });
    let addresses = site.in_node("-4 -o addr show dev n0");
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    assert!(site.in_node("route").contains("default via 10.77.0.1 dev n0"));
    site.wait("dns", 5, |s| {
        s.read("resolv.conf").contains("nameserver 10.77.0.2\n")
    });
    site.configure(r#"{"links":[],"dhcp_others":false}"#);
    site.wait("no address", 5, |s| !s.has("10.77.0.11") && !s.has("fd77::11"));
    site.wait("status", 5, |s| {
        s.status("n0").is_some_and(|l| l.source == "link-local")
    });
}

#[test]
fn same_config_written_again_touches_no_address() {
    let mut site = Site::new();
    let config = format!(r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["10.77.0.11/24"]}}]}}"#);
    site.configure(&config);
    site.start_net();
    site.wait("static address", 5, |s| {
        s.status("n0")
            .is_some_and(|l| l.addresses.iter().any(|a| a == "10.77.0.11/24"))
    });
    // The kernel's own link-local address settles first.
    std::thread::sleep(Duration::from_secs(3));
    let arguments: Vec<String> = ["monitor", "address", "route"].map(str::to_owned).to_vec();
    site.start(&site.node.clone(), "ip", &arguments, "monitor.log");
    std::thread::sleep(Duration::from_millis(300));
    site.configure(&config);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(site.read("monitor.log"), "");
    site.in_node("addr add 10.99.0.1/24 dev n0");
    site.wait("the monitor works", 5, |s| {
        s.read("monitor.log").contains("10.99.0.1")
    });
}

#[test]
fn link_that_appears_later_and_a_server_that_appears_later_still_for_it() {
    let mut site = Site::new();
    site.start_net();
    site.wait("status", 5, |s| s.status("n0").is_some());
    site.cable("n1", "02:00:00:00:00:0b", "s1");
    site.in_server("addr add 10.78.0.1/24 dev s1");
    site.wait("link up", 5, |s| s.in_node("link show n1").contains("UP"));
    site.start_dhcp("s1", "10.78.0.50,10.78.0.60", &[]);
    site.wait("lease on the new link", 20, |s| s.has("10.78.0."));
    site.wait("the other link says what is wrong", 20, |s| {
        s.status("n0")
            .is_some_and(|l| l.error.as_deref() == Some("no DHCP server answers"))
    });
}

#[test]
fn unplugged_cable_is_said_and_a_new_lease_follows_when_it_is_back() {
    let mut site = Site::new();
    site.start_dhcp("s0", "10.77.0.50,10.77.0.50", &[]);
    site.start_net();
    site.wait("lease", 15, |s| s.has("10.77.0.50/24"));
    site.in_server("link set s0 down");
    site.wait("no cable", 5, |s| {
        s.status("n0")
            .is_some_and(|l| l.error.as_deref() == Some("no cable"))
    });
    assert!(
        site.has("10.77.0.50/24"),
        "a short interruption breaks no connection"
    );
    let before = site.read("dhcp-s0.log").matches("DHCPACK").count();
    site.in_server("link set s0 up");
    site.wait("asked again", 20, |s| {
        s.read("dhcp-s0.log").matches("DHCPACK").count() > before
    });
    site.wait("status", 5, |s| s.status("n0").is_some_and(|l| l.error.is_none()));
}

#[test]
fn config_that_makes_no_sense_changes_nothing_and_is_said() {
    let mut site = Site::new();
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["10.77.0.11/24"]}}]}}"#
    ));
    site.start_net();
    site.wait("static address", 5, |s| s.has("10.77.0.11/24"));
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["10.77.0.300/24"]}}]}}"#
    ));
    site.wait("message", 5, |s| {
        s.read("net.log")
            .contains("`10.77.0.300/24` is not an address with its prefix")
    });
    assert!(site.has("10.77.0.11/24"));
    assert!(Path::new(site.run.path()).join("network-status.json").exists());
}

#[test]
fn card_that_the_machine_does_not_have_is_named_in_the_status() {
    let mut site = Site::new();
    site.configure(r#"{"links":[{"mac":"02:00:00:00:00:99","dhcp":true}],"dhcp_others":false}"#);
    site.start_net();
    site.wait("status", 5, |s| {
        s.read("network-status.json").contains("no such card")
    });
}

#[test]
fn lease_that_runs_out_takes_the_address_away_and_a_server_that_comes_back_gives_a_new_one() {
    let mut site = Site::new();
    site.start_net();
    site.start_dhcp("s0", "10.77.0.50,10.77.0.50", &["--dhcp-option=3,10.77.0.1"]);
    site.wait("lease", 20, |s| s.has("10.77.0.50/24"));
    site.kill_last();
    // The shortest lease of dnsmasq is two minutes.
    std::thread::sleep(Duration::from_secs(100));
    assert!(site.has("10.77.0.50/24"), "the lease still holds");
    site.wait("the lease has run out", 40, |s| !s.has("10.77.0.50"));
    assert!(
        !site.in_node("route").contains("default"),
        "{}",
        site.in_node("route")
    );
    site.wait("it is said", 20, |s| {
        s.status("n0").is_some_and(|l| l.error.is_some())
    });
    site.start_dhcp("s0", "10.77.0.60,10.77.0.60", &[]);
    site.wait("new lease", 30, |s| s.has("10.77.0.60/24"));
    site.wait("all is well", 5, |s| {
        s.status("n0").is_some_and(|l| l.error.is_none())
    });
}
