//! The pods of this box: starts and stops them as the core commands, and tells it what became of them.
//!
//! Decides nothing. Invariant: what takes long is spawned and comes back as an event.

use super::Driver;
use beemesh_agent_api::WorkloadSpec;
use beemesh_agent_runtime::{PodEvent, PodRequest, PodStatus};
use beemesh_agent_sched::{Event, Millis, PodReport, RecoveredPod};
use std::sync::Arc;
use tokio::sync::broadcast;

impl Driver {
    pub(super) fn start_pod(&mut self, pod: RecoveredPod, spec: WorkloadSpec, accepted_at: Millis) {
        if let Err(error) = self.ledger.remember_pod(&pod) {
            // It runs all the same; an agent that is restarted will not know it and stop it.
            tracing::error!(
                pod = pod.pod_id,
                error = crate::words(&error),
                "a pod is not remembered"
            );
        }
        let request = PodRequest {
            pod_id: pod.pod_id.clone(),
            namespace: spec.id.namespace.clone(),
            workload: spec.id.name.clone(),
            ordinal: pod.ordinal,
            name: spec.id.pod_name(pod.ordinal),
            spec: spec.pod,
        };
        self.waited
            .insert(pod.pod_id.clone(), self.now().since(accepted_at));
        let (runtime, results, journal) = (
            Arc::clone(&self.part.runtime),
            self.results.clone(),
            self.part.journal.clone(),
        );
        tokio::spawn(async move {
            let name = request.name.clone();
            if let Err(error) = runtime.start(request).await {
                journal.emit("PodFailed", &format!("pod/{name}"), &crate::words(&error));
                let _ = results.send(Event::PodGone { pod_id: pod.pod_id }).await;
            }
        });
    }

    pub(super) fn stop_pod(&self, pod_id: String, grace_seconds: u32) {
        let (runtime, results) = (Arc::clone(&self.part.runtime), self.results.clone());
        tokio::spawn(async move {
            if let Err(error) = runtime.stop(&pod_id, Some(grace_seconds)).await {
                tracing::warn!(%pod_id, error = crate::words(&error), "failed to stop a pod");
            }
            let _ = results.send(Event::PodGone { pod_id }).await;
        });
    }

    /// Takes up the pods of an earlier run of the agent; what nobody remembers is stopped.
    pub(super) async fn recover(&mut self) {
        let recovery = self.part.runtime.recover().await;
        for error in &recovery.errors {
            self.part.journal.emit("PodNotRecovered", "node/self", error);
        }
        let (pods, unknown) = self.ledger.recall(&recovery.restored);
        for pod_id in unknown {
            self.stop_pod(pod_id, 0);
        }
        self.step(Event::Recovered { pods });
        self.flush();
        self.look_at_all_pods().await;
    }

    async fn look_at_all_pods(&mut self) {
        for status in self.part.runtime.pods().await {
            self.pod_changed(status);
        }
    }

    pub(super) async fn pod(&mut self, event: Result<PodEvent, broadcast::error::RecvError>) {
        match event {
            Ok(PodEvent::Changed(status)) => self.pod_changed(*status),
            Ok(PodEvent::Removed { pod_id }) => self.pod_gone(pod_id),
            Err(broadcast::error::RecvError::Lagged(_)) => self.look_at_all_pods().await,
            Err(broadcast::error::RecvError::Closed) => {
                tracing::error!("the runtime sends no events any more")
            }
        }
    }

    fn pod_changed(&mut self, status: PodStatus) {
        let pod_id = status.request.pod_id.clone();
        let waited = self.waited.get(&pod_id).copied();
        let state = PodReport {
            phase: status.state.phase,
            ready: status.is_ready(),
            ip: status.ip.map(|ip| ip.to_string()),
            ports: status.ports,
            start_ms: status
                .start_ms
                .zip(waited)
                .map(|(start, waited)| start.saturating_add(waited)),
            containers: status.state.containers,
            reason: status.reason,
        };
        self.step(Event::Pod { pod_id, state });
    }

    pub(super) fn pod_gone(&mut self, pod_id: String) {
        self.ledger.forget_pod(&pod_id);
        self.waited.remove(&pod_id);
        self.step(Event::PodGone { pod_id });
    }
}
