//! The program against the kernel and an independent DHCP server (dnsmasq), in network namespaces of its own. Needs
//! root, `ip` and `dnsmasq`; without them it fails and says so.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use beemesh_init_api::{LinkStatus, NetworkStatus};

static NUMBER: AtomicU32 = AtomicU32::new(0);
const NODE_MAC: &str = "02:00:00:00:00:0a";

/// Two namespaces with a cable between them, and what runs in them; all gone when dropped.
struct Site {
    node: String,
    server: String,
    run: tempfile::TempDir,
    children: Vec<Child>,
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.expect("`ip` is missing: install the package iproute2");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

impl Site {
    fn new() -> Self {
        let root = fs::metadata("/proc/self")
            .map(|m| std::os::unix::fs::MetadataExt::uid(&m))
            .unwrap()
            == 0;
        assert!(root, "this test makes network namespaces: run it as root");
        let id = format!(
            "bm{}x{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        );
        let (node, server) = (format!("{id}n"), format!("{id}s"));
        ip(&format!("netns add {node}"));
        ip(&format!("netns add {server}"));
        let site = Self {
            node,
            server,
            run: tempfile::tempdir().unwrap(),
            children: Vec::new(),
        };
        site.cable("n0", NODE_MAC, "s0");
        site.in_server("addr add 10.77.0.1/24 dev s0");
        site
    }

    fn cable(&self, node_link: &str, mac: &str, server_link: &str) {
        let (node, server) = (&self.node, &self.server);
        ip(&format!(
            "link add {node_link} address {mac} netns {node} type veth peer name {server_link} netns {server}"
        ));
        self.in_server(&format!("link set {server_link} up"));
    }

    fn in_node(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.node))
    }

    fn in_server(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.server))
    }

    fn start(&mut self, namespace: &str, program: &str, arguments: &[String], log: &str) {
        let log = fs::File::create(self.run.path().join(log)).unwrap();
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", namespace, program])
            .args(arguments)
            .stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.children.push(command.spawn().unwrap());
    }

    fn start_net(&mut self) {
        let run = self.run.path().display().to_string();
        let arguments = ["--run".to_owned(), run, "--virtual".to_owned()];
        self.start(
            &self.node.clone(),
            env!("CARGO_BIN_EXE_beemesh-net"),
            &arguments,
            "net.log",
        );
    }

    fn start_dhcp(&mut self, link: &str, range: &str, extra: &[&str]) {
        let leases = self
            .run
            .path()
            .join(format!("leases-{link}"))
            .display()
            .to_string();
        let mut arguments: Vec<String> = [
            "--no-daemon",
            "--conf-file=/dev/null",
            "--port=0",
            "--bind-interfaces",
            "--user=root",
            "--dhcp-authoritative",
            "--log-dhcp",
            "--no-ping",
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.push(format!("--interface={link}"));
        arguments.push(format!("--dhcp-range={range},120"));
        arguments.push(format!("--dhcp-leasefile={leases}"));
        arguments.push(format!("--pid-file={leases}.pid"));
        arguments.extend(extra.iter().map(|s| (*s).to_owned()));
        let found = Command::new("dnsmasq").arg("--version").output().is_ok();
        assert!(found, "`dnsmasq` is missing: install the package dnsmasq-base");
        self.start(
            &self.server.clone(),
            "dnsmasq",
            &arguments,
            &format!("dhcp-{link}.log"),
        );
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.run.path().join(name)).unwrap_or_default()
    }

    fn configure(&self, json: &str) {
        let temporary = self.run.path().join("network.json.new");
        fs::write(&temporary, json).unwrap();
        fs::rename(temporary, self.run.path().join("network.json")).unwrap();
    }

    fn status(&self, link: &str) -> Option<LinkStatus> {
        let status: NetworkStatus = serde_json::from_str(&self.read("network-status.json")).ok()?;
        status.links.into_iter().find(|l| l.name == link)
    }

    fn wait(&self, what: &str, seconds: u64, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(seconds);
        while !done(self) {
            assert!(
                Instant::now() < end,
                "{what}: not after {seconds} s\nnet: {}\nstatus: {}\naddresses: {}\nserver: {}",
                self.read("net.log"),
                self.read("network-status.json"),
                self.in_node("addr"),
                self.read("dhcp-s0.log"),
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn has(&self, address: &str) -> bool {
        self.in_node("-o addr").contains(address)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in [&self.node, &self.server] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

#[test]
fn without_a_config_every_link_asks_by_dhcp_and_the_lease_is_applied_and_renewed() {
    let mut site = Site::new();
    let extra = ["--dhcp-option=3,10.77.0.1", "--dhcp-option=6,10.77.0.53"];
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
    assert!(site.read("resolv.conf").contains("nameserver 10.77.0.53\n"));
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
