//! Root documents that operators and members bring: they prove themselves, so it does not matter who does.
//!
//! Verifies nothing itself: the format does. Invariant: nobody is told of a longer chain before it is on disk.

use super::Driver;
use crate::clock::Floor;
use crate::join::Joined;
use crate::rest::Refused;
use crate::roots::KeepError;
use beemesh_agent_api::roots::{KeyState, RoleKeyView, RootsTaken, RootsView};
use beemesh_agent_sched::{Event, RootNews};
use beemesh_joinpack_format::{Envelope, Role, limits};
use hyper::StatusCode;

impl Driver {
    /// Takes what an operator brings.
    pub(super) fn take_roots(&mut self, documents: &[Envelope]) -> Result<RootsTaken, Refused> {
        let news = self.lengthen(documents).map_err(|error| {
            let status = match &error {
                KeepError::Refused(_) => StatusCode::FORBIDDEN,
                KeepError::Store(_) | KeepError::Missing => StatusCode::INTERNAL_SERVER_ERROR,
            };
            Refused::new(status, crate::words(&error))
        })?;
        if news {
            for event in self.roots_changed() {
                self.step(event);
            }
            self.flush();
        }
        Ok(RootsTaken {
            version: self.joined.roots.version(),
            news,
        })
    }

    /// Takes what a member hands on.
    pub(super) fn verify_roots(&mut self, documents: &[Vec<u8>]) -> Vec<Event> {
        let parsed: Result<Vec<Envelope>, _> = documents
            .iter()
            .map(|bytes| Envelope::parse(bytes, limits::ROOT_LIMIT))
            .collect();
        match parsed
            .map_err(KeepError::from)
            .and_then(|parsed| self.lengthen(&parsed))
        {
            Ok(true) => self.roots_changed(),
            Ok(false) => Vec::new(),
            Err(error) => {
                let error = crate::words(&error);
                tracing::warn!(error, "root documents from a member were refused");
                Vec::new()
            }
        }
    }

    /// Makes the chain longer by what `documents` add to it, durably. Returns whether they did.
    fn lengthen(&mut self, documents: &[Envelope]) -> Result<bool, KeepError> {
        let roots = self.joined.roots.extend(documents)?;
        if roots.version() == self.joined.roots.version() {
            return Ok(false);
        }
        let joined = Joined {
            roots,
            ..self.joined.clone()
        };
        let trust = self.part.trust.clone();
        // The disk may take its time.
        self.joined = tokio::task::block_in_place(|| trust.keeper().commit(joined))?;
        self.part.floors.raise_to(Floor(self.joined.document.floor));
        let message = format!(
            "root document {} says from now on who may do what in this fabric",
            self.joined.roots.version()
        );
        self.part.journal.announce("RootsTaken", "fabric", &message);
        Ok(true)
    }

    /// From now on everybody is judged by this chain, and the others hear of it.
    fn roots_changed(&mut self) -> Vec<Event> {
        vec![self.revocations_changed(), self.root_news()]
    }

    pub(super) fn tell_roots(&mut self) {
        let news = self.root_news();
        self.step(news);
    }

    fn root_news(&self) -> Event {
        let documents = self.joined.roots.envelopes().iter().map(Envelope::to_json);
        Event::Roots(RootNews {
            documents: documents.collect(),
        })
    }

    /// What operators are shown.
    pub(super) fn view_roots(&self) -> RootsView {
        let judging = self.part.trust.judging(&self.joined);
        let current = judging.current();
        let mut keys = Vec::new();
        for (role, spec) in &current.roles {
            for id in &spec.keyids {
                let limits = current.limits_of(*role, id);
                let revoked = *role != Role::Root && judging.role(*role).key(id).is_none();
                let expired = limits.expires.is_some_and(|expires| judging.past() > expires);
                keys.push(RoleKeyView {
                    role: *role,
                    threshold: spec.threshold,
                    key: id.clone(),
                    expires: limits.expires,
                    scope: limits.scope.map(|scope| scope.into_iter().collect()),
                    state: match (revoked, expired) {
                        (true, _) => KeyState::Revoked,
                        (false, true) => KeyState::Expired,
                        (false, false) => KeyState::Valid,
                    },
                });
            }
        }
        RootsView {
            fabric: judging.fabric_id().clone(),
            version: judging.version(),
            issued: current.issued,
            past: judging.past(),
            keys,
            documents: judging.envelopes().to_vec(),
        }
    }
}
