//! Who asks to be let in, as a member sees it: machines without a voucher, each with a code on its console, that wait for an
//! operator's word (`usb-joinpack/SPEC.md`, section "Approval").
//!
//! Pure: events in, answers out; the clock is the caller's, and runs with the machine. Grants nothing: what an operator signed
//! is only handed on. Invariants: at most [`PENDING`] petitions, of those that are not approved at most [`PER_SOURCE`] of one
//! source, each for [`VALID_S`] seconds from its first word; one that waits is never pushed out; one is decided once.

use beemesh_ids::{FabricId, NodeName, PeerId};
use beemesh_joinpack_format::{ApprovalCode, Assurance, Envelope, limits::MEMBERSHIP_LIMIT};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

/// Petitions at a time.
pub const PENDING: usize = 64;
/// Petitions at a time from one IPv4 address or one IPv6 /64 network.
pub const PER_SOURCE: usize = 8;
/// How long a petition can be decided, in seconds since it was first seen.
pub const VALID_S: u64 = 15 * 60;
/// Longest petition, in bytes.
pub const PETITION_LIMIT: usize = 1024;

/// What a machine says that wants to be let in. Its peer id is proven by the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Petition {
    /// The fabric that it wants to join.
    pub fabric: FabricId,
    /// The name that the join pack has for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// How far its key can be believed, says the machine.
    pub assurance: Assurance,
}

/// What a member answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Answer {
    /// No operator has decided: ask again.
    Waiting,
    /// An operator said yes: a voucher for the key of whoever asked.
    Approved {
        /// Signed by an operator, unverified.
        voucher: Envelope,
    },
    /// An operator said no.
    Denied,
    /// The member takes no petition of this machine now.
    Refused {
        /// A sentence.
        reason: String,
    },
}

impl Petition {
    /// The petition as it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Strings always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Answer {
    /// The answer as it goes over the wire.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads an answer; `None` where it is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let short = bytes.len() <= MEMBERSHIP_LIMIT;
        short.then(|| serde_json::from_slice(bytes).ok()).flatten()
    }
}

/// What became of a petition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nobody has decided.
    Waiting,
    /// The voucher of an operator, verified by the caller.
    Approved(Envelope),
    /// An operator said no.
    Denied,
}

/// One petition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Who asks.
    pub peer: PeerId,
    /// From where; the network of an IPv6 address.
    pub source: IpAddr,
    /// What it said first.
    pub petition: Petition,
    /// What its console shows.
    pub code: ApprovalCode,
    /// When it was seen first, in seconds of the caller's clock.
    pub since_s: u64,
    /// What became of it.
    pub state: State,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A machine asks, for the first time or again.
    Asked {
        /// Who, proven.
        peer: PeerId,
        /// From where.
        source: IpAddr,
        /// At most [`PETITION_LIMIT`] bytes, unverified.
        petition: Vec<u8>,
    },
    /// An operator let this machine in; the caller verified the voucher and its key.
    Approved {
        /// Whom.
        peer: PeerId,
        /// The voucher.
        voucher: Envelope,
    },
    /// An operator did not let this machine in.
    Denied {
        /// Whom.
        peer: PeerId,
    },
}

/// What came of an operator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decided {
    /// It is the answer from now on.
    Taken,
    /// Nobody with this key waits here, or no longer.
    NotPending,
    /// Somebody decided before, in another way or by another voucher.
    Before,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answer whoever asked.
    Answer(Answer),
    /// Tell people that this machine waits.
    Announce(Box<Pending>),
    /// Tell the operator.
    Decided(Decided),
}

/// The petitions that a member knows.
#[derive(Debug)]
pub struct Petitions {
    fabric: FabricId,
    all: BTreeMap<PeerId, Pending>,
}

impl Petitions {
    /// None yet, at the door of `fabric`.
    pub fn new(fabric: FabricId) -> Self {
        Self {
            fabric,
            all: BTreeMap::new(),
        }
    }

