//! One record and the bytes of its body. It knows nothing of segments and checksums.
//!
//! Invariants: every part has a bound and `encode` keeps it by cutting; `decode` takes exactly what `encode` gives, to
//! the last byte.

use crate::segment::Reading;

/// Most bytes of a message; a longer line is several records ([`Flags`]).
pub const MESSAGE_LIMIT: usize = 48 << 10;
/// Most bytes of a unit's name.
pub const UNIT_LIMIT: usize = 128;
/// Most fields of a record.
pub const FIELDS_LIMIT: usize = 8;
/// Most bytes of a field's name.
pub const NAME_LIMIT: usize = 64;
/// Most bytes of a field's value.
pub const VALUE_LIMIT: usize = 1024;

/// Priority of what needs someone's attention (syslog's `err`).
pub const ERROR: u8 = 3;
/// Priority where nothing else is said (syslog's `info`).
pub const INFO: u8 = 6;

/// Who numbered the record: sequence numbers rise within a boot and a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// What PID 1 and services print; numbered by PID 1 from 1.
    Services,
    /// The kernel's messages; numbered by the kernel from 0.
    Kernel,
}

/// What a record is of the line that was printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// The line began in the record before of the same unit.
    pub continues: bool,
    /// The line goes on in the next record of the same unit.
    pub cut: bool,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who numbered it.
    pub stream: Stream,
    /// Sequence number in its boot and stream.
    pub seq: u64,
    /// Microseconds since the Unix epoch by the machine's clock, which may be wrong and may step.
    pub realtime_us: u64,
    /// Microseconds on CLOCK_MONOTONIC.
    pub monotonic_us: u64,
    /// Syslog's priority, 0 (emergency) to 7 (debug).
    pub priority: u8,
    /// Part of a longer line.
    pub flags: Flags,
    /// Service, `init`, or `kernel`; at most [`UNIT_LIMIT`] bytes.
    pub unit: String,
    /// Names and values, at most [`FIELDS_LIMIT`].
    pub fields: Vec<(String, String)>,
    /// The line without its end, at most [`MESSAGE_LIMIT`] bytes; any bytes.
    pub message: Vec<u8>,
}

impl Record {
    /// Adds the body's bytes; what is over a bound is cut off.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.stream {
            Stream::Services => 0,
            Stream::Kernel => 1,
        });
        out.push(self.priority.min(7));
        let flags = u16::from(self.flags.continues) | (u16::from(self.flags.cut) << 1);
        out.extend(flags.to_le_bytes());
        for number in [self.seq, self.realtime_us, self.monotonic_us] {
            out.extend(number.to_le_bytes());
        }
        text(out, &self.unit, UNIT_LIMIT);
        let fields = self.fields.len().min(FIELDS_LIMIT);
        out.push(u8::try_from(fields).unwrap_or(u8::MAX));
        for (name, value) in self.fields.iter().take(FIELDS_LIMIT) {
            text(out, name, NAME_LIMIT);
            text(out, value, VALUE_LIMIT);
        }
        let message = self.message.get(..MESSAGE_LIMIT).unwrap_or(&self.message);
        out.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend(message);
    }

    /// The record of a whole body; `None` where it is not one.
    pub(crate) fn decode(body: &[u8]) -> Option<Self> {
        let mut body = Reading(body);
        let stream = match body.u8()? {
            0 => Stream::Services,
            1 => Stream::Kernel,
            _ => return None,
        };
        let priority = body.u8().filter(|priority| *priority <= 7)?;
        let flags = body.u16().filter(|flags| *flags <= 3)?;
        let (seq, realtime_us, monotonic_us) = (body.u64()?, body.u64()?, body.u64()?);
        let unit = body.text(UNIT_LIMIT)?;
        let count = usize::from(body.u8()?);
        if count > FIELDS_LIMIT {
            return None;
        }
        let mut fields = Vec::with_capacity(count);
        for _ in 0..count {
            fields.push((body.text(NAME_LIMIT)?, body.text(VALUE_LIMIT)?));
        }
        let length = usize::try_from(body.u32()?).ok()?;
        let message = (length <= MESSAGE_LIMIT && length == body.0.len()).then(|| body.0.to_vec())?;
        Some(Self {
            stream,
            seq,
            realtime_us,
            monotonic_us,
            priority,
            flags: Flags {
                continues: flags & 1 != 0,
                cut: flags & 2 != 0,
            },
            unit,
            fields,
            message,
        })
    }
}

fn text(out: &mut Vec<u8>, text: &str, limit: usize) {
    let end = text.floor_char_boundary(limit);
    let text = text.get(..end).unwrap_or_default();
    out.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(text.as_bytes());
}
