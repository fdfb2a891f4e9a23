//! Finds, makes, unlocks and mounts the state volume.
fn main() {}
