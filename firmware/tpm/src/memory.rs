//! A few bytes that a TPM keeps in its own storage, for a machine that has no disk: an NV index of the owner's range.
//!
//! The index is ours alone: it is read and written under PolicyPCR over PCR 7 (SHA-256) as it was when the index was made, by no
//! password, and does not count for the dictionary lock-out (TPM 2.0 Library, part 3, section 31). Whoever owns the TPM can
//! remove it, nobody can read it so. What it holds is framed with its length and digest. Nothing secret belongs there in the
//! clear: it crosses the bus as it is. Invariant: what comes back is exactly what was put in last, or an error; an index of
//! another make is left as it is.

use crate::device::{command, kind_of, policy_session, select_pcr_policy, start_session};
use crate::{MAX_MEMORY, TpmError};
use beemesh_ids::Digest as Sum;
use tss_esapi::{
    Context, Error,
    abstraction::nv::max_nv_buffer_size,
    attributes::{NvIndexAttributes, NvIndexAttributesBuilder},
    constants::{CapabilityType, NvIndexType, SessionType, response_code::Tss2ResponseCodeKind},
    handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle},
    interface_types::{
        algorithm::HashingAlgorithm,
        resource_handles::{NvAuth, Provision},
        session_handles::AuthSession,
    },
    structures::{CapabilityData, Digest, MaxNvBuffer, NvPublicBuilder},
};

/// In the range that the TCG's registry of reserved handles gives to owners (0x01800000 to 0x01BFFFFF).
pub(crate) const INDEX: u32 = 0x0180_bee5;
/// Begins the content, and is its version.
const MAGIC: [u8; 4] = *b"BMM1";
/// Magic, length (u16, big endian) and SHA-256 go before the bytes.
const HEAD: usize = MAGIC.len() + 2 + 32;
/// Size of the index. TPMs offer 2048 for one (`TPM_PT_NV_INDEX_MAX`), and mostly take half of that in one command
/// (`TPM_PT_NV_BUFFER_MAX`), which is then written whole or not at all.
const AREA: usize = HEAD + MAX_MEMORY;
/// `TPMA_NV_WRITTEN`: the TPM sets it by itself.
const WRITTEN: u32 = 1 << 29;

/// What was put in last; `None` where nothing was.
pub(crate) fn recall(tpm: &mut Context) -> Result<Option<Vec<u8>>, TpmError> {
    let Some(index) = find(tpm)? else {
        return Ok(None);
    };
    match read(tpm, index, AREA)? {
        Some(area) => unframe(&area).map(Some),
        None => Ok(None),
    }
}

/// Puts `bytes` in the place of what was there.
pub(crate) fn remember(tpm: &mut Context, bytes: &[u8]) -> Result<(), TpmError> {
    let area = frame(bytes)?;
    let index = match find(tpm)? {
        Some(index) => index,
        None => define(tpm)?,
    };
    let most = max_nv_buffer_size(tpm).map_err(command("GetCapability"))?.max(1);
    let mut offset = 0;
    for chunk in area.chunks(most) {
        let data = MaxNvBuffer::try_from(chunk).map_err(command("NV_Write"))?;
        let session = permitted(tpm)?;
        tpm.execute_with_session(Some(session), |tpm| {
            tpm.nv_write(NvAuth::NvIndex(index), index, data, offset)
        })
        .map_err(refused("NV_Write"))?;
        offset = offset.saturating_add(u16::try_from(chunk.len()).unwrap_or(u16::MAX));
    }
    match read(tpm, index, area.len())? {
        Some(kept) if kept == area => Ok(()),
        _ => Err(TpmError::Forgetful),
    }
}

/// Removes the index; nothing where there is none.
pub(crate) fn forget(tpm: &mut Context) -> Result<(), TpmError> {
    match find(tpm) {
        // The owner may, whatever was booted.
        Ok(Some(_)) | Err(TpmError::StateChanged) => {}
        Ok(None) => return Ok(()),
        Err(error) => return Err(error),
    }
    let index = open(tpm)?;
    tpm.execute_with_session(Some(AuthSession::Password), |tpm| {
        tpm.nv_undefine_space(Provision::Owner, index)
    })
    .map_err(command("NV_UndefineSpace"))
}

