//! Median and spread of a few measurements. Pure.
//!
//! Invariant: `lowest <= median <= highest`, whatever the order of the values.

use serde::{Deserialize, Serialize};

/// What a handful of boots came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The middle value; of an even number of values the mean of the two in the middle.
    pub median: f64,
    /// The lowest value.
    pub lowest: f64,
    /// The highest value.
    pub highest: f64,
}

/// `None` for no values, or when one is no number.
#[must_use]
pub fn summary(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    if sorted.iter().any(|value| !value.is_finite()) {
        return None;
    }
    sorted.sort_by(f64::total_cmp);
    let (lowest, highest) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let lower = *sorted.get(middle - usize::from(sorted.len().is_multiple_of(2)))?;
    Some(Summary {
        // Not (a + b) / 2, which can leave the range of both by rounding.
        median: lower + (upper - lower) / 2.0,
        lowest,
        highest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_middle_of_odd_and_even_counts() {
        let odd = summary([3.0, 1.0, 200.0]).unwrap();
        assert_eq!((odd.lowest, odd.median, odd.highest), (1.0, 3.0, 200.0));
        assert_eq!(summary([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(summary([7.0]).unwrap().median, 7.0);
    }

    #[test]
    fn nothing_and_not_a_number_have_no_median() {
        assert_eq!(summary([]), None);
        assert_eq!(summary([1.0, f64::NAN]), None);
    }

    proptest! {
        #[test]
        fn invariant_median_lies_between_and_half_of_the_values_on_either_side(
            values in proptest::collection::vec(0.0..1e6f64, 1..20)
        ) {
            let s = summary(values.clone()).unwrap();
            prop_assert!(s.lowest <= s.median && s.median <= s.highest);
            let below = values.iter().filter(|v| **v <= s.median).count();
            let above = values.iter().filter(|v| **v >= s.median).count();
            prop_assert!(2 * below >= values.len() && 2 * above >= values.len());
            let reversed: Vec<f64> = values.into_iter().rev().collect();
            prop_assert_eq!(summary(reversed), Some(s));
        }
    }
}
