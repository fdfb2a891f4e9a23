//! Finds, makes, unlocks and mounts the state volume; writes `StateStatus`. Runs once per boot, to its end, and once more on
//! the way down to close the volume.
//!
//! Whatever happens there is something mounted at the end, and the status says in a sentence what. Invariant: nothing
//! is written to a disk that carries anything but our own volume.

mod device;
mod filesystem;
mod luks;
mod signature;
mod volume;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use beemesh_init_api::{StateStatus, path};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None => provide(),
        Some("close") => close(),
        Some(_) => {
            eprintln!("beemesh-unlock opens and mounts the state volume; `beemesh-unlock close` closes it");
            ExitCode::from(2)
        }
    }
}

/// What PID 1 runs on the way down, when the volume is unmounted.
fn close() -> ExitCode {
    match luks::close() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to close the state volume: {error}");
            ExitCode::FAILURE
        }
    }
}

fn provide() -> ExitCode {
    let started = Instant::now();
    let tpm = beemesh_firmware_tpm::open;
    let status = volume::provide(&tpm, Path::new(path::STATE));
    println!("{status:?} after {} ms", started.elapsed().as_millis());
    say(&status.message);
    match write(&status) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("failed to write `{}`: {error}", path::STATE_STATUS);
            ExitCode::FAILURE
        }
    }
}

fn write(status: &StateStatus) -> std::io::Result<()> {
    let temporary = format!("{}.new", path::STATE_STATUS);
    std::fs::write(&temporary, serde_json::to_string(status)?)?;
    std::fs::rename(temporary, path::STATE_STATUS)
}

/// On the console, if someone reads there.
fn say(line: &str) {
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    if let Ok(mut fifo) = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path::CONSOLE)
    {
        let _ = fifo.write_all(format!("beemesh: {line}\n").as_bytes());
    }
}
