//! Kubernetes quantities (`250m`, `1.5`, `64Mi`, `1e3`) to whole millicores and bytes, and back.
//!
//! It does not keep the notation that was read: what is written is the shortest exact one. A value that is not a whole
//! number of the unit is rounded up, as Kubernetes does. Invariant: no negative and no overflowing quantity exists.

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a known suffix.
    #[error(
        "`{0}` is not a quantity: expected a number with one of the suffixes n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei"
    )]
    Malformed(String),
    /// Below zero.
    #[error("`{0}` is negative")]
    Negative(String),
    /// Does not fit.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

/// Longest text that is looked at.
const MAX_LEN: usize = 32;

/// `text` times `10^scale` (0: units, 3: thousandths), rounded up.
/// Source: Kubernetes `k8s.io/apimachinery/pkg/api/resource`, "Quantity".
fn parse_scaled(text: &str, scale: i32) -> Result<u64, QuantityError> {
    let malformed = || QuantityError::Malformed(text.chars().take(MAX_LEN).collect());
    let too_large = || QuantityError::TooLarge(text.chars().take(MAX_LEN).collect());
    if text.starts_with('-') {
        return Err(QuantityError::Negative(text.chars().take(MAX_LEN).collect()));
    }
    if text.len() > MAX_LEN {
        return Err(malformed());
    }
    let body = text.strip_prefix('+').unwrap_or(text);
    let split = body
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(body.len());
    let (number, suffix) = body.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(malformed());
    }
    let (binary, decimal) = match suffix {
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "" => (0, 0),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        other => match other
            .strip_prefix(['e', 'E'])
            .and_then(|digits| digits.parse::<i8>().ok())
        {
            Some(exponent) => (0, i32::from(exponent)),
            None => return Err(malformed()),
        },
    };
    let mut value: u128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        value = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(u128::from(digit - b'0')))
            .ok_or_else(too_large)?;
    }
    if value == 0 {
        return Ok(0);
    }
    value = value.checked_mul(1u128 << binary).ok_or_else(too_large)?;
    let mut power = decimal + scale - i32::try_from(fraction.len()).map_err(|_| malformed())?;
    while power > 0 {
        value = value.checked_mul(10).ok_or_else(too_large)?;
        power -= 1;
    }
    let mut inexact = false;
    while power < 0 && value > 0 {
        inexact |= !value.is_multiple_of(10);
        value /= 10;
        power += 1;
    }
    u64::try_from(value + u128::from(inexact)).map_err(|_| too_large())
}

/// Millicores of a cpu quantity: `250m` is 250, `1.5` is 1500.
///
/// # Errors
/// [`QuantityError`] where `text` is no quantity, negative or too large.
pub fn parse_cpu(text: &str) -> Result<u64, QuantityError> {
    parse_scaled(text, 3)
}

/// Bytes of a memory quantity: `64Mi` is 67,108,864, `1k` is 1000.
///
/// # Errors
/// [`QuantityError`] where `text` is no quantity, negative or too large.
pub fn parse_memory(text: &str) -> Result<u64, QuantityError> {
    parse_scaled(text, 0)
}

/// Millicores in Kubernetes' notation: `250m`, `2`.
pub fn format_cpu(millis: u64) -> String {
    if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    }
}

/// Bytes in Kubernetes' notation, with the largest binary suffix that is exact: `64Mi`, `1000`.
pub fn format_memory(bytes: u64) -> String {
    for (shift, suffix) in [
        (60, "Ei"),
        (50, "Pi"),
        (40, "Ti"),
        (30, "Gi"),
        (20, "Mi"),
        (10, "Ki"),
    ] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// A quantity as YAML and JSON carry it: a text or a bare number.
struct AsText(String);

impl<'de> serde::Deserialize<'de> for AsText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = AsText;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a quantity such as `250m`, `1.5` or `64Mi`")
            }
            fn visit_str<E>(self, text: &str) -> Result<AsText, E> {
                Ok(AsText(text.to_owned()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<AsText, E> {
                Ok(AsText(number.to_string()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<AsText, E> {
                Ok(AsText(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<AsText, E> {
                Ok(AsText(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

macro_rules! notation {
    ($module:ident, $what:literal, $parse:path, $format:path) => {
        #[doc = concat!("serde for ", $what, " in Kubernetes' notation; use with `Option<u64>`.")]
        pub mod $module {
            use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

            #[doc = concat!("Writes ", $what, " in Kubernetes' notation.")]
            ///
            /// # Errors
            /// What the serializer returns.
            pub fn serialize<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
                match value {
                    Some(value) => serializer.serialize_str(&$format(*value)),
                    None => serializer.serialize_none(),
                }
            }

            #[doc = concat!("Reads ", $what, " in Kubernetes' notation.")]
            ///
            /// # Errors
            /// Where the text is not a quantity.
            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
                let text = super::AsText::deserialize(deserializer)?;
                $parse(&text.0).map(Some).map_err(D::Error::custom)
            }
        }
    };
}

notation!(cpu, "millicores", super::parse_cpu, super::format_cpu);
notation!(memory, "bytes", super::parse_memory, super::format_memory);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, millis) in [
            ("250m", 250),
            ("1", 1000),
            ("1.5", 1500),
            ("0", 0),
            (".5", 500),
            ("2k", 2_000_000),
            ("100u", 1),
            ("1e1", 10_000),
        ] {
            assert_eq!(parse_cpu(text), Ok(millis), "{text}");
        }
        for (text, bytes) in [
            ("64Mi", 64 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("1k", 1000),
            ("500m", 1),
        ] {
            assert_eq!(parse_memory(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for text in [
            "",
            "m",
            "1x",
            "1 Mi",
            "1.2.3",
            "0x10",
            "Mi",
            "1mi",
            "1e",
            "٣",
            &"1".repeat(33),
        ] {
            assert!(
                matches!(parse_memory(text), Err(QuantityError::Malformed(_))),
                "{text}"
            );
        }
        assert!(matches!(parse_cpu("-1"), Err(QuantityError::Negative(_))));
        for text in ["16Ei", "99999999999E", "1e99", "340282366920938463463374607431"] {
            assert!(
                matches!(parse_memory(text), Err(QuantityError::TooLarge(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for value in [
            0,
            1,
            250,
            999,
            1000,
            1024,
            1500,
            1 << 20,
            64 << 20,
            (1 << 30) + 1,
            3 << 40,
            u64::MAX,
        ] {
            assert_eq!(parse_memory(&format_memory(value)), Ok(value));
            assert_eq!(parse_cpu(&format_cpu(value)), Ok(value));
        }
        assert_eq!(format_memory(64 << 20), "64Mi");
        assert_eq!(format_cpu(1500), "1500m");
    }
}
