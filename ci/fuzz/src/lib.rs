//! Fuzz targets: `fn(&[u8])`, the shape that libFuzzer wants, which panic when a parser breaks its promise.
//!
//! Coverage feedback needs a nightly compiler, which this workspace does not use: inputs come from the test vectors of the
//! formats and from mutations of them ([`mutate`]), without feedback. Invariant: a target is deterministic, so an input that
//! broke once breaks again.

pub mod mutate;
mod target;

pub use target::{Target, corpus};
