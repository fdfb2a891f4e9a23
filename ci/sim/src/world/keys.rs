//! Node keys: orders to rotate them, and what each node does about an order, as the agent's member task does it.
//!
//! Which order says what is `usb-joinpack/format`'s to judge, when which step comes `agent/identity`'s; both are the shipped
//! code, and orders, memberships and rotations are really signed. A membership is verified once, by the shipped code, and not again by
//! each of its readers (a thousand nodes read a million, of the same bytes); cells are handed a short name in its place, or a
//! thousand of them would hold a million copies. What its size and its verification cost each reader is counted in virtual
//! time: [`CREDENTIAL`], [`VERIFY_US`], [`HANDSHAKE_US`]. Making a key takes no time here: a TPM's is not in the figures.

use super::{What, World};
use beemesh_agent_api::view::Assurance;
use beemesh_agent_identity::rotation::{Command, Event as Step, Leftover, Rotator, turn};
use beemesh_agent_sched::{Event, KeyInfo, MemberInfo};
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Member, Membership, NodeKeys, SecretKey};
use rand::RngExt;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of a membership with one rotation, and of what the transport says beside it; a test looks at it.
const CREDENTIAL: usize = 4 * 1024;
/// What a membership costs whoever reads and verifies it: four signatures and their JSON. [`crate::costs`] measured 0.19 ms (AMD EPYC,
/// 2026-11-29); this is five times as much, for a slow processor.
pub(crate) const VERIFY_US: u64 = 1000;
/// What a new connection costs each of its ends beside waiting: agreement of keys, signatures, the membership. [`crate::costs`]
/// measured 1.9 ms by TCP and 2.8 ms by QUIC on the same machine; this is that, rounded up, and nothing for a slower one.
pub(crate) const HANDSHAKE_US: u64 = 3000;
/// Messages from the first packet of a connection until both ends have been admitted.
const HANDSHAKE: usize = 6;
/// A lost one of them is sent again after so many milliseconds (TCP's least time, RFC 6298, rounded up).
const AGAIN_MS: u64 = 250;
/// Dials at a time, as `agent/fabric` has it (`dial_book.rs`).
const DIALS: usize = 32;
/// How often a node looks at its orders, in milliseconds.
const LOOK_MS: u64 = 1000;

/// A node's keys, and what it knows of the others'.
pub struct Keys {
    /// What is on the disk: the membership, the number of the present key and of the one that comes.
    membership: Membership,
    present: u64,
    next: Option<u64>,
    made: u64,
    keys: NodeKeys,
    rotator: Rotator,
    turn: Option<u64>,
    looked: u64,
    /// Members that are still to be reached by the new key, and those that are being dialled.
    waiting: VecDeque<usize>,
    dialling: BTreeSet<usize>,
    /// Members that this node knows a later key of, with its generation; itself among them.
    heard: BTreeMap<usize, u32>,
}

impl Keys {
    /// How many keys the node has had before its present one.
    pub fn generation(&self) -> u32 {
        self.keys.generation()
    }

    /// Whether a rotation is under way.
    pub fn is_busy(&self) -> bool {
        self.rotator.is_busy()
    }

    /// Members, this node among them, of which it knows a key later than the first.
    pub fn heard(&self) -> usize {
        self.heard.len()
    }

    pub(super) fn hear(&mut self, of: usize, generation: u32) {
        self.heard.insert(of, generation);
    }

    fn leftover(&self, n: usize) -> Leftover {
        match self.next {
            None => Leftover::None,
            Some(next) if self.membership.rotated_to() == Some(peer(&secret(n, next))) => Leftover::Committed,
            Some(_) => Leftover::Made,
        }
    }
}

/// The key that node `n` makes as its `number`th.
fn secret(n: usize, number: u64) -> SecretKey {
    let mut bytes = *b"node and number of its node key.";
    bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    SecretKey::from_bytes(bytes)
}

fn peer(key: &SecretKey) -> PeerId {
    PeerId::from_ed25519(key.public().as_bytes())
}

/// What cells are told of a verified member.
fn info(n: usize, member: &Member) -> MemberInfo {
    let keys = &member.keys;
    MemberInfo {
        name: member.name.clone(),
        assurance: Assurance::Tpm,
        voucher_id: member.voucher_id.clone(),
        redeemed: u64::try_from(member.redeemed.0).unwrap_or(0),
        credential: format!("membership of {n} after {} rotations", keys.generation()).into_bytes(),
        key: KeyInfo {
            peer: (keys.generation() > 0).then(|| keys.newest().clone()),
            generation: keys.generation(),
            as_of: keys.as_of().to_owned(),
            since: keys.since().0,
        },
    }
}

