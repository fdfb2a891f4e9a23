//! `beemesh-control`: `org.beemesh.Init1` over D-Bus, peer to peer: no broker is needed, and none runs.
//!
//! Shows what PID 1 writes about itself, and passes on what is asked of it. PID 1 starts this program when somebody
//! connects to its socket, and it ends when nobody has been connected for a while. It may do nothing but ask
//! (`init/core/src/spec.rs`), and PID 1 judges each request. Invariants: only this program's own user is answered; the
//! number of connections and what waits for a slow one are bounded.

mod ask;
mod bus;
mod machine;
mod picture;
mod service;
mod watchers;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use beemesh_init_api::{SOCKET_NAME, path};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use tokio::net::UnixListener;
use zbus::connection::{Builder, Connection};

use crate::machine::Machine;
use crate::picture::Pictures;
use crate::service::{Service, object_path};
use crate::watchers::Watchers;

/// Where the machine is.
const MACHINE: &str = "/org/beemesh/Init1";
/// Connections at the same time; more are closed at once.
const CONNECTIONS: usize = 16;
/// A peer that has not said who it is within this time is left alone.
const GREETING: Duration = Duration::from_secs(5);
/// Without a connection for this time the program ends.
const IDLE: Duration = Duration::from_secs(30);

/// Why it cannot serve.
#[derive(Debug, thiserror::Error)]
enum ControlError {
    #[error("unknown argument `{0}`: known are `--run DIR` and `--idle-ms NUMBER`")]
    Argument(String),
    #[error("there is no socket: PID 1 passes it on")]
    NoSocket,
    #[error("failed to listen")]
    Listen(#[source] io::Error),
    #[error("failed to watch what PID 1 writes")]
    Watch(#[source] io::Error),
    #[error("the kernel's boot id is not one")]
    BootId(#[source] zbus::Error),
    #[error("failed to make an event loop")]
    Loop(#[source] io::Error),
}

struct Options {
    run: PathBuf,
    idle: Duration,
}

fn main() -> ExitCode {
    let result = options(std::env::args().skip(1)).and_then(|options| {
        // Its cgroup has room for few threads: those that wait for PID 1 wait for each other.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(2)
            .enable_all()
            .build();
        runtime.map_err(ControlError::Loop)?.block_on(serve(options))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            eprintln!("<3>{error}{}", cause.unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

/// For tests: `--run DIR` in place of `/run/beemesh`, `--idle-ms NUMBER` in place of 30 s.
fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options, ControlError> {
    let mut options = Options {
        run: PathBuf::from(path::RUN),
        idle: IDLE,
    };
    while let Some(argument) = arguments.next() {
        let value = arguments.next();
        match (argument.as_str(), value.as_deref()) {
            ("--run", Some(directory)) => options.run = directory.into(),
            ("--idle-ms", Some(number)) if number.parse::<u64>().is_ok() => {
                options.idle = Duration::from_millis(number.parse().unwrap_or(0));
            }
            _ => return Err(ControlError::Argument(argument)),
        }
    }
    Ok(options)
}

async fn serve(options: Options) -> Result<(), ControlError> {
    let socket = beemesh_sys::take_inherited()
        .into_iter()
        .find(|(name, _)| name == SOCKET_NAME)
        .map(|(_, fd)| std::os::unix::net::UnixListener::from(fd))
        .ok_or(ControlError::NoSocket)?;
    socket.set_nonblocking(true).map_err(ControlError::Listen)?;
    let listener = UnixListener::from_std(socket).map_err(ControlError::Listen)?;
    let pictures = Arc::new(Pictures::new(options.run));
    let watchers = Arc::new(Watchers::default());
    let watch = pictures.watch().map_err(ControlError::Watch)?;
    tokio::spawn(watchers::follow(
        watch,
        Arc::clone(&pictures),
        Arc::clone(&watchers),
    ));
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = match tokio::time::timeout(options.idle, listener.accept()).await {
            Ok(accepted) => accepted.map_err(ControlError::Listen)?,
            Err(_) if open.load(Ordering::SeqCst) == 0 => return Ok(()),
            Err(_) => continue,
        };
        let Some(stream) = own(accepted.0) else {
            continue;
        };
        if open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS {
            open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (pictures, watchers, open) = (Arc::clone(&pictures), Arc::clone(&watchers), Arc::clone(&open));
        tokio::spawn(async move {
            if let Ok(Ok(connection)) =
                tokio::time::timeout(GREETING, greet(stream, pictures, watchers)).await
            {
                connection.closed().await;
            }
            open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// The connection, if it is one of this program's own user. The socket's mode says the same.
fn own(stream: tokio::net::UnixStream) -> Option<UnixStream> {
    let stream = stream.into_std().ok()?;
    let peer = getsockopt(&stream, PeerCredentials).ok()?;
    (peer.uid() == nix::unistd::geteuid().as_raw()).then_some(stream)
}

async fn greet(
    stream: UnixStream,
    pictures: Arc<Pictures>,
    watchers: Arc<Watchers>,
) -> Result<Connection, ControlError> {
    let machine = Machine::new(Arc::clone(&pictures), Arc::clone(&watchers));
    let guid = machine.boot().replace('-', "");
    let mut builder = Builder::unix_stream(stream)
        .server(guid.as_str())
        .p2p()
        .serve_at(bus::PATH, bus::Bus::new(Arc::clone(&watchers)))
        .serve_at(bus::PATH, bus::Monitoring::new(watchers))
        .serve_at(MACHINE, machine);
    for name in pictures.names() {
        let service = Service::new(name.clone(), Arc::clone(&pictures));
        builder = builder.serve_at(object_path(&name), service);
    }
    builder.build().await.map_err(ControlError::BootId)
}
