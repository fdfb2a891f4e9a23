//! Block devices: what they are, and whether one may be overwritten. Writes nothing.
//!
//! Invariant: a device is writable only if neither it, nor its partitions, nor the disk it is a partition of is mounted,
//! used for swap or held by another driver (LUKS, LVM, RAID).

use crate::failure::Failure;
use anyhow::{Context as _, anyhow};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What the kernel says about a block device.
#[derive(Debug, PartialEq, Eq)]
pub struct Facts {
    /// Kernel name, e.g. `sdb`.
    pub name: String,
    /// Vendor and model, as far as known.
    pub model: String,
    /// Size in bytes.
    pub size: u64,
    /// Removable by its own account (sticks are, card readers are, USB disks are not).
    pub removable: bool,
    /// Why it may not be overwritten, in words; empty: it may.
    pub in_use: Vec<String>,
}

/// The places that tell: parameters so that tests can bring their own.
pub struct Kernel {
    /// `/sys`.
    pub sys: PathBuf,
    /// Content of `/proc/self/mountinfo`.
    pub mountinfo: String,
    /// Device numbers of swap areas.
    pub swaps: BTreeSet<String>,
}

impl Kernel {
    /// The running kernel.
    pub fn running() -> Result<Self, Failure> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("failed to read `{path}`"));
        let swaps = read("/proc/swaps")?
            .lines()
            .skip(1)
            .filter_map(|line| number(Path::new(line.split_whitespace().next()?)))
            .collect();
        Ok(Self {
            sys: "/sys".into(),
            mountinfo: read("/proc/self/mountinfo")?,
            swaps,
        })
    }

    /// What is known of the device with this number (`major:minor`).
    pub fn facts(&self, number: &str) -> Result<Facts, Failure> {
        let link = self.sys.join("dev/block").join(number);
        let dir =
            fs::canonicalize(&link).with_context(|| format!("the kernel knows no block device {number}"))?;
        let text = |path: &str| {
            fs::read_to_string(dir.join(path))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_partition = dir.join("partition").exists();
        let disk = if is_partition {
            dir.parent().unwrap_or(&dir)
        } else {
            &dir
        };
        let of_disk = |path: &str| {
            fs::read_to_string(disk.join(path))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let mut family = vec![dir.clone()];
        if is_partition {
            family.push(disk.to_owned());
        } else {
            let children =
                fs::read_dir(&dir).with_context(|| format!("failed to read `{}`", dir.display()))?;
            family.extend(
                children
                    .flatten()
                    .map(|c| c.path())
                    .filter(|path| path.join("partition").exists()),
            );
        }
        let in_use = family.iter().flat_map(|member| self.uses(member)).collect();
        let size = text("size").parse::<u64>().unwrap_or(0).saturating_mul(512);
        let model = format!("{} {}", of_disk("device/vendor"), of_disk("device/model"))
            .trim()
            .to_owned();
        Ok(Facts {
            name,
            model,
            size,
            removable: of_disk("removable") == "1",
            in_use,
        })
    }

    fn uses(&self, dir: &Path) -> Vec<String> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        let number = fs::read_to_string(dir.join("dev"))
            .unwrap_or_default()
            .trim()
            .to_owned();
        let mut uses = Vec::new();
        for line in self.mountinfo.lines() {
            // proc(5): id, parent, major:minor, root, mount point, …, `-`, type, source, options.
            let fields: Vec<_> = line.split(' ').collect();
            let source = fields
                .iter()
                .position(|f| *f == "-")
                .and_then(|at| fields.get(at + 2))
                .copied()
                .unwrap_or("");
            let mounted = fields.get(2) == Some(&number.as_str()) || source == format!("/dev/{name}");
            if let Some(place) = fields.get(4).filter(|_| mounted) {
                uses.push(format!("`{name}` is mounted at `{place}`"));
            }
        }
        if self.swaps.contains(&number) {
            uses.push(format!("`{name}` is swap space"));
        }
        for holder in fs::read_dir(dir.join("holders")).into_iter().flatten().flatten() {
            uses.push(format!(
                "`{name}` is used by `{}`",
                holder.file_name().to_string_lossy()
            ));
        }
        uses
    }
}

