//! The few calls that programs made for a message bus send before all others (`busctl`, GDBus): there is no bus here, but
//! whoever is greeted as if there were one can be used.
//!
//! Source: D-Bus specification 0.43, "Message Bus Messages". Invariant: nothing is routed to anyone; `RequestName` and
//! everything that is not here is an error of the D-Bus library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use zbus::connection::Connection;
use zbus::names::{BusName, UniqueName};
use zbus::object_server::{ResponseDispatchNotifier, SignalEmitter};
use zbus::{fdo, interface};

use crate::watchers::Watchers;

/// The bus's own object.
pub const PATH: &str = "/org/freedesktop/DBus";
/// The name that stands for this program.
const NAME: &str = "org.beemesh.Init1";
/// What we are called ourselves.
const OWNER: &str = ":1.0";

/// `org.freedesktop.DBus`, for one connection.
pub struct Bus {
    watchers: Arc<Watchers>,
    peer: String,
}

impl Bus {
    /// For a new connection.
    pub fn new(watchers: Arc<Watchers>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let peer = format!(":1.{}", NEXT.fetch_add(1, Ordering::Relaxed));
        Self { watchers, peer }
    }
}

#[interface(name = "org.freedesktop.DBus")]
impl Bus {
    /// Gives the peer a name.
    fn hello(&self) -> String {
        self.peer.clone()
    }

    /// Whoever looks for signals gets all of them, and picks by itself.
    async fn add_match(&self, #[zbus(connection)] connection: &Connection, _rule: &str) {
        self.watchers.add(connection);
    }

    /// Signals are still sent: who does not look for them passes them over.
    fn remove_match(&self, _rule: &str) {}

    /// Who has this name.
    fn get_name_owner(&self, name: BusName<'_>) -> fdo::Result<String> {
        match name.as_str() {
            NAME | OWNER => Ok(OWNER.to_owned()),
            "org.freedesktop.DBus" => Ok(name.to_string()),
            other if other == self.peer => Ok(self.peer.clone()),
            other => Err(fdo::Error::NameHasNoOwner(format!(
                "nobody here is called `{other}`"
            ))),
        }
    }

    /// Somebody has this name.
    fn name_has_owner(&self, name: BusName<'_>) -> bool {
        self.get_name_owner(name).is_ok()
    }

    /// Everyone who is here.
    fn list_names(&self) -> Vec<String> {
        let all = ["org.freedesktop.DBus", NAME, OWNER];
        all.into_iter()
            .map(str::to_owned)
            .chain([self.peer.clone()])
            .collect()
    }

    /// Nothing is started by name.
    fn list_activatable_names(&self) -> Vec<String> {
        Vec::new()
    }

    /// Who has the name is said once, and nothing changes.
    fn get_connection_unix_user(&self, _name: BusName<'_>) -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// The process behind a name.
    fn get_connection_unix_process_id(&self, name: BusName<'_>) -> fdo::Result<u32> {
        match name.as_str() {
            NAME | OWNER => Ok(std::process::id()),
            other => Err(fdo::Error::UnixProcessIdUnknown(format!(
                "`{other}` is somebody else"
            ))),
        }
    }

    /// The monitor has lost its name: from now on it only listens.
    #[zbus(signal)]
    async fn name_lost(emitter: &SignalEmitter<'_>, name: UniqueName<'_>) -> zbus::Result<()>;
}

/// `org.freedesktop.DBus.Monitoring`: what `busctl monitor` asks for.
pub struct Monitoring {
    watchers: Arc<Watchers>,
}

impl Monitoring {
    /// For a new connection.
    pub fn new(watchers: Arc<Watchers>) -> Self {
        Self { watchers }
    }
}

#[interface(name = "org.freedesktop.DBus.Monitoring")]
impl Monitoring {
    /// From now on the connection gets signals only.
    async fn become_monitor(
        &self,
        #[zbus(connection)] connection: &Connection,
        _rules: Vec<String>,
        _flags: u32,
    ) -> fdo::Result<ResponseDispatchNotifier<()>> {
        let bus = connection.object_server().interface::<_, Bus>(PATH).await?;
        let peer = bus.get().await.peer.clone();
        let (response, answered) = ResponseDispatchNotifier::new(());
        let (watchers, connection) = (Arc::clone(&self.watchers), connection.clone());
        tokio::spawn(async move {
            answered.await;
            if let Ok(name) = UniqueName::try_from(peer)
                && bus.signal_emitter().name_lost(name).await.is_ok()
            {
                watchers.add(&connection);
            }
        });
        Ok(response)
    }
}
