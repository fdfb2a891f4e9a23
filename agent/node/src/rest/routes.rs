//! Which request asks what of whom.

use super::answer::{Answer, Refused, json, json_bytes, json_lines};
use super::forward;
use super::serve::Access;
use super::system_log;
use crate::attestation::{self, Attestor};
use crate::images::Images;
use crate::journal::Journal;
use crate::networks::Networks;
use crate::query::{Query, Site, ask};
use base64::Engine as _;
use beemesh_agent_api::roots::RootsTaken;
use beemesh_agent_api::view::{EventView, ExecRequest, PodView, path};
use beemesh_agent_runtime::{ImageError, LogQuery, PodError, Runtime};
use beemesh_firmware_tpm::TpmError;
use beemesh_init_logd::SystemLog;
use beemesh_joinpack_format::{Act, EndorsementFile, Envelope, RootChain};
use futures::StreamExt;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::io::{StreamReader, SyncIoBridge};

/// Largest body of a request but for images, in bytes.
const BODY_LIMIT: usize = 4 << 20;
/// Largest image archive, in bytes.
const IMAGE_LIMIT: usize = 4 << 30;
/// Longest wait for a body.
const BODY_PATIENCE: Duration = Duration::from_secs(30);

/// What the handlers may ask. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Network settings and trials.
    pub networks: Networks,
    /// Questions to the driver.
    pub queries: mpsc::Sender<Query>,
    /// Events.
    pub journal: Journal,
    /// Pods of this node.
    pub runtime: Arc<dyn Runtime>,
    /// This node's own log.
    pub system_log: SystemLog,
    /// Images of this node.
    pub images: Images,
    /// What the TPM says to other members.
    pub attestor: Attestor,
    /// The fabric, once this box is a member.
    pub site: watch::Receiver<Option<Site>>,
}

impl Context {
    /// The root chain, once there is one.
    pub fn roots(&self) -> Option<RootChain> {
        self.site.borrow().as_ref().map(|site| site.roots.clone())
    }

    /// Whether a client may do what needs no signature of its own. Root on this box may; members have asked before they forward.
    fn check(&self, access: &Access, act: Act<'_>) -> Result<(), Refused> {
        let Access::Operator(key) = access else {
            return Ok(());
        };
        let roots = self.site()?.roots;
        let judged = roots.may(key, act, roots.past());
        judged.map_err(|refusal| Refused::new(StatusCode::FORBIDDEN, refusal.to_string()))
    }

    fn site(&self) -> Result<Site, Refused> {
        let site = self.site.borrow().clone();
        site.ok_or_else(|| {
            let error = "this box is not a member of a fabric yet: insert a join stick";
            Refused::new(StatusCode::SERVICE_UNAVAILABLE, error)
        })
    }
}

/// Answers one request.
pub async fn handle(request: Request<Incoming>, access: Access, context: Context) -> Answer {
    match route(request, access, context).await {
        Ok(answer) => answer,
        Err(refused) => refused.answer(),
    }
}

