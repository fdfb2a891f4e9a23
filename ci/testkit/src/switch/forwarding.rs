//! Where a frame goes: a learning bridge with faults. Pure but for the counters it keeps; it owns no socket and reads
//! no clock.
//!
//! Invariant: a frame never reaches a port that is cut, in another partition, or the one it came from.

use super::leaks::{Destinations, Layer3, layer3};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;

/// How many network cards the switch remembers; frames to further ones are flooded.
pub const MAX_LEARNED: usize = 1024;

/// What the switch did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that came in on any port.
    pub received: u64,
    /// Frames that were handed to a port (a flooded frame counts once per port).
    pub forwarded: u64,
    /// Frames of which a copy went to every reachable port.
    pub flooded: u64,
    /// Deliveries that a cut or a partition prevented.
    pub blocked: u64,
    /// Frames lost by [`Switch::drop_frames`](super::Switch::drop_frames).
    pub lost: u64,
    /// Deliveries dropped because a queue was full or nobody was plugged in.
    pub overrun: u64,
    /// Frames shorter than their headers; they are not forwarded.
    pub malformed: u64,
    /// Connections closed because of a frame longer than [`MAX_FRAME`](crate::MAX_FRAME).
    pub oversized: u64,
}

#[derive(Debug)]
struct Port {
    name: String,
    cut: bool,
    group: Option<usize>,
}

#[derive(Debug, Default)]
pub(super) struct Forwarding {
    ports: Vec<Port>,
    learned: HashMap<[u8; 6], usize>,
    loss: Option<(f64, Xoshiro256PlusPlus)>,
    pub(super) destinations: Destinations,
    pub(super) counters: Counters,
}

impl Forwarding {
    /// The number of the port with this name, new or known.
    pub(super) fn port(&mut self, name: &str) -> usize {
        self.find(name).unwrap_or_else(|| {
            self.ports.push(Port {
                name: name.to_owned(),
                cut: false,
                group: None,
            });
            self.ports.len() - 1
        })
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.ports.iter().position(|p| p.name == name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.ports.iter().map(|p| p.name.as_str())
    }

    pub(super) fn set_cut(&mut self, port: usize, cut: bool) {
        if let Some(p) = self.ports.get_mut(port) {
            p.cut = cut;
        }
    }

    /// Puts every port that a group names into it; a port that no group names reaches all groups.
    pub(super) fn set_groups(&mut self, groups: &[Vec<usize>]) {
        for (number, port) in self.ports.iter_mut().enumerate() {
            port.group = groups.iter().position(|g| g.contains(&number));
        }
    }

    pub(super) fn heal(&mut self) {
        for port in &mut self.ports {
            port.cut = false;
            port.group = None;
        }
    }

    pub(super) fn set_loss(&mut self, probability: f64, seed: u64) {
        self.loss = (probability > 0.0).then(|| (probability, Xoshiro256PlusPlus::seed_from_u64(seed)));
    }

    /// Forgets the cards behind a port, as a real switch does when the link goes down.
    pub(super) fn unplug(&mut self, port: usize) {
        self.learned.retain(|_, p| *p != port);
    }

    /// A frame from `from` may reach `to` now.
    pub(super) fn reaches(&self, from: usize, to: usize) -> bool {
        let (Some(a), Some(b)) = (self.ports.get(from), self.ports.get(to)) else {
            return false;
        };
        from != to && !a.cut && !b.cut && (a.group.is_none() || b.group.is_none() || a.group == b.group)
    }

    /// Learns, counts, and says which ports get the frame.
    pub(super) fn ingress(&mut self, from: usize, frame: &[u8]) -> Vec<usize> {
        self.counters.received += 1;
        match layer3(frame) {
            Layer3::Malformed => {
                self.counters.malformed += 1;
                return Vec::new();
            }
            Layer3::To(source, destination) => self.destinations.record(source, destination),
            Layer3::Local => {}
        }
        let (Some(destination), Some(source)) = (frame.first_chunk::<6>(), mac(frame, 6)) else {
            return Vec::new();
        };
        if let Some((probability, rng)) = &mut self.loss
            && rng.random::<f64>() < *probability
        {
            self.counters.lost += 1;
            return Vec::new();
        }
        let cut = self.ports.get(from).is_none_or(|p| p.cut);
        if !cut
            && source[0] & 1 == 0
            && (self.learned.len() < MAX_LEARNED || self.learned.contains_key(&source))
        {
            self.learned.insert(source, from);
        }
        let wanted: Vec<usize> = match self.learned.get(destination) {
            Some(port) if destination[0] & 1 == 0 => vec![*port],
            _ => {
                self.counters.flooded += 1;
                (0..self.ports.len()).filter(|p| *p != from).collect()
            }
        };
        let reached: Vec<usize> = wanted
            .iter()
            .copied()
            .filter(|p| self.reaches(from, *p))
            .collect();
        self.counters.blocked += wanted
            .iter()
            .filter(|p| **p != from && !reached.contains(p))
            .count() as u64;
        reached
    }
}

fn mac(frame: &[u8], at: usize) -> Option<[u8; 6]> {
    frame.get(at..at + 6)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROADCAST: u8 = 0xff;

    /// A frame that no router would carry, from card `source` to card `destination`.
    fn frame(source: u8, destination: u8) -> Vec<u8> {
        let mut f = if destination == BROADCAST {
            vec![0xff; 6]
        } else {
            vec![2, 0, 0, 0, 0, destination]
        };
        f.extend([2, 0, 0, 0, 0, source, 0x88, 0xb5, 1, 2, 3]);
        f
    }

    fn three_ports() -> Forwarding {
        let mut f = Forwarding::default();
        for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
            assert_eq!(f.port(name), number);
        }
        f
    }

