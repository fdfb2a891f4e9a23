//! One HTTP/1.1 connection to a node, over its unix socket or over TCP with TLS. No pooling: a command asks little.

use super::readable::StaysReadable;
use super::{ClientError, Upload};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::pki_types::ServerName;
use std::{fmt, io, path::PathBuf, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Where a node is reached.
#[derive(Clone)]
pub enum Endpoint {
    /// The agent's unix socket on this machine.
    Socket(PathBuf),
    /// A node's REST port, mutually authenticated.
    Tls {
        /// `IP:PORT` or `NAME:PORT`. Who answers is judged by its membership, not by this name.
        address: String,
        /// Must verify the node's membership: see `beemesh_agent_identity`.
        config: Arc<rustls::ClientConfig>,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Tls { address, .. } => f.write_str(address),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub(super) async fn connect(endpoint: &Endpoint) -> Result<SendRequest<Upload>, ClientError> {
    let failed = |source| ClientError::Connect {
        endpoint: endpoint.to_string(),
        source,
    };
    match endpoint {
        Endpoint::Socket(path) => {
            let stream = UnixStream::connect(path).await.map_err(failed)?;
            handshake(endpoint, stream).await
        }
        Endpoint::Tls { address, config } => {
            let name = server_name(address)?;
            let stream = TcpStream::connect(address.as_str()).await.map_err(failed)?;
            keep_alive(&stream).map_err(failed)?;
            let tls = tokio_rustls::TlsConnector::from(config.clone());
            let stream = tls.connect(name, stream).await.map_err(failed)?;
            handshake(endpoint, stream).await
        }
    }
}

/// Whether `address` can be connected to at all: before a key is read for it.
pub(crate) fn check_address(address: &str) -> Result<(), ClientError> {
    server_name(address).map(|_| ())
}

fn server_name(address: &str) -> Result<ServerName<'static>, ClientError> {
    let invalid = || ClientError::Address(address.chars().take(120).collect());
    let (host, port) = address.rsplit_once(':').ok_or_else(invalid)?;
    port.parse::<u16>()
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(invalid)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(invalid());
    }
    ServerName::try_from(bare.unwrap_or(host).to_owned()).map_err(|_| invalid())
}

/// A node that loses its power says nothing: the kernel's probes notice it within 30 s while a stream is followed.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &15)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &5)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    Ok(())
}

async fn handshake<S>(endpoint: &Endpoint, stream: S) -> Result<SendRequest<Upload>, ClientError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(StaysReadable::new(stream)))
        .await
        .map_err(|source| ClientError::Exchange {
            endpoint: endpoint.to_string(),
            source,
        })?;
    // Its error reaches whoever waits for the answer or its body; the task ends with the connection.
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_need_a_host_and_a_port() {
        for good in ["10.0.0.1:7443", "[fe80::1]:7443", "node-1.example:1"] {
            assert!(server_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:70000",
            "::1:7443",
            ":7443",
            "a b:1",
        ] {
            assert!(matches!(server_name(bad), Err(ClientError::Address(_))), "{bad}");
        }
    }
}
