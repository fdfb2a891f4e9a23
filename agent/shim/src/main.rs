//! Holds one pod: namespaces, log pipes and exit codes.
fn main() {}
