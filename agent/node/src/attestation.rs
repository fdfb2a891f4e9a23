//! Shows other members what this machine booted, and asks them for the same.
//!
//! Judges nothing: `agent/sched` (`attestation`) does. Invariants: the TPM says nothing that is not bound to this node and to
//! the one that asks; one question at a time is at the TPM, a bounded number waits, and no member asks all the time.

use crate::asking::{self, AskError};
use crate::rest::Refused;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_agent_api::attestation::{ActivationAnswer, AttestationAnswer, AttestationQuestion};
use beemesh_agent_api::view::path;
use beemesh_agent_fabric::Fabric;
use beemesh_agent_sched::attestation::{Activation, Evidence, QUOTED, Report, activation_proof, quote_nonce};
use beemesh_firmware_credential::make_for;
use beemesh_firmware_measure::{AttestationKey, MAX_ATTEST, Quote, SIGNATURE};
use beemesh_firmware_tpm::{Credential, EndorsementKey, Tpm, TpmError};
use beemesh_ids::{Digest, PeerId};
use hyper::StatusCode;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// A member that takes longer has not answered: others may be before this node at its TPM.
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest question and answer, in bytes.
pub const LIMIT: usize = 16 << 10;
/// Longest public part of a key and part of a credential that is read, in bytes.
const KEY_LIMIT: usize = 512;
/// Questions that may wait for the TPM.
const WAITING: usize = 16;
/// Questions that a member may put within [`WINDOW`]: two make an attestation.
const OFTEN: u32 = 6;
const WINDOW: Duration = Duration::from_secs(60);

/// Makes a connection to the machine's TPM. It may come later than the agent.
pub type OpenTpm = Arc<dyn Fn() -> Box<dyn Tpm> + Send + Sync>;

/// This machine's side. Cheap to clone.
#[derive(Clone)]
pub struct Attestor(Arc<Inner>);

struct Inner {
    open: OpenTpm,
    /// The endorsement key's public part, read once.
    ek: OnceLock<Vec<u8>>,
    places: Arc<Semaphore>,
    turn: Mutex<()>,
    /// Who asked how often since when.
    asked: Mutex<BTreeMap<PeerId, (Instant, u32)>>,
}

impl Attestor {
    /// For the TPM that `open` finds.
    pub fn new(open: OpenTpm) -> Self {
        Self(Arc::new(Inner {
            open,
            ek: OnceLock::new(),
            places: Arc::new(Semaphore::new(WAITING)),
            turn: Mutex::new(()),
            asked: Mutex::new(BTreeMap::new()),
        }))
    }

    /// Answers a member's question to `me`, as JSON.
    pub async fn answer(&self, me: &PeerId, asker: &PeerId, question: &[u8]) -> Result<Vec<u8>, Refused> {
        let bad = |error: String| Refused::new(StatusCode::BAD_REQUEST, error);
        let question: AttestationQuestion =
            serde_json::from_slice(question).map_err(|error| bad(format!("the question: {error}")))?;
        if !self.may_ask(asker, Instant::now()) {
            let error = format!("more than {OFTEN} questions within {} s", WINDOW.as_secs());
            return Err(Refused::new(StatusCode::TOO_MANY_REQUESTS, error));
        }
        match question {
            AttestationQuestion::Quote { nonce } => {
                let nonce = decode_array(&nonce).ok_or_else(|| bad("`nonce` is not 32 bytes".into()))?;
                encode(&self.quote(nonce, asker.clone(), me.clone()).await?)
            }
            AttestationQuestion::Activate { credential, secret } => {
                let part = |text: &str| decode(text, KEY_LIMIT);
                let (Some(credential), Some(secret)) = (part(&credential), part(&secret)) else {
                    return Err(bad(format!(
                        "a credential is not base64 of at most {KEY_LIMIT} bytes"
                    )));
                };
                let credential = Credential { credential, secret };
                let opened = self
                    .at_the_tpm(move |tpm, _| tpm.activate_for_attestation(&credential))
                    .await?;
                let secret: [u8; 32] = opened
                    .as_slice()
                    .try_into()
                    .map_err(|_| bad("the secret is not 32 bytes".into()))?;
                encode(&ActivationAnswer {
                    proof: activation_proof(&secret, asker, me),
                })
            }
        }
    }

    async fn quote(&self, nonce: [u8; 32], asker: PeerId, me: PeerId) -> Result<AttestationAnswer, Refused> {
        let attested = self.at_the_tpm(move |tpm, ek| {
            let ek = match ek.get() {
                Some(ek) => ek.clone(),
                None => {
                    let made = tpm.endorsement()?.key.public().to_vec();
                    ek.get_or_init(|| made).clone()
                }
            };
            let attested = tpm.attest(quote_nonce(&nonce, &asker, &me).as_bytes(), QUOTED)?;
            Ok((ek, attested))
        });
        let (ek, attested) = attested.await?;
        Ok(AttestationAnswer {
            ek: STANDARD.encode(ek),
            ak: STANDARD.encode(attested.key.public()),
            attest: STANDARD.encode(attested.quote.attest),
            signature: STANDARD.encode(attested.quote.signature),
            pcrs: attested.quote.pcrs,
        })
    }

