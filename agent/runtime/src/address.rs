//! Which pod has which address of the node's own range, kept over restarts of the agent.
//!
//! It configures nothing. The range is 169.254.64.0/18: link-local, so it cannot collide with a site's network, and no other
//! node ever sees it (pods of different nodes do not talk through it). Invariants: no address is given twice; a freed one is
//! given again as late as possible, so that a late packet of an old pod does not meet a new one.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The node's end of every pod's link: the pods' default gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 64, 1);
const BASE: u32 = 0xA9FE_4000;
/// The first and the last offset that pods get: network, gateway and broadcast address are left out.
const FIRST: u32 = 2;
const LAST: u32 = (1 << 14) - 2;

/// Why there is no address.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// All are in use.
    #[error("all {count} addresses of the pod network are in use", count = LAST - FIRST + 1)]
    Exhausted,
    /// The allocation could not be kept.
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

#[derive(Debug, Default, Serialize, Deserialize)]
struct Table {
    next: u32,
    pods: BTreeMap<String, Ipv4Addr>,
}

/// The addresses of a node's pods.
#[derive(Debug)]
pub struct AddressPool {
    path: PathBuf,
    table: Table,
}

impl AddressPool {
    /// Reads the allocations kept at `path`; a missing file is an empty pool.
    pub fn load(path: &Path) -> Result<Self, AddressError> {
        let table = match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|err| AddressError::Io {
                what: "understand",
                path: path.into(),
                source: io::Error::new(io::ErrorKind::InvalidData, err),
            })?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => Table::default(),
            Err(source) => {
                return Err(AddressError::Io {
                    what: "read",
                    path: path.into(),
                    source,
                });
            }
        };
        Ok(Self {
            path: path.into(),
            table,
        })
    }

    /// The pod's address, a new one where it has none.
    pub fn allocate(&mut self, pod_id: &str) -> Result<Ipv4Addr, AddressError> {
        if let Some(ip) = self.table.pods.get(pod_id) {
            return Ok(*ip);
        }
        let used: BTreeSet<Ipv4Addr> = self.table.pods.values().copied().collect();
        let count = LAST - FIRST + 1;
        let start = self.table.next % count;
        let offset = (0..count)
            .map(|step| (start + step) % count)
            .find(|offset| !used.contains(&address(*offset)))
            .ok_or(AddressError::Exhausted)?;
        let ip = address(offset);
        self.table.next = (offset + 1) % count;
        self.table.pods.insert(pod_id.into(), ip);
        self.save()?;
        Ok(ip)
    }

    /// The pod's address, where it has one.
    pub fn get(&self, pod_id: &str) -> Option<Ipv4Addr> {
        self.table.pods.get(pod_id).copied()
    }

    /// Takes the pod's address back.
    pub fn free(&mut self, pod_id: &str) -> Result<(), AddressError> {
        if self.table.pods.remove(pod_id).is_some() {
            self.save()
        } else {
            Ok(())
        }
    }

    /// Takes back the addresses of all pods that are not in `alive`.
    pub fn retain(&mut self, alive: &BTreeSet<String>) -> Result<(), AddressError> {
        let before = self.table.pods.len();
        self.table.pods.retain(|pod, _| alive.contains(pod));
        if self.table.pods.len() == before {
            Ok(())
        } else {
            self.save()
        }
    }

    fn save(&self) -> Result<(), AddressError> {
        let failed = |source| AddressError::Io {
            what: "write",
            path: self.path.clone(),
            source,
        };
        let bytes = serde_json::to_vec(&self.table).map_err(|err| failed(err.into()))?;
        // Whole or not at all for a restarted agent; after a loss of power there are no pods.
        let fresh = self.path.with_extension("new");
        std::fs::write(&fresh, &bytes)
            .and_then(|()| std::fs::rename(&fresh, &self.path))
            .map_err(failed)
    }
}

fn address(offset: u32) -> Ipv4Addr {
    Ipv4Addr::from(BASE + FIRST + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_unique_kept_and_reused_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addresses.json");
        let mut pool = AddressPool::load(&path).unwrap();
        let first = pool.allocate("a").unwrap();
        assert_eq!(first, Ipv4Addr::new(169, 254, 64, 2));
        assert_eq!(pool.allocate("a").unwrap(), first);
        let second = pool.allocate("b").unwrap();
        assert_ne!(second, first);
        pool.free("a").unwrap();
        let mut again = AddressPool::load(&path).unwrap();
        assert_eq!((again.get("a"), again.get("b")), (None, Some(second)));
        assert_eq!(
            again.allocate("c").unwrap(),
            Ipv4Addr::new(169, 254, 64, 4),
            "not the freed one"
        );
    }

    #[test]
    fn a_full_range_is_an_error_and_a_freed_address_helps() {
        let dir = tempfile::tempdir().unwrap();
        let mut pool = AddressPool::load(&dir.path().join("addresses.json")).unwrap();
        for offset in 0..=LAST - FIRST {
            pool.table.pods.insert(format!("p{offset}"), address(offset));
        }
        assert!(matches!(pool.allocate("x"), Err(AddressError::Exhausted)));
        let freed = pool.get("p77").unwrap();
        pool.free("p77").unwrap();
        assert_eq!(pool.allocate("x").unwrap(), freed);
        assert!(
            pool.table
                .pods
                .values()
                .all(|ip| ip.octets()[..2] == [169, 254] && *ip != GATEWAY)
        );
    }
}
