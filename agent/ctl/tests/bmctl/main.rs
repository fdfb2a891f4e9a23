//! Runs the `bmctl` binary against a node made for the test: what it prints, sends and leaves with.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod boot;
mod changes;
mod containers;
mod failures;
mod keys;
mod lists;
mod network;
mod node;
mod petition;
mod revocation;
mod roots;
mod run;
mod system_log;
mod tls;
mod views;
