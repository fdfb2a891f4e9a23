//! When each phase of the boot was through. Carried over the switch of the root in the environment.
//!
//! Invariant: only phases that `init/core` lists, in the order in which they were carried out.

use beemesh_init_api::{PhaseTime, path};
use beemesh_init_core::boot::{INITRAMFS, Phase, ROOT};

use crate::driver::now_ms;
use crate::system;

/// `Phase=ms` for each, separated by blanks.
const VARIABLE: &str = "BEEMESH_BOOT_PHASES";

/// The phases that are through.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PhaseTimes(Vec<(Phase, u64)>);

impl PhaseTimes {
    /// Those of the program's life in the initramfs. What is malformed is passed over.
    pub fn inherited() -> Self {
        Self::parse(&std::env::var(VARIABLE).unwrap_or_default())
    }

    /// This phase is through now.
    pub fn ended(&mut self, phase: Phase) {
        self.0.push((phase, now_ms()));
    }

    /// For the environment of the next program.
    pub fn variable(&self) -> (&'static str, String) {
        let words: Vec<String> = self
            .0
            .iter()
            .map(|(phase, ms)| format!("{phase:?}={ms}"))
            .collect();
        (VARIABLE, words.join(" "))
    }

    /// Tells them. Only a view: where it cannot be written, the boot goes on.
    pub fn write(&self) {
        let told = self.0.iter().map(|(phase, ended_ms)| PhaseTime {
            phase: format!("{phase:?}"),
            ended_ms: *ended_ms,
        });
        if let Ok(text) = serde_json::to_string(&told.collect::<Vec<_>>()) {
            let _ = system::write_atomically(path::BOOT_PHASES, &text);
        }
    }

    fn parse(text: &str) -> Self {
        let known = |name: &str| {
            INITRAMFS
                .into_iter()
                .chain(ROOT)
                .find(|phase| format!("{phase:?}") == name)
        };
        let pairs = text.split(' ').filter_map(|word| word.split_once('='));
        Self(
            pairs
                .filter_map(|(name, ms)| Some((known(name)?, ms.parse().ok()?)))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outlive_the_switch_of_the_root_and_nonsense_does_not() {
        let times = PhaseTimes(vec![(Phase::MountApi, 5), (Phase::SwitchRoot, 900)]);
        assert_eq!(PhaseTimes::parse(&times.variable().1), times);
        assert_eq!(
            PhaseTimes::parse("MountApi=x Dance=3 =1 MountRoot=7"),
            PhaseTimes(vec![(Phase::MountRoot, 7)])
        );
    }
}
