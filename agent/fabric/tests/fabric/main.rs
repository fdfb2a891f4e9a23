//! The fabric on loopback: who gets in, what arrives, who is missed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod change_key;
mod node;
mod raw;

use beemesh_agent_fabric::{
    Fabric, FabricError, FabricEvent, MAX_CREDENTIAL, MAX_MESSAGE, PEER_QUEUE_BYTES, SILENCE,
};
use node::{Node, Proxy, config, member};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TRANSPORTS: [&str; 2] = ["tcp", "quic"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_meet_and_talk_in_order_over_both_transports() {
    for transport in TRANSPORTS {
        let (mut a, mut b) = (Node::member(1), Node::member(2));
        a.dial(&b, transport);
        let (address, credential) = a.connected(&b).await;
        assert!(address.contains(transport), "{address}");
        assert_eq!(
            credential,
            member(2),
            "the credential of the other side is handed over"
        );
        b.connected(&a).await;
        for number in 0..1000u32 {
            while a.fabric.send(b.id(), number.to_be_bytes().to_vec()).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        b.fabric.send(a.id(), vec![7; MAX_MESSAGE]).unwrap();
        for number in 0..1000u32 {
            assert_eq!(b.message(&a).await, number.to_be_bytes(), "{transport}");
        }
        assert_eq!(a.message(&b).await.len(), MAX_MESSAGE);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_carry_bytes_both_ways_over_both_transports() {
    for transport in TRANSPORTS {
        let (mut a, mut b) = (Node::member(1), Node::member(2));
        a.dial(&b, transport);
        a.connected(&b).await;
        b.connected(&a).await;
        let mut ours = a.fabric.open_stream(b.id()).await.unwrap();
        let mut theirs = b.stream(&a).await;
        let bytes: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let sent = bytes.clone();
        let writer = tokio::spawn(async move {
            ours.write_all(&sent).await.unwrap();
            ours.shutdown().await.unwrap();
            let mut answer = Vec::new();
            ours.read_to_end(&mut answer).await.unwrap();
            answer
        });
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.unwrap();
        assert!(read == bytes, "{transport}");
        theirs.write_all(b"thanks").await.unwrap();
        theirs.shutdown().await.unwrap();
        assert_eq!(writer.await.unwrap(), b"thanks");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused_on_both_transports_whoever_dials() {
    for transport in TRANSPORTS {
        // No credential at all, and the credential of somebody else.
        for credential in [vec![], member(2)] {
            let (mut a, mut stranger) = (Node::member(1), Node::with_credential(3, credential));
            stranger.dial(&a, transport);
            let reason = a.refused(&stranger).await;
            assert!(reason.contains("not a member"), "{reason}");
            let told = stranger.refused(&a).await;
            assert!(
                told.contains("does not admit this node: not a member"),
                "the stranger is told why: {told}"
            );

            let (mut a, mut stranger) = (Node::member(1), Node::with_credential(3, vec![]));
            a.dial(&stranger, transport);
            stranger.refused(&a).await;
            a.refused(&stranger).await;
            assert!(a.fabric.connected().is_empty() && stranger.fabric.connected().is_empty());
            assert!(matches!(
                stranger.fabric.send(a.id(), vec![1]),
                Err(FabricError::NotConnected { .. })
            ));
            assert!(stranger.fabric.open_stream(a.id()).await.is_err());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_does_not_join_a_fabric_that_shows_no_credential() {
    // The other side admits everybody, but is no member itself.
    let mut a = Node::member(1);
    let open = Node::open_to_all(3);
    open.dial(&a, "tcp");
    a.refused(&open).await;
    a.dial(&open, "tcp");
    a.refused(&open).await;
    assert!(a.fabric.connected().is_empty() && open.fabric.connected().is_empty());
}

#[tokio::test]
async fn who_comes_second_with_a_voucher_gets_the_proof_whoever_dials() {
    for transport in TRANSPORTS {
        for dials in [true, false] {
            let (mut a, mut second) = (Node::member(1), Node::member(2));
            let rival = vec![7; MAX_CREDENTIAL];
            a.prefer(second.id(), rival.clone());
            match dials {
                true => second.dial(&a, transport),
                false => a.dial(&second, transport),
            }
            assert_eq!(second.taken(&a).await, rival, "{transport}, dials: {dials}");
            a.refused(&second).await;
        }
    }
}

#[tokio::test]
async fn a_credential_that_is_too_long_is_refused_on_this_side_and_on_the_other() {
    let mut long = config(1, vec![0; MAX_CREDENTIAL + 1]);
    long.listen_port = 0;
    assert!(matches!(
        Fabric::start(long),
        Err(FabricError::CredentialTooLong { .. })
    ));

    let mut a = Node::member(1);
    raw::dial_and_say(&a, &(MAX_CREDENTIAL as u32 + 100).to_be_bytes()).await;
    let reason = a.refusal().await;
    assert!(reason.contains("too large"), "{reason}");
}

#[tokio::test]
async fn a_peer_that_shows_nothing_is_dropped_after_five_seconds() {
    let mut a = Node::member(1);
    let start = Instant::now();
    let closed = raw::dial_and_say(&a, b"").await;
    let reason = a.refusal().await;
    assert!(reason.contains("no credential within 5 s"), "{reason}");
    closed.await.unwrap();
    let waited = start.elapsed();
    assert!(
        waited > Duration::from_secs(4) && waited < Duration::from_secs(7),
        "{waited:?}"
    );
}

#[tokio::test]
async fn a_peer_that_speaks_something_else_is_refused() {
    for noise in [&[0, 0, 0, 1, 9][..], &[0, 0, 0, 9, 77, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let mut a = Node::member(1);
        raw::dial_and_say(&a, noise).await;
        let reason = a.refusal().await;
        assert!(reason.contains("handshake"), "{reason}");
    }
}

#[tokio::test]
async fn connections_that_do_not_finish_the_handshake_are_bounded() {
    let a = Node::member(1);
    let mut sockets = Vec::new();
    for _ in 0..100 {
        sockets.push(tokio::net::TcpStream::connect(a.socket()).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut closed = 0;
    for socket in &mut sockets {
        let mut buffer = [0; 64];
        // The listener speaks first in none of its protocols, so all that can be read is the end.
        while let Ok(result) = tokio::time::timeout(Duration::from_millis(5), socket.read(&mut buffer)).await
        {
            if !matches!(result, Ok(n) if n > 0) {
                closed += 1;
                break;
            }
        }
    }
    assert!(
        (30..=40).contains(&closed),
        "{closed} of 100 were closed, 64 may wait"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_over_the_bound_is_refused_and_a_full_queue_drops_and_counts() {
    let (mut a, mut b) = (Node::member(1), Node::member(2));
    a.dial(&b, "tcp");
    a.connected(&b).await;
    b.connected(&a).await;
    let long = a.fabric.send(b.id(), vec![0; MAX_MESSAGE + 1]);
    assert!(matches!(long, Err(FabricError::MessageTooLong { .. })));

    // The other side takes no events: what it, the connection and the queue hold is bounded.
    let mut accepted = 0u32;
    let full = loop {
        let mut bytes = accepted.to_be_bytes().to_vec();
        bytes.resize(MAX_MESSAGE / 2, 0);
        match a.fabric.send(b.id(), bytes) {
            Ok(()) => accepted += 1,
            // Only a queue that stays full is full.
            Err(FabricError::QueueFull { .. }) => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let mut bytes = accepted.to_be_bytes().to_vec();
                bytes.resize(MAX_MESSAGE / 2, 0);
                match a.fabric.send(b.id(), bytes) {
                    Ok(()) => accepted += 1,
                    Err(error) => break error,
                }
            }
            Err(error) => panic!("{error}"),
        }
        assert!(accepted < 1000, "nothing bounds the queue");
    };
    assert!(matches!(full, FabricError::QueueFull { .. }));
    assert!(a.fabric.dropped() >= 1 && accepted as usize >= PEER_QUEUE_BYTES / MAX_MESSAGE);
    // Slow is not dead: everything that was taken arrives, in order, even later than a dead peer would be missed.
    tokio::time::sleep(SILENCE + Duration::from_secs(1)).await;
    for number in 0..accepted {
        assert_eq!(b.message(&a).await[..4], number.to_be_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_dial_each_other_at_once_keep_one_connection() {
    for round in 0..5 {
        let (mut a, mut b) = (Node::member(1), Node::member(2));
        a.dial(&b, if round % 2 == 0 { "tcp" } else { "quic" });
        b.dial(&a, "tcp");
        a.dial(&b, "tcp");
        b.dial(&a, "quic");
        a.connected(&b).await;
        b.connected(&a).await;
        for number in 0..20u8 {
            a.fabric.send(b.id(), vec![number]).unwrap();
            b.fabric.send(a.id(), vec![number]).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Nothing but messages: no second connection, no loss of the first.
        for number in 0..20u8 {
            assert_eq!(
                (a.message(&b).await, b.message(&a).await),
                (vec![number], vec![number])
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_know_only_one_of_them_all_meet() {
    let first = Node::member(1);
    let mut others: Vec<_> = (2..7).map(|seed| Node::bootstrapped(seed, &[&first])).collect();
    let start = Instant::now();
    while others.iter().any(|node| node.fabric.connected().len() < 5) || first.fabric.connected().len() < 5 {
        assert!(start.elapsed() < Duration::from_secs(10), "no full mesh");
        for node in &mut others {
            while node.events.try_recv().is_ok() {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_machine_is_missed_within_six_seconds_and_an_idle_one_is_kept() {
    let (mut a, mut b, mut idle) = (Node::member(1), Node::member(2), Node::member(3));
    a.dial(&idle, "quic");
    a.connected(&idle).await;
    idle.connected(&a).await;
    let proxy = Proxy::to(&b).await;
    a.fabric
        .dial(&format!("/ip4/127.0.0.1/tcp/{}", proxy.port))
        .unwrap();
    a.connected(&b).await;
    b.connected(&a).await;
    tokio::time::sleep(SILENCE + Duration::from_secs(2)).await;
    assert!(
        a.events.try_recv().is_err(),
        "nothing was said and nothing may happen"
    );

    b.stop();
    proxy.freeze();
    let start = Instant::now();
    a.disconnected(&b).await;
    let missed = start.elapsed();
    assert!(missed < Duration::from_secs(6), "{missed:?}");
    assert_eq!(a.fabric.connected(), vec![idle.id().clone()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_restarts_is_back_at_once() {
    for seeds in [(1, 2), (2, 1)] {
        let mut a = Node::member(seeds.0);
        let mut b = Node::bootstrapped(seeds.1, &[&a]);
        a.connected(&b).await;
        b.connected(&a).await;
        tokio::time::sleep(Duration::from_millis(3200)).await;
        b.stop();
        let mut b = Node::bootstrapped(seeds.1, &[&a]);
        let start = Instant::now();
        a.disconnected(&b).await;
        a.connected(&b).await;
        b.connected(&a).await;
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        a.fabric.send(b.id(), vec![1]).unwrap();
        assert_eq!(b.message(&a).await, vec![1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_no_longer_admitted_does_not_come_back() {
    let mut a = Node::member(1);
    let mut b = Node::bootstrapped(2, &[&a]);
    a.connected(&b).await;
    b.connected(&a).await;
    a.ban(b.id());
    a.fabric.disconnect(b.id()).unwrap();
    a.disconnected(&b).await;
    b.disconnected(&a).await;
    let reason = a.refused(&b).await;
    assert!(reason.contains("banned"), "{reason}");
}

#[tokio::test]
async fn what_is_not_an_address_is_refused() {
    let a = Node::member(1);
    assert!(matches!(
        a.fabric.dial("nowhere"),
        Err(FabricError::Address { .. })
    ));
    let mut bad = config(2, member(2));
    bad.bootstrap = vec!["somewhere:1".to_owned()];
    assert!(matches!(Fabric::start(bad), Err(FabricError::Address { .. })));
}

#[tokio::test]
async fn a_node_that_dials_itself_stays_alone() {
    let mut a = Node::member(1);
    a.fabric.dial(&format!("127.0.0.1:{}", a.port)).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    while let Ok(event) = a.events.try_recv() {
        assert!(matches!(event, FabricEvent::Listening { .. }), "{event:?}");
    }
    assert!(a.fabric.connected().is_empty());
}

#[tokio::test]
async fn a_fabric_stops_with_its_last_handle() {
    let Node {
        fabric,
        mut events,
        port,
        ..
    } = Node::member(1);
    drop(fabric);
    let start = Instant::now();
    while let Some(event) = events.recv().await {
        assert!(matches!(event, FabricEvent::Listening { .. }), "{event:?}");
    }
    while std::net::TcpListener::bind(("127.0.0.1", port)).is_err() {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "the port is still taken"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_outside_gets_one_answer_and_never_a_connection() {
    let mut a = Node::member(1);
    let address = a.socket().to_string();
    for _ in 0..3 {
        let answer = beemesh_agent_fabric::petition([9; 32], &address, b"let me in").await;
        let expected = format!("{} at 127.0.0.1 asks: let me in", node::peer_of(9));
        assert_eq!(String::from_utf8(answer.unwrap()).unwrap(), expected);
    }
    let long = beemesh_agent_fabric::petition([9; 32], &address, &[0; 1025]).await;
    assert!(matches!(
        long,
        Err(beemesh_agent_fabric::PetitionError::TooLong { len: 1025 })
    ));
    assert!(a.fabric.connected().is_empty());
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    while let Ok(event) = a.events.try_recv() {
        assert!(
            matches!(event, beemesh_agent_fabric::FabricEvent::Listening { .. }),
            "{event:?}"
        );
    }
    let nobody = beemesh_agent_fabric::petition([9; 32], "127.0.0.1:1", b"x").await;
    assert!(matches!(
        nobody,
        Err(beemesh_agent_fabric::PetitionError::Connect { .. })
    ));
}
