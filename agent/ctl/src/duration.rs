//! Durations on the command line: a whole number and a unit, `500ms`, `60s`, `2m`, `1h`. Nothing else is accepted.

use std::time::Duration;

/// Longest duration that is accepted: seven days.
pub const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Why a text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// No number and unit.
    #[error("`{0}` is not a duration: write a number and a unit, such as `500ms`, `60s`, `2m` or `1h`")]
    Form(String),
    /// Zero, or above [`LONGEST`].
    #[error("`{0}` is out of range: at least 1ms, at most 168h")]
    Range(String),
}

/// Parses `500ms`, `60s`, `2m` or `1h`.
///
/// # Errors
/// [`InvalidDuration`] for another form, for zero and for more than [`LONGEST`].
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let shown = || text.chars().take(40).collect::<String>();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(InvalidDuration::Form(shown()));
    }
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(InvalidDuration::Form(shown())),
    };
    let millis = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit_ms));
    match millis.map(Duration::from_millis) {
        Some(duration) if !duration.is_zero() && duration <= LONGEST => Ok(duration),
        _ => Err(InvalidDuration::Range(shown())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_is_a_duration() {
        for (text, ms) in [
            ("500ms", 500),
            ("60s", 60_000),
            ("2m", 120_000),
            ("168h", 604_800_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn other_forms_and_ranges_are_refused() {
        for text in ["", "60", "s", "-1s", "1.5s", "1 s", "1d", "1s1s"] {
            assert!(
                matches!(parse_duration(text), Err(InvalidDuration::Form(_))),
                "{text}"
            );
        }
        for text in ["0s", "169h", "99999999999999999999s", "18446744073709551615h"] {
            assert!(
                matches!(parse_duration(text), Err(InvalidDuration::Range(_))),
                "{text}"
            );
        }
    }
}
