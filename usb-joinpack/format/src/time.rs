//! Points in time as the documents write them. Reads no clock.
//!
//! One form only, `2026-01-02T03:04:05Z`: a second text for the same instant would be a second signed document.

use crate::Refusal;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use time::{
    OffsetDateTime, PrimitiveDateTime, format_description::BorrowedFormatItem, macros::format_description,
};

const FORM: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
/// 9999-12-31T23:59:59Z, the last instant that the form can write.
const LAST: i64 = 253_402_300_799;

/// Seconds since the Unix epoch (UTC, without leap seconds), written as RFC 3339 with `Z` and whole seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The beginning: as a floor it makes nothing expire.
    pub const EPOCH: Self = Self(0);

    /// Reads `2026-01-02T03:04:05Z`, years 1970 to 9999. Everything else is [`Refusal::Malformed`].
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let fail = || {
            Refusal::malformed(
                "time",
                format_args!("`{text}` is not like `2026-01-02T03:04:05Z`"),
            )
        };
        if text.len() != 20 {
            return Err(fail());
        }
        let seconds = PrimitiveDateTime::parse(text, FORM)
            .map_err(|_| fail())?
            .assume_utc()
            .unix_timestamp();
        let time = Self(seconds);
        // Forms such as a signed year would be a second text for the same instant.
        if seconds < 0 || time.to_string() != text {
            Err(fail())
        } else {
            Ok(time)
        }
    }

    /// This time plus `seconds`, held within 1970 to 9999.
    pub fn plus_seconds(self, seconds: i64) -> Self {
        Self(self.0.saturating_add(seconds).clamp(0, LAST))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = OffsetDateTime::from_unix_timestamp(self.0.clamp(0, LAST)).map_err(|_| fmt::Error)?;
        f.write_str(&time.format(FORM).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Timestamp {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        Self::parse(&text)
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_one_text_names_an_instant() {
        assert_eq!(
            Timestamp::parse("2026-01-02T03:04:05Z"),
            Ok(Timestamp(1_767_323_045))
        );
        for text in [
            "2026-01-02T03:04:05+00:00",
            "2026-01-02 03:04:05Z",
            "2026-01-02T03:04:05.0Z",
            "2026-1-2T03:04:05Z",
            "",
            "1969-12-31T23:59:59Z",
            "2026-02-30T00:00:00Z",
            "+026-01-02T03:04:05Z",
            "2026-01-02T03:04:60Z",
            "2026-01-02t03:04:05z",
        ] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_of_the_form_reads_back(seconds in 0..=LAST) {
            prop_assert_eq!(Timestamp::parse(&Timestamp(seconds).to_string()), Ok(Timestamp(seconds)));
        }

        #[test]
        fn times_outside_the_form_are_held_at_its_ends(seconds: i64) {
            prop_assert!(Timestamp::parse(&Timestamp(seconds).to_string()).is_ok());
        }
    }
}
