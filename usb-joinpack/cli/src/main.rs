//! Makes fabrics and join packs, offline.
fn main() {}
