//! A fabric of three boxes in one process, on the loopback of a network of its own: all rotate their keys, and nothing that
//! runs on them notices.

use super::*;
use crate::fixture::{applicant, in_small_volume, operator, pack, roots};
use crate::identity::{self, KeyRing};
use crate::images::Images;
use crate::join::DOCUMENT;
use crate::journal::Journal;
use crate::member::Part;
use crate::networks::Networks;
use crate::orders::Orders;
use crate::query::{Query, ask};
use crate::start::Options;
use crate::store::Store;
use crate::supervisor::{Pulse, Supervisor};
use crate::trust::Trust;
use crate::{clock, rest};
use beemesh_agent_api::record::CHANGE_PAYLOAD_TYPE;
use beemesh_agent_api::view::{NodeStatus, PodView};
use beemesh_agent_api::{Change, parse_manifests};
use beemesh_agent_runtime::fixture::{Archive, Layer};
use beemesh_agent_runtime::{FakeRuntime, ImageStore, Limits};
use beemesh_ids::PeerId;
use beemesh_init_logd::SystemLog;
use beemesh_joinpack_format::Machine;
use clap::Parser as _;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

const IMAGE: &str = "web:1";
const BOXES: u8 = 3;
/// For whatever is waited for; the machine may have other things to do.
const PATIENCE: Duration = Duration::from_secs(90);

/// One box of the fabric, switched on.
struct Running {
    key: KeyRing,
    queries: mpsc::Sender<Query>,
    journal: Journal,
    task: JoinHandle<anyhow::Result<()>>,
    _news: mpsc::Sender<crate::sticks::News>,
}

fn options(n: u8, volume: &Path) -> Options {
    let folder = volume.join(format!("box-{n}"));
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (port, rest) = (
        (7400 + u16::from(n)).to_string(),
        (7440 + u16::from(n)).to_string(),
    );
    let (state, run) = (path("state"), path("run"));
    std::fs::create_dir_all(&run).unwrap();
    Options::parse_from([
        "agent",
        "--state",
        &state,
        "--run",
        &run,
        "--port",
        &port,
        "--rest-port",
        &rest,
    ])
}

/// What a box with the voucher of node `n` has on its disk.
fn membership(n: u8, peer: &PeerId) -> FabricDocument {
    let (pack, machine) = (pack(BOXES, 0, &[]), Machine::default());
    let offer = &pack.manifest().vouchers[usize::from(n) - 1];
    let offer = (offer, offer.one_time_key.as_ref().unwrap());
    let mut document = crate::join::plan(&pack, &applicant(peer, &machine), Some(offer))
        .unwrap()
        .document;
    document.peers = (1..=BOXES)
        .filter(|other| *other != n)
        .map(|other| format!("127.0.0.1:{}", 7400 + u16::from(other)))
        .collect();
    document
}

fn image() -> Vec<u8> {
    let layer = Layer::default().file("web", 0o755, b"#!").unwrap();
    Archive::default()
        .layer(layer)
        .unwrap()
        .name(IMAGE)
        .build()
        .unwrap()
}

