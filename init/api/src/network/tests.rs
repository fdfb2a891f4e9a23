//! What a config must keep, rule by rule.

use super::*;

fn check(json: &str) -> Result<(), InvalidConfig> {
    serde_json::from_str::<NetworkConfig>(json).unwrap().check()
}

const CARD: &str = r#""mac":"02:00:00:00:00:0a""#;

#[test]
fn documents_of_the_first_release_parse_and_hold() {
    let old = format!(
        r#"{{"links":[{{{CARD},"dhcp":false,"addresses":["10.0.0.5/24"],"gateway":"10.0.0.1","dns":["10.0.0.2"]}}],"dhcp_others":true}}"#
    );
    assert_eq!(check(&old), Ok(()));
    // A pack of that release may carry a gateway beside DHCP.
    assert_eq!(
        check(&format!(
            r#"{{"links":[{{{CARD},"dhcp":true,"gateway":"10.0.0.1"}}]}}"#
        )),
        Ok(())
    );
    assert_eq!(check("{}"), Ok(()));
}

#[test]
fn document_without_later_fields_is_written_as_the_first_release_wrote_it() {
    let config: NetworkConfig =
        serde_json::from_str(&format!(r#"{{"links":[{{{CARD},"dhcp":true}}]}}"#)).unwrap();
    assert_eq!(
        serde_json::to_string(&config).unwrap(),
        r#"{"links":[{"mac":"02:00:00:00:00:0a","dhcp":true,"addresses":[],"gateway":null,"dns":[]}],"dhcp_others":true}"#
    );
}

#[test]
fn everything_at_once_is_accepted() {
    let config = r#"{"links":[
            {"mac":"02:00:00:00:00:0a"},
            {"mac":"02:00:00:00:00:0b","mtu":9000},
            {"name":"bond0","bond":{"members":["02:00:00:00:00:0A","02:00:00:00:00:0b"],"mode":"802.3ad"},"mtu":9000},
            {"name":"bond0.7","vlan":{"on":"bond0","id":7},"addresses":["10.7.0.5/24","fd07::5/64"],
             "gateway":"10.7.0.1","gateway6":"fe80::1","search":["shop.example"],
             "routes":[{"to":"10.8.0.0/16","via":"10.7.0.2","metric":50},{"to":"192.0.2.0/24"}]},
            {"name":"br0","bridge":{"members":["02:00:00:00:00:0c"],"stp":true},"dhcp":true,"dhcp6":true,"slaac":true}
        ],"dhcp_others":false,"ntp":["10.7.0.9","fd07::9"]}"#;
    assert_eq!(check(config), Ok(()));
    let parsed: NetworkConfig = serde_json::from_str(config).unwrap();
    let again: NetworkConfig = serde_json::from_str(&serde_json::to_string(&parsed).unwrap()).unwrap();
    assert_eq!(again, parsed);
}

