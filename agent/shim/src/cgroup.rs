//! The pod's branch of cgroup v2: `<pod>/_shim` for this process, `<pod>/<container>` for each container.
//!
//! It sets no limits (libcontainer does, from the bundle). Invariant: no process sits in an inner node, for a cgroup
//! with members cannot hand controllers down (kernel `Documentation/admin-guide/cgroup-v2.rst`, "No Internal Process
//! Constraint"). A container is named by a DNS label, so `_shim` cannot collide with one.

use beemesh_agent_api::shim::CPU_PERIOD_US;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// The leaf of the shim itself.
pub const SHIM_LEAF: &str = "_shim";
/// Controllers handed down to the containers.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// Why a cgroup could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path in the plan is not a plain relative path.
    #[error("cgroup `{0}` is not a plain relative path")]
    Path(String),
    /// An operation on a file of the cgroup failed.
    #[error("failed to {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// The pod's cgroup.
#[derive(Debug, Clone)]
pub struct PodCgroup {
    path: PathBuf,
}

impl PodCgroup {
    /// Makes the pod's cgroup below [`ROOT`], hands the controllers down to it and moves this process to its leaf.
    pub fn enter(relative: &str) -> Result<Self, CgroupError> {
        let path = Path::new(relative);
        if relative.is_empty() || !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(CgroupError::Path(relative.into()));
        }
        let mut at = PathBuf::from(ROOT);
        for part in path.components() {
            hand_down(&at);
            at.push(part);
            make(&at)?;
        }
        let pod = Self { path: at };
        let leaf = pod.path.join(SHIM_LEAF);
        make(&leaf)?;
        write(&leaf.join("cgroup.procs"), "0", "enter cgroup")?;
        hand_down(&pod.path);
        Ok(pod)
    }

    /// A container's cgroup.
    pub fn container(&self, name: &str) -> ContainerCgroup {
        ContainerCgroup {
            path: self.path.join(name),
        }
    }
}

/// One container's cgroup.
#[derive(Debug, Clone)]
pub struct ContainerCgroup {
    path: PathBuf,
}

impl ContainerCgroup {
    /// Makes it. libcontainer would, but hands every controller of the machine down one by one, at every level.
    pub fn make(&self) -> Result<(), CgroupError> {
        make(&self.path)
    }

    /// Limits the processor time of all its processes, in microseconds a [`CPU_PERIOD_US`].
    pub fn limit_cpu(&self, quota_us: u64) -> Result<(), CgroupError> {
        let text = format!("{quota_us} {CPU_PERIOD_US}");
        write(&self.path.join("cpu.max"), &text, "set the limit in")
    }

    /// Processes that the kernel has killed here for memory (`oom_kill` of `memory.events`); 0 where there is no such file.
    pub fn oom_kills(&self) -> u64 {
        fs::read_to_string(self.path.join("memory.events")).map_or(0, |text| parse_oom_kills(&text))
    }

    /// SIGKILL to every process in it; done already where it does not exist.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match write(&self.path.join("cgroup.kill"), "1", "kill cgroup through") {
            Err(CgroupError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Kills what is left in it and removes it, waiting up to a second for the processes to vanish.
    pub fn remove(&self) -> Result<(), CgroupError> {
        self.kill()?;
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            match fs::remove_dir(&self.path) {
                Ok(()) => return Ok(()),
                Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(err) if err.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(source) => {
                    return Err(CgroupError::Io {
                        what: "remove cgroup",
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
    }
}

fn parse_oom_kills(events: &str) -> u64 {
    events
        .lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .find_map(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Best effort: a controller that the kernel lacks is missed when a limit that needs it is applied, with a message.
/// In as few writes as possible: each one that changes something stops all forks of the machine for a moment.
fn hand_down(path: &Path) {
    let file = path.join("cgroup.subtree_control");
    let active = fs::read_to_string(&file).unwrap_or_default();
    let missing: Vec<String> = CONTROLLERS
        .iter()
        .filter(|controller| !active.split_whitespace().any(|word| word == **controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if !missing.is_empty() && fs::write(&file, missing.join(" ")).is_err() {
        for controller in missing {
            let _ = fs::write(&file, controller);
        }
    }
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(CgroupError::Io {
            what: "create cgroup",
            path: path.into(),
            source,
        }),
    }
}

fn write(path: &Path, text: &str, what: &'static str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::Io {
        what,
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_read_from_their_own_line() {
        let events = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 3\noom_group_kill 9\n";
        assert_eq!(parse_oom_kills(events), 3);
        assert_eq!(parse_oom_kills("oom 4\n"), 0);
    }

    #[test]
    fn a_cgroup_path_that_climbs_or_is_absolute_is_refused() {
        for path in ["", "../x", "/x", "a/../b", "./a"] {
            assert!(
                matches!(PodCgroup::enter(path), Err(CgroupError::Path(_))),
                "{path}"
            );
        }
    }
}
