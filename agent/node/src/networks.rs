//! The network settings of this box over time: what the pack says, what an operator has confirmed since, what is tried.
//!
//! Drives the pure `Trials`: the confirmed settings are a document on the state volume, a trial is one in RAM that
//! `beemesh-net` ends by itself. Invariant: a change does something only if an operator of this fabric has signed it for
//! this node, and if it is newer than the last one that did.

use crate::clock;
use crate::journal::Journal;
use crate::rest::Refused;
use crate::start::Options;
use crate::store::{Store, StoreError, write_atomic};
use beemesh_agent_api::network::{NetworkAction, NetworkChange, NetworkView, TimeView, TrialView};
use beemesh_ids::NodeName;
use beemesh_init_api::trial::{TrialCommand, TrialEvent, TrialRefusal, Trials};
use beemesh_init_api::{NetworkConfig, NetworkStatus, path};
use beemesh_joinpack_format::{Envelope, Refusal, RootChain, Source, limits};
use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Name of the document on the state volume.
const DOCUMENT: &str = "network.json";
/// How often it is looked whether a trial is over; `beemesh-net` does not wait for it.
const LOOK: Duration = Duration::from_millis(500);
/// Largest document of the runtime directory that is read, in bytes.
const RUN_LIMIT: u64 = 1 << 20;

/// What is remembered over reboots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Document {
    /// Id of the last change that was taken.
    last: String,
    /// Settings that an operator has confirmed; they count until a pack brings other ones.
    confirmed: Option<NetworkConfig>,
}

