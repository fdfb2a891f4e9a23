//! The change of the own key, and the end of connections that a newer one has replaced or that may not go on.

use super::{Connection, Driver, keypair, node_id};
use crate::{Credentials, FabricError, FabricEvent};
use std::time::Instant;

impl Driver {
    /// Goes on with another key. The connections of the old one stay until there is one of the new key to the same node.
    pub(super) fn change_key(&mut self, credentials: Credentials) -> Result<(), FabricError> {
        let Credentials {
            mut secret,
            generation,
            credential,
        } = credentials;
        let key = keypair(&mut secret)?;
        let transport = self.maker.make(&key, generation, credential)?;
        self.generation = generation;
        self.lever.change(transport);
        // All are dialled again at once, though they are connected.
        self.keys.clear();
        let now = Instant::now();
        for connection in self.connections.values() {
            self.book.lost(&connection.peer, now, 1.0);
        }
        self.left = Some(usize::MAX);
        Ok(())
    }

    pub(super) fn is_old(&self, connection: &Connection) -> bool {
        connection.passed.own_generation < self.generation
    }

    /// Ends the connections by older keys of this node, and listens with the new one alone.
    pub(super) fn end_old(&mut self) {
        let present = self
            .connections
            .values()
            .filter(|connection| self.is_old(connection));
        let old: Vec<_> = present
            .chain(
                self.retiring
                    .values()
                    .filter(|connection| self.is_old(connection)),
            )
            .map(|connection| (connection.passed.node.clone(), connection.id))
            .collect();
        for (node, id) in old {
            self.end(&node, id, "by an older key of this node");
        }
        self.left = None;
        self.lever.end_past();
    }

    /// Says how many members are left to an older key of this node, when that has changed.
    pub(super) fn say_left(&mut self) {
        let Some(said) = self.left else { return };
        let members = self
            .connections
            .values()
            .filter(|connection| self.is_old(connection))
            .count();
        if members != said {
            self.left = Some(members);
            self.pending.push_back(FabricEvent::Left { members });
        }
    }

    /// Ends the connections by keys that do not count any more.
    pub(super) fn review(&mut self) {
        let all = self.connections.values().chain(self.retiring.values());
        let ended: Vec<_> = all
            .filter(|connection| {
                let key = node_id(&connection.peer);
                key.is_ok_and(|key| !self.maker.admission.still_admits(&connection.passed.node, &key))
            })
            .map(|connection| (connection.passed.node.clone(), connection.id))
            .collect();
        for (node, id) in ended {
            self.end(&node, id, "its key is superseded");
        }
    }

    /// Gives up the ways to those that have retired: their connections end with their last stream.
    pub(super) fn retire_due(&mut self) {
        let now = Instant::now();
        for connection in self.retiring.values_mut() {
            if connection.retires.is_some_and(|at| at <= now) {
                connection.link = None;
            }
        }
    }
}
