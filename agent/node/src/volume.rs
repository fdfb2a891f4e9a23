//! Waits for the state volume: init starts the agent beside the program that opens it.
//!
//! Decides nothing about the volume. Without a supervisor nothing is waited for. Invariant: the wait ends when the
//! volume is decided on or the program that decides has given up; a supervisor that hangs bounds it by its start limit.

use crate::start::Options;
use beemesh_init_api::{ServiceStatus, StateStatus, path};
use std::path::Path;
use std::time::Duration;

/// Between two looks at files in RAM, for the seconds that a disk takes.
const PAUSE: Duration = Duration::from_millis(20);
/// The service that opens the state volume.
const UNLOCK: &str = "unlock";

/// Returns once the state volume is what it will be in this boot.
pub async fn decided(options: &Options) {
    let status = options.run_path(path::STATE_STATUS);
    let services = options.run_path(path::SERVICES);
    while !status.exists() && !has_given_up(&services) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the state lies in RAM, as the program that opens the volume has said: it is gone after a power cut.
pub fn is_in_memory(options: &Options) -> bool {
    let status = std::fs::read(options.run_path(path::STATE_STATUS)).unwrap_or_default();
    serde_json::from_slice::<StateStatus>(&status).is_ok_and(|status| status.device.is_none())
}

/// Whether init has ended its tries; then the state lies where the agent finds its folder.
fn has_given_up(services: &Path) -> bool {
    let text = std::fs::read(services).unwrap_or_default();
    let services: Vec<ServiceStatus> = serde_json::from_slice(&text).unwrap_or_default();
    services
        .iter()
        .any(|service| service.name == UNLOCK && service.state == "ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn options(run: &Path) -> Options {
        Options::parse_from(["agent".as_ref(), "--run".as_ref(), run.as_os_str()])
    }

    fn services(state: &str) -> String {
        let unlock = ServiceStatus {
            name: UNLOCK.to_owned(),
            state: state.to_owned(),
            pid: None,
            restarts: 0,
            status: None,
            descriptors: Vec::new(),
            descriptors_refused: 0,
            kind: "oneshot".to_owned(),
            last_end: None,
        };
        serde_json::to_string(&[unlock]).unwrap()
    }

    async fn waits(run: &Path) -> bool {
        let limit = Duration::from_millis(200);
        tokio::time::timeout(limit, decided(&options(run))).await.is_err()
    }

    #[tokio::test]
    async fn waits_until_the_volume_is_decided_on_or_given_up() {
        let run = tempfile::tempdir().unwrap();
        let list = options(run.path()).run_path(path::SERVICES);
        std::fs::create_dir_all(list.parent().unwrap()).unwrap();
        assert!(waits(run.path()).await, "nothing is known yet");
        for state in ["starting", "running", "paused"] {
            std::fs::write(&list, services(state)).unwrap();
            assert!(waits(run.path()).await, "{state}");
        }
        std::fs::write(&list, services("ended")).unwrap();
        assert!(!waits(run.path()).await, "given up");
        std::fs::write(&list, services("running")).unwrap();
        std::fs::write(run.path().join("state.json"), "{}").unwrap();
        assert!(!waits(run.path()).await, "decided");
    }

    #[test]
    fn state_is_in_memory_only_where_it_was_said_that_it_is_on_no_disk() {
        let run = tempfile::tempdir().unwrap();
        let options = options(run.path());
        assert!(!is_in_memory(&options), "nobody has said anything");
        let says = |device: &str| {
            let text = format!(r#"{{"device":{device},"encrypted":false,"message":"m"}}"#);
            std::fs::write(run.path().join("state.json"), text).unwrap();
        };
        says("null");
        assert!(is_in_memory(&options));
        says(r#""/dev/vda""#);
        assert!(!is_in_memory(&options));
    }
}
