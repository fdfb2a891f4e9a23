//! Links, addresses, DHCP and DNS.
fn main() {}
