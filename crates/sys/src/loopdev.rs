//! Loop devices: a file as a read-only block device. Source: loop(4), `LOOP_CONFIGURE` (Linux 5.8).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LO_FLAGS_READ_ONLY: u32 = 1;
/// How often another process may snatch the free device before we give up.
const ATTEMPTS: u32 = 16;

/// Why a file could not become a block device.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The loop driver is not there.
    #[error("failed to open `/dev/loop-control`: is the module `loop` loaded?")]
    Control(#[source] io::Error),
    /// No free device.
    #[error("the kernel has no free loop device")]
    NoneFree(#[source] io::Error),
    /// The device node could not be opened.
    #[error("failed to open `{device}`")]
    Open {
        /// The device node.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the file.
    #[error("failed to attach the file to `{device}`")]
    Configure {
        /// The device node.
        device: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// Attaches `backing` read-only to a free loop device and returns the device's path. The kernel keeps the file
/// open, so the caller may close it, and even unlink it, afterwards.
///
/// # Errors
/// [`LoopError`], by step.
pub fn attach_read_only(backing: impl AsFd) -> Result<PathBuf, LoopError> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")
        .map_err(LoopError::Control)?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        // SAFETY: LOOP_CTL_GET_FREE takes no argument; the descriptor is open for the duration of the call.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(LoopError::NoneFree(io::Error::last_os_error()));
        }
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let node = match File::open(&device) {
            Ok(node) => node,
            Err(source) => return Err(LoopError::Open { device, source }),
        };
        match configure(&node, &backing) {
            Ok(()) => return Ok(device),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && attempt < ATTEMPTS => {}
            Err(source) => return Err(LoopError::Configure { device, source }),
        }
    }
}

fn configure(node: &File, backing: &impl AsFd) -> io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(backing.as_fd().as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?,
        block_size: 0,
        info: LoopInfo64 {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            sizelimit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_READ_ONLY,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: `config` has the layout of `struct loop_config` (checked by size below) and outlives the call, which
    // only reads it; both descriptors are open.
    let done = unsafe { libc::ioctl(node.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(&config)) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);
