//! Options and the order in which the parts are started.

use crate::attestation::Attestor;
use crate::clock::{Floor, FloorKeeper};
use crate::images::Images;
use crate::join::{DOCUMENT, FabricDocument, Joined};
use crate::journal::Journal;
use crate::memory::Keepsake;
use crate::networks::Networks;
use crate::orders::Orders;
use crate::query::QUERIES;
use crate::reserve::{Reserve, is_full};
use crate::sticks::{News, Sticks};
use crate::store::Store;
use crate::supervisor::{Pulse, Supervisor};
use crate::trust::Trust;
use crate::{identity, member, rest, volume};
use anyhow::{Context as _, Result};
use beemesh_agent_runtime::{ContainerRuntime, OpenError, Runtime, RuntimeConfig};
use beemesh_init_api::path;
use beemesh_init_logd::SystemLog;
use clap::Parser;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tracing_subscriber::filter::Targets;

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
    /// What is logged: a level, or `TARGET=LEVEL` and a level with commas between them
    #[arg(long, default_value = "info,tss_esapi=warn")]
    pub log: Targets,
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
    let named = store.load::<FabricDocument>(DOCUMENT).ok().flatten();
    let named = named.and_then(|document| document.membership.rotated_to());
    let identity = options.state.join("identity");
    let (keepsake, kept) = recall_key(&options, &identity, &journal).await?;
    let early = kept.map(|key| tokio::spawn(async move { Ok(key) })).or(early);
    let (key, leftover) = identity::load(&identity, named, early, &journal).await?;
    tracing::info!(peer = %key.now().peer_id(), "identity ready");
    let (runtime, unwritable) = open_runtime(&options).await?;
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
        attestor: Attestor::new(Arc::new(beemesh_firmware_tpm::open)),
        site: watching,
    };
    let socket = options.run_path(path::AGENT_SOCKET);
    let (serving, driving) = (Pulse::new("REST"), Pulse::new("member"));
    let pulses = vec![serving.clone(), driving.clone()];
    let unix = rest::listen_unix(&supervisor, &socket)?;
    let unix = tokio::spawn(rest::serve_unix(unix, context.clone(), serving));

    let joined = recall(&store, &key.now(), &journal)?;
    let known = joined.as_ref().map(|joined| joined.document.floor);
    let kept = keepsake.record().map(|memory| memory.floor);
    let floor = Floor::new(identity::built(), known.max(kept));
    let floors = FloorKeeper::open(store.clone(), options.run_path(path::TIME_FLOOR), floor);
    let member = joined
        .as_ref()
        .map(|joined| (&joined.roots, joined.document.floor));
    let trust = Trust::open(store.clone(), journal.clone(), floors.clone(), member).with_keepsake(keepsake);
    let roots = joined.as_ref().map(|joined| &joined.roots);
    let orders = Orders::open(store.clone(), journal.clone(), roots);
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
        key: key.clone(),
        images,
        joined: joined.clone(),
        floor,
        floors: floors.clone(),
        trust: trust.clone(),
        orders: orders.clone(),
        networks: networks.clone(),
        news,
        up: is_up,
        waiting: None,
        system_log: context.system_log.clone(),
        endorsement: std::sync::OnceLock::new(),
    };
    let trials = tokio::spawn(networks.take_back_trials());
    let sticks = tokio::spawn(sticks.run());
    let part = member::Part {
        options,
        journal,
        store,
        key,
        leftover,
        runtime,
        floors,
        trust,
        orders,
        context,
        site,
        questions,
        arriving,
        supervisor: supervisor.clone(),
        pulse: driving,
        up,
        unwritable,
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

/// The runtime; or on a disk that cannot be written one that only shows what is there, and why. A box that could not even
/// say what is wrong would be started again for ever.
async fn open_runtime(options: &Options) -> Result<(ContainerRuntime, Option<OpenError>)> {
    let config = RuntimeConfig {
        images: options.state.join("images"),
        pods: options.state.join("pods"),
        addresses: options.run_path("/run/beemesh/addresses.json"),
        shim: options.shim.clone(),
        ..RuntimeConfig::default()
    };
    let reserve = Reserve::new(&options.state.join("agent"));
    let opened = tokio::task::spawn_blocking(move || match ContainerRuntime::open(config.clone()) {
        Ok(runtime) => Ok((runtime, None)),
        Err(error) if is_full(&error) && reserve.free() => Ok((ContainerRuntime::open(config)?, None)),
        Err(error) if error.is_of_disk() => Ok((ContainerRuntime::open_read_only(config)?, Some(error))),
        Err(error) => Err(error),
    });
    opened.await?.context("failed to start the container runtime")
}

/// What the TPM keeps of a box without a disk. Only init knows whether there is one.
async fn recall_key(
    options: &Options,
    identity: &Path,
    journal: &Journal,
) -> Result<(Keepsake, Option<beemesh_agent_identity::NewKey>)> {
    if !options.run_path(path::STATE_STATUS).exists() {
        return Ok((Keepsake::default(), None));
    }
    let (in_memory, identity, journal) = (
        volume::is_in_memory(options),
        identity.to_owned(),
        journal.clone(),
    );
    let open = Arc::new(beemesh_firmware_tpm::open);
    let recalled = tokio::task::spawn_blocking(move || Keepsake::open(in_memory, &identity, open, &journal));
    recalled.await.context("the task of the TPM's memory ended")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{applicant, in_small_volume, pack};
    use crate::join::{choose, plan};
    use crate::ledger::Ledger;
    use beemesh_agent_sched::Record;
    use beemesh_joinpack_format::Machine;
    use nix::mount::{MsFlags, mount};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn options(state: &Path, run: &Path) -> Options {
        let [state, run] = [state, run].map(|path| path.to_str().unwrap());
        Options::parse_from([
            "agent",
            "--state",
            state,
            "--run",
            run,
            "--port",
            "0",
            "--rest-port",
            "0",
        ])
    }

    /// What a member leaves on its state volume.
    async fn join(options: &Options) {
        let journal = Journal::new(options.run_path(path::CONSOLE));
        let store = Store::open(&options.state.join("agent")).unwrap();
        let (key, _) = identity::load(&options.state.join("identity"), None, None, &journal)
            .await
            .unwrap();
        let key = key.now();
        let (pack, peer, machine) = (pack(1, 0, &[]), key.peer_id(), Machine::default());
        let offer = choose(&pack, &applicant(&peer, &machine)).unwrap();
        let offer = (offer, offer.one_time_key.as_ref().unwrap());
        let document = plan(&pack, &applicant(&peer, &machine), Some(offer))
            .unwrap()
            .document;
        store.save(DOCUMENT, &document).unwrap();
        let (_, unwritable) = open_runtime(options).await.unwrap();
        assert!(unwritable.is_none());
        let run = options.run_path("/run/beemesh/pods");
        let mut ledger = Ledger::open(&store.path(""), &run, &journal).unwrap();
        ledger.keep(&[Record::Boot(3)]).unwrap();
    }

    /// The answer to a request over the unix socket, once there is one.
    async fn ask(options: &Options, request: &str) -> String {
        let socket = options.run_path(path::AGENT_SOCKET);
        let mut stream = loop {
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let head = "host: local\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let request = format!("{request} HTTP/1.1\r\n{head}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn ask_until(options: &Options, request: &str, has: &str) -> String {
        loop {
            let answer = ask(options, request).await;
            if answer.contains(has) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs the agent on a volume that was written, if `member`, and is read-only now; `questions` are asked of it.
    fn on_read_only_volume(member: bool, questions: impl AsyncFnOnce(&Options) + Send) {
        in_small_volume(64 << 20, |volume| {
            let folder = tempfile::tempdir().unwrap();
            let options = options(volume, folder.path());
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let journal = Journal::new(options.run_path(path::CONSOLE));
            runtime.block_on(async {
                match member {
                    true => join(&options).await,
                    false => {
                        Store::open(&options.state.join("agent")).unwrap();
                        drop(
                            identity::load(&volume.join("identity"), None, None, &journal)
                                .await
                                .unwrap(),
                        );
                    }
                }
            });
            let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, volume, None::<&str>, read_only, None::<&str>).unwrap();
            runtime.block_on(async {
                tokio::select! {
                    ended = run(options.clone()) => panic!("the agent ended: {ended:?}"),
                    late = tokio::time::timeout(Duration::from_secs(60), questions(&options)) => late.unwrap(),
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(5));
        });
    }

    #[test]
    fn member_on_a_volume_that_cannot_be_written_shows_what_it_knows_and_takes_no_change() {
        on_read_only_volume(true, async |options| {
            ask_until(options, "GET /v1/events", "StateVolumeFailed").await;
            let nodes = ask_until(options, "GET /v1/nodes", "200 OK").await;
            assert!(nodes.contains("node-1"), "{nodes}");
            assert!(ask(options, "GET /v1/pods").await.contains("200 OK"));
            assert!(ask(options, "GET /v1/time").await.contains("200 OK"));
            assert!(ask(options, "GET /v1/logs").await.contains("200 OK"));
            let change = ask(options, "POST /v1/changes").await;
            assert!(
                change.contains("503") && change.contains("its state volume failed"),
                "{change}"
            );
        });
    }

    #[test]
    fn box_without_a_membership_on_such_a_volume_says_so_and_goes_on_answering() {
        on_read_only_volume(false, async |options| {
            let events = ask_until(options, "GET /v1/events", "StateVolumeFailed").await;
            assert!(events.contains("cannot join a fabric"), "{events}");
            let nodes = ask(options, "GET /v1/nodes").await;
            assert!(nodes.contains("503") && nodes.contains("not a member"), "{nodes}");
        });
    }
}
