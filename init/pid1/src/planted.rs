//! Faults for tests, of a build with the feature `planted-faults`: services that misbehave, and a panic of PID 1. Never in
//! the product.
//!
//! With the word `beemesh.planted` on the kernel's command line these services run in place of the product's. Each waits
//! until a test asks for its fault with the file [`TRIGGERS`]`/<name>`. PID 1 itself is asked with [`PANIC`] and [`HANG`], and
//! `beemesh.planted-watchdog=SECONDS` and `beemesh.planted-emergency=SECONDS` shorten what takes a minute in the product.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use beemesh_init_api::path;
use beemesh_init_core::backoff::Restart;
use beemesh_init_core::service::{Kind, Need, Readiness, ServiceSpec};
use beemesh_init_core::spec::{Calls, Limits, Sandbox, Share, View, control};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use crate::SELF;

/// Where a test asks for a fault, by a file with the service's name.
const TRIGGERS: &str = "/run/beemesh/planted";
/// PID 1 panics when this file appears in the runtime directory (an atomic rename or a close after writing).
const PANIC: &str = "/run/beemesh/planted-panic";
/// PID 1 does nothing any more when this file appears.
const HANG: &str = "/run/beemesh/planted-hang";
/// Where the service that keeps its socket listens.
const DOOR: &str = "0.0.0.0:7";
/// Orphans at a time, below the service's limit of processes.
const BATCH: u32 = 250;
const ORPHANS: u32 = 10_000;

/// Nothing is allowed but to take its trigger away.
const CLOSED: Sandbox = Sandbox {
    capabilities: &[],
    allowed: &[],
    view: View::Private {
        writable: &[TRIGGERS],
        propagated: &[],
        hidden: &["/var/lib"],
    },
};
/// Everything is allowed: what a fault reaches is the story's matter.
const OPEN: Sandbox = Sandbox {
    capabilities: &[
        "CAP_SYS_ADMIN",
        "CAP_KILL",
        "CAP_NET_ADMIN",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_BOOT",
    ],
    allowed: &Calls::ALL,
    view: View::Shared,
};

/// These services were asked for.
pub fn is_asked_for() -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace().any(|word| word == "beemesh.planted")
}

/// The services of the story: those with a fault, and the judge that watches them.
pub fn services() -> Vec<ServiceSpec> {
    let quick = Restart {
        first_ms: 20,
        ceiling_ms: 100,
    };
    let limits = Limits {
        memory_max: Share::Mib(64),
        memory_high: None,
        tasks: 64,
        cpu_weight: 100,
    };
    let faulty = |name, arguments| ServiceSpec {
        arguments,
        restart: quick,
        limits,
        sandbox: CLOSED,
        ..ServiceSpec::new(name, SELF, Kind::Daemon)
    };
    vec![
        ServiceSpec {
            readiness: Readiness::Notified,
            stored_limit: 2,
            sandbox: Sandbox {
                capabilities: &["CAP_NET_BIND_SERVICE"],
                ..CLOSED
            },
            ..faulty("door", &["planted", "door"])
        },
        faulty("forks", &["planted", "forks"]),
        faulty("eats", &["planted", "eats"]),
        ServiceSpec {
            watchdog_ms: Some(2_000),
            readiness: Readiness::Notified,
            ..faulty("hangs", &["planted", "hangs"])
        },
        ServiceSpec {
            limits: Limits {
                tasks: BATCH + 10,
                ..limits
            },
            ..faulty("orphans", &["planted", "orphans"])
        },
        ServiceSpec {
            sandbox: OPEN,
            ..faulty("storm", &["planted", "storm"])
        },
        control(),
        ServiceSpec {
            watchdog_ms: Some(2_000),
            vital_ms: Some(5_000),
            readiness: Readiness::Notified,
            ..faulty("vital", &["planted", "vital"])
        },
        ServiceSpec {
            needs: vec![Need::Service("door")],
            limits: Limits { tasks: 500, ..limits },
            sandbox: OPEN,
            ..ServiceSpec::new("judge", "/judge", Kind::Daemon)
        },
    ]
}

/// Where triggers are looked for.
pub fn prepare() {
    let _ = fs::create_dir_all(TRIGGERS);
}

/// The number behind a word of the kernel's command line.
pub fn seconds(word: &str) -> Option<u32> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    let mut words = line.split_whitespace().filter_map(|other| other.split_once('='));
    words.find(|(name, _)| *name == word)?.1.parse().ok()
}

