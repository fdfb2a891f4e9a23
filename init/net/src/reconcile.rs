//! Brings every link to its plan and keeps it there; says on the console and in the status file what came of it.
//!
//! Applying the same plan twice changes nothing. A link that fails does not keep another from its address.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use beemesh_init_api::{LinkStatus, NetworkConfig, NetworkStatus, path};
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::dhcp::{self, Lease, Report};
use crate::kernel::{Changes, Kernel, KernelError, Route};
use crate::plan::{Cidr, Link, LinkPlan, Plans, resolv_conf};
use crate::watch::ConfigFile;

/// How often the config file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// The pause before what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// A card finds its cable some time after it was switched on: before that, nobody is told that there is none.
const CABLE_GRACE: Duration = Duration::from_secs(6);
/// What nobody needs to be told.
const WAITING: &str = "waiting for an address";
/// Reports of DHCP tasks that may wait.
const REPORTS: usize = 64;
/// Metric of the default route of the first link; the others follow by index.
const METRIC: u32 = 100;

/// How the program was called.
pub struct Options {
    /// Where the files of `init/api` lie.
    pub run: PathBuf,
    /// Treat links that programs made like hardware.
    pub with_virtual: bool,
}

struct Applied {
    link: Link,
    plan: LinkPlan,
    task: Option<JoinHandle<()>>,
    lease: Option<Lease>,
    error: Option<String>,
    retry_at: Option<Instant>,
    since: Instant,
    said: Option<String>,
}

/// The program's state.
pub struct Reconciler {
    options: Options,
    kernel: Kernel,
    changes: Changes,
    config: ConfigFile,
    plans: Plans,
    applied: BTreeMap<u32, Applied>,
    missing: Vec<String>,
    reporter: mpsc::Sender<(u32, Report)>,
    reports: mpsc::Receiver<(u32, Report)>,
    written: (String, String),
}

impl Reconciler {
    /// Opens the kernel's socket. Nothing is changed yet.
    pub async fn open(options: Options) -> anyhow::Result<Self> {
        let (kernel, changes) = Kernel::open().context("failed to open the kernel's network socket")?;
        let plans = Plans::of(&NetworkConfig::default())?;
        let config = ConfigFile::at(options.run.join(name_of(path::NETWORK)));
        let (reporter, reports) = mpsc::channel(REPORTS);
        let (applied, missing, written) = Default::default();
        Ok(Self {
            options,
            kernel,
            changes,
            config,
            plans,
            applied,
            missing,
            reporter,
            reports,
            written,
        })
    }

