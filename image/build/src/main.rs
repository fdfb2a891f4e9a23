//! Builds the OS image from packages.lock and our binaries.
fn main() {}
