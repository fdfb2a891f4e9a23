//! Who is alive: SWIM by foca, its timers and its datagrams.
//!
//! It does not know who may be a member (`roster.rs`). Invariant: no clock and no randomness but what the caller gives;
//! while this node itself stood still, nobody else is declared dead.

use crate::model::{Millis, Tuning};
use beemesh_ids::PeerId;
use foca::{Config, Foca, Identity, Notification, PeriodicParams, PostcardCodec, Runtime, Timer};
use rand::{SeedableRng, rngs::SmallRng};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// A peer in one of its lives. The key instead of its text: SWIM looks at all members for each update of one, and each datagram
/// names hundreds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Life {
    #[serde(with = "key_bytes")]
    key: [u8; 32],
    generation: u64,
}

impl Life {
    fn peer(&self) -> PeerId {
        PeerId::from_ed25519(&self.key)
    }
}

/// A key as one string of bytes: as a list of numbers each byte of hundreds of keys in a datagram would be a step of its own.
mod key_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(key: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let bytes: &[u8] = Deserialize::deserialize(deserializer)?;
        let key = bytes.try_into();
        key.map_err(|_| D::Error::invalid_length(bytes.len(), &"a key of 32 bytes"))
    }
}

impl Identity for Life {
    type Addr = [u8; 32];

    fn renew(&self) -> Option<Self> {
        Some(Self {
            key: self.key,
            generation: self.generation.checked_add(1)?,
        })
    }

    fn addr(&self) -> [u8; 32] {
        self.key
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.generation > adversary.generation
    }
}

/// Generations of one boot: renewals within it stay below the next boot's first.
const RENEWALS: u64 = 1 << 20;
/// Largest SWIM datagram.
const DATAGRAM: usize = 16 * 1024;

/// What this node knows of a peer's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// Never seen alive since this node started or learned of it.
    Unknown(Millis),
    /// Alive, perhaps under suspicion.
    Up,
    /// Declared dead then.
    Down(Millis),
}

/// What a SWIM step asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SwimEffect {
    /// Send a datagram.
    Send(PeerId, Vec<u8>),
    /// A peer is alive.
    Up(PeerId),
    /// A peer is dead.
    Down(PeerId),
}

#[derive(Default)]
struct Collected {
    sends: Vec<(Life, Vec<u8>)>,
    timers: Vec<(Duration, Timer<Life>)>,
    changes: Vec<(Life, bool)>,
    renewed: Vec<Life>,
}

impl Runtime<Life> for &mut Collected {
    fn notify(&mut self, notification: Notification<'_, Life>) {
        match notification {
            Notification::MemberUp(life) => self.changes.push((life.clone(), true)),
            Notification::MemberDown(life) => self.changes.push((life.clone(), false)),
            Notification::Rename(_, life) => self.renewed.push(life.clone()),
            _ => {}
        }
    }

    fn send_to(&mut self, to: Life, data: &[u8]) {
        self.sends.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<Life>, after: Duration) {
        self.timers.push((after, event));
    }
}

pub(crate) struct Membership {
    me: PeerId,
    foca: Foca<Life, PostcardCodec, SmallRng, foca::NoCustomBroadcast>,
    /// By time, then by order of submission.
    timers: BTreeMap<(Millis, u64), Timer<Life>>,
    submitted: u64,
    liveness: BTreeMap<PeerId, Liveness>,
    /// Of the lives that SWIM has told of: each heartbeat names one, and SWIM looks for it among all.
    generations: BTreeMap<PeerId, u64>,
    last: Millis,
    stall_ms: u64,
    /// Datagrams that foca refused.
    pub(crate) refused: u64,
}

