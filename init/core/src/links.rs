//! Which block devices need their links below `/dev/disk` made or taken away. The links themselves are made by a child,
//! which reads the disk: one that does not answer holds up its own links and nobody else's.
//!
//! Invariants: at most [`JOBS_LIMIT`] children at a time, at most [`DEVICES_LIMIT`] devices; when all children have ended and
//! nothing more happens, the devices that are there have their links, and no others.

use std::collections::BTreeSet;

use crate::machine::{Command, Job};

/// Block devices that get links; more get none until one goes away.
pub(crate) const DEVICES_LIMIT: usize = 256;
/// Children at the same time.
pub(crate) const JOBS_LIMIT: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Links {
    known: BTreeSet<String>,
    there: BTreeSet<String>,
    gone: BTreeSet<String>,
    /// Some child makes the links of these.
    linking: BTreeSet<String>,
    /// Some child takes away the links of these.
    unlinking: BTreeSet<String>,
    jobs: usize,
}

impl Links {
    /// It has come, or something about it is new.
    pub(crate) fn appeared(&mut self, device: &str) {
        // Memory, and files that play disk: nobody looks for those by name, and each would cost a look at the boot.
        if ["loop", "ram", "zram"]
            .iter()
            .any(|kind| device.starts_with(kind))
        {
            return;
        }
        if self.known.contains(device) || self.known.len() < DEVICES_LIMIT {
            self.known.insert(device.to_owned());
            self.there.insert(device.to_owned());
        }
    }

    pub(crate) fn vanished(&mut self, device: &str) {
        self.there.remove(device);
        if self.known.remove(device) {
            self.gone.insert(device.to_owned());
        }
    }

    /// All that is there, after events were lost. What was known is looked at again: the events may have said that it is
    /// another.
    pub(crate) fn reconcile(&mut self, present: &BTreeSet<String>) {
        let gone: Vec<String> = self.known.difference(present).cloned().collect();
        gone.iter().for_each(|device| self.vanished(device));
        present.iter().for_each(|device| self.appeared(device));
    }

    /// What a child shall do now: take links away, which never waits for a disk, or make some. Who came back waits until
    /// its former links are gone.
    pub(crate) fn take(&mut self) -> Option<Command> {
        if self.jobs >= JOBS_LIMIT {
            return None;
        }
        let gone: Vec<String> = self.gone.difference(&self.unlinking).cloned().collect();
        let mut there = Vec::new();
        if gone.is_empty() {
            let free =
                |device: &&String| !self.linking.contains(*device) && !self.unlinking.contains(*device);
            there = self.there.iter().filter(free).cloned().collect();
        }
        if gone.is_empty() && there.is_empty() {
            return None;
        }
        self.jobs += 1;
        self.gone.retain(|device| !gone.contains(device));
        self.there.retain(|device| !there.contains(device));
        self.unlinking.extend(gone.iter().cloned());
        self.linking.extend(there.iter().cloned());
        Some(Command::Run(Job::LinkDevices { there, gone }))
    }

    /// The child has ended that made the links of some, or took away those of others.
    pub(crate) fn ended(&mut self, there: &[String], gone: &[String]) {
        self.jobs = self.jobs.saturating_sub(1);
        self.unlinking.retain(|device| !gone.contains(device));
        for device in there {
            self.linking.remove(device);
            // It went away in the meantime, and its links may have been made after that.
            if !self.known.contains(device) {
                self.gone.insert(device.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job(command: Option<Command>) -> (Vec<String>, Vec<String>) {
        match command {
            Some(Command::Run(Job::LinkDevices { there, gone })) => (there, gone),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn devices_that_come_together_share_a_child_and_one_that_hangs_keeps_no_other_waiting() {
        let mut links = Links::default();
        links.appeared("sda");
        links.appeared("sdb");
        assert_eq!(job(links.take()).0, ["sda", "sdb"]);
        assert_eq!(links.take(), None);
        // Another medium in one of them, while the child still reads.
        links.appeared("sda");
        assert_eq!(links.take(), None, "it is being looked at");
        links.appeared("sdc");
        assert_eq!(job(links.take()).0, ["sdc"]);
        links.ended(&["sda".to_owned(), "sdb".to_owned()], &[]);
        assert_eq!(job(links.take()).0, ["sda"], "and now again");
    }

    #[test]
    fn device_that_goes_while_a_child_reads_it_loses_what_the_child_makes_afterwards() {
        let mut links = Links::default();
        links.appeared("sda");
        let (there, _) = job(links.take());
        links.vanished("sda");
        assert_eq!(job(links.take()).1, ["sda"]);
        links.ended(&[], &["sda".to_owned()]);
        links.ended(&there, &[]);
        assert_eq!(job(links.take()).1, ["sda"]);
    }

    proptest! {
        #[test]
        fn invariant_in_the_end_those_that_are_there_have_links_and_no_others(
            acts in proptest::collection::vec((0u8..4, 0u8..8, any::<u8>()), 0..200),
        ) {
            let (mut links, mut present) = (Links::default(), BTreeSet::new());
            // What lies below /dev/disk: each child works at some moment before it is said to have ended.
            let mut linked = BTreeSet::new();
            let mut running: Vec<(Vec<String>, Vec<String>)> = Vec::new();
            let end = |links: &mut Links, linked: &mut BTreeSet<String>, (there, gone): (Vec<String>, Vec<String>)| {
                gone.iter().for_each(|device| { linked.remove(device); });
                linked.extend(there.iter().cloned());
                links.ended(&there, &gone);
            };
            for (act, device, which) in acts {
                let device = format!("sd{device}");
                match act {
                    0 => { present.insert(device.clone()); links.appeared(&device); }
                    1 => { present.remove(&device); links.vanished(&device); }
                    2 if !running.is_empty() => {
                        let job = running.remove(usize::from(which) % running.len());
                        end(&mut links, &mut linked, job);
                    }
                    3 => links.reconcile(&present),
                    _ => {}
                }
                if let Some(command) = links.take() {
                    running.push(job(Some(command)));
                }
                prop_assert!(running.len() <= JOBS_LIMIT);
                let busy: Vec<&String> = running.iter().flat_map(|(there, _)| there).collect();
                prop_assert!(running.iter().all(|(there, gone)| there.is_empty() || gone.is_empty()));
                prop_assert_eq!(busy.len(), busy.iter().collect::<BTreeSet<_>>().len(), "two children, one device");
            }
            loop {
                if let Some(command) = links.take() {
                    running.push(job(Some(command)));
                }
                let Some(job) = running.pop() else { break };
                end(&mut links, &mut linked, job);
            }
            prop_assert_eq!(linked, present);
        }

        #[test]
        fn invariant_devices_are_bounded(count in 0usize..600) {
            let mut links = Links::default();
            (0..count).for_each(|number| links.appeared(&format!("sd{number}")));
            prop_assert!(links.known.len() <= DEVICES_LIMIT && links.there.len() <= DEVICES_LIMIT);
        }
    }
}
