//! Who gets signals, and when: those who asked, whenever PID 1 has written something new.
//!
//! Invariant: a peer that does not read holds nobody up. What waits for it is bounded by [`WAITING`]; past that its
//! connection is closed, since a gap that it does not notice is worse.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use beemesh_init_api::{Changes, ServiceChange, ServiceStatus};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use zbus::connection::Connection;
use zbus::object_server::SignalEmitter;

use crate::MACHINE;
use crate::machine::{Machine, tell};
use crate::picture::Pictures;
use crate::service::{Service, object_path};

/// News that wait for one peer.
const WAITING: usize = 64;
/// A peer must take one signal within this time.
const LIMIT: Duration = Duration::from_secs(5);

/// What is new.
#[derive(Debug, Default)]
struct News {
    changes: Vec<ServiceChange>,
    /// The machine's state is another.
    machine: bool,
    /// Services whose properties are others.
    services: Vec<String>,
}

/// Those who get signals.
#[derive(Debug, Default)]
pub struct Watchers {
    all: Mutex<Vec<(Connection, Sender<Arc<News>>)>>,
}

impl Watchers {
    /// This connection gets signals from now on; asking twice changes nothing.
    pub fn add(&self, connection: &Connection) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| !known.is_closed());
        if all.iter().any(|(known, _)| same(known, connection)) {
            return;
        }
        let (sender, receiver) = channel(WAITING);
        tokio::spawn(send(connection.clone(), receiver));
        all.push((connection.clone(), sender));
    }

    fn tell(&self, news: News) {
        let news = Arc::new(news);
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(connection, sender)| {
            let taken = !connection.is_closed() && sender.try_send(Arc::clone(&news)).is_ok();
            if !taken {
                tokio::spawn(connection.clone().close());
            }
            taken
        });
    }
}

/// Clones of a connection share its object server.
fn same(one: &Connection, other: &Connection) -> bool {
    std::ptr::eq(one.object_server(), other.object_server())
}

/// Sends what is new to one peer, until it is gone.
async fn send(connection: Connection, mut news: Receiver<Arc<News>>) {
    loop {
        let new = tokio::select! {
            new = news.recv() => new,
            () = connection.closed() => None,
        };
        let Some(new) = new else { return };
        if !matches!(
            tokio::time::timeout(LIMIT, say(&connection, &new)).await,
            Ok(Ok(()))
        ) {
            let _ = connection.close().await;
            return;
        }
    }
}

async fn say(connection: &Connection, news: &News) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, MACHINE)?;
    for change in &news.changes {
        tell(&emitter, change).await?;
    }
    if news.machine {
        let machine = connection
            .object_server()
            .interface::<_, Machine>(MACHINE)
            .await?;
        machine
            .get()
            .await
            .state_changed(machine.signal_emitter())
            .await?;
    }
    for name in &news.services {
        let service = connection
            .object_server()
            .interface::<_, Service>(object_path(name))
            .await?;
        let (service, emitter) = (service.get().await, service.signal_emitter());
        service.state_changed(emitter).await?;
        service.last_end_changed(emitter).await?;
        service.status_text_changed(emitter).await?;
        service.main_p_i_d_changed(emitter).await?;
        service.restarts_changed(emitter).await?;
    }
    Ok(())
}

/// Follows what PID 1 writes, without end. A thread of its own waits, since the event loop has no safe way to wait for a
/// descriptor of this kind.
pub async fn follow(watch: OwnedFd, pictures: Arc<Pictures>, watchers: Arc<Watchers>) {
    let written = Arc::new(Notify::new());
    let teller = Arc::clone(&written);
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let mut sources = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
            match poll(&mut sources, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            while nix::unistd::read(&watch, &mut buffer).is_ok_and(|count| count > 0) {}
            teller.notify_one();
        }
    });
    let (mut changes, mut services) = (pictures.changes(), pictures.services());
    loop {
        written.notified().await;
        let (new_changes, new_services) = (pictures.changes(), pictures.services());
        let news = compare(&changes, &new_changes, &services, &new_services);
        (changes, services) = (new_changes, new_services);
        if !news.changes.is_empty() || news.machine || !news.services.is_empty() {
            watchers.tell(news);
        }
    }
}

fn compare(before: &Changes, now: &Changes, services: &[ServiceStatus], new: &[ServiceStatus]) -> News {
    let seen = before.latest.last().map_or(0, |change| change.number);
    News {
        changes: now
            .latest
            .iter()
            .filter(|change| change.number > seen)
            .cloned()
            .collect(),
        machine: before.machine != now.machine,
        services: new
            .iter()
            .filter(|service| !services.contains(service))
            .map(|service| service.name.clone())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(machine: &str, numbers: std::ops::Range<u64>) -> Changes {
        Changes {
            machine: machine.to_owned(),
            latest: numbers
                .map(|number| ServiceChange {
                    number,
                    name: "x".to_owned(),
                    state: "ready".to_owned(),
                    last_end: None,
                    at_ms: number,
                })
                .collect(),
        }
    }

    #[test]
    fn every_change_is_told_once_even_when_a_look_came_late() {
        let news = compare(&changes("running", 1..4), &changes("degraded", 2..9), &[], &[]);
        let numbers: Vec<u64> = news.changes.iter().map(|change| change.number).collect();
        assert_eq!(numbers, [4, 5, 6, 7, 8]);
        assert!(news.machine);
        let news = compare(&changes("degraded", 2..9), &changes("degraded", 2..9), &[], &[]);
        assert!(news.changes.is_empty() && !news.machine);
    }
}
