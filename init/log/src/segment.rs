//! Segments: a header, then records, each with a marker, a length and a checksum.
//!
//! The checksum covers the segment's salt and the record's place: bytes that a service prints are never taken for a
//! record, even where damage makes the reader look for the next one inside a message. Invariant: [`scan`] gives only
//! what [`append`] wrote, whatever was cut or flipped (but for a collision of CRC-32C).

use crate::record::{FIELDS_LIMIT, MESSAGE_LIMIT, NAME_LIMIT, Record, UNIT_LIMIT, VALUE_LIMIT};
use crc::{CRC_32_ISCSI, Crc, Table};

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

const MAGIC: &[u8; 8] = b"BMLOG\x00\x00\x01";
const MARKER: [u8; 4] = [0xb5, b'B', b'M', b'R'];
/// One copy of the header, in bytes.
const COPY: usize = 48;
/// Bytes of a segment's header: two copies, so that no single damaged byte takes a whole segment away.
pub const HEADER_LEN: usize = 2 * COPY;
/// Marker, length, checksum.
const HEAD: usize = 12;
/// The largest body.
const BODY_LIMIT: usize =
    28 + 2 + UNIT_LIMIT + 1 + FIELDS_LIMIT * (4 + NAME_LIMIT + VALUE_LIMIT) + 4 + MESSAGE_LIMIT;
/// The largest record with all that is around it, in bytes.
pub const RECORD_LIMIT: usize = HEAD + BODY_LIMIT;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its number in the ring; rises by one.
    pub number: u64,
    /// The boot of all its records (`/proc/sys/kernel/random/boot_id`).
    pub boot: [u8; 16],
    /// Random: known to those who may read the segment.
    pub salt: u64,
}

impl Header {
    /// The first [`HEADER_LEN`] bytes of the segment.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(HEADER_LEN);
        copy.extend(MAGIC);
        copy.extend(self.number.to_le_bytes());
        copy.extend(self.boot);
        copy.extend(self.salt.to_le_bytes());
        copy.extend([0; 4]);
        copy.extend(CRC32C.checksum(&copy).to_le_bytes());
        copy.extend_from_within(..);
        copy
    }

    /// The header that `bytes` begin with, from the copy that is whole; `None` where neither is.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.chunks_exact(COPY).take(2).find_map(Self::decode_copy)
    }

    fn decode_copy(copy: &[u8]) -> Option<Self> {
        let mut reading = Reading(copy);
        let magic = reading.take(8)?;
        let (number, boot, salt) = (reading.u64()?, reading.take(16)?, reading.u64()?);
        reading.take(4)?;
        let covered = copy.get(..COPY - 4)?;
        (magic == MAGIC && reading.u32()? == CRC32C.checksum(covered)).then_some(Self {
            number,
            boot: boot.try_into().ok()?,
            salt,
        })
    }

    fn checksum(&self, offset: u64, length: u32, body: &[u8]) -> u32 {
        let mut digest = CRC32C.digest();
        digest.update(&self.salt.to_le_bytes());
        digest.update(&offset.to_le_bytes());
        digest.update(&length.to_le_bytes());
        digest.update(body);
        digest.finalize()
    }
}

/// The bytes of `record` for the place `offset` (from the segment's first byte) of the segment.
#[must_use]
pub fn append(header: &Header, offset: u64, record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD + 128 + record.message.len());
    out.extend(MARKER);
    out.extend([0; 8]);
    record.encode(&mut out);
    let body = out.get(HEAD..).unwrap_or_default();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let sum = header.checksum(offset, length, body);
    let rest = [length.to_le_bytes(), sum.to_le_bytes()].concat();
    for (place, byte) in out.iter_mut().skip(4).zip(rest) {
        *place = byte;
    }
    out
}

/// What [`scan`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Bytes that need not be seen again: damage, and the record.
    pub consumed: usize,
    /// The next record; `None`: there is none in what was shown.
    pub record: Option<Record>,
}

/// The next whole record of `bytes`, which begin at `offset` of the segment. Damage is passed over. A record whose end
/// is not there yet is waited for, unless `last`: then no more bytes will come.
#[must_use]
pub fn scan(header: &Header, bytes: &[u8], offset: u64, last: bool) -> Scan {
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let at_offset = offset.saturating_add(at as u64);
        match judge(header, rest, at_offset) {
            Judged::Record(record, length) => {
                return Scan {
                    consumed: at + length,
                    record: Some(record),
                };
            }
            Judged::Short if !last => break,
            Judged::Short | Judged::No => {
                let next = rest.iter().skip(1).position(|byte| *byte == MARKER[0]);
                at = next.map_or(bytes.len(), |next| at + 1 + next);
            }
        }
    }
    Scan {
        consumed: at,
        record: None,
    }
}

enum Judged {
    Record(Record, usize),
    /// May be one, once more bytes are there.
    Short,
    No,
}

fn judge(header: &Header, bytes: &[u8], offset: u64) -> Judged {
    let known = bytes.len().min(MARKER.len());
    if bytes.get(..known) != MARKER.get(..known) {
        return Judged::No;
    }
    let mut reading = Reading(bytes);
    let (Some(_), Some(length), Some(sum)) = (reading.u32(), reading.u32(), reading.u32()) else {
        return Judged::Short;
    };
    let size = usize::try_from(length).unwrap_or(usize::MAX);
    if size > BODY_LIMIT {
        return Judged::No;
    }
    let Some(body) = reading.take(size) else {
        return Judged::Short;
    };
    if header.checksum(offset, length, body) != sum {
        return Judged::No;
    }
    Record::decode(body).map_or(Judged::No, |record| Judged::Record(record, HEAD + size))
}

/// What is left of bytes that are taken apart from the front.
pub(crate) struct Reading<'a>(pub(crate) &'a [u8]);

impl<'a> Reading<'a> {
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn text(&mut self, limit: usize) -> Option<String> {
        let length = usize::from(self.u16()?);
        let bytes = (length <= limit).then(|| self.take(length))??;
        String::from_utf8(bytes.to_vec()).ok()
    }
}
