//! Cell membership, placement, grants and healing as a pure state machine.
//!
//! [`Cell::step`] takes an event and a time and gives back commands; it opens nothing, reads no clock and draws no
//! randomness but from its seed. `SPEC.md` has the protocol, the safety argument and what is not guaranteed.

mod arbiter;
pub mod attestation;
mod cell;
pub mod clocks;
mod desired;
mod gossip;
mod grants;
mod holdings;
pub mod keys;
mod leases;
mod membership;
mod model;
mod placement;
mod reconcile;
mod releases;
mod rendezvous;
pub mod revocation;
pub mod roots;
mod roster;
mod sync;
mod views;
pub mod wire;

pub use cell::Cell;
pub use desired::{ChangeRefused, MAX_CHANGES, MAX_ENVELOPE};
pub use grants::MAX_GRANTS;
pub use holdings::{FREE_ROSTER, MAX_PODS};
pub use model::{
    Capacity, CellConfig, Command, Event, GrantRecord, Key, KeyInfo, MemberInfo, Millis, OrderNews,
    Persisted, PodReport, Record, RecoveredPod, RevocationNews, RootNews, Stamp, Tuning,
};
pub use placement::{MAX_PLACEMENTS, MAX_RESERVATIONS};
pub use roster::MAX_MEMBERS;
