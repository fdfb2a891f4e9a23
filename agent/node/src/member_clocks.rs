//! Reads the clocks of other members and hands over their median to `beemesh-net`, while this node has no time server.
//!
//! A member is asked over a stream what `bmctl time` asks; half of the round trip bounds the error. Which clocks count is
//! decided in `agent/sched` (`clocks`), whether the median is used in `init/net`. Invariants: a clock that is a guess does
//! not vote; a round asks a bounded number of members, each for a bounded time; nothing here waits for anything.

use crate::asking::{self, AskError};
use crate::clock;
use crate::networks::Networks;
use crate::store::write_atomic;
use beemesh_agent_api::network::TimeView;
use beemesh_agent_api::view::path as rest_path;
use beemesh_agent_fabric::Fabric;
use beemesh_agent_sched::Millis;
use beemesh_agent_sched::clocks::{MemberClocks, Reading};
use beemesh_ids::PeerId;
use beemesh_init_api::PeerTime;
use beemesh_init_api::time::TimeSource;
use hyper::StatusCode;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// From joining to the first round: a boot has other things to do.
const FIRST: Duration = Duration::from_secs(3);
/// Between two rounds.
const EVERY: Duration = Duration::from_secs(64);
/// A member that takes longer has not answered.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer, in bytes.
const ANSWER_LIMIT: usize = 16 << 10;
/// A server that was heard longer ago than this does not make the clock a good one, in milliseconds: one hour.
const SERVER_MS: u64 = 3_600_000;

/// Why a member's clock is not known.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("the answer is no time")]
    Malformed(#[from] serde_json::Error),
    #[error("the answer is `{0}`")]
    Status(StatusCode),
}