    /// Whether a member may ask once more. Only members ask, so their number bounds the table.
    fn may_ask(&self, asker: &PeerId, now: Instant) -> bool {
        let mut asked = self.0.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, (since, _)| now.saturating_duration_since(*since) < WINDOW);
        let (_, count) = asked.entry(asker.clone()).or_insert((now, 0));
        *count = count.saturating_add(1);
        *count <= OFTEN
    }

    /// Lets the TPM work beside the loop, once it is this question's turn.
    async fn at_the_tpm<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Tpm, &OnceLock<Vec<u8>>) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, Refused> {
        let busy = "too many questions wait for the tpm: try again";
        let place = Arc::clone(&self.0.places).try_acquire_owned();
        let place = place.map_err(|_| Refused::new(StatusCode::SERVICE_UNAVAILABLE, busy))?;
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            let _place = place;
            let _turn = inner.turn.lock().unwrap_or_else(PoisonError::into_inner);
            work((inner.open)().as_ref(), &inner.ek)
        });
        let failed = |error: String| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error);
        match done.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let status = match error {
                    TpmError::NoEndorsement => StatusCode::NOT_FOUND,
                    TpmError::Foreign => StatusCode::UNPROCESSABLE_ENTITY,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                Err(Refused::new(status, crate::words(&error)))
            }
            Err(error) => Err(failed(format!("the work broke off: {error}"))),
        }
    }
}

/// Why a member was not attested. None of them says anything about what it booted.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// It was not reached.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It refuses to answer.
    #[error("the answer is `{0}`")]
    Status(StatusCode),
    /// The answer is none.
    #[error("the answer is malformed")]
    Malformed,
    /// This node has no randomness.
    #[error("failed to read randomness")]
    Random,
}

/// One node that asks another one, or itself.
pub struct Asking<'a> {
    /// The network.
    pub fabric: &'a Fabric,
    /// This node's own TPM.
    pub own: &'a Attestor,
    /// The node that is asked.
    pub peer: &'a PeerId,
    /// The attestation key that it has proven.
    pub proven: Option<Digest>,
    /// The endorsement key that its voucher is for.
    pub vouched_ek: Option<Digest>,
}

impl Asking<'_> {
    /// Asks for a quote, and lets the node prove its key where that is another one than before.
    ///
    /// # Errors
    /// [`AttestError`]: there is no answer that could be judged.
    pub async fn ask(self) -> Result<Report, AttestError> {
        let nonce = random()?;
        let question = AttestationQuestion::Quote {
            nonce: STANDARD.encode(nonce),
        };
        let answer: AttestationAnswer = match self.question(&question).await {
            Ok(answer) => answer,
            Err(AttestError::Status(StatusCode::NOT_FOUND)) => return Ok(Report::NoTpm),
            Err(error) => return Err(error),
        };
        let read = |text: &str, limit: usize| decode(text, limit).ok_or(AttestError::Malformed);
        let (ek, ak) = (read(&answer.ek, KEY_LIMIT)?, read(&answer.ak, KEY_LIMIT)?);
        let quote = Quote {
            attest: read(&answer.attest, MAX_ATTEST)?,
            signature: read(&answer.signature, SIGNATURE)?,
            pcrs: answer.pcrs,
        };
        let activation = match self.proven {
            Some(proven) if proven == Digest::of(&ak) => None,
            _ => self.activate(&ek, &ak).await?,
        };
        Ok(Report::Evidence(Box::new(Evidence {
            ek: Digest::of(&ek),
            vouched_ek: self.vouched_ek,
            ak,
            nonce,
            quote,
            activation,
        })))
    }

    /// `None` where the node cannot show that it holds both keys.
    async fn activate(&self, ek: &[u8], ak: &[u8]) -> Result<Option<Activation>, AttestError> {
        let (Ok(ek), Ok(ak)) = (EndorsementKey::parse(ek), AttestationKey::parse(ak)) else {
            return Ok(None);
        };
        let secret = random()?;
        let Ok(credential) = make_for(&ek, &ak.name(), &secret) else {
            return Ok(None);
        };
        let question = AttestationQuestion::Activate {
            credential: STANDARD.encode(credential.credential),
            secret: STANDARD.encode(credential.secret),
        };
        match self.question::<ActivationAnswer>(&question).await {
            Ok(answer) => Ok(Some(Activation {
                ek: ek.digest(),
                ak: ak.digest(),
                secret,
                proof: answer.proof,
            })),
            Err(AttestError::Status(StatusCode::UNPROCESSABLE_ENTITY)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn question<T: DeserializeOwned>(&self, question: &AttestationQuestion) -> Result<T, AttestError> {
        let question = serde_json::to_vec(question).map_err(|_| AttestError::Malformed)?;
        let me = self.fabric.peer_id();
        let body = if self.peer == me {
            let answer = self.own.answer(me, me, &question).await;
            answer.map_err(|refused| AttestError::Status(refused.status))?
        } else {
            let bounds = (LIMIT, PATIENCE);
            let answer =
                asking::ask(self.fabric, self.peer, path::ATTESTATION, Some(question), bounds).await?;
            if answer.status != StatusCode::OK {
                return Err(AttestError::Status(answer.status));
            }
            answer.body.to_vec()
        };
        serde_json::from_slice(&body).map_err(|_| AttestError::Malformed)
    }
}

fn random() -> Result<[u8; 32], AttestError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| AttestError::Random)?;
    Ok(bytes)
}

fn encode<T: serde::Serialize>(answer: &T) -> Result<Vec<u8>, Refused> {
    serde_json::to_vec(answer).map_err(|error| {
        Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("failed to encode: {error}"),
        )
    })
}

/// Base64 of at most `limit` bytes.
fn decode(text: &str, limit: usize) -> Option<Vec<u8>> {
    (text.len() <= limit.div_ceil(3) * 4)
        .then(|| STANDARD.decode(text).ok())
        .flatten()
        .filter(|bytes| bytes.len() <= limit)
}

fn decode_array(text: &str) -> Option<[u8; 32]> {
    decode(text, 32)?.try_into().ok()
}

#[cfg(test)]
#[path = "attestation_tests.rs"]
mod tests;
