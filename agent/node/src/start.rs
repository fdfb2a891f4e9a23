//! Options and the order in which the parts are started.

use crate::clock::Floor;
use crate::images::Images;
use crate::join::{DOCUMENT, FabricDocument, Joined};
use crate::journal::Journal;
use crate::query::QUERIES;
use crate::sticks::{News, Sticks};
use crate::store::Store;
use crate::{identity, member, network, rest};
use anyhow::{Context as _, Result};
use beemesh_agent_runtime::{ContainerRuntime, Runtime, RuntimeConfig};
use beemesh_init_api::path;
use beemesh_init_logd::SystemLog;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Sticks' news that may wait for the member task.
const NEWS: usize = 8;

/// The node's part in the fabric: joins by a stick, runs what the fabric places here.
#[derive(Debug, Clone, Parser)]
#[command(name = "beemesh-agent", version)]
pub struct Options {
    /// State volume
    #[arg(long, default_value = path::STATE)]
    pub state: PathBuf,
    /// Runtime directory, shared with init
    #[arg(long, default_value = path::RUN)]
    pub run: PathBuf,
    /// The shim that holds a pod
    #[arg(long, default_value = "/usr/lib/beemesh/beemesh-shim")]
    pub shim: PathBuf,
    /// What is logged, in the syntax of RUST_LOG
    #[arg(long, default_value = "info")]
    pub log: String,
    /// TCP and UDP port of the fabric
    #[arg(long, default_value_t = 7400)]
    pub port: u16,
    /// TCP port of the REST interface for operators
    #[arg(long, default_value_t = rest::REST_PORT)]
    pub rest_port: u16,
}

impl Options {
    /// A path of init's runtime directory, moved to the one of these options.
    pub fn run_path(&self, standard: &str) -> PathBuf {
        match Path::new(standard).strip_prefix(path::RUN) {
            Ok(relative) => self.run.join(relative),
            Err(_) => PathBuf::from(standard),
        }
    }
}

/// Runs the agent until it is told to stop.
pub async fn run(options: Options) -> Result<()> {
    let journal = Journal::new(options.run_path(path::CONSOLE));
    let store = Store::open(&options.state.join("agent"))?;
    let key = identity::load(&options.state.join("identity"), &journal).await?;
    tracing::info!(peer = %key.peer_id(), "identity ready");
    let runtime = open_runtime(&options).await?;
    let images = Images::new(Arc::clone(runtime.images()), store.clone(), journal.clone());
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);

    let (queries, questions) = mpsc::channel(QUERIES);
    let (site, watching) = watch::channel(None);
    let context = rest::Context {
        queries,
        journal: journal.clone(),
        runtime: Arc::clone(&runtime),
        system_log: SystemLog::new(&options.state.join("log"), &options.run_path(path::LOG)),
        images: images.clone(),
        site: watching,
    };
    let socket = options.run_path(path::AGENT_SOCKET);
    let unix = tokio::spawn({
        let context = context.clone();
        async move { rest::serve_unix(&socket, context).await }
    });

    let joined = recall(&store, &key, &journal)?;
    let floor = Floor::new(
        identity::built(),
        joined.as_ref().map(|joined| joined.document.floor),
    );
    if let Some(joined) = &joined {
        network::write_config(&options.run_path(path::NETWORK), &joined.document.network)
            .context("failed to hand over the network settings")?;
    }
    notify_ready();
    let (news, arriving) = mpsc::channel::<News>(NEWS);
    let sticks = Sticks {
        options: options.clone(),
        journal: journal.clone(),
        store: store.clone(),
        key: Arc::clone(&key),
        images,
        joined: joined.clone(),
        floor,
        news,
    };
    let sticks = tokio::spawn(sticks.run());
    let part = member::Part {
        options,
        journal,
        store,
        key,
        runtime,
        context,
        site,
        questions,
        arriving,
    };
    let member = tokio::spawn(part.run(joined));

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        ended = unix => ended?.context("the REST socket ended"),
        ended = sticks => ended.context("the stick task ended"),
        ended = member => ended?.context("the member task ended"),
    }
}

async fn open_runtime(options: &Options) -> Result<ContainerRuntime> {
    let config = RuntimeConfig {
        images: options.state.join("images"),
        pods: options.state.join("pods"),
        shim: options.shim.clone(),
        ..RuntimeConfig::default()
    };
    let opened = tokio::task::spawn_blocking(move || ContainerRuntime::open(config)).await?;
    opened.context("failed to start the container runtime")
}

/// The membership of an earlier boot. A damaged one is said on the console and the box waits for a stick.
fn recall(store: &Store, key: &identity::NodeKey, journal: &Journal) -> Result<Option<Joined>> {
    let document: Option<FabricDocument> = match store.load(DOCUMENT) {
        Ok(document) => document,
        Err(error) => {
            journal.announce("MembershipDamaged", "node/self", &crate::words(&error));
            return Ok(None);
        }
    };
    let Some(document) = document else { return Ok(None) };
    match Joined::check(document, &key.peer_id()) {
        Ok(joined) => Ok(Some(joined)),
        Err(refusal) => {
            let message = format!("the stored membership is not valid for this machine: {refusal}");
            journal.announce("MembershipRefused", "node/self", &message);
            Ok(None)
        }
    }
}

/// Tells the supervisor that the agent serves (sd_notify protocol, `READY=1`).
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent =
        std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", path));
    if let Err(error) = sent {
        tracing::warn!(%error, "failed to tell the supervisor that the agent is ready");
    }
}
