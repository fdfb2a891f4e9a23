//! Brings every link to its plan and keeps it there.
//!
//! Applying the same plan twice changes nothing. A link that fails does not keep another from its address. What came of
//! it is said in `report`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use beemesh_init_api::{NetworkConfig, NetworkStatus, path};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::arp::{Guard, Verdict};
use crate::dhcp::{self, Lease};
use crate::dhcp6;
use crate::kernel::{Changes, EXISTS, Kernel, KernelError, accept_advertisements};
use crate::plan::{Cidr, Link, LinkPlan, MadeKind, Plans, Route, mac_text};
use crate::ra::{self, Advertised};
use crate::report::{Reporter, WAITING, chain, name_of};
use crate::settings::ConfigFiles;

/// How often the config files are looked at.
const POLL: Duration = Duration::from_millis(200);
/// The pause before what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// The pause before an address that somebody else has is tried again.
const CONFLICT: Duration = Duration::from_secs(10);
/// A card finds its cable some time after it was switched on: before that, nobody is told that there is none.
pub const CABLE_GRACE: Duration = Duration::from_secs(6);
/// Reports of tasks that may wait.
const REPORTS: usize = 64;
/// Metric of the IPv4 routes of the first link; the others follow by index.
const METRIC: u32 = 100;
/// Metric of IPv6 routes: the kernel's own.
const METRIC6: u32 = 1_024;

/// How the program was called.
#[derive(Clone)]
pub struct Options {
    /// Where the files of `init/api` lie.
    pub run: PathBuf,
    /// Treat links that programs made like hardware.
    pub with_virtual: bool,
    /// Pretend clocks that show this, in seconds since the Unix epoch.
    pub clock: Option<i64>,
}

/// A task that ends with the value.
pub struct Task(JoinHandle<()>);

impl Task {
    /// Starts it.
    pub fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a link's tasks report.
#[derive(Debug)]
pub enum Report {
    /// A new DHCPv4 lease, or the old one renewed.
    Leased(Lease),
    /// No DHCPv4 lease now; in words.
    Without(String),
    /// The same for DHCPv6.
    Leased6(Lease),
    /// The same for DHCPv6.
    Without6(String),
    /// What routers say of DNS.
    Advertised(Advertised),
    /// Nobody else has this fixed address.
    Free(Ipv4Addr),
    /// Another host has it, or it cannot be found out; in words.
    Taken(Ipv4Addr, String),
}

/// What goes wrong with a link, each cured on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The kernel refused something.
    Kernel,
    /// DHCPv4.
    Dhcp,
    /// DHCPv6.
    Dhcp6,
    /// A fixed address.
    Address(Ipv4Addr),
}

/// A link and what was done to it.
pub struct Applied {
    /// As the kernel shows it.
    pub link: Link,
    /// What it shall have.
    pub plan: LinkPlan,
    /// Its DHCPv4 lease.
    pub lease: Option<Lease>,
    /// Its DHCPv6 lease.
    pub lease6: Option<Lease>,
    /// What routers say of DNS.
    pub advertised: Advertised,
    /// What goes wrong.
    pub troubles: BTreeMap<Trouble, String>,
    /// When it was first seen.
    pub since: Instant,
    /// What was last said of it.
    pub said: Option<String>,
    /// Its MTU before it was changed here.
    pub mtu_before: Option<u32>,
    /// Fixed IPv4 addresses that are in use.
    free: Vec<Ipv4Addr>,
    tasks: Vec<Task>,
    retry_at: Option<Instant>,
}

/// The program's state.
pub struct Reconciler {
    options: Options,
    kernel: Kernel,
    changes: Changes,
    config: ConfigFiles,
    plans: Plans,
    reporter: Reporter,
    applied: BTreeMap<u32, Applied>,
    sender: mpsc::Sender<(u32, Report)>,
    reports: mpsc::Receiver<(u32, Report)>,
    mtu_before: BTreeMap<String, u32>,
    make_again: Option<Instant>,
    servers: watch::Sender<Vec<IpAddr>>,
}

