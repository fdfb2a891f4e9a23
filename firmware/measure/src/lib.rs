//! What a boot measures into a TPM: predicts it for a unified kernel image, replays it from the firmware's event log, and
//! verifies a TPM's quote of it. Talks to no TPM: `firmware/tpm` makes what is verified here.
//!
//! Pure: bytes in, values or a refusal out. Knows one bank, SHA-256, and one kind of key, [`AttestationKey`]. Judges no
//! value: which ones are good is for the caller to say.
//! Invariants: nothing is read beyond its bound; a quote that verifies was signed by that key over that nonce and those values.

#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod key;
mod log;
mod pcr;
mod quote;
mod reader;
mod uki;

pub use key::{AttestationKey, KeyError};
pub use log::{Event, LogError, MAX_LOG, Replay, replay};
pub use pcr::{PCRS, PcrSet, extend};
pub use quote::{MAX_ATTEST, Quote, QuoteRefusal, SIGNATURE, Session};
pub use uki::{MEASURED, StubError, check_stub, predict_pcr11};
