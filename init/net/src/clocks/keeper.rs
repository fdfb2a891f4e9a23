//! What the system clock should show: pure. Readings in, commands out.
//!
//! The floor is what is certainly past (build of the image, packs, signed records, what was persisted); the ceiling is
//! [`CEILING`] after it. Invariants (tested below under random events): the clock is never set outside of floor and
//! ceiling, whatever the RTC, a server or members say; the floor never falls; once a server was heard, a large step needs
//! two answers that agree, and so it is with the members' median, which counts while no server answers.

use std::net::IpAddr;

use beemesh_init_api::time::{PeerTime, PeersHeard, RtcState, TimeSource};

/// How far after the floor a time is believed, in seconds: ten years. A box may lie in a store for some of them; an RTC
/// of 2099 or a server of another epoch is beyond.
pub const CEILING: i64 = 10 * 365 * 86_400;
/// Up to here the clock is made faster or slower, beyond it is set, in microseconds (RFC 5905: STEPT, 128 ms).
pub const STEP_US: i64 = 128_000;
/// Two answers agree when they are this close, in microseconds.
const AGREE_US: i64 = 1_000_000;
/// First pause after a failure, in milliseconds; it doubles.
const RETRY_MS: u64 = 2_000;
/// First pause after an answer, in milliseconds; it doubles (RFC 5905: MINPOLL, 2^6 s).
const POLL_MS: u64 = 64_000;
/// Longest pause, in milliseconds (RFC 5905: MAXPOLL is 2^17 s; 2^10 is the default of most clients).
const POLL_MOST_MS: u64 = 1_024_000;
/// How often the RTC is brought to a time that a server vouches for, in milliseconds.
const RTC_MS: u64 = 3_600_000;
/// A server that was heard is better than the members for this long, in milliseconds: three of the longest pauses.
const SERVER_MS: u64 = 3 * POLL_MOST_MS;
/// What members said this long ago is not used, in milliseconds.
const PEERS_MS: u64 = 600_000;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The program starts; the RTC shows this, in seconds since the Unix epoch.
    Start {
        /// `None`: there is none or it cannot be read.
        rtc: Option<i64>,
    },
    /// Something trusted vouches for this time, in seconds.
    Floor(i64),
    /// A server has answered.
    Heard {
        /// Which.
        server: IpAddr,
        /// Its time is so many microseconds ahead.
        offset_us: i64,
    },
    /// It has not, or not with a time.
    Unheard,
    /// The agent has the median of the members' clocks.
    Peers(PeerTime),
}

/// What to do with the clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Set the system clock, in microseconds since the Unix epoch.
    Step(i64),
    /// Make it gain so many microseconds, slowly.
    Slew(i64),
    /// Bring the RTC to the system clock.
    WriteRtc,
    /// A person wants to know.
    Say(String),
}

/// The state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keeper {
    /// Seconds since the Unix epoch.
    pub floor: i64,
    /// Where the time is from.
    pub source: TimeSource,
    /// Why, in words.
    pub reason: String,
    /// The server that was last heard.
    pub server: Option<IpAddr>,
    /// What it was ahead.
    pub offset_us: Option<i64>,
    /// When, on CLOCK_BOOTTIME in milliseconds.
    pub heard_ms: Option<u64>,
    /// The members' clocks, while they count.
    pub peers: Option<PeersHeard>,
    /// How the RTC was found.
    pub rtc: RtcState,
    /// When to ask a server next, on CLOCK_BOOTTIME in milliseconds.
    pub ask_ms: u64,
    pause_ms: u64,
    unheard: u32,
    doubtful: Option<i64>,
    doubtful_peers: Option<i64>,
    rtc_ms: Option<u64>,
}

impl Keeper {
    /// Knows only when the image was built.
    #[must_use]
    pub fn new(built: i64) -> Self {
        Self {
            floor: built,
            source: TimeSource::Floor,
            reason: "the machine has just started".to_owned(),
            server: None,
            offset_us: None,
            heard_ms: None,
            peers: None,
            rtc: RtcState::Absent,
            ask_ms: 0,
            pause_ms: 0,
            unheard: 0,
            doubtful: None,
            doubtful_peers: None,
            rtc_ms: None,
        }
    }

    fn plausible(&self, unix: i64) -> bool {
        (self.floor..=self.floor.saturating_add(CEILING)).contains(&unix)
    }

