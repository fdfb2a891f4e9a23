//! The OS releases that count, and those that the fabric has left behind.
//!
//! Verifies nothing: the driver does. Invariant: a list with a lesser id than the one that counts changes nothing of what
//! counts, over restarts too, whatever the order in which lists arrive; what counted once and does not any more is known as
//! old. Both are bounded.

use beemesh_ids::Digest;
use serde::{Deserialize, Serialize};

/// Releases that count, at most.
pub const MAX_RELEASES: usize = 8;
/// Old releases that are remembered, at most: of the oldest one it is then said that its image is unknown.
pub const MAX_OLD: usize = 32;

/// A release that the fabric's operators signed for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Release {
    /// Version, for people.
    pub version: String,
    /// What its image leaves in register 11.
    pub pcr11: Digest,
}

/// A list of releases as somebody signed it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReleaseNews {
    /// Id of the list, a ULID: the greater one is the newer one. Empty for those of a join pack without a list of its own, which
    /// count as long as no list is known.
    pub id: String,
    /// The releases, at most [`MAX_RELEASES`].
    pub releases: Vec<Release>,
}

/// What one node knows of releases. Durable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Releases {
    id: String,
    current: Vec<Release>,
    old: Vec<Release>,
}

impl Releases {
    /// Takes a list. Returns whether something is known that was not.
    pub fn learn(&mut self, mut news: ReleaseNews) -> bool {
        news.releases.truncate(MAX_RELEASES);
        let before = self.clone();
        let left = match news.id > self.id || (news.id.is_empty() && self.id.is_empty()) {
            true => {
                self.id = news.id;
                std::mem::replace(&mut self.current, news.releases)
            }
            false => news.releases,
        };
        for release in left {
            let known = |other: &Release| other.pcr11 == release.pcr11;
            if !self.old.iter().any(known) {
                self.old.push(release);
            }
        }
        let current = &self.current;
        self.old
            .retain(|release| !current.iter().any(|other| other.pcr11 == release.pcr11));
        let surplus = self.old.len().saturating_sub(MAX_OLD);
        self.old.drain(..surplus);
        *self != before
    }

    /// Whether none counts.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// The release that counts, of which this is register 11.
    pub fn current(&self, image: Option<&Digest>) -> Option<&Release> {
        self.current.iter().find(|release| Some(&release.pcr11) == image)
    }

    /// The release that counted once, of which this is register 11.
    pub fn old(&self, image: Option<&Digest>) -> Option<&Release> {
        self.old.iter().find(|release| Some(&release.pcr11) == image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn release(n: u8) -> Release {
        Release {
            version: format!("0.{n}.0"),
            pcr11: Digest::of(&[n]),
        }
    }

    fn news(id: &str, releases: &[u8]) -> ReleaseNews {
        ReleaseNews {
            id: id.to_owned(),
            releases: releases.iter().map(|n| release(*n)).collect(),
        }
    }

    fn image(n: u8) -> Digest {
        Digest::of(&[n])
    }

    #[test]
    fn downgrade_by_replay_of_an_older_list_changes_nothing() {
        let mut known = Releases::default();
        assert!(known.learn(news("1", &[1])));
        assert!(known.learn(news("2", &[2])));
        let before = known.clone();
        assert!(!known.learn(news("1", &[1])), "the older list");
        assert!(!known.learn(news("", &[1])), "an older pack");
        assert_eq!(known, before);
        assert_eq!(known.old(Some(&image(1))), Some(&release(1)));
        assert_eq!(known.current(Some(&image(1))), None);
        // A newer list may name an older release again: that is an operator's word.
        assert!(known.learn(news("3", &[1, 2])));
        assert_eq!(known.current(Some(&image(1))), Some(&release(1)));
        assert_eq!(known.old(Some(&image(1))), None);
    }

    #[test]
    fn old_releases_are_bounded_and_the_oldest_goes() {
        let mut known = Releases::default();
        for n in 0..=u8::try_from(MAX_OLD).unwrap() + 1 {
            known.learn(news(&format!("{n:03}"), &[n]));
        }
        assert_eq!(known.old.len(), MAX_OLD);
        assert_eq!(known.old(Some(&image(0))), None);
        assert!(known.old(Some(&image(1))).is_some());
    }

    proptest! {
        #[test]
        fn invariant_known_releases_never_shrink_and_the_order_of_lists_does_not_matter(
            lists in prop::collection::vec(prop::collection::btree_set(0u8..12, 1..4), 1..8)
                .prop_map(|all| all.into_iter().enumerate().collect::<Vec<_>>()).prop_shuffle(),
            replays in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let as_news = |(n, releases): &(usize, BTreeSet<u8>)| {
                news(&format!("{n:03}"), &releases.iter().copied().collect::<Vec<_>>())
            };
            let mut known = Releases::default();
            let mut seen = BTreeSet::new();
            let mut newest: Option<&(usize, BTreeSet<u8>)> = None;
            let replayed = replays.iter().map(|at| at.get(&lists));
            for list in lists.iter().chain(replayed) {
                known.learn(as_news(list));
                seen.extend(list.1.iter().copied());
                newest = newest.max(Some(list));
                let counts = &newest.unwrap().1;
                for n in 0..12u8 {
                    prop_assert_eq!(known.current(Some(&image(n))).is_some(), counts.contains(&n));
                    let left = seen.contains(&n) && !counts.contains(&n);
                    prop_assert_eq!(known.old(Some(&image(n))).is_some(), left);
                }
            }
        }
    }
}
