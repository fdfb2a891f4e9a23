//! A site that no network reaches, for days: what `cargo xtask e2e airgap` plays.
//!
//! A day passes while the site is switched off: its boxes wake with hardware clocks that are a day on. They have only each
//! other, and the sticks that somebody brings.

use crate::binaries::expect_success;
use crate::outage::Watch;
use crate::progress::Progress;
use crate::site::{FABRIC_PORT, Site, SiteOptions, address, mac, prefix, wait_until};
use crate::{Binaries, nginx};
use anyhow::{Context, Result, ensure};
use beemesh_ci_testkit::{Machine, MachineConfig, Stick, StickImage};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use time::{OffsetDateTime, macros::format_description};

/// Boxes of the site.
pub const NODES: u8 = 3;
/// Name, replicas and published port of each workload: one that outlives the loss of a box, and one that must move.
const WORKLOADS: [(&str, u32, u16); 2] = [("web", 2, 8080), ("till", 1, 8081)];
/// Replicas of all workloads.
const REPLICAS: usize = 3;

const BOOT: Duration = Duration::from_secs(240);
const REACTION: Duration = Duration::from_secs(90);

/// What happens on which day. Every second night is a power cut, the others are orderly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Days that pass.
    pub days: u16,
    /// Every node's key is rotated by an operator in the site.
    pub rotate_by_wire: u16,
    /// The same by an order on a stick in one box.
    pub rotate_by_stick: u16,
    /// A box gets a blank disk and a new place.
    pub reinstall: u16,
}

impl Plan {
    /// A plan for `days`, at least 4: one thing a day, the last ones in the last days.
    pub fn of(days: u16) -> Self {
        let half = days.div_euclid(2);
        Self {
            days,
            rotate_by_wire: half.max(1),
            rotate_by_stick: days.saturating_sub(2).max(half + 1),
            reinstall: days.saturating_sub(1).max(half + 2),
        }
    }

    /// Whether the night before this day is a power cut.
    pub fn is_power_cut(&self, day: u16) -> bool {
        day.is_multiple_of(2)
    }
}

/// One night.
#[derive(Debug, Clone, Serialize)]
pub struct Night {
    /// The day that it leads to.
    pub day: u16,
    /// The mains failed; else each box was switched off by its power button.
    pub power_cut: bool,
    /// From power-on until every replica of every workload served.
    pub serving_again_ms: u64,
}

/// `target/airgap/report.json`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Days that passed by the boxes' clocks.
    pub days: u16,
    /// Node keys that were replaced.
    pub rotations: usize,
    /// Pods that were started again, anywhere.
    pub restarts: usize,
    /// Frames that were not for the site; must be 0.
    pub frames_outside: u64,
    /// Where those went.
    pub outsiders: String,
    /// Peer id of each node's key after it joined.
    pub peer_ids_before: BTreeMap<String, String>,
    /// Peer id of each node's key at the end.
    pub peer_ids_after: BTreeMap<String, String>,
    /// Time without service of each workload while the site was switched on, each morning counted from power-on.
    pub downtime_ms: BTreeMap<String, u64>,
    /// The same while keys were rotated.
    pub downtime_in_rotations_ms: BTreeMap<String, u64>,
    /// The nights.
    pub nights: Vec<Night>,
}

/// The site, and what was seen of it.
pub struct Airgap {
    site: Site,
    story: Progress,
    watches: Vec<Watch>,
    /// What the boxes' clocks said at the start.
    begin: OffsetDateTime,
    before: BTreeMap<String, String>,
    /// Copies of pods that were seen.
    copies: BTreeSet<String>,
    rotations: usize,
    in_rotations: BTreeMap<String, u64>,
    nights: Vec<Night>,
}

