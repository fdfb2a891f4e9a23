//! cargo xtask setup | check | test | demo.
fn main() {}
