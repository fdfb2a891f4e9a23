//! What `cargo xtask bench` measures. [`pack`] is apart from the rest, which is `cargo xtask bench boot`: three systems with the same kernel on the same virtual machine, from the kernel's start to
//! ready, measured in one run.
//!
//! - **bare**: busybox as PID 1 in an initramfs; it says its line as its first act. The limit: no system is faster.
//! - **Beemesh**: the built image's kernel and initrd until the agent says `READY=1`. The main figure is a box that was
//!   provisioned before (encrypted state volume, key in the TPM); the first boot on a blank disk stands beside it.
//! - **Debian**: Debian 12 with systemd and podman until multi-user.target, on a disk that was booted before.
//!
//! Same for all: kernel, QEMU, processors, memory, a TPM, one virtio disk, no network card, and the product's kernel
//! command line. QEMU loads the kernel itself, so no firmware is in the figures. Each boot starts from a fresh copy of
//! the same disk and TPM. Invariant: every figure comes from the guest's own `/proc` in the run that reports it.

pub mod chart;
pub mod debian;
pub mod host;
pub mod images;
pub mod pack;
pub mod record;
pub mod report;
pub mod rig;
pub mod statistics;
pub mod table;
