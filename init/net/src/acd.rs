//! Address conflict detection (RFC 5227): pure. Frames and time in, what to send and a verdict out.
//!
//! Before an address is used, three probes ask for it; while it is used, others' claims are noticed and answered once.
//! The RFC's pauses (up to seven seconds before the first use) are cut to 300 ms: a boot shall not wait for them, and a
//! host that answers later than that is still noticed afterwards. Invariant: an address is never called free after a
//! conflict was seen, and never before all probes were sent.

use std::net::Ipv4Addr;

/// Probes before an address is used (PROBE_NUM).
pub const PROBES: u32 = 3;
/// Between two probes, and after the last one, in milliseconds (PROBE_MIN .. ANNOUNCE_WAIT: 1-2 s in the RFC).
pub const PROBE_MS: u64 = 100;
/// Announcements once it is used (ANNOUNCE_NUM).
pub const ANNOUNCEMENTS: u32 = 2;
/// Between two announcements, in milliseconds (ANNOUNCE_INTERVAL).
pub const ANNOUNCE_MS: u64 = 2_000;
/// A second claim within this time makes us give the address up, in milliseconds (DEFEND_INTERVAL).
pub const DEFEND_MS: u64 = 10_000;
/// Bytes of an ARP frame on Ethernet, without padding.
pub const FRAME: usize = 42;

/// A hardware address.
pub type Mac = [u8; 6];

/// An ARP packet for IPv4 on Ethernet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    /// A question, else an answer.
    pub request: bool,
    /// Whose frame it is.
    pub sender_mac: Mac,
    /// Which address the sender has; unspecified in a probe.
    pub sender: Ipv4Addr,
    /// Which address is asked for.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads a frame; `None` where it is none of these.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let body = frame.get(12..FRAME)?;
        // Ethertype ARP, hardware Ethernet, protocol IPv4, their lengths.
        if body.get(..8)? != [0x08, 0x06, 0, 1, 0x08, 0, 6, 4] {
            return None;
        }
        let request = match body.get(8..10)? {
            [0, 1] => true,
            [0, 2] => false,
            _ => return None,
        };
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(body.get(at..at + 4)?).ok()?));
        Some(Self {
            request,
            sender_mac: body.get(10..16)?.try_into().ok()?,
            sender: address(16)?,
            target: address(26)?,
        })
    }

    /// The frame, to everyone on the link.
    #[must_use]
    pub fn frame(&self) -> [u8; FRAME] {
        let mut frame = [0; FRAME];
        let parts: [&[u8]; 9] = [
            &[0xff; 6],
            &self.sender_mac,
            &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0],
            &[if self.request { 1 } else { 2 }],
            &self.sender_mac,
            &self.sender.octets(),
            &[0; 6],
            &self.target.octets(),
            &[],
        ];
        for (place, byte) in frame.iter_mut().zip(parts.concat()) {
            *place = byte;
        }
        frame
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Send this.
    Send(Arp),
    /// The address may be used from now on.
    Free,
    /// Somebody else has it: do not use it (any more). Nothing follows.
    Conflict(Mac),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Probing { sent: u32 },
    Announcing { sent: u32 },
    Held,
    Lost,
}

/// One address on one link.
#[derive(Debug, Clone)]
pub struct Acd {
    mac: Mac,
    address: Ipv4Addr,
    phase: Phase,
    due: Option<u64>,
    defended: Option<u64>,
}

impl Acd {
    /// For an address that is not used yet; the first probe is due at once.
    #[must_use]
    pub fn probing(mac: Mac, address: Ipv4Addr, now: u64) -> Self {
        let phase = Phase::Probing { sent: 0 };
        Self {
            mac,
            address,
            phase,
            due: Some(now),
            defended: None,
        }
    }

    /// For an address that is used already, e.g. after the cable came back: it is announced and watched.
    #[must_use]
    pub fn holding(mac: Mac, address: Ipv4Addr, now: u64) -> Self {
        let phase = Phase::Announcing { sent: 0 };
        Self {
            mac,
            address,
            phase,
            due: Some(now),
            defended: None,
        }
    }

