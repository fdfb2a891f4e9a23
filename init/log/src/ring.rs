//! Which segment takes the next record, and which must go before. It knows sizes, not files.
//!
//! Invariants: the segments together are never larger than [`Limits::total_bytes`] nor more than [`Limits::segments`];
//! the segment of the newest record is never removed; a segment that was there before the ring was opened is never
//! written again, since its end may be torn.

use crate::segment::{HEADER_LEN, RECORD_LIMIT};
use std::collections::VecDeque;

/// How large a ring may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of one segment, in bytes; raised to what one record needs.
    pub segment_bytes: u64,
    /// Of all segments, in bytes; raised to two segments.
    pub total_bytes: u64,
    /// Segments; raised to two.
    pub segments: usize,
}

/// Where the next record goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Segments to remove first, oldest first.
    pub remove: Vec<u64>,
    /// The segment.
    pub number: u64,
    /// It is to be made, with its header.
    pub fresh: bool,
    /// The record's place in it, in bytes from its start.
    pub offset: u64,
}

/// The ring.
#[derive(Debug, Clone)]
pub struct Ring {
    limits: Limits,
    /// Number and size, oldest first.
    segments: VecDeque<(u64, u64)>,
    /// The newest one may be written.
    open: bool,
    next: u64,
}

impl Ring {
    /// A ring over what is there: number and size of each segment, in any order.
    #[must_use]
    pub fn new(limits: Limits, mut there: Vec<(u64, u64)>) -> Self {
        there.sort_unstable();
        let least = (HEADER_LEN + RECORD_LIMIT) as u64;
        let segment_bytes = limits.segment_bytes.max(least);
        Self {
            limits: Limits {
                segment_bytes,
                total_bytes: limits.total_bytes.max(segment_bytes.saturating_mul(2)),
                segments: limits.segments.max(2),
            },
            next: there
                .last()
                .map_or(1, |(number, _)| number.saturating_add(1).max(1)),
            segments: there.into(),
            open: false,
        }
    }

    /// Makes room for a record that takes `length` bytes (at most [`RECORD_LIMIT`]), and counts it as written.
    pub fn place(&mut self, length: u64) -> Placement {
        let newest = self.segments.back().filter(|_| self.open);
        let fits = newest.is_some_and(|(_, size)| size.saturating_add(length) <= self.limits.segment_bytes);
        let mut needed = length;
        if !fits {
            needed = needed.saturating_add(HEADER_LEN as u64);
            self.segments.push_back((self.next, 0));
            self.next = self.next.saturating_add(1);
            self.open = true;
        }
        let mut remove = Vec::new();
        let bytes = |segments: &VecDeque<(u64, u64)>| {
            segments
                .iter()
                .fold(0u64, |sum, (_, size)| sum.saturating_add(*size))
        };
        while self.segments.len() > 1
            && (self.segments.len() > self.limits.segments
                || bytes(&self.segments).saturating_add(needed) > self.limits.total_bytes)
        {
            remove.extend(self.segments.pop_front().map(|(number, _)| number));
        }
        let (number, offset) = match self.segments.back_mut() {
            Some((number, size)) => {
                let offset = if fits { *size } else { HEADER_LEN as u64 };
                *size = size.saturating_add(needed);
                (*number, offset)
            }
            None => (self.next, HEADER_LEN as u64),
        };
        Placement {
            remove,
            number,
            fresh: !fits,
            offset,
        }
    }

    /// The newest segment could not be begun and is not there: it does not count, so that a full disk on which every
    /// attempt fails does not push the old ones out.
    pub fn forget_newest(&mut self) {
        self.segments.pop_back();
        self.open = false;
    }

    /// The last write failed: its segment may be torn, and is not written any more.
    pub fn close(&mut self) {
        self.open = false;
    }
}

/// File name of a segment.
#[must_use]
pub fn segment_name(number: u64) -> String {
    format!("{number:016x}.bml")
}

/// The number in a file name that [`segment_name`] gave.
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".bml")?;
    let well = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    u64::from_str_radix(digits, 16).ok().filter(|_| well)
}
