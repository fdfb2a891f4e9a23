//! Addresses that another host has already.

use crate::site::{NODE_MAC, Site};
use std::process::Command;
use std::time::Duration;

fn fixed(site: &Site, address: &str) {
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["{address}/24"],"gateway":"10.77.0.1"}}]}}"#
    ));
}

#[test]
fn fixed_address_of_another_host_is_not_used_and_its_owner_is_named() {
    let mut site = Site::new();
    site.in_server("addr add 10.77.0.11/24 dev s0");
    fixed(&site, "10.77.0.11");
    site.start_net();
    site.wait("conflict", 10, |s| {
        let error = s.status("n0").and_then(|l| l.error).unwrap_or_default();
        error.contains("has the address `10.77.0.11` already")
    });
    assert!(!site.has("10.77.0.11"));
    let mac = site.in_server("link show s0");
    let mac = mac
        .split("link/ether ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap();
    assert!(site.status("n0").unwrap().error.unwrap().starts_with(mac));
    assert!(
        !site.in_node("route").contains("default"),
        "{}",
        site.in_node("route")
    );
    // The other host goes: the address is taken at the next try.
    site.in_server("addr del 10.77.0.11/24 dev s0");
    site.wait("address", 20, |s| s.has("10.77.0.11/24"));
    site.wait("route", 5, |s| {
        s.in_node("route").contains("default via 10.77.0.1")
    });
    site.wait("no error", 5, |s| {
        s.status("n0").is_some_and(|l| l.error.is_none())
    });
}

#[test]
fn address_in_use_is_defended_once_and_then_given_up() {
    let mut site = Site::new();
    fixed(&site, "10.77.0.11");
    site.start_net();
    site.wait("address", 10, |s| s.has("10.77.0.11/24"));
    std::thread::sleep(Duration::from_secs(3));
    // Another host takes the address over and announces it.
    site.in_server("addr add 10.77.0.11/32 dev s0");
    let arping = [
        "busybox",
        "arping",
        "-A",
        "-c",
        "3",
        "-I",
        "s0",
        "-s",
        "10.77.0.11",
        "10.77.0.11",
    ];
    let said = Command::new("ip")
        .args(["netns", "exec", &site.server])
        .args(arping)
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&said.stdout).contains("ARPING"),
        "{said:?}: install the package busybox-static"
    );
    site.wait("given up", 15, |s| !s.has("10.77.0.11/24"));
    // It goes: nobody claims the address any more, so it comes back.
    site.in_server("addr del 10.77.0.11/32 dev s0");
    site.wait("address again", 20, |s| s.has("10.77.0.11/24"));
}

#[test]
fn leased_address_of_another_host_is_declined_and_another_one_is_taken() {
    let mut site = Site::new();
    // A host that the server does not know of.
    if !site.add_host("10.77.0.50/24") {
        return;
    }
    site.start_dhcp("sw", "10.77.0.50,10.77.0.51", &["--dhcp-sequential-ip"]);
    site.start_net();
    site.wait("another address", 60, |s| s.has("10.77.0.51/24"));
    assert!(!site.has("10.77.0.50"));
    let log = site.read("dhcp-sw.log");
    assert!(log.contains("DHCPDECLINE(sw) 10.77.0.50"), "{log}");
    assert!(
        site.read("net.log").contains("has leased `10.77.0.50`, which"),
        "{}",
        site.read("net.log")
    );
}

#[test]
fn cable_that_is_put_back_keeps_the_fixed_address_and_announces_it() {
    let mut site = Site::new();
    fixed(&site, "10.77.0.11");
    site.start_net();
    site.wait("address", 10, |s| s.has("10.77.0.11/24"));
    site.in_server("link set s0 down");
    site.wait("no cable", 5, |s| {
        s.status("n0")
            .is_some_and(|l| l.error.as_deref() == Some("no cable") && !l.carrier)
    });
    assert!(site.has("10.77.0.11/24"));
    site.in_server("link set s0 up");
    site.wait("well again", 5, |s| {
        s.status("n0").is_some_and(|l| l.error.is_none() && l.carrier)
    });
    assert!(site.has("10.77.0.11/24"));
    site.wait("route", 5, |s| {
        s.in_node("route").contains("default via 10.77.0.1")
    });
}
