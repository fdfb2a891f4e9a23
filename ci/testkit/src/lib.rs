//! QEMU machines, a virtual switch and fault plans as Rust types.
