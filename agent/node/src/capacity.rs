//! What this node can offer: processors, free memory, images, addresses.

use beemesh_agent_api::view::ImageView;
use beemesh_agent_sched::Capacity;
use std::collections::BTreeMap;

/// Memory that stays with the system and is never offered, in bytes.
const RESERVED: u64 = 128 << 20;

/// What the core is told.
pub fn look(
    images: Vec<ImageView>,
    addresses: Vec<String>,
    version: String,
    joined_after_ms: Option<u64>,
) -> Capacity {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Capacity {
        cpu_millis: 1000 * cpus as u64,
        memory_bytes: meminfo_bytes(&meminfo, "MemTotal")
            .unwrap_or(0)
            .saturating_sub(RESERVED),
        labels: BTreeMap::from([
            ("kubernetes.io/arch".into(), "amd64".into()),
            ("kubernetes.io/os".into(), "linux".into()),
        ]),
        images: images.into_iter().map(|image| image.name).collect(),
        addresses,
        version,
        joined_after_ms,
    }
}

/// A value of /proc/meminfo, in bytes.
fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_in_kibibytes() {
        let text = "MemTotal:        1004312 kB\nMemFree:          12 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal"), Some(1_004_312 * 1024));
        assert_eq!(meminfo_bytes(text, "MemAvailable"), None);
    }
}
