//! What operators want: the newest change of each workload, deletions included.
//!
//! It verifies no signature (the driver has). Invariant: of two changes to one workload the one with the greater ULID
//! stays, whatever the order in which they come; the digest is the same wherever the same changes are known.

use crate::model::Millis;
use crate::rendezvous::digest64;
use crate::wire::Need;
use beemesh_agent_api::{Change, ManifestError, WorkloadId, WorkloadSpec, check_workload};
use std::collections::BTreeMap;

/// Most workloads, deleted ones included; the oldest deletion makes room.
pub const MAX_CHANGES: usize = 4096;
/// Largest signed envelope, in bytes.
pub const MAX_ENVELOPE: usize = 512 * 1024;

/// Why a change is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// Its id orders changes, so it must be one.
    #[error("`{0}` is not a ULID of 26 upper-case characters")]
    Id(String),
    /// The specification is another workload's.
    #[error("the change is to `{workload}`, its specification is of `{spec}`")]
    Mismatch {
        /// What the change names.
        workload: WorkloadId,
        /// What the specification names.
        spec: WorkloadId,
    },
    /// A value that is not allowed.
    #[error("the specification is not valid")]
    Invalid(#[source] ManifestError),
    /// Too large.
    #[error("envelope of {0} bytes, at most {MAX_ENVELOPE} are allowed")]
    TooLarge(usize),
    /// Too many.
    #[error("{MAX_CHANGES} workloads are known already: delete one")]
    Full,
    /// A newer one is known.
    #[error("change `{known}` is newer: apply again")]
    Stale {
        /// The newer one.
        known: String,
    },
}

pub(crate) struct Entry {
    pub(crate) change: Change,
    pub(crate) envelope: Vec<u8>,
    pub(crate) template: u64,
    pub(crate) need: Need,
    pub(crate) accepted_at: Millis,
}

impl Entry {
    pub(crate) fn spec(&self) -> Option<&WorkloadSpec> {
        self.change.spec.as_ref()
    }
}

#[derive(Default)]
pub(crate) struct Desired {
    entries: BTreeMap<WorkloadId, Entry>,
    digest: u64,
}

/// The part of a specification that a pod is made from: where it differs, the pod is replaced.
pub(crate) fn template_of(spec: &WorkloadSpec) -> u64 {
    let mut bytes = Vec::new();
    // Writing to memory fails only where a type cannot be written at all; the digest of nothing is then the same for all.
    if ciborium::into_writer(&(&spec.labels, &spec.pod), &mut bytes).is_err() {
        bytes.clear();
    }
    digest64(&[&bytes])
}

/// What one pod of `spec` needs.
pub(crate) fn need_of(spec: &WorkloadSpec) -> Need {
    let (cpu, memory) = spec.pod.reserved();
    Need {
        cpu,
        memory,
        ports: spec.pod.host_ports().collect(),
        selector: spec.pod.node_selector.clone(),
        images: spec
            .pod
            .containers
            .iter()
            .map(|container| container.image.clone())
            .collect(),
    }
}

impl Desired {
    /// Whether the change would be taken.
    pub(crate) fn check(&self, change: &Change, envelope: &[u8]) -> Result<(), ChangeRefused> {
        let id = &change.id;
        if ulid::Ulid::from_string(id)
            .map(|ulid| ulid.to_string())
            .ok()
            .as_ref()
            != Some(id)
        {
            return Err(ChangeRefused::Id(id.chars().take(40).collect()));
        }
        if envelope.len() > MAX_ENVELOPE {
            return Err(ChangeRefused::TooLarge(envelope.len()));
        }
        if let Some(spec) = &change.spec {
            if spec.id != change.workload {
                let (workload, spec) = (change.workload.clone(), spec.id.clone());
                return Err(ChangeRefused::Mismatch { workload, spec });
            }
            check_workload(spec).map_err(ChangeRefused::Invalid)?;
        }
        match self.entries.get(&change.workload) {
            Some(known) if known.change.id > *id => Err(ChangeRefused::Stale {
                known: known.change.id.clone(),
            }),
            None if self.entries.len() >= MAX_CHANGES && self.oldest_deletion().is_none() => {
                Err(ChangeRefused::Full)
            }
            _ => Ok(()),
        }
    }

