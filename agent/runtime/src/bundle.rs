//! The OCI bundle of one container: `config.json` from the image's configuration and the manifest's container.
//!
//! [`plan_config`] is pure; [`write_bundle`] looks into the mounted root file system for users and the working directory and
//! writes the file. Invariants: a container gets no device but the usual seven, no capability beyond [`CAPABILITIES`],
//! `no_new_privs`, the default seccomp profile, and its pod's network, IPC and UTS namespaces (the shim's, inherited).

use crate::pod::chain;
use crate::seccomp;
use crate::users::{self, User};
use beemesh_agent_api::manifest::Container;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use oci_spec::image::{Config, ImageConfiguration};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// Docker's default set without CAP_MKNOD: there is no device filter behind it, so no node must ever be made.
pub const CAPABILITIES: [&str; 13] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// Processes and threads where the manifest says nothing.
pub const PIDS_DEFAULT: u64 = 1024;
const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Largest account file that is read.
const ACCOUNTS_MOST: u64 = 1 << 20;

/// Paths hidden from containers: what tells about or acts on the node.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Paths that containers may only read.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Neither the image nor the manifest says what to run.
    #[error("neither the image nor the manifest names a command")]
    NoCommand,
    /// The user is not one.
    #[error(transparent)]
    User(#[from] users::UserError),
    /// A path or a value cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// The node failed.
    #[error("failed to {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Files of the pod that each container sees, and where its limits are set.
#[derive(Debug, Clone)]
pub struct PodFiles {
    /// Bound to `/etc/hosts`.
    pub hosts: PathBuf,
    /// Bound to `/etc/hostname`.
    pub hostname_file: PathBuf,
    /// Bound to `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The pod's host name.
    pub hostname: String,
    /// The pod's cgroup, relative to the mount of cgroup v2.
    pub cgroup: String,
}

/// Writes `<bundle>/config.json`; the root file system is mounted at `<bundle>/rootfs`.
pub fn write_bundle(
    bundle: &Path,
    container: &Container,
    image: &ImageConfiguration,
    pod: &PodFiles,
) -> Result<(), BundleError> {
    let rootfs = bundle.join("rootfs");
    let top = File::open(&rootfs).map_err(io_at("open", &rootfs))?.into();
    let wanted = image
        .config()
        .as_ref()
        .and_then(|config| config.user().clone())
        .unwrap_or_default();
    let passwd = read_inside(&top, "etc/passwd").map_err(io_at("read", &rootfs.join("etc/passwd")))?;
    let group = read_inside(&top, "etc/group").map_err(io_at("read", &rootfs.join("etc/group")))?;
    let user = users::resolve(&wanted, &passwd, &group)?;
    let config = plan_config(container, image, pod, &user)?;
    if let Some(cwd) = config["process"]["cwd"].as_str() {
        make_inside(&top, Path::new(cwd)).map_err(io_at("make the working directory", Path::new(cwd)))?;
    }
    // Read back by the type that the runtime will use: what is written is valid.
    let spec: oci_spec::runtime::Spec = serde_json::from_value(config).map_err(|err| {
        BundleError::Invalid(format!("the runtime configuration is not valid: {}", chain(&err)))
    })?;
    let path = bundle.join("config.json");
    let bytes = serde_json::to_vec(&spec).map_err(|err| io_at("write", &path)(err.into()))?;
    fs::write(&path, bytes).map_err(io_at("write", &path))
}

fn io_at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError + use<> {
    let path = path.to_owned();
    move |source| BundleError::Io { what, path, source }
}

/// The configuration as JSON (OCI runtime spec 1.0).
pub fn plan_config(
    container: &Container,
    image: &ImageConfiguration,
    pod: &PodFiles,
    user: &User,
) -> Result<Value, BundleError> {
    let empty = Config::default();
    let defaults = image.config().as_ref().unwrap_or(&empty);
    let args = arguments(container, defaults)?;
    let cwd = container
        .working_dir
        .clone()
        .or_else(|| defaults.working_dir().clone())
        .filter(|cwd| !cwd.is_empty());
    let cwd = cwd.unwrap_or_else(|| "/".into());
    if !cwd.starts_with('/') {
        return Err(BundleError::Invalid(format!(
            "the working directory `{cwd}` is not absolute"
        )));
    }
    let mut annotations = serde_json::Map::new();
    if let Some(signal) = defaults.stop_signal() {
        annotations.insert("org.opencontainers.image.stopSignal".into(), json!(signal));
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": false},
        "annotations": annotations,
        "process": {
            "terminal": false,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
            "args": args,
            "env": environment(container, defaults, pod, user),
            "cwd": cwd,
            "capabilities": {
                "bounding": CAPABILITIES, "permitted": CAPABILITIES, "effective": CAPABILITIES,
                "inheritable": [], "ambient": [],
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 65_536, "hard": 1_048_576}],
            "noNewPrivileges": true,
            "oomScoreAdj": oom_score(container),
        },
        "mounts": mounts(pod),
        "linux": {
            "cgroupsPath": format!("/{}/{}", pod.cgroup, container.name),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}],
            "resources": resources(container),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
            "seccomp": seccomp::default_profile(),
        },
    }))
}

