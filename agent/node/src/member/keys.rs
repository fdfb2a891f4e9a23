//! What the member task does about keys: takes orders to rotate them, and carries out the rotation of its own.
//!
//! The order of the steps is `agent/identity`'s (`rotation.rs`). Invariant: the membership that names a key is written only
//! once that key is on the disk, and is written over what the disk holds, not over what this task remembers: a stick may have
//! brought news meanwhile.

use super::Driver;
use crate::identity;
use crate::join::{FabricDocument, Joined};
use crate::orders::{is_used_up, to_obey};
use crate::rest::Refused;
use beemesh_agent_api::keys::{KeysView, NodeKeyView};
use beemesh_agent_fabric::Credentials;
use beemesh_agent_identity::rotation::{Command, Event as Step, turn};
use beemesh_agent_identity::{KeyError, NodeKey, server_config};
use beemesh_agent_sched::Event;
use beemesh_joinpack_format::{Envelope, KeyOrder, NodeKeys, Refusal, Source, Timestamp};
use hyper::StatusCode;
use std::collections::VecDeque;
use std::sync::Arc;

/// Longest order, in bytes.
pub(super) const ORDER_LIMIT: usize = beemesh_agent_sched::keys::MAX_ORDER;
/// A box that has not joined yet has other things to do with its TPM, but not for longer than this, in milliseconds.
const JOIN_FIRST_MS: u64 = 30_000;

/// What was done elsewhere for a rotation.
pub(super) enum Done {
    /// The new key is on the disk, or why not.
    Made(Result<Arc<NodeKey>, KeyError>),
    /// The fabric goes on with it, or not.
    Moved(bool),
}

impl Driver {
    /// Takes an order that a member handed on.
    pub(super) fn verify_order(&mut self, envelope: &[u8]) -> Option<Event> {
        // A revoked key that a member hands on documents of signs nothing new either.
        let roots = self.part.trust.judging(&self.joined);
        let taken = Envelope::parse(envelope, ORDER_LIMIT).and_then(|envelope| {
            let orders = &self.part.orders;
            orders.take(&envelope, &roots, Source::Member)
        });
        match taken {
            Ok(true) => Some(Event::Orders(self.part.orders.news())),
            Ok(false) => None,
            Err(refusal) => {
                tracing::warn!(%refusal, "a standing order from a member was refused");
                None
            }
        }
    }

    /// Takes an order from an operator.
    pub(super) fn take_order(&mut self, envelope: &[u8]) -> Result<(), Refused> {
        let refused = |refusal: Refusal| Refused::new(StatusCode::FORBIDDEN, refusal.to_string());
        let envelope = Envelope::parse(envelope, ORDER_LIMIT).map_err(refused)?;
        // Judged without the keys that are revoked themselves.
        let roots = self.part.trust.judging(&self.joined);
        let order = KeyOrder::verify(&envelope, &roots, Source::Person).map_err(refused)?;
        let taken = self.part.orders.take(&envelope, &roots, Source::Person).map_err(
            |refusal| match refusal {
                Refusal::LimitExceeded { limit, .. } => Refused::new(
                    StatusCode::CONFLICT,
                    format!(
                        "{limit} orders that each name another node are outstanding: give one for all nodes"
                    ),
                ),
                refusal => refused(refusal),
            },
        )?;
        if !taken && !self.part.orders.holds(&order.id) {
            let error = "a newer order for these nodes is known: is this machine's clock behind?";
            return Err(Refused::new(StatusCode::CONFLICT, error));
        }
        self.part
            .floors
            .raise_by_record(&order.id, self.joined.document.floor);
        self.tell_orders();
        self.flush();
        Ok(())
    }

    pub(super) fn tell_orders(&mut self) {
        self.step(Event::Orders(self.part.orders.news()));
        self.look_at_orders();
    }

    /// What an operator is shown.
    pub(super) fn keys(&self) -> KeysView {
        let orders = &self.part.orders;
        let known: std::collections::BTreeMap<_, _> = self.cell.members().collect();
        let nodes = self.cell.nodes().into_iter().filter_map(|node| {
            let key = &known.get(&node.peer_id)?.key;
            Some(NodeKeyView {
                order: orders.outstanding(&node.peer_id, &key.as_of),
                used_up: is_used_up(key.generation),
                since: Timestamp(key.since).to_string(),
                as_of: key.as_of.clone(),
                name: node.name,
                node: node.peer_id,
                key: node.key,
                generation: node.generation,
                status: node.status,
            })
        });
        KeysView {
            nodes: nodes.collect(),
            orders: orders.view(),
        }
    }