    /// Which of `count` servers to ask: the first until it does not answer twice.
    #[must_use]
    pub fn choice(&self, count: usize) -> usize {
        let turn = usize::try_from(self.unheard / 2).unwrap_or(0);
        turn.checked_rem(count).unwrap_or(0)
    }

    /// Servers have come or gone: they are asked at once.
    pub fn ask_now(&mut self) {
        self.ask_ms = 0;
        self.pause_ms = 0;
        self.unheard = 0;
    }

    /// What to do at `boot_ms` on CLOCK_BOOTTIME, while the system clock shows `now_us`.
    pub fn step(&mut self, boot_ms: u64, now_us: i64, event: Event) -> Vec<Command> {
        let now = now_us.div_euclid(1_000_000);
        match event {
            Event::Start { rtc } => self.start(now, rtc),
            Event::Floor(unix) => {
                self.floor = self.floor.max(unix);
                self.hold_bounds(now)
            }
            Event::Heard { server, offset_us } => self.heard(boot_ms, now_us, server, offset_us),
            Event::Unheard => {
                self.unheard = self.unheard.saturating_add(1);
                self.pause_ms = self
                    .pause_ms
                    .min(POLL_MS)
                    .saturating_mul(2)
                    .clamp(RETRY_MS, POLL_MS);
                self.ask_ms = boot_ms.saturating_add(self.pause_ms);
                Vec::new()
            }
            Event::Peers(peers) => self.heard_peers(boot_ms, now_us, peers),
        }
    }

    fn start(&mut self, now: i64, rtc: Option<i64>) -> Vec<Command> {
        self.rtc = match rtc {
            None => RtcState::Absent,
            Some(unix) if unix < self.floor => RtcState::Behind,
            Some(unix) if !self.plausible(unix) => RtcState::Ahead,
            Some(_) => RtcState::Plausible,
        };
        if self.rtc == RtcState::Plausible {
            self.source = TimeSource::Rtc;
            self.reason = "the machine's own clock is plausible".to_owned();
        } else {
            self.source = TimeSource::Floor;
            self.reason = match self.rtc {
                RtcState::Behind => {
                    "the machine's own clock shows a time that is certainly past: is its battery empty?"
                }
                RtcState::Ahead => "the machine's own clock is more than ten years ahead of what is known",
                _ => "the machine has no clock of its own that can be read",
            }
            .to_owned();
        }
        if self.plausible(now) {
            return Vec::new();
        }
        let believed = rtc.filter(|unix| self.plausible(*unix)).unwrap_or(self.floor);
        vec![
            Command::Step(believed.saturating_mul(1_000_000)),
            Command::Say(format!("time: {}; the clock is set", self.reason)),
        ]
    }

    /// After the floor rose: the clock must not be below it.
    fn hold_bounds(&mut self, now: i64) -> Vec<Command> {
        if self.plausible(now) {
            return Vec::new();
        }
        self.source = TimeSource::Floor;
        (self.peers, self.doubtful_peers) = (None, None);
        self.reason = "a signature vouches for a later time than the clock showed".to_owned();
        if now > self.floor {
            self.reason = "the clock was more than ten years ahead of what is known".to_owned();
        }
        vec![
            Command::Step(self.floor.saturating_mul(1_000_000)),
            Command::Say(format!("time: {}; the clock is set", self.reason)),
        ]
    }

    fn heard(&mut self, boot_ms: u64, now_us: i64, server: IpAddr, offset_us: i64) -> Vec<Command> {
        let there_us = now_us.saturating_add(offset_us);
        if !self.plausible(there_us.div_euclid(1_000_000)) {
            self.reason =
                format!("the server {server} is not believed: its time is outside of what is possible");
            let mut commands = self.step(boot_ms, now_us, Event::Unheard);
            if self.unheard == 1 {
                commands.push(Command::Say(format!("time: {}", self.reason)));
            }
            return commands;
        }
        let first = self.heard_ms.is_none();
        let large = offset_us.saturating_abs() > STEP_US;
        let agreed = self
            .doubtful
            .is_some_and(|before| before.saturating_sub(offset_us).saturating_abs() < AGREE_US);
        self.unheard = 0;
        self.pause_ms = self.pause_ms.saturating_mul(2).clamp(POLL_MS, POLL_MOST_MS);
        self.ask_ms = boot_ms.saturating_add(self.pause_ms);
        (self.server, self.offset_us, self.heard_ms) = (Some(server), Some(offset_us), Some(boot_ms));
        if large && !first && !agreed {
            // One answer alone does not move a clock that was right: it is asked again soon.
            self.doubtful = Some(offset_us);
            self.pause_ms = RETRY_MS;
            self.ask_ms = boot_ms.saturating_add(RETRY_MS);
            self.reason =
                format!("the server {server} differs all at once: it is asked again before it is believed");
            return Vec::new();
        }
        self.doubtful = None;
        (self.peers, self.doubtful_peers) = (None, None);
        self.source = TimeSource::Ntp;
        let mut commands = Vec::new();
        if large {
            self.reason = format!(
                "set by the server {server}: the clock was {} s off",
                offset_us / 1_000_000
            );
            commands.push(Command::Step(there_us));
            commands.push(Command::Say(format!("time: {}", self.reason)));
        } else {
            self.reason = format!("follows the server {server}");
            commands.push(Command::Slew(offset_us));
        }
        if large || self.rtc_ms.is_none_or(|at| boot_ms.saturating_sub(at) >= RTC_MS) {
            self.rtc_ms = Some(boot_ms);
            commands.push(Command::WriteRtc);
        }
        commands
    }

