//! The agent: wires node key, stick, fabric, scheduler, runtime and REST server together. No policy lives here.
//!
//! The way of data: the stick task verifies packs and commits the one document that makes this box a member; the
//! member task then owns the cell (pure core), executes its commands and feeds results back as events; REST handlers
//! put questions to the member task and talk to the runtime. Every channel between them is bounded.

mod asking;
mod attestation;
mod capacity;
mod clock;
#[cfg(test)]
mod fixture;
mod identity;
mod images;
mod join;
mod journal;
mod ledger;
mod member;
mod member_clocks;
mod memory;
mod network;
mod networks;
mod orders;
mod petitions;
mod query;
mod reserve;
mod rest;
#[cfg(test)]
mod rogue;
mod roots;
mod start;
mod stick;
mod sticks;
mod store;
mod supervisor;
mod trust;
mod volume;
mod waiting;

pub use start::{Options, run};

/// An error and its causes, in one line.
fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
