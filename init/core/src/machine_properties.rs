//! Claims about the machine: invariants over random events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Wait(u64),
    Device(u8, u8),
    Alias(u8),
    Lost,
    JobDone(u8, bool),
    /// The oldest start is answered; `true`: the program runs.
    Answer(bool),
    Die(u8, i32),
    Notice(u8, u8),
    Down(bool),
    Nobody,
    Demand,
    /// The control service passes on a wish, if it runs.
    Ask(u8, u8),
    Watchdog(u8),
    /// The opening of a watchdog is answered; `true`: it works.
    WatchdogAnswer(bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop_oneof![9 => 0u64..3_000, 1 => 0u64..200_000].prop_map(Act::Wait),
        4 => (0u8..3, 0u8..6).prop_map(|(a, d)| Act::Device(a, d)),
        2 => (0u8..20).prop_map(Act::Alias),
        1 => Just(Act::Lost),
        6 => (any::<u8>(), any::<bool>()).prop_map(|(n, ok)| Act::JobDone(n, ok)),
        8 => prop_oneof![9 => Just(true), 1 => Just(false)].prop_map(Act::Answer),
        4 => (0u8..5, -2i32..2).prop_map(|(s, c)| Act::Die(s, c)),
        4 => (0u8..5, 0u8..9).prop_map(|(s, n)| Act::Notice(s, n)),
        1 => any::<bool>().prop_map(Act::Down),
        1 => Just(Act::Nobody),
        1 => Just(Act::Demand),
        4 => (0u8..5, 0u8..3).prop_map(|(s, w)| Act::Ask(s, w)),
        1 => (0u8..4).prop_map(Act::Watchdog),
        2 => any::<bool>().prop_map(Act::WatchdogAnswer),
    ]
}

const NOTICES: [&str; 9] = [
    "READY=1",
    "READY=1\nSTATUS=up",
    "WATCHDOG=1",
    "WATCHDOG=1",
    "WATCHDOG=trigger",
    "STOPPING=1",
    "EXTEND_TIMEOUT_USEC=9000000",
    "EXTEND_TIMEOUT_USEC=18446744073709551615\nWATCHDOG_USEC=18446744073709551615",
    "WATCHDOG_USEC=1000000",
];

/// A driver that does what it is told and checks what must always hold.
struct World {
    init: Init,
    now: u64,
    starting: Vec<&'static str>,
    alive: BTreeMap<&'static str, bool>,
    jobs: Vec<Job>,
    generation: u64,
    shutdown_at: Option<u64>,
    finished: u32,
    disks_ms: u64,
    disks_until: u64,
    /// Was asked to be stopped, and has stopped, and not been asked for since.
    stopped: BTreeSet<&'static str>,
    opening: bool,
    held: bool,
    /// Since when the agent has been neither ready nor waiting.
    unwell_since: Option<u64>,
}

impl World {
    fn feed(&mut self, event: Event) {
        let before_down = self.shutdown_at.is_some();
        let lost = self
            .unwell_since
            .is_some_and(|since| self.now - since >= VITAL_MS);
        if matches!(event, Event::ShutdownAsked(_)) && self.shutdown_at.is_none() {
            self.shutdown_at = Some(self.now);
        }
        let commands = self.init.step(self.now, event);
        for command in commands {
            assert_eq!(self.finished, 0, "{command:?} after the end");
            match command {
                Command::Start(name) => {
                    assert!(!before_down, "`{name}` started on the way down");
                    assert!(!self.stopped.contains(name), "`{name}` started against a wish");
                    assert!(
                        !self.starting.contains(&name) && !self.alive.contains_key(name),
                        "`{name}` runs twice"
                    );
                    self.starting.push(name);
                }
                Command::Run(job) => {
                    assert!(!before_down, "{job:?} on the way down");
                    self.jobs.push(job);
                    let mounts = self
                        .jobs
                        .iter()
                        .filter(|j| matches!(j, Job::MountStick(_)))
                        .count();
                    assert!(mounts <= 2 * crate::stick::PROBES_LIMIT);
                }
                Command::WriteStick { generation, .. } => {
                    assert_eq!(generation, self.generation + 1);
                    self.generation = generation;
                }
                Command::Terminate(name) | Command::Kill(name) => {
                    assert!(
                        self.alive.contains_key(name),
                        "signal for `{name}`, which does not run"
                    );
                    if matches!(command, Command::Kill(_)) {
                        self.alive.insert(name, true);
                    }
                }
                Command::Finish { disks_ms, .. } => {
                    self.finished += 1;
                    self.disks_ms = disks_ms;
                    self.disks_until = self.now + disks_ms;
                }
                Command::Say(line) if line.contains("this machine starts again") => {
                    assert!(lost && !before_down, "{line}");
                    self.shutdown_at = Some(self.now);
                }
                Command::OpenWatchdog(_) => {
                    assert!(!self.held && !std::mem::replace(&mut self.opening, true));
                }
                // The last one begins the way down.
                Command::PetWatchdog => {
                    assert!(self.held && !before_down);
                    assert!(!lost || self.shutdown_at == Some(self.now));
                }
                _ => {}
            }
        }
        let agent = &self.init.services()[3];
        match agent.actual {
            Actual::Waiting | Actual::Running { ready: true, .. } => self.unwell_since = None,
            _ => drop(self.unwell_since.get_or_insert(self.now)),
        }
        self.invariant_deadlines_hold();
        if self.held && self.shutdown_at.is_none() {
            let next = self.init.watchdog.deadline_ms().unwrap();
            assert!(next > self.now && next <= self.now + 15_000, "no sign of life");
        }
    }

