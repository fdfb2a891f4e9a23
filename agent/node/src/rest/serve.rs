//! The three ways in: unix socket, mutual TLS, streams from members. Each is bounded in connections.

use super::routes::{Context, handle};
use crate::supervisor::{self, Pulse, Supervisor};
use anyhow::{Context as _, Result};
use beemesh_agent_identity::operator_of;
use beemesh_ids::PeerId;
use beemesh_joinpack_format::KeyId;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// Connections served at once, per way in.
const CONNECTIONS: usize = 64;
/// A client that does not finish its handshake or its request head by then is dropped.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Access {
    /// Root on this box.
    Local,
    /// The holder of this operator's key.
    Operator(KeyId),
    /// TLS without an operator's key: sees nothing.
    Anonymous,
    /// Another member, for itself or for a client that it has checked.
    Member(PeerId),
}

/// Serves one connection until it ends.
pub async fn serve_connection<S>(stream: S, access: Access, context: Context)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (access, context) = (access.clone(), context.clone());
        async move { Ok::<_, std::convert::Infallible>(handle(request, access, context).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .half_close(true);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection ended");
    }
}

/// The unix socket at `path`: the one that the supervisor has kept, while its name is there, or a new one.
///
/// # Errors
/// When it cannot be made, or not be protected.
pub fn listen_unix(supervisor: &Supervisor, path: &Path) -> Result<UnixListener> {
    let kept = supervisor
        .take("local")
        .map(std::os::unix::net::UnixListener::from);
    let is_there = |kept: &std::os::unix::net::UnixListener| {
        path.exists() && kept.local_addr().is_ok_and(|at| at.as_pathname() == Some(path))
    };
    let listener = match kept.filter(is_there) {
        Some(kept) => kept,
        None => {
            let _ = std::fs::remove_file(path);
            let made = std::os::unix::net::UnixListener::bind(path)
                .with_context(|| format!("failed to listen on `{}`", path.display()))?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
                .with_context(|| format!("failed to protect `{}`", path.display()))?;
            supervisor.keep("local", &made);
            made
        }
    };
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Serves the unix socket; `pulse` beats meanwhile.
pub async fn serve_unix(listener: UnixListener, context: Context, pulse: Pulse) -> Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut beat = tokio::time::interval(supervisor::BEAT);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await?;
            Ok::<_, anyhow::Error>((place, listener.accept().await))
        };
        let (place, accepted) = tokio::select! {
            _ = beat.tick() => {
                pulse.beat();
                continue;
            }
            next = next => next?,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let context = context.clone();
        tokio::spawn(async move {
            serve_connection(stream, Access::Local, context).await;
            drop(place);
        });
    }
}

/// Serves mutual TLS, each connection by the newest `acceptor`.
pub async fn serve_tls(
    listener: TcpListener,
    acceptor: watch::Receiver<TlsAcceptor>,
    context: Context,
) -> Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let Ok((stream, address)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, context) = (acceptor.borrow().clone(), context.clone());
        tokio::spawn(async move {
            let _place = place;
            match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let roots = context.roots();
                    let operator = roots.and_then(|roots| operator_of(stream.get_ref().1, &roots));
                    let access = operator.map_or(Access::Anonymous, Access::Operator);
                    serve_connection(stream, access, context).await;
                }
                Ok(Err(error)) => tracing::info!(%address, %error, "TLS handshake refused"),
                Err(_) => tracing::info!(%address, "TLS handshake timed out"),
            }
        });
    }
}
