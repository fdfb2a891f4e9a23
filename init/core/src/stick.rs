//! Which stick is mounted. A device is probed by a child, since a broken stick can block a read for minutes; the
//! child mounts what carries the label.
//!
//! The newest stick counts: it is mounted over the one before, which was read already. What was mounted once is not
//! announced again until it is taken out and put in again.
//!
//! Invariant: at most one stick is announced, and `generation` rises with each change that the agent sees.

use std::collections::{BTreeMap, BTreeSet};

use crate::machine::{Command, Job, Outcome};

/// Block devices that are remembered; more are ignored until one goes away.
pub(crate) const DEVICES_LIMIT: usize = 256;
/// Probes at the same time; the others wait.
pub(crate) const PROBES_LIMIT: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Due,
    Running,
    Done,
}

#[derive(Debug, Default)]
pub(crate) struct Sticks {
    devices: BTreeMap<String, Probe>,
    mounted: Option<String>,
    unmounting: bool,
    generation: u64,
}

impl Sticks {
    /// Kinds of block device that no person plugs in.
    fn is_worth_probing(device: &str) -> bool {
        let kinds = ["loop", "ram", "dm-", "md", "nbd", "zram", "sr", "fd", "mtdblock"];
        !kinds.iter().any(|kind| device.starts_with(kind))
    }

    pub(crate) fn appeared(&mut self, device: &str) -> Vec<Command> {
        if Self::is_worth_probing(device) && self.devices.len() < DEVICES_LIMIT {
            self.devices.entry(device.to_owned()).or_insert(Probe::Due);
        }
        self.probe()
    }

    /// The medium in `device` is another.
    pub(crate) fn changed(&mut self, device: &str) -> Vec<Command> {
        if self.mounted.as_deref() == Some(device) {
            let mut commands = self.vanished(device);
            commands.extend(self.appeared(device));
            return commands;
        }
        match self.devices.get_mut(device) {
            Some(probe) if *probe == Probe::Done => *probe = Probe::Due,
            Some(_) => {}
            None => return self.appeared(device),
        }
        self.probe()
    }

    pub(crate) fn vanished(&mut self, device: &str) -> Vec<Command> {
        self.devices.remove(device);
        if self.mounted.as_deref() != Some(device) {
            return Vec::new();
        }
        self.mounted = None;
        self.unmounting = true;
        self.generation += 1;
        vec![
            Command::Run(Job::UnmountStick),
            Command::WriteStick {
                generation: self.generation,
                device: None,
            },
            Command::Say("beemesh: the USB stick was taken out".to_owned()),
        ]
    }

    /// All that is there after events were lost.
    pub(crate) fn reconcile(&mut self, present: &BTreeSet<String>) -> Vec<Command> {
        let known: Vec<String> = self
            .devices
            .keys()
            .filter(|d| !present.contains(*d))
            .cloned()
            .collect();
        let mut commands: Vec<Command> = known.iter().flat_map(|device| self.vanished(device)).collect();
        for device in present {
            commands.extend(self.appeared(device));
        }
        commands
    }

    pub(crate) fn probed(&mut self, device: &str, outcome: Outcome) -> Vec<Command> {
        let known = self
            .devices
            .get_mut(device)
            .map(|probe| *probe = Probe::Done)
            .is_some();
        if outcome != Outcome::Done {
            let mut commands = self.probe();
            if outcome == Outcome::Failed && known {
                commands.push(Command::Say(format!(
                    "beemesh: the join stick ({device}) cannot be read: it is damaged, or no genuine one; write it again, or use \
                     another"
                )));
            }
            return commands;
        }
        if !known {
            // It went away while it was being mounted: nobody was told of it yet. What lies below goes with it, and is
            // looked for again.
            self.unmounting = true;
            let mut commands = vec![Command::Run(Job::UnmountStick)];
            if let Some(below) = self.mounted.take() {
                self.devices.entry(below).and_modify(|probe| *probe = Probe::Due);
                self.generation += 1;
                commands.push(Command::WriteStick {
                    generation: self.generation,
                    device: None,
                });
            }
            return commands;
        }
        self.mounted = Some(device.to_owned());
        self.generation += 1;
        vec![
            Command::WriteStick {
                generation: self.generation,
                device: Some(format!("/dev/{device}")),
            },
            Command::Say(format!("beemesh: found a join stick ({device})")),
        ]
    }

    pub(crate) fn unmounted(&mut self) -> Vec<Command> {
        self.unmounting = false;
        self.probe()
    }

    fn probe(&mut self) -> Vec<Command> {
        if self.unmounting {
            return Vec::new();
        }
        let running = self
            .devices
            .values()
            .filter(|probe| **probe == Probe::Running)
            .count();
        let free = PROBES_LIMIT.saturating_sub(running);
        let mut commands = Vec::new();
        for (device, probe) in self
            .devices
            .iter_mut()
            .filter(|(_, probe)| **probe == Probe::Due)
            .take(free)
        {
            *probe = Probe::Running;
            commands.push(Command::Run(Job::MountStick(device.clone())));
        }
        commands
    }
}