    #[test]
    fn an_unknown_card_is_flooded_and_a_known_one_is_not() {
        let mut s = three_ports();
        assert_eq!(s.ingress(0, &frame(10, 11)), [1, 2]);
        assert_eq!(s.ingress(1, &frame(11, 10)), [0]);
        assert_eq!(s.ingress(0, &frame(10, 11)), [1]);
        assert_eq!(s.ingress(0, &frame(10, BROADCAST)), [1, 2]);
        assert_eq!(s.counters.flooded, 2);
    }

    #[test]
    fn a_card_that_moves_is_found_at_its_new_port() {
        let mut s = three_ports();
        s.ingress(0, &frame(10, BROADCAST));
        s.ingress(2, &frame(10, BROADCAST));
        assert_eq!(s.ingress(1, &frame(11, 10)), [2]);
        s.unplug(2);
        assert_eq!(s.ingress(1, &frame(11, 10)), [0, 2]);
    }

    #[test]
    fn a_cut_port_neither_sends_nor_receives_until_healed() {
        let mut s = three_ports();
        s.set_cut(1, true);
        assert_eq!(s.ingress(0, &frame(10, BROADCAST)), [2]);
        assert!(s.ingress(1, &frame(11, BROADCAST)).is_empty());
        assert_eq!(s.counters.blocked, 3);
        s.heal();
        assert_eq!(s.ingress(1, &frame(11, BROADCAST)), [0, 2]);
    }

    #[test]
    fn a_partition_separates_its_groups_and_leaves_the_unnamed_port_alone() {
        let mut s = three_ports();
        let observer = s.port("observer");
        s.set_groups(&[vec![0, 1], vec![2]]);
        assert_eq!(s.ingress(0, &frame(10, BROADCAST)), [1, observer]);
        assert_eq!(s.ingress(2, &frame(12, BROADCAST)), [observer]);
        assert_eq!(s.ingress(observer, &frame(13, BROADCAST)), [0, 1, 2]);
        // Learned before, but out of reach now.
        assert!(s.ingress(0, &frame(10, 12)).is_empty());
    }

    #[test]
    fn the_same_seed_loses_the_same_frames() {
        let pattern = |seed: u64| -> Vec<bool> {
            let mut s = three_ports();
            s.set_loss(0.3, seed);
            (0..500)
                .map(|_| s.ingress(0, &frame(10, BROADCAST)).is_empty())
                .collect()
        };
        assert_eq!(pattern(7), pattern(7));
        assert_ne!(pattern(7), pattern(8));
        let lost = pattern(7).iter().filter(|l| **l).count();
        assert!((100..200).contains(&lost), "{lost} of 500 lost at 30 %");
    }

    #[test]
    fn the_table_of_cards_is_bounded() {
        let mut s = three_ports();
        for i in 0..(MAX_LEARNED as u32 + 100) {
            let mut f = vec![0xff; 6];
            f.extend([2, 1]);
            f.extend(i.to_be_bytes());
            f.extend([0x88, 0xb5, 0]);
            s.ingress(0, &f);
        }
        assert_eq!(s.learned.len(), MAX_LEARNED);
    }

    #[test]
    fn a_stump_of_a_frame_goes_nowhere() {
        let mut s = three_ports();
        assert!(s.ingress(0, &[1, 2, 3]).is_empty());
        assert_eq!(s.counters.malformed, 1);
    }
}
