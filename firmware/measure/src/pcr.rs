//! Platform configuration registers of the SHA-256 bank: which, and how they are extended.

use beemesh_ids::Digest;
use std::fmt;

/// Registers that a PC client TPM has (TCG PC Client Platform TPM Profile, section 4.6).
pub const PCRS: u8 = 24;

/// A set of registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PcrSet(u32);

impl PcrSet {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// The registers with these numbers; numbers from [`PCRS`] on are left out.
    pub const fn of(numbers: &[u8]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < numbers.len() {
            if numbers[at] < PCRS {
                bits |= 1 << numbers[at];
            }
            at += 1;
        }
        Self(bits)
    }

    /// Whether register `number` is among them.
    pub const fn has(self, number: u8) -> bool {
        number < PCRS && self.0 & (1 << number) != 0
    }

    /// Adds register `number`, where there is one.
    pub fn insert(&mut self, number: u8) {
        if number < PCRS {
            self.0 |= 1 << number;
        }
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The numbers, rising.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..PCRS).filter(move |number| self.has(*number))
    }

    /// As a TPM selects them: a bit for each register, the first byte for 0 to 7 (`TPMS_PCR_SELECTION`).
    pub(crate) fn bitmap(self) -> [u8; 3] {
        let [a, b, c, _] = self.0.to_le_bytes();
        [a, b, c]
    }
}

impl FromIterator<u8> for PcrSet {
    fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
        let mut set = Self::EMPTY;
        numbers.into_iter().for_each(|number| set.insert(number));
        set
    }
}

/// The numbers with commas between them.
impl fmt::Display for PcrSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, number) in self.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{number}")?;
        }
        Ok(())
    }
}

/// The value of a register that held `value` after `event` was measured (TPM 2.0 Library, part 1, "Extend of a PCR").
pub fn extend(value: Digest, event: Digest) -> Digest {
    Digest::of(&[value.as_bytes().as_slice(), event.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_holds_what_there_is_and_shows_it_rising() {
        let set = PcrSet::of(&[11, 7, 0, 7, 24, 200]);
        assert_eq!(set.to_string(), "0,7,11");
        assert_eq!(set.bitmap(), [0x81, 0x08, 0]);
        assert_eq!(set.iter().collect::<PcrSet>(), set);
        assert!(set.has(11) && !set.has(12) && !set.has(32) && PcrSet::EMPTY.is_empty());
    }
}