async fn start(n: u8, volume: &Path, runtime: &FakeRuntime) -> Running {
    let options = options(n, volume);
    let journal = Journal::new(PathBuf::from("/dev/null"));
    let store = Store::open(&options.state.join("agent")).unwrap();
    let document: Option<FabricDocument> = store.load(DOCUMENT).unwrap();
    let named = document
        .as_ref()
        .and_then(|document| document.membership.rotated_to());
    let (key, leftover) = identity::load(&options.state.join("identity"), named, None, &journal)
        .await
        .unwrap();
    let peer = key.now().peer_id();
    let document = document.unwrap_or_else(|| membership(n, &peer));
    store.save(DOCUMENT, &document).unwrap();
    let joined = Joined::check(document, &peer).unwrap();
    let image_store = Arc::new(ImageStore::open(&options.state.join("images"), Limits::default()).unwrap());
    let images = Images::new(image_store, store.clone(), journal.clone());
    if images.list().is_empty() {
        images.import(image().as_slice(), None).unwrap();
    }
    let floor = clock::Floor::new(joined.document.floor, None);
    let floors = clock::FloorKeeper::open(store.clone(), options.run.join("floor"), floor);
    let trust = Trust::open(
        store.clone(),
        journal.clone(),
        floors.clone(),
        Some((&joined.roots, joined.document.floor)),
    );
    let orders = Orders::open(store.clone(), journal.clone(), Some(&joined.roots));
    let (queries, questions) = mpsc::channel(64);
    let (site, watching) = watch::channel(None);
    let (news, arriving) = mpsc::channel(1);
    let (up, _) = watch::channel(false);
    let networks = Networks::open(&options, store.clone(), journal.clone());
    let runtime: Arc<dyn beemesh_agent_runtime::Runtime> = Arc::new(runtime.clone());
    let part = Part {
        context: rest::Context {
            attestor: crate::attestation::Attestor::new(Arc::new(|| {
                Box::new(beemesh_firmware_tpm::SoftwareTpm)
            })),
            networks,
            queries: queries.clone(),
            journal: journal.clone(),
            runtime: Arc::clone(&runtime),
            system_log: SystemLog::new(&options.state.join("log"), &options.run.join("log")),
            images,
            site: watching,
        },
        options,
        journal: journal.clone(),
        store,
        key: key.clone(),
        leftover,
        runtime,
        floors,
        trust,
        orders,
        site,
        questions,
        arriving,
        supervisor: Supervisor::find(),
        pulse: Pulse::new("member"),
        up,
        unwritable: None,
    };
    Running {
        key,
        queries,
        journal,
        task: tokio::spawn(part.run(Some(joined))),
        _news: news,
    }
}

impl Running {
    async fn keys(&self) -> KeysView {
        ask(&self.queries, Query::Keys).await.unwrap()
    }

    async fn pods(&self) -> Vec<PodView> {
        ask(&self.queries, Query::Pods).await.unwrap()
    }

    /// The nodes that it sees ready, by node id.
    async fn ready(&self) -> BTreeSet<PeerId> {
        let nodes = self.keys().await.nodes.into_iter();
        nodes
            .filter(|node| node.status == NodeStatus::Ready)
            .map(|node| node.node)
            .collect()
    }

    async fn rotated(&self, generation: u32) -> usize {
        let view = self.keys().await;
        let done = |node: &&NodeKeyView| node.generation == generation && node.order.is_none();
        view.nodes.iter().filter(done).count()
    }

    async fn order(&self, id: &str, nodes: Option<BTreeSet<PeerId>>) -> Result<(), Refused> {
        let order = KeyOrder {
            fabric: roots().fabric_id().clone(),
            id: id.to_owned(),
            issued: crate::fixture::NOW,
            nodes,
        };
        let envelope = order.sign(&[&operator()]).unwrap().to_json();
        ask(&self.queries, |reply| Query::OrderKeys { envelope, reply })
            .await
            .unwrap()
    }

