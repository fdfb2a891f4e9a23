//! The attestation key of a TPM 2.0, and what it signs: the registers that say what was booted.
//!
//! The key is a primary of the endorsement hierarchy, made anew from the seed for each use by a fixed template: always the
//! same one, and nothing of it stays in the TPM or on a disk. Being restricted it signs nothing that a TPM did not make.
//! Judges nothing: `firmware/measure` verifies.

use crate::device::command;
use crate::{Attested, TpmError};
use beemesh_firmware_measure::{AttestationKey, PcrSet, Quote};
use beemesh_ids::Digest as Value;
use std::collections::BTreeMap;
use tss_esapi::{
    Context, Error, WrapperErrorKind,
    handles::KeyHandle,
    interface_types::{
        algorithm::HashingAlgorithm, resource_handles::Hierarchy, session_handles::AuthSession,
    },
    structures::{Data, PcrSelectionList, PcrSlot, Public, Signature, SignatureScheme},
    traits::{Marshall as _, UnMarshall as _},
};

/// Longest coordinate of a P-256 signature.
const COORDINATE: usize = 32;

pub(crate) fn create(tpm: &mut Context) -> Result<(KeyHandle, AttestationKey), TpmError> {
    let fail = command("CreatePrimary");
    let template = Public::unmarshall(&AttestationKey::template());
    let made = template.and_then(|template| {
        tpm.execute_with_session(Some(AuthSession::Password), |tpm| {
            tpm.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        })
    });
    let made = made.map_err(fail)?;
    let public = made.out_public.marshall().map_err(command("CreatePrimary"))?;
    let key = AttestationKey::parse(&public).map_err(TpmError::Attestation)?;
    Ok((made.key_handle, key))
}

/// `TPM2_Quote`, and the values that it is over. Where a register changes in between, the two do not fit, and whoever verifies
/// them asks again.
pub(crate) fn attest(tpm: &mut Context, nonce: &[u8], pcrs: PcrSet) -> Result<Attested, TpmError> {
    let slots = slots(pcrs)?;
    let (handle, key) = create(tpm)?;
    let data = Data::try_from(nonce).map_err(command("Quote"))?;
    let selection = select(&slots)?;
    let (attest, signature) = tpm
        .execute_with_session(Some(AuthSession::Password), |tpm| {
            tpm.quote(handle, data, SignatureScheme::Null, selection)
        })
        .map_err(command("Quote"))?;
    let Signature::EcDsa(signature) = signature else {
        return Err(unexpected("Quote"));
    };
    let parts = [signature.signature_r().value(), signature.signature_s().value()];
    let mut fixed = Vec::with_capacity(2 * COORDINATE);
    for part in parts {
        // TPMs may leave zeros in front away.
        let zeros = COORDINATE
            .checked_sub(part.len())
            .ok_or_else(|| unexpected("Quote"))?;
        fixed.extend(std::iter::repeat_n(0, zeros));
        fixed.extend_from_slice(part);
    }
    let quote = Quote {
        attest: attest.marshall().map_err(command("Quote"))?,
        signature: fixed,
        pcrs: values(tpm, &slots)?,
    };
    Ok(Attested { key, quote })
}

/// The registers' values. A TPM gives at most eight at once, the lowest first.
fn values(tpm: &mut Context, slots: &[(u8, PcrSlot)]) -> Result<BTreeMap<u8, Value>, TpmError> {
    let mut values = BTreeMap::new();
    let mut rest = slots;
    while !rest.is_empty() {
        let selection = select(rest)?;
        let (_, _, read) = tpm.pcr_read(selection).map_err(command("PCR_Read"))?;
        let (done, more) = rest
            .split_at_checked(read.len())
            .filter(|(done, _)| !done.is_empty())
            .ok_or_else(|| unexpected("PCR_Read"))?;
        for ((number, _), value) in done.iter().zip(read.value()) {
            let value: [u8; 32] = value.value().try_into().map_err(|_| unexpected("PCR_Read"))?;
            values.insert(*number, Value::from(value));
        }
        rest = more;
    }
    Ok(values)
}

fn slots(pcrs: PcrSet) -> Result<Vec<(u8, PcrSlot)>, TpmError> {
    let slot = |number: u8| {
        let slot = PcrSlot::try_from(1_u32 << number).map_err(command("PCR_Read"))?;
        Ok((number, slot))
    };
    pcrs.iter().map(slot).collect()
}

fn select(slots: &[(u8, PcrSlot)]) -> Result<PcrSelectionList, TpmError> {
    let slots: Vec<PcrSlot> = slots.iter().map(|(_, slot)| *slot).collect();
    PcrSelectionList::builder()
        .with_selection(HashingAlgorithm::Sha256, &slots)
        .build()
        .map_err(command("PCR_Read"))
}

/// The answer has another form than the question asks for.
fn unexpected(name: &'static str) -> TpmError {
    command(name)(Error::WrapperError(WrapperErrorKind::InconsistentParams))
}
