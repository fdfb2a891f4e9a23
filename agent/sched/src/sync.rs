//! Anti-entropy: members and changes that one node knows and another does not.
//!
//! It verifies nothing: what came from a node goes to the driver first. Invariant: each list and each memory is bounded.

use crate::cell::Cell;
use crate::desired::{ChangeRefused, MAX_ENVELOPE};
use crate::model::{Command, Record};
use crate::wire::Message;
use beemesh_agent_api::{Change, WorkloadId};
use beemesh_ids::PeerId;
use std::collections::{BTreeMap, BTreeSet};

/// Names in one list of members or workloads.
pub(crate) const MAX_LIST: usize = 4096;
/// Ages of changes that are being verified; at the bound they are forgotten, and count from their arrival.
const MAX_AGES: usize = 1024;

impl Cell {
    pub(crate) fn on_roster(&mut self, from: &PeerId, theirs: &[PeerId]) {
        let theirs: BTreeSet<&PeerId> = theirs.iter().take(MAX_LIST).collect();
        let mine: BTreeSet<&PeerId> = self.roster.all().map(|(peer, _)| peer).collect();
        let wanted: Vec<PeerId> = theirs.difference(&mine).map(|peer| (*peer).clone()).collect();
        let unknown_there = mine.difference(&theirs).next().is_some();
        if !wanted.is_empty() {
            self.send(from, Message::MembersWanted(wanted));
        }
        if unknown_there && self.may_exchange(from, "roster") {
            let peers = self.roster.all().map(|(peer, _)| peer.clone()).collect();
            self.send(from, Message::Roster(peers));
        }
    }

    pub(crate) fn on_changes(&mut self, from: &PeerId, theirs: Vec<(WorkloadId, String)>) {
        let mut wanted = Vec::new();
        let theirs: BTreeMap<WorkloadId, String> = theirs.into_iter().take(MAX_LIST).collect();
        for (workload, id) in &theirs {
            if self
                .desired
                .get(workload)
                .is_none_or(|entry| entry.change.id < *id)
            {
                wanted.push(workload.clone());
            }
        }
        if !wanted.is_empty() {
            self.send(from, Message::ChangesWanted(wanted));
        }
        let newer: Vec<WorkloadId> = self
            .desired
            .iter()
            .filter(|(workload, entry)| theirs.get(*workload).is_none_or(|id| *id < entry.change.id))
            .map(|(workload, _)| workload.clone())
            .collect();
        for workload in newer {
            self.send_envelope(from, &workload);
        }
    }

    pub(crate) fn on_envelope(&mut self, id: String, age_ms: u64, envelope: Vec<u8>) {
        if envelope.len() > MAX_ENVELOPE || self.desired.iter().any(|(_, entry)| entry.change.id == id) {
            return;
        }
        if self.ages.len() >= MAX_AGES {
            self.ages.clear();
        }
        let at = self.now.before(age_ms);
        self.ages.insert(id.chars().take(40).collect(), at);
        self.out.push(Command::VerifyChange { envelope });
    }

    pub(crate) fn on_change(&mut self, change: Change, envelope: Vec<u8>) {
        let gossiped = self.ages.remove(&change.id);
        let at = gossiped.unwrap_or(self.now);
        let workload = change.workload.clone();
        let deleted = change.spec.is_none();
        match self.desired.apply(change.clone(), envelope.clone(), at) {
            Ok(true) => {}
            Ok(false) | Err(ChangeRefused::Stale { .. }) => return,
            Err(refused) => {
                let cause =
                    std::error::Error::source(&refused).map_or(String::new(), |cause| format!(": {cause}"));
                let message = format!("a change to `{workload}` was not taken: {refused}{cause}");
                return self.emit("ChangeRefused", format!("workload/{workload}"), message);
            }
        }
        self.out.push(Command::Persist(Record::Change(change, envelope)));
        let what = if deleted {
            "its deletion".to_owned()
        } else {
            "its specification".to_owned()
        };
        let message = format!("workload `{workload}`: {what} was accepted");
        self.emit("ChangeAccepted", format!("workload/{workload}"), message);
        let peers: Vec<PeerId> = self.connected.iter().cloned().collect();
        // Only who took it in hands it to all; whoever does not hear it asks after the next heartbeat.
        if gossiped.is_none() {
            for peer in peers {
                self.send_envelope(&peer, &workload);
            }
        }
        self.placer_forgets(&workload);
        self.scan_due = true;
    }
}
