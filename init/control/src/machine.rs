//! `org.beemesh.Init1`: the machine, and its services as a list.

use std::sync::Arc;

use beemesh_init_api::{Ask, ServiceChange, ServiceStatus};
use serde::Serialize;
use zbus::connection::Connection;
use zbus::object_server::SignalEmitter;
use zbus::wire::OwnedObjectPath;
use zbus::{Type, interface};

use crate::ask::{AskError, ask};
use crate::picture::{Pictures, cgroup_number};
use crate::service::{checked, object_path};
use crate::watchers::Watchers;

/// A row of `ListServices`.
#[derive(Debug, Serialize, Type)]
pub struct Row {
    name: String,
    kind: String,
    state: String,
    last_end: String,
    main_pid: u32,
    restarts: u64,
    memory: u64,
    status: String,
    path: OwnedObjectPath,
}

impl Row {
    fn of(service: ServiceStatus) -> Self {
        Self {
            memory: cgroup_number(&service.name, "memory.current"),
            path: object_path(&service.name),
            name: service.name,
            kind: service.kind,
            state: service.state,
            last_end: service.last_end.unwrap_or_default(),
            main_pid: service.pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
            restarts: service.restarts,
            status: service.status.unwrap_or_default(),
        }
    }
}

/// The machine, for one connection.
pub struct Machine {
    pictures: Arc<Pictures>,
    watchers: Arc<Watchers>,
    boot: String,
}

impl Machine {
    /// What PID 1 says in `pictures`.
    pub fn new(pictures: Arc<Pictures>, watchers: Arc<Watchers>) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            pictures,
            watchers,
            boot: boot.trim().to_owned(),
        }
    }

    /// The kernel's id of this boot.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    async fn down(&self, how: Ask) -> Result<(), AskError> {
        ask(&how).await
    }
}

#[interface(name = "org.beemesh.Init1")]
impl Machine {
    /// The release.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> String {
        let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix("VERSION_ID="));
        value.map_or_else(
            || env!("CARGO_PKG_VERSION").to_owned(),
            |v| v.trim_matches('"').to_owned(),
        )
    }

    /// The kernel's id of this boot.
    #[zbus(property(emits_changed_signal = "const"))]
    fn boot_id(&self) -> &str {
        &self.boot
    }

    /// `starting`, `running`, `degraded` (some service does not do what it should) or `stopping`.
    #[zbus(property)]
    fn state(&self) -> String {
        self.pictures.changes().machine
    }

    /// The phases of the boot, and when each was through, in milliseconds since the kernel's start.
    #[zbus(property(emits_changed_signal = "const"))]
    fn boot_phases(&self) -> Vec<(String, u64)> {
        let phases = self.pictures.phases().into_iter();
        phases.map(|phase| (phase.phase, phase.ended_ms)).collect()
    }

    /// All services, in the order of their start: name, kind, state, last end, main process, restarts, bytes of memory,
    /// what it says of itself, object.
    #[zbus(out_args("services"))]
    fn list_services(&self) -> Vec<Row> {
        self.pictures.services().into_iter().map(Row::of).collect()
    }

    /// The object of a service.
    #[zbus(out_args("service"))]
    fn get_service(&self, name: &str) -> Result<OwnedObjectPath, AskError> {
        match self.pictures.service(name) {
            Some(_) => Ok(object_path(name)),
            None => Err(AskError::NoSuchService(format!("there is no service `{name}`"))),
        }
    }

    /// Starts a daemon that was stopped. Like the two calls below it comes back when PID 1 has taken the request.
    async fn start_service(&self, name: &str) -> Result<(), AskError> {
        ask(&Ask::Start(checked(&self.pictures, name)?)).await
    }

    /// Stops a daemon until it is started again, or until the next boot.
    async fn stop_service(&self, name: &str) -> Result<(), AskError> {
        ask(&Ask::Stop(checked(&self.pictures, name)?)).await
    }

    /// Ends a daemon, if it runs, and starts it again.
    async fn restart_service(&self, name: &str) -> Result<(), AskError> {
        ask(&Ask::Restart(checked(&self.pictures, name)?)).await
    }

    /// Stops everything in order and switches the machine off.
    async fn power_off(&self) -> Result<(), AskError> {
        self.down(Ask::PowerOff).await
    }

    /// Stops everything in order and starts the machine again.
    async fn reboot(&self) -> Result<(), AskError> {
        self.down(Ask::Reboot).await
    }

    /// Stops everything in order and leaves the machine on.
    async fn halt(&self) -> Result<(), AskError> {
        self.down(Ask::Halt).await
    }

    /// From now on this connection gets signals. A peer that has asked by `AddMatch` gets them already.
    async fn subscribe(&self, #[zbus(connection)] connection: &Connection) {
        self.watchers.add(connection);
    }

    /// A service came into another state. `number` rises by one: who sees a gap has missed something.
    #[zbus(signal)]
    pub async fn service_changed(
        emitter: &SignalEmitter<'_>,
        number: u64,
        name: &str,
        state: &str,
        last_end: &str,
        at_ms: u64,
    ) -> zbus::Result<()>;
}

/// Tells of one change.
///
/// # Errors
/// When the peer is gone.
pub async fn tell(emitter: &SignalEmitter<'_>, change: &ServiceChange) -> zbus::Result<()> {
    let end = change.last_end.as_deref().unwrap_or_default();
    Machine::service_changed(
        emitter,
        change.number,
        &change.name,
        &change.state,
        end,
        change.at_ms,
    )
    .await
}
