//! What is left to do while the state volume takes no records: to live, to answer, and to see whether it works again; and
//! what is said and kept for one that is only full.
//!
//! Acts on nothing, whatever arrives. Invariant: between two looks at the volume lie [`RETRY`] at least, so that an agent
//! which is started again for nothing is so at a slow pace.

use super::{Driver, Part};
use crate::ledger::LedgerError;
use crate::query::Query;
use crate::rest::Refused;
use crate::supervisor;
use anyhow::{Context as _, Result};
use hyper::StatusCode;
use std::time::Duration;
use tokio::time::{Instant, Interval, interval, interval_at};

/// How often a state volume that failed is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// The document by which it is tried.
const PROBE: &str = "probe.json";

/// Signs of life and looks at the volume.
pub(super) struct Idle {
    beat: Interval,
    retry: Interval,
}

impl Idle {
    /// The next question. Ends with an error when the disk works again: the supervisor starts the agent anew.
    pub(super) async fn question(&mut self, part: &mut Part) -> Result<Query> {
        loop {
            tokio::select! {
                _ = self.beat.tick() => part.pulse.beat(),
                _ = self.retry.tick() => {
                    let store = &part.store;
                    let works = tokio::task::block_in_place(|| store.save(PROBE, &()).and_then(|()| store.remove(PROBE)));
                    if works.is_ok() {
                        anyhow::bail!("the state volume has failed and works again");
                    }
                }
                question = part.questions.recv() => return question.context("REST ended"),
                news = part.arriving.recv() => drop(news.context("the stick task ended")?),
            }
        }
    }
}

impl Part {
    /// Says why nothing is done any more, and what that means.
    pub(super) fn idle(&self, meaning: &str, error: &LedgerError) -> Idle {
        let message = format!(
            "the state volume takes no records ({}): {meaning}. \
             What you can do: switch it off and on; if this text comes again, replace its disk",
            crate::words(error)
        );
        self.journal.announce("StateVolumeFailed", "node/self", &message);
        self.supervisor.status("the state volume takes no records");
        Idle {
            beat: interval(supervisor::BEAT),
            retry: interval_at(Instant::now() + RETRY, RETRY),
        }
    }

    /// A box that could not keep a membership does not join.
    pub(super) async fn idle_as_stranger(&mut self, error: &LedgerError) -> Result<()> {
        let mut idle = self.idle("this box cannot join a fabric, and only shows its log", error);
        loop {
            // Dropping a question tells the asker that the box is not a member.
            drop(idle.question(self).await?);
        }
    }
}

impl Driver {
    /// Going on would break the promise that a grant is durable, so nothing is done any more but to answer. Ends when the
    /// disk works again: the supervisor starts the agent anew.
    pub(super) async fn outlast(mut self, error: &LedgerError) -> Result<()> {
        let mut idle = self.part.idle(
            "this box does no more for its fabric, and only shows its log",
            error,
        );
        loop {
            let question = idle.question(&mut self.part).await?;
            self.answer_idle(question);
        }
    }

    fn answer_idle(&mut self, question: Query) {
        match question {
            Query::Change { reply, .. } => drop(reply.send(Err(Self::no_records()))),
            Query::Lengthen { reply, .. } => drop(reply.send(Err(Self::no_records()))),
            Query::AcceptBoot { reply, .. } => drop(reply.send(Err(Self::no_records()))),
            Query::OrderKeys { reply, .. } => drop(reply.send(Err(Self::no_records()))),
            question => self.answer(question),
        }
    }

    pub(super) fn no_records() -> Refused {
        let error = "this box takes no change: its state volume failed; ask another node";
        Refused::new(StatusCode::SERVICE_UNAVAILABLE, error)
    }

    pub(super) fn say_full(&self) {
        let message = "the state volume is full: this box works on from its reserve, for as long as that lasts. What you can \
                       do: delete pods or give it a larger disk";
        self.part
            .journal
            .announce("StateVolumeFull", "node/self", message);
    }

    /// Takes the reserve of the state volume where there is room for it, beside the loop.
    pub(super) fn look_at_reserve(&self) {
        let reserve = self.ledger.reserve().clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = reserve.take() {
                tracing::warn!(%error, "failed to take the reserve of the state volume");
            }
        });
    }
}
