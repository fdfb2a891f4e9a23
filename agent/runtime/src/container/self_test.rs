//! A container of the system's own files, from start to end: shows that this machine can run pods before somebody
//! asks it to, and has read and loaded by then what the first pod of a boot would wait for.
//!
//! The pod is in nobody's list and sends no event. Invariant: nothing of it is left, whatever became of it.

use super::laps::Laps;
use super::{ContainerRuntime, Inner, Pod, chain, lock};
use crate::image::Image;
use crate::pod::{PodRequest, StartError};
use beemesh_agent_api::manifest::{Container, PodSpec, RestartPolicy};
use beemesh_agent_api::shim::Phase;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Its id: as long as a ULID, and none that a clock gives.
const POD_ID: &str = "000000000000000000SELFTEST";
/// What it runs, below the folder.
const PROGRAM: &str = "/beemesh-shim";
/// How long the program may take to end, once it runs.
const PATIENCE: Duration = Duration::from_secs(10);

impl ContainerRuntime {
    /// Runs `beemesh-shim self-test` of `folder` in a container with a network of its own; how long that took to run.
    ///
    /// # Errors
    /// What kept the container from running, in the words that a workload's owner would read.
    pub async fn self_test(&self, folder: PathBuf) -> Result<Duration, StartError> {
        let begun = Instant::now();
        let inner = &self.inner;
        let ip = lock(&inner.addresses)
            .allocate(POD_ID)
            .map_err(|err| StartError::Full(chain(&err)))?;
        let pod = Arc::new(Pod::new(request(), inner.place(POD_ID), ip));
        let outcome = inner.run_to_end(&pod, folder, begun).await;
        inner.prepare_shim();
        for error in inner.take_down(&pod).await {
            tracing::warn!(error, "clean-up after the self-test");
        }
        outcome
    }
}

impl Inner {
    async fn run_to_end(
        &self,
        pod: &Arc<Pod>,
        folder: PathBuf,
        begun: Instant,
    ) -> Result<Duration, StartError> {
        let mut laps = Laps::begin(begun);
        let mut link = self
            .bring_up(pod, || Ok(vec![Image::of_folder(folder)]), &mut laps)
            .await?;
        tracing::info!(laps = %laps, "the self-test was started");
        let took = begun.elapsed();
        let failed = |reason: String| StartError::Failed {
            what: "run a container",
            reason,
        };
        let end = async {
            let mut state = lock(&pod.now).state.clone();
            loop {
                match state.phase {
                    Phase::Succeeded => return Ok(took),
                    Phase::Failed => return Err(failed(format!("it ended with {:?}", state.containers))),
                    Phase::Pending | Phase::Running => {
                        state = link.next().await.map_err(|err| failed(chain(&err)))?;
                    }
                }
            }
        };
        match tokio::time::timeout(PATIENCE, end).await {
            Ok(outcome) => outcome,
            Err(_) => Err(failed(format!("it does not end within {} s", PATIENCE.as_secs()))),
        }
    }
}

fn request() -> PodRequest {
    PodRequest {
        pod_id: POD_ID.to_owned(),
        namespace: "beemesh".to_owned(),
        workload: "self-test".to_owned(),
        ordinal: 0,
        name: "self-test".to_owned(),
        spec: PodSpec {
            containers: vec![Container {
                name: "self-test".to_owned(),
                image: "self-test".to_owned(),
                command: Some(vec![PROGRAM.to_owned(), "self-test".to_owned()]),
                args: None,
                env: Vec::new(),
                working_dir: None,
                ports: Vec::new(),
                resources: Default::default(),
            }],
            restart_policy: RestartPolicy::Never,
            termination_grace_period_seconds: 1,
            node_selector: Default::default(),
            hostname: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_one_that_the_runtime_takes() {
        assert!(crate::pod::check(&request()).is_ok());
    }
}