/// `major:minor` of a device file.
pub fn number(path: &Path) -> Option<String> {
    let device = fs::metadata(path).ok()?.rdev();
    Some(format!(
        "{}:{}",
        nix::sys::stat::major(device),
        nix::sys::stat::minor(device)
    ))
}

impl Facts {
    /// Refuses a device that is in use.
    pub fn check_unused(&self) -> Result<(), Failure> {
        match self.in_use.as_slice() {
            [] => Ok(()),
            uses => Err(Failure::Forbidden(anyhow!(
                "`{}` is in use and is not touched: {}; unmount it, or choose the right device",
                self.name,
                uses.join(", ")
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A disk `sdx` (8:16) with a partition `sdx1` (8:17) and a stick `sdy` (8:32).
    fn kernel(mountinfo: &str, swaps: &[&str]) -> (tempfile::TempDir, Kernel) {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for (path, number) in [
            ("block/sdx", "8:16"),
            ("block/sdx/sdx1", "8:17"),
            ("block/sdy", "8:32"),
        ] {
            write(&format!("{path}/dev"), number);
            write(&format!("{path}/size"), "2048\n");
            fs::create_dir_all(dir.path().join("dev/block")).unwrap();
            symlink(dir.path().join(path), dir.path().join("dev/block").join(number)).unwrap();
        }
        write("block/sdx/sdx1/partition", "1\n");
        write("block/sdx/device/model", "Flash  \n");
        write("block/sdx/removable", "1\n");
        let swaps = swaps.iter().map(|&s| s.to_owned()).collect();
        let kernel = Kernel {
            sys: dir.path().to_owned(),
            mountinfo: mountinfo.to_owned(),
            swaps,
        };
        (dir, kernel)
    }

    const MOUNT: &str = "29 1 8:17 / /home rw,relatime shared:1 - ext4 /dev/sdx1 rw\n";

    #[test]
    fn unused_stick_may_be_written() {
        let (_dir, kernel) = kernel(MOUNT, &[]);
        let facts = kernel.facts("8:32").unwrap();
        assert_eq!(
            (facts.name.as_str(), facts.size, facts.removable),
            ("sdy", 1 << 20, false)
        );
        assert!(facts.check_unused().is_ok());
    }

    #[test]
    fn disk_with_a_mounted_partition_is_refused() {
        let (_dir, kernel) = kernel(MOUNT, &[]);
        for number in ["8:16", "8:17"] {
            let facts = kernel.facts(number).unwrap();
            assert_eq!(facts.model, "Flash");
            let failure = facts.check_unused().unwrap_err();
            assert!(
                failure.to_string().contains("`sdx1` is mounted at `/home`"),
                "{failure}"
            );
            assert_eq!(failure.exit_code(), 3);
        }
    }

    #[test]
    fn mount_by_name_alone_is_seen() {
        // btrfs shows an anonymous device number.
        let (_dir, kernel) = kernel("29 1 0:33 / /data rw - btrfs /dev/sdx rw\n", &[]);
        assert!(kernel.facts("8:17").unwrap().check_unused().is_err());
    }

    #[test]
    fn swap_and_holders_are_refused() {
        let (_dir, kernel) = kernel("", &["8:17"]);
        assert!(kernel.facts("8:16").unwrap().check_unused().is_err());
        assert!(kernel.facts("8:32").unwrap().check_unused().is_ok());
        fs::create_dir_all(kernel.sys.join("block/sdy/holders/dm-0")).unwrap();
        assert!(
            kernel
                .facts("8:32")
                .unwrap()
                .check_unused()
                .unwrap_err()
                .to_string()
                .contains("dm-0")
        );
    }
}
