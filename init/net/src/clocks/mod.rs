//! Looks after the clocks, beside the network: reads the floor and the members' time that the agent hands over, asks NTP
//! servers when there are any, does what `keeper` says, and writes `TimeStatus`. Nothing waits for it.

pub mod clock;
mod keeper;
mod sntp;

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use beemesh_init_api::time::RtcState;
use beemesh_init_api::{PeerTime, TimeFloor, TimeStatus, path};
use serde::de::DeserializeOwned;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use self::clock::Clock;
use self::keeper::{Command, Event, Keeper};
use crate::reconcile::boot_ms;
use crate::report::{Reporter, chain, name_of};

/// How often the floor is looked at.
const POLL: Duration = Duration::from_millis(500);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(2);
/// Port of NTP.
const PORT: u16 = 123;
/// No image of this product is older: 2026-01-01, in seconds since the Unix epoch.
const OLDEST: i64 = 1_767_225_600;
/// Largest document of the agent, in bytes.
const DOCUMENT_LIMIT: u64 = 4_096;

/// The task's parts.
pub struct TimeTask {
    reporter: Reporter,
    floor: PathBuf,
    peers: PathBuf,
    heard: Option<PeerTime>,
    servers: watch::Receiver<Vec<IpAddr>>,
    clock: Box<dyn Clock>,
    keeper: Keeper,
    written: String,
}

impl TimeTask {
    /// With the build time of the image as its floor; `servers` says which servers there are.
    pub fn new(run: &Path, servers: watch::Receiver<Vec<IpAddr>>, clock: Box<dyn Clock>) -> Self {
        Self {
            reporter: Reporter::new(run.to_owned()),
            floor: run.join(name_of(path::TIME_FLOOR)),
            peers: run.join(name_of(path::PEER_TIME)),
            heard: None,
            servers,
            clock,
            keeper: Keeper::new(built()),
            written: String::new(),
        }
    }

    /// Runs for good.
    pub async fn run(mut self) {
        // What an earlier run, or the agent, knew already counts before the RTC is judged.
        if let Some(TimeFloor { unix: floor }) = read(&self.floor) {
            self.keeper.floor = self.keeper.floor.max(floor);
        }
        let rtc = self.clock.read_rtc().ok();
        self.happened(Event::Start { rtc });
        let mut servers = Vec::new();
        loop {
            let floor = read(&self.floor).map(|floor: TimeFloor| floor.unix);
            if let Some(floor) = floor.filter(|floor| *floor > self.keeper.floor) {
                self.happened(Event::Floor(floor));
            }
            let peers = read(&self.peers);
            if self.heard != peers {
                self.heard = peers;
                if let Some(peers) = peers {
                    self.happened(Event::Peers(peers));
                }
            }
            let there = self.servers.borrow().clone();
            if there != servers {
                servers = there;
                self.keeper.ask_now();
            }
            let server = servers.get(self.keeper.choice(servers.len())).copied();
            if let Some(server) = server.filter(|_| boot_ms() >= self.keeper.ask_ms) {
                let event = match self.ask(server).await {
                    Ok(offset_us) => Event::Heard { server, offset_us },
                    Err(error) => {
                        // A server that is silent is no news for a person; it is in the log.
                        println!("time: the server {server}: {}", chain(&error));
                        Event::Unheard
                    }
                };
                self.happened(event);
            }
            self.report();
            tokio::time::sleep(POLL).await;
        }
    }

    fn happened(&mut self, event: Event) {
        let commands = self.keeper.step(boot_ms(), self.clock.now_us(), event);
        for command in commands {
            let done = match command {
                Command::Step(to_us) => self.clock.step(to_us),
                Command::Slew(by_us) => self.clock.slew(by_us),
                Command::WriteRtc => {
                    let unix = self.clock.now_us().div_euclid(1_000_000);
                    let written = self.clock.write_rtc(unix);
                    if written.is_ok() {
                        self.keeper.rtc = RtcState::Written;
                    }
                    // A machine without an RTC has said so in its status.
                    Ok(())
                }
                Command::Say(line) => {
                    self.reporter.say(&line);
                    Ok(())
                }
            };
            if let Err(error) = done {
                self.reporter
                    .say(&format!("time: failed to set the clock: {error}"));
            }
        }
    }

    async fn ask(&self, server: IpAddr) -> io::Result<i64> {
        let mut cookie = [0; 8];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut cookie)?;
        let cookie = u64::from_ne_bytes(cookie);
        let any: SocketAddr = match server {
            IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
            IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        // Only this server's packets arrive from now on, and its refusals become errors.
        socket.connect((server, PORT)).await?;
        let sent_us = self.clock.now_us();
        socket.send(&sntp::request(cookie)).await?;
        let answer = async {
            let mut packet = [0; 512];
            loop {
                let length = socket.recv(&mut packet).await?;
                let heard_us = self.clock.now_us();
                let packet = packet.get(..length).unwrap_or_default();
                match sntp::read(packet, cookie, sent_us, heard_us, self.keeper.floor) {
                    Ok(sample) => return Ok(sample.offset_us),
                    Err(sntp::Refusal::Foreign) => {}
                    Err(refusal) => return Err(io::Error::other(refusal)),
                }
            }
        };
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        tokio::time::timeout(PATIENCE, answer).await.map_err(late)?
    }

    fn report(&mut self) {
        let keeper = &self.keeper;
        let status = TimeStatus {
            source: keeper.source,
            reason: keeper.reason.clone(),
            server: keeper.server.map(|server| server.to_string()),
            offset_us: keeper.offset_us,
            heard_ms: keeper.heard_ms,
            peers: keeper.peers,
            floor: keeper.floor,
            rtc: keeper.rtc,
        };
        let Ok(text) = serde_json::to_string(&status) else {
            return;
        };
        if text != self.written {
            match self.reporter.write(path::TIME_STATUS, &text) {
                Ok(()) => self.written = text,
                Err(error) => println!("time: {error:#}"),
            }
        }
    }
}

/// When the image was made; without an image [`OLDEST`].
fn built() -> i64 {
    let modified = std::fs::metadata(path::CLOCK_EPOCH)
        .and_then(|file| file.modified())
        .ok();
    let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0)
        .max(OLDEST)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut text = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(DOCUMENT_LIMIT)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}
