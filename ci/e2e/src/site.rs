//! A site: a fabric with its keys, a join pack, machines on a virtual switch, and a host that looks at them.

use crate::binaries::{Binaries, Ctl, expect_success};
use anyhow::{Context, Result};
use beemesh_ci_testkit::{
    Accel, Disk, DiskBus, Ipv4Cidr, Mac, Machine, MachineConfig, Nic, SiteHost, Stick, Switch,
};
use serde_json::Value;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// TCP port of a node's REST interface.
const REST_PORT: u16 = 7443;
/// Port of the fabric.
pub const FABRIC_PORT: u16 = 7400;
/// Size of a node's state disk, in MiB; the file is sparse.
const DISK_MIB: u64 = 2048;

/// What a site is made of.
#[derive(Debug, Clone)]
pub struct SiteOptions {
    /// Number of machines.
    pub nodes: u8,
    /// Images in the pack: name and archive.
    pub images: Vec<(String, PathBuf)>,
    /// More arguments for `joinpack create`.
    pub create: Vec<String>,
}

/// A machine of the site.
pub struct Node {
    /// Name in the pack.
    pub name: String,
    /// Address in the site's network.
    pub address: Ipv4Addr,
    /// The machine.
    pub machine: Machine,
    /// Where 127.0.0.1 leads to its REST interface.
    pub rest: SocketAddr,
}

/// The site. Its folder is kept when `keep_folder` was asked for, and else goes with it.
pub struct Site {
    /// The tools.
    pub binaries: Binaries,
    /// Everything the site writes.
    pub folder: PathBuf,
    /// The network.
    pub switch: Switch,
    /// The operator's machine in it.
    pub host: SiteHost,
    /// Its machines, in the order of their start.
    pub nodes: Vec<Node>,
    options: SiteOptions,
    accel: Accel,
}

/// The site's network.
pub fn prefix() -> Ipv4Cidr {
    Ipv4Cidr::new(Ipv4Addr::new(10, 77, 0, 0), 24)
}

/// The address of node `number`, counted from 1.
pub fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

/// The MAC address of node `number`.
pub fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0x00, 0x77, 0x00, number])
}

