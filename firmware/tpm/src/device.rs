//! A TPM 2.0 through the ESAPI of tpm2-tss.
//!
//! One connection per operation and few commands (TPMs are slow): primary storage key, salted session, object. The
//! storage key is the TCG's ECC P-256 template in the owner hierarchy (TCG TPM v2.0 Provisioning Guidance, 7.5.1), made
//! anew each time, so nothing persistent is left in the TPM. The secret is a keyed-hash object whose only authorisation
//! is PolicyPCR over PCR 7, SHA-256. It crosses the bus encrypted (session salted with the storage key).
//! Does not survive a cleared TPM, by intention. Does not use RSA or persistent handles; of NV it reads certificates, and has one
//! index of its own (`memory.rs`).

use crate::{
    AttestationKey, Attested, Credential, Endorsement, Kind, PcrSet, Tpm, TpmError, Zeroizing, attestation,
    blob, blob::Blob, check_secret, endorsement, memory,
};
use std::{path::Path, str::FromStr};
use tss_esapi::{
    Context, Error,
    attributes::{ObjectAttributesBuilder, SessionAttributesBuilder},
    constants::{SessionType, response_code::Tss2ResponseCodeKind},
    handles::KeyHandle,
    interface_types::{
        algorithm::{HashingAlgorithm, PublicAlgorithm},
        ecc::EccCurve,
        resource_handles::Hierarchy,
        session_handles::{AuthSession, PolicySession},
    },
    structures::{
        CreateKeyResult, Digest, EccPoint, KeyedHashScheme, PcrSelectionList, PcrSlot, Private, Public,
        PublicBuilder, PublicEccParametersBuilder, PublicKeyedHashParameters, SensitiveData,
        SymmetricDefinition, SymmetricDefinitionObject,
    },
    tcti_ldr::{DeviceConfig, TctiNameConf},
    traits::{Marshall, UnMarshall},
};

/// A TPM 2.0 reached through a TCTI. Opened for each operation, so other programs can use it in between.
#[derive(Debug, Clone)]
pub struct DeviceTpm {
    tcti: String,
}

impl DeviceTpm {
    /// The TPM behind the device node at `path` ([`crate::DEVICE`]). Only `libtss2-tcti-device` is loaded for it.
    pub fn at(path: &Path) -> Self {
        Self {
            tcti: format!("device:{}", path.display()),
        }
    }

    /// The TPM behind a TCTI in the form of tpm2-tools, such as `swtpm:host=127.0.0.1,port=2321`.
    pub fn with_tcti(tcti: impl Into<String>) -> Self {
        Self { tcti: tcti.into() }
    }

    pub(crate) fn connect(&self) -> Result<Context, TpmError> {
        // What every machine has is not looked for by `TctiNameConf`'s patterns, which take time to be compiled.
        let tcti = match self.tcti.strip_prefix("device:") {
            Some(path) => DeviceConfig::from_str(path).map(TctiNameConf::Device),
            None => TctiNameConf::from_str(&self.tcti),
        };
        tcti.and_then(Context::new)
            .map_err(|source| TpmError::Unavailable {
                tcti: self.tcti.clone(),
                source,
            })
    }
}

impl Tpm for DeviceTpm {
    fn kind(&self) -> Kind {
        Kind::Device
    }

    fn seal(&self, secret: &[u8]) -> Result<Vec<u8>, TpmError> {
        check_secret(secret)?;
        let mut tpm = self.connect()?;
        let storage = create_storage_key(&mut tpm)?;

        let policy = start_session(&mut tpm, None, SessionType::Policy)?;
        select_pcr_policy(&mut tpm, policy_session(policy)?)?;
        let digest = tpm
            .policy_get_digest(policy_session(policy)?)
            .map_err(command("PolicyGetDigest"))?;

        let session = start_session(&mut tpm, Some(storage), SessionType::Hmac)?;
        let data = SensitiveData::try_from(secret).map_err(command("Create"))?;
        let template = sealed_template(digest).map_err(command("Create"))?;
        let made = tpm
            .execute_with_session(Some(session), |tpm| {
                tpm.create(storage, template, None, Some(data), None, None)
            })
            .map_err(command("Create"))?;
        check_sealed(&mut tpm, storage, &made, (policy, session), secret)?;
        Blob::Tpm {
            version: Blob::VERSION,
            public: blob::encode(&made.out_public.marshall().map_err(command("Create"))?),
            private: blob::encode(made.out_private.value()),
        }
        .to_bytes()
    }

    fn unseal(&self, bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let (public, private) = match Blob::parse(bytes)? {
            Blob::Tpm { public, private, .. } => (blob::decode(&public)?, blob::decode(&private)?),
            other => {
                return Err(TpmError::OtherKind {
                    sealed_by: other.sealed_by(),
                    present: "tpm",
                });
            }
        };
        let public = Public::unmarshall(&public).map_err(blob::malformed)?;
        let private = Private::try_from(private).map_err(blob::malformed)?;

        let mut tpm = self.connect()?;
        let storage = create_storage_key(&mut tpm)?;
        let object = tpm
            .execute_with_session(Some(AuthSession::Password), |tpm| {
                tpm.load(storage, private, public)
            })
            .map_err(|source| match kind_of(&source) {
                Some(Tss2ResponseCodeKind::Integrity) => TpmError::Foreign,
                _ => TpmError::Command {
                    command: "Load",
                    source,
                },
            })?;
        let session = start_session(&mut tpm, Some(storage), SessionType::Policy)?;
        select_pcr_policy(&mut tpm, policy_session(session)?)?;
        let data = tpm
            .execute_with_session(Some(session), |tpm| tpm.unseal(object.into()))
            .map_err(|source| match kind_of(&source) {
                Some(Tss2ResponseCodeKind::PolicyFail) => TpmError::StateChanged,
                _ => TpmError::Command {
                    command: "Unseal",
                    source,
                },
            })?;
        Ok(Zeroizing::new(data.value().to_vec()))
    }

