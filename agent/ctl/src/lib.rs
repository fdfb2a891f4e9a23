//! The operator's command line, `bmctl`, and the REST client below it, which other tools use too.
//!
//! What it does: reads manifests and the operator's key, signs changes, speaks REST with one node over its unix
//! socket or mutual TLS, and prints what the node says. What it does not: decide anything about the fabric, keep
//! state, or retry a change. Invariant: every end of a run has one of the exit codes of [`failure::Class`].

pub mod args;
pub mod client;
mod command;
pub mod context;
pub mod duration;
pub mod failure;
pub mod output;
pub mod root_args;
mod session;
mod table;

pub use command::run;
