//! The machine's disks, as sysfs and their own first and last bytes show them. Reads only.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use beemesh_init_api::STATE_LABEL;

use crate::signature::{HEAD, Signature};

/// A smaller disk is not worth a state volume, in bytes.
pub const LEAST_BYTES: u64 = 64 << 20;
/// A blank disk has this much zeros at its start and at its end, in bytes.
const BLANK_BYTES: u64 = 1 << 20;
/// Disks and partitions that are looked at.
const DEVICES_LIMIT: usize = 256;

/// A disk or partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The node below `/dev`.
    pub node: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Built in: neither removable nor on USB.
    pub built_in: bool,
    /// It has no partitions and is none, or it is a partition that is named for the state volume.
    pub may_be_formatted: bool,
    /// What lies on it.
    pub signature: Signature,
}

impl Device {
    /// It may become the state volume: large enough, built in, and carries nothing at all (or our own interrupted
    /// attempt).
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let fits = self.built_in && self.may_be_formatted && self.size >= LEAST_BYTES;
        fits && match self.signature {
            Signature::Unfinished => true,
            Signature::Zeros => is_blank(&self.node, self.size),
            _ => false,
        }
    }
}

/// The names of all disks and partitions, sorted.
#[must_use]
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_disk(name))
        .take(DEVICES_LIMIT)
        .collect();
    names.sort();
    names
}

/// All disks and partitions that can be read now.
#[must_use]
pub fn list() -> Vec<Device> {
    names().iter().filter_map(|name| look_at(name)).collect()
}

fn is_disk(name: &str) -> bool {
    let others = ["loop", "ram", "dm-", "md", "zram", "nbd", "sr", "fd", "mtdblock"];
    !others.iter().any(|other| name.starts_with(other))
}

fn look_at(name: &str) -> Option<Device> {
    let place = fs::canonicalize(format!("/sys/class/block/{name}")).ok()?;
    let number = |path: PathBuf| {
        fs::read_to_string(path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    let size = number(place.join("size"))?.checked_mul(512)?;
    let is_partition = place.join("partition").exists();
    let disk = if is_partition {
        place.parent()?.to_owned()
    } else {
        place.clone()
    };
    let read_only = number(place.join("ro")) != Some(0);
    let removable = number(disk.join("removable")) != Some(0);
    let on_usb = place
        .components()
        .any(|part| part.as_os_str().as_encoded_bytes().starts_with(b"usb"));
    let named = fs::read_to_string(place.join("uevent")).is_ok_and(|text| {
        text.lines()
            .any(|line| line.strip_prefix("PARTNAME=") == Some(STATE_LABEL))
    });
    let node = Path::new("/dev").join(name);
    let mut head = vec![0; HEAD];
    File::open(&node).ok()?.read_exact(&mut head).ok()?;
    Some(Device {
        signature: Signature::of(&head),
        node,
        size,
        built_in: !read_only && !removable && !on_usb,
        may_be_formatted: if is_partition {
            named
        } else {
            !has_partitions(&place)
        },
    })
}

fn has_partitions(disk: &Path) -> bool {
    fs::read_dir(disk)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.path().join("partition").exists())
}

/// Zeros in the first and the last MiB. A disk that cannot be read is not blank.
fn is_blank(node: &Path, size: u64) -> bool {
    let zeros = |at: u64| -> std::io::Result<bool> {
        let mut file = File::open(node)?;
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        file.take(BLANK_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes.len() as u64 == BLANK_BYTES && bytes.iter().all(|b| *b == 0))
    };
    size >= 2 * BLANK_BYTES && zeros(0).unwrap_or(false) && zeros(size - BLANK_BYTES).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn disk(at: Option<u64>) -> (tempfile::NamedTempFile, Device) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let size = 80 << 20;
        file.as_file().set_len(size).unwrap();
        if let Some(at) = at {
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(b"x").unwrap();
        }
        let node = file.path().to_owned();
        let device = Device {
            node,
            size,
            built_in: true,
            may_be_formatted: true,
            signature: Signature::Zeros,
        };
        (file, device)
    }

    #[test]
    fn blank_disk_is_usable_unless_it_is_a_stick_small_or_partitioned() {
        let (_file, blank) = disk(None);
        assert!(blank.is_usable());
        assert!(
            !Device {
                built_in: false,
                ..blank.clone()
            }
            .is_usable()
        );
        assert!(
            !Device {
                size: LEAST_BYTES - 1,
                ..blank.clone()
            }
            .is_usable()
        );
        assert!(
            !Device {
                may_be_formatted: false,
                ..blank
            }
            .is_usable()
        );
    }

    #[test]
    fn single_byte_in_the_first_or_last_mebibyte_protects_a_disk() {
        for at in [4096, (1 << 20) - 1, 79 << 20, (80 << 20) - 1] {
            let (_file, device) = disk(Some(at));
            assert!(!device.is_usable(), "{at}");
        }
    }

    #[test]
    fn disk_that_cannot_be_read_is_not_blank() {
        assert!(!is_blank(Path::new("/nonexistent"), 80 << 20));
    }
}