/// PID 1 panics or hangs when a test asks for it.
#[allow(clippy::panic, reason = "this is what the fault is")]
pub fn fault_if_asked() {
    if Path::new(PANIC).exists() {
        panic!("planted fault");
    }
    while Path::new(HANG).exists() {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}

/// `planted NAME`.
pub fn run(name: &str) {
    match name {
        "door" => door(),
        "hangs" => {
            say(b"READY=1\nSTATUS=about to hang", &[]);
            beat_until_asked("hangs");
            loop {
                std::thread::sleep(Duration::from_secs(3_600));
            }
        }
        // Does not even start any more, once asked: the request stays.
        "vital" => {
            if !trigger("vital").exists() {
                say(b"READY=1", &[]);
                while !trigger("vital").exists() {
                    say(b"WATCHDOG=1", &[]);
                    std::thread::sleep(Duration::from_millis(500));
                }
            }
            std::process::exit(1);
        }
        _ => wait_for(name),
    }
    match name {
        "forks" => beemesh_sys::planted::fork_without_end(),
        "eats" => eat(),
        "orphans" => {
            for _ in 0..ORPHANS / BATCH {
                let _ = beemesh_sys::planted::make_orphans(BATCH);
            }
            let _ = fs::write(trigger("orphans-made"), "");
        }
        "storm" => storm(),
        _ => {}
    }
    // The fault is over: rest until the end.
    loop {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}

fn trigger(name: &str) -> PathBuf {
    Path::new(TRIGGERS).join(name)
}

fn wait_for(name: &str) {
    while !trigger(name).exists() {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = fs::remove_file(trigger(name));
}

fn beat_until_asked(name: &str) {
    while !trigger(name).exists() {
        say(b"WATCHDOG=1", &[]);
        std::thread::sleep(Duration::from_millis(500));
    }
    let _ = fs::remove_file(trigger(name));
}

/// Listens on a socket that survives it, and tells every caller who it is, which socket answers, and whether this process
/// could write where it must not.
fn door() {
    let kept = beemesh_sys::take_inherited()
        .into_iter()
        .find(|(name, _)| name == "door")
        .map(|(_, fd)| TcpListener::from(fd));
    let listener = match kept {
        Some(listener) => listener,
        None => {
            let Ok(listener) = TcpListener::bind(DOOR) else {
                return;
            };
            let socket = listener.as_raw_fd();
            say(b"FDSTORE=1\nFDNAME=door", &[socket]);
            // More than is kept for it.
            say(b"FDSTORE=1\nFDNAME=extra", &[socket, socket, socket]);
            listener
        }
    };
    let inode = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd()))
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let closed = [
        "/etc/x",
        "/run/x",
        "/proc/sys/vm/overcommit_memory",
        "/var/lib/x",
        "/sys/kernel/uevent_seqnum",
    ]
    .iter()
    .all(|path| {
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .is_err()
    });
    let open = fs::write(trigger("door-was-here"), "").is_ok();
    let mounted = nix::mount::umount("/tmp").is_ok();
    let sandboxed = closed && open && !mounted;
    say(b"READY=1\nSTATUS=open", &[]);
    for caller in listener.incoming().flatten() {
        let mut caller = caller;
        let _ = writeln!(caller, "{} {inode} sandboxed={sandboxed}", std::process::id());
    }
}

fn eat() {
    let mut eaten: Vec<Vec<u8>> = Vec::new();
    loop {
        eaten.push(vec![1; 1 << 20]);
    }
}

/// Makes the kernel send events about every device of one class, again and again.
fn storm() {
    let devices: Vec<PathBuf> = fs::read_dir("/sys/class/tty")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("uevent"))
        .collect();
    // Not its own socket: nobody listens to that.
    let door = Path::new(path::RUN).join("notify/door");
    say_to(&door, b"STOPPING=1\nSTATUS=forged", &[]);
    let mut sent = 0u32;
    while sent < 20_000 && !devices.is_empty() {
        for device in &devices {
            sent += u32::from(fs::write(device, "change").is_ok());
        }
    }
    let _ = fs::write(trigger("storm-over"), sent.to_string());
}

fn say(message: &[u8], descriptors: &[i32]) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
        say_to(Path::new(&socket), message, descriptors);
    }
}

fn say_to(path: &Path, message: &[u8], descriptors: &[i32]) {
    let sent = UnixDatagram::unbound().and_then(|socket| {
        let address = UnixAddr::new(path)?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        let parts = [std::io::IoSlice::new(message)];
        sendmsg(
            socket.as_raw_fd(),
            &parts,
            control,
            MsgFlags::empty(),
            Some(&address),
        )?;
        Ok(())
    });
    if let Err(error) = sent {
        eprintln!("failed to notify `{}`: {error}", path.display());
    }
}
