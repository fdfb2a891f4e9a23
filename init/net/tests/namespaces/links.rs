//! Links that are made, MTU and routes.

use crate::site::{NODE_MAC, Site};

const SECOND_MAC: &str = "02:00:00:00:00:0b";

#[test]
fn bridge_of_two_cards_has_the_address_and_goes_when_it_is_not_wanted_any_more() {
    let mut site = Site::new();
    if !site.can_make("bridge", "") {
        return;
    }
    site.cable("n1", SECOND_MAC, "s1");
    let bridge = format!(
        r#"{{"links":[{{"name":"br0","bridge":{{"members":["{NODE_MAC}","{SECOND_MAC}"]}},"addresses":["10.77.0.11/24"]}}],"dhcp_others":false}}"#
    );
    site.configure(&bridge);
    site.start_net();
    site.wait("address of the bridge", 10, |s| {
        s.link_has("br0", "10.77.0.11/24")
    });
    for member in ["n0", "n1"] {
        assert!(
            site.in_node(&format!("link show {member}"))
                .contains("master br0")
        );
    }
    site.wait("status", 5, |s| {
        let source = |name| s.status(name).map(|l| l.source).unwrap_or_default();
        source("n0") == "member of br0"
            && s.status("br0")
                .is_some_and(|l| l.kind == "bridge" && l.error.is_none())
    });
    // A run that begins anew finds it as it is.
    let index = site.in_node("link show br0");
    site.kill_last();
    site.start_net();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let same = |text: &str| text.split(':').next().map(str::to_owned);
    assert_eq!(
        same(&site.in_node("link show br0")),
        same(&index),
        "the bridge was made again"
    );
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["10.77.0.12/24"]}}],"dhcp_others":false}}"#
    ));
    site.wait("no bridge", 5, |s| !s.in_node("link").contains("br0"));
    site.wait("address of the card", 5, |s| s.link_has("n0", "10.77.0.12/24"));
}

#[test]
fn vlan_carries_its_address_tagged() {
    let mut site = Site::new();
    if !site.can_make("vlan id 9", "link s0") {
        return;
    }
    site.in_server("link add link s0 name s0.7 type vlan id 7");
    site.in_server("link set s0.7 up");
    site.in_server("addr add 10.7.0.1/24 dev s0.7");
    site.configure(&format!(
        r#"{{"links":[{{"mac":"{NODE_MAC}"}},{{"name":"lan7","vlan":{{"on":"{NODE_MAC}","id":7}},"addresses":["10.7.0.5/24"],"gateway":"10.7.0.1"}}]}}"#
    ));
    site.start_net();
    site.wait("address", 10, |s| s.link_has("lan7", "10.7.0.5/24"));
    site.wait("route", 5, |s| {
        s.in_node("route").contains("default via 10.7.0.1 dev lan7")
    });
    site.in_server("link del s0.7");
    site.configure("{}");
    site.wait("no vlan", 5, |s| !s.in_node("link").contains("lan7"));
}

#[test]
fn bond_goes_on_when_one_of_its_cables_is_pulled() {
    let mut site = Site::new();
    if !site.can_make("bond", "") {
        return;
    }
    site.cable("n1", SECOND_MAC, "s1");
    site.in_server("link add name sw type bridge");
    for port in ["s0", "s1"] {
        site.in_server(&format!("link set {port} master sw"));
    }
    site.in_server("addr flush dev s0");
    site.in_server("addr add 10.77.0.1/24 dev sw");
    site.in_server("link set sw up");
    site.configure(&format!(
        r#"{{"links":[{{"name":"bond0","bond":{{"members":["{NODE_MAC}","{SECOND_MAC}"]}},"addresses":["10.77.0.11/24"]}}]}}"#
    ));
    site.start_net();
    site.wait("address", 10, |s| s.link_has("bond0", "10.77.0.11/24"));
    let reaches = |s: &Site| {
        let ping = [
            "netns",
            "exec",
            &s.node,
            "busybox",
            "ping",
            "-c",
            "1",
            "-W",
            "1",
            "10.77.0.1",
        ];
        std::process::Command::new("ip")
            .args(ping)
            .output()
            .unwrap()
            .status
            .success()
    };
    site.wait("reaches the server", 10, reaches);
    site.in_server("link set s0 down");
    site.wait("reaches it over the other card", 10, reaches);
    assert!(site.link_has("bond0", "10.77.0.11/24"));
}

#[test]
fn routes_and_mtu_follow_the_config_and_nobody_elses_route_is_touched() {
    let mut site = Site::new();
    site.in_node("link set n0 up");
    site.in_node("route add 192.0.2.0/24 dev n0");
    let config = |routes: &str, mtu: &str| {
        format!(
            r#"{{"links":[{{"mac":"{NODE_MAC}","addresses":["10.77.0.11/24","fd77::11/64"],"gateway":"10.77.0.1","gateway6":"fd77::1"{routes}{mtu}}}]}}"#
        )
    };
    let routes = r#","routes":[{"to":"10.88.0.0/16","via":"10.77.0.2","metric":7},{"to":"10.89.0.9/32"},{"to":"fd88::/32","via":"fd77::2"}]"#;
    site.configure(&config(routes, r#","mtu":1400"#));
    site.start_net();
    site.wait("routes", 10, |s| {
        let (v4, v6) = (s.in_node("route"), s.in_node("-6 route"));
        v4.contains("10.88.0.0/16 via 10.77.0.2 dev n0 proto 190 metric 7")
            && v4.contains("10.89.0.9 dev n0")
            && v4.contains("default via 10.77.0.1")
            && v6.contains("fd88::/32 via fd77::2")
            && v6.contains("default via fd77::1")
    });
    assert!(site.in_node("link show n0").contains("mtu 1400"));
    site.configure(&config("", ""));
    site.wait("routes gone, mtu back", 5, |s| {
        !s.in_node("route").contains("10.88.0.0/16")
            && !s.in_node("route").contains("10.89.0.9")
            && !s.in_node("-6 route").contains("fd88::")
            && s.in_node("link show n0").contains("mtu 1500")
    });
    assert!(site.in_node("route").contains("default via 10.77.0.1"));
    assert!(site.in_node("route").contains("192.0.2.0/24 dev n0"));
}