impl World {
    /// Peer id, membership and keys of machine `n`, which has redeemed a voucher.
    pub(super) fn admit(&self, n: usize) -> (PeerId, MemberInfo, Keys) {
        let node = peer(&secret(n, 0));
        let membership = self.authority.admit(n, &node);
        let member = membership.verify(&self.authority.roots, &node).unwrap();
        let keys = Keys {
            membership,
            present: 0,
            next: None,
            made: 0,
            keys: member.keys.clone(),
            rotator: Rotator::new(Leftover::None).0,
            turn: None,
            looked: 0,
            waiting: VecDeque::new(),
            dialling: BTreeSet::new(),
            heard: BTreeMap::new(),
        };
        (node, info(n, &member), keys)
    }

    /// An operator orders at node `at` that all nodes rotate their keys.
    pub fn order_rotation(&mut self, at: usize) {
        let order = self.authority.order().to_json();
        self.learn_order(at, &order);
    }

    /// The agent of `n` starts: with what an earlier run has left.
    pub(super) fn resume_keys(&mut self, n: usize) {
        let Some(keys) = &mut self.nodes[n].keys else {
            return;
        };
        let (rotator, commands) = Rotator::new(keys.leftover(n));
        keys.rotator = rotator;
        keys.turn = None;
        keys.waiting.clear();
        keys.dialling.clear();
        for command in commands {
            if let Some(step) = self.carry_out(n, &command) {
                self.rotate(n, step);
            }
        }
        self.look_at_orders(n);
    }

    pub(super) fn tick_keys(&mut self, n: usize) {
        let now = self.now;
        let Some(keys) = &mut self.nodes[n].keys else {
            return;
        };
        if now >= keys.looked + LOOK_MS {
            keys.looked = now;
            self.look_at_orders(n);
        }
    }

    pub(super) fn look_at_orders(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let (Some(keys), Some(cell)) = (&mut node.keys, &node.cell) else {
            return;
        };
        let newest = node.standing.keys.newest_for(&node.peer);
        let wanted = newest
            .filter(|order| *order > keys.keys.as_of())
            .map(str::to_owned);
        if wanted.is_none() {
            keys.turn = None;
        }
        let (now, own) = (self.now, keys.keys.newest());
        let at = || now + turn(own, cell.members().count());
        let due = wanted.filter(|_| now >= *keys.turn.get_or_insert_with(at));
        self.rotate(n, Step::Wanted(due));
        self.rotate(n, Step::Tick);
    }

    /// Something happened to the rotation of node `n`.
    pub(super) fn rotate(&mut self, n: usize, step: Step) {
        let mut due = VecDeque::from([step]);
        while let Some(step) = due.pop_front() {
            let now = self.now - self.nodes[n].clock_zero;
            let keys = self.nodes[n].keys.as_mut().expect("a world without keys");
            for command in keys.rotator.step(now, step) {
                due.extend(self.carry_out(n, &command));
            }
        }
    }

    fn carry_out(&mut self, n: usize, command: &Command) -> Option<Step> {
        match command {
            Command::Commit { order } => self.commit_key(n, order),
            Command::Close => self.end_old_connections(n),
            _ => {}
        }
        let keys = self.nodes[n].keys.as_mut()?;
        match command {
            Command::Make => {
                keys.made += 1;
                keys.next = Some(keys.made);
                self.push(n, 1, What::Key(Step::Made(true)));
                None
            }
            Command::Commit { .. } => Some(Step::Committed(true)),
            Command::Move => {
                self.push(n, 1, What::Key(Step::Moved(true)));
                None
            }
            Command::Close => None,
            Command::Forget => {
                keys.present = keys.next.take().expect("a key that the membership names");
                Some(Step::Cleared(true))
            }
            Command::Discard => {
                keys.next = None;
                Some(Step::Cleared(true))
            }
            Command::Restart => panic!("a fabric that moves needs no restart"),
        }
    }

    /// Signs the rotation with both keys, and shows the membership with it from now on.
    fn commit_key(&mut self, n: usize, order: &str) {
        let node = &mut self.nodes[n];
        let keys = node.keys.as_mut().expect("a world without keys");
        let (old, new) = (
            secret(n, keys.present),
            secret(n, keys.next.expect("a key was made")),
        );
        let (fabric, now) = (self.authority.roots.fabric_id(), self.authority.now());
        let rotation = keys.keys.next(fabric, peer(&new), order.to_owned(), now);
        let envelope = rotation.expect("room in the chain").sign(&old, &new).unwrap();
        keys.membership.rotations.push(envelope);
        let member = keys.membership.verify(&self.authority.roots, &peer(&new));
        let member = member.expect("what two keys signed verifies");
        keys.keys = member.keys.clone();
        keys.turn = None;
        let (peer, member) = (node.peer.clone(), info(n, &member));
        node.member = member.clone();
        let name = (peer.clone(), member.credential.clone());
        self.credentials.insert(name, member.clone());
        self.step(n, Event::Member { peer, member });
    }

    /// What was done elsewhere for the rotation of node `n`.
    pub(super) fn key_done(&mut self, n: usize, step: Step) {
        let moves = step == Step::Moved(true);
        self.rotate(n, step);
        if moves {
            let mut others: Vec<usize> = self.nodes[n].connected.iter().copied().collect();
            for at in (1..others.len()).rev() {
                others.swap(at, self.rng.random_range(0..=at));
            }
            self.nodes[n].keys.as_mut().expect("it moves").waiting = others.into();
            self.dial_on(n);
        }
    }

