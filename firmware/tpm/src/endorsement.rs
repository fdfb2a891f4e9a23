//! The endorsement key of a TPM 2.0: shows it, and opens what was encrypted to it.
//!
//! The key is the ECC P-256 template L-2 of the TCG EK Credential Profile, made anew from the endorsement seed for each use.
//! Its policy is PolicySecret with the endorsement hierarchy's password, which is empty where nobody has set one. Does not
//! judge certificates. Nothing stays in the TPM.

use crate::device::{command, create_storage_key, kind_of, policy_session, start_session};
use crate::{Credential, Endorsement, EndorsementKey, TpmError, Zeroizing};
use beemesh_firmware_credential::bound_object;
use std::ops::RangeInclusive;
use tss_esapi::{
    Context, Error,
    abstraction::{AsymmetricAlgorithmSelection, ek, nv},
    constants::{SessionType, response_code::Tss2ResponseCodeKind},
    handles::{AuthHandle, KeyHandle, TpmHandle},
    interface_types::{
        ecc::EccCurve,
        resource_handles::{Hierarchy, NvAuth},
        session_handles::AuthSession,
    },
    structures::{Auth, Digest, EncryptedSecret, IdObject, Nonce, Public, Sensitive, SensitiveData},
    traits::{Marshall as _, UnMarshall as _},
};

const KIND: AsymmetricAlgorithmSelection = AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256);
/// Longest certificate that is shown, in bytes.
const CERTIFICATE: usize = 8 * 1024;
/// Where TPMs keep the certificates above that of an endorsement key (TCG EK Credential Profile 2.5, section 2.2.1.5).
const CHAIN_INDICES: RangeInclusive<u32> = 0x01c0_0100..=0x01c0_01ff;
/// Most bytes of them that are read.
const CHAIN: usize = 16 * 1024;

/// The key's public part, and its certificate where the TPM holds one.
pub(crate) fn read(tpm: &mut Context) -> Result<Endorsement, TpmError> {
    let (_, public) = create(tpm)?;
    let bytes = public.marshall().map_err(command("CreatePrimary"))?;
    let key = EndorsementKey::parse(&bytes).map_err(TpmError::Endorsement)?;
    // Most TPMs have a certificate for their RSA key alone: none for this one is no failure.
    let certificate = ek::retrieve_ek_pubcert(tpm, KIND).ok();
    Ok(Endorsement {
        key,
        certificate: certificate.filter(|bytes| !bytes.is_empty() && bytes.len() <= CERTIFICATE),
    })
}

/// The certificates above: the content of their indices in order. One that is longer than its bound is of no use cut off, so
/// that then there are none.
pub(crate) fn chain(tpm: &mut Context) -> Result<Vec<u8>, TpmError> {
    let defined = nv::list(tpm).map_err(command("NV_ReadPublic"))?;
    let mut indices: Vec<_> = defined
        .iter()
        .map(|(public, _)| (u32::from(public.nv_index()), public.nv_index()))
        .filter(|(number, _)| CHAIN_INDICES.contains(number))
        .collect();
    indices.sort_by_key(|(number, _)| *number);
    let mut chain = Vec::new();
    for (_, index) in indices {
        let handle = tpm.execute_without_session(|tpm| tpm.tr_from_tpm_public(TpmHandle::NvIndex(index)));
        let auth = NvAuth::NvIndex(handle.map_err(command("NV_ReadPublic"))?.into());
        let read = tpm.execute_with_nullauth_session(|tpm| nv::read_full(tpm, auth, index));
        chain.extend(read.map_err(command("NV_Read"))?);
        if chain.len() > CHAIN {
            return Ok(Vec::new());
        }
    }
    Ok(chain)
}

/// `TPM2_ActivateCredential` with the object that `load` puts into the TPM, usable with the empty password. The answer crosses
/// the bus encrypted: the policy session is salted with the storage key.
pub(crate) fn activate(
    tpm: &mut Context,
    credential: &Credential,
    load: impl FnOnce(&mut Context) -> Result<KeyHandle, TpmError>,
) -> Result<Zeroizing<Vec<u8>>, TpmError> {
    let fail = || command("ActivateCredential");
    let blob = IdObject::try_from(credential.credential.as_slice()).map_err(fail())?;
    let secret = EncryptedSecret::try_from(credential.secret.as_slice()).map_err(fail())?;
    let storage = create_storage_key(tpm)?;
    let (key, _) = create(tpm)?;
    let object = load(tpm)?;
    let session = start_session(tpm, Some(storage), SessionType::Policy)?;
    let policy = policy_session(session)?;
    tpm.execute_with_session(Some(AuthSession::Password), |tpm| {
        let (none, no_name) = (Nonce::default(), Nonce::default());
        tpm.policy_secret(
            policy,
            AuthHandle::Endorsement,
            none,
            Digest::default(),
            no_name,
            None,
        )
    })
    .map_err(command("PolicySecret"))?;
    let sessions = (Some(AuthSession::Password), Some(session), None);
    let secret = tpm
        .execute_with_sessions(sessions, |tpm| tpm.activate_credential(object, key, blob, secret))
        .map_err(|source| match kind_of(&source) {
            // Another TPM's shared secret gives other keys: the integrity does not hold, or the point is none.
            Some(
                Tss2ResponseCodeKind::Integrity
                | Tss2ResponseCodeKind::Value
                | Tss2ResponseCodeKind::EccPoint,
            ) => TpmError::Foreign,
            _ => TpmError::Command {
                command: "ActivateCredential",
                source,
            },
        })?;
    Ok(Zeroizing::new(secret.value().to_vec()))
}

fn create(tpm: &mut Context) -> Result<(KeyHandle, Public), TpmError> {
    let template =
        ek::create_ek_public_from_default_template_2(KIND, None).map_err(command("CreatePrimary"))?;
    let made = tpm
        .execute_with_session(Some(AuthSession::Password), |tpm| {
            tpm.create_primary(Hierarchy::Endorsement, template, None, None, None, None)
        })
        .map_err(command("CreatePrimary"))?;
    Ok((made.key_handle, made.out_public))
}

/// Part 1 of the specification binds a credential to an object in the TPM. This one is the same everywhere.
pub(crate) fn load_bound_object(tpm: &mut Context) -> Result<KeyHandle, TpmError> {
    let fail = |source: Error| TpmError::Command {
        command: "LoadExternal",
        source,
    };
    let object = bound_object();
    let sensitive = Sensitive::Bits {
        auth_value: Auth::default(),
        seed_value: Digest::try_from(object.seed.as_slice()).map_err(fail)?,
        sensitive: SensitiveData::try_from(object.data).map_err(fail)?,
    };
    let public = Public::unmarshall(&object.public).map_err(fail)?;
    tpm.load_external(sensitive, public, Hierarchy::Null)
        .map_err(fail)
}
