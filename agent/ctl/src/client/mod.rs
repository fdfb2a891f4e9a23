//! The REST client: one method for each thing that a node offers (`beemesh_agent_api::view::path`).
//!
//! It does not sign: [`Client::submit`] takes an envelope that is signed already. It does not retry. Each call is one
//! connection and one request, bounded in time by [`Client::with_timeout`] and in size by the limits of this module.

mod body;
mod error;
mod readable;
mod transport;

pub use body::{ERROR_LIMIT, EXEC_LIMIT, LINE_LIMIT, LIST_LIMIT, Lines};
pub use error::ClientError;
pub use transport::Endpoint;
pub(crate) use transport::check_address;

use crate::context::Operator;
use beemesh_agent_api::boot::BootsView;
use beemesh_agent_api::keys::KeysView;
use beemesh_agent_api::network::{NetworkView, TimeView};
use beemesh_agent_api::petition::PetitionView;
use beemesh_agent_api::revocation::RevocationView;
use beemesh_agent_api::roots::{RootsTaken, RootsView};
use beemesh_agent_api::view::{
    ErrorBody, EventView, ExecReply, ExecRequest, ImageView, LogLine, NodeView, PodView, RecordView, path,
};
use beemesh_agent_identity::{TlsError, client_config};
use beemesh_joinpack_format::{EndorsementFile, Envelope, RootChain};
use body::Upload;
use hyper::{Method, Request, body::Incoming, header};
use serde::de::DeserializeOwned;
use std::{io, sync::Arc, time::Duration};

/// Time for a request where the caller gives none.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// A node, as an operator or a tool reaches it.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
    timeout: Duration,
}

/// Which log lines are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Stay and show what comes.
    pub follow: bool,
    /// Only the newest so many lines of what is there.
    pub tail: Option<u64>,
}

/// Which records of a node's own log are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SystemLogOptions {
    /// Stay, and only the newest.
    pub lines: LogOptions,
    /// Of this service.
    pub unit: Option<String>,
    /// Of the kernel.
    pub kernel: bool,
    /// Not older.
    pub since: Option<Duration>,
    /// `0`, `-1`, … or `all`.
    pub boot: Option<String>,
    /// Of another member.
    pub node: Option<String>,
}

impl Client {
    /// A client of the node at `endpoint`, with [`DEFAULT_TIMEOUT`]. Does not connect yet.
    pub fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// A client of the node whose REST port is at `address` (`IP:PORT` or `NAME:PORT`): it shows the operator's key, and
    /// speaks only with a member of the operator's fabric.
    ///
    /// # Errors
    /// TLS cannot be set up. Whether `address` is one is said by the first request.
    pub fn for_operator(address: &str, operator: &Operator) -> Result<Self, TlsError> {
        let config = client_config(Some(operator.key()), operator.roots().clone())?;
        Ok(Self::new(Endpoint::Tls {
            address: address.to_owned(),
            config: Arc::new(config),
        }))
    }

    /// A client that shows no key, and speaks only with a member of the fabric of `roots`: it can bring root documents, and
    /// nothing else.
    ///
    /// # Errors
    /// As [`Client::for_operator`].
    pub fn for_anybody(address: &str, roots: RootChain) -> Result<Self, TlsError> {
        let config = client_config(None, roots)?;
        Ok(Self::new(Endpoint::Tls {
            address: address.to_owned(),
            config: Arc::new(config),
        }))
    }

