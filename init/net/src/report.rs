//! Says what came of the plans: status file, resolv.conf, and lines on the console. Decides nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use beemesh_init_api::{LinkStatus, NetworkStatus, path};

use crate::kernel::{Kernel, Seen};
use crate::plan::{Plans, distinct, resolv_conf};
use crate::reconcile::{Applied, CABLE_GRACE};

/// What nobody needs to be told.
pub const WAITING: &str = "waiting for an address";
/// The largest status that is read back, in bytes.
const STATUS_LIMIT: u64 = 1 << 20;

/// Where it is said.
pub struct Reporter {
    run: PathBuf,
    written: (String, String),
    trial: Option<String>,
    refused: Option<String>,
    /// Cards that the config names and the machine does not have.
    pub missing: Vec<String>,
    /// NTP servers, as of the last report.
    pub ntp: Vec<IpAddr>,
    /// Links that are not made yet, and why.
    pub waiting: Vec<(String, String)>,
}

impl Reporter {
    /// Into the directory of `init/api`.
    pub fn new(run: PathBuf) -> Self {
        Self {
            run,
            written: Default::default(),
            trial: None,
            refused: None,
            missing: Vec::new(),
            ntp: Vec::new(),
            waiting: Vec::new(),
        }
    }

    /// What an earlier run of this program has written.
    pub fn earlier(&self) -> Option<NetworkStatus> {
        use std::io::Read;
        let file = std::fs::File::open(self.run.join(name_of(path::NETWORK_STATUS))).ok()?;
        let mut text = String::new();
        file.take(STATUS_LIMIT).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// A config was taken: of a trial, or the confirmed one.
    pub fn trial(&mut self, trial: Option<String>) {
        match (&self.trial, &trial) {
            (None, Some(_)) => self.say("network: new settings are tried"),
            (Some(_), None) => self.say("network: the trial is over"),
            _ => {}
        }
        self.trial = trial;
        self.refused = None;
    }

    /// A config was not taken.
    pub fn refused(&mut self, why: &str) {
        self.say(&format!("{why}; the network stays as it is"));
        self.refused = Some(why.to_owned());
    }

    /// Writes the status file and resolv.conf where they changed, and says what a person wants to know.
    pub async fn report(
        &mut self,
        kernel: &Kernel,
        applied: &mut BTreeMap<u32, Applied>,
        plans: &Plans,
    ) -> anyhow::Result<()> {
        let mut status = NetworkStatus {
            trial: self.trial.clone(),
            refused: self.refused.clone(),
            ..NetworkStatus::default()
        };
        let (mut dns, mut search, mut ntp) = (Vec::new(), Vec::new(), plans.ntp.clone());
        let mut lines = Vec::new();
        for (index, applied) in applied.iter_mut().filter(|(_, applied)| !applied.link.loopback) {
            dns.extend(&applied.plan.dns);
            search.extend(applied.plan.search.iter().cloned());
            for lease in applied.lease.iter().chain(&applied.lease6) {
                dns.extend(&lease.dns);
                search.extend(lease.search.iter().cloned());
                ntp.extend(&lease.ntp);
            }
            dns.extend(applied.advertised.servers());
            search.extend(applied.advertised.domains());
            let seen = kernel.addresses_seen(*index).await?;
            let link = link_status(applied, &seen);
            let line = sentence(applied, &link);
            if applied.said.as_ref() != Some(&line) {
                lines.extend((!line.ends_with(WAITING)).then(|| line.clone()));
                applied.said = Some(line);
            }
            status.links.push(link);
        }
        self.add_absent(&mut status);
        for line in lines {
            self.say(&line);
        }
        let texts = |list: &[IpAddr]| distinct(list).iter().map(IpAddr::to_string).collect();
        status.dns = texts(&dns);
        self.ntp = distinct(&ntp);
        status.ntp = texts(&self.ntp);
        status.search = distinct(&search);
        let texts = (serde_json::to_string(&status)?, resolv_conf(&dns, &search));
        if texts.0 != self.written.0 {
            self.write(path::NETWORK_STATUS, &texts.0)?;
        }
        if texts.1 != self.written.1 {
            self.write(path::RESOLV_CONF, &texts.1)?;
        }
        self.written = texts;
        Ok(())
    }

    fn add_absent(&self, status: &mut NetworkStatus) {
        for mac in &self.missing {
            let error = "the network settings name this card, but this machine has no such card".to_owned();
            status.links.push(LinkStatus {
                mac: mac.clone(),
                source: "static".to_owned(),
                error: Some(error),
                kind: "card".to_owned(),
                ..LinkStatus::default()
            });
        }
        for (name, why) in &self.waiting {
            status.links.push(LinkStatus {
                name: name.clone(),
                source: "static".to_owned(),
                error: Some(why.clone()),
                ..LinkStatus::default()
            });
        }
    }

    /// Replaces a file of the runtime directory.
    pub fn write(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let path = self.run.join(name_of(path));
        let temporary = path.with_extension("net-new");
        std::fs::write(&temporary, text)
            .with_context(|| format!("failed to write `{}`", temporary.display()))?;
        std::fs::rename(&temporary, &path).with_context(|| format!("failed to write `{}`", path.display()))
    }

    /// On the console, if someone reads there; in the log in any case.
    pub fn say(&self, line: &str) {
        println!("{line}");
        // O_NONBLOCK of open(2): without a reader there is an error, and nobody waits.
        let fifo = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(0o4000)
            .open(self.run.join("console"));
        if let Ok(mut fifo) = fifo {
            let _ = fifo.write_all(format!("beemesh: {line}\n").as_bytes());
        }
    }
}

fn link_status(applied: &Applied, seen: &[Seen]) -> LinkStatus {
    let link = &applied.link;
    let duplicates = seen.iter().filter(|seen| seen.duplicate);
    let duplicates = duplicates.map(|seen| {
        format!(
            "another host has the address `{}` already: give this link another one",
            seen.cidr.address
        )
    });
    let mut troubles: Vec<String> = applied.troubles.values().cloned().chain(duplicates).collect();
    if !link.carrier && troubles.is_empty() {
        troubles.push("no cable".to_owned());
    }
    let word = link.mark.as_ref().and_then(|mark| mark.split(' ').nth(1));
    LinkStatus {
        name: link.name.clone(),
        mac: link.mac_text(),
        addresses: seen
            .iter()
            .filter(|seen| !seen.duplicate)
            .map(|seen| seen.cidr.to_string())
            .collect(),
        source: source(applied, seen),
        error: (!troubles.is_empty()).then(|| troubles.join("; ")),
        kind: word.unwrap_or("card").to_owned(),
        carrier: link.carrier,
        mtu: link.mtu,
        mtu_before: applied.mtu_before,
    }
}

fn source(applied: &Applied, seen: &[Seen]) -> String {
    let plan = &applied.plan;
    if let Some(controller) = &plan.member_of {
        return format!("member of {controller}");
    }
    let advertised = |seen: &Seen| match seen.cidr.address {
        IpAddr::V6(v6) => !seen.permanent && !v6.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    };
    let parts = [
        (!plan.addresses.is_empty(), "static"),
        (plan.dhcp, "dhcp"),
        (plan.dhcp6, "dhcp6"),
        (seen.iter().any(advertised), "slaac"),
    ];
    let parts: Vec<&str> = parts
        .iter()
        .filter(|(is, _)| *is)
        .map(|(_, word)| *word)
        .collect();
    if parts.is_empty() {
        "link-local".to_owned()
    } else {
        parts.join("+")
    }
}

fn sentence(applied: &Applied, status: &LinkStatus) -> String {
    let name = &status.name;
    let usable: Vec<&str> = status
        .addresses
        .iter()
        .map(String::as_str)
        .filter(|a| !a.starts_with("fe80:"))
        .collect();
    let just_began = !applied.link.carrier && applied.since.elapsed() < CABLE_GRACE;
    match &status.error {
        Some(_) if just_began => format!("network: {name}: {WAITING}"),
        Some(error) => format!("network: {name}: {error}"),
        None if applied.plan.member_of.is_some() => format!("network: {name} is a {}", status.source),
        None if usable.is_empty() => format!("network: {name}: {WAITING}"),
        None => format!("network: {name} has {} ({})", usable.join(", "), status.source),
    }
}

/// The last part of a path of `init/api`.
pub fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