    /// Never ends but by an error that a restart may cure.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut poll = tokio::time::interval(POLL);
        let mut dirty = true;
        loop {
            if let Some(read) = self.config.poll() {
                match read {
                    Ok(plans) => {
                        self.plans = plans;
                        dirty = true;
                    }
                    Err(error) => self.say(&format!("{}; the network stays as it is", chain(&error))),
                }
            }
            if dirty {
                self.reconcile().await?;
                self.report().await?;
                dirty = false;
            }
            tokio::select! {
                _ = poll.tick() => {
                    let now = Instant::now();
                    let due = |a: &Applied| {
                        let silent = a.said.as_ref().is_none_or(|line| line.ends_with(WAITING));
                        let cable = !a.link.carrier && a.error.is_none() && silent && now >= a.since + CABLE_GRACE;
                        cable || (a.task.is_none() && a.retry_at.is_some_and(|at| at <= now))
                    };
                    dirty = self.applied.values().any(due);
                }
                change = self.changes.next() => {
                    change.context("the kernel closed the network socket")?;
                    // Changes come in bursts.
                    while self.changes.try_recv().is_ok() {}
                    dirty = true;
                }
                report = self.reports.recv() => {
                    if let Some((index, report)) = report {
                        self.take(index, report).await;
                        dirty = true;
                    }
                }
            }
        }
    }

    async fn reconcile(&mut self) -> Result<(), KernelError> {
        let links = self.kernel.links().await?;
        self.missing = self.plans.missing(&links).map(str::to_owned).collect();
        let gone: Vec<u32> = self
            .applied
            .keys()
            .filter(|i| links.iter().all(|l| l.index != **i))
            .copied()
            .collect();
        for index in gone {
            self.drop_link(index);
        }
        for link in links {
            let plan = self.plans.plan(&link, self.options.with_virtual);
            let known = self.applied.get(&link.index);
            if plan == LinkPlan::LeaveAlone && known.is_none() {
                continue;
            }
            let same = known.is_some_and(|k| k.plan == plan && k.link.mac == link.mac);
            // A cable that was put back may lead to another network: the server is asked again.
            let replugged = known.is_some_and(|k| !k.link.carrier) && link.carrier;
            // A DHCP task tries again by itself; what else failed is tried again after a pause.
            let retry =
                known.is_some_and(|k| k.task.is_none() && k.retry_at.is_some_and(|at| at <= Instant::now()));
            if same && !replugged && !retry && link.up {
                if let Some(known) = self.applied.get_mut(&link.index) {
                    known.link = link;
                }
                continue;
            }
            self.apply(link, plan).await;
        }
        Ok(())
    }

    fn drop_link(&mut self, index: u32) {
        if let Some(task) = self.applied.remove(&index).and_then(|applied| applied.task) {
            task.abort();
        }
    }

    async fn apply(&mut self, link: Link, plan: LinkPlan) {
        let before = self.applied.remove(&link.index);
        if let Some(task) = before.as_ref().and_then(|applied| applied.task.as_ref()) {
            task.abort();
        }
        let before = before.map(|b| (b.lease, b.said, b.since));
        let (mut lease, said, since) = before.unwrap_or_else(|| (None, None, Instant::now()));
        let mut task = None;
        let done = match &plan {
            LinkPlan::Static {
                addresses, gateway, ..
            } => {
                lease = None;
                self.apply_static(&link, addresses, *gateway).await
            }
            LinkPlan::Dhcp { .. } => {
                // What was leased before stays until the server says otherwise: an interruption shorter than that
                // breaks no connection.
                let kept: Vec<Cidr> = lease.iter().map(|lease| lease.address).collect();
                let up = self.prepare(&link, &kept).await;
                task = (up.is_ok() && link.carrier).then(|| dhcp::spawn(&link, self.reporter.clone()));
                up
            }
            LinkPlan::Up => {
                lease = None;
                self.prepare(&link, &[]).await
            }
            LinkPlan::LeaveAlone => return,
        };
        let error = done.err().map(|error| chain(&error));
        let retry_at = error.is_some().then(|| Instant::now() + RETRY);
        self.applied.insert(
            link.index,
            Applied {
                link,
                plan,
                task,
                lease,
                error,
                retry_at,
                since,
                said,
            },
        );
    }

    async fn prepare(&self, link: &Link, kept: &[Cidr]) -> Result<(), KernelError> {
        if !link.up {
            self.kernel.set_up(link).await?;
        }
        if link.loopback {
            Ok(())
        } else {
            self.kernel.keep_addresses(link.index, kept).await
        }
    }

    async fn apply_static(
        &self,
        link: &Link,
        addresses: &[Cidr],
        gateway: Option<Ipv4Addr>,
    ) -> Result<(), KernelError> {
        self.prepare(link, addresses).await?;
        for cidr in addresses {
            self.kernel.add_address(link, *cidr).await?;
        }
        let metric = METRIC + link.index;
        let default = Route {
            destination: Ipv4Addr::UNSPECIFIED,
            prefix: 0,
            gateway,
            metric,
        };
        match gateway {
            Some(_) => self.kernel.add_route(link, default).await,
            None => {
                self.kernel.remove_route(link, default).await;
                Ok(())
            }
        }
    }

    /// What a DHCP task reports.
    async fn take(&mut self, index: u32, report: Report) {
        let Some(applied) = self
            .applied
            .get_mut(&index)
            .filter(|a| matches!(a.plan, LinkPlan::Dhcp { .. }))
        else {
            return;
        };
        let link = applied.link.clone();
        let done = match report {
            Report::Leased(lease) => {
                applied.lease = Some(lease.clone());
                apply_lease(&self.kernel, &link, &lease).await
            }
            Report::Without(error) => {
                applied.lease = None;
                applied.error = Some(error);
                let _ = self.kernel.keep_addresses(index, &[]).await;
                return;
            }
        };
        if let Some(applied) = self.applied.get_mut(&index) {
            applied.error = done.err().map(|error| chain(&error));
        }
    }

    /// Writes the status file and resolv.conf where they changed, and says what a person wants to know.
    async fn report(&mut self) -> anyhow::Result<()> {
        let mut status = NetworkStatus::default();
        let (mut servers, mut lines) = (Vec::new(), Vec::new());
        for (index, applied) in &mut self.applied {
            if applied.link.loopback {
                continue;
            }
            let (source, dns) = describe(applied);
            servers.extend(dns);
            let addresses: Vec<String> = self
                .kernel
                .addresses(*index)
                .await?
                .iter()
                .map(Cidr::to_string)
                .collect();
            let error = applied
                .error
                .clone()
                .or_else(|| (!applied.link.carrier).then(|| "no cable".to_owned()));
            let usable: Vec<&str> = addresses
                .iter()
                .map(String::as_str)
                .filter(|a| !a.starts_with("fe80:"))
                .collect();
            let just_began = !applied.link.carrier && applied.since.elapsed() < CABLE_GRACE;
            let line = match &error {
                Some(_) if just_began => format!("network: {}: {WAITING}", applied.link.name),
                Some(error) => format!("network: {}: {error}", applied.link.name),
                None if usable.is_empty() => {
                    format!("network: {}: {WAITING}", applied.link.name)
                }
                None => format!(
                    "network: {} has {} ({source})",
                    applied.link.name,
                    usable.join(", ")
                ),
            };
            if applied.said.as_ref() != Some(&line) {
                lines.extend((!line.ends_with(WAITING)).then(|| line.clone()));
                applied.said = Some(line);
            }
            let (name, mac) = (applied.link.name.clone(), applied.link.mac_text());
            status.links.push(LinkStatus {
                name,
                mac,
                addresses,
                source: source.to_owned(),
                error,
            });
        }
        for mac in &self.missing {
            let error =
                Some("the network settings name this card, but this machine has no such card".to_owned());
            let (name, source) = (String::new(), "static".to_owned());
            status.links.push(LinkStatus {
                name,
                mac: mac.clone(),
                addresses: Vec::new(),
                source,
                error,
            });
        }
        for line in lines {
            self.say(&line);
        }
        let texts = (serde_json::to_string(&status)?, resolv_conf(&servers));
        if texts.0 != self.written.0 {
            self.write(path::NETWORK_STATUS, &texts.0)?;
        }
        if texts.1 != self.written.1 {
            self.write(path::RESOLV_CONF, &texts.1)?;
        }
        self.written = texts;
        Ok(())
    }

    fn write(&self, path: &str, text: &str) -> anyhow::Result<()> {
        let path = self.options.run.join(name_of(path));
        let temporary = path.with_extension("net-new");
        std::fs::write(&temporary, text)
            .with_context(|| format!("failed to write `{}`", temporary.display()))?;
        std::fs::rename(&temporary, &path).with_context(|| format!("failed to write `{}`", path.display()))
    }

    /// On the console, if someone reads there; in the log in any case.
    fn say(&self, line: &str) {
        println!("{line}");
        // O_NONBLOCK of open(2): without a reader there is an error, and nobody waits.
        let fifo = std::fs::OpenOptions::new()
            .write(true)
            .custom_flags(0o4000)
            .open(self.options.run.join("console"));
        if let Ok(mut fifo) = fifo {
            let _ = fifo.write_all(format!("beemesh: {line}\n").as_bytes());
        }
    }
}

