//! Loads kernel modules from the system's own directory, dependencies first. Runs in the initramfs and in children,
//! never in PID 1's event loop: a driver's probe may take long.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use beemesh_init_core::modules::{InvalidIndex, ModuleIndex};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::chain::{Attempt, StepError};

/// Why modules cannot be loaded at all.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// A file or system call.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The index files.
    #[error("the list of drivers is damaged")]
    Index(#[from] InvalidIndex),
}

/// Modules of the running kernel.
pub struct Loader {
    base: PathBuf,
    index: ModuleIndex,
    /// Paths that were tried: once is enough.
    tried: Mutex<BTreeSet<String>>,
}

impl Loader {
    /// Reads the index of the running kernel's modules. With `aliases`, devices and aliases can be asked for, not
    /// only names.
    ///
    /// # Errors
    /// [`LoaderError`].
    pub fn open(aliases: bool) -> Result<Self, LoaderError> {
        let kernel = nix::sys::utsname::uname().attempt("ask the kernel's version for", "/lib/modules")?;
        let base = Path::new("/lib/modules").join(kernel.release());
        let read = |name: &str| std::fs::read_to_string(base.join(name));
        let dep = read("modules.dep").attempt("read", base.join("modules.dep"))?;
        let (alias, soft) = match aliases {
            true => (
                read("modules.alias").unwrap_or_default(),
                read("modules.softdep").unwrap_or_default(),
            ),
            false => Default::default(),
        };
        Ok(Self {
            index: ModuleIndex::parse(&dep, &alias, &soft)?,
            base,
            tried: Mutex::default(),
        })
    }

    /// Loads what `request` (modalias, alias or name) needs. Failures are collected, not fatal: a machine with a
    /// device too many still boots. `Ok(n)`: n modules were tried.
    pub fn load(&self, request: &str) -> Result<usize, Vec<StepError>> {
        let (mut errors, mut count) = (Vec::new(), 0);
        for path in self.index.plan_load(request) {
            if !self
                .tried
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(path.to_owned())
            {
                continue;
            }
            count += 1;
            errors.extend(insert(&self.base.join(path)).err());
        }
        if errors.is_empty() { Ok(count) } else { Err(errors) }
    }
}

/// Loads one file; a module that is there already is fine, and so is a driver without its device.
fn insert(path: &Path) -> Result<(), StepError> {
    let file = File::open(path).attempt("open", path)?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        Err(Errno::EEXIST | Errno::ENODEV) | Ok(()) => Ok(()),
        other => other.attempt("load", path),
    }
}