    /// Takes a change; `false` where it is known already.
    pub(crate) fn apply(
        &mut self,
        change: Change,
        envelope: Vec<u8>,
        at: Millis,
    ) -> Result<bool, ChangeRefused> {
        self.check(&change, &envelope)?;
        let workload = change.workload.clone();
        match self.entries.get(&workload) {
            Some(known) if known.change.id == change.id => return Ok(false),
            Some(known) => self.digest ^= digest_of(&known.change),
            None => {
                if self.entries.len() >= MAX_CHANGES
                    && let Some(oldest) = self.oldest_deletion()
                    && let Some(gone) = self.entries.remove(&oldest)
                {
                    self.digest ^= digest_of(&gone.change);
                }
            }
        }
        self.digest ^= digest_of(&change);
        let (template, need) = change
            .spec
            .as_ref()
            .map(|spec| (template_of(spec), need_of(spec)))
            .unwrap_or_default();
        self.entries.insert(
            workload,
            Entry {
                change,
                envelope,
                template,
                need,
                accepted_at: at,
            },
        );
        Ok(true)
    }

    fn oldest_deletion(&self) -> Option<WorkloadId> {
        let deletions = self.entries.values().filter(|entry| entry.change.spec.is_none());
        deletions
            .min_by(|a, b| a.change.id.cmp(&b.change.id))
            .map(|entry| entry.change.workload.clone())
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    pub(crate) fn get(&self, workload: &WorkloadId) -> Option<&Entry> {
        self.entries.get(workload)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&WorkloadId, &Entry)> {
        self.entries.iter()
    }

    /// Whether an ordinal is wanted; `None` where the workload is unknown.
    pub(crate) fn wants(&self, workload: &WorkloadId, ordinal: u32) -> Option<bool> {
        self.entries
            .get(workload)
            .map(|entry| entry.spec().is_some_and(|spec| ordinal < spec.replicas))
    }
}

fn digest_of(change: &Change) -> u64 {
    digest64(&[change.workload.to_string().as_bytes(), change.id.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_api::{WorkloadKind, parse_manifests};

    fn change(n: u64, name: &str, delete: bool) -> Change {
        let yaml = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: a, image: i}}]}}"
        );
        let spec = parse_manifests(&yaml).unwrap().remove(0);
        Change {
            id: ulid::Ulid::from_parts(n, 0).to_string(),
            fabric: "0".repeat(64).parse().unwrap(),
            workload: spec.id.clone(),
            spec: (!delete).then_some(spec),
        }
    }

    #[test]
    fn the_greater_ulid_stays_in_either_order() {
        let (old, new) = (change(1, "a", false), change(2, "a", true));
        let mut forward = Desired::default();
        assert_eq!(forward.apply(old.clone(), vec![], Millis(0)), Ok(true));
        assert_eq!(forward.apply(new.clone(), vec![], Millis(0)), Ok(true));
        assert_eq!(forward.apply(new.clone(), vec![], Millis(0)), Ok(false));
        let mut backward = Desired::default();
        assert_eq!(backward.apply(new.clone(), vec![], Millis(0)), Ok(true));
        assert_eq!(
            backward.apply(old, vec![], Millis(0)),
            Err(ChangeRefused::Stale {
                known: new.id.clone()
            })
        );
        assert_eq!(forward.digest(), backward.digest());
        assert_eq!(forward.wants(&new.workload, 0), Some(false));
    }

    #[test]
    fn malformed_changes_are_refused() {
        let desired = Desired::default();
        let good = change(1, "a", false);
        assert_eq!(desired.check(&good, &[]), Ok(()));
        for id in [
            "",
            "01",
            "7zzzzzzzzzzzzzzzzzzzzzzzzz",
            "ZZZZZZZZZZZZZZZZZZZZZZZZZZZ",
        ] {
            assert!(matches!(
                desired.check(
                    &Change {
                        id: id.into(),
                        ..good.clone()
                    },
                    &[]
                ),
                Err(ChangeRefused::Id(_))
            ));
        }
        let mut other = good.clone();
        other.workload.kind = WorkloadKind::Deployment;
        assert!(matches!(
            desired.check(&other, &[]),
            Err(ChangeRefused::Mismatch { .. })
        ));
        let mut invalid = good.clone();
        invalid.spec.as_mut().unwrap().pod.containers.clear();
        assert!(matches!(
            desired.check(&invalid, &[]),
            Err(ChangeRefused::Invalid(_))
        ));
        assert!(matches!(
            desired.check(&good, &vec![0; MAX_ENVELOPE + 1]),
            Err(ChangeRefused::TooLarge(_))
        ));
    }

    #[test]
    fn the_oldest_deletion_makes_room_and_nothing_else_does() {
        let mut desired = Desired::default();
        for n in 0..MAX_CHANGES {
            let change = change(n as u64, &format!("w{n}"), n == 7 || n == 9);
            assert_eq!(desired.apply(change, vec![], Millis(0)), Ok(true));
        }
        for (n, taken) in [(5000, true), (5001, true), (5002, false)] {
            let change = change(n, &format!("w{n}"), false);
            assert_eq!(desired.apply(change, vec![], Millis(0)).is_ok(), taken, "{n}");
        }
    }
}