async fn route(request: Request<Incoming>, access: Access, context: Context) -> Result<Answer, Refused> {
    // Root documents prove themselves: who lost the last operator's key must still be able to bring new ones.
    let brings_roots = request.method() == Method::POST && request.uri().path() == path::ROOTS;
    if access == Access::Anonymous && !brings_roots {
        let error = "this interface is for operators: use a context file (`bmctl --context operator.json`)";
        return Err(Refused::new(StatusCode::UNAUTHORIZED, error));
    }
    let method = request.method().clone();
    let target = request.uri().path().to_owned();
    let query = parse_query(request.uri().query().unwrap_or_default());
    match (&method, target.as_str()) {
        (&Method::GET, path::NODES) => {
            context.site()?;
            Ok(json(StatusCode::OK, &ask(&context.queries, Query::Nodes).await?))
        }
        (&Method::GET, path::PODS) => {
            context.site()?;
            Ok(json(StatusCode::OK, &ask(&context.queries, Query::Pods).await?))
        }
        (&Method::POST, path::CHANGES) => {
            context.site()?;
            let envelope = body(request).await?;
            ask(&context.queries, |reply| Query::Change { envelope, reply }).await??;
            Ok(json(StatusCode::ACCEPTED, &serde_json::json!({"accepted": true})))
        }
        (&Method::GET, path::EVENTS) => Ok(events(&context.journal, flag(&query, "follow"))),
        (&Method::GET, path::NETWORK) => {
            let node = context.site.borrow().as_ref().map(|site| site.name.clone());
            Ok(json(StatusCode::OK, &context.networks.view(node)))
        }
        (&Method::POST, path::NETWORK) => {
            let site = context.site()?;
            let envelope = body(request).await?;
            let networks = context.networks.clone();
            blocking(move || networks.change(&envelope, &site.roots, &site.name)).await??;
            Ok(json(StatusCode::ACCEPTED, &serde_json::json!({"accepted": true})))
        }
        (&Method::GET, path::REVOCATIONS) => {
            context.site()?;
            Ok(json(
                StatusCode::OK,
                &ask(&context.queries, Query::Revocations).await?,
            ))
        }
        (&Method::POST, path::REVOCATIONS) => {
            context.site()?;
            let envelope = body(request).await?;
            ask(&context.queries, |reply| Query::Revoke { envelope, reply }).await??;
            Ok(json(StatusCode::ACCEPTED, &serde_json::json!({"accepted": true})))
        }
        (&Method::GET, path::ROOTS) => {
            context.site()?;
            Ok(json(StatusCode::OK, &ask(&context.queries, Query::Roots).await?))
        }
        (&Method::POST, path::ROOTS) => {
            let known = context.site()?.roots;
            let documents: Vec<Envelope> =
                serde_json::from_slice(&body(request).await?).map_err(|error| {
                    let error =
                        format!("expected a JSON array of root documents, as in `root.json`: {error}");
                    Refused::new(StatusCode::BAD_REQUEST, error)
                })?;
            // Strangers may ask this: what does not make the chain longer is not put to the member task.
            let (documents, news) = blocking(move || {
                let longer = known.extend(&documents);
                longer.map(|longer| (documents, longer.version() > known.version()))
            })
            .await?
            .map_err(|refusal| Refused::new(StatusCode::FORBIDDEN, refusal.to_string()))?;
            let taken = match news {
                true => ask(&context.queries, |reply| Query::Lengthen { documents, reply }).await??,
                false => RootsTaken {
                    version: context.site()?.roots.version(),
                    news: false,
                },
            };
            Ok(json(StatusCode::OK, &taken))
        }
        (&Method::GET, path::KEYS) => {
            context.site()?;
            Ok(json(StatusCode::OK, &ask(&context.queries, Query::Keys).await?))
        }
        (&Method::POST, path::KEYS) => {
            context.site()?;
            let envelope = body(request).await?;
            ask(&context.queries, |reply| Query::OrderKeys { envelope, reply }).await??;
            Ok(json(StatusCode::ACCEPTED, &serde_json::json!({"accepted": true})))
        }
        (&Method::GET, path::BOOTS) => {
            context.site()?;
            Ok(json(StatusCode::OK, &ask(&context.queries, Query::Boots).await?))
        }
        (&Method::POST, path::BOOTS) => {
            context.site()?;
            let envelope = body(request).await?;
            ask(&context.queries, |reply| Query::AcceptBoot { envelope, reply }).await??;
            Ok(json(StatusCode::ACCEPTED, &serde_json::json!({"accepted": true})))
        }
        (&Method::GET, path::PETITIONS) => {
            context.site()?;
            Ok(json(
                StatusCode::OK,
                &ask(&context.queries, Query::Petitions).await?,
            ))
        }
        (&Method::POST, path::PETITIONS) => {
            context.site()?;
            let envelope = body(request).await?;
            ask(&context.queries, |reply| Query::Decide { envelope, reply }).await??;
            Ok(json(StatusCode::ACCEPTED, &serde_json::json!({"accepted": true})))
        }
        (&Method::GET, path::ENDORSEMENT) => {
            let file = blocking(endorsement).await??;
            Ok(json(StatusCode::OK, &file))
        }
        (&Method::POST, path::ATTESTATION) => {
            let Access::Member(asker) = &access else {
                let error = "members ask each other this; see `bmctl nodes` for what came of it";
                return Err(Refused::new(StatusCode::FORBIDDEN, error));
            };
            let me = context.site()?.fabric.peer_id().clone();
            let question = body_of(request, attestation::LIMIT).await?;
            let answer = context.attestor.answer(&me, asker, &question).await?;
            Ok(json_bytes(StatusCode::OK, answer))
        }
        (&Method::GET, path::TIME) => Ok(json(StatusCode::OK, &context.networks.time())),
        (&Method::GET, path::IMAGES) => {
            let images = context.images.clone();
            Ok(json(StatusCode::OK, &blocking(move || images.list()).await?))
        }
        (&Method::POST, path::IMAGES) => {
            context.check(&access, Act::Image)?;
            import(request, &query, &context).await
        }
        (&Method::GET, path::SYSTEM_LOG) => {
            let elsewhere = match (query.get("node"), context.site.borrow().as_ref()) {
                (Some(node), site) => site.is_none_or(|site| site.name.as_str() != node),
                (None, _) => false,
            };
            match query.get("node").filter(|_| elsewhere) {
                Some(node) if matches!(access, Access::Member(_)) => Err(Refused::new(
                    StatusCode::CONFLICT,
                    format!("this is not node `{node}`"),
                )),
                Some(node) => {
                    let site = context.site()?;
                    forward::forward_to_node(&context, &site, node, "", request).await
                }
                None => system_log::answer(&query, &context.system_log),
            }
        }
        (&Method::GET, _) if target.starts_with(path::LOGS) => logs(request, &access, &context, &query).await,
        (&Method::POST, _) if target.starts_with(path::EXEC) => exec(request, &access, &context).await,
        _ => Err(Refused::new(
            StatusCode::NOT_FOUND,
            format!("nothing answers {method} `{target}`"),
        )),
    }
}