async fn apply_lease(kernel: &Kernel, link: &Link, lease: &Lease) -> Result<(), KernelError> {
    if let Some(mtu) = lease.mtu {
        kernel.set_mtu(link, mtu.into()).await?;
    }
    kernel.add_address(link, lease.address).await?;
    kernel.keep_addresses(link.index, &[lease.address]).await?;
    // Routes without a gateway first: the others may lead through them.
    let metric = METRIC + link.index;
    let (direct, by_gateway): (Vec<Route>, Vec<Route>) =
        lease.routes.iter().partition(|r| r.gateway.is_none());
    for route in direct.into_iter().chain(by_gateway) {
        kernel.add_route(link, Route { metric, ..route }).await?;
    }
    Ok(())
}

fn describe(applied: &Applied) -> (&'static str, Vec<IpAddr>) {
    match &applied.plan {
        LinkPlan::Static { dns, .. } => ("static", dns.clone()),
        LinkPlan::Dhcp { dns } => {
            let leased = applied
                .lease
                .iter()
                .flat_map(|lease| lease.dns.iter().copied().map(IpAddr::V4));
            ("dhcp", dns.iter().copied().chain(leased).collect())
        }
        LinkPlan::Up | LinkPlan::LeaveAlone => ("link-local", Vec::new()),
    }
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
