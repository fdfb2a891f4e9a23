//! Passes a request on to the member that can answer it, over a stream of the fabric, and its answer back.

use super::answer::{Answer, Refused};
use super::routes::Context;
use crate::query::{Query, Site, ask};
use beemesh_agent_api::view::PodView;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
use std::time::Duration;

/// The member must begin to answer within this time, but for a command that runs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Forwards `request` to the holder of `pod`.
pub async fn forward(
    context: &Context,
    site: &Site,
    pod: &PodView,
    request: Request<Incoming>,
) -> Result<Answer, Refused> {
    let name = pod.node.as_ref().map_or("unknown", |name| name.as_str());
    let role = format!(", which holds pod `{}`,", pod.name);
    forward_to_node(context, site, name, &role, request).await
}

/// Forwards `request` to the member `name`; `role` says in an error why it is that one.
pub async fn forward_to_node(
    context: &Context,
    site: &Site,
    name: &str,
    role: &str,
    mut request: Request<Incoming>,
) -> Result<Answer, Refused> {
    let nodes = ask(&context.queries, Query::Nodes).await?;
    let holder = nodes.into_iter().find(|node| node.name.as_str() == name);
    let away = |why: String| Refused::new(StatusCode::BAD_GATEWAY, format!("node `{name}`{role} {why}"));
    let holder = holder.ok_or_else(|| away("is not a member".into()))?;
    let stream = site
        .fabric
        .open_stream(&holder.peer_id)
        .await
        .map_err(|error| away(crate::words(&error)))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| away(format!("does not answer: {error}")))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "forwarded connection ended");
        }
    });
    request
        .headers_mut()
        .insert(HOST, HeaderValue::from_static("member"));
    match tokio::time::timeout(PATIENCE, sender.send_request(request)).await {
        Ok(Ok(answer)) => Ok(answer.map(|body| body.map_err(io::Error::other).boxed_unsync())),
        Ok(Err(error)) => Err(away(format!("broke off: {error}"))),
        Err(_) => Err(Refused::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the node that was asked does not answer in time",
        )),
    }
}