impl Reconciler {
    /// Opens the kernel's socket. Nothing is changed yet. `servers` is told which NTP servers there are.
    pub fn open(options: Options, servers: watch::Sender<Vec<IpAddr>>) -> anyhow::Result<Self> {
        let (kernel, changes) = Kernel::open().context("failed to open the kernel's network socket")?;
        let at = |path| options.run.join(name_of(path));
        let config = ConfigFiles::at(at(path::NETWORK), at(path::NETWORK_TRIAL));
        let (sender, reports) = mpsc::channel(REPORTS);
        let reporter = Reporter::new(options.run.clone());
        // An earlier run may have changed an MTU for a trial that is to be taken back by this one.
        let before: NetworkStatus = reporter.earlier().unwrap_or_default();
        let mtu_before = before
            .links
            .iter()
            .filter_map(|link| Some((link.name.clone(), link.mtu_before?)));
        Ok(Self {
            plans: Plans::of(&NetworkConfig::default())?,
            mtu_before: mtu_before.collect(),
            applied: BTreeMap::new(),
            make_again: None,
            servers,
            options,
            kernel,
            changes,
            config,
            reporter,
            sender,
            reports,
        })
    }

    /// Never ends but by an error that a restart may cure.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut poll = tokio::time::interval(POLL);
        let mut dirty = true;
        loop {
            dirty |= self.look_at_config();
            if dirty {
                self.reconcile().await?;
                self.reporter
                    .report(&self.kernel, &mut self.applied, &self.plans)
                    .await?;
                let servers = &self.reporter.ntp;
                self.servers.send_if_modified(|known| {
                    let other = known != servers;
                    known.clone_from(servers);
                    other
                });
                dirty = false;
            }
            tokio::select! {
                _ = poll.tick() => dirty = self.is_due(),
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

    fn look_at_config(&mut self) -> bool {
        match self.config.poll(boot_ms()) {
            None => return false,
            Some(Ok(choice)) => {
                self.reporter.trial(choice.trial);
                self.plans = choice.plans;
                self.make_again = None;
            }
            Some(Err(error)) => self.reporter.refused(&chain(&error)),
        }
        true
    }

    fn is_due(&self) -> bool {
        let now = Instant::now();
        let due = |a: &Applied| {
            let silent = a.said.as_ref().is_none_or(|line| line.ends_with(WAITING));
            let cable = !a.link.carrier && a.troubles.is_empty() && silent && now >= a.since + CABLE_GRACE;
            cable || a.retry_at.is_some_and(|at| at <= now)
        };
        self.make_again.is_some_and(|at| at <= now) || self.applied.values().any(due)
    }

    async fn reconcile(&mut self) -> Result<(), KernelError> {
        let mut links = self.kernel.links().await?;
        if self.make_links(&links).await {
            links = self.kernel.links().await?;
        }
        self.reporter.missing = self
            .plans
            .missing(&links, self.options.with_virtual)
            .map(str::to_owned)
            .collect();
        let there = |index: &u32| links.iter().any(|link| link.index == *index);
        self.applied.retain(|index, _| there(index));
        for link in &links {
            let Some(plan) = self.plans.plan(link, self.options.with_virtual) else {
                self.applied.remove(&link.index);
                continue;
            };
            let known = self.applied.get(&link.index);
            let same = known.is_some_and(|k| k.plan == plan && k.link.address == link.address);
            // A cable that was put back may lead to another network: everything is looked at again.
            let replugged = known.is_some_and(|k| !k.link.carrier) && link.carrier;
            // Tasks try again by themselves; what else failed is tried again after a pause.
            let retry = known.is_some_and(|k| k.retry_at.is_some_and(|at| at <= Instant::now()));
            let placed = controller_of(&plan, &links) == controller_that_is_ours(link, &links);
            if same && placed && !replugged && !retry && link.up {
                if let Some(known) = self.applied.get_mut(&link.index) {
                    known.link = link.clone();
                }
                continue;
            }
            self.apply(link.clone(), plan, &links).await;
        }
        Ok(())
    }

    /// Takes away made links that are not wanted (any more) as they are, and makes those that are missing. Whether
    /// anything changed.
    async fn make_links(&mut self, links: &[Link]) -> bool {
        let (mut changed, mut waiting) = (false, Vec::new());
        let mut there: Vec<Link> = links.to_vec();
        for link in links.iter().filter(|link| link.mark.is_some()) {
            let wanted = self
                .plans
                .made()
                .iter()
                .any(|made| made.name == link.name && Some(made.mark()) == link.mark);
            if !wanted {
                match self.kernel.unmake(link).await {
                    Ok(()) => there.retain(|other| other.index != link.index),
                    Err(error) => waiting.push((link.name.clone(), chain(&error))),
                }
                changed = true;
            }
        }
        let paused = self.make_again.is_some_and(|at| at > Instant::now());
        for made in self.plans.made() {
            if there
                .iter()
                .any(|link| link.name == made.name && link.mark.is_some())
            {
                continue;
            }
            let below = match &made.kind {
                MadeKind::Vlan { on, .. } => {
                    let found = there
                        .iter()
                        .find(|l| l.id(self.options.with_virtual).as_ref() == Some(on));
                    let Some(below) = found else {
                        waiting.push((made.name.clone(), format!("waits for the link `{on}`")));
                        continue;
                    };
                    Some(below.index)
                }
                _ => None,
            };
            if paused {
                waiting.extend(
                    self.reporter
                        .waiting
                        .iter()
                        .find(|(name, _)| *name == made.name)
                        .cloned(),
                );
                continue;
            }
            match self.kernel.make(made, below).await {
                Ok(()) => {
                    changed = true;
                    there = self.kernel.links().await.unwrap_or(there);
                }
                Err(error) if error.errno() == Some(EXISTS) => {
                    let words = "another link has this name already: choose another name".to_owned();
                    waiting.push((made.name.clone(), words));
                }
                Err(error) => waiting.push((made.name.clone(), chain(&error))),
            }
        }
        if !paused {
            self.make_again = (!waiting.is_empty()).then(|| Instant::now() + RETRY);
        }
        self.reporter.waiting = waiting;
        changed
    }

    async fn apply(&mut self, link: Link, plan: LinkPlan, links: &[Link]) {
        let before = self.applied.remove(&link.index);
        let mut applied = Applied {
            free: Vec::new(),
            tasks: Vec::new(),
            retry_at: None,
            troubles: BTreeMap::new(),
            advertised: before
                .as_ref()
                .map(|b| b.advertised.clone())
                .filter(|_| plan.slaac)
                .unwrap_or_default(),
            since: before.as_ref().map_or_else(Instant::now, |b| b.since),
            said: before.as_ref().and_then(|b| b.said.clone()),
            mtu_before: self.mtu_before.get(&link.name).copied(),
            // What was leased before stays until the server says otherwise: an interruption shorter than that breaks
            // no connection.
            lease: before
                .as_ref()
                .and_then(|b| b.lease.clone())
                .filter(|_| plan.dhcp),
            lease6: before
                .as_ref()
                .and_then(|b| b.lease6.clone())
                .filter(|_| plan.dhcp6),
            link,
            plan,
        };
        drop(before);
        if let Err(error) = self.bring(&mut applied, links).await {
            applied.troubles.insert(Trouble::Kernel, chain(&error));
            applied.retry_at = Some(Instant::now() + RETRY);
        }
        self.applied.insert(applied.link.index, applied);
    }

    async fn bring(&mut self, applied: &mut Applied, links: &[Link]) -> Result<(), KernelError> {
        let (link, plan) = (applied.link.clone(), applied.plan.clone());
        if link.loopback {
            return if link.up {
                Ok(())
            } else {
                self.kernel.set_up(&link).await
            };
        }
        let wanted = controller_of(&plan, links);
        if wanted != controller_that_is_ours(&link, links) {
            let bond = links
                .iter()
                .any(|other| Some(other.index) == wanted && is_bond(other));
            self.kernel.set_controller(&link, wanted, bond).await?;
            if bond {
                // It is switched on by the bond, and was off: the next look sees it.
                applied.link.up = true;
            }
        }
        accept_advertisements(&link, plan.slaac && plan.member_of.is_none());
        if !applied.link.up {
            self.kernel.set_up(&link).await?;
        }
        let there: Vec<Cidr> = self.kernel.addresses(link.index).await?;
        let (v4, v6): (Vec<Cidr>, Vec<Cidr>) = plan.addresses.iter().partition(|cidr| cidr.address.is_ipv4());
        let (held, new): (Vec<Cidr>, Vec<Cidr>) = v4.into_iter().partition(|cidr| there.contains(cidr));
        let leases = applied
            .lease
            .iter()
            .chain(&applied.lease6)
            .map(|lease| lease.address);
        let kept: Vec<Cidr> = held.iter().chain(&v6).copied().chain(leases).collect();
        self.kernel.keep_addresses(link.index, &kept, plan.slaac).await?;
        self.set_mtu(applied).await?;
        for cidr in v6 {
            // The kernel looks for other owners itself (RFC 4862).
            if !there.contains(&cidr) {
                self.kernel.add_address(&link, cidr).await?;
            }
        }
        for (cidrs, is_held) in [(held, true), (new, false)] {
            for cidr in cidrs {
                let IpAddr::V4(address) = cidr.address else {
                    continue;
                };
                if is_held {
                    applied.free.push(address);
                }
                // Without a cable nobody can be asked; it is asked when the cable comes.
                if is_held || link.carrier {
                    applied
                        .tasks
                        .push(watch_address(&link, address, is_held, self.sender.clone()));
                }
            }
        }
        if plan.slaac && plan.member_of.is_none() && link.carrier {
            applied.tasks.push(ra::spawn(&link, self.sender.clone()));
        }
        if plan.dhcp && link.carrier {
            applied.tasks.push(dhcp::spawn(&link, self.sender.clone()));
        }
        if plan.dhcp6 && link.carrier {
            applied
                .tasks
                .push(dhcp6::spawn(&link, self.kernel.clone(), self.sender.clone()));
        }
        keep_routes(&self.kernel, applied).await
    }

    /// The config's MTU, else the lease's, else the one that the link had before either.
    async fn set_mtu(&mut self, applied: &mut Applied) -> Result<(), KernelError> {
        let leased = applied.lease.as_ref().and_then(|lease| lease.mtu);
        let wanted = applied.plan.mtu.or(leased).or(applied.mtu_before);
        let Some(wanted) = wanted.filter(|wanted| *wanted != applied.link.mtu) else {
            return Ok(());
        };
        let before = *self
            .mtu_before
            .entry(applied.link.name.clone())
            .or_insert(applied.link.mtu);
        applied.mtu_before = Some(before);
        self.kernel.set_mtu(&applied.link, wanted).await?;
        applied.link.mtu = wanted;
        Ok(())
    }

    /// What a task reports.
    async fn take(&mut self, index: u32, report: Report) {
        let Some(mut applied) = self.applied.remove(&index) else {
            return;
        };
        let done = match report {
            Report::Leased(lease) if applied.plan.dhcp => {
                applied.troubles.remove(&Trouble::Dhcp);
                let same = applied.lease.as_ref() == Some(&lease);
                applied.lease = Some(lease);
                if same && self.has_lease(&applied).await {
                    Ok(())
                } else {
                    self.take_lease(&mut applied).await
                }
            }
            Report::Leased6(lease) if applied.plan.dhcp6 => {
                applied.troubles.remove(&Trouble::Dhcp6);
                applied.lease6 = Some(lease);
                self.take_lease(&mut applied).await
            }
            Report::Without(words) if applied.plan.dhcp => {
                applied.lease = None;
                applied.troubles.insert(Trouble::Dhcp, words);
                self.take_lease(&mut applied).await
            }
            Report::Without6(words) if applied.plan.dhcp6 => {
                applied.lease6 = None;
                applied.troubles.insert(Trouble::Dhcp6, words);
                self.take_lease(&mut applied).await
            }
            Report::Advertised(advertised) if applied.plan.slaac => {
                applied.advertised = advertised;
                Ok(())
            }
            Report::Free(address) if fixed(&applied.plan, address).is_some() => {
                applied.troubles.remove(&Trouble::Address(address));
                applied.free.push(address);
                self.take_lease(&mut applied).await
            }
            Report::Taken(address, words) if fixed(&applied.plan, address).is_some() => {
                applied.troubles.insert(Trouble::Address(address), words);
                applied.free.retain(|other| *other != address);
                self.take_lease(&mut applied).await
            }
            // Of a plan that has changed meanwhile.
            _ => Ok(()),
        };
        match done {
            Ok(()) => drop(applied.troubles.remove(&Trouble::Kernel)),
            Err(error) => {
                applied.troubles.insert(Trouble::Kernel, chain(&error));
                applied.retry_at = Some(Instant::now() + RETRY);
            }
        }
        self.applied.insert(index, applied);
    }

    async fn has_lease(&self, applied: &Applied) -> bool {
        let there = self
            .kernel
            .addresses(applied.link.index)
            .await
            .unwrap_or_default();
        applied.lease.iter().all(|lease| there.contains(&lease.address))
    }

    /// Brings addresses and routes to what may be used now.
    async fn take_lease(&mut self, applied: &mut Applied) -> Result<(), KernelError> {
        self.set_mtu(applied).await?;
        let leases = applied
            .lease
            .iter()
            .chain(&applied.lease6)
            .map(|lease| lease.address);
        let fixed = applied.plan.addresses.iter().copied();
        let usable: Vec<Cidr> = fixed
            .filter(|cidr| is_free(applied, cidr))
            .chain(leases)
            .collect();
        let there = self.kernel.addresses(applied.link.index).await?;
        for cidr in usable.iter().filter(|cidr| !there.contains(cidr)) {
            self.kernel.add_address(&applied.link, *cidr).await?;
        }
        self.kernel
            .keep_addresses(applied.link.index, &usable, applied.plan.slaac)
            .await?;
        keep_routes(&self.kernel, applied).await
    }
}

/// Milliseconds since the machine started, by CLOCK_BOOTTIME.
pub fn boot_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(Duration::from);
    now.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn is_bond(link: &Link) -> bool {
    link.mark
        .as_ref()
        .is_some_and(|mark| mark.starts_with("beemesh bond"))
}

/// The link that is wanted above, if it is there.
fn controller_of(plan: &LinkPlan, links: &[Link]) -> Option<u32> {
    let name = plan.member_of.as_ref()?;
    links
        .iter()
        .find(|link| link.mark.is_some() && link.name == *name)
        .map(|link| link.index)
}

/// The link above, if it was made here: what a program has put into its own bridge stays there.
fn controller_that_is_ours(link: &Link, links: &[Link]) -> Option<u32> {
    let controller = link.controller?;
    links
        .iter()
        .find(|other| other.index == controller && other.mark.is_some())
        .map(|other| other.index)
}

fn fixed(plan: &LinkPlan, address: Ipv4Addr) -> Option<&Cidr> {
    plan.addresses
        .iter()
        .find(|cidr| cidr.address == IpAddr::V4(address))
}

fn is_free(applied: &Applied, cidr: &Cidr) -> bool {
    match cidr.address {
        IpAddr::V4(v4) => applied.free.contains(&v4),
        IpAddr::V6(_) => true,
    }
}

/// Routes of the plan and of the leases that the addresses in use can reach.
async fn keep_routes(kernel: &Kernel, applied: &Applied) -> Result<(), KernelError> {
    let index = applied.link.index;
    let usable: Vec<Cidr> = applied
        .plan
        .addresses
        .iter()
        .copied()
        .filter(|cidr| is_free(applied, cidr))
        .collect();
    let leased: Vec<Cidr> = applied.lease.iter().map(|lease| lease.address).collect();
    let networks: Vec<Cidr> = usable.into_iter().chain(leased).collect();
    let reachable = |route: &Route| match route.via {
        Some(via @ IpAddr::V4(_)) => networks.iter().any(|cidr| cidr.contains(&via)),
        None if route.to.address.is_ipv4() => networks.iter().any(|cidr| cidr.address.is_ipv4()),
        _ => true,
    };
    let planned = applied.plan.routes.iter().copied().filter(reachable);
    // A server's routes may lead through each other, so they are taken as they are.
    let leased = applied
        .lease
        .iter()
        .flat_map(|lease| lease.routes.iter().copied());
    let numbered = planned.chain(leased).map(|route| {
        let standard = if route.to.address.is_ipv4() {
            METRIC.saturating_add(index)
        } else {
            METRIC6
        };
        Route {
            metric: Some(route.metric.unwrap_or(standard)),
            ..route
        }
    });
    kernel
        .keep_routes(&applied.link, &numbered.collect::<Vec<Route>>())
        .await
}

/// One task per fixed address: probes it, and watches over it for as long as the plan stands.
fn watch_address(link: &Link, address: Ipv4Addr, held: bool, reports: mpsc::Sender<(u32, Report)>) -> Task {
    let link = link.clone();
    Task::spawn(async move {
        let mut held = held;
        loop {
            let report = match Guard::open(&link, address, held) {
                // A link without ARP has nobody else on it.
                Ok(None) => {
                    let _ = reports.send((link.index, Report::Free(address))).await;
                    return;
                }
                Ok(Some(mut guard)) => loop {
                    match guard.next().await {
                        Ok(Verdict::Free) => {
                            if reports.send((link.index, Report::Free(address))).await.is_err() {
                                return;
                            }
                        }
                        Ok(Verdict::Conflict(mac)) => {
                            let other = mac_text(&mac);
                            break format!(
                                "{other} has the address `{address}` already: give this link another one"
                            );
                        }
                        Err(error) => break format!("failed to ask who has `{address}`: {error}"),
                    }
                },
                Err(error) => format!("failed to ask who has `{address}`: {error}"),
            };
            held = false;
            if reports
                .send((link.index, Report::Taken(address, report)))
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(CONFLICT).await;
        }
    })
}