    /// The petitions that can still be fetched or decided, those first that wait longest.
    pub fn pending(&mut self, now_s: u64) -> Vec<Pending> {
        self.expire(now_s);
        let mut all: Vec<Pending> = self.all.values().cloned().collect();
        all.sort_by(|a, b| (a.since_s, &a.peer).cmp(&(b.since_s, &b.peer)));
        all
    }

    /// One thing happens at `now_s` seconds of a clock that never goes back.
    pub fn step(&mut self, now_s: u64, event: Event) -> Vec<Command> {
        self.expire(now_s);
        match event {
            Event::Asked {
                peer,
                source,
                petition,
            } => self.asked(now_s, peer, network(source), &petition),
            Event::Approved { peer, voucher } => self.decided(&peer, State::Approved(voucher)),
            Event::Denied { peer } => self.decided(&peer, State::Denied),
        }
    }

    fn expire(&mut self, now_s: u64) {
        self.all
            .retain(|_, pending| now_s.saturating_sub(pending.since_s) < VALID_S);
    }

    fn asked(&mut self, now_s: u64, peer: PeerId, source: IpAddr, petition: &[u8]) -> Vec<Command> {
        let refused = |reason: &str| {
            vec![Command::Answer(Answer::Refused {
                reason: reason.to_owned(),
            })]
        };
        if let Some(known) = self.all.get(&peer) {
            let answer = match &known.state {
                State::Waiting => Answer::Waiting,
                State::Approved(voucher) => Answer::Approved {
                    voucher: voucher.clone(),
                },
                State::Denied => Answer::Denied,
            };
            return vec![Command::Answer(answer)];
        }
        if petition.len() > PETITION_LIMIT {
            return refused("the petition is too long");
        }
        let Ok(petition) = serde_json::from_slice::<Petition>(petition) else {
            return refused("the petition is malformed");
        };
        if petition.fabric != self.fabric {
            return refused("this member belongs to another fabric: use the join stick of this site");
        }
        let open =
            |pending: &&Pending| pending.source == source && !matches!(pending.state, State::Approved(_));
        if self.all.values().filter(open).count() >= PER_SOURCE {
            return refused("too many machines ask from this address: try again in a quarter of an hour");
        }
        if self.all.len() >= PENDING && !self.make_room() {
            return refused("too many machines ask at this time: try again in a quarter of an hour");
        }
        // Only now: it is made slow for forgers, and strangers must not make a member slow.
        let code = ApprovalCode::of(&self.fabric, &peer);
        let pending = Pending {
            peer: peer.clone(),
            source,
            petition,
            code,
            since_s: now_s,
            state: State::Waiting,
        };
        self.all.insert(peer, pending.clone());
        vec![
            Command::Announce(Box::new(pending)),
            Command::Answer(Answer::Waiting),
        ]
    }

    /// Forgets the oldest petition that was decided: whoever it was may ask again. Nobody is forgotten who waits.
    fn make_room(&mut self) -> bool {
        let decided = self
            .all
            .values()
            .filter(|pending| pending.state != State::Waiting);
        let oldest = decided.min_by_key(|pending| pending.since_s);
        let peer = oldest.map(|pending| pending.peer.clone());
        peer.is_some_and(|peer| self.all.remove(&peer).is_some())
    }

    fn decided(&mut self, peer: &PeerId, state: State) -> Vec<Command> {
        let decided = match self.all.get_mut(peer) {
            None => Decided::NotPending,
            Some(pending) if pending.state == state => Decided::Taken,
            Some(pending) if pending.state == State::Waiting => {
                pending.state = state;
                Decided::Taken
            }
            Some(_) => Decided::Before,
        };
        vec![Command::Decided(decided)]
    }
}

/// What is counted as one source: whoever has an IPv6 network has all its addresses.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => ip.into(),
            None => Ipv6Addr::from(u128::from(ip) & !u128::from(u64::MAX)).into(),
        },
    }
}

#[cfg(test)]
#[path = "petition_tests.rs"]
mod tests;
