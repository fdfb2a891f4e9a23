//! What is asked of PID 1: one datagram to the notify socket of this service, with a descriptor that PID 1 closes when it
//! has taken the message (sd_notify's BARRIER).
//!
//! Invariant: an `Ok` means that PID 1 has it; a request that nobody takes is an error after [`LIMIT`].

use std::io::{self, IoSlice, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use beemesh_init_api::Ask;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use zbus::DBusError;

/// PID 1 takes a message in milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Why something was not done.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.beemesh.Init1.Error")]
pub enum AskError {
    /// The D-Bus library's own.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// There is no service with this name.
    NoSuchService(String),
    /// It cannot be started and stopped: it runs once, or when it is needed.
    NotADaemon(String),
    /// The machine goes down: nothing is started or stopped any more.
    GoingDown(String),
    /// PID 1 did not take the request.
    NoAnswer(String),
}

/// Asks, and waits until PID 1 has taken it.
///
/// # Errors
/// [`AskError::NoAnswer`].
pub async fn ask(what: &Ask) -> Result<(), AskError> {
    let message = format!("X_BEEMESH_ASK={what}\nBARRIER=1");
    let asked = tokio::task::spawn_blocking(move || send(&message));
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(error))) => Err(AskError::NoAnswer(format!("PID 1 cannot be asked: {error}"))),
        Ok(Err(_)) | Err(_) => Err(AskError::NoAnswer("PID 1 does not answer".to_owned())),
    }
}

fn send(message: &str) -> io::Result<()> {
    let path = std::env::var_os("NOTIFY_SOCKET").ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let socket = UnixDatagram::unbound()?;
    let (mut mine, theirs) = io::pipe()?;
    let descriptors = [theirs.as_raw_fd()];
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(message.as_bytes())],
        &[ControlMessage::ScmRights(&descriptors)],
        // A full socket is an error, not a reason to wait.
        MsgFlags::MSG_DONTWAIT,
        Some(&UnixAddr::new(std::path::Path::new(&path))?),
    )?;
    drop(theirs);
    // Ends when PID 1 closes its copy.
    mine.read_exact(&mut [0]).or_else(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Ok(()),
        _ => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_init_core::Shutdown;
    use beemesh_init_core::notify::{Ask as Heard, Notice, Wish};

    #[test]
    fn pid_1_understands_every_request() {
        let net = || "net".to_owned();
        let service = |wish| Heard::Service(wish, net());
        for (said, heard) in [
            (Ask::Start(net()), service(Wish::Start)),
            (Ask::Stop(net()), service(Wish::Stop)),
            (Ask::Restart(net()), service(Wish::Restart)),
            (Ask::PowerOff, Heard::Shutdown(Shutdown::PowerOff)),
            (Ask::Reboot, Heard::Shutdown(Shutdown::Reboot)),
            (Ask::Halt, Heard::Shutdown(Shutdown::Halt)),
        ] {
            let message = format!("X_BEEMESH_ASK={said}\nBARRIER=1");
            assert_eq!(Notice::parse(message.as_bytes()).ask, Some(heard));
        }
    }
}
