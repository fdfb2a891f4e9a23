//! Answers: JSON documents, JSON lines, errors.

use beemesh_agent_api::view::ErrorBody;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Response, StatusCode};
use serde::Serialize;
use std::convert::Infallible;
use std::io;

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;
/// Every answer.
pub type Answer = Response<Body>;

/// Why a request is not answered with what it asked for.
#[derive(Debug)]
pub struct Refused {
    /// HTTP status.
    pub status: StatusCode,
    /// What, where, what to do.
    pub error: String,
}

impl Refused {
    /// A refusal.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
        }
    }

    /// As an answer.
    pub fn answer(self) -> Answer {
        json(self.status, &ErrorBody { error: self.error })
    }
}

fn never(error: Infallible) -> io::Error {
    match error {}
}

/// A JSON document.
pub fn json<T: Serialize>(status: StatusCode, document: &T) -> Answer {
    match serde_json::to_vec(document) {
        Ok(bytes) => json_bytes(status, bytes),
        Err(error) => Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("failed to encode: {error}"),
        )
        .answer(),
    }
}

/// A JSON document that is written already.
pub fn json_bytes(status: StatusCode, bytes: Vec<u8>) -> Answer {
    let body = Full::new(Bytes::from(bytes)).map_err(never).boxed_unsync();
    with_body(status, "application/json", body)
}

/// A stream of documents, one a line; an error ends it with the connection, so that no client takes it for the end.
pub fn json_lines<T: Serialize + 'static>(
    documents: impl Stream<Item = io::Result<T>> + Send + 'static,
) -> Answer {
    let frames = documents.map(|document| {
        let mut line = serde_json::to_vec(&document?).map_err(io::Error::other)?;
        line.push(b'\n');
        Ok(Frame::data(Bytes::from(line)))
    });
    with_body(
        StatusCode::OK,
        "application/x-ndjson",
        BodyExt::boxed_unsync(StreamBody::new(frames)),
    )
}

fn with_body(status: StatusCode, content_type: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer.headers_mut().insert(
        "content-type",
        hyper::header::HeaderValue::from_static(content_type),
    );
    answer
}