/// Why settings were not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The state volume.
    #[error("failed to keep the network settings")]
    Keep(#[source] StoreError),
    /// The runtime directory.
    #[error("failed to write `{0}`")]
    Write(PathBuf, #[source] io::Error),
}

struct Inner {
    store: Store,
    journal: Journal,
    document: Document,
    pack: NetworkConfig,
    trials: Trials,
    config: PathBuf,
    trial: PathBuf,
    status: PathBuf,
    time: PathBuf,
}

/// Cheap to clone; all clones share one state.
#[derive(Clone)]
pub struct Networks(Arc<Mutex<Inner>>);

impl Networks {
    /// Takes up what an earlier run of the agent, or an earlier boot, has left. Hands nothing over yet.
    pub fn open(options: &Options, store: Store, journal: Journal) -> Self {
        let document = store.load(DOCUMENT).unwrap_or_else(|error| {
            // The pack's settings are good enough to be reached again.
            journal.announce("NetworkSettingsDamaged", "node/self", &crate::words(&error));
            None
        });
        let trial = options.run_path(path::NETWORK_TRIAL);
        Self(Arc::new(Mutex::new(Inner {
            store,
            journal,
            document: document.unwrap_or_default(),
            pack: NetworkConfig::default(),
            trials: Trials::resume(read(&trial)),
            config: options.run_path(path::NETWORK),
            trial,
            status: options.run_path(path::NETWORK_STATUS),
            time: options.run_path(path::TIME_STATUS),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over the settings of a box that is a member already.
    ///
    /// # Errors
    /// [`HandOverError`].
    pub fn start(&self, pack: &NetworkConfig) -> Result<(), HandOverError> {
        let mut inner = self.lock();
        inner.pack.clone_from(pack);
        inner.hand_over()
    }

    /// A pack was applied. If it brings other settings than the one before, they count, and no longer what an operator
    /// has confirmed.
    ///
    /// # Errors
    /// [`HandOverError`].
    pub fn take_from_pack(
        &self,
        pack: &NetworkConfig,
        before: Option<&NetworkConfig>,
    ) -> Result<(), HandOverError> {
        let mut inner = self.lock();
        if before != Some(pack) && inner.document.confirmed.is_some() {
            let document = Document {
                confirmed: None,
                ..inner.document.clone()
            };
            inner.keep(document)?;
        }
        inner.pack.clone_from(pack);
        inner.hand_over()
    }

    /// What an operator sees.
    pub fn view(&self, node: Option<NodeName>) -> NetworkView {
        let (inner, now) = (self.lock(), clock::boot_ms());
        let trial = inner.trials.running(now);
        NetworkView {
            node,
            status: read::<NetworkStatus>(&inner.status).unwrap_or_default(),
            confirmed: inner.confirmed().clone(),
            trial: trial.map(|trial| TrialView {
                id: trial.id.clone(),
                remaining_ms: trial.remaining_ms(now).unwrap_or(0),
                config: trial.config.clone(),
            }),
        }
    }

    /// The time, and where it is from.
    pub fn time(&self) -> TimeView {
        TimeView {
            now_ms: clock::unix_ms(),
            up_ms: clock::boot_ms(),
            status: read(&self.lock().time),
        }
    }

    /// Takes a signed change.
    ///
    /// # Errors
    /// A refusal with its HTTP status; nothing has changed then.
    pub fn change(&self, envelope: &[u8], roots: &RootChain, node: &NodeName) -> Result<(), Refused> {
        let change = verify(envelope, roots)?;
        if change.node != *node {
            let error = format!("the change is meant for node `{}`, this is `{node}`", change.node);
            return Err(Refused::new(StatusCode::CONFLICT, error));
        }
        self.lock().take(change)
    }

    /// Ends trials whose time is over, for good.
    pub async fn take_back_trials(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let mut inner = self.lock();
            // A tick is never refused; a document that cannot be removed is in use no longer anyway.
            let commands = inner.trials.step(clock::boot_ms(), TrialEvent::Tick);
            if let Ok(commands) = commands
                && let Err(error) = inner.carry_out(commands)
            {
                tracing::warn!(error = crate::words(&error), "failed to end a trial");
            }
        }
    }
}

impl Inner {
    fn confirmed(&self) -> &NetworkConfig {
        self.document.confirmed.as_ref().unwrap_or(&self.pack)
    }

    fn hand_over(&self) -> Result<(), HandOverError> {
        write(&self.config, self.confirmed())
    }

    fn keep(&mut self, document: Document) -> Result<(), HandOverError> {
        self.store
            .save(DOCUMENT, &document)
            .map_err(HandOverError::Keep)?;
        self.document = document;
        Ok(())
    }

    fn take(&mut self, change: NetworkChange) -> Result<(), Refused> {
        let bad = |error: String| Refused::new(StatusCode::BAD_REQUEST, error);
        if change.id.parse::<ulid::Ulid>().is_err() {
            return Err(bad(format!("`{}` is not the id of a change", change.id)));
        }
        if change.id <= self.document.last {
            let error = "a newer change of this node's network is known: is this machine's clock behind?";
            return Err(Refused::new(StatusCode::CONFLICT, error));
        }
        let (id, event) = match change.action {
            NetworkAction::Try { config, for_ms } => {
                config.check().map_err(|error| bad(crate::words(&error)))?;
                let id = change.id.clone();
                (change.id, TrialEvent::Try { id, config, for_ms })
            }
            NetworkAction::Confirm { trial } => (change.id, TrialEvent::Confirm { trial }),
        };
        let before = self.trials.clone();
        let commands = self.trials.step(clock::boot_ms(), event).map_err(|refusal| {
            let status = match refusal {
                TrialRefusal::Duration(_) => StatusCode::BAD_REQUEST,
                TrialRefusal::NoTrial | TrialRefusal::OtherTrial(_) => StatusCode::CONFLICT,
            };
            Refused::new(status, refusal.to_string())
        })?;
        let document = Document {
            last: id,
            ..self.document.clone()
        };
        let done = self.keep(document).and_then(|()| self.carry_out(commands));
        done.map_err(|error| {
            self.trials = before;
            Refused::new(StatusCode::INTERNAL_SERVER_ERROR, crate::words(&error))
        })
    }

    fn carry_out(&mut self, commands: Vec<TrialCommand>) -> Result<(), HandOverError> {
        for command in commands {
            match command {
                TrialCommand::WriteTrial(trial) => {
                    write(&self.trial, &trial)?;
                    let message =
                        "new network settings are tried: they are taken back unless they are confirmed";
                    self.journal.announce("NetworkTried", "node/self", message);
                }
                TrialCommand::Keep(config) => {
                    let document = Document {
                        confirmed: Some(config),
                        ..self.document.clone()
                    };
                    self.keep(document)?;
                    self.hand_over()?;
                    self.journal.announce(
                        "NetworkConfirmed",
                        "node/self",
                        "the network settings were confirmed",
                    );
                }
                TrialCommand::RemoveTrial => match std::fs::remove_file(&self.trial) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(HandOverError::Write(self.trial.clone(), error));
                    }
                    _ => {}
                },
                TrialCommand::TakenBack(_) => {
                    let message = "the network settings were not confirmed and have been taken back";
                    self.journal.announce("NetworkTakenBack", "node/self", message);
                }
            }
        }
        Ok(())
    }
}

/// The change in an envelope that an operator of this fabric signed.
fn verify(envelope: &[u8], roots: &RootChain) -> Result<NetworkChange, Refused> {
    let refused = |error: String| Refused::new(StatusCode::FORBIDDEN, error);
    let envelope =
        Envelope::parse(envelope, limits::MANIFEST_LIMIT).map_err(|refusal| refused(refusal.to_string()))?;
    roots
        .accept(&envelope, Source::Person)
        .map_err(|refusal| match refusal {
            Refusal::Malformed { .. } => Refused::new(StatusCode::BAD_REQUEST, refusal.to_string()),
            refusal => refused(refusal.to_string()),
        })
}

fn write<T: Serialize>(path: &Path, document: &T) -> Result<(), HandOverError> {
    let failed = |error| HandOverError::Write(path.to_owned(), error);
    let bytes = serde_json::to_vec_pretty(document).map_err(|error| failed(io::Error::other(error)))?;
    write_atomic(path, &bytes, 0o644).map_err(failed)
}

/// A document of the runtime directory; `None` where it is missing or damaged.
fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).ok()?;
    file.take(RUN_LIMIT).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_api::network::NETWORK_PAYLOAD_TYPE;
    use beemesh_init_api::NetworkTrial;
    use beemesh_joinpack_format::{Role, RoleSpec, Root, SecretKey, Timestamp};
    use clap::Parser as _;

    struct Box {
        folder: tempfile::TempDir,
        key: SecretKey,
        roots: RootChain,
    }

    fn config(number: u8) -> NetworkConfig {
        NetworkConfig {
            ntp: vec![format!("10.0.0.{number}")],
            ..NetworkConfig::default()
        }
    }

    fn id(number: u8) -> String {
        format!("01J0000000000000000000000{number}")
    }

    /// What `beemesh-net` uses, by the documents alone.
    fn in_use(networks: &Networks) -> NetworkConfig {
        let inner = networks.lock();
        let confirmed: NetworkConfig = read(&inner.config).unwrap_or_default();
        let trial: Option<NetworkTrial> = read(&inner.trial);
        beemesh_init_api::trial::in_use(&confirmed, trial.as_ref(), clock::boot_ms())
            .0
            .clone()
    }

    impl Box {
        fn new() -> Self {
            let key = SecretKey::from_bytes([7; 32]);
            let spec = || RoleSpec {
                keyids: vec![key.public().key_id()],
                threshold: 1,
                ..RoleSpec::default()
            };
            let root = Root {
                fabric_name: "shop".into(),
                version: 1,
                issued: Timestamp(1_767_323_045),
                keys: [(key.public().key_id(), key.public())].into(),
                roles: Role::ALL.map(|role| (role, spec())).into(),
                nonce: "00112233445566778899aabbccddeeff".into(),
            };
            let roots = RootChain::bootstrap(&[root.sign(&[&key]).unwrap()]).unwrap();
            let folder = tempfile::tempdir().unwrap();
            Self { folder, key, roots }
        }

        /// The agent as it starts.
        fn networks(&self) -> Networks {
            let at = self.folder.path().display();
            let line = [
                "beemesh-agent",
                "--state",
                &format!("{at}/state"),
                "--run",
                &format!("{at}/run"),
            ];
            let options = Options::parse_from(line);
            let store = Store::open(&options.state).unwrap();
            let networks = Networks::open(&options, store, Journal::new("/nonexistent/console".into()));
            networks.start(&config(1)).unwrap();
            networks
        }

        fn reboot(&self) {
            std::fs::remove_dir_all(self.folder.path().join("run")).unwrap();
        }

        fn change(&self, number: u8, action: NetworkAction) -> NetworkChange {
            NetworkChange {
                id: id(number),
                fabric: self.roots.fabric_id().clone(),
                node: "till".parse().unwrap(),
                action,
            }
        }

        fn send(&self, networks: &Networks, change: &NetworkChange) -> Result<(), Refused> {
            let payload = serde_json::to_vec(change).unwrap();
            let envelope = Envelope::sign(NETWORK_PAYLOAD_TYPE, &payload, &[&self.key]).to_json();
            networks.change(&envelope, &self.roots, &"till".parse().unwrap())
        }
    }

    fn try_config(number: u8) -> NetworkAction {
        NetworkAction::Try {
            config: config(number),
            for_ms: 60_000,
        }
    }

    fn confirm(number: u8) -> NetworkAction {
        NetworkAction::Confirm { trial: id(number) }
    }

    #[test]
    fn trial_survives_the_agent_and_ends_with_a_reboot() {
        let on = Box::new();
        let networks = on.networks();
        assert_eq!(in_use(&networks), config(1));
        on.send(&networks, &on.change(1, try_config(2))).unwrap();
        assert_eq!(in_use(&networks), config(2));
        let again = on.networks();
        assert_eq!(in_use(&again), config(2));
        assert_eq!(again.view(None).trial.map(|trial| trial.id), Some(id(1)));
        on.reboot();
        let rebooted = on.networks();
        assert_eq!((in_use(&rebooted), rebooted.view(None).trial), (config(1), None));
        let late = on.send(&rebooted, &on.change(2, confirm(1))).unwrap_err();
        assert_eq!(late.status, StatusCode::CONFLICT);
    }

    #[test]
    fn confirmed_settings_survive_a_reboot_and_give_way_to_those_of_a_new_pack() {
        let on = Box::new();
        let networks = on.networks();
        on.send(&networks, &on.change(1, try_config(2))).unwrap();
        on.send(&networks, &on.change(2, confirm(1))).unwrap();
        assert_eq!(
            (in_use(&networks), networks.view(None).confirmed),
            (config(2), config(2))
        );
        on.reboot();
        let networks = on.networks();
        assert_eq!(in_use(&networks), config(2));
        networks.take_from_pack(&config(1), Some(&config(1))).unwrap();
        assert_eq!(
            in_use(&networks),
            config(2),
            "the same pack again brings nothing new"
        );
        networks.take_from_pack(&config(3), Some(&config(1))).unwrap();
        assert_eq!(in_use(&networks), config(3));
    }

    #[test]
    fn change_that_is_old_foreign_or_not_signed_by_an_operator_does_nothing() {
        let on = Box::new();
        let networks = on.networks();
        let good = on.change(5, try_config(2));
        let payload = serde_json::to_vec(&good).unwrap();
        let stranger = SecretKey::from_bytes([8; 32]);
        let forged = Envelope::sign(NETWORK_PAYLOAD_TYPE, &payload, &[&stranger]).to_json();
        let till = "till".parse().unwrap();
        let refused = networks.change(&forged, &on.roots, &till).unwrap_err();
        assert_eq!(refused.status, StatusCode::FORBIDDEN);
        let other_type = Envelope::sign("application/x", &payload, &[&on.key]).to_json();
        assert_eq!(
            networks.change(&other_type, &on.roots, &till).unwrap_err().status,
            StatusCode::FORBIDDEN
        );
        let elsewhere = NetworkChange {
            node: "box".parse().unwrap(),
            ..good.clone()
        };
        assert_eq!(
            on.send(&networks, &elsewhere).unwrap_err().status,
            StatusCode::CONFLICT
        );
        assert_eq!(in_use(&networks), config(1));
        on.send(&networks, &good).unwrap();
        on.send(&networks, &on.change(6, confirm(5))).unwrap();
        for old in [&good, &on.change(6, try_config(3))] {
            assert_eq!(on.send(&networks, old).unwrap_err().status, StatusCode::CONFLICT);
        }
        on.reboot();
        assert_eq!(
            on.send(&on.networks(), &good).unwrap_err().status,
            StatusCode::CONFLICT,
            "also after a reboot"
        );
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_with_field_and_value() {
        let on = Box::new();
        let networks = on.networks();
        let mut action = try_config(2);
        if let NetworkAction::Try { config, .. } = &mut action {
            config.ntp = vec!["pool.example".into()];
        }
        let refused = on.send(&networks, &on.change(1, action)).unwrap_err();
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert!(
            refused.error.contains("`ntp[0]`: `pool.example`"),
            "{}",
            refused.error
        );
        let short = NetworkAction::Try {
            config: config(2),
            for_ms: 1,
        };
        assert_eq!(
            on.send(&networks, &on.change(1, short)).unwrap_err().status,
            StatusCode::BAD_REQUEST
        );
        assert_eq!(in_use(&networks), config(1));
    }
}
