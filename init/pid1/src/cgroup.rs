//! A service's cgroup: its limits, who is in it, its end as a whole, and whether it ended for want of memory.
//!
//! Source: Linux `Documentation/admin-guide/cgroup-v2.rst`. A limit whose controller the kernel lacks is no reason not to
//! boot. Invariant: what the service started and did not move elsewhere is in here, and ends with it.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use beemesh_init_api::path;
use beemesh_init_core::ending::{Ending, MemoryEvents};
use beemesh_init_core::spec::Limits;
use nix::unistd::Pid;

use crate::chain::{Attempt, StepError};

/// One service's cgroup.
pub struct ServiceCgroup {
    path: PathBuf,
    /// As `/proc/<pid>/cgroup` names it.
    name: String,
    limit_bytes: u64,
    at_start: MemoryEvents,
}

impl ServiceCgroup {
    /// Makes it, and writes the limits for a machine with `total` bytes of memory.
    ///
    /// # Errors
    /// [`StepError`].
    pub fn create(service: &str, limits: Limits, total: u64) -> Result<Self, StepError> {
        let path = Path::new(path::SERVICE_CGROUPS).join(service);
        fs::create_dir_all(&path).attempt("make", &path)?;
        let limit_bytes = limits.memory_max.bytes(total);
        let high = limits
            .memory_high
            .map_or_else(|| "max".to_owned(), |share| share.bytes(total).to_string());
        for (file, value) in [
            ("memory.max", limit_bytes.to_string()),
            ("memory.high", high),
            // Half a service is worse than none: it ends as a whole, and is started again.
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", limits.tasks.to_string()),
            ("cpu.weight", limits.cpu_weight.to_string()),
        ] {
            let _ = fs::write(path.join(file), value);
        }
        Ok(Self {
            name: format!(
                "/{}",
                path.strip_prefix("/sys/fs/cgroup").unwrap_or(&path).display()
            ),
            path,
            limit_bytes,
            at_start: MemoryEvents::default(),
        })
    }

    /// The file through which a process joins, opened; the count of killed processes starts here.
    pub fn open_for_start(&mut self) -> Option<OwnedFd> {
        self.at_start = self.events();
        let procs = OpenOptions::new()
            .write(true)
            .open(self.path.join("cgroup.procs"));
        procs.ok().map(OwnedFd::from)
    }

    /// Processes are left in it (zombies are not).
    pub fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "populated 1")
    }

    /// This process is in it, or below it.
    pub fn contains(&self, pid: Pid) -> bool {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        is_below(&text, &self.name)
    }

    /// Kills all that is in it. What moved to another cgroup lives on.
    pub fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// What is behind this end.
    pub fn explain(&self, ending: Ending) -> Ending {
        self.events().explain(self.at_start, ending, self.limit_bytes)
    }

    fn events(&self) -> MemoryEvents {
        let text = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        MemoryEvents::parse(&text)
    }
}

/// The machine's memory in bytes, as the kernel says it.
pub fn total_memory() -> u64 {
    use std::io::Read;
    let mut text = String::new();
    let read = File::open("/proc/meminfo").and_then(|file| file.take(4_096).read_to_string(&mut text));
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = read
        .ok()
        .and(line)
        .and_then(|line| line.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(1 << 20).saturating_mul(1 << 10)
}

/// The text of a process's `cgroup` file says that it is in this group or below it.
fn is_below(text: &str, name: &str) -> bool {
    text.lines()
        .filter_map(|line| line.strip_prefix("0::"))
        .filter_map(|group| group.strip_prefix(name))
        .any(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_is_in_its_own_group_and_those_above_and_in_no_other() {
        let text = "1:name=systemd:/beemesh/services/net\n0::/beemesh/services/agent/inner\n";
        assert!(is_below(text, "/beemesh/services/agent"));
        assert!(is_below(text, "/beemesh/services/agent/inner"));
        for other in [
            "/beemesh/services/age",
            "/beemesh/services/net",
            "/beemesh/services/agent/inner/x",
        ] {
            assert!(!is_below(text, other), "{other}");
        }
        // A process that has ended has no file.
        assert!(!is_below("", "/beemesh/services/agent"));
    }

    #[test]
    fn machine_has_memory() {
        assert!(total_memory() > 64 << 20);
    }
}
