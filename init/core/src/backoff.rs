//! Jittered exponential back-off, capped. Pure: the random bits come from the caller's generator.

/// The longest pause between two starts of a service, in milliseconds (requirement M7).
pub const CEILING_MS: u64 = 5_000;
/// The pause after the first failure, before jitter, in milliseconds.
pub const FIRST_MS: u64 = 100;
/// A service that ran this long is taken to be well again: its failures are forgotten. Milliseconds.
pub const WELL_AFTER_MS: u64 = 20_000;

/// How a service is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// The pause after the first failure, before jitter, in milliseconds.
    pub first_ms: u64,
    /// The longest pause, in milliseconds.
    pub ceiling_ms: u64,
}

impl Restart {
    /// [`FIRST_MS`] to [`CEILING_MS`].
    pub const DEFAULT: Self = Self {
        first_ms: FIRST_MS,
        ceiling_ms: CEILING_MS,
    };

    /// The pause after `failures` failures in a row: between half of and the whole of `first_ms * 2^(failures-1)`, at
    /// most `ceiling_ms`. `random` spreads services (and machines) that fail together.
    #[must_use]
    pub fn pause_ms(self, failures: u32, random: u32) -> u64 {
        let doublings = failures.saturating_sub(1).min(16);
        let whole = self.first_ms.saturating_mul(1 << doublings).min(self.ceiling_ms);
        let half = whole / 2;
        half + u64::from(random) % (whole - half + 1)
    }
}

/// A small deterministic generator (xorshift64*, Vigna 2014) for jitter only; never for keys.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// From any seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next 32 bits.
    pub fn draw(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pause_never_exceeds_the_ceiling_nor_falls_below_half_the_step(failures in 0u32.., random: u32) {
            let pause = Restart::DEFAULT.pause_ms(failures, random);
            prop_assert!((FIRST_MS / 2..=CEILING_MS).contains(&pause));
            if failures > 7 {
                prop_assert!(pause >= CEILING_MS / 2);
            }
        }
    }

    #[test]
    fn different_seeds_spread_the_pause() {
        let pauses: std::collections::BTreeSet<u64> = (0..50)
            .map(|seed| Restart::DEFAULT.pause_ms(10, Jitter::new(seed * 2).draw()))
            .collect();
        assert!(pauses.len() > 25, "{pauses:?}");
    }
}
