//! A node goes on with a newer key: nothing ends, whoever has both connections uses the newer, and the old key goes.

use crate::node::{Node, peer_of, rotated};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Its first key and its second one, beside those that tests give to nodes.
const NEW: u8 = 101;

async fn pair(transport: &str) -> (Node, Node) {
    let (mut a, mut b) = (Node::member(1), Node::member(2));
    a.dial(&b, transport);
    a.connected(&b).await;
    b.connected(&a).await;
    (a, b)
}

/// Until all that was left of older keys is gone, events apart.
async fn left_none(node: &mut Node) {
    while node.left().await != 0 {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_changes_its_key_and_neither_streams_nor_messages_end() {
    for transport in ["tcp", "quic"] {
        let (mut a, mut b) = pair(transport).await;
        let mut ours = a.fabric.open_stream(b.id()).await.unwrap();
        let mut theirs = b.stream(&a).await;
        a.fabric.change_key(rotated(1, 1, NEW)).await.unwrap();
        assert_eq!(a.left().await, 1);
        // Both hear of the new connection, and of no end.
        a.connected(&b).await;
        let (_, credential) = b.connected(&a).await;
        assert_eq!(credential, rotated(1, 1, NEW).credential);
        left_none(&mut a).await;
        // The old stream outlives its connection's replacement.
        tokio::time::sleep(Duration::from_secs(5)).await;
        ours.write_all(b"still here").await.unwrap();
        ours.shutdown().await.unwrap();
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"still here", "{transport}");
        a.fabric.send(b.id(), b"by the new key".to_vec()).unwrap();
        assert_eq!(b.message(&a).await, b"by the new key");
        b.fabric.send(a.id(), b"to the same node".to_vec()).unwrap();
        assert_eq!(a.message(&b).await, b"to the same node");
        a.fabric.end_old_connections().unwrap();
        assert_eq!(b.fabric.connected(), [peer_of(1)], "the node id stays");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_are_under_way_arrive_once_each() {
    let (mut a, mut b) = pair("tcp").await;
    let sender = a.fabric.clone();
    let to = b.id().clone();
    let sending = tokio::spawn(async move {
        for number in 0..2_000u32 {
            while sender.send(&to, number.to_be_bytes().to_vec()).is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
    });
    a.fabric.change_key(rotated(1, 1, NEW)).await.unwrap();
    let mut seen = Vec::new();
    let mut connected = 0;
    while seen.len() < 2_000 {
        match tokio::time::timeout(Duration::from_secs(20), b.events.recv())
            .await
            .unwrap()
            .unwrap()
        {
            beemesh_agent_fabric::FabricEvent::Message { bytes, .. } => {
                seen.push(u32::from_be_bytes(bytes.try_into().unwrap()));
            }
            beemesh_agent_fabric::FabricEvent::Connected { .. } => connected += 1,
            beemesh_agent_fabric::FabricEvent::Listening { .. } => {}
            event => panic!("{event:?}"),
        }
    }
    sending.await.unwrap();
    seen.sort_unstable();
    assert_eq!(seen, (0..2_000).collect::<Vec<_>>());
    assert_eq!(connected, 1, "the connection was made anew meanwhile");
    assert_eq!(a.left().await, 1);
    a.connected(&b).await;
    left_none(&mut a).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_change_their_keys_at_the_same_moment_stay_connected() {
    let (a, b) = pair("tcp").await;
    let (one, other) = (rotated(1, 1, NEW), rotated(2, 1, NEW + 1));
    let (one, other) = tokio::join!(a.fabric.change_key(one), b.fabric.change_key(other));
    one.unwrap();
    other.unwrap();
    let mut nodes = [a, b];
    for node in &mut nodes {
        let end = std::time::Instant::now() + Duration::from_secs(15);
        let mut left = 1;
        while left != 0 && std::time::Instant::now() < end {
            match tokio::time::timeout(Duration::from_secs(15), node.events.recv())
                .await
                .unwrap()
                .unwrap()
            {
                beemesh_agent_fabric::FabricEvent::Left { members } => left = members,
                beemesh_agent_fabric::FabricEvent::Disconnected { .. } => panic!("a connection has ended"),
                _ => {}
            }
        }
        assert_eq!(left, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newcomer_finds_the_new_key_at_the_same_port_once_the_old_one_is_ended() {
    let (a, mut b) = pair("quic").await;
    a.fabric.change_key(rotated(1, 1, NEW)).await.unwrap();
    b.connected(&a).await;
    // TCP at once.
    let mut early = Node::member(3);
    early.dial(&a, "tcp");
    let (_, credential) = early.connected(&a).await;
    assert_eq!(credential, rotated(1, 1, NEW).credential);
    a.fabric.end_old_connections().unwrap();
    // QUIC as soon as the port is free.
    let mut late = Node::member(4);
    late.dial(&a, "quic");
    let (address, credential) = late.connected(&a).await;
    assert!(address.contains("quic"), "{address}");
    assert_eq!(credential, rotated(1, 1, NEW).credential);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_by_a_key_that_does_not_count_any_more_is_cut() {
    let (mut a, mut b) = pair("tcp").await;
    b.supersede(1);
    b.disconnected(&a).await;
    a.disconnected(&b).await;
}
