//! What the cell's core wants to keep, and which pod belongs to which grant, as documents on the state volume.

use crate::journal::Journal;
use crate::store::{Store, StoreError};
use beemesh_agent_api::WorkloadId;
use beemesh_agent_sched::{Persisted, Record, RecoveredPod, Stamp};
use beemesh_ids::Digest;
use serde::{Deserialize, Serialize};

const RECORDS: &str = "cell";
const PODS: &str = "pods";

/// A pod and its grant: what a started pod is recognised by after the agent was restarted.
#[derive(Debug, Serialize, Deserialize)]
struct PodDocument {
    pod_id: String,
    workload: WorkloadId,
    ordinal: u32,
    stamp: Stamp,
}

/// The folder of the cell's documents.
#[derive(Debug, Clone)]
pub struct Ledger(Store);

impl Ledger {
    /// In `store`.
    pub fn new(store: Store) -> Self {
        Self(store)
    }

    /// Everything that was kept. A damaged document is announced and left out.
    pub fn load(&self, journal: &Journal) -> Result<Persisted, StoreError> {
        let (records, damaged) = self.0.load_folder(RECORDS)?;
        for error in damaged {
            journal.announce("RecordDamaged", "node/self", &crate::words(&error));
        }
        let mut persisted = Persisted::default();
        for record in records {
            persisted.apply(record);
        }
        Ok(persisted)
    }

    /// Makes a record durable; it replaces the earlier one of its kind and key.
    pub fn keep(&self, record: &Record) -> Result<(), StoreError> {
        self.0
            .save(&format!("{RECORDS}/{}.json", file_name(record)), record)
    }

    /// Remembers a pod that is about to be started.
    pub fn remember_pod(&self, pod: &RecoveredPod) -> Result<(), StoreError> {
        let RecoveredPod {
            pod_id,
            workload,
            ordinal,
            stamp,
        } = pod.clone();
        let document = PodDocument {
            pod_id,
            workload,
            ordinal,
            stamp,
        };
        self.0.save(&format!("{PODS}/{}.json", pod.pod_id), &document)
    }

    /// Forgets a pod that is gone. A document that stays behind is harmless: its pod does not run.
    pub fn forget_pod(&self, pod_id: &str) {
        if let Err(error) = self.0.remove(&format!("{PODS}/{pod_id}.json")) {
            tracing::warn!(%error, pod_id, "failed to forget a pod");
        }
    }

    /// The running pods that are remembered, and the ids of those that are not.
    pub fn recall(&self, running: &[String]) -> (Vec<RecoveredPod>, Vec<String>) {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for pod_id in running {
            match self.0.load::<PodDocument>(&format!("{PODS}/{pod_id}.json")) {
                Ok(Some(PodDocument {
                    pod_id,
                    workload,
                    ordinal,
                    stamp,
                })) => {
                    known.push(RecoveredPod {
                        pod_id,
                        workload,
                        ordinal,
                        stamp,
                    });
                }
                _ => unknown.push(pod_id.clone()),
            }
        }
        (known, unknown)
    }
}

/// One file for each kind and key.
fn file_name(record: &Record) -> String {
    let hashed = |kind: &str, key: String| format!("{kind}-{}", Digest::of(key.as_bytes()).hex());
    match record {
        Record::Boot(_) => "boot".to_owned(),
        Record::Grant(grant) => hashed("grant", format!("{}/{}", grant.workload, grant.ordinal)),
        Record::Change(change, _) => hashed("change", change.workload.to_string()),
        Record::Member(peer, _) => format!("member-{peer}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_api::WorkloadKind;

    fn pod(pod_id: &str) -> RecoveredPod {
        let workload = WorkloadId {
            namespace: "default".into(),
            kind: WorkloadKind::Pod,
            name: "web".into(),
        };
        RecoveredPod {
            pod_id: pod_id.into(),
            workload,
            ordinal: 0,
            stamp: Stamp {
                token: 7,
                template: 9,
                leased: false,
            },
        }
    }

    #[test]
    fn a_remembered_pod_is_recognised_and_a_stranger_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(Store::open(folder.path()).unwrap());
        ledger.remember_pod(&pod("01A")).unwrap();
        let (known, unknown) = ledger.recall(&["01A".into(), "01B".into()]);
        assert_eq!((known, unknown), (vec![pod("01A")], vec!["01B".to_owned()]));
        ledger.forget_pod("01A");
        assert_eq!(ledger.recall(&["01A".into()]).1, vec!["01A".to_owned()]);
    }

    #[test]
    fn the_greatest_boot_counter_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(Store::open(folder.path()).unwrap());
        ledger.keep(&Record::Boot(3)).unwrap();
        ledger.keep(&Record::Boot(4)).unwrap();
        let journal = Journal::new("/nonexistent/console".into());
        assert_eq!(ledger.load(&journal).unwrap().boot, 4);
    }
}