    /// Once a second, and when an order has come.
    pub(super) fn look_at_orders(&mut self) {
        self.say_conflicts();
        let now = self.now().0;
        let keys = self.joined.member.keys.clone();
        let keeps = self.part.trust.keeper().keepsake().is_all_there_is();
        let wanted = to_obey(&self.part.orders, &keys).filter(|_| !keeps);
        if wanted.is_none() {
            self.turn = None;
            match keeps {
                true => self.say_kept(),
                false => self.say_used_up(),
            }
        }
        let may = self.announced || now >= JOIN_FIRST_MS;
        let due = wanted.filter(|_| may).filter(|_| {
            let place = || now + turn(keys.newest(), self.cell.members().count());
            now >= *self.turn.get_or_insert_with(place)
        });
        self.rotate(Step::Wanted(due));
        self.rotate(Step::Tick);
    }

    fn say_used_up(&mut self) {
        let keys = &self.joined.member.keys;
        let outstanding = self.part.orders.outstanding(keys.node(), keys.as_of());
        if !is_used_up(keys.generation())
            || outstanding.is_none()
            || std::mem::replace(&mut self.used_up, true)
        {
            return;
        }
        let message = format!(
            "this box has rotated its key {} times, which is all that its membership holds: it keeps the key that it has. Revoke \
             it, reset it, and let it join by a new voucher",
            keys.generation()
        );
        self.part
            .journal
            .announce("KeyRotationsUsedUp", "node/self", &message);
    }

    /// The proof of a later key has no room in a TPM, and without it the box would not be let in after a power cut.
    fn say_kept(&mut self) {
        let keys = &self.joined.member.keys;
        let outstanding = self.part.orders.outstanding(keys.node(), keys.as_of());
        if outstanding.is_none() || std::mem::replace(&mut self.used_up, true) {
            return;
        }
        let message = "this box has no disk to keep the proof of a new key on, and goes on with the key that its TPM keeps: put in a \
                       blank disk to have it rotated";
        self.part.journal.announce("KeyNotRotated", "node/self", message);
    }

    fn say_conflicts(&self) {
        for conflict in self.admission.conflicts() {
            let message =
                format!("{conflict}: whoever showed it stays out. Revoke that node, and reset its box");
            self.part.journal.announce("KeyConflict", "fabric", &message);
        }
    }

    /// Begins with what an earlier run has left.
    pub(super) fn resume_rotation(&mut self, commands: Vec<Command>) {
        self.carry_on(commands);
    }

    pub(super) fn rotation_done(&mut self, done: Done) {
        match done {
            Done::Made(Ok(key)) => {
                self.next_key = Some(key);
                self.rotate(Step::Made(true));
            }
            Done::Made(Err(error)) => {
                self.say_failed(&crate::words(&error));
                self.rotate(Step::Made(false));
            }
            Done::Moved(moved) => self.rotate(Step::Moved(moved)),
        }
        self.flush();
    }

    pub(super) fn rotate(&mut self, step: Step) {
        let commands = self.rotator.step(self.now().0, step);
        self.carry_on(commands);
    }

    fn carry_on(&mut self, commands: Vec<Command>) {
        let mut due = VecDeque::from(commands);
        while let Some(command) = due.pop_front() {
            if let Some(step) = self.carry_out_rotation(&command) {
                due.extend(self.rotator.step(self.now().0, step));
            }
        }
    }