    /// Dials members that are not reached by the new key, and says how many are left.
    fn dial_on(&mut self, n: usize) {
        loop {
            let keys = self.nodes[n].keys.as_mut().expect("it moves");
            if keys.dialling.len() >= DIALS {
                break;
            }
            let Some(other) = keys.waiting.pop_front() else {
                break;
            };
            if !self.nodes[n].connected.contains(&other) || !self.reachable(n, other) {
                continue;
            }
            self.nodes[n]
                .keys
                .as_mut()
                .expect("it moves")
                .dialling
                .insert(other);
            let after = self.handshake_ms(n, other);
            self.push(n, after, What::Reached(other));
        }
        let keys = self.nodes[n].keys.as_ref().expect("it moves");
        let left = keys.waiting.len() + keys.dialling.len();
        self.rotate(n, Step::Left(left));
    }

    /// A new connection between the two stands.
    pub(super) fn reached(&mut self, n: usize, other: usize) {
        if let Some(keys) = &mut self.nodes[n].keys {
            keys.dialling.remove(&other);
        }
        if self.reachable(n, other) {
            for (at, of) in [(other, n), (n, other)] {
                let (peer, member) = (self.nodes[of].peer.clone(), self.nodes[of].member.clone());
                let connected = peer.clone();
                self.step(at, Event::Member { peer, member });
                self.nodes[at].connected.insert(of);
                self.step(at, Event::Connected { peer: connected });
            }
        }
        self.dial_on(n);
    }

    /// Who was not reached by the new key is cut off, and finds the node again.
    fn end_old_connections(&mut self, n: usize) {
        let keys = self.nodes[n].keys.as_mut().expect("it moves");
        let mut left: Vec<usize> = keys.waiting.drain(..).collect();
        left.extend(std::mem::take(&mut keys.dialling));
        for other in left {
            for (at, of) in [(n, other), (other, n)] {
                if self.nodes[at].connected.remove(&of) {
                    let peer = self.nodes[of].peer.clone();
                    self.step(at, Event::Disconnected { peer });
                }
            }
            self.link(n, other);
        }
    }

    fn handshake_ms(&mut self, n: usize, other: usize) -> u64 {
        let mut after = 0;
        for message in 0..HANDSHAKE {
            let from = if message % 2 == 0 { n } else { other };
            after += self.delay(from, CREDENTIAL / (HANDSHAKE / 2));
            if self.rng.random_range(0..1000) < self.network.lost {
                after += AGAIN_MS;
            }
        }
        let ends = [n, other].map(|end| self.busy(end, after, HANDSHAKE_US));
        ends[0].max(ends[1])
    }

    /// Milliseconds until node `n` is done with work of so many microseconds, which comes in `after` milliseconds: one after the
    /// other, on one processor.
    pub(super) fn busy(&mut self, n: usize, after: u64, us: u64) -> u64 {
        let node = &mut self.nodes[n];
        node.works_until = node.works_until.max((self.now + after) * 1000) + us;
        (node.works_until / 1000 + 1).saturating_sub(self.now)
    }

    /// What the credentials in a message weigh beyond their names.
    pub(super) fn credentials_in(&self, n: usize, message: &[u8]) -> usize {
        use beemesh_agent_sched::wire::Message;
        if self.nodes[n].keys.is_none() || crate::traffic::kind(message) != "Members" {
            return 0;
        }
        match Message::decode(message) {
            Ok(Message::Members(members)) => members.len() * CREDENTIAL,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;

    #[test]
    fn membership_weighs_no_more_than_is_counted() {
        let mut world = World::of_members_with_keys(1, 3, Network::default());
        world.run(2000);
        world.order_rotation(0);
        world.run(10_000);
        for node in &world.nodes {
            let keys = node.keys.as_ref().unwrap();
            assert_eq!((keys.generation(), keys.is_busy(), keys.heard()), (1, false, 3));
            let bytes = keys.membership.to_bytes().len();
            assert!(bytes > 1000 && bytes <= CREDENTIAL, "{bytes}");
        }
    }

    #[test]
    fn power_that_fails_anywhere_leaves_one_rotation_in_the_end() {
        for cut_after in 0..40 {
            let mut world = World::of_members_with_keys(cut_after, 3, Network::default());
            world.run(2000);
            world.order_rotation(0);
            world.run(cut_after * 3);
            world.kill(1);
            world.run(500);
            world.boot(1);
            world.run(20_000);
            for node in &world.nodes {
                let keys = node.keys.as_ref().unwrap();
                let state = (keys.generation(), keys.is_busy(), keys.heard(), keys.next);
                assert_eq!(state, (1, false, 3, None), "cut after {} ms", cut_after * 3);
            }
        }
    }
}