fn parse_query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').take(16).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (k.into(), decode(v)))
        .collect()
}

/// Percent-decoding (RFC 3986, section 2.1); what is not well formed stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        let hex = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() {
            tail.get(2..).unwrap_or_default()
        } else {
            tail
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn flag(query: &BTreeMap<String, String>, name: &str) -> bool {
    query.get(name).is_some_and(|value| value != "false")
}

async fn body(request: Request<Incoming>) -> Result<Vec<u8>, Refused> {
    body_of(request, BODY_LIMIT).await
}

async fn body_of(request: Request<Incoming>, limit: usize) -> Result<Vec<u8>, Refused> {
    let whole = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(BODY_PATIENCE, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(error)) => Err(Refused::new(
            StatusCode::BAD_REQUEST,
            format!("the request's body: {error}"),
        )),
        Err(_) => Err(Refused::new(
            StatusCode::REQUEST_TIMEOUT,
            "the request's body did not arrive in time",
        )),
    }
}

fn events(journal: &Journal, follow: bool) -> Answer {
    let (kept, live) = journal.subscribe();
    if !follow {
        return json(StatusCode::OK, &kept);
    }
    let kept = futures::stream::iter(kept.into_iter().map(Ok));
    json_lines(kept.chain(futures::stream::unfold(live, next_event)))
}

async fn next_event(
    mut live: broadcast::Receiver<EventView>,
) -> Option<(io::Result<EventView>, broadcast::Receiver<EventView>)> {
    match live.recv().await {
        Ok(event) => Some((Ok(event), live)),
        Err(broadcast::error::RecvError::Closed) => None,
        Err(broadcast::error::RecvError::Lagged(missed)) => Some((
            Err(io::Error::other(format!(
                "the reader is too slow: {missed} events were missed"
            ))),
            live,
        )),
    }
}

/// `/v1/<what>/{namespace}/{pod}/{container}` and the pod it names. An empty container names the first.
async fn find_pod(context: &Context, target: &str) -> Result<(PodView, String), Refused> {
    let mut parts = target.split('/').skip(3).map(decode);
    let (Some(namespace), Some(name), container) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Refused::new(
            StatusCode::NOT_FOUND,
            format!("`{target}` names no pod"),
        ));
    };
    let pods = ask(&context.queries, Query::Pods).await?;
    let found = pods
        .into_iter()
        .filter(|pod| pod.workload.namespace == namespace && pod.name == name);
    // A pod that drains may stand beside its successor: the ready one is meant.
    let Some(pod) = found.max_by_key(|pod| (pod.ready, pod.pod_id.is_some())) else {
        let error = format!("there is no pod `{name}` in namespace `{namespace}`: see `bmctl pods`");
        return Err(Refused::new(StatusCode::NOT_FOUND, error));
    };
    let first = || pod.containers.first().map(|container| container.name.clone());
    let container = container
        .filter(|name| !name.is_empty())
        .or_else(first)
        .unwrap_or_default();
    Ok((pod, container))
}

/// The holder, when it is another node and this request may be forwarded.
async fn elsewhere(context: &Context, access: &Access, pod: &PodView) -> Result<Option<Site>, Refused> {
    let site = context.site()?;
    match &pod.node {
        None => Err(Refused::new(
            StatusCode::CONFLICT,
            format!("pod `{}` is not placed on a node yet", pod.name),
        )),
        Some(node) if *node == site.name => Ok(None),
        Some(node) if matches!(access, Access::Member(_)) => Err(Refused::new(
            StatusCode::CONFLICT,
            format!("pod `{}` has moved to node `{node}`: try again", pod.name),
        )),
        Some(_) => Ok(Some(site)),
    }
}

