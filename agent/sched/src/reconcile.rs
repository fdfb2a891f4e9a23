//! What this node holds and should not, or not so: deleted, superseded, of an older template.
//!
//! It starts nothing. Invariant: what was never heard of is not stopped.

use crate::cell::Cell;
use crate::model::Key;
use crate::wire::Stage;

impl Cell {
    /// Drains what this node should not hold: not wanted, superseded, or of an older template when its turn has come.
    pub(crate) fn reconcile_own(&mut self) {
        let keys: Vec<Key> = self.holdings.keys().cloned().collect();
        for key in keys {
            let Some(holding) = self
                .holdings
                .get(&key)
                .filter(|holding| holding.stage != Stage::Draining)
            else {
                continue;
            };
            let (token, stage, template, ready) = (
                holding.token,
                holding.stage,
                holding.template,
                holding.report.ready,
            );
            // A workload that was never heard of is not stopped: the change may still be on its way.
            let Some(wanted) = self.desired.wants(&key.0, key.1) else {
                continue;
            };
            if !wanted {
                let gone = self
                    .desired
                    .get(&key.0)
                    .is_some_and(|entry| entry.spec().is_none());
                let why = if gone {
                    "its workload was deleted"
                } else {
                    "the workload has fewer replicas now"
                };
                self.drain(&key, why, None);
                continue;
            }
            let rival = self.views.holders(&key).find(|(peer, pod)| {
                pod.stage == Stage::Running
                    && self.membership.is_up(peer)
                    && (pod.token, *peer) > (token, &self.config.me)
            });
            if let Some((peer, _)) = rival.filter(|_| stage == Stage::Running) {
                let why = format!("node `{}` holds it by a higher token", self.roster.name(peer));
                self.drain(&key, &why, None);
                continue;
            }
            let newest = self.desired.get(&key.0).map_or(template, |entry| entry.template);
            if template != newest && (stage == Stage::Claiming || !ready || self.is_turn_of(&key, newest)) {
                self.drain(&key, "the workload has a new specification", None);
            }
        }
    }

    /// Whether all higher ordinals run the newest template: ordinals are replaced one at a time, from the highest down.
    fn is_turn_of(&self, key: &Key, newest: u64) -> bool {
        let replicas = self
            .desired
            .get(&key.0)
            .and_then(|entry| entry.spec())
            .map_or(0, |spec| spec.replicas);
        (key.1 + 1..replicas).all(|ordinal| {
            let copies = self.copies(&(key.0.clone(), ordinal));
            copies
                .iter()
                .any(|(_, pod)| pod.stage == Stage::Running && pod.template == newest && pod.report.ready)
        })
    }
}