impl Airgap {
    /// Keys, pack and network; no machine yet.
    pub fn open(plan: &Plan) -> Result<Self> {
        let binaries = Binaries::find()?;
        let mut story = Progress::new(u64::from(plan.days) + 8);
        story.doing("making keys, an nginx image and a join pack");
        let archive = nginx::archive(&binaries.target)?;
        let options = SiteOptions {
            nodes: NODES,
            images: vec![(nginx::IMAGE.to_owned(), archive)],
            create: Vec::new(),
        };
        let site = Site::create(&binaries.target.join("airgap"), options)?;
        story.done("fabric and join pack made, offline".to_owned());
        Ok(Self {
            site,
            story,
            watches: Vec::new(),
            begin: OffsetDateTime::now_utc(),
            before: BTreeMap::new(),
            copies: BTreeSet::new(),
            rotations: 0,
            in_rotations: WORKLOADS.map(|(name, ..)| (name.to_owned(), 0)).into(),
            nights: Vec::new(),
        })
    }

    /// Everything that the site wrote.
    pub fn folder(&self) -> &Path {
        &self.site.folder
    }

    /// The boxes join, each from its stick.
    pub fn join(&mut self) -> Result<()> {
        for number in 1..=NODES {
            self.story.doing(&format!("booting node-{number} from its stick"));
            self.site.start(number)?;
        }
        let image = format!("image {} is ready", nginx::IMAGE);
        for node in &self.site.nodes {
            node.machine.wait_for("joined fabric", BOOT)?;
            node.machine.wait_for(image.as_str(), REACTION)?;
        }
        self.before = self.members()?;
        self.story.done(format!("{NODES} boxes joined"));
        Ok(())
    }

    /// Node names and the peer ids of their present keys, once every box is a member and ready.
    fn members(&self) -> Result<BTreeMap<String, String>> {
        self.members_by("key")
    }

    fn members_by(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let nodes = self.site.wait_members(0, usize::from(NODES), REACTION)?;
        let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
        Ok(nodes
            .iter()
            .map(|node| (text(node, "name"), text(node, id)))
            .collect())
    }

    /// The workloads are applied, and watched from now on.
    pub fn deploy(&mut self) -> Result<()> {
        self.story.doing("deploying two workloads");
        // The next heartbeats tell everybody that the image is everywhere.
        std::thread::sleep(Duration::from_secs(5));
        for (name, replicas, port) in WORKLOADS {
            let manifest = nginx::deployment(replicas, port)
                .replace("name: web", &format!("name: {name}"))
                .replace("app: web", &format!("app: {name}"));
            let path = self.site.folder.join(format!("{name}.yaml"));
            fs::write(&path, manifest)?;
            self.bmctl(&["apply", "-f", &path.display().to_string()])?;
        }
        self.all_serve()?;
        for (_, _, port) in WORKLOADS {
            let mut addresses = Vec::new();
            for number in 1..=NODES {
                addresses.push(self.site.host.forward(address(number), port)?);
            }
            let watch = Watch::start(&addresses, nginx::PAGE);
            watch.resume();
            self.watches.push(watch);
        }
        self.story.done(format!("{REPLICAS} replicas serve"));
        Ok(())
    }

    fn all_serve(&mut self) -> Result<()> {
        for pod in self.site.wait_serving(0, REPLICAS, REACTION)? {
            self.copies.insert(pod.pod_id);
        }
        Ok(())
    }

