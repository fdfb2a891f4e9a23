//! The firmware's event log: what it measured before Linux ran, event by event, and the registers that result.
//!
//! Source: TCG PC Client Platform Firmware Profile 1.05, section 10 ("Event Logging"); Linux shows the log in
//! `/sys/kernel/security/tpm0/binary_bios_measurements`. Numbers are little-endian. The log is signed by nobody: it says why a
//! register has its value, and only where its replay gives that value.
//! Does not interpret the data of events. Invariant: a log has an end; nothing is read beyond [`MAX_LOG`].

use crate::pcr::{PCRS, extend};
use crate::reader::{CutOff, Reader};
use beemesh_ids::Digest;
use std::collections::BTreeMap;

/// Longest log that is read, in bytes.
pub const MAX_LOG: usize = 1 << 20;

const EV_NO_ACTION: u32 = 3;
const ALG_SHA256: u16 = 0x000b;
/// Banks that a log may have.
const MAX_BANKS: u32 = 16;
const SPEC_ID: &[u8; 16] = b"Spec ID Event03\0";
const STARTUP_LOCALITY: &[u8; 16] = b"StartupLocality\0";

/// Something that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The register.
    pub pcr: u8,
    /// Kind of the event (`EV_…`).
    pub kind: u32,
    /// What the register was extended by.
    pub digest: Digest,
    /// What the firmware says about it.
    pub data: &'a [u8],
}

/// A log that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replay<'a> {
    /// What was measured, in order.
    pub events: Vec<Event<'a>>,
    /// The registers that the events give; those that nothing was measured into are not among them.
    pub pcrs: BTreeMap<u8, Digest>,
}

/// Why a log cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Longer than [`MAX_LOG`].
    #[error("the event log is longer than {MAX_LOG} bytes")]
    TooLong,
    /// It ends within an event.
    #[error("the event log ends within an event")]
    CutOff,
    /// It has no header of a TPM 2.0's log.
    #[error("the event log does not begin as that of a tpm 2.0")]
    Header,
    /// It has no SHA-256.
    #[error("the event log has no sha-256 digests")]
    Bank,
    /// An event is of a register or has a digest that cannot be.
    #[error("the event log has an event of a register or a bank that it does not announce")]
    Event,
}

impl From<CutOff> for LogError {
    fn from(_: CutOff) -> Self {
        Self::CutOff
    }
}

/// Reads a log and plays it through the SHA-256 bank.
///
/// # Errors
/// [`LogError`]: it is not one, or damaged.
pub fn replay(log: &[u8]) -> Result<Replay<'_>, LogError> {
    if log.len() > MAX_LOG {
        return Err(LogError::TooLong);
    }
    let mut rest = Reader(log);
    let banks = header(&mut rest)?;
    let mut found = Replay {
        events: Vec::new(),
        pcrs: BTreeMap::new(),
    };
    while !rest.is_empty() {
        let (pcr, kind) = (rest.u32_le()?, rest.u32_le()?);
        let digest = digests(&mut rest, &banks)?;
        let size = rest.u32_le()?;
        let data = rest.take(usize::try_from(size).map_err(|_| LogError::CutOff)?)?;
        if kind == EV_NO_ACTION {
            if let (0, Some([locality])) = (pcr, data.strip_prefix(STARTUP_LOCALITY.as_slice())) {
                // The register does not begin at zero then (section 10.4.5.3).
                let mut value = [0; 32];
                value[31] = *locality;
                found.pcrs.entry(0).or_insert(Digest::from(value));
            }
            continue;
        }
        let pcr = u8::try_from(pcr)
            .ok()
            .filter(|pcr| *pcr < PCRS)
            .ok_or(LogError::Event)?;
        let value = found.pcrs.entry(pcr).or_insert(Digest::from([0; 32]));
        *value = extend(*value, digest);
        found.events.push(Event {
            pcr,
            kind,
            digest,
            data,
        });
    }
    Ok(found)
}

/// The first event, in the form of a TPM 1.2's log, says which banks the others are in: algorithm and size of each digest.
fn header(rest: &mut Reader<'_>) -> Result<BTreeMap<u16, usize>, LogError> {
    let (pcr, kind) = (rest.u32_le()?, rest.u32_le()?);
    rest.take(20)?; // a SHA-1 digest, all zeros
    let size = rest.u32_le()?;
    let mut data = Reader(rest.take(usize::try_from(size).map_err(|_| LogError::CutOff)?)?);
    if pcr != 0 || kind != EV_NO_ACTION || data.take(16).ok() != Some(SPEC_ID) {
        return Err(LogError::Header);
    }
    data.take(4 + 4)?; // platform class; minor, major, errata, size of a UINTN
    let count = data.u32_le()?;
    if count > MAX_BANKS {
        return Err(LogError::Header);
    }
    let mut banks = BTreeMap::new();
    for _ in 0..count {
        banks.insert(data.u16_le()?, usize::from(data.u16_le()?));
    }
    match banks.get(&ALG_SHA256) {
        Some(32) => Ok(banks),
        _ => Err(LogError::Bank),
    }
}

/// An event's digests, one for each bank; the SHA-256 one.
fn digests(rest: &mut Reader<'_>, banks: &BTreeMap<u16, usize>) -> Result<Digest, LogError> {
    let count = rest.u32_le()?;
    if count > MAX_BANKS {
        return Err(LogError::Event);
    }
    let mut found = None;
    for _ in 0..count {
        let bank = rest.u16_le()?;
        let size = *banks.get(&bank).ok_or(LogError::Event)?;
        let digest = rest.take(size)?;
        if bank == ALG_SHA256 {
            found = <[u8; 32]>::try_from(digest).ok().map(Digest::from);
        }
    }
    found.ok_or(LogError::Event)
}