/// Runs for good; `document` is where the median goes.
pub async fn follow(fabric: Fabric, networks: Networks, document: PathBuf) {
    let mut clocks = MemberClocks::default();
    tokio::time::sleep(FIRST).await;
    loop {
        let own = networks.time();
        if !has_server(&own) {
            round(&fabric, &mut clocks).await;
            let now = clock::boot_ms();
            hand_over(&clocks, now, own_reading(&networks.time(), now), &document);
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn round(fabric: &Fabric, clocks: &mut MemberClocks) {
    let due = clocks.ask(Millis(clock::boot_ms()), &fabric.connected());
    let looks = due.into_iter().map(|peer| async {
        let read = look(fabric, &peer).await;
        (peer, read)
    });
    for (peer, read) in futures::future::join_all(looks).await {
        let reading = read.unwrap_or_else(|error| {
            tracing::debug!(%peer, error = crate::words(&error), "a member's clock is not known");
            None
        });
        clocks.heard(Millis(clock::boot_ms()), &peer, reading);
    }
}

/// One member's clock; `None` where it is a guess.
async fn look(fabric: &Fabric, peer: &PeerId) -> Result<Option<Reading>, ReadError> {
    let answer = asking::ask(fabric, peer, rest_path::TIME, None, (ANSWER_LIMIT, PATIENCE)).await?;
    if answer.status != StatusCode::OK {
        return Err(ReadError::Status(answer.status));
    }
    let view = serde_json::from_slice(&answer.body)?;
    Ok(reading(&view, answer.sent_us, answer.heard_us))
}

/// The member's clock was read between these two moments on CLOCK_BOOTTIME.
fn reading(view: &TimeView, sent_us: u64, heard_us: u64) -> Option<Reading> {
    if !votes(view) {
        return None;
    }
    let error_us = heard_us.saturating_sub(sent_us) / 2;
    let middle_us = sent_us.saturating_add(error_us);
    Some(Reading {
        // What it says is cut to milliseconds.
        origin_us: origin_us(view.now_ms, middle_us).saturating_add(500),
        error_us: error_us.saturating_add(500),
    })
}

/// When a machine started that has been up for `up_us`, in microseconds since the Unix epoch.
fn origin_us(now_ms: u64, up_us: u64) -> i64 {
    let now_us = i64::try_from(now_ms.saturating_mul(1_000)).unwrap_or(i64::MAX);
    now_us.saturating_sub(i64::try_from(up_us).unwrap_or(i64::MAX))
}

/// Whether a clock is more than a guess.
fn votes(view: &TimeView) -> bool {
    view.status
        .as_ref()
        .is_some_and(|status| status.source != TimeSource::Floor)
}

/// Whether a server says what time it is: then the members are not asked.
fn has_server(view: &TimeView) -> bool {
    view.status.as_ref().is_some_and(|status| {
        let heard = |at: u64| view.up_ms.saturating_sub(at) < SERVER_MS;
        status.source == TimeSource::Ntp && status.heard_ms.is_some_and(heard)
    })
}

/// This node's own clock, where it is more than a guess.
fn own_reading(view: &TimeView, now_ms: u64) -> Option<Reading> {
    votes(view).then(|| Reading {
        origin_us: origin_us(view.now_ms, now_ms.saturating_mul(1_000)),
        error_us: 1_000,
    })
}

fn hand_over(clocks: &MemberClocks, now_ms: u64, own: Option<Reading>, document: &Path) {
    let Some(median) = clocks.median(Millis(now_ms), own) else {
        return;
    };
    let time = PeerTime {
        origin_us: median.origin_us,
        error_us: median.error_us,
        members: u32::try_from(median.members).unwrap_or(u32::MAX),
        heard_ms: now_ms,
    };
    let bytes = serde_json::to_vec(&time).unwrap_or_default();
    if let Err(error) = write_atomic(document, &bytes, 0o644) {
        tracing::warn!(%error, "failed to hand over the members' time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_agent_fabric::FabricEvent;
    use beemesh_init_api::TimeStatus;
    use beemesh_init_api::time::RtcState;
    use hyper::Request;
    use hyper_util::rt::TokioIo;

    const NOW_MS: u64 = 1_795_000_000_000;

    fn view(source: TimeSource, heard_ms: Option<u64>) -> TimeView {
        let status = TimeStatus {
            source,
            reason: String::new(),
            server: None,
            offset_us: None,
            heard_ms,
            peers: None,
            floor: 0,
            rtc: RtcState::Absent,
        };
        TimeView {
            now_ms: NOW_MS,
            up_ms: SERVER_MS + 10_000,
            status: Some(status),
        }
    }

    #[test]
    fn clock_that_is_a_guess_does_not_vote() {
        for source in [TimeSource::Rtc, TimeSource::Peers, TimeSource::Ntp] {
            assert!(reading(&view(source, None), 1_000, 2_000).is_some(), "{source:?}");
        }
        let floor = view(TimeSource::Floor, None);
        let unknown = TimeView {
            status: None,
            ..floor.clone()
        };
        for guess in [floor, unknown] {
            assert_eq!(reading(&guess, 1_000, 2_000), None);
            assert_eq!(own_reading(&guess, 1), None);
        }
    }

    #[test]
    fn half_of_the_round_trip_bounds_the_error() {
        let (sent, heard) = (5_000_000, 5_040_000);
        let reading = reading(&view(TimeSource::Rtc, None), sent, heard).unwrap();
        assert_eq!(reading.error_us, 20_500);
        // Whenever between the two it was, and whatever was cut from it, the truth is within the bound.
        for (at_us, cut_us) in [(sent, 0), (heard, 0), (sent, 999), (heard, 999)] {
            let truth = NOW_MS as i64 * 1_000 + cut_us - at_us as i64;
            assert!(
                truth.abs_diff(reading.origin_us) <= reading.error_us,
                "{at_us} {cut_us}"
            );
        }
        let absurd = TimeView {
            now_ms: u64::MAX,
            ..view(TimeSource::Rtc, None)
        };
        assert!(super::reading(&absurd, sent, heard).unwrap().origin_us > 0);
    }

    #[test]
    fn members_are_asked_unless_a_server_was_heard_within_the_hour() {
        assert!(has_server(&view(TimeSource::Ntp, Some(10_001))));
        assert!(!has_server(&view(TimeSource::Ntp, Some(10_000))));
        assert!(!has_server(&view(TimeSource::Peers, Some(10_001))));
        assert!(!has_server(&view(TimeSource::Rtc, None)));
    }

    #[test]
    fn median_is_handed_over_once_two_members_have_a_clock() {
        let folder = tempfile::tempdir().unwrap();
        let document = folder.path().join("peer-time.json");
        let mut clocks = MemberClocks::default();
        let peers = [1u8, 2].map(crate::fixture::peer);
        clocks.ask(Millis(0), &peers);
        let member = reading(&view(TimeSource::Ntp, None), 1_000_000, 1_000_000);
        clocks.heard(Millis(0), &peers[0], member);
        hand_over(&clocks, 7, None, &document);
        assert!(!document.exists());
        clocks.heard(Millis(0), &peers[1], member);
        hand_over(&clocks, 7, None, &document);
        let time: PeerTime = serde_json::from_slice(&std::fs::read(&document).unwrap()).unwrap();
        assert_eq!((time.members, time.heard_ms), (2, 7));
        assert_eq!(time.origin_us, (NOW_MS as i64 - 1_000) * 1_000 + 500);
    }

    struct Everyone;

    impl beemesh_agent_fabric::Admission for Everyone {
        fn admit(
            &self,
            peer: &PeerId,
            _: &[u8],
        ) -> Result<beemesh_agent_fabric::Admitted, beemesh_agent_fabric::Denial> {
            Ok(beemesh_agent_fabric::Admitted::by_first_key(peer))
        }
    }

    fn fabric(secret: u8) -> (Fabric, tokio::sync::mpsc::Receiver<FabricEvent>) {
        let config = beemesh_agent_fabric::FabricConfig {
            credentials: beemesh_agent_fabric::Credentials {
                secret: [secret; 32],
                generation: 0,
                credential: Vec::new(),
            },
            node: None,
            admission: std::sync::Arc::new(Everyone),
            listen_port: 0,
            bootstrap: Vec::new(),
            mdns: false,
        };
        Fabric::start_on(config, &[std::net::Ipv4Addr::LOCALHOST.into()]).unwrap()
    }

    /// Answers each stream with this body, and says where it listens first.
    fn member(secret: u8, body: &'static str) -> (PeerId, tokio::sync::oneshot::Receiver<String>) {
        let (fabric, mut events) = fabric(secret);
        let (listens, address) = tokio::sync::oneshot::channel();
        let own = fabric.peer_id().clone();
        tokio::spawn(async move {
            let mut listens = Some(listens);
            while let Some(event) = events.recv().await {
                match event {
                    FabricEvent::Listening { address } => {
                        listens.take().map(|listens| listens.send(address));
                    }
                    FabricEvent::Stream { stream, .. } => {
                        let service = hyper::service::service_fn(move |request: Request<_>| async move {
                            let _: &hyper::body::Incoming = request.body();
                            assert_eq!(request.uri().path(), rest_path::TIME);
                            Ok::<_, std::convert::Infallible>(hyper::Response::new(body.to_owned()))
                        });
                        let http = hyper::server::conn::http1::Builder::new();
                        tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
                    }
                    _ => {}
                }
            }
            drop(fabric);
        });
        (own, address)
    }

    #[tokio::test]
    async fn members_are_asked_over_the_fabric_and_one_that_talks_nonsense_is_left_out() {
        let time = Box::leak(
            serde_json::to_string(&view(TimeSource::Rtc, None))
                .unwrap()
                .into_boxed_str(),
        );
        let members = [member(1, time), member(2, time), member(3, "[]")];
        let (fabric, mut events) = fabric(4);
        for (_, address) in members {
            fabric.dial(&address.await.unwrap()).unwrap();
        }
        let connected = async {
            while fabric.connected().len() < 3 {
                events.recv().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), connected)
            .await
            .unwrap();
        let mut clocks = MemberClocks::default();
        round(&fabric, &mut clocks).await;
        let now = clock::boot_ms();
        let median = clocks.median(Millis(now), None).unwrap();
        assert_eq!(median.members, 2);
        let there_ms = median.origin_us / 1_000 + i64::try_from(now).unwrap();
        assert!(there_ms.abs_diff(NOW_MS as i64) < 2_000, "{there_ms}");
    }
}