    /// When [`Acd::tick`] is due, in the milliseconds that it is given.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        self.due
    }

    fn announcement(&self) -> Act {
        Act::Send(Arp {
            request: true,
            sender_mac: self.mac,
            sender: self.address,
            target: self.address,
        })
    }

    /// Time has passed.
    pub fn tick(&mut self, now: u64) -> Option<Act> {
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        match self.phase {
            Phase::Probing { sent } if sent < PROBES => {
                self.phase = Phase::Probing { sent: sent + 1 };
                self.due = Some(now + PROBE_MS);
                let sender = Ipv4Addr::UNSPECIFIED;
                Some(Act::Send(Arp {
                    request: true,
                    sender_mac: self.mac,
                    sender,
                    target: self.address,
                }))
            }
            Phase::Probing { .. } => {
                self.phase = Phase::Announcing { sent: 0 };
                // The receiver needs a moment to put the address on the link.
                self.due = Some(now + PROBE_MS);
                Some(Act::Free)
            }
            Phase::Announcing { sent } => {
                let sent = sent + 1;
                let done = sent >= ANNOUNCEMENTS;
                self.phase = if done {
                    Phase::Held
                } else {
                    Phase::Announcing { sent }
                };
                self.due = (!done).then(|| now + ANNOUNCE_MS);
                Some(self.announcement())
            }
            Phase::Held | Phase::Lost => {
                self.due = None;
                None
            }
        }
    }

    /// A frame has arrived.
    pub fn heard(&mut self, now: u64, arp: &Arp) -> Option<Act> {
        if arp.sender_mac == self.mac || self.phase == Phase::Lost {
            return None;
        }
        let claims = arp.sender == self.address;
        // Two hosts that probe for the same address at once: both step back (RFC 5227, 2.1.1).
        let probes = arp.request && arp.sender.is_unspecified() && arp.target == self.address;
        let probing = matches!(self.phase, Phase::Probing { .. });
        let lost = if probing {
            claims || probes
        } else {
            claims && self.defended.is_some_and(|at| now.saturating_sub(at) < DEFEND_MS)
        };
        if lost {
            self.phase = Phase::Lost;
            self.due = None;
            return Some(Act::Conflict(arp.sender_mac));
        }
        if !probing && claims {
            self.defended = Some(now);
            return Some(self.announcement());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const OTHER: Mac = [2, 0, 0, 0, 0, 2];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

    fn claim() -> Arp {
        Arp {
            request: false,
            sender_mac: OTHER,
            sender: ADDRESS,
            target: Ipv4Addr::new(10, 0, 0, 9),
        }
    }

    #[test]
    fn silence_frees_the_address_after_three_probes_and_it_is_announced_twice() {
        let mut acd = Acd::probing(OURS, ADDRESS, 0);
        let mut acts = Vec::new();
        while let Some(due) = acd.due() {
            assert!(due == 0 || acd.tick(due - 1).is_none());
            acts.extend(acd.tick(due).map(|act| (due, act)));
        }
        let times: Vec<u64> = acts.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 100, 200, 300, 400, 2_400]);
        assert_eq!(acts[3].1, Act::Free);
        assert!(matches!(acts[0].1, Act::Send(arp) if arp.sender.is_unspecified() && arp.target == ADDRESS));
        assert!(matches!(acts[4].1, Act::Send(arp) if arp.sender == ADDRESS && arp.target == ADDRESS));
    }

    #[test]
    fn claim_and_foreign_probe_are_conflicts_while_probing() {
        let probe = Arp {
            request: true,
            sender: Ipv4Addr::UNSPECIFIED,
            target: ADDRESS,
            ..claim()
        };
        for seen in [claim(), probe] {
            let mut acd = Acd::probing(OURS, ADDRESS, 0);
            acd.tick(0);
            assert_eq!(acd.heard(50, &seen), Some(Act::Conflict(OTHER)));
            assert_eq!((acd.due(), acd.tick(1_000)), (None, None));
        }
    }

    #[test]
    fn held_address_is_defended_once_and_given_up_at_the_second_claim() {
        let mut acd = Acd::holding(OURS, ADDRESS, 0);
        assert!(matches!(acd.heard(1_000, &claim()), Some(Act::Send(_))));
        assert!(
            matches!(acd.heard(11_001, &claim()), Some(Act::Send(_))),
            "long after the first"
        );
        assert_eq!(acd.heard(12_000, &claim()), Some(Act::Conflict(OTHER)));
    }

    #[test]
    fn questions_of_others_and_our_own_frames_are_no_conflict() {
        let mut acd = Acd::probing(OURS, ADDRESS, 0);
        let question = Arp {
            request: true,
            sender: Ipv4Addr::new(10, 0, 0, 9),
            target: ADDRESS,
            ..claim()
        };
        assert_eq!(acd.heard(1, &question), None);
        assert_eq!(
            acd.heard(
                1,
                &Arp {
                    sender_mac: OURS,
                    ..claim()
                }
            ),
            None
        );
    }

    proptest! {
        #[test]
        fn frame_survives_its_bytes(request: bool, mac: [u8; 6], sender: u32, target: u32) {
            let arp = Arp { request, sender_mac: mac, sender: sender.into(), target: target.into() };
            prop_assert_eq!(Arp::parse(&arp.frame()), Some(arp));
        }

        #[test]
        fn parser_takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Arp::parse(&bytes);
        }

        #[test]
        fn invariant_never_free_after_a_conflict(steps in prop::collection::vec((0u64..300, any::<bool>(), any::<bool>()), 1..60)) {
            let (mut acd, mut now) = (Acd::probing(OURS, ADDRESS, 0), 0);
            let (mut probes, mut lost) = (0, false);
            for (pass, hears, ours) in steps {
                now += pass;
                let sender_mac = if ours { OURS } else { OTHER };
                let act = if hears { acd.heard(now, &Arp { sender_mac, ..claim() }) } else { acd.tick(now) };
                match act {
                    Some(Act::Send(arp)) if arp.sender.is_unspecified() => probes += 1,
                    Some(Act::Free) => prop_assert!(!lost && probes == PROBES),
                    Some(Act::Conflict(mac)) => {
                        prop_assert!(!lost && mac == OTHER);
                        lost = true;
                    }
                    Some(Act::Send(_)) => prop_assert!(!lost),
                    None => {}
                }
            }
        }
    }
}
