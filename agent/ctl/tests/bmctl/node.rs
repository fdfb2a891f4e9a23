//! A node's REST interface for tests: an HTTP server on a unix socket or behind TLS, which records what it is asked.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming};
use hyper::{Request, Response, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use serde::Serialize;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::{io, pin::Pin, task};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

/// A request as it arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub body: Vec<u8>,
    pub length: Option<String>,
}

impl Seen {
    /// `METHOD /path?query`
    pub fn line(&self) -> String {
        format!("{} {}", self.method, self.target)
    }
}

type Piece = io::Result<Bytes>;

/// What the node answers.
pub struct Answer {
    status: u16,
    body: mpsc::UnboundedReceiver<Piece>,
}

impl Answer {
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        Self::raw(status, serde_json::to_vec(value).unwrap())
    }

    pub fn raw(status: u16, body: impl Into<Bytes>) -> Self {
        Self::pieces(status, [Ok(body.into())])
    }

    pub fn error(status: u16, text: &str) -> Self {
        Self::json(status, &serde_json::json!({ "error": text }))
    }

    /// One document a line, then the proper end.
    pub fn lines<T: Serialize>(items: &[T]) -> Self {
        Self::pieces(200, items.iter().map(|item| Ok(line(item))))
    }

    /// Whatever pieces; an `Err` tears the connection down.
    pub fn pieces(status: u16, pieces: impl IntoIterator<Item = Piece>) -> Self {
        let (sender, body) = mpsc::unbounded_channel();
        for piece in pieces {
            sender.send(piece).unwrap();
        }
        Self { status, body }
    }

    /// A body that the test writes while it is read; it ends when the sender is dropped.
    pub fn live() -> (mpsc::UnboundedSender<Piece>, Self) {
        let (sender, body) = mpsc::unbounded_channel();
        (sender, Self { status: 200, body })
    }
}

/// One document and a line end.
pub fn line(item: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(item).unwrap();
    text.push(b'\n');
    text.into()
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<Option<io::Result<Frame<Bytes>>>> {
        self.body
            .poll_recv(context)
            .map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}

type Handler = Arc<Mutex<dyn FnMut(&Seen) -> Answer + Send>>;

/// The running server; it ends with the value.
pub struct Node {
    at: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    runtime: Option<tokio::runtime::Runtime>,
    _folder: Option<tempfile::TempDir>,
}

impl Node {
    /// On a unix socket.
    pub fn start(handler: impl FnMut(&Seen) -> Answer + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let runtime = runtime();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = {
            let _in_runtime = runtime.enter();
            UnixListener::bind(&socket).unwrap()
        };
        let (handler, record): (Handler, _) = (Arc::new(Mutex::new(handler)), seen.clone());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, handler.clone(), record.clone()));
            }
        });
        let at = socket.to_str().unwrap().to_owned();
        Self {
            at,
            seen,
            runtime: Some(runtime),
            _folder: Some(folder),
        }
    }

    /// On a TCP port of this machine, behind TLS.
    pub fn start_tls(config: ServerConfig, handler: impl FnMut(&Seen) -> Answer + Send + 'static) -> Self {
        let runtime = runtime();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = {
            let _in_runtime = runtime.enter();
            TcpListener::from_std(listener).unwrap()
        };
        let at = listener.local_addr().unwrap().to_string();
        let (handler, record): (Handler, _) = (Arc::new(Mutex::new(handler)), seen.clone());
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, handler, record) = (acceptor.clone(), handler.clone(), record.clone());
                tokio::spawn(async move {
                    // A client that is refused never speaks HTTP.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, handler, record).await;
                    }
                });
            }
        });
        Self {
            at,
            seen,
            runtime: Some(runtime),
            _folder: None,
        }
    }

    /// A node that gives the same answer to everything.
    pub fn saying(status: u16, value: &impl Serialize) -> Self {
        let body = serde_json::to_vec(value).unwrap();
        Self::start(move |_| Answer::raw(status, body.clone()))
    }

    /// Where it listens: the socket's path, or `IP:PORT`.
    pub fn socket(&self) -> &str {
        &self.at
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

async fn serve<S>(stream: S, handler: Handler, record: Arc<Mutex<Vec<Seen>>>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, record) = (handler.clone(), record.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body
                .collect()
                .await
                .map(|body| body.to_bytes().to_vec())
                .unwrap_or_default();
            let length = head
                .headers
                .get("content-length")
                .map(|value| value.to_str().unwrap().to_owned());
            let seen = Seen {
                method: head.method.to_string(),
                target: head.uri.to_string(),
                body,
                length,
            };
            let answer = (handler.lock().unwrap())(&seen);
            record.lock().unwrap().push(seen);
            Response::builder().status(answer.status).body(answer)
        }
    });
    // A client that leaves early is no failure of the node.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Where nothing listens.
pub fn nowhere(folder: &Path) -> String {
    folder.join("nobody.sock").to_str().unwrap().to_owned()
}