impl Membership {
    /// `boot` is the number of this start, from 1.
    pub(crate) fn new(me: PeerId, boot: u64, seed: u64, tuning: &Tuning, now: Millis) -> Self {
        let life = Life {
            key: me.to_ed25519(),
            generation: boot.saturating_mul(RENEWALS),
        };
        Self {
            me,
            foca: Foca::new(
                life,
                swim_config(tuning),
                SmallRng::seed_from_u64(seed),
                PostcardCodec,
            ),
            timers: BTreeMap::new(),
            submitted: 0,
            liveness: BTreeMap::new(),
            generations: BTreeMap::new(),
            last: now,
            stall_ms: tuning.stall_ms,
            refused: 0,
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.foca.identity().generation
    }

    /// The boot number that a restart must exceed.
    pub(crate) fn boot(&self) -> u64 {
        self.generation() / RENEWALS
    }

    /// Liveness of a peer; one never heard of has been unknown since `since`.
    pub(crate) fn liveness(&self, peer: &PeerId, since: Millis) -> Liveness {
        self.liveness
            .get(peer)
            .copied()
            .unwrap_or(Liveness::Unknown(since))
    }

    pub(crate) fn is_up(&self, peer: &PeerId) -> bool {
        matches!(self.liveness.get(peer), Some(Liveness::Up)) || *peer == self.me
    }

    pub(crate) fn is_suspect(&self, peer: &PeerId) -> bool {
        let key = peer.to_ed25519();
        self.foca
            .iter_members()
            .any(|member| member.id().key == key && member.state() == foca::State::Suspect)
    }

    /// Generation of a peer as far as SWIM knows it; 0 where it does not.
    pub(crate) fn known_generation(&self, peer: &PeerId) -> u64 {
        // SWIM tells of each member that comes alive and of each later life, and forgets none.
        if let Some(generation) = self.generations.get(peer) {
            return *generation;
        }
        let key = peer.to_ed25519();
        let mut lives = self
            .foca
            .iter_membership_state()
            .filter(|member| member.id().key == key);
        lives.next().map_or(0, |member| member.id().generation)
    }

    /// Runs the timers that are due. Where this node stood still, they are moved on first: the others' answers may lie
    /// unread in its queue, and its silence is not their death.
    pub(crate) fn run_timers(&mut self, now: Millis) -> Vec<SwimEffect> {
        let gap = now.since(self.last);
        self.last = self.last.max(now);
        if gap > self.stall_ms {
            let moved = std::mem::take(&mut self.timers);
            self.timers = moved
                .into_iter()
                .map(|((at, n), timer)| ((at.after(gap), n), timer))
                .collect();
        }
        let mut effects = Vec::new();
        // Bounded: a timer that submits one for the same moment cannot spin here.
        for _ in 0..1024 {
            let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= now) else {
                break;
            };
            let timer = entry.remove();
            self.run(now, &mut effects, |foca, runtime| {
                foca.handle_timer(timer, runtime)
            });
        }
        effects
    }

    /// Takes a datagram.
    pub(crate) fn receive(&mut self, now: Millis, data: &[u8]) -> Vec<SwimEffect> {
        let mut effects = Vec::new();
        if !self.run(now, &mut effects, |foca, runtime| foca.handle_data(data, runtime)) {
            self.refused = self.refused.saturating_add(1);
        }
        effects
    }

    /// Introduces this node to a peer.
    pub(crate) fn announce(&mut self, now: Millis, peer: &PeerId) -> Vec<SwimEffect> {
        let life = Life {
            key: peer.to_ed25519(),
            generation: self.known_generation(peer),
        };
        let mut effects = Vec::new();
        self.run(now, &mut effects, |foca, runtime| foca.announce(life, runtime));
        effects
    }

    /// Someone knows this node by a greater generation (its counter was lost): takes one above it.
    pub(crate) fn outgrow(&mut self, now: Millis, generation: u64) -> Vec<SwimEffect> {
        let mut effects = Vec::new();
        let boot = (generation / RENEWALS).saturating_add(1);
        if generation > self.generation() && boot < u64::MAX / RENEWALS {
            let life = Life {
                key: self.foca.identity().key,
                generation: boot * RENEWALS,
            };
            self.run(now, &mut effects, |foca, runtime| {
                foca.change_identity(life, runtime)
            });
        }
        effects
    }

    fn run<F>(&mut self, now: Millis, effects: &mut Vec<SwimEffect>, act: F) -> bool
    where
        F: FnOnce(
            &mut Foca<Life, PostcardCodec, SmallRng, foca::NoCustomBroadcast>,
            &mut Collected,
        ) -> Result<(), foca::Error>,
    {
        let mut collected = Collected::default();
        let done = act(&mut self.foca, &mut collected).is_ok();
        for (after, timer) in collected.timers {
            self.submitted += 1;
            let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            self.timers.insert((now.after(after), self.submitted), timer);
        }
        for life in collected.renewed {
            self.generations.insert(life.peer(), life.generation);
        }
        for (life, up) in collected.changes {
            let state = if up { Liveness::Up } else { Liveness::Down(now) };
            let peer = life.peer();
            self.generations.insert(peer.clone(), life.generation);
            let before = self.liveness.insert(peer.clone(), state);
            match (before, up) {
                (Some(Liveness::Up), true) | (Some(Liveness::Down(_)), false) => {}
                (_, true) => effects.push(SwimEffect::Up(peer)),
                (_, false) => effects.push(SwimEffect::Down(peer)),
            }
        }
        effects.extend(
            collected
                .sends
                .into_iter()
                .map(|(life, data)| SwimEffect::Send(life.peer(), data)),
        );
        done
    }
}

