//! Which state each service came into, and when: the latest changes, for who watches them (`init/control`).
//!
//! Looks after every event, so that a state that lasts for a moment is told too. Invariants: at most [`CHANGES_KEPT`] are
//! kept; their numbers rise by one, so that who reads too seldom knows what it missed. Where the file cannot be written
//! (memory is full), the services go on.

use std::collections::VecDeque;

use beemesh_init_api::{CHANGES_KEPT, Changes, ServiceChange, path};
use beemesh_init_core::Init;

use crate::system;

/// The changes since the boot.
#[derive(Default)]
pub struct StateChanges {
    words: Vec<&'static str>,
    machine: &'static str,
    latest: VecDeque<ServiceChange>,
    number: u64,
    is_new: bool,
}

impl StateChanges {
    /// Notes what is different from the last look.
    pub fn look(&mut self, init: &Init, now_ms: u64) {
        self.words.resize(init.services().len(), "waiting");
        for (service, known) in init.services().iter().zip(&mut self.words) {
            let word = service.actual.word();
            if std::mem::replace(known, word) == word {
                continue;
            }
            self.number = self.number.saturating_add(1);
            self.is_new = true;
            if self.latest.len() >= CHANGES_KEPT {
                self.latest.pop_front();
            }
            self.latest.push_back(ServiceChange {
                number: self.number,
                name: service.spec.name.to_owned(),
                state: word.to_owned(),
                last_end: service.last_end.clone(),
                at_ms: now_ms,
            });
        }
        self.is_new |= std::mem::replace(&mut self.machine, init.word()) != init.word();
    }

    /// Tells them, if there are new ones.
    pub fn write(&mut self) {
        if std::mem::take(&mut self.is_new)
            && let Ok(text) = serde_json::to_string(&self.document())
        {
            let _ = system::write_atomically(path::CHANGES, &text);
        }
    }

    fn document(&self) -> Changes {
        Changes {
            machine: self.machine.to_owned(),
            latest: self.latest.iter().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_init_core::Event;
    use beemesh_init_core::ending::Ending;
    use beemesh_init_core::service::{Kind, ServiceSpec};

    #[test]
    fn every_state_is_told_once_in_order_and_old_ones_are_dropped_at_the_bound() {
        let mut init = Init::new(vec![ServiceSpec::new("x", "/x", Kind::Daemon)], 1);
        let mut changes = StateChanges::default();
        let mut now = 0;
        let mut step = |init: &mut Init, event| {
            now += 60_000;
            init.step(now, event);
            changes.look(init, now);
            changes.look(init, now);
            changes.document()
        };
        step(&mut init, Event::Booted);
        step(&mut init, Event::Started("x"));
        let told = step(&mut init, Event::Ended("x", Ending::Signalled(9)));
        let states: Vec<(u64, &str)> = told.latest.iter().map(|c| (c.number, c.state.as_str())).collect();
        assert_eq!(states, [(1, "starting"), (2, "running"), (3, "paused")]);
        let end = told.latest.last().and_then(|change| change.last_end.as_deref());
        assert_eq!(end, Some("was killed (signal 9)"));
        assert_eq!(told.machine, "degraded");
        for _ in 0..CHANGES_KEPT {
            step(&mut init, Event::Tick);
            step(&mut init, Event::Started("x"));
            step(&mut init, Event::Ended("x", Ending::Exited(1)));
        }
        let told = step(&mut init, Event::Tick);
        assert_eq!(told.latest.len(), CHANGES_KEPT);
        let numbers: Vec<u64> = told.latest.iter().map(|change| change.number).collect();
        let first = numbers.first().copied().unwrap_or(0);
        assert_eq!(numbers, (first..).take(CHANGES_KEPT).collect::<Vec<_>>());
        assert!(first > 100);
    }
}
