//! A network config that is tried, and taken back by itself unless it is confirmed. Pure.
//!
//! The confirmed config lies on the state volume; a trial lies in RAM with the moment of its end. `beemesh-net` uses the
//! trial's config until that moment ([`in_use`]), whether the agent lives or not; the agent alone begins and confirms
//! ([`Trials`]). Invariants (tested below under random events): a trial past its end is never in use; after a reboot the
//! confirmed config is in use; only a confirmation changes the confirmed config, whatever dies in between.

use serde::{Deserialize, Serialize};

use crate::network::NetworkConfig;

/// Shortest trial, in milliseconds: a DHCP server needs some seconds.
pub const TRIAL_LEAST_MS: u64 = 5_000;
/// Longest trial, in milliseconds.
pub const TRIAL_MOST_MS: u64 = 3_600_000;

/// A config that is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkTrial {
    /// Names the trial: the id of the change that began it.
    pub id: String,
    /// The config.
    pub config: NetworkConfig,
    /// Until when it is in use, in milliseconds on CLOCK_BOOTTIME.
    pub until_ms: u64,
}

impl NetworkTrial {
    /// Milliseconds until it is taken back; `None`: it is over. An end further away than any trial is from another boot.
    #[must_use]
    pub fn remaining_ms(&self, now_ms: u64) -> Option<u64> {
        let left = self.until_ms.checked_sub(now_ms)?;
        (1..=TRIAL_MOST_MS).contains(&left).then_some(left)
    }
}

/// The config to use at `now_ms`, and the trial that it is from.
#[must_use]
pub fn in_use<'a>(
    confirmed: &'a NetworkConfig,
    trial: Option<&'a NetworkTrial>,
    now_ms: u64,
) -> (&'a NetworkConfig, Option<&'a NetworkTrial>) {
    let trial = trial.filter(|trial| trial.remaining_ms(now_ms).is_some());
    (trial.map_or(confirmed, |trial| &trial.config), trial)
}

/// What is asked of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialEvent {
    /// Try a config that was checked; it replaces a running trial.
    Try {
        /// Its id.
        id: String,
        /// The config.
        config: NetworkConfig,
        /// For how long.
        for_ms: u64,
    },
    /// Keep the config of the trial with this id.
    Confirm {
        /// Id of the trial.
        trial: String,
    },
    /// Time has passed.
    Tick,
}

/// What the agent does, in this order; where it dies in between, a later command is not needed for the invariants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrialCommand {
    /// Write the trial's document: it is in use from now on.
    WriteTrial(NetworkTrial),
    /// Make the config the confirmed one, durably, and hand it over.
    Keep(NetworkConfig),
    /// Remove the trial's document.
    RemoveTrial,
    /// The trial with this id was taken back: nobody confirmed it.
    TakenBack(String),
}

/// Why the agent does nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrialRefusal {
    /// Too short or too long.
    #[error("a trial of {0} ms is not possible: between 5s and 1h are")]
    Duration(u64),
    /// None runs.
    #[error("no trial runs: it was taken back or confirmed; try the config again")]
    NoTrial,
    /// Another one runs.
    #[error("another trial runs, `{0}`: somebody else has begun it")]
    OtherTrial(String),
}

/// The agent's side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trials {
    running: Option<NetworkTrial>,
}

impl Trials {
    /// Takes up what an earlier run of the agent has left in RAM.
    #[must_use]
    pub fn resume(document: Option<NetworkTrial>) -> Self {
        Self { running: document }
    }

    /// The trial that runs.
    #[must_use]
    pub fn running(&self, now_ms: u64) -> Option<&NetworkTrial> {
        self.running
            .as_ref()
            .filter(|trial| trial.remaining_ms(now_ms).is_some())
    }

    /// What to do.
    ///
    /// # Errors
    /// [`TrialRefusal`]; nothing has changed then.
    pub fn step(&mut self, now_ms: u64, event: TrialEvent) -> Result<Vec<TrialCommand>, TrialRefusal> {
        let mut commands = Vec::new();
        match event {
            TrialEvent::Try { id, config, for_ms } => {
                if !(TRIAL_LEAST_MS..=TRIAL_MOST_MS).contains(&for_ms) {
                    return Err(TrialRefusal::Duration(for_ms));
                }
                let until_ms = now_ms.saturating_add(for_ms);
                let trial = NetworkTrial { id, config, until_ms };
                self.running = Some(trial.clone());
                commands.push(TrialCommand::WriteTrial(trial));
            }
            TrialEvent::Confirm { trial } => {
                let running = self.running(now_ms).ok_or(TrialRefusal::NoTrial)?;
                if running.id != trial {
                    return Err(TrialRefusal::OtherTrial(running.id.clone()));
                }
                commands.push(TrialCommand::Keep(running.config.clone()));
                commands.push(TrialCommand::RemoveTrial);
                self.running = None;
            }
            TrialEvent::Tick => {
                let over = self.running.take_if(|trial| trial.remaining_ms(now_ms).is_none());
                if let Some(trial) = over {
                    commands.push(TrialCommand::RemoveTrial);
                    commands.push(TrialCommand::TakenBack(trial.id));
                }
            }
        }
        Ok(commands)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A config that can be told from others.
    fn config(number: u8) -> NetworkConfig {
        NetworkConfig {
            ntp: vec![format!("10.0.0.{number}")],
            ..NetworkConfig::default()
        }
    }

    #[derive(Debug, Clone)]
    enum Happening {
        Try {
            number: u8,
            for_ms: u64,
        },
        Confirm {
            newest: bool,
        },
        Tick,
        Pass(u64),
        /// The agent dies after so many commands of its next step, and comes back.
        AgentDies(usize),
        Reboot,
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            (1u8..200, 0u64..120_000).prop_map(|(number, for_ms)| Happening::Try { number, for_ms }),
            any::<bool>().prop_map(|newest| Happening::Confirm { newest }),
            Just(Happening::Tick),
            (0u64..90_000).prop_map(Happening::Pass),
            (0usize..3).prop_map(Happening::AgentDies),
            Just(Happening::Reboot),
        ]
    }