    fn recall(&self) -> Result<Option<Vec<u8>>, TpmError> {
        memory::recall(&mut self.connect()?)
    }

    fn remember(&self, bytes: &[u8]) -> Result<(), TpmError> {
        memory::remember(&mut self.connect()?, bytes)
    }

    fn forget(&self) -> Result<(), TpmError> {
        memory::forget(&mut self.connect()?)
    }

    fn endorsement(&self) -> Result<Endorsement, TpmError> {
        endorsement::read(&mut self.connect()?)
    }

    fn endorsement_chain(&self) -> Result<Vec<u8>, TpmError> {
        endorsement::chain(&mut self.connect()?)
    }

    fn activate(&self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        endorsement::activate(&mut self.connect()?, credential, endorsement::load_bound_object)
    }

    fn attestation_key(&self) -> Result<AttestationKey, TpmError> {
        attestation::create(&mut self.connect()?).map(|(_, key)| key)
    }

    fn attest(&self, nonce: &[u8], pcrs: PcrSet) -> Result<Attested, TpmError> {
        attestation::attest(&mut self.connect()?, nonce, pcrs)
    }

    fn activate_for_attestation(&self, credential: &Credential) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let key = |tpm: &mut Context| attestation::create(tpm).map(|(handle, _)| handle);
        endorsement::activate(&mut self.connect()?, credential, key)
    }
}

/// What does not come back is found now, not at the next boot. `policy` fits the object already; the answer crosses the
/// bus in the salted `session`.
fn check_sealed(
    tpm: &mut Context,
    storage: KeyHandle,
    made: &CreateKeyResult,
    (policy, session): (AuthSession, AuthSession),
    secret: &[u8],
) -> Result<(), TpmError> {
    let (private, public) = (made.out_private.clone(), made.out_public.clone());
    let object = tpm
        .execute_with_session(Some(AuthSession::Password), |tpm| {
            tpm.load(storage, private, public)
        })
        .map_err(command("Load"))?;
    // There is nothing to decrypt in this command, and the TPM refuses to be asked for it.
    let (attributes, mask) = SessionAttributesBuilder::new()
        .with_decrypt(false)
        .with_encrypt(true)
        .build();
    tpm.tr_sess_set_attributes(session, attributes, mask)
        .map_err(command("Unseal"))?;
    let data = tpm
        .execute_with_sessions((Some(policy), Some(session), None), |tpm| {
            tpm.unseal(object.into())
        })
        .map_err(command("Unseal"))?;
    match data.value() == secret {
        true => Ok(()),
        false => Err(TpmError::Forgetful),
    }
}

pub(crate) fn command(command: &'static str) -> impl FnOnce(Error) -> TpmError {
    move |source| TpmError::Command { command, source }
}

pub(crate) fn kind_of(error: &Error) -> Option<Tss2ResponseCodeKind> {
    match error {
        Error::Tss2Error(code) => code.kind(),
        Error::WrapperError(_) => None,
    }
}

pub(crate) fn create_storage_key(tpm: &mut Context) -> Result<KeyHandle, TpmError> {
    let template = storage_template().map_err(command("CreatePrimary"))?;
    let made = tpm
        .execute_with_session(Some(AuthSession::Password), |tpm| {
            tpm.create_primary(Hierarchy::Owner, template, None, None, None, None)
        })
        .map_err(command("CreatePrimary"))?;
    Ok(made.key_handle)
}

fn storage_template() -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_decrypt(true)
        .with_restricted(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(
            PublicEccParametersBuilder::new_restricted_decryption_key(
                SymmetricDefinitionObject::AES_128_CFB,
                EccCurve::NistP256,
            )
            .build()?,
        )
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// No `userWithAuth`: the empty password opens nothing, only the policy does.
fn sealed_template(policy: Digest) -> Result<Public, Error> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(policy)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}

/// With a `salt` key, parameters of commands in this session are encrypted with a key that only this TPM can know.
pub(crate) fn start_session(
    tpm: &mut Context,
    salt: Option<KeyHandle>,
    of: SessionType,
) -> Result<AuthSession, TpmError> {
    let fail = command("StartAuthSession");
    let session = tpm.start_auth_session(
        salt,
        None,
        None,
        of,
        SymmetricDefinition::AES_128_CFB,
        HashingAlgorithm::Sha256,
    );
    let session = match session {
        Ok(Some(session)) => session,
        Ok(None) => {
            return Err(fail(Error::WrapperError(
                tss_esapi::WrapperErrorKind::InvalidHandleState,
            )));
        }
        Err(error) => return Err(fail(error)),
    };
    if salt.is_some() {
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_decrypt(of == SessionType::Hmac)
            .with_encrypt(true)
            .build();
        tpm.tr_sess_set_attributes(session, attributes, mask)
            .map_err(fail)?;
    }
    Ok(session)
}

pub(crate) fn policy_session(session: AuthSession) -> Result<PolicySession, TpmError> {
    PolicySession::try_from(session).map_err(command("StartAuthSession"))
}

/// PolicyPCR with the present values (an empty digest means "as they are").
pub(crate) fn select_pcr_policy(tpm: &mut Context, session: PolicySession) -> Result<(), TpmError> {
    let selection = PcrSelectionList::builder()
        .with_selection(HashingAlgorithm::Sha256, &[PcrSlot::Slot7])
        .build()
        .map_err(command("PolicyPCR"))?;
    tpm.policy_pcr(session, Digest::default(), selection)
        .map_err(command("PolicyPCR"))
}
