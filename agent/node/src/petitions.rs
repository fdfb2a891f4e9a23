//! The member's side of admission by an operator's word: hears who asks, shows it to operators, hands on what they sign.
//!
//! Who is heard and for how long is `agent/identity`'s to say, what a signature is worth the format's. Invariant: a petition is
//! answered without a way in: whoever is approved comes again with a membership, and is judged as any other peer.

use crate::clock;
use crate::journal::Journal;
use crate::rest::Refused;
use beemesh_agent_api::petition::{PetitionState, PetitionView};
use beemesh_agent_api::view;
use beemesh_agent_fabric::{Admission, Admitted, Denial as Refusal};
use beemesh_agent_identity::MembershipAdmission;
use beemesh_agent_identity::petition::{
    Answer, Command, Decided, Event, Pending, Petitions as Table, State, VALID_S,
};
use beemesh_ids::{FabricId, NodeName, PeerId};
use beemesh_joinpack_format::{
    Admission as Way, Assurance, DENIAL_PAYLOAD_TYPE, Denial, Envelope, RootChain, Source,
    VOUCHER_PAYLOAD_TYPE, Voucher,
};
use hyper::StatusCode;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest word of an operator, in bytes: with its redemption it makes a membership.
const DECISION_LIMIT: usize = 8 * 1024;

/// Cheap to clone; all clones share one table. In memory only: after a restart the machines ask again.
#[derive(Clone)]
pub struct Petitions {
    table: Arc<Mutex<Table>>,
    cell: String,
    journal: Journal,
}

impl Petitions {
    /// None yet.
    pub fn new(fabric: FabricId, cell: String, journal: Journal) -> Self {
        Self {
            table: Arc::new(Mutex::new(Table::new(fabric))),
            cell,
            journal,
        }
    }

    /// A machine asks.
    fn ask(&self, peer: &PeerId, source: IpAddr, petition: &[u8]) -> Answer {
        let event = Event::Asked {
            peer: peer.clone(),
            source,
            petition: petition.to_owned(),
        };
        let mut answer = Answer::Waiting;
        for command in self.lock().step(now_s(), event) {
            match command {
                Command::Answer(given) => answer = given,
                Command::Announce(pending) => self.announce(&pending),
                Command::Decided(_) => {}
            }
        }
        answer
    }

    fn announce(&self, pending: &Pending) {
        let message = format!(
            "a machine at {} asks to be let in and shows the code {}: `bmctl node approve {}` if that is what its console shows",
            pending.source, pending.code, pending.code
        );
        self.journal.emit("AsksToJoin", "fabric", &message);
    }

    /// Who asked here, for operators.
    pub fn view(&self) -> Vec<PetitionView> {
        let now = now_s();
        let all = self.lock().pending(now);
        let view = |pending: Pending| {
            let age_s = now.saturating_sub(pending.since_s);
            PetitionView {
                code: pending.code,
                peer_id: pending.peer,
                name: pending.petition.name,
                assurance: match pending.petition.assurance {
                    Assurance::Tpm => view::Assurance::Tpm,
                    Assurance::Low => view::Assurance::Low,
                },
                source: pending.source,
                cell: self.cell.clone(),
                age_s,
                left_s: VALID_S.saturating_sub(age_s),
                state: match pending.state {
                    State::Waiting => PetitionState::Waiting,
                    State::Approved(_) => PetitionState::Approved,
                    State::Denied => PetitionState::Denied,
                },
            }
        };
        all.into_iter().map(view).collect()
    }

    /// Takes what an operator signed: a voucher or a denial. `in_use` tells of a name whether a member other than this peer has it.
    pub fn decide(
        &self,
        envelope: &[u8],
        roots: &RootChain,
        in_use: impl FnOnce(&NodeName, &PeerId) -> bool,
    ) -> Result<(), Refused> {
        let forbidden = |refusal: beemesh_joinpack_format::Refusal| {
            Refused::new(StatusCode::FORBIDDEN, refusal.to_string())
        };
        let conflict = |error: String| Err(Refused::new(StatusCode::CONFLICT, error));
        let envelope = Envelope::parse(envelope, DECISION_LIMIT).map_err(forbidden)?;
        let (peer, event, word) = match envelope.payload_type() {
            VOUCHER_PAYLOAD_TYPE => {
                let voucher = Voucher::verify(&envelope, roots, Source::Person).map_err(forbidden)?;
                let peer = PeerId::from_ed25519(voucher.key.as_bytes());
                if voucher.admission != Way::Approved {
                    let error = "the voucher is not an operator's word";
                    return Err(Refused::new(StatusCode::BAD_REQUEST, error));
                }
                if voucher.cell != self.cell {
                    return conflict(format!(
                        "this node's cell is `{}`, not `{}`",
                        self.cell, voucher.cell
                    ));
                }
                if in_use(&voucher.node, &peer) {
                    return conflict(format!("another member has the name `{}`", voucher.node));
                }
                let word = format!("is let in as {}", voucher.node);
                let event = Event::Approved {
                    peer: peer.clone(),
                    voucher: envelope,
                };
                (peer, event, word)
            }
            DENIAL_PAYLOAD_TYPE => {
                let peer = Denial::verify(&envelope, roots).map_err(forbidden)?.peer_id;
                let event = Event::Denied { peer: peer.clone() };
                (peer, event, "is not let in".to_owned())
            }
            _ => {
                let error = "neither a voucher nor a denial";
                return Err(Refused::new(StatusCode::BAD_REQUEST, error));
            }
        };
        match self.lock().step(now_s(), event).as_slice() {
            [Command::Decided(Decided::Taken)] => {
                let message = format!("{peer} {word}: an operator says so");
                self.journal.emit("Decided", "fabric", &message);
                Ok(())
            }
            [Command::Decided(Decided::Before)] => {
                conflict("an operator has decided about this machine before".to_owned())
            }
            _ => {
                let error = "this machine does not ask here, or its time is over: see `bmctl node pending`";
                Err(Refused::new(StatusCode::NOT_FOUND, error))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn now_s() -> u64 {
    clock::boot_ms() / 1000
}

/// The door of a member: for those with a credential, and for those who ask.
pub struct Door {
    /// Judges credentials.
    pub membership: MembershipAdmission,
    /// Hears petitions.
    pub petitions: Petitions,
}

impl Admission for Door {
    fn admit(&self, peer: &PeerId, credential: &[u8]) -> Result<Admitted, Refusal> {
        Admission::admit(&self.membership, peer, credential)
    }

    fn still_admits(&self, node: &PeerId, peer: &PeerId) -> bool {
        Admission::still_admits(&self.membership, node, peer)
    }

    fn petition(&self, peer: &PeerId, source: IpAddr, bytes: &[u8]) -> Vec<u8> {
        // Making a code takes its time, for at most so many machines as the table holds.
        tokio::task::block_in_place(|| self.petitions.ask(peer, source, bytes)).to_bytes()
    }
}

#[cfg(test)]
#[path = "petitions_tests.rs"]
mod tests;
