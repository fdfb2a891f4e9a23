//! Router advertisements and DHCPv6, against dnsmasq.

use crate::site::{NODE_MAC, Site};

fn advertise(site: &mut Site, range: &str) {
    site.in_server("addr add fd77::1/64 dev s0 nodad");
    site.start_dhcp(
        "s0",
        range,
        &[
            "--enable-ra",
            "--dhcp-option=option6:dns-server,[fd77::53]",
            "--dhcp-option=option6:ntp-server,[fd77::123]",
        ],
    );
}

#[test]
fn advertised_prefix_gives_an_address_and_a_default_route() {
    let mut site = Site::new();
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","slaac":true}}],"dhcp_others":false}}"#
    ));
    advertise(&mut site, "fd77::,ra-only,64");
    site.start_net();
    site.wait("address", 20, |s| {
        s.in_node("-6 -o addr show dev n0").contains("fd77::")
    });
    site.wait("route", 10, |s| {
        s.in_node("-6 route").contains("default via fe80:")
    });
    site.wait("status", 5, |s| {
        s.status("n0")
            .is_some_and(|l| l.source == "slaac" && l.error.is_none())
    });
    site.wait("dns server", 10, |s| s.network_status().dns == ["fd77::53"]);
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","slaac":false,"addresses":["10.77.0.11/24"]}}],"dhcp_others":false}}"#
    ));
    site.wait("no address", 10, |s| {
        !s.in_node("-6 -o addr show dev n0").contains("fd77::")
    });
}

#[test]
fn dhcpv6_gives_an_address_and_servers() {
    let mut site = Site::new();
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","dhcp6":true,"slaac":false}}],"dhcp_others":false}}"#
    ));
    advertise(&mut site, "fd77::50,fd77::50,64");
    site.start_net();
    site.wait("address", 30, |s| {
        s.in_node("-6 -o addr show dev n0").contains("fd77::50/128")
    });
    site.wait("status", 5, |s| {
        s.status("n0")
            .is_some_and(|l| l.source == "dhcp6" && l.error.is_none())
    });
    let status = site.network_status();
    assert_eq!(
        (status.dns, status.ntp),
        (vec!["fd77::53".to_owned()], vec!["fd77::123".to_owned()])
    );
    assert!(site.read("resolv.conf").contains("nameserver fd77::53\n"));
}

#[test]
fn fixed_address_of_another_host_is_said() {
    let mut site = Site::new();
    site.in_server("addr add fd77::11/64 dev s0 nodad");
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["fd77::11/64"]}}]}}"#
    ));
    site.start_net();
    site.wait("conflict", 15, |s| {
        let error = s.status("n0").and_then(|l| l.error).unwrap_or_default();
        error.contains("another host has the address `fd77::11` already")
    });
}