    fn heard_peers(&mut self, boot_ms: u64, now_us: i64, peers: PeerTime) -> Vec<Command> {
        let served = self
            .heard_ms
            .is_some_and(|at| boot_ms.saturating_sub(at) < SERVER_MS);
        if served || boot_ms.saturating_sub(peers.heard_ms) > PEERS_MS {
            return Vec::new();
        }
        let up_us = i64::try_from(boot_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
        let there_us = peers.origin_us.saturating_add(up_us);
        let members = peers.members;
        if !self.plausible(there_us.div_euclid(1_000_000)) {
            let reason =
                format!("the median of {members} members is not believed: it is outside of what is possible");
            let news = self.reason != reason;
            self.reason = reason;
            return match news {
                true => vec![Command::Say(format!("time: {}", self.reason))],
                false => Vec::new(),
            };
        }
        let offset_us = there_us.saturating_sub(now_us);
        let first = self.source != TimeSource::Peers;
        let large = offset_us.saturating_abs() > STEP_US;
        let agreed = self
            .doubtful_peers
            .is_some_and(|before| before.saturating_sub(offset_us).saturating_abs() < AGREE_US);
        self.peers = Some(PeersHeard {
            members,
            offset_us,
            heard_ms: peers.heard_ms,
        });
        if large && !first && !agreed {
            self.doubtful_peers = Some(offset_us);
            self.reason =
                format!("the median of {members} members differs all at once: the next one decides");
            return Vec::new();
        }
        self.doubtful_peers = None;
        self.source = TimeSource::Peers;
        if large {
            self.reason = format!(
                "set by the median of {members} members: the clock was {} s off",
                offset_us / 1_000_000
            );
            // What it shows was wrong, or nothing: the next boot shall begin with what the members vouch for.
            return vec![
                Command::Step(there_us),
                Command::Say(format!("time: {}", self.reason)),
                Command::WriteRtc,
            ];
        }
        self.reason = format!("follows the median of {members} members");
        match offset_us.unsigned_abs() > peers.error_us {
            true => vec![Command::Slew(offset_us)],
            // What it may be off itself is no reason to move.
            false => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUILT: i64 = 1_795_000_000;
    const Y1970: i64 = 100;
    const Y2099: i64 = 4_085_000_000;
    const SERVER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

    fn steps(commands: &[Command]) -> Vec<i64> {
        let step = |command: &Command| match command {
            Command::Step(to) => Some(*to / 1_000_000),
            _ => None,
        };
        commands.iter().filter_map(step).collect()
    }

    #[test]
    fn clock_of_1970_or_2099_is_set_to_the_floor_and_the_reason_is_said() {
        for (rtc, state) in [(Y1970, RtcState::Behind), (Y2099, RtcState::Ahead)] {
            let mut keeper = Keeper::new(BUILT);
            let commands = keeper.step(0, rtc * 1_000_000, Event::Start { rtc: Some(rtc) });
            assert_eq!((steps(&commands), keeper.rtc), (vec![BUILT], state));
            assert!(matches!(&commands[1], Command::Say(text) if text.contains("the machine's own clock")));
            assert_eq!(keeper.source, TimeSource::Floor);
        }
    }

    #[test]
    fn plausible_rtc_is_taken_where_the_kernel_did_not() {
        let mut keeper = Keeper::new(BUILT);
        let commands = keeper.step(
            0,
            0,
            Event::Start {
                rtc: Some(BUILT + 5_000),
            },
        );
        assert_eq!(
            (steps(&commands), keeper.source),
            (vec![BUILT + 5_000], TimeSource::Rtc)
        );
        let mut keeper = Keeper::new(BUILT);
        let now = (BUILT + 5_000) * 1_000_000;
        assert_eq!(
            keeper.step(
                0,
                now,
                Event::Start {
                    rtc: Some(BUILT + 5_000)
                }
            ),
            vec![]
        );
    }

    #[test]
    fn floor_that_rises_above_the_clock_sets_it_and_never_falls() {
        let mut keeper = Keeper::new(BUILT);
        let now = (BUILT + 10) * 1_000_000;
        assert_eq!(
            steps(&keeper.step(0, now, Event::Floor(BUILT + 500))),
            vec![BUILT + 500]
        );
        assert_eq!(
            keeper.step(0, (BUILT + 501) * 1_000_000, Event::Floor(BUILT)),
            vec![]
        );
        assert_eq!(keeper.floor, BUILT + 500);
    }

    #[test]
    fn small_offset_is_slewed_a_large_one_steps_once_and_then_needs_two_answers() {
        let mut keeper = Keeper::new(BUILT);
        let now = (BUILT + 10) * 1_000_000;
        let heard = |offset_us| Event::Heard {
            server: SERVER,
            offset_us,
        };
        let commands = keeper.step(1_000, now, heard(86_400_000_000));
        assert_eq!(steps(&commands), vec![BUILT + 10 + 86_400]);
        assert!(commands.contains(&Command::WriteRtc));
        assert_eq!(
            keeper.step(70_000, now, heard(-STEP_US)),
            vec![Command::Slew(-STEP_US)]
        );
        assert_eq!(keeper.step(200_000, now, heard(7_200_000_000)), vec![]);
        assert_eq!(keeper.ask_ms, 202_000, "it is asked again soon");
        assert_eq!(
            keeper.step(202_000, now, heard(-5)),
            vec![Command::Slew(-5)],
            "the other was wrong"
        );
        assert_eq!(keeper.step(300_000, now, heard(7_200_000_000)), vec![]);
        assert_eq!(
            steps(&keeper.step(302_000, now, heard(7_200_400_000))),
            vec![BUILT + 10 + 7_200]
        );
    }

    #[test]
    fn server_outside_of_the_bounds_is_not_believed() {
        let mut keeper = Keeper::new(BUILT);
        let now = (BUILT + 10) * 1_000_000;
        for there in [Y1970, Y2099] {
            let offset_us = (there - BUILT) * 1_000_000;
            assert_eq!(
                steps(&keeper.step(
                    0,
                    now,
                    Event::Heard {
                        server: SERVER,
                        offset_us
                    }
                )),
                Vec::<i64>::new()
            );
            assert!(keeper.reason.contains("is not believed"), "{}", keeper.reason);
        }
    }

    fn peers(boot_ms: u64, unix_us: i64) -> Event {
        Event::Peers(PeerTime {
            origin_us: unix_us - i64::try_from(boot_ms).unwrap() * 1_000,
            error_us: 2_000,
            members: 3,
            heard_ms: boot_ms,
        })
    }

    #[test]
    fn members_set_a_clock_at_the_floor_once_and_then_steer_it() {
        let mut keeper = Keeper::new(BUILT);
        keeper.step(0, 0, Event::Start { rtc: Some(Y1970) });
        let (now, day) = (BUILT * 1_000_000, 86_400_000_000);
        let commands = keeper.step(5_000, now, peers(5_000, now + day));
        assert_eq!(steps(&commands), vec![BUILT + 86_400]);
        assert!(commands.contains(&Command::WriteRtc));
        assert_eq!(keeper.source, TimeSource::Peers);
        assert_eq!(keeper.peers.unwrap().members, 3);
        let now = now + day;
        assert_eq!(
            keeper.step(6_000, now, peers(6_000, now + 1_999)),
            vec![],
            "within its error"
        );
        assert_eq!(
            keeper.step(7_000, now, peers(7_000, now - 5_000)),
            vec![Command::Slew(-5_000)]
        );
        assert_eq!(
            keeper.step(8_000, now, peers(8_000, now + day)),
            vec![],
            "asks again"
        );
        assert_eq!(
            steps(&keeper.step(9_000, now, peers(9_000, now + day))),
            vec![BUILT + 2 * 86_400]
        );
    }

    #[test]
    fn server_is_better_than_members_until_it_is_silent_for_long() {
        let mut keeper = Keeper::new(BUILT);
        let (now, day) = ((BUILT + 10) * 1_000_000, 86_400_000_000);
        let heard = Event::Heard {
            server: SERVER,
            offset_us: 0,
        };
        keeper.step(0, now, peers(0, now + 1_000_000));
        assert_eq!(keeper.source, TimeSource::Peers);
        keeper.step(1_000, now, heard);
        assert_eq!((keeper.source, keeper.peers), (TimeSource::Ntp, None));
        let last = 1_000 + SERVER_MS;
        assert_eq!(keeper.step(last - 1, now, peers(last - 1, now + day)), vec![]);
        assert_eq!(keeper.source, TimeSource::Ntp);
        assert!(!steps(&keeper.step(last, now, peers(last, now + day))).is_empty());
        assert_eq!(keeper.source, TimeSource::Peers);
    }

    #[test]
    fn members_outside_of_the_bounds_or_of_long_ago_are_not_believed() {
        let mut keeper = Keeper::new(BUILT);
        let now = (BUILT + 10) * 1_000_000;
        for there in [Y1970, BUILT - 1, Y2099] {
            let commands = keeper.step(0, now, peers(0, there * 1_000_000));
            assert_eq!(steps(&commands), Vec::<i64>::new());
            assert!(keeper.reason.contains("is not believed"), "{}", keeper.reason);
        }
        let old = peers(0, now + 86_400_000_000);
        assert_eq!(keeper.step(PEERS_MS + 1, now, old), vec![]);
        assert_eq!(keeper.source, TimeSource::Floor);
    }

    #[test]
    fn silent_server_is_asked_ever_less_often_and_then_the_next_one() {
        let mut keeper = Keeper::new(BUILT);
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..8 {
            keeper.step(now, BUILT * 1_000_000, Event::Unheard);
            pauses.push(keeper.ask_ms - now);
            now = keeper.ask_ms;
        }
        assert_eq!(
            pauses,
            [2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 64_000, 64_000]
        );
        assert_eq!((keeper.choice(3), keeper.choice(1), keeper.choice(0)), (1, 0, 0));
    }

    proptest! {
        #[test]
        fn invariant_the_clock_stays_within_its_bounds(
            start in 0i64..5_000_000_000,
            rtc in prop::option::of(0i64..5_000_000_000),
            events in prop::collection::vec((0u8..6, any::<i64>(), 0u64..2_000_000), 1..40),
        ) {
            let (mut keeper, mut clock, mut boot) = (Keeper::new(BUILT), start * 1_000_000, 0u64);
            let mut moves = vec![keeper.step(boot, clock, Event::Start { rtc })];
            let mut floor = keeper.floor;
            for (kind, number, pass) in events {
                for command in moves.drain(..).flatten() {
                    if let Command::Step(to) = command {
                        prop_assert!(keeper.plausible(to.div_euclid(1_000_000)), "{to}");
                        clock = to;
                    }
                    if let Command::Slew(by) = command {
                        prop_assert!(by.abs() <= STEP_US);
                    }
                }
                prop_assert!(keeper.plausible(clock.div_euclid(1_000_000)));
                boot += pass;
                clock += i64::try_from(pass).unwrap() * 1_000;
                let event = match kind {
                    0 => Event::Floor(BUILT + number.rem_euclid(100_000_000)),
                    1 => Event::Heard { server: SERVER, offset_us: number },
                    2 => Event::Heard { server: SERVER, offset_us: number % 10_000_000 },
                    3 => Event::Peers(PeerTime { origin_us: number, error_us: 0, members: 2, heard_ms: boot }),
                    4 => Event::Peers(PeerTime {
                        origin_us: clock - i64::try_from(boot).unwrap() * 1_000 + number % 10_000_000,
                        error_us: 0,
                        members: 2,
                        heard_ms: boot,
                    }),
                    _ => Event::Unheard,
                };
                moves.push(keeper.step(boot, clock, event));
                prop_assert!(keeper.floor >= floor);
                floor = keeper.floor;
                if matches!(kind, 1 | 2 | 5) {
                    prop_assert!(keeper.ask_ms > boot && keeper.ask_ms - boot <= POLL_MOST_MS);
                }
                if !keeper.plausible(clock.div_euclid(1_000_000)) && kind != 0 {
                    // Time that passes may leave the ceiling behind; only a rise of the floor looks at it.
                    break;
                }
            }
        }
    }
}