impl Site {
    /// Makes keys, pack and network; starts no machine.
    pub fn create(folder: &Path, options: SiteOptions) -> Result<Self> {
        let binaries = Binaries::find()?;
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).with_context(|| format!("failed to make `{}`", folder.display()))?;
        let switch = Switch::start()?;
        switch.record(&folder.join("net.pcap"))?;
        let host = SiteHost::plug(
            &switch,
            "operator",
            Ipv4Cidr::new(Ipv4Addr::new(10, 77, 0, 1), 24),
        )?;
        let (kernel, cache) = (
            binaries.artefact("vmlinuz")?,
            binaries.target.join("e2e/accel.json"),
        );
        fs::create_dir_all(binaries.target.join("e2e"))?;
        let accel = Accel::choose(&kernel, &cache)?.accel;
        let site = Self {
            binaries,
            folder: folder.to_owned(),
            switch,
            host,
            nodes: Vec::new(),
            options,
            accel,
        };
        let init = site
            .binaries
            .run_joinpack(["fabric", "init", &site.text("fabric"), "--name", "e2e"])?;
        expect_success("joinpack fabric init", &init)?;
        site.make_pack("pack", &[])?;
        Ok(site)
    }

    fn text(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Makes a join pack for the site's machines in `folder/name`.
    pub fn make_pack(&self, name: &str, more: &[&str]) -> Result<PathBuf> {
        let mut line: Vec<String> = vec!["create".into(), "--fabric".into(), self.text("fabric")];
        line.extend(["--out".into(), self.text(name), "--cell".into(), "site".into()]);
        line.extend(["--found".into(), "--blank-disk".into()]);
        for number in 1..=self.options.nodes {
            let entry = format!(
                "node-{number},mac=52:54:00:77:00:{number:02x},address={}/24",
                address(number)
            );
            line.extend([
                "--node".into(),
                entry,
                "--peer".into(),
                format!("{}:{FABRIC_PORT}", address(number)),
            ]);
        }
        for (name, archive) in &self.options.images {
            line.extend(["--image".into(), format!("{name}={}", archive.display())]);
        }
        if !more.contains(&"--expires") {
            line.extend(["--expires".into(), "30d".into()]);
        }
        line.extend(self.options.create.iter().cloned());
        line.extend(more.iter().map(|&argument| argument.to_owned()));
        expect_success("joinpack create", &self.binaries.run_joinpack(&line)?)?;
        Ok(self.folder.join(name))
    }

    /// The operator's context for `bmctl`.
    pub fn context(&self) -> PathBuf {
        self.folder.join("fabric/operator.json")
    }

    /// A stick with the OS; with `pack`, its join pack is written to it.
    pub fn stick(&self, name: &str, pack: Option<&Path>) -> Result<PathBuf> {
        let image = self.binaries.artefact(".img")?;
        let stick = self.folder.join(format!("{name}.img"));
        let copied = Command::new("cp")
            .arg("--sparse=always")
            .arg(&image)
            .arg(&stick)
            .output()?;
        expect_success("copying the image", &copied)?;
        if let Some(pack) = pack {
            let pack = pack.display().to_string();
            let written =
                self.binaries
                    .run_joinpack(["write", &pack, "--to", &stick.display().to_string()])?;
            expect_success("joinpack write", &written)?;
        }
        Ok(stick)
    }

    /// The configuration of node `number`: firmware, TPM, a blank disk, one network card, and the stick that it boots.
    pub fn machine(&self, number: u8, stick: &Path) -> Result<MachineConfig> {
        let name = format!("node-{number}");
        let folder = self.folder.join(&name);
        let disk = folder.join("disk.img");
        let nic = Nic::virtio(&self.switch, &name, mac(number))?;
        Ok(MachineConfig::uefi(&name, &folder)?
            .stick(Stick::bootable("os", stick))
            .disk(Disk::new("state", &disk, DISK_MIB, DiskBus::Virtio))
            .nic(nic)
            .accel(self.accel))
    }

    /// Starts node `number` from a stick with the site's pack.
    pub fn start(&mut self, number: u8) -> Result<()> {
        let pack = self.folder.join("pack");
        let stick = self.stick(&format!("stick-{number}"), Some(&pack))?;
        self.start_machine(number, self.machine(number, &stick)?)
    }

    /// Starts a machine as node `number`.
    pub fn start_machine(&mut self, number: u8, config: MachineConfig) -> Result<()> {
        let address = address(number);
        let machine = Machine::start(config)?;
        let rest = self.host.forward(address, REST_PORT)?;
        self.nodes.push(Node {
            name: format!("node-{number}"),
            address,
            machine,
            rest,
        });
        Ok(())
    }

    /// `bmctl` towards the site's machine at `index`.
    pub fn ctl(&self, index: usize) -> Result<Ctl> {
        let node = self.nodes.get(index).context("there is no such machine")?;
        Ok(Ctl::new(&self.binaries, &self.context(), node.rest))
    }

    /// Waits until `bmctl nodes` of machine `index` shows `count` members that are ready; returns them.
    pub fn wait_members(&self, index: usize, count: usize, limit: Duration) -> Result<Vec<Value>> {
        let ctl = self.ctl(index)?;
        wait_until(limit, &format!("{count} members ready"), || {
            let nodes = ctl.json(&["nodes"])?;
            let nodes: Vec<Value> = nodes.as_array().cloned().unwrap_or_default();
            let ready = nodes
                .iter()
                .filter(|node| node["status"] == "Ready" && node["joined_after_ms"].is_u64());
            Ok(if ready.count() == count {
                Ok(nodes)
            } else {
                Err(format!("{nodes:?}"))
            })
        })
    }

    /// Waits until `count` pods are ready and each serves the page; returns (pod, node, address of the page).
    pub fn wait_serving(&self, index: usize, count: usize, limit: Duration) -> Result<Vec<Serving>> {
        let ctl = self.ctl(index)?;
        wait_until(limit, &format!("{count} replicas serving"), || {
            let pods = ctl.json(&["pods"])?;
            let serving = self.serving(&pods);
            Ok(if serving.len() == count {
                Ok(serving)
            } else {
                Err(format!("{} serve; {pods}", serving.len()))
            })
        })
    }

    fn serving(&self, pods: &Value) -> Vec<Serving> {
        let ready = pods
            .as_array()
            .into_iter()
            .flatten()
            .filter(|pod| pod["ready"] == true);
        let fetched = ready.filter_map(|pod| {
            let node = self.nodes.iter().find(|node| pod["node"] == node.name.as_str())?;
            let port = u16::try_from(pod["ports"][0][0].as_u64()?).ok()?;
            let answer = self
                .host
                .http_get(node.address, port, "/", Duration::from_secs(5))
                .ok()?;
            (answer.status == 200 && answer.body == crate::nginx::PAGE.as_bytes()).then(|| Serving {
                pod: pod["name"].as_str().unwrap_or_default().to_owned(),
                pod_id: pod["pod_id"].as_str().unwrap_or_default().to_owned(),
                node: node.name.clone(),
                port,
                start_ms: pod["start_ms"].as_u64(),
            })
        });
        fetched.collect()
    }
}

/// A replica that was fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// Pod name.
    pub pod: String,
    /// Id of the copy.
    pub pod_id: String,
    /// Node that holds it.
    pub node: String,
    /// Published port.
    pub port: u16,
    /// Accepted change to running process.
    pub start_ms: Option<u64>,
}

/// Repeats `look` until it says `Ok(Ok(_))`. On time-out the error says what was seen last.
pub fn wait_until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let start = Instant::now();
    let mut last;
    loop {
        match look() {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(seen)) => last = seen,
            Err(error) => last = format!("{error:#}"),
        }
        if start.elapsed() > limit {
            anyhow::bail!("not within {} s: {what}; last seen: {last}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