/// Our index, if there is one.
fn find(tpm: &mut Context) -> Result<Option<NvIndexHandle>, TpmError> {
    let fail = || command("GetCapability");
    let wanted = TpmHandle::NvIndex(number()?);
    let (found, _) = tpm
        .execute_without_session(|tpm| tpm.get_capability(CapabilityType::Handles, INDEX, 1))
        .map_err(fail())?;
    // The first from that number on.
    let is_there = matches!(&found, CapabilityData::Handles(handles) if handles.first() == Some(&wanted));
    if !is_there {
        return Ok(None);
    }
    let index = open(tpm)?;
    let (public, _) = tpm
        .execute_without_session(|tpm| tpm.nv_read_public(index))
        .map_err(command("NV_ReadPublic"))?;
    let ours = attributes().and_then(u32::try_from);
    let theirs = u32::try_from(public.attributes()).map(|attributes| attributes & !WRITTEN);
    let is_ours = public.data_size() == AREA
        && theirs.map_err(command("NV_ReadPublic"))? == ours.map_err(command("NV_ReadPublic"))?;
    if !is_ours {
        return Err(TpmError::MemoryTaken { index: INDEX });
    }
    match *public.authorization_policy() == policy(tpm)? {
        true => Ok(Some(index)),
        false => Err(TpmError::StateChanged),
    }
}

fn open(tpm: &mut Context) -> Result<NvIndexHandle, TpmError> {
    let index = TpmHandle::NvIndex(number()?);
    tpm.execute_without_session(|tpm| tpm.tr_from_tpm_public(index))
        .map(NvIndexHandle::from)
        .map_err(command("NV_ReadPublic"))
}

fn define(tpm: &mut Context) -> Result<NvIndexHandle, TpmError> {
    let fail = || command("NV_DefineSpace");
    let public = NvPublicBuilder::new()
        .with_nv_index(number()?)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes().map_err(fail())?)
        .with_index_auth_policy(policy(tpm)?)
        .with_data_area_size(AREA)
        .build()
        .map_err(fail())?;
    tpm.execute_with_session(Some(AuthSession::Password), |tpm| {
        tpm.nv_define_space(Provision::Owner, None, public)
    })
    .map_err(|source| match kind_of(&source) {
        Some(Tss2ResponseCodeKind::NvSpace | Tss2ResponseCodeKind::NvSize) => {
            TpmError::MemoryFull { bytes: AREA }
        }
        _ => TpmError::Command {
            command: "NV_DefineSpace",
            source,
        },
    })
}

fn number() -> Result<NvIndexTpmHandle, TpmError> {
    NvIndexTpmHandle::new(INDEX).map_err(command("NV_ReadPublic"))
}

fn attributes() -> Result<NvIndexAttributes, Error> {
    NvIndexAttributesBuilder::new()
        .with_policy_read(true)
        .with_policy_write(true)
        .with_no_da(true)
        .with_nv_index_type(NvIndexType::Ordinary)
        .build()
}

/// The digest of the policy, for what is booted now.
fn policy(tpm: &mut Context) -> Result<Digest, TpmError> {
    let session = permitted(tpm)?;
    let digest = tpm
        .policy_get_digest(policy_session(session)?)
        .map_err(command("PolicyGetDigest"))?;
    // A session that authorises nothing ends by this alone.
    tpm.flush_context(tss_esapi::handles::SessionHandle::from(session).into())
        .map_err(command("FlushContext"))?;
    Ok(digest)
}

/// A session for one command.
fn permitted(tpm: &mut Context) -> Result<AuthSession, TpmError> {
    let session = start_session(tpm, None, SessionType::Policy)?;
    select_pcr_policy(tpm, policy_session(session)?)?;
    Ok(session)
}

