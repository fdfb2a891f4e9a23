//! The system calls that nix does not wrap: the one place with unsafe code.
