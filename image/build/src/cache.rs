//! Keeps downloads and intermediate results, by digest of what they were made from.
//!
//! Does not know what it keeps. Invariants: an entry that exists is complete (it is renamed into place); the cache
//! does not exceed its bound after [`Cache::trim`], and what the current run used is never evicted.

use anyhow::{Context, Result};
use beemesh_ids::Digest;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Largest size of the cache, bytes. One kernel unpacked is 400 MB; this holds a few of everything.
pub const MAX_BYTES: u64 = 4 << 30;

/// The current run alone is beyond the bound.
#[derive(Debug, thiserror::Error)]
#[error("this build needs {used} bytes of cache, more than its bound of {bound}")]
pub struct Overflow {
    used: u64,
    bound: u64,
}

/// A folder of entries `<kind>-<digest>`.
pub struct Cache {
    folder: PathBuf,
    bound: u64,
    used: RefCell<BTreeSet<PathBuf>>,
}

impl Cache {
    /// Opens or makes the folder. `bound` in bytes. Leftovers of runs that were cut off age like entries.
    pub fn open(folder: &Path, bound: u64) -> Result<Self> {
        let fail = || format!("failed to prepare the cache `{}`", folder.display());
        fs::create_dir_all(folder).with_context(fail)?;
        let folder = folder.canonicalize().with_context(fail)?;
        Ok(Self {
            folder,
            bound,
            used: RefCell::default(),
        })
    }

    /// A place for temporary files on the same file system.
    pub fn scratch(&self) -> Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix("tmp-")
            .tempdir_in(&self.folder)
            .context("failed to make a temporary folder")
    }

    /// The entry, made by `make` at the path it is given when it is not there.
    pub fn get(&self, kind: &str, key: &Digest, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.folder.join(format!("{kind}-{}", key.hex()));
        if !path.exists() {
            let scratch = self.scratch()?;
            let fresh = scratch.path().join("entry");
            make(&fresh)?;
            if let Err(error) = fs::rename(&fresh, &path)
                && !path.exists()
            {
                return Err(error).with_context(|| format!("failed to put `{}` in place", path.display()));
            }
        }
        // The time of last use decides what goes first; failing to set it costs a rebuild at worst.
        if let Ok(file) = fs::File::open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        self.used.borrow_mut().insert(path.clone());
        Ok(path)
    }

    /// Evicts what was used longest ago until the bound holds.
    pub fn trim(&self) -> Result<()> {
        let mut entries = Vec::new();
        let mut total = 0;
        for entry in fs::read_dir(&self.folder).context("failed to list the cache")? {
            let path = entry?.path();
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            let size = size_of_tree(&path);
            total += size;
            if !self.used.borrow().contains(&path) {
                entries.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), path, size));
            }
        }
        entries.sort();
        for (_, path, size) in entries {
            if total <= self.bound {
                break;
            }
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.with_context(|| format!("failed to remove `{}`", path.display()))?;
            total -= size;
        }
        if total > self.bound {
            return Err(Overflow {
                used: total,
                bound: self.bound,
            }
            .into());
        }
        Ok(())
    }
}

fn size_of_tree(path: &Path) -> u64 {
    let Ok(metadata) = path.symlink_metadata() else {
        return 0;
    };
    let below = match metadata.is_dir() {
        true => fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| size_of_tree(&e.path()))
            .sum(),
        false => 0,
    };
    metadata.len() + below
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, time::Duration};

    fn put(cache: &Cache, name: &str, bytes: usize) -> PathBuf {
        cache
            .get("x", &Digest::of(name.as_bytes()), |path| {
                Ok(fs::write(path, vec![0; bytes])?)
            })
            .unwrap()
    }

    #[test]
    fn an_entry_is_made_once_and_a_failure_leaves_none() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path(), MAX_BYTES).unwrap();
        let made = Cell::new(0);
        let key = Digest::of(b"key");
        assert!(
            cache
                .get("x", &key, |path| {
                    fs::write(path, "half")?;
                    anyhow::bail!("cut off")
                })
                .is_err()
        );
        for _ in 0..2 {
            let path = cache
                .get("x", &key, |path| {
                    made.set(made.get() + 1);
                    Ok(fs::write(path, "whole")?)
                })
                .unwrap();
            assert_eq!(fs::read(path).unwrap(), b"whole");
        }
        assert_eq!(made.get(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_longest_unused_goes_first_and_the_current_run_stays() {
        let folder = tempfile::tempdir().unwrap();
        let earlier = Cache::open(folder.path(), MAX_BYTES).unwrap();
        let old = put(&earlier, "old", 4000);
        let recent = put(&earlier, "recent", 4000);
        for (path, age) in [(&old, 200), (&recent, 100)] {
            let time = SystemTime::now() - Duration::from_secs(age);
            fs::File::open(path).unwrap().set_modified(time).unwrap();
        }
        let cache = Cache::open(folder.path(), 9000).unwrap();
        let used = put(&cache, "used", 4000);
        cache.trim().unwrap();
        assert!(!old.exists() && recent.exists() && used.exists());
        let tight = Cache { bound: 3000, ..cache };
        let error = tight.trim().unwrap_err();
        assert!(error.downcast_ref::<Overflow>().is_some(), "{error}");
        assert!(!recent.exists() && used.exists());
    }
}