    fn bmctl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.site.ctl(0)?.run(arguments)?;
        expect_success(&format!("bmctl {}", arguments.join(" ")), &output)
    }

    /// Keeps what each box has logged, for whoever looks for a cause: `system.json` beside its console. Boxes that do not
    /// answer any more are left out.
    pub fn keep_logs(&self) {
        for (index, node) in self.site.nodes.iter().enumerate() {
            let folder = self.folder().join(node.machine.name());
            for (what, file) in [("logs", "system.json"), ("events", "events.json")] {
                let arguments: &[&str] = match what {
                    "logs" => &["logs", "--system", "-o", "json"],
                    _ => &["events", "-o", "json"],
                };
                let said = self.site.ctl(index).and_then(|ctl| ctl.run(arguments));
                if let Ok(output) = said {
                    let _ = fs::write(folder.join(file), output.stdout);
                }
            }
        }
    }

    /// The site is switched off; it wakes when it is `day`.
    pub fn night(&mut self, day: u16, power_cut: bool) -> Result<()> {
        self.story.doing(&format!("the night before day {day}"));
        self.watches.iter().for_each(Watch::pause);
        for node in &mut self.site.nodes {
            match power_cut {
                true => node.machine.kill()?,
                false => drop(node.machine.power_off(REACTION)?),
            }
        }
        let morning = self.begin + time::Duration::days(day.into());
        let clock = morning.format(format_description!(
            "[year]-[month]-[day]T[hour]:[minute]:[second]"
        ))?;
        let power_on = Instant::now();
        self.watches.iter().for_each(Watch::resume);
        for node in &mut self.site.nodes {
            let config = MachineConfig {
                clock: Some(clock.clone()),
                ..node.machine.config().clone()
            };
            node.machine = Machine::start(config)?;
        }
        for node in &self.site.nodes {
            node.machine.wait_for("joined fabric", BOOT)?;
        }
        self.members()?;
        self.all_serve()?;
        let serving_again_ms = millis(power_on.elapsed());
        self.clocks_say(morning)?;
        self.nights.push(Night {
            day,
            power_cut,
            serving_again_ms,
        });
        let how = if power_cut {
            "after a power cut"
        } else {
            "after a quiet night"
        };
        self.story
            .done(format!("day {day}, {how}: all serve in {serving_again_ms} ms"));
        Ok(())
    }

    /// Each box takes its hardware clock's word for the day.
    fn clocks_say(&self, morning: OffsetDateTime) -> Result<()> {
        for index in 0..self.site.nodes.len() {
            let view = self.site.ctl(index)?.json(&["time"])?;
            let now = view["now_ms"].as_i64().context("`bmctl time` shows no time")? / 1000;
            let passed = now - morning.unix_timestamp();
            ensure!(
                (0..3600).contains(&passed),
                "the clock of box {index} is {passed} s from the morning: {view}"
            );
        }
        Ok(())
    }

    /// An operator in the site rotates every node's key.
    pub fn rotate_by_wire(&mut self) -> Result<()> {
        self.story.doing("rotating every node's key");
        self.rotate("by wire", |site| {
            let line = ["keys", "rotate", "--all", "--wait", "--timeout", "90s"];
            site.bmctl(&line).map(drop)
        })
    }

    /// A stick with an order to rotate goes into one box.
    pub fn rotate_by_stick(&mut self) -> Result<()> {
        self.story
            .doing("rotating every node's key by a stick in one box");
        self.rotate("by a stick in one box", |site| {
            let pack = site.pack("orders", &["--news", "--rotate-keys"])?;
            let image = site.site.folder.join("orders.img");
            StickImage::from_folder(&image, 16, &pack)?;
            let machine = &mut site.site.nodes[0].machine;
            machine.plug(Stick::data("orders", &image))?;
            machine.wait_for("the join stick is good", REACTION)?;
            Ok(())
        })
    }

    fn rotate(&mut self, how: &str, order: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let (members, copies) = (self.members()?, self.copies.clone());
        let downtime = self.downtime();
        order(self)?;
        let after = wait_until(REACTION, "a new key on each box", || {
            let after = self.members()?;
            let kept = after
                .iter()
                .filter(|(name, peer)| members.get(*name) == Some(peer));
            Ok(if kept.count() == 0 {
                Ok(after)
            } else {
                Err(format!("{members:?}"))
            })
        })?;
        self.rotations += after.len();
        self.all_serve()?;
        ensure!(self.copies == copies, "a rotation of keys restarted pods");
        for (name, ms) in self.downtime() {
            *self.in_rotations.entry(name.clone()).or_default() +=
                ms - downtime.get(&name).copied().unwrap_or_default();
        }
        self.story
            .done(format!("{} keys rotated {how}, no pod restarted", after.len()));
        Ok(())
    }

    /// A pack for this fabric, with the peers of the site.
    fn pack(&self, name: &str, more: &[&str]) -> Result<PathBuf> {
        let (fabric, pack) = (self.site.folder.join("fabric"), self.site.folder.join(name));
        let mut line = vec![
            "create".to_owned(),
            "--fabric".to_owned(),
            fabric.display().to_string(),
        ];
        line.extend(["--out".to_owned(), pack.display().to_string()]);
        line.extend(["--cell".to_owned(), "site".to_owned(), "--blank-disk".to_owned()]);
        for number in 1..=NODES {
            line.extend(["--peer".to_owned(), format!("{}:{FABRIC_PORT}", address(number))]);
        }
        line.extend(more.iter().map(|&argument| argument.to_owned()));
        expect_success("joinpack create", &self.site.binaries.run_joinpack(&line)?)?;
        Ok(pack)
    }

    /// A box gets a blank disk: its old identity is revoked, a stick brings it a new one.
    pub fn reinstall(&mut self, number: u8) -> Result<()> {
        let name = format!("node-{number}");
        self.story.doing(&format!("installing {name} anew"));
        let index = usize::from(number - 1);
        let mut old = self.members_by("peer_id")?;
        let old = old.remove(&name).context("the box is no member")?;
        self.bmctl(&["revoke", &format!("node/{old}")])?;
        let node = &mut self.site.nodes[index];
        node.machine.power_off(REACTION)?;
        let mut config = node.machine.config().clone();
        for disk in &config.disks {
            fs::remove_file(&disk.image)?;
        }
        let [.., last] = mac(number).0;
        let place = format!(
            "{name},mac=52:54:00:77:00:{last:02x},address={}/24",
            address(number)
        );
        let image = format!(
            "{}={}",
            nginx::IMAGE,
            nginx::archive(&self.site.binaries.target)?.display()
        );
        let pack = self.pack("anew", &["--node", &place, "--image", &image])?;
        let stick = self.site.stick("anew", Some(&pack))?;
        config.sticks = vec![Stick::bootable("os", &stick)];
        let node = &mut self.site.nodes[index];
        node.machine = Machine::start(config)?;
        node.machine.wait_for("joined fabric", BOOT)?;
        let mut new = self.members_by("peer_id")?;
        let new = new.remove(&name).context("the box is no member")?;
        ensure!(new != old, "{name} kept its node id on a blank disk");
        self.all_serve()?;
        self.story.done(format!("{name} was installed anew, all serve"));
        Ok(())
    }

    fn downtime(&self) -> BTreeMap<String, u64> {
        let names = WORKLOADS.iter().map(|(name, ..)| (*name).to_owned());
        names
            .zip(self.watches.iter().map(|watch| millis(watch.total())))
            .collect()
    }

    /// What was seen.
    pub fn report(&mut self, days: u16) -> Result<Report> {
        let peer_ids_after = self.members()?;
        let outsiders = format!("{:?}", self.site.switch.outsiders(prefix()));
        Ok(Report {
            days,
            rotations: self.rotations,
            restarts: self.copies.len().saturating_sub(REPLICAS),
            frames_outside: self.site.switch.frames_outside(prefix()),
            outsiders,
            peer_ids_before: self.before.clone(),
            peer_ids_after,
            downtime_ms: self.downtime(),
            downtime_in_rotations_ms: self.in_rotations.clone(),
            nights: self.nights.clone(),
        })
    }

    /// Ends the display.
    pub fn finish(&mut self, report: &Path) {
        self.story.done(format!("report: {}", report.display()));
        self.story.finish();
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_each_thing_on_a_day_of_its_own_within_its_days() {
        for days in 4..=31 {
            let plan = Plan::of(days);
            let all = [plan.rotate_by_wire, plan.rotate_by_stick, plan.reinstall];
            assert!(all.is_sorted_by(|a, b| a < b), "{plan:?}");
            assert!(all.iter().all(|day| (1..=days).contains(day)), "{plan:?}");
        }
        assert_eq!(Plan::of(7).rotate_by_wire, 3);
    }
}
