//! Two network namespaces with a cable between them: the node, where the program runs, and a server.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use beemesh_init_api::{LinkStatus, NetworkStatus, TimeStatus};

static NUMBER: AtomicU32 = AtomicU32::new(0);
pub const NODE_MAC: &str = "02:00:00:00:00:0a";

/// Set where the kernel must make links of every kind.
const ALL_LINKS: &str = "BEEMESH_ALL_LINKS";

/// Two namespaces with a cable between them, and what runs in them; all gone when dropped.
pub struct Site {
    pub node: String,
    pub server: String,
    pub run: tempfile::TempDir,
    children: Vec<Child>,
    others: Vec<String>,
}

pub fn ip(arguments: &str) -> String {
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
    pub fn new() -> Self {
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
            others: Vec::new(),
        };
        site.cable("n0", NODE_MAC, "s0");
        site.in_server("addr add 10.77.0.1/24 dev s0");
        site
    }

    pub fn cable(&self, node_link: &str, mac: &str, server_link: &str) {
        let (node, server) = (&self.node, &self.server);
        ip(&format!(
            "link add {node_link} address {mac} netns {node} type veth peer name {server_link} netns {server}"
        ));
        self.in_server(&format!("link set {server_link} up"));
    }

    pub fn in_node(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.node))
    }

    pub fn in_server(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.server))
    }

    pub fn start(&mut self, namespace: &str, program: &str, arguments: &[String], log: &str) {
        let log = fs::File::create(self.run.path().join(log)).unwrap();
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", namespace, program])
            .args(arguments)
            .stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.children.push(command.spawn().unwrap());
    }

    pub fn start_net(&mut self) {
        // 2026-11-20; the machine's own clocks are never touched.
        self.start_net_at(1_795_132_800);
    }

    pub fn start_net_at(&mut self, unix: i64) {
        let run = self.run.path().display().to_string();
        let arguments = ["--run", &run, "--virtual", "--clock", &unix.to_string()].map(str::to_owned);
        self.start(
            &self.node.clone(),
            env!("CARGO_BIN_EXE_beemesh-net"),
            &arguments,
            "net.log",
        );
    }

    /// Another host on the cable: the server's end becomes a switch, `sw`, with the server's address. `false`: see
    /// [`Site::can_make`].
    pub fn add_host(&mut self, address: &str) -> bool {
        if !self.can_make("bridge", "") {
            return false;
        }
        let (server, other) = (self.server.clone(), format!("{}o", self.server));
        ip(&format!("netns add {other}"));
        self.others.push(other.clone());
        ip(&format!(
            "link add t0 netns {other} type veth peer name s9 netns {server}"
        ));
        ip(&format!("-n {other} addr add {address} dev t0"));
        ip(&format!("-n {other} link set t0 up"));
        self.in_server("link add name sw type bridge");
        self.in_server("addr flush dev s0");
        for port in ["s0", "s9"] {
            self.in_server(&format!("link set {port} master sw"));
            self.in_server(&format!("link set {port} up"));
        }
        self.in_server("addr add 10.77.0.1/24 dev sw");
        self.in_server("link set sw up");
        true
    }

    /// Whether a link of the node, which need not be there, has an address.
    pub fn link_has(&self, link: &str, address: &str) -> bool {
        let addresses = self.in_node("-o addr");
        addresses
            .lines()
            .any(|line| line.split_whitespace().nth(1) == Some(link) && line.contains(address))
    }

    /// Ends what was started last, without a chance to clean up.
    pub fn kill_last(&mut self) {
        let mut child = self.children.pop().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Whether this kernel makes links of a kind. Where it does not, that is said: the story `story_links` runs the same
    /// tests on the product's kernel, where [`ALL_LINKS`] makes it a failure.
    pub fn can_make(&self, kind: &str, more: &str) -> bool {
        let line = format!("-n {} link add probe0 {more} type {kind}", self.server);
        let made = Command::new("ip").args(line.split_whitespace()).output().unwrap();
        if made.status.success() {
            self.in_server("link del probe0");
            return true;
        }
        let said = format!("this kernel makes no links of the kind `{kind}`");
        let needed = |name| std::env::var_os(name).is_some();
        // Bridges carry tests that no story runs again.
        let must = needed(ALL_LINKS) || kind == "bridge" && needed("CI");
        assert!(!must, "{said}");
        eprintln!("NOT RUN HERE: {said}; `story_links` runs it on the product's kernel");
        false
    }

    pub fn start_dhcp(&mut self, link: &str, range: &str, extra: &[&str]) {
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

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.run.path().join(name)).unwrap_or_default()
    }

    pub fn configure(&self, json: &str) {
        let temporary = self.run.path().join("network.json.new");
        fs::write(&temporary, json).unwrap();
        fs::rename(temporary, self.run.path().join("network.json")).unwrap();
    }

    pub fn network_status(&self) -> NetworkStatus {
        serde_json::from_str(&self.read("network-status.json")).unwrap_or_default()
    }

    pub fn time_status(&self) -> Option<TimeStatus> {
        serde_json::from_str(&self.read("time-status.json")).ok()
    }

    pub fn status(&self, link: &str) -> Option<LinkStatus> {
        let status: NetworkStatus = serde_json::from_str(&self.read("network-status.json")).ok()?;
        status.links.into_iter().find(|l| l.name == link)
    }

    pub fn wait(&self, what: &str, seconds: u64, done: impl Fn(&Self) -> bool) {
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

    pub fn has(&self, address: &str) -> bool {
        self.in_node("-o addr").contains(address)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in self.others.iter().chain([&self.node, &self.server]) {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}
