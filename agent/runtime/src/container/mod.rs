//! Pods as they really run: one shim process each, images from the store, a link, published ports.
//!
//! It decides nothing about where and whether a pod should run. Invariants: whatever fails on the way to a running pod is taken
//! back; the agent's end never takes a running pod with it; a pod whose shim has gone is `Failed`, never forgotten, until it
//! is stopped.

pub(crate) mod command;
mod laps;
mod self_test;
mod setup;

use crate::address::AddressPool;
use crate::forward::{CONNECTIONS_MOST, ForwardError, Forwarder};
use crate::image::{Image, ImageError, ImageStore, Limits};
use crate::logs;
use crate::network;
use crate::pod::{
    self, EVENTS_MOST, LogQuery, PODS_MOST, PodError, PodEvent, PodRequest, PodStatus, Recovery, Runtime,
    StartError, chain,
};
use crate::shim::{ShimError, ShimLink, Waiting};
use beemesh_agent_api::shim::{ContainerState, Phase, PodState, Request};
use beemesh_agent_api::view::{ExecReply, ExecRequest, LogLine};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::BoxStream;
use laps::Laps;
use setup::Place;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, broadcast, watch};

/// A launch of up to 16 containers by libcontainer.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(120);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// When a shim is made to wait for the next pod: not while the last one starts.
const NEXT_SHIM_AFTER: Duration = Duration::from_secs(1);
/// What a shim may take on top of the grace: its own patience with the kernel, and some.
const STOP_MARGIN: Duration = Duration::from_secs(15);

