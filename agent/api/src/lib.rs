//! What crosses the agent's borders: the manifest subset, signed workload records, REST views, the shim's protocol.
//!
//! Pure: nothing here opens a file or a socket or reads a clock. The manifest language is Kubernetes' (a stated
//! subset, see `SPEC.md`); what is outside it is refused with an error that names the field.

mod assurance;
pub mod attestation;
pub mod boot;
mod check;
mod document;
mod fault;
pub mod keys;
mod locate;
pub mod manifest;
pub mod network;
pub mod petition;
pub mod quantity;
pub mod record;
pub mod revocation;
pub mod roots;
pub mod shim;
pub mod view;

pub use manifest::{
    Manifest, ManifestError, ManifestFault, PodSpec, check_workload, parse_manifests, to_yaml,
};
pub use record::{Change, WorkloadId, WorkloadKind, WorkloadSpec};
