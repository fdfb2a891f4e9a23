//! `org.beemesh.Init1.Service`: one service, at `/org/beemesh/Init1/service/<name>`.

use std::sync::Arc;

use beemesh_init_api::{Ask, ServiceStatus};
use zbus::wire::{ObjectPath, OwnedObjectPath};
use zbus::{fdo, interface};

use crate::ask::{AskError, ask};
use crate::picture::{Pictures, cgroup_number};

/// The object of the service: what a path cannot hold is written as `_xx`, as systemd does.
pub fn object_path(name: &str) -> OwnedObjectPath {
    let escaped: String = name
        .bytes()
        .map(|byte| match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => char::from(byte).to_string(),
            other => format!("_{other:02x}"),
        })
        .collect();
    ObjectPath::try_from(format!("{}/service/{escaped}", crate::MACHINE))
        .map_or_else(|_| OwnedObjectPath::default(), Into::into)
}

/// The name, if it is that of a daemon and the machine does not go down.
///
/// # Errors
/// [`AskError`].
pub fn checked(pictures: &Pictures, name: &str) -> Result<String, AskError> {
    let service = pictures
        .service(name)
        .ok_or_else(|| AskError::NoSuchService(format!("there is no service `{name}`")))?;
    if service.kind != "daemon" {
        return Err(AskError::NotADaemon(format!(
            "`{name}` cannot be started or stopped: it is of the kind `{}`",
            service.kind
        )));
    }
    if pictures.changes().machine == "stopping" {
        return Err(AskError::GoingDown("the machine is going down".to_owned()));
    }
    Ok(service.name)
}

/// One service, for one connection.
pub struct Service {
    name: String,
    pictures: Arc<Pictures>,
}

impl Service {
    /// The service with this name.
    pub fn new(name: String, pictures: Arc<Pictures>) -> Self {
        Self { name, pictures }
    }

    fn now(&self) -> fdo::Result<ServiceStatus> {
        let known = self.pictures.service(&self.name);
        known.ok_or_else(|| fdo::Error::Failed("PID 1 does not say anything about it".to_owned()))
    }
}

#[interface(name = "org.beemesh.Init1.Service")]
impl Service {
    /// Its name.
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> &str {
        &self.name
    }

    /// `daemon`, `oneshot` or `on-demand`.
    #[zbus(property(emits_changed_signal = "const"))]
    fn kind(&self) -> fdo::Result<String> {
        Ok(self.now()?.kind)
    }

    /// `waiting`, `starting`, `running`, `ready`, `stopping`, `paused`, `stopped` or `ended`.
    #[zbus(property)]
    fn state(&self) -> fdo::Result<String> {
        Ok(self.now()?.state)
    }

    /// How it ended the last time, in words; empty if it has not.
    #[zbus(property)]
    fn last_end(&self) -> fdo::Result<String> {
        Ok(self.now()?.last_end.unwrap_or_default())
    }

    /// What it last said of itself.
    #[zbus(property)]
    fn status_text(&self) -> fdo::Result<String> {
        Ok(self.now()?.status.unwrap_or_default())
    }

    /// Its main process; 0 while there is none.
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> fdo::Result<u32> {
        Ok(self
            .now()?
            .pid
            .and_then(|pid| u32::try_from(pid).ok())
            .unwrap_or(0))
    }

    /// How often it was started again.
    #[zbus(property)]
    fn restarts(&self) -> fdo::Result<u64> {
        Ok(self.now()?.restarts)
    }

    /// Bytes of memory that it uses now.
    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_current(&self) -> u64 {
        cgroup_number(&self.name, "memory.current")
    }

    /// Bytes of memory beyond which it is ended.
    #[zbus(property(emits_changed_signal = "const"))]
    fn memory_max(&self) -> u64 {
        cgroup_number(&self.name, "memory.max")
    }

    /// Its processes and threads now.
    #[zbus(property(emits_changed_signal = "false"))]
    fn tasks_current(&self) -> u64 {
        cgroup_number(&self.name, "pids.current")
    }

    /// As `StartService` of the machine.
    async fn start(&self) -> Result<(), AskError> {
        ask(&Ask::Start(checked(&self.pictures, &self.name)?)).await
    }

    /// As `StopService` of the machine.
    async fn stop(&self) -> Result<(), AskError> {
        ask(&Ask::Stop(checked(&self.pictures, &self.name)?)).await
    }

    /// As `RestartService` of the machine.
    async fn restart(&self) -> Result<(), AskError> {
        ask(&Ask::Restart(checked(&self.pictures, &self.name)?)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_a_path_cannot_hold_is_escaped() {
        assert_eq!(object_path("net").as_str(), "/org/beemesh/Init1/service/net");
        assert_eq!(
            object_path("a-b.c").as_str(),
            "/org/beemesh/Init1/service/a_2db_2ec"
        );
    }
}
