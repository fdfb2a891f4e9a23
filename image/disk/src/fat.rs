//! Chooses FAT32 parameters for a partition.
//!
//! Invariant: the number of clusters makes the volume FAT32 ("FAT: General Overview of On-Disk Format", section
//! "FAT type determination": at least 65,525), and fits its table.

use crate::SECTOR;

/// FAT32 parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FatGeometry {
    /// Sectors in the volume.
    pub sectors: u32,
    /// Cluster size, bytes.
    pub cluster: u32,
}

/// More than the 65,525 that FAT32 needs: the tables take their share of the volume.
const CLUSTERS_AIMED_AT: u64 = 80_000;
const MAX_CLUSTER: u64 = 32 << 10;

impl FatGeometry {
    /// The largest cluster, from 512 bytes to 32 KiB, that leaves enough clusters. `size` in bytes.
    pub(crate) fn for_size(size: u64) -> Self {
        let mut cluster = SECTOR;
        while cluster < MAX_CLUSTER && size / (cluster * 2) >= CLUSTERS_AIMED_AT {
            cluster *= 2;
        }
        // Sizes are bounded by MAX_PARTITION: 32 GiB are 2^26 sectors.
        Self {
            sectors: (size / SECTOR) as u32,
            cluster: cluster as u32,
        }
    }
}
