//! What a pod has on disk and in the kernel: directories, snapshots, bundles, cgroup; made and taken away.
//!
//! Blocking calls only; it starts no process. Invariant: [`remove`] works on whatever [`prepare`] has got done, on what a crash
//! or a reboot has left of it, and goes on after each failure.

use crate::bundle::{PodFiles, write_bundle};
use crate::image::{Image, ImageStore};
use crate::network;
use crate::pod::{PodRequest, StartError, chain};
use crate::snapshot::{mount_snapshot, remove_snapshot};
use beemesh_agent_api::shim::{CPU_PERIOD_US, ContainerPlan, PodPlan};
use std::fs;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroup v2 is mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// How long the kernel may take to empty a killed cgroup.
const CGROUP_PATIENCE: Duration = Duration::from_secs(5);
const RESOLV_CONF_MOST: u64 = 64 * 1024;

/// Places of one pod.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub dir: PathBuf,
    pub cgroup: String,
}

impl Place {
    pub fn log(&self, container: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{container}.log"))
    }

    fn bundle(&self, container: &str) -> PathBuf {
        // Below a directory of its own: a container may be called `logs` or `state`.
        self.dir.join("containers").join(container)
    }

    fn request(&self) -> PathBuf {
        self.dir.join("request.json")
    }