    fn has_event(&self, reason: &str) -> bool {
        self.journal
            .subscribe()
            .0
            .iter()
            .any(|event| event.reason == reason)
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < end, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The pods that run, each with the node that it runs on.
async fn placed(running: &Running) -> Vec<(String, String)> {
    let pods = running.pods().await.into_iter().filter(|pod| pod.ready);
    let mut placed: Vec<_> = pods
        .map(|pod| (pod.pod_id.unwrap(), pod.node.unwrap().to_string()))
        .collect();
    placed.sort();
    placed
}

fn change() -> Vec<u8> {
    let manifest = "{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {replicas: 3, selector: {matchLabels: \
                    {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: 'web:1'}]}}}}";
    let spec = parse_manifests(manifest).unwrap().remove(0);
    let change = Change {
        id: "01KDVKFD00000000000000500A".to_owned(),
        fabric: roots().fabric_id().clone(),
        workload: spec.id.clone(),
        spec: Some(spec),
    };
    let payload = serde_json::to_vec(&change).unwrap();
    Envelope::sign(CHANGE_PAYLOAD_TYPE, &payload, &[&operator()]).to_json()
}

const FIRST: &str = "01KDVKFD000000000000006001";
const SECOND: &str = "01KDVKFD000000000000006002";

#[test]
fn all_members_rotate_their_keys_and_pods_and_connections_stay() {
    in_small_volume(256 << 20, |volume| {
        let up = std::process::Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(
            up.expect("this test needs `ip`: apt-get install iproute2")
                .success()
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(rotate_all(volume));
        runtime.shutdown_timeout(Duration::from_secs(5));
    });
}

async fn rotate_all(volume: &Path) {
    let runtimes: Vec<_> = (1..=BOXES).map(|_| FakeRuntime::steady(&[IMAGE])).collect();
    let mut boxes = Vec::new();
    for (n, runtime) in (1..).zip(&runtimes) {
        boxes.push(start(n, volume, runtime).await);
    }
    let ids: Vec<PeerId> = boxes.iter().map(|running| running.key.now().peer_id()).collect();
    let everybody: BTreeSet<_> = ids.iter().cloned().collect();
    for running in &boxes {
        until("all are there", async || running.ready().await == everybody).await;
    }
    let envelope = change();
    ask(&boxes[0].queries, |reply| Query::Change { envelope, reply })
        .await
        .unwrap()
        .unwrap();
    until("all pods run", async || placed(&boxes[0]).await.len() == 3).await;
    let before = placed(&boxes[0]).await;

    // One box hears the order, all obey it, and a replay does nothing.
    boxes[1].order(FIRST, None).await.unwrap();
    for running in &boxes {
        until("all have rotated", async || running.rotated(1).await == 3).await;
    }
    for (running, id) in boxes.iter().zip(&ids) {
        assert_ne!(running.key.now().peer_id(), *id, "another key");
        assert_eq!(running.ready().await, everybody, "the same node ids");
        assert_eq!(placed(running).await, before, "the same pods at the same places");
        assert!(
            !running.has_event("NodeDown") && !running.has_event("KeyConflict"),
            "{:?}",
            running.journal.subscribe().0
        );
    }
    boxes[2].order(FIRST, None).await.unwrap();
    let older = boxes[2].order("01KDVKFD000000000000006000", None).await;
    assert!(older.is_err_and(|refused| refused.status == StatusCode::CONFLICT));

    // Each forgets its old key, and starts again with the new one.
    for n in 1..=BOXES {
        let folder = options(n, volume).state.join("identity");
        until("the old key is gone", async || {
            std::fs::read_dir(&folder).unwrap().count() == 1
        })
        .await;
    }
    boxes[1].task.abort();
    let _ = (&mut boxes[1].task).await;
    let key = boxes[1].key.now().peer_id();
    tokio::time::sleep(Duration::from_secs(1)).await;
    boxes[1] = start(2, volume, &runtimes[1]).await;
    assert_eq!(boxes[1].key.now().peer_id(), key);
    for running in &boxes {
        until("all are there again", async || running.ready().await == everybody).await;
        // The fake runtime brings no pod over a restart: others are placed.
        until("all pods are there again", async || {
            placed(running).await.len() == 3
        })
        .await;
        assert_eq!(running.rotated(1).await, 3);
    }

    // One node alone, while another is off that catches up when it comes back.
    boxes[2].task.abort();
    let _ = (&mut boxes[2].task).await;
    boxes[0]
        .order(SECOND, Some(BTreeSet::from([ids[0].clone(), ids[2].clone()])))
        .await
        .unwrap();
    until("the first has rotated again", async || {
        boxes[1].rotated(2).await == 1
    })
    .await;
    boxes[2] = start(3, volume, &runtimes[2]).await;
    until("the other caught up", async || boxes[1].rotated(2).await == 2).await;
    let last = boxes[1].keys().await;
    let named: Vec<u32> = ids
        .iter()
        .map(|id| {
            last.nodes
                .iter()
                .find(|node| node.node == *id)
                .unwrap()
                .generation
        })
        .collect();
    assert_eq!(named, [2, 1, 2], "only those that were named");
}
