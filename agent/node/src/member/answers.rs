//! What operators ask of this box, and the changes that they and members hand in.
//!
//! Invariant: nobody is told that a change was accepted before it is on disk.

use super::Driver;
use crate::query::Query;
use crate::rest::Refused;
use beemesh_agent_api::Change;
use beemesh_agent_sched::Event;
use beemesh_joinpack_format::{Envelope, Refusal, Source, limits};
use hyper::StatusCode;
use std::sync::PoisonError;

impl Driver {
    pub(super) fn answer(&mut self, question: Query) {
        match question {
            Query::Nodes(reply) => drop(reply.send(self.cell.nodes())),
            Query::Pods(reply) => drop(reply.send(self.cell.pods())),
            Query::Revocations(reply) => drop(reply.send(self.part.trust.view(&self.joined.roots))),
            Query::Revoke { envelope, reply } => {
                let _ = reply.send(self.take_revocations(&envelope));
            }
            Query::Roots(reply) => drop(reply.send(self.view_roots())),
            Query::Lengthen { documents, reply } => {
                let _ = reply.send(self.take_roots(&documents));
            }
            Query::Keys(reply) => drop(reply.send(self.keys())),
            Query::OrderKeys { envelope, reply } => {
                let _ = reply.send(self.take_order(&envelope));
            }
            Query::Boots(reply) => drop(reply.send(self.boots())),
            Query::AcceptBoot { envelope, reply } => {
                let _ = reply.send(self.take_acceptance(&envelope));
            }
            Query::Petitions(reply) => drop(reply.send(self.petitions.view())),
            Query::Decide { envelope, reply } => {
                let _ = reply.send(self.decide(&envelope));
            }
            Query::Change { envelope, reply } => {
                let _ = reply.send(self.take_change(envelope));
            }
        }
    }

    fn decide(&self, envelope: &[u8]) -> Result<(), Refused> {
        // Judged without the keys that are revoked themselves.
        let roots = self.part.trust.judging(&self.joined);
        self.petitions.decide(envelope, &roots, |name, peer| {
            let mut members = self.cell.members();
            members.any(|(known, member)| member.name == *name && known != peer)
        })
    }

    fn take_change(&mut self, envelope: Vec<u8>) -> Result<(), Refused> {
        let change = self
            .verify_change(&envelope, Source::Person)
            .map_err(|refusal| Refused::new(StatusCode::FORBIDDEN, refusal.to_string()))?;
        let checked = self.cell.check_change(&change, &envelope);
        checked.map_err(|error| Refused::new(StatusCode::BAD_REQUEST, crate::words(&error)))?;
        let known = self
            .cell
            .changes()
            .map(|(known, _)| known)
            .find(|known| known.workload == change.workload);
        if known.is_some_and(|known| known.id > change.id) {
            let error = format!(
                "a newer change to `{}` is known: is this machine's clock behind?",
                change.workload
            );
            return Err(Refused::new(StatusCode::CONFLICT, error));
        }
        if change.spec.is_none() && known.is_none_or(|known| known.spec.is_none()) {
            let error = format!("there is no `{}`: see `bmctl pods`", change.workload);
            return Err(Refused::new(StatusCode::NOT_FOUND, error));
        }
        self.step(Event::Change { change, envelope });
        // The operator hears "accepted" when it is on disk.
        self.flush();
        match self.failed {
            Some(_) => Err(Self::no_records()),
            None => Ok(()),
        }
    }

    /// The change in an envelope that an operator of this fabric signed who may.
    pub(super) fn verify_change(&self, envelope: &[u8], source: Source) -> Result<Change, Refusal> {
        let roots = self.roots.read().unwrap_or_else(PoisonError::into_inner);
        let envelope = Envelope::parse(envelope, limits::MANIFEST_LIMIT)?;
        let change: Change = roots.accept(&envelope, source)?;
        self.part
            .floors
            .raise_by_record(&change.id, self.joined.document.floor);
        Ok(change)
    }
}