    fn ports(&self) -> PathBuf {
        self.dir.join("ports.json")
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |err| StartError::Failed {
        what,
        reason: chain(&err),
    }
}

/// The image of each container.
pub(super) fn find_images(store: &ImageStore, request: &PodRequest) -> Result<Vec<Image>, StartError> {
    let find = |container: &beemesh_agent_api::manifest::Container| {
        store
            .resolve(&container.image)
            .and_then(|id| store.load(&id))
            .map_err(|err| StartError::Image {
                container: container.name.clone(),
                source: Box::new(err),
            })
    };
    request.spec.containers.iter().map(find).collect()
}

/// Makes the pod's directory with everything that its shim needs to start.
pub(super) fn lay_out(place: &Place, request: &PodRequest, log_limit: u64) -> Result<(), StartError> {
    fs::create_dir_all(place.dir.join("containers")).map_err(failed("make the pod's directory"))?;
    let containers = request
        .spec
        .containers
        .iter()
        .map(|container| ContainerPlan {
            name: container.name.clone(),
            bundle: place.bundle(&container.name).display().to_string(),
            // The kernel's least quota is 1 ms.
            cpu_quota_us: container
                .resources
                .limits
                .cpu
                .map(|millis| millis.saturating_mul(CPU_PERIOD_US / 1000).max(1000)),
        })
        .collect();
    let plan = PodPlan {
        pod_id: request.pod_id.clone(),
        hostname: hostname(request).into(),
        cgroup: place.cgroup.clone(),
        containers,
        restart_policy: request.spec.restart_policy,
        grace_seconds: request.spec.termination_grace_period_seconds,
        log_dir: place.dir.join("logs").display().to_string(),
        log_limit,
    };
    let json = |value: Result<Vec<u8>, serde_json::Error>| {
        value.map_err(|err| failed("write the pod's plan")(err.into()))
    };
    // What a restarted agent knows the pod by. Not durable: after a loss of power there is no pod to take up.
    fs::write(place.request(), json(serde_json::to_vec(request))?)
        .map_err(failed("write the pod's request"))?;
    fs::write(place.dir.join("plan.json"), json(serde_json::to_vec(&plan))?)
        .map_err(failed("write the pod's plan"))
}

/// Writes down which ports of the node are the pod's, for a restarted agent. Not durable: after a crash of the machine
/// there is no pod to take up.
pub(super) fn keep_ports(place: &Place, ports: &[(u16, u16)]) -> Result<(), StartError> {
    let bytes = serde_json::to_vec(ports).map_err(|err| failed("write the pod's ports")(err.into()))?;
    fs::write(place.ports(), bytes).map_err(failed("write the pod's ports"))
}

/// What [`keep_ports`] wrote; `None` for a new pod.
pub(super) fn kept_ports(place: &Place) -> Option<Vec<(u16, u16)>> {
    serde_json::from_slice(&fs::read(place.ports()).ok()?).ok()
}

/// Mounts the containers' root file systems and writes their bundles.
pub(super) fn prepare(
    place: &Place,
    request: &PodRequest,
    images: &[Image],
    ip: Ipv4Addr,
    resolv_conf: &Path,
) -> Result<(), StartError> {
    let hostname = hostname(request);
    let files = PodFiles {
        hosts: place.dir.join("hosts"),
        hostname_file: place.dir.join("hostname"),
        resolv_conf: place.dir.join("resolv.conf"),
        hostname: hostname.into(),
        cgroup: place.cgroup.clone(),
    };
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n{ip}\t{hostname}\n");
    fs::write(&files.hosts, hosts).map_err(failed("write the pod's `hosts`"))?;
    fs::write(&files.hostname_file, format!("{hostname}\n")).map_err(failed("write the pod's `hostname`"))?;
    let mut resolv = Vec::new();
    if let Ok(file) = fs::File::open(resolv_conf) {
        file.take(RESOLV_CONF_MOST)
            .read_to_end(&mut resolv)
            .map_err(failed("read the node's `resolv.conf`"))?;
    }
    fs::write(&files.resolv_conf, resolv).map_err(failed("write the pod's `resolv.conf`"))?;
    for (container, image) in request.spec.containers.iter().zip(images) {
        let bundle = place.bundle(&container.name);
        mount_snapshot(&bundle, &image.layers).map_err(|err| StartError::Failed {
            what: "mount the image",
            reason: chain(&err),
        })?;
        write_bundle(&bundle, container, &image.config, &files)
            .map_err(|err| StartError::Invalid(format!("container `{}`: {}", container.name, chain(&err))))?;
    }
    Ok(())
}

fn hostname(request: &PodRequest) -> &str {
    request.spec.hostname.as_deref().unwrap_or(&request.name)
}

/// The request that a pod directory was made for.
pub(super) fn load_request(dir: &Path) -> Result<PodRequest, String> {
    let path = dir.join("request.json");
    let bytes = fs::read(&path).map_err(|err| format!("`{}`: {err}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|err| format!("`{}`: {err}", path.display()))
}

/// Kills everything of a pod and takes away its cgroup, link, mounts and directory. Gives what could not be done.
pub(super) fn remove(place: &Place, pod_id: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if let Err(err) = remove_cgroup(&Path::new(CGROUP_ROOT).join(&place.cgroup)) {
        errors.push(format!("failed to empty cgroup `{}`: {err}", place.cgroup));
    }
    if let Err(err) = network::detach(pod_id) {
        errors.push(chain(&err));
    }
    let mut left = Vec::new();
    if let Ok(bundles) = fs::read_dir(place.dir.join("containers")) {
        for bundle in bundles.flatten() {
            remove_snapshot(&bundle.path(), &mut left);
        }
    }
    // With a mount left, deleting would reach through it.
    if left.is_empty() {
        match fs::remove_dir_all(&place.dir) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                errors.push(format!("failed to delete `{}`: {err}", place.dir.display()));
            }
            _ => {}
        }
    }
    errors.extend(left.iter().map(|err| chain(err)));
    errors
}

/// Kills all processes of a branch of cgroups and removes it, the leaves first.
fn remove_cgroup(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let deadline = Instant::now() + CGROUP_PATIENCE;
    loop {
        match remove_branch(path) {
            Err(err) if err.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn remove_branch(path: &Path) -> io::Result<()> {
    match fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove_branch(&entry.path())?;
                }
            }
        }
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err),
    }
    match fs::remove_dir(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}
