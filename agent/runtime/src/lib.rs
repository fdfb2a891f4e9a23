//! Images, snapshots, pods, pod network and logs of one node.
//!
//! The way of a pod: [`ImageStore`] (verified, unpacked layers) -> `snapshot` (overlay) -> `bundle` (runtime configuration) ->
//! `shim` (one process per pod) -> `network` (veth) and `forward` (published ports) -> `logs`. [`Runtime`] is the
//! capability, [`ContainerRuntime`] the real thing, [`FakeRuntime`] the one for tests of what uses it; [`contract`] holds
//! both to the same claims. It places nothing and talks to no other node.

pub mod address;
pub mod bundle;
pub mod container;
pub mod contract;
pub mod fake;
pub mod fixture;
pub mod forward;
pub mod image;
mod layer;
pub mod logs;
pub mod network;
pub mod pod;
pub mod seccomp;
pub mod shim;
pub mod snapshot;
pub mod users;

pub use container::{ContainerRuntime, OpenError, RuntimeConfig};
pub use fake::FakeRuntime;
pub use image::{Image, ImageEntry, ImageError, ImageId, ImageRefusal, ImageStore, Limits};
pub use pod::{LogQuery, PodError, PodEvent, PodRequest, PodStatus, Recovery, Runtime, StartError};