fn swim_config(tuning: &Tuning) -> Config {
    let periodic = |ms, count| {
        Some(PeriodicParams {
            frequency: Duration::from_millis(ms),
            num_members: count,
        })
    };
    let one = NonZeroUsize::MIN;
    let three = one.saturating_add(2);
    Config {
        probe_period: Duration::from_millis(tuning.swim_period_ms),
        probe_rtt: Duration::from_millis(tuning.swim_rtt_ms),
        num_indirect_probes: three,
        max_transmissions: NonZeroU8::MIN.saturating_add(9),
        suspect_to_down_after: Duration::from_millis(tuning.swim_suspect_ms),
        remove_down_after: None,
        max_packet_size: one.saturating_add(DATAGRAM - 1),
        notify_down_members: true,
        periodic_announce: periodic(10_000, one),
        periodic_announce_to_down_members: periodic(5000, one),
        periodic_gossip: periodic(200, three),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId::from_ed25519(&[n; 32])
    }

    /// Two nodes, everything delivered at once; `deaf` stops the second one's answers.
    fn run(
        a: &mut Membership,
        b: &mut Membership,
        from: u64,
        to: u64,
        step: u64,
        deaf: bool,
    ) -> Vec<SwimEffect> {
        let mut seen = Vec::new();
        let mut now = from;
        while now <= to {
            let mut pending = a.run_timers(Millis(now));
            if now == 0 {
                pending.extend(a.announce(Millis(0), &peer(2)));
            }
            pending.extend(b.run_timers(Millis(now)).into_iter().filter(|_| !deaf));
            for _ in 0..100 {
                let Some(effect) = pending.pop() else { break };
                match effect {
                    SwimEffect::Send(to, data) if to == peer(1) => {
                        pending.extend(a.receive(Millis(now), &data))
                    }
                    SwimEffect::Send(_, data) if !deaf => pending.extend(b.receive(Millis(now), &data)),
                    SwimEffect::Send(..) => {}
                    other => seen.push(other),
                }
            }
            now += step;
        }
        seen
    }

    fn pair() -> (Membership, Membership) {
        let tuning = Tuning::default();
        let of = |n| Membership::new(peer(n), 1, u64::from(n), &tuning, Millis(0));
        (of(1), of(2))
    }

    #[test]
    fn dead_peer_is_declared_dead_within_six_seconds() {
        let (mut a, mut b) = pair();
        run(&mut a, &mut b, 0, 5000, 100, false);
        assert!(a.is_up(&peer(2)) && b.is_up(&peer(1)));
        run(&mut a, &mut b, 5100, 11_000, 100, true);
        assert!(matches!(a.liveness(&peer(2), Millis(0)), Liveness::Down(_)));
    }

    #[test]
    fn a_node_that_stood_still_declares_nobody_dead() {
        let (mut a, mut b) = pair();
        run(&mut a, &mut b, 0, 5000, 100, false);
        // Both stop for half a minute (a paused machine), then go on.
        run(&mut a, &mut b, 35_000, 45_000, 100, false);
        assert!(a.is_up(&peer(2)) && b.is_up(&peer(1)));
    }

    #[test]
    fn generation_of_a_later_life_is_known_at_once_and_that_of_a_dead_one_is_kept() {
        let (mut a, mut b) = pair();
        run(&mut a, &mut b, 0, 5000, 100, false);
        let by_foca = |a: &Membership| {
            let key = peer(2).to_ed25519();
            let mut lives = a.foca.iter_membership_state();
            lives
                .find(|member| member.id().key == key)
                .map(|member| member.id().generation)
        };
        assert_eq!(a.known_generation(&peer(2)), RENEWALS);
        assert_eq!(a.known_generation(&peer(3)), 0, "nobody");
        let mut again = Membership::new(peer(2), 3, 9, &Tuning::default(), Millis(5000));
        let mut pending = again.announce(Millis(5000), &peer(1));
        while let Some(effect) = pending.pop() {
            match effect {
                SwimEffect::Send(to, data) if to == peer(1) => {
                    pending.extend(a.receive(Millis(5000), &data));
                }
                SwimEffect::Send(_, data) => pending.extend(again.receive(Millis(5000), &data)),
                _ => {}
            }
        }
        assert_eq!(a.known_generation(&peer(2)), 3 * RENEWALS);
        assert_eq!(by_foca(&a), Some(3 * RENEWALS));
        run(&mut a, &mut again, 5100, 11_000, 100, true);
        assert!(matches!(a.liveness(&peer(2), Millis(0)), Liveness::Down(_)));
        assert_eq!(a.known_generation(&peer(2)), by_foca(&a).unwrap());
    }

    #[test]
    fn a_lost_counter_is_outgrown() {
        let (mut a, _) = pair();
        let seen = 7 * RENEWALS + 3;
        a.outgrow(Millis(0), seen);
        assert!(a.generation() > seen && a.boot() == 8);
    }
}