    fn carry_out_rotation(&mut self, command: &Command) -> Option<Step> {
        let folder = self.part.options.state.join("identity");
        match command {
            Command::Make => {
                let done = self.rotation_done.clone();
                tokio::task::spawn_blocking(move || {
                    let tpm = beemesh_firmware_tpm::open();
                    let made = NodeKey::make_next(&folder, tpm.as_ref()).map(Arc::new);
                    // A receiver that is gone means that the agent ends.
                    let _ = done.blocking_send(Done::Made(made));
                });
                None
            }
            Command::Commit { order } => {
                let committed = tokio::task::block_in_place(|| self.commit_key(order));
                if let Err(why) = &committed {
                    self.say_failed(why);
                }
                Some(Step::Committed(committed.is_ok()))
            }
            Command::Move => {
                self.serve_with_present_key();
                let (fabric, done) = (self.fabric.clone(), self.rotation_done.clone());
                let credentials = credentials(&self.part.key.now(), &self.joined);
                tokio::spawn(async move {
                    let moved = fabric.change_key(credentials).await;
                    if let Err(error) = &moved {
                        tracing::error!(%error, "the fabric cannot go on with the new key");
                    }
                    let _ = done.send(Done::Moved(moved.is_ok())).await;
                });
                None
            }
            Command::Close => {
                if let Err(error) = self.fabric.end_old_connections() {
                    tracing::warn!(%error, "the connections by the old key were not ended");
                }
                None
            }
            Command::Forget => Some(Step::Cleared(self.clear(NodeKey::forget_old(&folder)))),
            Command::Discard => Some(Step::Cleared(self.clear(NodeKey::discard_next(&folder)))),
            // The supervisor starts the agent again, with the key that the membership names; pods live on.
            Command::Restart => std::process::exit(1),
        }
    }

    fn clear(&self, cleared: Result<(), KeyError>) -> bool {
        if let Err(error) = &cleared {
            self.say_failed(&crate::words(error));
        }
        cleared.is_ok()
    }

    fn say_failed(&self, why: &str) {
        let message = format!("the rotation of this box's key goes on later: {why}");
        self.part.journal.emit("KeyRotationFailed", "node/self", &message);
    }

    /// Signs the rotation and writes the membership with it.
    fn commit_key(&mut self, order: &str) -> Result<(), String> {
        let key = self.next_key.clone().ok_or("there is no new key")?;
        let old = self.part.key.now();
        let issued = self.part.floors.floor();
        let changed = self.part.trust.keeper().change(|document| {
            match Joined::check(document.clone(), &key.peer_id()) {
                // An attempt before this one has written it, though it heard of no success.
                Ok(joined) => Ok(joined),
                Err(_) => with_rotation(document, &old, &key, order, issued),
            }
        });
        let joined = changed.map_err(|error| crate::words(&error))?;
        self.next_key = None;
        self.turn = None;
        self.part.key.replace(key);
        self.joined = joined;
        let member = self.joined.member.clone();
        // It continues what this node knows of itself.
        let _ = self.admission.learn(&member.keys);
        let credential = self.joined.document.membership.to_bytes();
        self.step(super::member_event(member, credential));
        Ok(())
    }

    /// From now on operators see the present key too.
    fn serve_with_present_key(&self) {
        let key = self.part.key.now();
        let config = server_config(&key, &self.joined.document.membership, Arc::clone(&self.roots));
        match config {
            Ok(config) => drop(
                self.acceptor
                    .send_replace(tokio_rustls::TlsAcceptor::from(Arc::new(config))),
            ),
            Err(error) => tracing::error!(%error, "operators see the old key until the next start"),
        }
    }
}

/// The document with one rotation more.
fn with_rotation(
    mut document: FabricDocument,
    old: &NodeKey,
    new: &NodeKey,
    order: &str,
    issued: Timestamp,
) -> Result<Joined, Refusal> {
    let present = Joined::check(document.clone(), &old.peer_id())?;
    let keys: &NodeKeys = &present.member.keys;
    let rotation = keys.next(&present.member.fabric, new.peer_id(), order.to_owned(), issued);
    let rotation = rotation.ok_or(Refusal::LimitExceeded {
        what: "rotations of one node",
        limit: beemesh_joinpack_format::limits::ROTATIONS,
    })?;
    let envelope = rotation.sign(old.secret_key(), new.secret_key())?;
    document.membership.rotations.push(envelope);
    Joined::check(document, &new.peer_id())
}

/// What this box shows to members.
pub(super) fn credentials(key: &identity::NodeKey, joined: &Joined) -> Credentials {
    Credentials {
        secret: key.secret_bytes(),
        generation: joined.member.keys.generation(),
        credential: joined.document.membership.to_bytes(),
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