    /// Nothing that should have been killed or started by now was passed over, and a oneshot is not tried for ever.
    fn invariant_deadlines_hold(&self) {
        if self.finished > 0 {
            return;
        }
        for service in self.init.services() {
            let overdue = service.deadline_ms().is_some_and(|at| at <= self.now);
            assert!(!overdue, "{:?} at {}", service.actual, self.now);
            assert!(
                service.spec.kind == Kind::Daemon || service.restarts < u64::from(ONESHOT_ATTEMPTS),
                "{service:?}"
            );
            if let Actual::Running {
                ready: true,
                kill_at_ms,
                ..
            } = service.actual
            {
                assert_eq!(kill_at_ms.is_some(), service.spec.watchdog_ms.is_some());
            }
        }
    }

    fn apply(&mut self, act: Act) {
        let names = ["net", "unlock", "agent", "logd", "control"];
        match act {
            Act::Wait(ms) => {
                self.now += ms;
                self.feed(Event::Tick);
            }
            Act::Device(action, device) => {
                let action = [Action::Add, Action::Remove, Action::Change][usize::from(action)];
                self.feed(block(action, &format!("sd{device}")));
            }
            Act::Alias(n) => self.feed(modalias(&format!("usb:v{n}"))),
            Act::Lost => self.feed(Event::UeventsLost),
            Act::JobDone(n, ok) if !self.jobs.is_empty() => {
                let job = self.jobs.remove(usize::from(n) % self.jobs.len());
                self.feed(Event::JobEnded(
                    job,
                    if ok { Outcome::Done } else { Outcome::Nothing },
                ));
            }
            Act::Answer(runs) if !self.starting.is_empty() => {
                let name = self.starting.remove(0);
                if runs {
                    self.alive.insert(name, false);
                    self.feed(Event::Started(name));
                } else {
                    let ending = [Ending::NotStarted(2), Ending::StillPopulated];
                    let which = usize::from(self.now.is_multiple_of(2));
                    self.feed(Event::Ended(name, ending[which]));
                }
            }
            Act::Die(service, code) => {
                let name = names[usize::from(service)];
                if self.alive.remove(name).is_some() {
                    let ending = match code {
                        -2 => Ending::OutOfMemory(None),
                        -1 => Ending::Signalled(9),
                        code => Ending::Exited(code),
                    };
                    self.feed(Event::Ended(name, ending));
                }
            }
            Act::Notice(service, which) => {
                let name = names[usize::from(service)];
                // The driver passes on nothing that comes from elsewhere than the service's processes.
                if self.alive.contains_key(name) {
                    self.feed(notice(name, NOTICES[usize::from(which)]));
                }
            }
            Act::Down(reboot) => {
                self.feed(Event::ShutdownAsked(if reboot {
                    Shutdown::Reboot
                } else {
                    Shutdown::PowerOff
                }));
            }
            Act::Demand => self.feed(Event::Demanded("control")),
            Act::Ask(service, wish) if self.alive.contains_key("control") => {
                let name = names[usize::from(service)];
                let word = ["start", "stop", "restart"][usize::from(wish)];
                if ["net", "agent", "logd"].contains(&name) && self.shutdown_at.is_none() {
                    if word == "stop" {
                        self.stopped.insert(name);
                    } else {
                        self.stopped.remove(name);
                    }
                }
                self.feed(asks(&format!("{word} {name}")));
            }
            Act::Nobody if self.alive.is_empty() && self.starting.is_empty() => self.feed(Event::NoChildren),
            Act::Watchdog(number) => self.feed(watchdog(&format!("watchdog{number}"))),
            Act::WatchdogAnswer(works) if std::mem::take(&mut self.opening) => {
                self.held = works;
                self.feed(if works {
                    opened(false)
                } else {
                    Event::WatchdogRefused
                });
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn invariant_no_order_of_events_breaks_the_machine(acts in proptest::collection::vec(act(), 0..120)) {
        let mut world = World {
            init: Init::new(product_services(), 3),
            now: 0,
            starting: Vec::new(),
            alive: BTreeMap::new(),
            jobs: Vec::new(),
            generation: 0,
            shutdown_at: None,
            finished: 0,
            disks_ms: 0,
            disks_until: 0,
            stopped: BTreeSet::new(),
            opening: false,
            held: false,
            unwell_since: None,
        };
        world.feed(Event::Booted);
        for act in acts {
            world.apply(act);
        }
        // Whatever state that left, and though nothing answers any more: a shutdown ends, once, within its bound.
        world.feed(Event::ShutdownAsked(Shutdown::PowerOff));
        let asked = world.shutdown_at.unwrap();
        let left_alone_at = world.now;
        let mut ticks = 0;
        while let Some(due) = world.init.deadline_ms() {
            world.now = world.now.max(due);
            world.feed(Event::Tick);
            ticks += 1;
            prop_assert!(ticks < 100, "the clock spins at {}", world.now);
        }
        prop_assert_eq!(world.finished, 1);
        prop_assert!((LEAST_DISKS_MS..=DISKS_UNTIL_MS).contains(&world.disks_ms));
        // The bound that is promised, where the clock was not left alone for long.
        if left_alone_at <= asked + LIMIT_MS {
            prop_assert!(world.disks_until <= asked + 30_000);
        }
        prop_assert!(world.now <= left_alone_at.max(asked + LIMIT_MS) + AFTER_KILL_MS);
    }
}
