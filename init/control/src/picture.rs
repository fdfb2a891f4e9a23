//! What PID 1 has written about itself, read when somebody asks. PID 1 replaces its files as a whole, in memory: a read
//! never waits and never sees half a file. What is missing or malformed counts as nothing known.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use beemesh_init_api::{Changes, PhaseTime, ServiceStatus, path};
use serde::de::DeserializeOwned;

/// Where to read.
#[derive(Debug)]
pub struct Pictures {
    run: PathBuf,
}

impl Pictures {
    /// PID 1's runtime directory is `run`.
    pub fn new(run: PathBuf) -> Self {
        Self { run }
    }

    /// Becomes readable when something was written.
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn watch(&self) -> io::Result<OwnedFd> {
        let folder = self.place(path::SERVICES);
        beemesh_sys::watch_directory(folder.parent().unwrap_or(Path::new("/"))).map_err(io::Error::other)
    }

    /// All services, in the order of their start.
    pub fn services(&self) -> Vec<ServiceStatus> {
        self.read(path::SERVICES).unwrap_or_default()
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.services().into_iter().map(|service| service.name).collect()
    }

    /// One of them.
    pub fn service(&self, name: &str) -> Option<ServiceStatus> {
        self.services().into_iter().find(|service| service.name == name)
    }

    /// What changed last.
    pub fn changes(&self) -> Changes {
        self.read(path::CHANGES).unwrap_or(Changes {
            machine: "starting".to_owned(),
            latest: Vec::new(),
        })
    }

    /// The boot's phases.
    pub fn phases(&self) -> Vec<PhaseTime> {
        self.read(path::BOOT_PHASES).unwrap_or_default()
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.place(path)).ok()?).ok()
    }

    /// A path of `init/api`, below this runtime directory.
    fn place(&self, path: &str) -> PathBuf {
        self.run
            .join(Path::new(path).strip_prefix(path::RUN).unwrap_or(Path::new(path)))
    }
}

/// A number in a file of the service's cgroup, such as `memory.current`; 0 when it is not known.
pub fn cgroup_number(service: &str, file: &str) -> u64 {
    let path = Path::new(path::SERVICE_CGROUPS).join(service).join(file);
    fs::read_to_string(path)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}
