//! Options and the order in which the parts are started.

use crate::clock::{Floor, FloorKeeper};
use crate::images::Images;
use crate::join::{DOCUMENT, FabricDocument, Joined};
use crate::journal::Journal;
use crate::networks::Networks;
use crate::query::QUERIES;
use crate::sticks::{News, Sticks};
use crate::store::Store;
use crate::supervisor::{Pulse, Supervisor};
use crate::trust::Trust;
use crate::{identity, member, rest, volume};
use anyhow::{Context as _, Result};
use beemesh_agent_runtime::{ContainerRuntime, Runtime, RuntimeConfig};
use beemesh_init_api::path;
use beemesh_init_logd::SystemLog;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// The root of the container that the runtime is tested with; a part of the system image.
const SELF_TEST: &str = "/usr/lib/beemesh/self-test";
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
    let supervisor = Supervisor::find();
    let journal = Journal::new(options.run_path(path::CONSOLE));
    let early = match supervisor.is_there() {
        true => identity::make_during(volume::decided(&options)).await,
        false => None,
    };
    let store = Store::open(&options.state.join("agent"))?;
    let key = identity::load(&options.state.join("identity"), early, &journal).await?;
    tracing::info!(peer = %key.peer_id(), "identity ready");
    let runtime = open_runtime(&options).await?;
    let images = Images::new(Arc::clone(runtime.images()), store.clone(), journal.clone());
    let (up, is_up) = watch::channel(false);
    tokio::spawn(test_runtime(runtime.clone(), is_up.clone(), journal.clone()));
    let runtime: Arc<dyn Runtime> = Arc::new(runtime);

    let (queries, questions) = mpsc::channel(QUERIES);
    let (site, watching) = watch::channel(None);
    let networks = Networks::open(&options, store.clone(), journal.clone());
    let context = rest::Context {
        networks: networks.clone(),
        queries,
        journal: journal.clone(),
        runtime: Arc::clone(&runtime),
        system_log: SystemLog::new(&options.state.join("log"), &options.run_path(path::LOG)),
        images: images.clone(),
        site: watching,
    };
    let socket = options.run_path(path::AGENT_SOCKET);
    let (serving, driving) = (Pulse::new("REST"), Pulse::new("member"));
    let pulses = vec![serving.clone(), driving.clone()];
    let unix = rest::listen_unix(&supervisor, &socket)?;
    let unix = tokio::spawn(rest::serve_unix(unix, context.clone(), serving));

    let joined = recall(&store, &key, &journal)?;
    let floor = Floor::new(
        identity::built(),
        joined.as_ref().map(|joined| joined.document.floor),
    );
    let floors = FloorKeeper::open(store.clone(), options.run_path(path::TIME_FLOOR), floor);
    let member = joined
        .as_ref()
        .map(|joined| (&joined.roots, joined.document.floor));
    let trust = Trust::open(store.clone(), journal.clone(), floors.clone(), member);
    if let Some(joined) = &joined {
        let handed = networks.start(&joined.document.network);
        handed.context("failed to hand over the network settings")?;
    }
    supervisor.status(match &joined {
        Some(_) => "member of a fabric",
        None => "waits for a join pack",
    });
    supervisor.ready();
    let (news, arriving) = mpsc::channel::<News>(NEWS);
    let sticks = Sticks {
        options: options.clone(),
        journal: journal.clone(),
        store: store.clone(),
        key: Arc::clone(&key),
        images,
        joined: joined.clone(),
        floor,
        floors: floors.clone(),
        trust: trust.clone(),
        networks: networks.clone(),
        news,
        up: is_up,
        endorsement: std::sync::OnceLock::new(),
    };
    let trials = tokio::spawn(networks.take_back_trials());
    let sticks = tokio::spawn(sticks.run());
    let part = member::Part {
        options,
        journal,
        store,
        key,
        runtime,
        floors,
        trust,
        context,
        site,
        questions,
        arriving,
        supervisor: supervisor.clone(),
        pulse: driving,
        up,
    };
    let member = tokio::spawn(part.run(joined));

    let watch = supervisor.clone().watch(pulses);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {
            supervisor.stopping();
            Ok(())
        }
        ended = watch => ended,
        ended = unix => ended?.context("the REST socket ended"),
        ended = trials => ended.context("the network task ended"),
        ended = sticks => ended.context("the stick task ended"),
        ended = member => ended?.context("the member task ended"),
    }
}

/// Once the box is a member it shows that it can run containers, or says that it cannot before a workload finds out.
async fn test_runtime(runtime: ContainerRuntime, mut up: watch::Receiver<bool>, journal: Journal) {
    if up.wait_for(|up| *up).await.is_err() || !Path::new(SELF_TEST).exists() {
        return;
    }
    match runtime.self_test(SELF_TEST.into()).await {
        Ok(took) => {
            let message = format!(
                "this box runs containers: its own took {} ms to start",
                took.as_millis()
            );
            journal.emit("SelfTestPassed", "node/self", &message);
        }
        Err(error) => {
            let message = format!("this box cannot run containers: {}", crate::words(&error));
            journal.announce("SelfTestFailed", "node/self", &message);
        }
    }
}

async fn open_runtime(options: &Options) -> Result<ContainerRuntime> {
    let config = RuntimeConfig {
        images: options.state.join("images"),
        pods: options.state.join("pods"),
        addresses: options.run_path("/run/beemesh/addresses.json"),
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
