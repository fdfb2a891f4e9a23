//! Questions that others put to the driver, and where it publishes that the box is a member.

use crate::rest::Refused;
use beemesh_agent_api::boot::BootsView;
use beemesh_agent_api::keys::KeysView;
use beemesh_agent_api::petition::PetitionView;
use beemesh_agent_api::revocation::RevocationView;
use beemesh_agent_api::roots::{RootsTaken, RootsView};
use beemesh_agent_api::view::{NodeView, PodView};
use beemesh_agent_fabric::Fabric;
use beemesh_ids::NodeName;
use beemesh_joinpack_format::{Envelope, RootChain};
use hyper::StatusCode;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait; a further one is told to come back.
pub const QUERIES: usize = 256;
/// The driver answers within this time or the question is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// One question.
#[derive(Debug)]
pub enum Query {
    /// The members.
    Nodes(oneshot::Sender<Vec<NodeView>>),
    /// The pods of the fabric.
    Pods(oneshot::Sender<Vec<PodView>>),
    /// What is revoked.
    Revocations(oneshot::Sender<RevocationView>),
    /// Takes a signed revocation snapshot.
    Revoke {
        /// The DSSE envelope, JSON.
        envelope: Vec<u8>,
        /// Whether it was accepted.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// The chain of root documents.
    Roots(oneshot::Sender<RootsView>),
    /// Takes root documents.
    Lengthen {
        /// Consecutive, unverified.
        documents: Vec<Envelope>,
        /// What came of it.
        reply: oneshot::Sender<Result<RootsTaken, Refused>>,
    },
    /// The members' keys, and the orders to rotate them.
    Keys(oneshot::Sender<KeysView>),
    /// Takes a signed order to rotate keys.
    OrderKeys {
        /// The DSSE envelope, JSON.
        envelope: Vec<u8>,
        /// Whether it was accepted.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// What the members booted, and what operators accepted of it.
    Boots(oneshot::Sender<BootsView>),
    /// Takes a signed acceptance.
    AcceptBoot {
        /// The DSSE envelope, JSON.
        envelope: Vec<u8>,
        /// Whether it was accepted.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Who asks to be let in.
    Petitions(oneshot::Sender<Vec<PetitionView>>),
    /// Takes an operator's word about one of them.
    Decide {
        /// The DSSE envelope, JSON.
        envelope: Vec<u8>,
        /// Whether it was accepted.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
    /// Takes a signed change.
    Change {
        /// The DSSE envelope, JSON.
        envelope: Vec<u8>,
        /// Whether it was accepted.
        reply: oneshot::Sender<Result<(), Refused>>,
    },
}

/// The fabric of which this box is a member.
#[derive(Clone)]
pub struct Site {
    /// This node.
    pub name: NodeName,
    /// The root chain.
    pub roots: RootChain,
    /// The network.
    pub fabric: Fabric,
}

/// Puts a question and waits for the answer.
pub async fn ask<T>(
    queries: &mpsc::Sender<Query>,
    question: impl FnOnce(oneshot::Sender<T>) -> Query,
) -> Result<T, Refused> {
    let (reply, answer) = oneshot::channel();
    let busy = |why: &str| {
        Refused::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the agent {why}: try again"),
        )
    };
    queries
        .try_send(question(reply))
        .map_err(|_| busy("has too many questions waiting"))?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(busy("is not a member of a fabric yet or is stopping")),
        Err(_) => Err(Refused::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the agent does not answer in time",
        )),
    }
}
