//! What the pure format crate does not have: the clock and randomness.

use crate::failure::Failure;
use anyhow::anyhow;
use beemesh_joinpack_format::{SecretKey, Timestamp};
use std::time::{SystemTime, UNIX_EPOCH};
use ulid::Ulid;

/// Now, by the operator's clock. A clock before 1970 is 1970.
pub fn now() -> Timestamp {
    Timestamp(i64::try_from(milliseconds() / 1000).unwrap_or(0))
}

fn milliseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

/// `N` bytes of the kernel's randomness.
pub fn bytes<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| anyhow!("failed to read randomness from the kernel: {e}"))?;
    Ok(bytes)
}

/// A new key.
pub fn key() -> Result<SecretKey, Failure> {
    Ok(SecretKey::from_bytes(bytes()?))
}

/// A new ULID, greater than `after` even if the clock went back.
pub fn ulid(after: Option<Ulid>) -> Result<Ulid, Failure> {
    let fresh = Ulid::from_parts(milliseconds(), u128::from_le_bytes(bytes()?));
    match after {
        Some(after) if fresh <= after => Ok(after
            .increment()
            .ok_or_else(|| anyhow!("the serial `{after}` has no successor"))?),
        _ => Ok(fresh),
    }
}

/// Reads a span such as `30d`, `12h`, `90m` or `45s`, at most ten years, in seconds.
pub fn parse_span(text: &str) -> Result<i64, String> {
    let fail = || format!("`{text}` is not a span of time like `30d`, `12h` or `90m` (at most 3650d)");
    let (digits, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(fail)?;
    let factor = match unit {
        "d" => 86_400,
        "h" => 3_600,
        "m" => 60,
        "s" => 1,
        _ => return Err(fail()),
    };
    let seconds = digits
        .parse::<u32>()
        .ok()
        .and_then(|n| i64::from(n).checked_mul(factor))
        .ok_or_else(fail)?;
    if seconds == 0 || seconds > 3650 * 86_400 {
        Err(fail())
    } else {
        Ok(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_unit_and_an_end() {
        assert_eq!(parse_span("30d"), Ok(2_592_000));
        assert_eq!(parse_span("90m"), Ok(5400));
        for bad in ["", "d", "30", "-1d", "0d", "1w", "3651d", "99999999999d", "1µ"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn serial_rises_even_if_the_clock_went_back() {
        let future = Ulid::from_parts(u64::MAX >> 16, 7);
        assert!(ulid(Some(future)).unwrap() > future);
        let first = ulid(None).unwrap();
        assert!(ulid(Some(first)).unwrap() > first);
    }
}