async fn logs(
    request: Request<Incoming>,
    access: &Access,
    context: &Context,
    query: &BTreeMap<String, String>,
) -> Result<Answer, Refused> {
    let (pod, container) = find_pod(context, request.uri().path()).await?;
    if let Some(site) = elsewhere(context, access, &pod).await? {
        return forward::forward(context, &site, &pod, request).await;
    }
    let tail = match query.get("tail") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            Refused::new(
                StatusCode::BAD_REQUEST,
                format!("`tail={text}`: expected a number of lines"),
            )
        })?),
    };
    let pod_id = pod.pod_id.unwrap_or_default();
    let wanted = LogQuery {
        tail,
        follow: flag(query, "follow"),
    };
    let lines = context
        .runtime
        .logs(&pod_id, &container, wanted)
        .await
        .map_err(pod_refusal)?;
    Ok(json_lines(lines.map(Ok)))
}

async fn exec(request: Request<Incoming>, access: &Access, context: &Context) -> Result<Answer, Refused> {
    let (pod, container) = find_pod(context, request.uri().path()).await?;
    let act = Act::Workload {
        namespace: &pod.workload.namespace,
        name: &pod.workload.name,
    };
    context.check(access, act)?;
    if let Some(site) = elsewhere(context, access, &pod).await? {
        return forward::forward(context, &site, &pod, request).await;
    }
    let bytes = body(request).await?;
    let bad = |error: String| Refused::new(StatusCode::BAD_REQUEST, error);
    let command: ExecRequest =
        serde_json::from_slice(&bytes).map_err(|error| bad(format!("the request: {error}")))?;
    if command.argv.is_empty() {
        return Err(bad("no command was given".into()));
    }
    base64::engine::general_purpose::STANDARD
        .decode(&command.stdin)
        .map_err(|error| bad(format!("`stdin` is not base64: {error}")))?;
    let pod_id = pod.pod_id.unwrap_or_default();
    let reply = context
        .runtime
        .exec(&pod_id, &container, command)
        .await
        .map_err(pod_refusal)?;
    Ok(json(StatusCode::OK, &reply))
}

async fn import(
    request: Request<Incoming>,
    query: &BTreeMap<String, String>,
    context: &Context,
) -> Result<Answer, Refused> {
    let name = query.get("name").cloned();
    let body = Limited::new(request.into_body(), IMAGE_LIMIT);
    let bytes = body
        .into_data_stream()
        .map(|piece| piece.map_err(io::Error::other));
    let archive = SyncIoBridge::new(StreamReader::new(Box::pin(bytes)));
    let images = context.images.clone();
    let imported = blocking(move || images.import(archive, name.as_deref()))
        .await?
        .map_err(image_refusal)?;
    for image in &imported {
        let message = format!("image {} is ready", image.name);
        context
            .journal
            .emit("ImageImported", &format!("image/{}", image.name), &message);
    }
    Ok(json(StatusCode::OK, &imported))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| {
        Refused::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the work broke off: {error}"),
        )
    })
}

/// The endorsement key of this machine's TPM.
fn endorsement() -> Result<EndorsementFile, Refused> {
    let read = beemesh_firmware_tpm::open().endorsement();
    let endorsement = read.map_err(|error| {
        let status = match error {
            TpmError::NoEndorsement => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused::new(status, crate::words(&error))
    })?;
    Ok(EndorsementFile::new(
        endorsement.key.public(),
        endorsement.certificate.as_deref(),
    ))
}

fn image_refusal(error: ImageError) -> Refused {
    let status = match error {
        ImageError::Refused(_) => StatusCode::BAD_REQUEST,
        ImageError::NotFound { .. } => StatusCode::NOT_FOUND,
        ImageError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refused::new(status, crate::words(&error))
}

fn pod_refusal(error: PodError) -> Refused {
    let status = match error {
        PodError::NoPod(_) | PodError::NoContainer { .. } => StatusCode::NOT_FOUND,
        PodError::Invalid(_) => StatusCode::BAD_REQUEST,
        PodError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refused::new(status, crate::words(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_broken_escapes_stay() {
        let query = parse_query("follow=true&tail=20&name=nginx%3A1%2e22&odd=%zz%");
        assert!(flag(&query, "follow") && !flag(&query, "absent"));
        assert_eq!(query.get("name").map(String::as_str), Some("nginx:1.22"));
        assert_eq!(query.get("odd").map(String::as_str), Some("%zz%"));
    }
}
