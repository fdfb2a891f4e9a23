//! Newer keys of members, and standing orders, on their way through the cell.
//!
//! It verifies nothing and knows no signature: credentials and orders are bytes, and the driver says what they mean. A member
//! is known by its node id, which a new key does not change: nothing that is placed, granted or voted on is touched.
//! Invariant: a credential is replaced only by one of a later key; each list is bounded.

use crate::cell::Cell;
use crate::gossip::FAN_OUT;
use crate::model::{Command, OrderNews};
use crate::releases::{Release, ReleaseNews};
use crate::sync::MAX_LIST;
use crate::wire::Message;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Envelope, ReleaseEntry, Standing, limits};
use std::collections::BTreeSet;

/// Standing orders that are handed on, at most: as many as are held.
pub const MAX_ORDERS: usize = limits::STANDING;
/// Longest order, in bytes.
pub const MAX_ORDER: usize = limits::ORDER_LIMIT;
/// Keys come no more when none was learned for so long, in milliseconds.
const CALM_MS: u64 = 1000;

impl OrderNews {
    /// What `standing` says.
    pub fn of(standing: &Standing) -> Self {
        let digest = standing.digest();
        // 0 says that nothing is known.
        let short = digest.as_bytes().first_chunk().copied().unwrap_or_default();
        let releases = standing.releases.iter().next_back().map(|list| ReleaseNews {
            id: list.id.clone(),
            releases: list.releases.iter().map(Release::from).collect(),
        });
        Self {
            digest: match standing.is_empty() {
                true => 0,
                false => u64::from_be_bytes(short).max(1),
            },
            orders: standing.envelopes().map(Envelope::to_json).collect(),
            accepted: standing.boots.accepted(),
            releases,
        }
    }
}

impl From<&ReleaseEntry> for Release {
    fn from(entry: &ReleaseEntry) -> Self {
        Self {
            version: entry.version.clone(),
            pcr11: entry.pcr11,
        }
    }
}

impl Cell {
    /// A member knows other keys: it hears which ones this node knows.
    pub(crate) fn on_key_digest(&mut self, from: &PeerId, theirs: u64) {
        if theirs != self.roster.key_digest() && self.may_exchange_keys(from) {
            let keys = self.roster.generations().take(MAX_LIST).collect();
            self.send(from, Message::Keys(keys));
        }
    }

    /// While all members rotate, each connection brings a key, and no two nodes know the same ones for a moment: a list would say
    /// what the next connections say, so only one is exchanged in [`CALM_MS`]. Once keys have ceased to come, or if they never
    /// do, what was missed is made good as fast as everything else.
    fn may_exchange_keys(&mut self, from: &PeerId) -> bool {
        let is_calm = self
            .key_learned
            .is_none_or(|learned| self.now.since(learned) >= CALM_MS);
        let me = self.config.me.clone();
        (is_calm || self.may_ask(&me, "keys", CALM_MS)) && self.may_exchange(from, "keys")
    }

    /// What a member knows of keys: it gets the credentials of later ones, and is asked for those that it has.
    pub(crate) fn on_keys(&mut self, from: &PeerId, mut theirs: Vec<(PeerId, u32)>) {
        theirs.truncate(MAX_LIST);
        theirs.sort_unstable();
        let later = theirs.iter().filter(|(peer, generation)| {
            let known = self.roster.generation(peer);
            known.is_some_and(|known| known < *generation)
        });
        let wanted: BTreeSet<PeerId> = later.map(|(peer, _)| peer.clone()).collect();
        let is_later = |(peer, generation): &(PeerId, u32)| {
            // Of a member that stands there twice, the latest.
            let after = theirs.partition_point(|(other, _)| other <= peer);
            let known = after.checked_sub(1).and_then(|at| theirs.get(at));
            !known.is_some_and(|(other, known)| other == peer && known >= generation)
        };
        let lacks = self.roster.generations().filter(is_later);
        let lacks: BTreeSet<PeerId> = lacks.map(|(peer, _)| peer).collect();
        if !wanted.is_empty() {
            self.send(from, Message::MembersWanted(wanted.into_iter().collect()));
        }
        self.send_members(from, &lacks);
    }