#[test]
fn errors_name_field_value_and_what_to_do() {
    let cases = [
        (
            r#"{"mac":"02:00","dhcp":true}"#,
            "`links[0]`: `02:00` is not a mac address",
        ),
        (r#"{CARD}"#, "needs either `dhcp` or `addresses`"),
        (
            r#"{CARD,"dhcp":true,"addresses":["10.0.0.5/24"]}"#,
            "needs either",
        ),
        (
            r#"{CARD,"addresses":["10.0.0.5"]}"#,
            "`links[0].addresses[0]`: `10.0.0.5` is not an address with its prefix",
        ),
        (r#"{CARD,"addresses":["10.0.0.5/33"]}"#, "`10.0.0.5/33`"),
        (
            r#"{CARD,"addresses":["255.255.255.255/0"]}"#,
            "`255.255.255.255/0`",
        ),
        (
            r#"{CARD,"addresses":["10.0.0.5/24"],"gateway":"10.0.1.1"}"#,
            "`links[0].gateway`: `10.0.1.1` lies in none",
        ),
        (
            r#"{CARD,"addresses":["10.0.0.5/24"],"gateway":"fd00::1"}"#,
            "is not an ipv4 address",
        ),
        (
            r#"{CARD,"addresses":["fd00::5/64"],"gateway6":"fd01::1"}"#,
            "`links[0].gateway6`: `fd01::1` lies in none",
        ),
        (
            r#"{CARD,"dhcp":true,"dns":["one"]}"#,
            "`links[0].dns[0]`: `one` is not an ip address",
        ),
        (
            r#"{CARD,"dhcp":true,"search":["a b"]}"#,
            "`a b` is not a domain name",
        ),
        (
            r#"{CARD,"dhcp":true,"mtu":100}"#,
            "`links[0].mtu`: 100 is out of range: 576 to 9216",
        ),
        (
            r#"{CARD,"dhcp":true,"routes":[{"to":"10.0.0.0"}]}"#,
            "`links[0].routes[0].to`",
        ),
        (
            r#"{CARD,"dhcp":true,"routes":[{"to":"10.0.0.0/8","via":"fd00::1"}]}"#,
            "`links[0].routes[0].via`",
        ),
        (r#"{CARD,"name":"lan","dhcp":true}"#, "`lan` names a card"),
        (r#"{CARD,"dhcp":true,"vlan":{"on":"eth0","id":7}}"#, "keep one of"),
        (r#"{"name":"v7","dhcp":true}"#, "it names no link"),
        (
            r#"{"vlan":{"on":"02:00:00:00:00:0a","id":7},"dhcp":true}"#,
            "it names no link",
        ),
        (
            r#"{"name":"V7","vlan":{"on":"02:00:00:00:00:0a","id":7},"dhcp":true}"#,
            "`V7` is not a name",
        ),
        (r#"{"name":"lo","bridge":{},"dhcp":true}"#, "`lo` is not a name"),
        (
            r#"{"name":"v7","vlan":{"on":"02:00:00:00:00:0a","id":4095},"dhcp":true}"#,
            "`links[0].vlan.id`: 4095",
        ),
        (
            r#"{"name":"v7","vlan":{"on":"v7","id":7},"dhcp":true}"#,
            "list `v7` first",
        ),
        (
            r#"{"name":"b0","bond":{"members":[]},"dhcp":true}"#,
            "it has no members",
        ),
        (
            r#"{CARD,"dhcp":true},{"name":"b0","bond":{"members":["02:00:00:00:00:0a"]},"dhcp":true}"#,
            "`links[0]`: `02:00:00:00:00:0a` is part of `b0`",
        ),
        (
            r#"{"name":"b0","bridge":{"members":["02:00:00:00:00:0a"]},"dhcp":true},{"name":"b1","bridge":{"members":["02:00:00:00:00:0a"]},"dhcp":true}"#,
            "`links[1].bridge.members`: `02:00:00:00:00:0a` is named twice",
        ),
        (
            r#"{CARD,"dhcp":true},{"mac":"02:00:00:00:00:0A","dhcp":true}"#,
            "named twice",
        ),
    ];
    for (links, part) in cases {
        let json = format!(r#"{{"links":[{}]}}"#, links.replace("CARD", CARD));
        let error = check(&json).expect_err(&json).to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
    let error = check(r#"{"ntp":["pool.example"]}"#).unwrap_err().to_string();
    assert!(
        error.contains("`ntp[0]`: `pool.example` is not an ip address"),
        "{error}"
    );
}

#[test]
fn more_than_the_limits_is_refused() {
    let entry = |n: usize| LinkConfig {
        mac: format!("02:00:00:00:00:{n:02x}"),
        dhcp: true,
        ..LinkConfig::default()
    };
    let config = NetworkConfig {
        links: (0..=LINKS_LIMIT).map(entry).collect(),
        ..NetworkConfig::default()
    };
    assert_eq!(config.check(), Err(wrong("links", Problem::TooMany(65, 64))));
    let link = LinkConfig {
        addresses: (0..17).map(|n| format!("10.0.{n}.5/24")).collect(),
        dhcp: false,
        ..entry(1)
    };
    let config = NetworkConfig {
        links: vec![link],
        ..NetworkConfig::default()
    };
    assert_eq!(
        config.check(),
        Err(wrong("links[0].addresses", Problem::TooMany(17, 16)))
    );
}

#[test]
fn network_holds_its_own_addresses_and_no_others() {
    let net = |text: &str| Cidr::parse(text).unwrap();
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    assert!(net("10.1.2.3/0").contains(&ip("200.0.0.1")));
    assert!(net("10.1.2.3/24").contains(&ip("10.1.2.255")) && !net("10.1.2.3/24").contains(&ip("10.1.3.0")));
    assert!(net("fd00::1/128").contains(&ip("fd00::1")) && !net("fd00::1/128").contains(&ip("fd00::2")));
    assert!(net("fd00::/0").contains(&ip("::1")) && !net("fd00::/0").contains(&ip("10.0.0.1")));
}
