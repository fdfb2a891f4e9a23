//! Cells of up to a thousand nodes on the shipped state machine, under one virtual clock.
//!
//! [`World`] drives [`beemesh_agent_sched::Cell`] through its public interface alone and executes its commands as a driver
//! would; revocations are real signed snapshots, judged by `usb-joinpack/format`, and keys are rotated by the steps of
//! `agent/identity`. Nothing of the product is written twice here. [`scenario`] plays what was promised and measures it; [`costs`]
//! measures what signatures and connections cost this machine, for what the worlds count of it. Invariant: two worlds with the same seed and the same calls are
//! equal, to the last message.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod authority;
pub mod costs;
mod invariants;
mod manifest;
mod network;
pub mod scenario;
mod spread;
mod traffic;
mod world;

pub use authority::Authority;
pub use invariants::Invariants;
pub use manifest::{Wish, deletion, deployment, workload};
pub use network::Network;
pub use spread::{Delays, Spread};
pub use traffic::Traffic;
pub use world::{Keys, Node, SimPod, Started, World};
