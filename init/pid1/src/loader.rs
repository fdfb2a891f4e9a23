//! Loads kernel modules from the system's own directory, dependencies first. Runs in the initramfs and in children,
//! never in PID 1's event loop: a driver's probe may take long.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use beemesh_init_core::modules::{InvalidIndex, ModuleIndex, parameters};
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
    command_line: String,
    /// Whether a path was tried: once is enough.
    modules: Mutex<BTreeMap<String, Arc<Mutex<bool>>>>,
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
            index: ModuleIndex::parse(dep, alias, &soft)?,
            base,
            command_line: std::fs::read_to_string("/proc/cmdline").unwrap_or_default(),
            modules: Mutex::default(),
        })
    }

    /// Loads what `request` (modalias, alias or name) needs. Failures are collected, not fatal: a machine with a
    /// device too many still boots. `Ok(n)`: n modules were tried.
    pub fn load(&self, request: &str) -> Result<usize, Vec<StepError>> {
        let (mut errors, mut count) = (Vec::new(), 0);
        for path in self.index.plan_load(request) {
            // Held while the module loads: who needs it too waits, or its own module would miss the symbols.
            let state = Arc::clone(lock(&self.modules).entry(path.to_owned()).or_default());
            let mut tried = lock(&state);
            if !std::mem::replace(&mut *tried, true) {
                count += 1;
                errors.extend(insert(&self.base.join(path), &self.command_line).err());
            }
        }
        if errors.is_empty() { Ok(count) } else { Err(errors) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A driver that takes longer than this is named in the log, in milliseconds.
const SLOW_MS: u128 = 100;
/// How long a module that another loader has begun with is waited for; then the kernel is asked, which waits too.
const COMING_LIMIT: Duration = Duration::from_secs(10);

/// Loads one file; a module that is there already is fine, and so is a driver without its device.
fn insert(path: &Path, command_line: &str) -> Result<(), StepError> {
    // The kernel would read the file and check its signature before it finds that it has the module.
    let mut state = state_of(path);
    let until = Instant::now() + COMING_LIMIT;
    while state.as_deref() == Some("coming") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
        state = state_of(path);
    }
    if state.as_deref() == Some("live") {
        return Ok(());
    }
    let started = Instant::now();
    let file = File::open(path).attempt("open", path)?;
    // The kernel applies the command line to what it has built in only.
    let wanted = CString::new(parameters(command_line, &name_of(path))).unwrap_or_default();
    let result = finit_module(&file, &wanted, ModuleInitFlags::empty());
    let took = started.elapsed().as_millis();
    if took >= SLOW_MS {
        log(&format!("`{}` took {took} ms to load", path.display()));
    }
    match result {
        Err(Errno::EEXIST | Errno::ENODEV) | Ok(()) => Ok(()),
        other => other.attempt("load", path),
    }
}

fn name_of(path: &Path) -> String {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.unwrap_or_default().replace('-', "_")
}

/// What the kernel says of a module: `coming` while its driver starts, `live`, or nothing at all.
fn state_of(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/module/{}/initstate", name_of(path))).ok()?;
    Some(text.trim().to_owned())
}

/// One line, in one write: two threads print here.
pub fn log(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}
