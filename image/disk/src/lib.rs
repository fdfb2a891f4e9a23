//! Where things lie on the USB disk: partitions, their identifiers and the geometry of their file systems.
//!
//! Pure: a plan is computed, nobody's disk is touched. A/B slots and boot counting are file names on the ESP and no
//! matter of the partition table.
//!
//! Invariant: partitions start and end on [`ALIGNMENT`], do not overlap, leave room for both GPTs, and are large
//! enough that their file system is FAT32 by its number of clusters, which is what decides it.

mod fat;
mod identity;

pub use fat::FatGeometry;
use uuid::{Uuid, uuid};

/// Logical sector size, bytes. USB sticks emulate it whatever their flash uses.
pub const SECTOR: u64 = 512;
/// Partitions start and end on a multiple of this, bytes: erase blocks of flash are no larger in practice.
pub const ALIGNMENT: u64 = 1 << 20;
/// Smallest partition, bytes: below it FAT32 does not have the 65,525 clusters that make it FAT32.
pub const MIN_PARTITION: u64 = 64 << 20;
/// Largest partition, bytes.
pub const MAX_PARTITION: u64 = 32 << 30;
/// FAT label of the EFI system partition.
pub const ESP_LABEL: FatLabel = FatLabel(*b"BEEMESH-ESP");
/// FAT label and GPT name of the partition that holds the join pack.
pub const JOIN_LABEL: FatLabel = FatLabel(*b"BEEMESHJOIN");

const ESP_TYPE: Uuid = uuid!("c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
/// "Basic data": what every desktop mounts when the stick is inserted.
const BASIC_DATA_TYPE: Uuid = uuid!("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7");

/// A FAT volume label: 11 bytes, upper case, padded with spaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FatLabel([u8; 11]);

impl FatLabel {
    /// The bytes as the file system stores them.
    pub fn bytes(self) -> [u8; 11] {
        self.0
    }

    /// The label without padding.
    pub fn text(self) -> String {
        String::from_utf8_lossy(&self.0).trim_end().to_owned()
    }
}

/// What a partition is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// EFI system partition: boot loader and UKIs.
    Esp,
    /// The join pack, written by an operator.
    Join,
}

/// Sizes that the caller chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsbSizes {
    /// EFI system partition, bytes. Holds three UKIs of 80 MB: two slots and the update being written.
    pub esp: u64,
    /// Join pack, bytes.
    pub join: u64,
}

impl Default for UsbSizes {
    /// 256 MiB each.
    fn default() -> Self {
        Self {
            esp: 256 << 20,
            join: 256 << 20,
        }
    }
}

/// One planned partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Number in the GPT, from 1.
    pub number: u32,
    /// What it is for.
    pub role: Role,
    /// GPT name.
    pub name: String,
    /// FAT label.
    pub label: FatLabel,
    /// FAT volume serial number.
    pub volume_id: u32,
    /// GPT type.
    pub type_guid: Uuid,
    /// GPT unique id.
    pub guid: Uuid,
    /// First sector.
    pub first_lba: u64,
    /// Last sector, inclusive.
    pub last_lba: u64,
    /// How its FAT32 is laid out.
    pub fat: FatGeometry,
}

impl Partition {
    /// Distance from the start of the disk, bytes.
    pub fn offset(&self) -> u64 {
        self.first_lba * SECTOR
    }

    /// Size, bytes.
    pub fn size(&self) -> u64 {
        (self.last_lba - self.first_lba + 1) * SECTOR
    }
}

/// The whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Id of the partition table.
    pub guid: Uuid,
    /// Size of the disk, bytes.
    pub size: u64,
    /// Partitions in order of number and of place.
    pub partitions: Vec<Partition>,
}

impl DiskPlan {
    /// The partition with that role.
    pub fn partition(&self, role: Role) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.role == role)
    }
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Outside the bounds.
    #[error("a {role:?} partition of {size} bytes: it must have {MIN_PARTITION} to {MAX_PARTITION}")]
    Size {
        /// Which partition.
        role: Role,
        /// What was asked for, bytes.
        size: u64,
    },
    /// Not a multiple of [`ALIGNMENT`].
    #[error("a {role:?} partition of {size} bytes: the size must be a multiple of {ALIGNMENT}")]
    Unaligned {
        /// Which partition.
        role: Role,
        /// What was asked for, bytes.
        size: u64,
    },
}

/// Plans the raw USB image. `seed` (a digest of the content) decides every identifier: the same content gives the
/// same bytes, two releases never share an id.
pub fn plan_usb(sizes: UsbSizes, seed: &[u8; 32]) -> Result<DiskPlan, PlanError> {
    let wanted = [
        (Role::Esp, sizes.esp, ESP_LABEL, ESP_TYPE),
        (Role::Join, sizes.join, JOIN_LABEL, BASIC_DATA_TYPE),
    ];
    let mut partitions = Vec::with_capacity(wanted.len());
    let mut start = ALIGNMENT;
    for ((role, size, label, type_guid), number) in wanted.into_iter().zip(1..) {
        if !(MIN_PARTITION..=MAX_PARTITION).contains(&size) {
            return Err(PlanError::Size { role, size });
        }
        if size % ALIGNMENT != 0 {
            return Err(PlanError::Unaligned { role, size });
        }
        let name = label.text();
        partitions.push(Partition {
            number,
            role,
            volume_id: identity::volume_id(seed, &name),
            guid: identity::guid(seed, &name),
            name,
            label,
            type_guid,
            first_lba: start / SECTOR,
            last_lba: (start + size) / SECTOR - 1,
            fat: FatGeometry::for_size(size),
        });
        start += size;
    }
    // The backup GPT (33 sectors) goes into the last alignment unit.
    Ok(DiskPlan {
        guid: identity::guid(seed, "disk"),
        size: start + ALIGNMENT,
        partitions,
    })
}

#[cfg(test)]
mod tests;