    /// The driver knows other orders than before: the others hear them.
    pub(crate) fn on_orders(&mut self, news: OrderNews) {
        let is_news = self.order_digest != news.digest;
        self.order_digest = news.digest;
        self.on_accepted(news.accepted);
        news.releases
            .into_iter()
            .for_each(|releases| self.on_releases(releases));
        self.orders = news
            .orders
            .into_iter()
            .filter(|bytes| bytes.len() <= MAX_ORDER)
            .take(MAX_ORDERS)
            .collect();
        if is_news {
            for peer in self.some_connected(FAN_OUT) {
                self.send_orders(&peer);
            }
        }
    }

    /// A member knows other orders: both tell what they have, and each keeps what still says something.
    pub(crate) fn on_order_digest(&mut self, from: &PeerId, theirs: u64) {
        if theirs != self.order_digest && self.may_exchange(from, "orders") {
            self.send_orders(from);
            if self.orders.is_empty() {
                self.send(from, Message::OrdersWanted);
            }
        }
    }

    pub(crate) fn send_orders(&mut self, to: &PeerId) {
        for envelope in self.orders.clone() {
            self.send(to, Message::Order(envelope));
        }
    }

    pub(crate) fn on_order(&mut self, envelope: Vec<u8>) {
        if envelope.len() <= MAX_ORDER && !self.orders.contains(&envelope) {
            self.out.push(Command::VerifyOrder { envelope });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CellConfig, Event, KeyInfo, MemberInfo, Millis, Persisted, Record, Tuning};
    use beemesh_agent_api::view::Assurance;

    fn peer(n: u8) -> PeerId {
        PeerId::from_ed25519(&[n; 32])
    }

    /// A member after so many rotations; its credential names the generation.
    fn info(n: u8, generation: u8) -> MemberInfo {
        MemberInfo {
            name: format!("node-{n}").parse().unwrap(),
            assurance: Assurance::Low,
            voucher_id: format!("voucher-{n}"),
            redeemed: 1,
            credential: vec![n, generation],
            key: KeyInfo {
                peer: Some(PeerId::from_ed25519(
                    &[n, generation].repeat(16).try_into().unwrap(),
                )),
                generation: u32::from(generation),
                as_of: String::new(),
                since: 0,
            },
        }
    }

    /// A cell of these nodes that are all connected to the first.
    fn cell(me: u8, others: &[u8]) -> Cell {
        let config = CellConfig {
            me: peer(me),
            member: info(me, 0),
            seed: u64::from(me),
            tuning: Tuning::default(),
        };
        let mut cell = Cell::new(config, Persisted::default(), Millis(0));
        for n in others {
            let member = Event::Member {
                peer: peer(*n),
                member: info(*n, 0),
            };
            cell.step(Millis(1), member);
            cell.step(Millis(1), Event::Connected { peer: peer(*n) });
        }
        cell
    }

    /// Carries messages between two cells for some seconds; whatever is to be verified is right.
    fn talk(cells: &mut [Cell; 2], ids: [u8; 2], from_ms: u64) {
        for tick in 0..40 {
            let now = Millis(from_ms + tick * 100);
            let mut due = std::collections::VecDeque::from([(0, Event::Tick), (1, Event::Tick)]);
            let mut moves = 0;
            while let Some((at, event)) = due.pop_front() {
                moves += 1;
                assert!(moves < 10_000, "they never end");
                for command in cells[at].step(now, event) {
                    match command {
                        Command::Send { to, bytes } if to == peer(ids[1 - at]) => {
                            let from = peer(ids[at]);
                            due.push_back((1 - at, Event::Message { from, bytes }));
                        }
                        command => due.extend(verify(&command).map(|event| (at, event))),
                    }
                }
            }
        }
    }

    fn verify(command: &Command) -> Option<Event> {
        match command {
            Command::VerifyMember { peer, credential } => Some(Event::Member {
                peer: peer.clone(),
                member: info(credential[0], credential[1]),
            }),
            _ => None,
        }
    }

    #[test]
    fn newer_key_is_kept_once_and_changes_neither_roster_nor_arbiters() {
        let mut cell = cell(1, &[2]);
        let before = (
            cell.roster.digest(),
            cell.roster_since,
            cell.roster.arbiters(7, 5),
        );
        let rotated = Event::Member {
            peer: peer(2),
            member: info(2, 1),
        };
        let kept = |commands: &[Command]| {
            let record = Command::Persist(Record::Member(peer(2), info(2, 1)));
            commands.iter().filter(|command| **command == record).count()
        };
        assert_eq!(kept(&cell.step(Millis(2), rotated.clone())), 1);
        assert_eq!(kept(&cell.step(Millis(3), rotated)), 0);
        let older = Event::Member {
            peer: peer(2),
            member: info(2, 0),
        };
        cell.step(Millis(4), older);
        assert_eq!(
            cell.roster.generation(&peer(2)),
            Some(1),
            "an older credential takes nothing back"
        );
        assert_eq!(
            (
                cell.roster.digest(),
                cell.roster_since,
                cell.roster.arbiters(7, 5)
            ),
            before
        );
        let nodes = cell.nodes();
        let node = nodes.iter().find(|node| node.peer_id == peer(2)).unwrap();
        assert_eq!(
            (node.key.clone(), node.generation),
            (info(2, 1).key.peer.unwrap(), 1)
        );
    }

    #[test]
    fn member_that_missed_a_rotation_gets_the_credential_from_another() {
        let mut cells = [cell(1, &[2, 3]), cell(2, &[1, 3])];
        let rotated = Event::Member {
            peer: peer(3),
            member: info(3, 2),
        };
        cells[0].step(Millis(5), rotated);
        talk(&mut cells, [1, 2], 1_000);
        assert_eq!(cells[1].roster.generation(&peer(3)), Some(2));
        let [one, two] = cells.each_mut().map(|cell| cell.roster.key_digest());
        assert_eq!(one, two);
    }

    #[test]
    fn while_keys_come_one_list_is_exchanged_a_second_and_then_as_many_as_of_anything() {
        let others: Vec<u8> = (2..60).collect();
        let mut cell = cell(1, &others);
        // Lists that heartbeats with another digest draw in 100 ms, one heartbeat every 2 ms.
        let mut seq = 0;
        let mut lists = |cell: &mut Cell, from_ms: u64| {
            let mut lists = 0;
            for ms in (0..100).step_by(2) {
                seq += 1;
                let heartbeat = crate::wire::Heartbeat {
                    generation: 1,
                    yours: 0,
                    seq,
                    version: 0,
                    roster: cell.roster.digest(),
                    changes: 0,
                    revocations: 0,
                    roots: 0,
                    keys: 7,
                    orders: 0,
                    recovered: true,
                    body: None,
                };
                let bytes = Message::Heartbeat(Box::new(heartbeat)).encode().unwrap();
                let from = peer(2 + (ms / 2) as u8);
                let commands = cell.step(Millis(from_ms + ms), Event::Message { from, bytes });
                let is_list = |command: &&Command| match command {
                    Command::Send { bytes, .. } => matches!(Message::decode(bytes), Ok(Message::Keys(_))),
                    _ => false,
                };
                lists += commands.iter().filter(is_list).count();
            }
            lists
        };
        let rotated = |n: u8| Event::Member {
            peer: peer(n),
            member: info(n, 1),
        };
        assert_eq!(lists(&mut cell, 1_000), 4, "nobody rotates");
        cell.step(Millis(2_000), rotated(3));
        assert_eq!(lists(&mut cell, 2_010), 1);
        cell.step(Millis(2_500), rotated(4));
        assert_eq!(lists(&mut cell, 2_510), 0);
        assert_eq!(lists(&mut cell, 3_100), 1, "but once a second");
        assert_eq!(lists(&mut cell, 3_600), 4, "nobody rotates any more");
    }

    #[test]
    fn order_goes_to_all_members_and_an_order_that_is_known_is_not_verified_again() {
        let mut cell = cell(1, &[2, 3]);
        let news = OrderNews {
            digest: 7,
            orders: vec![b"order".to_vec()],
            ..OrderNews::default()
        };
        let commands = cell.step(Millis(5), Event::Orders(news.clone()));
        let order = Message::Order(b"order".to_vec()).encode().unwrap();
        let sent = |commands: &[Command]| {
            commands
                .iter()
                .filter(|command| matches!(command, Command::Send { bytes, .. } if *bytes == order))
                .count()
        };
        assert_eq!(sent(&commands), 2);
        assert_eq!(sent(&cell.step(Millis(6), Event::Orders(news))), 0, "no news");
        let heard = |cell: &mut Cell, bytes: &[u8]| {
            let bytes = Message::Order(bytes.to_vec()).encode().unwrap();
            let commands = cell.step(Millis(7), Event::Message { from: peer(2), bytes });
            commands
                .iter()
                .any(|command| matches!(command, Command::VerifyOrder { .. }))
        };
        assert!(!heard(&mut cell, b"order"));
        assert!(heard(&mut cell, b"another"));
        assert!(!heard(&mut cell, &vec![0; MAX_ORDER + 1]));
    }
}
