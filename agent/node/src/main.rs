//! The agent: wires identity, fabric, scheduler, runtime and the REST server.
fn main() {}
