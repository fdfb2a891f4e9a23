//! One HTTP request over any stream. It speaks HTTP/1.0, so that the answer has no chunks and ends with the stream.
//!
//! Invariant: at most [`MAX_BODY`] bytes are taken.

use super::ConnectError;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// The largest answer, headers included, in bytes.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpReply {
    /// The status code, such as 200.
    pub status: u16,
    /// Names (in lower case) and values, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpReply {
    /// The first header with this name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// There is no connection.
    #[error("failed to reach the web server")]
    Connect(#[from] ConnectError),
    /// The connection broke or was too slow.
    #[error("the web server did not finish its answer")]
    Io(#[from] io::Error),
    /// What came is no HTTP.
    #[error("the answer is no HTTP: {0}")]
    NotHttp(String),
    /// More than [`MAX_BODY`].
    #[error("the answer is larger than {MAX_BODY} bytes")]
    TooLarge,
    /// The body is shorter than its header says.
    #[error("the answer has {got} of {announced} bytes")]
    Truncated {
        /// What came.
        got: usize,
        /// What `content-length` says.
        announced: usize,
    },
}

/// A stream whose reads can be given a time limit.
pub(super) trait Timed: Read + Write {
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()>;
}

/// Asks for `path`; `host` is the header's value. The whole answer must be there at `deadline`.
pub(super) fn get(
    stream: &mut impl Timed,
    host: &str,
    path: &str,
    deadline: Instant,
) -> Result<HttpReply, HttpError> {
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the time is over").into());
        }
        stream.set_read_timeout(left)?;
        match stream.read(&mut chunk)? {
            0 => break,
            n => answer.extend_from_slice(&chunk[..n]),
        }
        if answer.len() > MAX_BODY {
            return Err(HttpError::TooLarge);
        }
    }
    parse(&answer)
}

fn parse(answer: &[u8]) -> Result<HttpReply, HttpError> {
    let begin = || String::from_utf8_lossy(&answer[..answer.len().min(80)]).into_owned();
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(answer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => {
            return Err(HttpError::NotHttp(format!(
                "it ends in its headers: `{}`",
                begin()
            )));
        }
        Err(e) => return Err(HttpError::NotHttp(format!("{e}: `{}`", begin()))),
    };
    let headers = response
        .headers
        .iter()
        .map(|h| {
            (
                h.name.to_ascii_lowercase(),
                String::from_utf8_lossy(h.value).into_owned(),
            )
        })
        .collect();
    let reply = HttpReply {
        status: response.code.unwrap_or(0),
        headers,
        body: answer[length..].to_vec(),
    };
    if let Some(announced) = reply
        .header("content-length")
        .and_then(|v| v.parse::<usize>().ok())
        && announced != reply.body.len()
    {
        return Err(HttpError::Truncated {
            got: reply.body.len(),
            announced,
        });
    }
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_taken_apart() {
        let reply = parse(b"HTTP/1.1 200 OK\r\nServer: nginx\r\nContent-Length: 5\r\n\r\nhello").unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (200, &b"hello"[..]));
        assert_eq!(reply.header("server"), Some("nginx"));
    }

    #[test]
    fn half_an_answer_is_not_an_answer() {
        let short = parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel");
        assert!(matches!(
            short,
            Err(HttpError::Truncated { got: 3, announced: 5 })
        ));
        assert!(matches!(
            parse(b"HTTP/1.1 200 OK\r\nContent-"),
            Err(HttpError::NotHttp(_))
        ));
        assert!(matches!(parse(b""), Err(HttpError::NotHttp(_))));
        assert!(matches!(parse(b"SSH-2.0-OpenSSH\r\n"), Err(HttpError::NotHttp(t)) if t.contains("SSH-2.0")));
    }
}