/// Where things are.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Root of the image store, e.g. `/var/lib/beemesh/images`.
    pub images: PathBuf,
    /// Root of the pods' directories, e.g. `/var/lib/beemesh/pods`. Short: a socket's path has at most 107 bytes.
    pub pods: PathBuf,
    /// The pods' addresses: a file that is gone after a boot, as pods are.
    pub addresses: PathBuf,
    /// The `beemesh-shim` program.
    pub shim: PathBuf,
    /// cgroup that holds the pods' cgroups, relative to `/sys/fs/cgroup`, e.g. `beemesh/pods`.
    pub cgroup: String,
    /// The resolver configuration given to containers; missing is empty.
    pub resolv_conf: PathBuf,
    /// Size at which a container's log is rotated, in bytes.
    pub log_limit: u64,
    /// Bounds of image imports.
    pub limits: Limits,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            images: "/var/lib/beemesh/images".into(),
            pods: "/var/lib/beemesh/pods".into(),
            addresses: "/run/beemesh/addresses.json".into(),
            shim: "/usr/bin/beemesh-shim".into(),
            cgroup: "beemesh/pods".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            log_limit: 16 << 20,
            limits: Limits::default(),
        }
    }
}

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The image store cannot be opened.
    #[error("failed to open the image store")]
    Images(#[source] ImageError),
    /// The addresses cannot be read.
    #[error("failed to read the pods' addresses")]
    Addresses(#[source] crate::address::AddressError),
    /// A directory cannot be made.
    #[error("failed to create `{path}`")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Whether the disk that images and pods lie on has refused, as one does that is read-only, full or broken.
    #[must_use]
    pub fn is_of_disk(&self) -> bool {
        let mut cause = match self {
            Self::Addresses(_) => None,
            _ => std::error::Error::source(self),
        };
        while let Some(error) = cause {
            let io = error.downcast_ref::<io::Error>();
            if io.is_some_and(|error| error.raw_os_error().is_some()) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Runs pods with libcontainer.
#[derive(Clone)]
pub struct ContainerRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    store: Arc<ImageStore>,
    addresses: Mutex<AddressPool>,
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    events: broadcast::Sender<PodEvent>,
    connections: Arc<Semaphore>,
    /// Waits for the next pod.
    next_shim: Mutex<Option<Waiting>>,
}

struct Pod {
    request: PodRequest,
    place: Place,
    ip: Ipv4Addr,
    now: Mutex<Current>,
    /// Held while the pod is set up or taken down.
    change: tokio::sync::Mutex<()>,
    /// The connection to the shim has ended.
    gone: watch::Sender<bool>,
}

struct Current {
    state: PodState,
    start_ms: Option<u64>,
    reason: Option<String>,
    stopping: bool,
    forwarder: Option<Forwarder>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holder changes one value as a whole: there is nothing half done behind a poisoned lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pod {
    fn new(request: PodRequest, place: Place, ip: Ipv4Addr) -> Self {
        let pending = |name: &String| ContainerState {
            name: name.clone(),
            pid: None,
            restarts: 0,
            started_ms: None,
            exit: None,
            error: None,
        };
        let containers = request
            .spec
            .containers
            .iter()
            .map(|container| pending(&container.name))
            .collect();
        let state = PodState {
            shim_pid: 0,
            phase: Phase::Pending,
            containers,
        };
        let now = Current {
            state,
            start_ms: None,
            reason: None,
            stopping: false,
            forwarder: None,
        };
        Self {
            request,
            place,
            ip,
            now: Mutex::new(now),
            change: tokio::sync::Mutex::new(()),
            gone: watch::Sender::new(false),
        }
    }

    fn status(&self) -> PodStatus {
        let now = lock(&self.now);
        PodStatus {
            request: self.request.clone(),
            ip: Some(self.ip),
            ports: now
                .forwarder
                .as_ref()
                .map(|forwarder| forwarder.ports().to_vec())
                .unwrap_or_default(),
            state: now.state.clone(),
            start_ms: now.start_ms,
            reason: now.reason.clone(),
        }
    }
}

impl ContainerRuntime {
    /// Opens the store and the address table. Call [`Runtime::recover`] next. Blocks.
    pub fn open(config: RuntimeConfig) -> Result<Self, OpenError> {
        std::fs::create_dir_all(&config.pods).map_err(|source| OpenError::Directory {
            path: config.pods.clone(),
            source,
        })?;
        let store = ImageStore::open(&config.images, config.limits).map_err(OpenError::Images)?;
        Self::with(config, store)
    }

    /// To look at what is there: on a disk that cannot be written, where nothing is started. Blocks.
    pub fn open_read_only(config: RuntimeConfig) -> Result<Self, OpenError> {
        let store = ImageStore::open_read_only(&config.images, config.limits).map_err(OpenError::Images)?;
        Self::with(config, store)
    }

    fn with(config: RuntimeConfig, store: ImageStore) -> Result<Self, OpenError> {
        let addresses = AddressPool::load(&config.addresses).map_err(OpenError::Addresses)?;
        let inner = Inner {
            config,
            store: Arc::new(store),
            addresses: Mutex::new(addresses),
            pods: Mutex::new(BTreeMap::new()),
            events: broadcast::Sender::new(EVENTS_MOST),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MOST)),
            next_shim: Mutex::new(None),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The image store. Its methods block.
    pub fn images(&self) -> &Arc<ImageStore> {
        &self.inner.store
    }
}

impl Inner {
    fn place(&self, pod_id: &str) -> Place {
        Place {
            dir: self.config.pods.join(pod_id),
            cgroup: format!("{}/{pod_id}", self.config.cgroup),
        }
    }

    fn find(&self, pod_id: &str) -> Result<Arc<Pod>, PodError> {
        lock(&self.pods)
            .get(pod_id)
            .cloned()
            .ok_or_else(|| PodError::NoPod(pod_id.chars().take(40).collect()))
    }

    fn tell(&self, pod: &Pod) {
        // Nobody listening is fine.
        let _ = self.events.send(PodEvent::Changed(Box::new(pod.status())));
    }

    /// Enters the pod into the table with an address, or says why not.
    fn enter(&self, request: PodRequest) -> Result<Arc<Pod>, StartError> {
        pod::check(&request)?;
        let id = request.pod_id.clone();
        let mut pods = lock(&self.pods);
        if pods.contains_key(&id) {
            return Err(StartError::Exists(id));
        }
        if pods.len() >= PODS_MOST {
            return Err(StartError::Full(format!("it holds {PODS_MOST} pods")));
        }
        let ip = lock(&self.addresses)
            .allocate(&id)
            .map_err(|err| StartError::Full(chain(&err)))?;
        let pod = Arc::new(Pod::new(request, self.place(&id), ip));
        pods.insert(id, pod.clone());
        Ok(pod)
    }

    fn open_ports(&self, pod: &Pod) -> Result<(), ForwardError> {
        // A port that the node chose stays the pod's over a restart of the agent.
        let kept = setup::kept_ports(&pod.place);
        let ports = kept.unwrap_or_else(|| pod::published(&pod.request.spec));
        let forwarder = Forwarder::open(&ports, pod.ip, &self.connections)?;
        lock(&pod.now).forwarder = Some(forwarder);
        Ok(())
    }

    async fn start(self: Arc<Self>, request: PodRequest) -> Result<PodStatus, StartError> {
        let begun = Instant::now();
        let pod = self.enter(request)?;
        let changing = pod.change.lock().await;
        let (store, own) = (self.store.clone(), pod.clone());
        let images = move || setup::find_images(&store, &own.request);
        let mut laps = Laps::begin(begun);
        let outcome = self.bring_up(&pod, images, &mut laps).await;
        self.prepare_shim();
        match outcome {
            Ok(link) => {
                lock(&pod.now).start_ms = u64::try_from(begun.elapsed().as_millis()).ok();
                tracing::info!(pod = pod.request.pod_id, laps = %laps, "a pod was started");
                drop(changing);
                self.tell(&pod);
                tokio::spawn(self.clone().watch(pod.clone(), link));
                Ok(pod.status())
            }
            Err(err) => {
                for error in self.take_down(&pod).await {
                    tracing::warn!(pod = pod.request.pod_id, error, "clean-up after a failed start");
                }
                Err(err)
            }
        }
    }

    async fn bring_up(
        &self,
        pod: &Arc<Pod>,
        find_images: impl FnOnce() -> Result<Vec<Image>, StartError> + Send + 'static,
        laps: &mut Laps,
    ) -> Result<ShimLink, StartError> {
        self.open_ports(pod).map_err(|err| match err {
            ForwardError::Taken { port } => StartError::PortTaken { port },
            other => StartError::Failed {
                what: "publish the pod's ports",
                reason: chain(&other),
            },
        })?;
        let (own, limit) = (pod.clone(), self.config.log_limit);
        let images = blocking(move || {
            let images = find_images()?;
            setup::lay_out(&own.place, &own.request, limit)?;
            setup::keep_ports(&own.place, &own.status().ports)?;
            Ok(images)
        })
        .await?;
        laps.done("layout");

        // The shim starts while the root file systems are mounted: the two do not meet until `Start`.
        let (own, resolv_conf) = (pod.clone(), self.config.resolv_conf.clone());
        let bundles =
            blocking(move || setup::prepare(&own.place, &own.request, &images, own.ip, &resolv_conf));
        let (link, bundles) = tokio::join!(self.start_shim(pod, laps), bundles);
        bundles?;

        let mut link = link?;
        laps.done("bundles");
        let refused = |err: ShimError| StartError::Failed {
            what: "start the containers",
            reason: chain(&err),
        };
        let state = link.ask(&Request::Start, LAUNCH_TIMEOUT).await.map_err(refused)?;
        lock(&pod.now).state = state;
        laps.done("launch");

        Ok(link)
    }

    /// A shim that listens and whose link is up.
    async fn start_shim(&self, pod: &Arc<Pod>, laps: &mut Laps) -> Result<ShimLink, StartError> {
        let refused = |err: ShimError| StartError::Failed {
            what: "start the pod",
            reason: chain(&err),
        };
        let waiting = self.waiting_shim().map_err(refused)?;
        let shim = waiting.prepared().await.map_err(refused)?;
        laps.done("shim");
        // The link needs the namespaces alone, so it comes up while the shim reads its plan.
        let (own, pid) = (pod.clone(), shim.pid);
        let link = blocking(move || {
            network::attach(&own.request.pod_id, pid, own.ip).map_err(|err| StartError::Failed {
                what: "link the pod",
                reason: chain(&err),
            })
        });
        let held = async {
            shim.hold(&pod.place.dir).await?;
            ShimLink::connect(&pod.place.dir).await
        };
        let (held, link) = tokio::join!(held, link);
        let held = held.map_err(refused)?;
        link?;
        laps.done("network");

        Ok(held)
    }

    /// The shim that waits, or a new one.
    fn waiting_shim(&self) -> Result<Waiting, ShimError> {
        let mut next = lock(&self.next_shim).take();
        if !next.as_mut().is_some_and(Waiting::is_there) {
            next = None;
        }
        next.map_or_else(|| Waiting::start(&self.config.shim), Ok)
    }

    /// Has a shim wait for the next pod, soon: to load the program and to make the namespaces takes time, and needs no pod.
    fn prepare_shim(self: &Arc<Self>) {
        let inner = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(NEXT_SHIM_AFTER).await;
            let mut next = lock(&inner.next_shim);
            if next.as_mut().is_some_and(Waiting::is_there) {
                return;
            }
            match Waiting::start(&inner.config.shim) {
                Ok(shim) => *next = Some(shim),
                // The next pod starts one for itself, and says why that failed.
                Err(err) => tracing::warn!(error = chain(&err), "no shim waits for the next pod"),
            }
        });
    }

    /// Follows a shim's states to its end.
    async fn watch(self: Arc<Self>, pod: Arc<Pod>, mut link: ShimLink) {
        let end = loop {
            match link.next().await {
                Ok(state) => {
                    let changed = {
                        let mut now = lock(&pod.now);
                        let changed = now.state != state;
                        now.state = state;
                        changed
                    };
                    if changed {
                        self.tell(&pod);
                    }
                }
                Err(err) => break err,
            }
        };
        let unexpected = {
            let mut now = lock(&pod.now);
            if !now.stopping {
                now.state.phase = Phase::Failed;
                now.state
                    .containers
                    .iter_mut()
                    .for_each(|container| container.pid = None);
                now.reason = Some(format!("the pod's shim has gone: {}", chain(&end)));
                // Nobody is left who would answer.
                now.forwarder = None;
            }
            !now.stopping
        };
        if unexpected {
            // Containers without a shim cannot be stopped or seen to end: they end with it.
            let path = PathBuf::from("/sys/fs/cgroup")
                .join(&pod.place.cgroup)
                .join("cgroup.kill");
            if let Err(err) = std::fs::write(&path, "1") {
                tracing::warn!(
                    pod = pod.request.pod_id,
                    error = chain(&err),
                    "failed to kill what the shim left"
                );
            }
            self.tell(&pod);
        }
        pod.gone.send_replace(true);
    }

    async fn stop(self: Arc<Self>, pod_id: String, grace: Option<u32>) -> Result<(), PodError> {
        let pod = self.find(&pod_id)?;
        let _changing = pod.change.lock().await;
        // Someone else may have stopped it while this waited.
        if !lock(&self.pods)
            .get(&pod_id)
            .is_some_and(|other| Arc::ptr_eq(other, &pod))
        {
            return Err(PodError::NoPod(pod_id));
        }
        let mut errors = Vec::new();
        if !*pod.gone.borrow() {
            lock(&pod.now).stopping = true;
            let seconds = grace.unwrap_or(pod.request.spec.termination_grace_period_seconds);
            if let Err(err) = self.stop_shim(&pod, seconds).await {
                // Not fatal: taking the cgroup down kills what is left.
                errors.push(chain(&err));
            }
        }
        errors.extend(self.take_down(&pod).await);
        let _ = self.events.send(PodEvent::Removed { pod_id });
        if errors.is_empty() {
            Ok(())
        } else {
            Err(PodError::Failed {
                what: "take everything of the pod away",
                reason: errors.join("; "),
            })
        }
    }

    async fn stop_shim(&self, pod: &Pod, seconds: u32) -> Result<(), ShimError> {
        let mut gone = pod.gone.subscribe();
        let mut link = ShimLink::connect(&pod.place.dir).await?;
        link.send(&Request::Stop {
            grace_seconds: Some(seconds),
        })
        .await?;
        let within = Duration::from_secs(seconds.into()) + STOP_MARGIN;
        match tokio::time::timeout(within, gone.wait_for(|gone| *gone)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ShimError::Io {
                what: "see the end of",
                path: pod.place.dir.join("shim.sock"),
                source: io::ErrorKind::TimedOut.into(),
            }),
        }
    }

    /// Takes everything of the pod away and forgets it.
    async fn take_down(&self, pod: &Arc<Pod>) -> Vec<String> {
        {
            let mut now = lock(&pod.now);
            now.stopping = true;
            now.forwarder = None;
        }
        let (place, id) = (pod.place.clone(), pod.request.pod_id.clone());
        let mut errors = tokio::task::spawn_blocking(move || setup::remove(&place, &id))
            .await
            .unwrap_or_else(|err| vec![chain(&err)]);
        if let Err(err) = lock(&self.addresses).free(&pod.request.pod_id) {
            errors.push(chain(&err));
        }
        lock(&self.pods).remove(&pod.request.pod_id);
        errors
    }

    async fn recover(self: Arc<Self>) -> Recovery {
        let mut found = Recovery::default();
        let entries = match std::fs::read_dir(&self.config.pods) {
            Ok(entries) => entries,
            Err(err) => {
                found
                    .errors
                    .push(format!("failed to list `{}`: {err}", self.config.pods.display()));
                return found;
            }
        };
        let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        let mut ids: Vec<String> = entries
            .flatten()
            .filter(is_dir)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        ids.sort();
        for id in ids {
            match self.restore(&id).await {
                Ok(()) => found.restored.push(id),
                Err(reason) => {
                    tracing::info!(pod = id, reason, "a pod of an earlier run is gone");
                    let (place, own) = (self.place(&id), id.clone());
                    let errors = tokio::task::spawn_blocking(move || setup::remove(&place, &own)).await;
                    found
                        .errors
                        .extend(errors.unwrap_or_else(|err| vec![chain(&err)]));
                    found.cleaned.push(id);
                }
            }
        }
        let alive: BTreeSet<String> = lock(&self.pods).keys().cloned().collect();
        if let Err(err) = lock(&self.addresses).retain(&alive) {
            found.errors.push(chain(&err));
        }
        found
    }

    /// Takes over one pod whose shim lives; `Err` says why it is not to be kept.
    async fn restore(self: &Arc<Self>, id: &str) -> Result<(), String> {
        let place = self.place(id);
        let request = setup::load_request(&place.dir)?;
        if request.pod_id != id || pod::check(&request).is_err() {
            return Err("its request is not its own".into());
        }
        let ip = lock(&self.addresses).get(id).ok_or("it has no address")?;
        let mut link = ShimLink::connect(&place.dir).await.map_err(|err| chain(&err))?;
        let state = link
            .ask(&Request::Status, ANSWER_TIMEOUT)
            .await
            .map_err(|err| chain(&err))?;
        let touched =
            |container: &ContainerState| container.started_ms.is_some() || container.error.is_some();
        if !state.containers.iter().any(touched) {
            return Err("it was never started".into());
        }
        let pod = Arc::new(Pod::new(request, place, ip));
        lock(&pod.now).state = state;
        if let Err(err) = self.open_ports(&pod) {
            // It runs; that its port is gone is shown, not a reason to end it.
            lock(&pod.now).reason = Some(chain(&err));
        }
        lock(&self.pods).insert(id.into(), pod.clone());
        self.tell(&pod);
        tokio::spawn(self.clone().watch(pod, link));
        Ok(())
    }

    fn logs(
        &self,
        pod_id: &str,
        container: &str,
        query: LogQuery,
    ) -> Result<BoxStream<'static, LogLine>, PodError> {
        let pod = self.find(pod_id)?;
        has_container(&pod.request, container)?;
        let path = pod.place.log(container);
        let name = container.to_owned();
        // A follower goes on over restarts, and ends when the container is not to run again or the pod is gone.
        let alive = move || {
            let over = matches!(lock(&pod.now).state.phase, Phase::Succeeded | Phase::Failed);
            let ended = lock(&pod.now)
                .state
                .containers
                .iter()
                .any(|state| state.name == name && state.pid.is_none() && state.exit.is_some());
            !(*pod.gone.borrow() || over && ended)
        };
        Ok(logs::read_log(path, query, Arc::new(alive)))
    }
}

