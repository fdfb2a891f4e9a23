//! What this node knows to be revoked, how old that knowledge certainly is, and what follows for newcomers.
//!
//! Pure but for the lock: the caller brings the time. Invariant: nothing here is ever forgotten; the age is never more than
//! the time that has certainly passed, so a clock that is wrong closes no door.

use beemesh_joinpack_format::{Envelope, Member, Refusal, RevocationSet, RootChain, Source, Timestamp};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, RwLock};

/// Past this age, in seconds, nobody new is admitted by a voucher as old: seven days.
pub const ADMISSION_AGE: u64 = 7 * 86_400;

/// A moment as a node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since the machine started.
    pub up_ms: u64,
    /// What is certainly past.
    pub floor: Timestamp,
}

/// Shared by who learns and who judges.
pub type SharedRevocations = Arc<RwLock<Revoked>>;

/// What is kept over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevocationDocument {
    /// The snapshots.
    pub snapshots: Vec<Envelope>,
    /// The newest time that somebody vouched for them.
    pub issued: Option<Timestamp>,
    /// For how many seconds the node ran since it learned that.
    pub ran_s: u64,
}

/// Revocations and their age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    set: RevocationSet,
    issued: Timestamp,
    /// Running time since `issued` was learned, up to `noted_ms`.
    ran_ms: u64,
    noted_ms: u64,
}

impl Revoked {
    /// Nothing, as of `issued`.
    pub fn new(issued: Timestamp, now: Moment) -> Self {
        Self {
            set: RevocationSet::default(),
            issued,
            ran_ms: 0,
            noted_ms: now.up_ms,
        }
    }

    /// What an earlier run kept. Without anything `joined`, the time of the pack, is the time as of which nothing is
    /// revoked: the pack's signer vouched for its nodes then.
    pub fn restore(document: &RevocationDocument, roots: &RootChain, joined: Timestamp, now: Moment) -> Self {
        let set = RevocationSet::restore(&document.snapshots, roots);
        let kept = document.issued.filter(|issued| *issued >= joined);
        Self {
            issued: set.issued().max(kept).unwrap_or(joined).max(joined),
            set,
            ran_ms: kept.map_or(0, |_| document.ran_s.saturating_mul(1000)),
            noted_ms: now.up_ms,
        }
    }

    /// What to keep.
    pub fn document(&self, now: Moment) -> RevocationDocument {
        RevocationDocument {
            snapshots: self.set.envelopes().cloned().collect(),
            issued: Some(self.issued),
            ran_s: self.ran_s(now),
        }
    }

    /// Verifies and merges a snapshot. Returns whether more is known than before.
    ///
    /// # Errors
    /// The snapshot is not this fabric's, or there are too many.
    pub fn take(
        &mut self,
        envelope: &Envelope,
        roots: &RootChain,
        source: Source,
        now: Moment,
    ) -> Result<bool, Refusal> {
        let changed = self.set.take(envelope, roots, source)?;
        if let Some(issued) = self.set.issued() {
            self.vouched(issued, now);
        }
        Ok(changed)
    }

    /// Somebody who may vouches that no more than this was revoked at `issued`.
    pub fn vouched(&mut self, issued: Timestamp, now: Moment) {
        if issued > self.issued {
            self.issued = issued;
            self.ran_ms = 0;
            self.noted_ms = now.up_ms;
        }
    }

    /// What is revoked.
    pub fn set(&self) -> &RevocationSet {
        &self.set
    }

    /// As of when.
    pub fn issued(&self) -> Timestamp {
        self.issued
    }

    /// Seconds that have certainly passed since then.
    pub fn age_s(&self, now: Moment) -> u64 {
        let by_floor = now.floor.0.saturating_sub(self.issued.0);
        u64::try_from(by_floor).unwrap_or(0).max(self.ran_ms(now) / 1000)
    }

    /// Whether a voucher of this time still admits somebody who is not known.
    pub fn admits(&self, vouched: Timestamp, now: Moment) -> bool {
        let since_voucher = u64::try_from(now.floor.0.saturating_sub(vouched.0)).unwrap_or(0);
        self.age_s(now) <= ADMISSION_AGE || (vouched > self.issued && since_voucher <= ADMISSION_AGE)
    }

    /// Whether a member's node or voucher is revoked.
    pub fn has(&self, member: &Member) -> bool {
        // Whichever of its peer ids an operator has named.
        member.keys.all().any(|key| self.set.has_node(key)) || self.set.has_voucher(&member.voucher_id)
    }

    /// Seconds for which the node ran since it learned the newest time.
    pub fn ran_s(&self, now: Moment) -> u64 {
        self.ran_ms(now) / 1000
    }

    fn ran_ms(&self, now: Moment) -> u64 {
        self.ran_ms
            .saturating_add(now.up_ms.saturating_sub(self.noted_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: i64 = 86_400;

    fn revoked(issued: i64) -> Revoked {
        Revoked {
            set: RevocationSet::default(),
            issued: Timestamp(issued),
            ran_ms: 0,
            noted_ms: 0,
        }
    }

    fn at(days_up: i64, floor: i64) -> Moment {
        Moment {
            up_ms: (days_up * DAY) as u64 * 1000,
            floor: Timestamp(floor),
        }
    }

    #[test]
    fn past_seven_days_of_running_or_of_the_floor_old_vouchers_admit_nobody() {
        let known = revoked(100 * DAY);
        let old = Timestamp(90 * DAY);
        assert!(known.admits(old, at(7, 100 * DAY)));
        assert!(!known.admits(old, at(8, 100 * DAY)));
        assert!(known.admits(old, at(0, 107 * DAY)));
        assert!(!known.admits(old, at(0, 108 * DAY)));
        // A voucher that somebody signed since then vouches for itself; one that is old by the floor does not.
        assert!(known.admits(Timestamp(101 * DAY), at(8, 100 * DAY)));
        assert!(!known.admits(Timestamp(101 * DAY), at(8, 109 * DAY)));
    }

    #[test]
    fn news_make_it_young_again_and_old_news_do_not() {
        let mut known = revoked(100 * DAY);
        known.vouched(Timestamp(99 * DAY), at(8, 100 * DAY));
        assert_eq!(known.age_s(at(8, 100 * DAY)), 8 * DAY as u64);
        known.vouched(Timestamp(101 * DAY), at(8, 100 * DAY));
        assert_eq!(known.age_s(at(8, 100 * DAY)), 0);
        assert_eq!(known.age_s(at(9, 101 * DAY)), DAY as u64);
    }

    proptest! {
        #[test]
        fn invariant_age_counts_running_time_over_restarts(hours in proptest::collection::vec(0u64..100, 1..10)) {
            let mut known = revoked(0);
            let mut total = 0;
            for hours in hours {
                // Each run begins at an uptime of its own; only what it ran counts.
                let end = Moment { up_ms: known.noted_ms + hours * 3_600_000, floor: Timestamp(0) };
                total += hours * 3600;
                prop_assert_eq!(known.age_s(end), total);
                let document = known.document(end);
                known = Revoked { ran_ms: document.ran_s * 1000, noted_ms: 7, ..known };
            }
        }
    }
}
