//! What can go wrong between the client and a node, and which exit code that is.

use crate::failure::{Class, Failure};
use std::{error::Error, io, time::Duration};

/// A request that did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The `IP:PORT` cannot be used as an address.
    #[error("`{0}` is not an address: expected `IP:PORT` or `NAME:PORT`")]
    Address(String),
    /// No connection to the node.
    #[error("failed to connect to `{endpoint}`")]
    Connect {
        /// The socket's path or `IP:PORT`.
        endpoint: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The connection broke, or the node did not speak HTTP.
    #[error("connection to `{endpoint}` broke")]
    Exchange {
        /// The socket's path or `IP:PORT`.
        endpoint: String,
        /// Cause.
        #[source]
        source: hyper::Error,
    },
    /// The node answered with an error.
    #[error("{message} (status {status})")]
    Status {
        /// HTTP status.
        status: u16,
        /// The node's words.
        message: String,
    },
    /// The answer is larger than this client reads.
    #[error("answer to `{path}` is longer than {limit} bytes")]
    TooLarge {
        /// Requested path.
        path: String,
        /// Bound in bytes.
        limit: usize,
    },
    /// A line of a stream is longer than this client reads.
    #[error("a line of `{path}` is longer than {limit} bytes")]
    LineTooLong {
        /// Requested path.
        path: String,
        /// Bound in bytes.
        limit: usize,
    },
    /// The answer is not what the REST interface says.
    #[error("answer to `{path}` is not as expected")]
    Decode {
        /// Requested path.
        path: String,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// A field of the answer that should be base64 is not.
    #[error("field `{field}` of the answer to `{path}` is not base64")]
    Base64 {
        /// Requested path.
        path: String,
        /// Field.
        field: &'static str,
    },
    /// The request could not be put together.
    #[error("`{path}` cannot be requested")]
    Request {
        /// Requested path.
        path: String,
        /// Cause.
        #[source]
        source: hyper::http::Error,
    },
    /// No answer, or no further piece of it, in time.
    #[error("`{endpoint}` did not answer within {after:?}")]
    TimedOut {
        /// The socket's path or `IP:PORT`.
        endpoint: String,
        /// How long it was waited.
        after: Duration,
    },
}

impl ClientError {
    /// Which kind of end this is for a command line.
    pub fn class(&self) -> Class {
        match self {
            Self::Address(_) | Self::Request { .. } => Class::Invalid,
            Self::Status {
                status: 400 | 422, ..
            } => Class::Invalid,
            Self::Status {
                status: 401 | 403, ..
            } => Class::NotAuthorised,
            Self::Status {
                status: 408 | 504, ..
            }
            | Self::TimedOut { .. } => Class::TimedOut,
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Class::NotAuthorised
            }
            Self::Connect { source, .. } if refused_by_tls(source) => Class::NotAuthorised,
            Self::Exchange { source, .. } if refused_by_tls(source) => Class::NotAuthorised,
            _ => Class::Failed,
        }
    }

    /// Whether the same request may work a moment later: the node is away or busy, not unwilling.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Exchange { .. } => self.class() == Class::Failed,
            Self::TimedOut { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 502 | 503 | 504),
            _ => false,
        }
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("the node's socket belongs to root: run as root, or use --node and --context")
            }
            Self::Connect { source, .. } if refused_by_tls(source) => Some(TLS_ADVICE),
            Self::Exchange { source, .. } if refused_by_tls(source) => Some(TLS_ADVICE),
            Self::Connect { .. } => Some("is the node up, and is --node or --socket right?"),
            Self::Exchange { .. } => Some("see whether the agent still runs: bmctl nodes"),
            Self::Status {
                status: 401 | 403, ..
            } => Some(
                "the key in the operator context must have the role `operator` in this fabric's root document",
            ),
            Self::Status { status: 404, .. } => Some("see what is there: bmctl pods -A"),
            Self::Status { status: 503, .. } => {
                Some("the node has not joined its fabric yet, or is busy: try again")
            }
            Self::TimedOut { .. } => Some("wait longer with --timeout, or ask another node with --node"),
            Self::LineTooLong { .. } | Self::TooLarge { .. } | Self::Decode { .. } | Self::Base64 { .. } => {
                Some(
                    "do the versions of bmctl and of the node match? see `bmctl --version` and `bmctl nodes`",
                )
            }
            _ => None,
        }
    }
}

const TLS_ADVICE: &str =
    "the node and the operator context must belong to the same fabric: compare the fabric ids";

/// Whether TLS ended because one side did not accept the other's certificate.
fn refused_by_tls(error: &(dyn Error + 'static)) -> bool {
    use rustls::{AlertDescription as Alert, Error as Tls};
    let mut next = Some(error);
    while let Some(error) = next {
        // `io::Error::source` leaves out the error it wraps: look into it.
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(|error| error.get_ref());
        let tls = error
            .downcast_ref::<Tls>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<Tls>()));
        match tls {
            Some(Tls::InvalidCertificate(_) | Tls::NoCertificatesPresented) => return true,
            Some(Tls::AlertReceived(alert)) => {
                return matches!(
                    alert,
                    Alert::AccessDenied
                        | Alert::BadCertificate
                        | Alert::UnsupportedCertificate
                        | Alert::CertificateRevoked
                        | Alert::CertificateExpired
                        | Alert::CertificateUnknown
                        | Alert::CertificateRequired
                        | Alert::UnknownCA
                        | Alert::DecryptError
                );
            }
            _ => next = error.source(),
        }
    }
    false
}

impl ClientError {
    /// The failure of a command that wanted `what`.
    pub fn into_failure(self, what: impl Into<String>) -> Failure {
        let failure = Failure::new(self.class(), what);
        let failure = match self.advice() {
            Some(advice) => failure.hint(advice),
            None => failure,
        };
        failure.because(self)
    }
}
