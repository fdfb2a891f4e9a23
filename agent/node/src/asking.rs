//! Puts a question to another member over a stream of the fabric, as HTTP, and takes its answer.
//!
//! Bounded in time and size. What the answer means is for the caller.

use crate::clock;
use beemesh_agent_fabric::{Fabric, FabricError};
use beemesh_ids::PeerId;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::time::Duration;

/// What a member answered.
#[derive(Debug)]
pub struct Answered {
    /// HTTP status.
    pub status: StatusCode,
    /// The answer.
    pub body: Bytes,
    /// When the question went out, by CLOCK_BOOTTIME in microseconds.
    pub sent_us: u64,
    /// When the answer began.
    pub heard_us: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no stream to the member.
    #[error("failed to ask")]
    Stream(#[from] FabricError),
    /// The stream broke, or what came is no HTTP.
    #[error("failed to speak HTTP")]
    Http(#[from] hyper::Error),
    /// The answer broke off, or is too long.
    #[error("the answer could not be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// Asks `peer`: POST with a `body`, GET without one. The answer has at most `limit` bytes and comes within `patience`.
pub async fn ask(
    fabric: &Fabric,
    peer: &PeerId,
    path: &'static str,
    body: Option<Vec<u8>>,
    (limit, patience): (usize, Duration),
) -> Result<Answered, AskError> {
    let asked = tokio::time::timeout(patience, exchange(fabric, peer, path, body, limit)).await;
    asked.unwrap_or(Err(AskError::Late(patience)))
}

async fn exchange(
    fabric: &Fabric,
    peer: &PeerId,
    path: &'static str,
    body: Option<Vec<u8>>,
    limit: usize,
) -> Result<Answered, AskError> {
    let stream = fabric.open_stream(peer).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a question to a member ended");
        }
    });
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let mut question = Request::new(Full::new(Bytes::from(body.unwrap_or_default())));
    *question.method_mut() = method;
    *question.uri_mut() = hyper::Uri::from_static(path);
    question
        .headers_mut()
        .insert(HOST, HeaderValue::from_static("member"));
    let sent_us = clock::boot_us();
    let answer = sender.send_request(question).await?;
    let heard_us = clock::boot_us();
    let status = answer.status();
    let body = Limited::new(answer.into_body(), limit).collect().await;
    Ok(Answered {
        status,
        body: body.map_err(AskError::Body)?.to_bytes(),
        sent_us,
        heard_us,
    })
}