    /// The machine around: state volume, RAM, clock, and what a spectator expects.
    struct World {
        disk: NetworkConfig,
        ram: Option<NetworkTrial>,
        now: u64,
        agent: Trials,
        survives: Option<usize>,
        newest: String,
    }

    impl World {
        fn step(&mut self, event: TrialEvent) -> Result<usize, TrialRefusal> {
            let commands = self.agent.step(self.now, event)?;
            let most = self.survives.take().unwrap_or(usize::MAX);
            let done = commands.len().min(most);
            let died = done < commands.len();
            for command in commands.into_iter().take(most) {
                match command {
                    TrialCommand::WriteTrial(trial) => self.ram = Some(trial),
                    TrialCommand::Keep(config) => self.disk = config,
                    TrialCommand::RemoveTrial => self.ram = None,
                    TrialCommand::TakenBack(_) => {}
                }
            }
            if died {
                self.agent = Trials::resume(self.ram.clone());
            }
            Ok(done)
        }

        fn used(&self) -> NetworkConfig {
            in_use(&self.disk, self.ram.as_ref(), self.now).0.clone()
        }
    }

    proptest! {
        #[test]
        fn invariant_of_trials_under_any_order_of_events(happenings in prop::collection::vec(happening(), 1..60)) {
            let mut world = World {
                disk: config(0), ram: None, now: 1_000_000, agent: Trials::default(), survives: None, newest: String::new(),
            };
            for (index, happening) in happenings.into_iter().enumerate() {
                let (disk, used) = (world.disk.clone(), world.used());
                match happening {
                    Happening::Try { number, for_ms } => {
                        world.newest = index.to_string();
                        let event = TrialEvent::Try { id: index.to_string(), config: config(number), for_ms };
                        let possible = (TRIAL_LEAST_MS..=TRIAL_MOST_MS).contains(&for_ms);
                        match world.step(event) {
                            Ok(1) => prop_assert_eq!(world.used(), config(number)),
                            Ok(_) => prop_assert_eq!(world.used(), used),
                            Err(_) => prop_assert!(!possible),
                        }
                        prop_assert_eq!(&world.disk, &disk, "trying keeps nothing");
                    }
                    Happening::Confirm { newest } => {
                        let trial = if newest { world.newest.clone() } else { "other".to_owned() };
                        let running = world.ram.clone().filter(|t| t.remaining_ms(world.now).is_some());
                        match world.step(TrialEvent::Confirm { trial: trial.clone() }) {
                            Ok(0) => prop_assert_eq!(&world.disk, &disk),
                            Ok(_) => {
                                let running = running.expect("only a running trial can be confirmed");
                                prop_assert_eq!(&running.id, &trial);
                                prop_assert_eq!(&world.disk, &running.config);
                                prop_assert_eq!(world.used(), running.config);
                            }
                            Err(_) => {
                                prop_assert!(running.is_none_or(|t| t.id != trial));
                                prop_assert_eq!(&world.disk, &disk);
                            }
                        }
                    }
                    Happening::Tick => {
                        let _ = world.step(TrialEvent::Tick);
                        prop_assert_eq!(world.used(), used, "a tick alone changes nothing that is in use");
                        prop_assert_eq!(&world.disk, &disk);
                    }
                    Happening::Pass(ms) => {
                        world.now += ms;
                        let over = world.ram.as_ref().is_none_or(|t| t.until_ms <= world.now);
                        if over {
                            prop_assert_eq!(world.used(), world.disk.clone(), "without the agent's help");
                        }
                    }
                    Happening::AgentDies(after) => {
                        world.agent = Trials::resume(world.ram.clone());
                        world.survives = Some(after);
                    }
                    Happening::Reboot => {
                        world.ram = None;
                        world.now = 0;
                        world.agent = Trials::resume(None);
                        world.survives = None;
                        prop_assert_eq!(world.used(), world.disk.clone());
                    }
                }
            }
            world.now += TRIAL_MOST_MS + 1;
            prop_assert_eq!(world.used(), world.disk);
        }
    }

    #[test]
    fn trial_is_taken_back_once_and_cannot_be_confirmed_afterwards() {
        let mut trials = Trials::default();
        let begin = TrialEvent::Try {
            id: "A".into(),
            config: config(1),
            for_ms: 60_000,
        };
        assert_eq!(trials.step(1_000, begin).unwrap().len(), 1);
        assert_eq!(trials.step(60_999, TrialEvent::Tick), Ok(vec![]));
        let over = vec![TrialCommand::RemoveTrial, TrialCommand::TakenBack("A".into())];
        assert_eq!(trials.step(61_000, TrialEvent::Tick), Ok(over));
        assert_eq!(trials.step(61_001, TrialEvent::Tick), Ok(vec![]));
        let late = TrialEvent::Confirm { trial: "A".into() };
        assert_eq!(trials.step(61_002, late), Err(TrialRefusal::NoTrial));
    }

    #[test]
    fn document_of_another_boot_is_not_in_use() {
        let trial = NetworkTrial {
            id: "A".into(),
            config: config(1),
            until_ms: TRIAL_MOST_MS + 2_000,
        };
        assert_eq!(in_use(&config(0), Some(&trial), 1_000).1, None);
        assert_eq!(in_use(&config(0), Some(&trial), 3_000).1, Some(&trial));
    }
}