/// Runs blocking work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|err| {
        Err(StartError::Failed {
            what: "set the pod up",
            reason: chain(&err),
        })
    })
}

pub(crate) fn has_container(request: &PodRequest, container: &str) -> Result<(), PodError> {
    if request
        .spec
        .containers
        .iter()
        .any(|known| known.name == container)
    {
        return Ok(());
    }
    let container = container.chars().take(80).collect();
    Err(PodError::NoContainer {
        pod: request.pod_id.clone(),
        container,
    })
}

impl Runtime for ContainerRuntime {
    fn start(&self, request: PodRequest) -> BoxFuture<'_, Result<PodStatus, StartError>> {
        // On a task of its own: a caller that gives up must not leave a pod half made.
        let work = tokio::spawn(self.inner.clone().start(request));
        async move {
            work.await.unwrap_or_else(|err| {
                Err(StartError::Failed {
                    what: "set the pod up",
                    reason: chain(&err),
                })
            })
        }
        .boxed()
    }

    fn stop<'a>(&'a self, pod_id: &'a str, grace: Option<u32>) -> BoxFuture<'a, Result<(), PodError>> {
        let work = tokio::spawn(self.inner.clone().stop(pod_id.to_owned(), grace));
        async move {
            work.await.unwrap_or_else(|err| {
                Err(PodError::Failed {
                    what: "stop the pod",
                    reason: chain(&err),
                })
            })
        }
        .boxed()
    }

    fn pods(&self) -> BoxFuture<'_, Vec<PodStatus>> {
        async move {
            let pods: Vec<Arc<Pod>> = lock(&self.inner.pods).values().cloned().collect();
            pods.iter().map(|pod| pod.status()).collect()
        }
        .boxed()
    }

    fn logs<'a>(
        &'a self,
        pod_id: &'a str,
        container: &'a str,
        query: LogQuery,
    ) -> BoxFuture<'a, Result<BoxStream<'static, LogLine>, PodError>> {
        async move { self.inner.logs(pod_id, container, query) }.boxed()
    }

    fn exec<'a>(
        &'a self,
        pod_id: &'a str,
        container: &'a str,
        request: ExecRequest,
    ) -> BoxFuture<'a, Result<ExecReply, PodError>> {
        async move {
            let pod = self.inner.find(pod_id)?;
            has_container(&pod.request, container)?;
            command::run(&self.inner.config.shim, &pod.place.dir, container, &request).await
        }
        .boxed()
    }

    fn recover(&self) -> BoxFuture<'_, Recovery> {
        self.inner.clone().recover().boxed()
    }

    fn events(&self) -> broadcast::Receiver<PodEvent> {
        self.inner.events.subscribe()
    }
}
