//! Where the time of a pod's start went, for the log.

use std::fmt;
use std::time::{Duration, Instant};

/// What was done, and how long each took, in order. Each time is one that nothing else is counted in.
pub(super) struct Laps {
    last: Instant,
    done: Vec<(&'static str, Duration)>,
}

impl Laps {
    /// From `begun` on.
    pub(super) fn begin(begun: Instant) -> Self {
        Self {
            last: begun,
            done: Vec::new(),
        }
    }

    /// All since the last one was for `what`.
    pub(super) fn done(&mut self, what: &'static str) {
        let now = Instant::now();
        self.done.push((what, now.duration_since(self.last)));
        self.last = now;
    }
}

impl fmt::Display for Laps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (what, took)) in self.done.iter().enumerate() {
            let gap = if index == 0 { "" } else { ", " };
            write!(f, "{gap}{what} {} ms", took.as_millis())?;
        }
        Ok(())
    }
}
