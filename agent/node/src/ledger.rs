//! What the cell's core wants to keep, in a database on the state volume; and which pod belongs to which grant.
//!
//! On a full volume it frees the [`Reserve`] and goes on. Invariant: what [`Ledger::keep`] has taken survives a loss of power, all of one call or nothing of it.

use crate::journal::Journal;
use crate::reserve::{self, Reserve};
use crate::store::{Store, StoreError};
use beemesh_agent_api::WorkloadId;
use beemesh_agent_sched::{Persisted, Record, RecoveredPod, Stamp};
use beemesh_ids::Digest;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The database on the state volume.
const DATABASE: &str = "cell.redb";
/// Records as JSON, by kind and key.
const RECORDS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("records");
/// Memory for pages of the database, in bytes.
const CACHE: usize = 1 << 20;
/// Largest database that is copied into memory to be looked at, in bytes.
const COPY_LIMIT: u64 = 64 << 20;

/// Why the records could not be read or made durable.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database.
    #[error("failed to {action} `{path}`")]
    Database {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// A damaged database could not be moved away.
    #[error("failed to move the damaged `{path}` away")]
    MoveAway {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The folder of the pods' documents.
    #[error("failed to open the pods' documents")]
    Pods(#[source] StoreError),
    /// The volume was found not to be writable before the records were opened.
    #[error("nothing can be written")]
    Unwritable(#[source] Box<beemesh_agent_runtime::OpenError>),
    /// What was opened to be looked at is not written to.
    #[error("the records are only looked at")]
    ReadOnly,
    /// A record cannot be written as JSON.
    #[error("a record cannot be written down")]
    Encode(#[source] serde_json::Error),
}

/// A pod and its grant: what a started pod is recognised by after the agent was restarted.
#[derive(Debug, Serialize, Deserialize)]
struct PodDocument {
    pod_id: String,
    workload: WorkloadId,
    ordinal: u32,
    stamp: Stamp,
}

/// Records were made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// As always.
    Kept,
    /// The volume was full, and the reserve made room for them.
    FromReserve,
}

/// The cell's records, durable; and the pods of this boot, in memory that outlives the agent.
#[derive(Debug)]
pub struct Ledger {
    /// `None` after it failed and could not be opened again.
    database: Option<Database>,
    read_only: bool,
    reserve: Reserve,
    path: PathBuf,
    pods: Store,
}

impl Ledger {
    /// Opens the records in `state`, and the pods in `run`: a folder that is gone after a boot, as pods are.
    ///
    /// A database that cannot be read is moved away and announced: the others tell this node what it forgot, and
    /// `agent/sched/SPEC.md` ("Not guaranteed") says what that costs.
    pub fn open(state: &Path, run: &Path, journal: &Journal) -> Result<Self, LedgerError> {
        let path = state.join(DATABASE);
        let database = match create(&path) {
            Ok(database) => database,
            Err(error) if is_damage(&error) => {
                let message = format!("the records of the cell are damaged and begin anew: {error}");
                journal.announce("RecordsDamaged", "node/self", &message);
                let aside = path.with_extension("damaged");
                std::fs::rename(&path, aside).map_err(|source| LedgerError::MoveAway {
                    path: path.clone(),
                    source,
                })?;
                create(&path).map_err(|error| failed("create", &path, error))?
            }
            Err(error) => return Err(failed("open", &path, error)),
        };
        let pods = Store::open(run).map_err(LedgerError::Pods)?;
        Ok(Self {
            database: Some(database),
            read_only: false,
            reserve: Reserve::new(state),
            path,
            pods,
        })
    }

    /// The records as they stand on a disk that cannot be written: a copy in memory, which is repaired there if need be.
    /// What cannot be read is announced, and the records are none.
    pub fn open_read_only(state: &Path, run: &Path, journal: &Journal) -> Result<Self, LedgerError> {
        let path = state.join(DATABASE);
        let database = copy(&path).or_else(|error| {
            let message = format!("the records of the cell cannot be read: {error}");
            journal.announce("RecordsUnread", "node/self", &message);
            in_memory(&[])
        });
        Ok(Self {
            database: Some(database.map_err(|error| failed("read", &path, error))?),
            read_only: true,
            reserve: Reserve::new(state),
            path,
            pods: Store::open(run).map_err(LedgerError::Pods)?,
        })
    }

    /// Everything that was kept. A record that is not understood is announced and left out.
    pub fn load(&self, journal: &Journal) -> Result<Persisted, LedgerError> {
        let mut persisted = Persisted::default();
        let read = self.read(|name, value| match serde_json::from_slice(value) {
            Ok(record) => persisted.apply(record),
            Err(error) => {
                let message = format!("the record `{name}` is not understood and left out: {error}");
                journal.announce("RecordDamaged", "node/self", &message);
            }
        });
        read.map_err(|error| failed("read", &self.path, error))?;
        Ok(persisted)
    }

    fn read(&self, mut take: impl FnMut(&str, &[u8])) -> Result<(), redb::Error> {
        let transaction = opened(&self.database)?.begin_read()?;
        let table = match transaction.open_table(RECORDS) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
            other => other?,
        };
        for entry in table.iter()? {
            let (name, value) = entry?;
            take(name.value(), value.value());
        }
        Ok(())
    }

    /// What is freed on a full volume.
    pub fn reserve(&self) -> &Reserve {
        &self.reserve
    }

    /// Makes records durable, all of them by one commit; each replaces the earlier one of its kind and key. Where the
    /// volume is full, they are tried once more without the reserve.
    pub fn keep(&mut self, records: &[Record]) -> Result<Kept, LedgerError> {
        if self.read_only {
            return Err(LedgerError::ReadOnly);
        }
        let encoded = records.iter().map(|record| {
            let bytes = serde_json::to_vec(record).map_err(LedgerError::Encode)?;
            Ok((key_of(record), bytes))
        });
        let encoded = encoded.collect::<Result<Vec<_>, LedgerError>>()?;
        let error = match self.write(&encoded) {
            Ok(()) => return Ok(Kept::Kept),
            Err(error) if reserve::is_full(&error) && self.reserve.free() => error,
            Err(error) => return Err(failed("write", &self.path, error)),
        };
        tracing::warn!(%error, "the state volume is full: its reserve is freed");
        // A database that has failed once does nothing more until it is opened again.
        self.database = None;
        let database = create(&self.path).map_err(|error| failed("open", &self.path, error))?;
        self.database = Some(database);
        self.write(&encoded)
            .map_err(|error| failed("write", &self.path, error))?;
        Ok(Kept::FromReserve)
    }

    fn write(&self, encoded: &[(String, Vec<u8>)]) -> Result<(), redb::Error> {
        let transaction = opened(&self.database)?.begin_write()?;
        {
            let mut table = transaction.open_table(RECORDS)?;
            for (key, bytes) in encoded {
                table.insert(key.as_str(), bytes.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
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
        self.pods.save(&format!("{}.json", pod.pod_id), &document)
    }

    /// Forgets a pod that is gone. A document that stays behind is harmless: its pod does not run.
    pub fn forget_pod(&self, pod_id: &str) {
        if let Err(error) = self.pods.remove(&format!("{pod_id}.json")) {
            tracing::warn!(%error, pod_id, "failed to forget a pod");
        }
    }

    /// The running pods that are remembered, and the ids of those that are not.
    pub fn recall(&self, running: &[String]) -> (Vec<RecoveredPod>, Vec<String>) {
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for pod_id in running {
            match self.pods.load::<PodDocument>(&format!("{pod_id}.json")) {
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

fn opened(database: &Option<Database>) -> Result<&Database, redb::Error> {
    database.as_ref().ok_or(redb::Error::PreviousIo)
}

fn create(path: &Path) -> Result<Database, redb::Error> {
    Ok(Database::builder().set_cache_size(CACHE).create(path)?)
}

/// A database in memory with the content of this file.
fn copy(path: &Path) -> Result<Database, redb::Error> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(COPY_LIMIT + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > COPY_LIMIT {
        return Err(std::io::Error::from(std::io::ErrorKind::FileTooLarge).into());
    }
    in_memory(&bytes)
}

fn in_memory(content: &[u8]) -> Result<Database, redb::Error> {
    let memory = InMemoryBackend::new();
    if !content.is_empty() {
        let written = memory
            .set_len(content.len() as u64)
            .and_then(|()| memory.write(0, content));
        written.map_err(std::io::Error::other)?;
    }
    Ok(Database::builder()
        .set_cache_size(CACHE)
        .create_with_backend(memory)?)
}

/// The file is there and can be read, but is not what it was written as.
fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
        redb::Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
        _ => false,
    }
}

fn failed(action: &'static str, path: &Path, error: redb::Error) -> LedgerError {
    LedgerError::Database {
        action,
        path: path.to_owned(),
        source: Box::new(error),
    }
}

/// One key for each record that replaces another.
fn key_of(record: &Record) -> String {
    let hashed = |kind: &str, key: String| format!("{kind}-{}", Digest::of(key.as_bytes()).hex());
    match record {
        Record::Boot(_) => "boot".to_owned(),
        Record::Grant(grant) => hashed("grant", format!("{}/{}", grant.workload, grant.ordinal)),
        Record::Change(change, _) => hashed("change", change.workload.to_string()),
        Record::Member(peer, _) => format!("member-{peer}"),
        Record::Releases(_) => "releases".to_owned(),
        Record::Baseline(peer, _) => format!("baseline-{peer}"),
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

    fn journal() -> Journal {
        Journal::new("/nonexistent/console".into())
    }

    fn open(folder: &Path) -> Ledger {
        Ledger::open(folder, &folder.join("run"), &journal()).unwrap()
    }

    #[test]
    fn a_remembered_pod_is_recognised_and_a_stranger_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = open(folder.path());
        ledger.remember_pod(&pod("01A")).unwrap();
        let (known, unknown) = ledger.recall(&["01A".into(), "01B".into()]);
        assert_eq!((known, unknown), (vec![pod("01A")], vec!["01B".to_owned()]));
        ledger.forget_pod("01A");
        assert_eq!(ledger.recall(&["01A".into()]).1, vec!["01A".to_owned()]);
    }

    #[test]
    fn the_newest_record_of_each_key_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        assert_eq!(ledger.load(&journal()).unwrap(), Persisted::default());
        ledger.keep(&[Record::Boot(3), Record::Boot(4)]).unwrap();
        ledger.keep(&[]).unwrap();
        drop(ledger);
        assert_eq!(open(folder.path()).load(&journal()).unwrap().boot, 4);
    }

    fn fill(volume: &Path) {
        let mut file = std::fs::File::create(volume.join("filler")).unwrap();
        let error = std::io::copy(&mut std::io::repeat(7), &mut file).unwrap_err();
        assert!(reserve::is_full(&error), "{error}");
    }

    /// Records that need room of their own.
    fn members(from: u8) -> Vec<Record> {
        let member = |n: u8| {
            let info = beemesh_agent_sched::MemberInfo {
                name: format!("node-{n}").parse().unwrap(),
                assurance: beemesh_agent_api::view::Assurance::Low,
                voucher_id: "01KDVKFD000000000000000001".to_owned(),
                redeemed: 7,
                credential: vec![n; 16 << 10],
                key: beemesh_agent_sched::KeyInfo::default(),
            };
            Record::Member(crate::fixture::peer(n), info)
        };
        (from..from + 32).map(member).collect()
    }

    #[test]
    fn full_volume_takes_records_by_its_reserve_and_refuses_them_without_one() {
        crate::fixture::in_small_volume(32 << 20, |volume| {
            let mut ledger = open(volume);
            assert_eq!(ledger.keep(&[Record::Boot(3)]).unwrap(), Kept::Kept);
            assert!(ledger.reserve().take().unwrap());
            fill(volume);
            assert_eq!(ledger.keep(&members(0)).unwrap(), Kept::FromReserve);
            assert!(!ledger.reserve().free(), "it is gone");
            assert_eq!(ledger.keep(&[Record::Boot(4)]).unwrap(), Kept::Kept, "it goes on");
            fill(volume);
            let refused = (1..7).find_map(|n| ledger.keep(&members(n * 32)).err()).unwrap();
            assert!(reserve::is_full(&refused), "{refused:?}");
            std::fs::remove_file(volume.join("filler")).unwrap();
            drop(ledger);
            let mut ledger = open(volume);
            let persisted = ledger.load(&journal()).unwrap();
            assert_eq!(persisted.boot, 4);
            assert!(persisted.members.len() >= 32, "{}", persisted.members.len());
            assert!(ledger.reserve().take().unwrap(), "there is room for it again");
            assert_eq!(ledger.keep(&members(0)).unwrap(), Kept::Kept);
        });
    }

    #[test]
    fn records_on_a_volume_that_cannot_be_written_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let look = || Ledger::open_read_only(folder.path(), &folder.path().join("run"), &journal()).unwrap();
        assert_eq!(look().load(&journal()).unwrap(), Persisted::default());
        // Not closed: as the file is when the agent has died.
        let mut ledger = open(folder.path());
        ledger.keep(&[Record::Boot(3)]).unwrap();
        let path = folder.path().join(DATABASE);
        let before = std::fs::read(&path).unwrap();
        drop(ledger);
        std::fs::write(&path, &before).unwrap();
        let mut ledger = look();
        assert_eq!(ledger.load(&journal()).unwrap().boot, 3);
        let refused = ledger.keep(&[Record::Boot(4)]);
        assert!(matches!(refused, Err(LedgerError::ReadOnly)), "{refused:?}");
        drop(ledger);
        assert_eq!(
            std::fs::read(&path).unwrap(),
            before,
            "the file is left as it was"
        );
    }

    #[test]
    fn a_record_that_is_not_understood_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = open(folder.path());
        ledger.keep(&[Record::Boot(3)]).unwrap();
        let transaction = ledger.database.as_ref().unwrap().begin_write().unwrap();
        let insert = |name: &str| {
            let mut table = transaction.open_table(RECORDS).unwrap();
            table.insert(name, b"{".as_slice()).unwrap();
        };
        insert("grant-x");
        transaction.commit().unwrap();
        let journal = journal();
        assert_eq!(ledger.load(&journal).unwrap().boot, 3);
        assert_eq!(journal.subscribe().0[0].reason, "RecordDamaged");
    }

    #[test]
    fn a_damaged_database_is_moved_away_and_said() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).keep(&[Record::Boot(3)]).unwrap();
        let path = folder.path().join(DATABASE);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[..4096].fill(0xa5);
        std::fs::write(&path, bytes).unwrap();
        let journal = journal();
        let ledger = Ledger::open(folder.path(), &folder.path().join("run"), &journal).unwrap();
        assert_eq!(ledger.load(&journal).unwrap().boot, 0);
        assert_eq!(journal.subscribe().0[0].reason, "RecordsDamaged");
        assert!(path.with_extension("damaged").exists());
    }
}