/// The first `length` bytes of the index; `None` where it was never written.
fn read(tpm: &mut Context, index: NvIndexHandle, length: usize) -> Result<Option<Vec<u8>>, TpmError> {
    let most = max_nv_buffer_size(tpm).map_err(command("GetCapability"))?.max(1);
    let mut area = Vec::with_capacity(length);
    while area.len() < length {
        let size = length.saturating_sub(area.len()).min(most);
        let (size, offset) = (u16::try_from(size), u16::try_from(area.len()));
        let (Ok(size), Ok(offset)) = (size, offset) else {
            return Err(TpmError::MemoryDamaged);
        };
        let session = permitted(tpm)?;
        let part = tpm.execute_with_session(Some(session), |tpm| {
            tpm.nv_read(NvAuth::NvIndex(index), index, size, offset)
        });
        match part {
            Ok(part) if part.value().is_empty() => return Err(TpmError::MemoryDamaged),
            Ok(part) => area.extend_from_slice(part.value()),
            Err(error) if kind_of(&error) == Some(Tss2ResponseCodeKind::NvUninitialized) => return Ok(None),
            Err(error) => return Err(refused("NV_Read")(error)),
        }
    }
    Ok(Some(area))
}

fn refused(name: &'static str) -> impl FnOnce(Error) -> TpmError {
    move |source| match kind_of(&source) {
        Some(Tss2ResponseCodeKind::PolicyFail) => TpmError::StateChanged,
        _ => TpmError::Command {
            command: name,
            source,
        },
    }
}

/// The bytes as they lie in the index.
pub(crate) fn frame(bytes: &[u8]) -> Result<Vec<u8>, TpmError> {
    let length = u16::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= MAX_MEMORY);
    let length = length.ok_or(TpmError::MemoryLength { len: bytes.len() })?;
    let sum = Sum::of(bytes);
    Ok([&MAGIC, length.to_be_bytes().as_slice(), sum.as_bytes(), bytes].concat())
}

/// The bytes that were framed; what lies behind them does not count.
pub(crate) fn unframe(area: &[u8]) -> Result<Vec<u8>, TpmError> {
    let damaged = || TpmError::MemoryDamaged;
    let rest = area.strip_prefix(&MAGIC).ok_or_else(damaged)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
    let (sum, rest) = rest.split_first_chunk::<32>().ok_or_else(damaged)?;
    let bytes = rest
        .get(..usize::from(u16::from_be_bytes(*length)))
        .ok_or_else(damaged)?;
    match Sum::of(bytes) == Sum::from(*sum) {
        true => Ok(bytes.to_vec()),
        false => Err(damaged()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_cut_anywhere_or_with_any_bit_flipped_is_damaged() {
        let framed = frame(b"what a box knows").unwrap();
        let with_tail = [framed.as_slice(), &[0xff; 40]].concat();
        assert_eq!(unframe(&with_tail).unwrap(), b"what a box knows");
        for length in 0..framed.len() {
            let cut = framed.get(..length).unwrap();
            assert!(matches!(unframe(cut), Err(TpmError::MemoryDamaged)), "{length}");
            // The rest is of the record before, as after a power cut between two writes.
            let older = [cut, &[0x5a; 64]].concat();
            assert!(
                matches!(unframe(&older), Err(TpmError::MemoryDamaged)),
                "{length}"
            );
        }
        for bit in 0..framed.len() * 8 {
            let mut flipped = framed.clone();
            if let Some(byte) = flipped.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
            }
            assert!(matches!(unframe(&flipped), Err(TpmError::MemoryDamaged)), "{bit}");
        }
    }

    #[test]
    fn more_than_fits_is_refused_with_its_length() {
        assert!(frame(&[7; MAX_MEMORY]).is_ok());
        let long = frame(&[7; MAX_MEMORY + 1]);
        assert!(matches!(long, Err(TpmError::MemoryLength { len }) if len == MAX_MEMORY + 1));
    }
}