/// Kubernetes' rule: `command` replaces entrypoint and arguments, `args` replaces the arguments alone.
fn arguments(container: &Container, image: &Config) -> Result<Vec<String>, BundleError> {
    let entrypoint = || image.entrypoint().clone().unwrap_or_default();
    let cmd = || image.cmd().clone().unwrap_or_default();
    let args: Vec<String> = match (&container.command, &container.args) {
        (Some(command), args) => command.iter().chain(args.iter().flatten()).cloned().collect(),
        (None, Some(args)) => entrypoint().into_iter().chain(args.iter().cloned()).collect(),
        (None, None) => entrypoint().into_iter().chain(cmd()).collect(),
    };
    match args.first() {
        Some(program) if !program.is_empty() => Ok(args),
        _ => Err(BundleError::NoCommand),
    }
}

/// The image's, then what the pod implies, then the manifest's: later ones win.
fn environment(container: &Container, image: &Config, pod: &PodFiles, user: &User) -> Vec<String> {
    let mut all = vec![PATH_DEFAULT.to_owned()];
    if let Some(home) = &user.home {
        all.push(format!("HOME={home}"));
    }
    all.extend(image.env().clone().unwrap_or_default());
    all.push(format!("HOSTNAME={}", pod.hostname));
    all.extend(
        container
            .env
            .iter()
            .map(|var| format!("{}={}", var.name, var.value)),
    );
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut kept: Vec<String> = Vec::new();
    for entry in all {
        match kept.iter_mut().find(|other| key(other) == key(&entry)) {
            Some(other) => *other = entry,
            None => kept.push(entry),
        }
    }
    kept
}

/// Who goes first when the node runs out of memory: containers without a limit, then those with one.
fn oom_score(container: &Container) -> i32 {
    if container.resources.limits.memory.is_some() {
        200
    } else {
        800
    }
}

fn resources(container: &Container) -> Value {
    let limits = &container.resources.limits;
    let requests = &container.resources.requests;
    let mut cpu = serde_json::Map::new();
    if let Some(millis) = requests.cpu.or(limits.cpu) {
        cpu.insert(
            "shares".into(),
            json!(millis.saturating_mul(1024).div_euclid(1000).clamp(2, 262_144)),
        );
    }
    let mut all = serde_json::Map::new();
    all.insert(
        "pids".into(),
        json!({"limit": limits.pids.unwrap_or(PIDS_DEFAULT)}),
    );
    if !cpu.is_empty() {
        all.insert("cpu".into(), cpu.into());
    }
    if let Some(bytes) = limits.memory {
        all.insert("memory".into(), json!({"limit": bytes}));
        // No swap on top. Not by `memory.swap`: libcontainer takes the 0 that results from it as "not set".
        all.insert("unified".into(), json!({"memory.swap.max": "0"}));
    }
    all.into()
}

fn mounts(pod: &PodFiles) -> Value {
    let mount = |at: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": source, "options": options});
    let file = |at: &str, from: &Path| json!({"destination": at, "type": "bind", "source": from, "options": ["rbind", "rprivate", "nosuid", "nodev"]});
    json!([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5"
            ]
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"]
        ),
        file("/etc/hosts", &pod.hosts),
        file("/etc/hostname", &pod.hostname_file),
        file("/etc/resolv.conf", &pod.resolv_conf),
    ])
}

/// Resolves as a process inside would: links are followed, but never out of the root file system.
fn open_inside(top: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    openat2(top, path, how)
}

/// A small text file of the root file system; empty where it is missing.
fn read_inside(top: &OwnedFd, path: &str) -> io::Result<String> {
    // Non-blocking: it may be a fifo.
    match open_inside(top, Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(String::new()),
        Err(errno) => Err(errno.into()),
        Ok(fd) => {
            let file = File::from(fd);
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "it is not a regular file",
                ));
            }
            let mut bytes = Vec::new();
            file.take(ACCOUNTS_MOST).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
    }
}

/// Makes a directory with those above it, as Docker and the kubelet do for a missing working directory.
fn make_inside(top: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut at = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                let above = open_inside(top, &at, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                at.push(name);
                match open_inside(top, &at, OFlag::O_PATH) {
                    Ok(_) => {}
                    Err(Errno::ENOENT) => match mkdirat(&above, name, Mode::from_bits_truncate(0o755)) {
                        Ok(()) | Err(Errno::EEXIST) => {}
                        Err(errno) => return Err(errno.into()),
                    },
                    Err(errno) => return Err(errno.into()),
                }
            }
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it holds `..`"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
