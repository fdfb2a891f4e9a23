//! What crosses the agent's borders: the manifest subset, signed workload records, REST views, the shim's protocol.
//!
//! Pure: nothing here opens a file or a socket or reads a clock. The manifest language is Kubernetes' (a stated
//! subset, see `SPEC.md`); what is outside it is refused with an error that names the field.

pub mod manifest;
pub mod record;
pub mod shim;
pub mod view;

pub use manifest::{Manifest, ManifestError, PodSpec, parse_manifests};
pub use record::{Change, WorkloadId, WorkloadKind, WorkloadSpec};
