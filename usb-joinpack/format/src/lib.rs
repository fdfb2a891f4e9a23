//! The join pack: signed documents, bounded parsing, verification. `SPEC.md` beside this crate is the normative text.
//!
//! Pure: no file, socket, clock or randomness. Callers bring bytes, keys and the time.
//! Invariants: nothing of a pack can be read before its signatures are verified ([`Pack<Unverified>`](Pack) has no
//! accessors); every count and length is bounded by [`limits`]; whatever is wrong is a [`Refusal`] and never a panic.

mod acceptance;
mod approval;
mod authority;
mod blob;
mod boot_quote;
pub mod dsse;
mod endorsement;
mod key;
mod key_order;
pub mod limits;
mod log;
mod machine;
mod manifest;
mod membership;
mod operator;
mod orders;
mod pack;
mod receipt;
mod refusal;
mod release_list;
mod request;
mod revocation;
mod root;
mod rotation;
mod time;
mod validate;
mod voucher;

pub use acceptance::{ACCEPTANCE_PAYLOAD_TYPE, Acceptance, Acceptances, Registers};
pub use approval::{ApprovalCode, DENIAL_PAYLOAD_TYPE, Denial, NotACode};
pub use authority::{Act, Deed, Grant, KeyLimits, Names, Source, scope_in_words};
pub use blob::{BlobCheck, blob_path};
pub use boot_quote::{BootQuote, QuoteParts};
pub use dsse::Envelope;
pub use endorsement::EndorsementFile;
pub use key::{KeyId, PublicKey, SecretKey, SignError, Signer};
pub use key_order::{KEY_ORDER_PAYLOAD_TYPE, KeyOrder, KeyOrders};
pub use limits::MANIFEST_LIMIT;
pub use log::{LogEntry, LogKey, LogSecret, surplus_logs};
pub use machine::Machine;
pub use manifest::{
    ImageEntry, MANIFEST_PAYLOAD_TYPE, Manifest, NodeEntry, NodeNetwork, PackVoucher, ReleaseEntry,
    SealedKey, StatePolicy,
};
pub use membership::{Assurance, Member, Membership, REDEMPTION_PAYLOAD_TYPE, Redemption};
pub use operator::OperatorContext;
pub use orders::{Order, Orders, Standing};
pub use pack::{Pack, Unverified, Verified};
pub use receipt::{
    Outcome, Part, PartKind, Proof, RECEIPT_PAYLOAD_TYPE, Receipt, ReceiptMachine, TimeSource,
    surplus_receipts,
};
pub use refusal::Refusal;
pub use release_list::{RELEASE_LIST_PAYLOAD_TYPE, ReleaseList, ReleaseLists};
pub use request::{REQUEST_PAYLOAD_TYPE, Request, surplus_requests};
pub use revocation::{REVOCATION_PAYLOAD_TYPE, RevocationSet, Revocations};
pub use root::{ROOT_PAYLOAD_TYPE, Role, RoleKeys, RoleSpec, Root, RootChain};
pub use rotation::{NodeKeys, ROTATION_PAYLOAD_TYPE, Rotation};
pub use time::Timestamp;
pub use voucher::{Admission, VOUCHER_PAYLOAD_TYPE, Voucher};