    /// The same with another bound in time: for a whole request, or for the start and each silence of a stream.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Where the node is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The members of the fabric, the answering node first.
    ///
    /// # Errors
    /// See [`ClientError`]; so with every call.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, ClientError> {
        self.get(path::NODES).await
    }

    /// All pods of the fabric, in all namespaces.
    pub async fn pods(&self) -> Result<Vec<PodView>, ClientError> {
        self.get(path::PODS).await
    }

    /// The events that the node remembers.
    pub async fn events(&self) -> Result<Vec<EventView>, ClientError> {
        self.get(path::EVENTS).await
    }

    /// Events as they happen, until the node ends or the value is dropped.
    pub async fn follow_events(&self) -> Result<Lines<EventView>, ClientError> {
        self.lines(format!("{}?follow=true", path::EVENTS), None).await
    }

    /// The images in the node's store.
    pub async fn images(&self) -> Result<Vec<ImageView>, ClientError> {
        self.get(path::IMAGES).await
    }

    /// The node's network.
    pub async fn network(&self) -> Result<NetworkView, ClientError> {
        self.get(path::NETWORK).await
    }

    /// The node's time.
    pub async fn time(&self) -> Result<TimeView, ClientError> {
        self.get(path::TIME).await
    }

    /// What is revoked.
    pub async fn revocations(&self) -> Result<RevocationView, ClientError> {
        self.get(path::REVOCATIONS).await
    }

    /// The chain of root documents.
    pub async fn roots(&self) -> Result<RootsView, ClientError> {
        self.get(path::ROOTS).await
    }

    /// Brings root documents.
    pub async fn submit_roots(&self, documents: &[Envelope]) -> Result<RootsTaken, ClientError> {
        let path = path::ROOTS;
        let body = serde_json::to_vec(documents).map_err(|source| ClientError::Decode {
            path: path.to_owned(),
            source,
        })?;
        let body = Upload::Whole(Some(body.into()));
        let request = self.request(Method::POST, path, "application/json", body)?;
        self.in_time(async {
            let answer = self.send(request, path).await?;
            self.read(answer, ERROR_LIMIT, path).await
        })
        .await
    }

    /// The members' keys, and the orders to rotate them.
    pub async fn keys(&self) -> Result<KeysView, ClientError> {
        self.get(path::KEYS).await
    }

    /// Sends a signed order to rotate keys.
    pub async fn submit_key_order(&self, envelope: Vec<u8>) -> Result<(), ClientError> {
        self.post_envelope(path::KEYS, envelope).await
    }

    /// What the members booted.
    pub async fn boots(&self) -> Result<BootsView, ClientError> {
        self.get(path::BOOTS).await
    }

    /// Sends a signed acceptance.
    pub async fn submit_acceptance(&self, envelope: Vec<u8>) -> Result<(), ClientError> {
        self.post_envelope(path::BOOTS, envelope).await
    }

    /// The endorsement key of the node's TPM.
    pub async fn endorsement(&self) -> Result<EndorsementFile, ClientError> {
        self.get(path::ENDORSEMENT).await
    }

    /// The machines that ask the node to be let in.
    pub async fn petitions(&self) -> Result<Vec<PetitionView>, ClientError> {
        self.get(path::PETITIONS).await
    }

    /// Sends an operator's word about one of them.
    pub async fn submit_decision(&self, envelope: Vec<u8>) -> Result<(), ClientError> {
        self.post_envelope(path::PETITIONS, envelope).await
    }

    /// Sends a signed revocation snapshot.
    pub async fn submit_revocations(&self, envelope: Vec<u8>) -> Result<(), ClientError> {
        self.post_envelope(path::REVOCATIONS, envelope).await
    }

    /// Sends a signed change: the JSON of a DSSE envelope.
    pub async fn submit(&self, envelope: Vec<u8>) -> Result<(), ClientError> {
        self.post_envelope(path::CHANGES, envelope).await
    }

    /// Sends a signed change of the node's network.
    pub async fn submit_network(&self, envelope: Vec<u8>) -> Result<(), ClientError> {
        self.post_envelope(path::NETWORK, envelope).await
    }

    async fn post_envelope(&self, path: &str, envelope: Vec<u8>) -> Result<(), ClientError> {
        let body = Upload::Whole(Some(envelope.into()));
        let request = self.request(Method::POST, path, "application/json", body)?;
        self.in_time(async {
            let answer = self.send(request, path).await?;
            let answer = self.read::<serde_json::Value>(answer, ERROR_LIMIT, path);
            answer.await.map(|_| ())
        })
        .await
    }

    /// Output of a container. The three names must be valid in a path: see [`is_path_name`].
    pub async fn logs(
        &self,
        (namespace, pod, container): (&str, &str, &str),
        options: LogOptions,
    ) -> Result<Lines<LogLine>, ClientError> {
        let mut path = format!(
            "{}/{namespace}/{pod}/{container}?follow={}",
            path::LOGS,
            options.follow
        );
        if let Some(tail) = options.tail {
            path.push_str(&format!("&tail={tail}"));
        }
        let idle = if options.follow { None } else { Some(self.timeout) };
        self.lines(path, idle).await
    }

    /// A node's own log. Unit and node must be valid in a path: see [`is_path_name`].
    pub async fn system_log(&self, options: &SystemLogOptions) -> Result<Lines<RecordView>, ClientError> {
        let mut path = format!("{}?follow={}", path::SYSTEM_LOG, options.lines.follow);
        let mut put = |name: &str, value: &str| path.push_str(&format!("&{name}={value}"));
        if let Some(unit) = &options.unit {
            put("unit", unit);
        }
        if options.kernel {
            put("kernel", "true");
        }
        if let Some(since) = options.since {
            put("since_ms", &since.as_millis().to_string());
        }
        if let Some(boot) = &options.boot {
            put("boot", boot);
        }
        if let Some(tail) = options.lines.tail {
            put("tail", &tail.to_string());
        }
        if let Some(node) = &options.node {
            put("node", node);
        }
        let idle = if options.lines.follow {
            None
        } else {
            Some(self.timeout)
        };
        self.lines(path, idle).await
    }

    /// Runs a command in a container and waits for its end. Names as for [`Client::logs`].
    pub async fn exec(
        &self,
        (namespace, pod, container): (&str, &str, &str),
        exec: &ExecRequest,
    ) -> Result<ExecReply, ClientError> {
        let path = format!("{}/{namespace}/{pod}/{container}", path::EXEC);
        let body = serde_json::to_vec(exec).map_err(|source| ClientError::Decode {
            path: path.clone(),
            source,
        })?;
        let request = self.request(
            Method::POST,
            &path,
            "application/json",
            Upload::Whole(Some(body.into())),
        )?;
        self.in_time(async {
            let answer = self.send(request, &path).await?;
            self.read(answer, EXEC_LIMIT, &path).await
        })
        .await
    }

    /// Imports an OCI archive into the node's store; gives the imported images. `length` in bytes where it is known.
    pub async fn import_image(
        &self,
        archive: impl io::Read + Send + 'static,
        length: Option<u64>,
    ) -> Result<Vec<ImageView>, ClientError> {
        let body = Upload::from_reader(archive, length);
        let request = self.request(Method::POST, path::IMAGES, "application/x-tar", body)?;
        self.in_time(async {
            let answer = self.send(request, path::IMAGES).await?;
            self.read(answer, LIST_LIMIT, path::IMAGES).await
        })
        .await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let request = self.request(Method::GET, path, "", Upload::empty())?;
        self.in_time(async {
            let answer = self.send(request, path).await?;
            self.read(answer, LIST_LIMIT, path).await
        })
        .await
    }

    async fn lines<T: DeserializeOwned>(
        &self,
        path: String,
        idle: Option<Duration>,
    ) -> Result<Lines<T>, ClientError> {
        let request = self.request(Method::GET, &path, "", Upload::empty())?;
        let body = self.in_time(self.send(request, &path)).await?;
        Ok(Lines::new(body, idle, self.endpoint.to_string(), path))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        content: &str,
        body: Upload,
    ) -> Result<Request<Upload>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "beemesh")
            .header(header::USER_AGENT, concat!("bmctl/", env!("CARGO_PKG_VERSION")));
        if !content.is_empty() {
            request = request.header(header::CONTENT_TYPE, content);
        }
        request.body(body).map_err(|source| ClientError::Request {
            path: path.to_owned(),
            source,
        })
    }

    /// Connects, sends, and gives the body of a good answer; another status is an error.
    async fn send(&self, request: Request<Upload>, path: &str) -> Result<Incoming, ClientError> {
        let mut sender = transport::connect(&self.endpoint).await?;
        let answer = sender
            .send_request(request)
            .await
            .map_err(|source| ClientError::Exchange {
                endpoint: self.endpoint.to_string(),
                source,
            })?;
        let (head, body) = answer.into_parts();
        if head.status.is_success() {
            return Ok(body);
        }
        let start = body::read_start(body, ERROR_LIMIT).await;
        let message = match serde_json::from_slice::<ErrorBody>(&start) {
            Ok(body) => body.error,
            Err(_) if start.is_empty() => format!("the node refused `{path}`"),
            Err(_) => String::from_utf8_lossy(&start).chars().take(400).collect(),
        };
        Err(ClientError::Status {
            status: head.status.as_u16(),
            message,
        })
    }

    async fn read<T: DeserializeOwned>(
        &self,
        body: Incoming,
        limit: usize,
        path: &str,
    ) -> Result<T, ClientError> {
        let bytes = body::read_whole(body, limit, &self.endpoint.to_string(), path).await?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Decode {
            path: path.to_owned(),
            source,
        })
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(ClientError::TimedOut {
                endpoint: self.endpoint.to_string(),
                after: self.timeout,
            }),
        }
    }
}

/// Whether `name` can stand in a path of the REST interface: 1 to 253 of a-z, 0-9, `-` and `.`, beginning and ending
/// with a letter or digit (a DNS subdomain, RFC 1123, and more than any namespace, pod or container name needs).
pub fn is_path_name(name: &str) -> bool {
    let edge = |b: Option<u8>| matches!(b, Some(b'a'..=b'z' | b'0'..=b'9'));
    name.len() <= 253
        && edge(name.bytes().next())
        && edge(name.bytes().last())
        && name
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_change_the_path_are_not_path_names() {
        assert!(is_path_name("web-0") && is_path_name("a.b"));
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a?b",
            "-a",
            "a-",
            "A",
            "a b",
            "a%2f",
            &"a".repeat(254),
        ] {
            assert!(!is_path_name(name), "{name}");
        }
    }
}
