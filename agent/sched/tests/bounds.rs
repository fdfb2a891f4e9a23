//! What a cell does at its bounds and with what it cannot read.

#![allow(clippy::unwrap_used)]

use beemesh_agent_sched::{Cell, CellConfig, Event, MAX_PODS, Millis, Persisted, Tuning, wire};
use beemesh_ci_sim::{World, deletion, deployment};
use beemesh_ids::PeerId;

#[test]
fn garbage_and_strangers_are_dropped_and_counted() {
    let world = World::settled(1, 2);
    let (member, stranger) = (&world.nodes[1], PeerId::from_ed25519(&[9; 32]));
    let config = CellConfig {
        me: world.nodes[0].peer.clone(),
        member: world.nodes[0].member.clone(),
        seed: 1,
        tuning: Tuning::default(),
    };
    let mut cell = Cell::new(config, Persisted::default(), Millis(0));
    cell.step(
        Millis(0),
        Event::Member {
            peer: member.peer.clone(),
            member: member.member.clone(),
        },
    );
    let wanted = wire::Message::StatusWanted.encode().unwrap();
    for (n, (from, bytes)) in [
        (&stranger, wanted.clone()),
        (&member.peer, vec![]),
        (&member.peer, vec![wire::VERSION, 0xff, 0xff]),
        (&member.peer, vec![wire::VERSION + 1]),
        (&member.peer, vec![0; wire::MAX_MESSAGE + 1]),
        (&member.peer, wire::Message::Swim(vec![1, 2, 3]).encode().unwrap()),
    ]
    .into_iter()
    .enumerate()
    {
        let commands = cell.step(
            Millis(1),
            Event::Message {
                from: from.clone(),
                bytes,
            },
        );
        assert_eq!((commands, cell.dropped()), (vec![], n as u64 + 1));
    }
    cell.step(
        Millis(2),
        Event::Message {
            from: member.peer.clone(),
            bytes: wanted,
        },
    );
    assert_eq!(cell.dropped(), 6);
}

#[test]
fn a_node_holds_a_bounded_number_of_pods() {
    let mut world = World::settled(2, 1);
    let mut capacity = world.nodes[0].capacity.clone();
    (capacity.cpu_millis, capacity.memory_bytes) = (u64::MAX / 1000, u64::MAX);
    world.capacity(0, capacity);
    world.change(0, deployment("web", 300));
    world.run(10_000);
    assert_eq!(world.nodes[0].pods.len(), MAX_PODS);
    let pods = world.nodes[0].cell.as_ref().unwrap().pods();
    assert_eq!(pods.len(), 300);
    let waiting = pods.iter().find(|pod| pod.pod_id.is_none()).unwrap();
    assert!(
        waiting.reason.as_ref().unwrap().contains("256 of 256 pods"),
        "{waiting:?}"
    );
    world.change(0, deletion("web"));
    world.run(5000);
    assert!(world.nodes[0].pods.is_empty());
}

#[test]
fn a_thousand_replicas_are_placed_on_many_nodes() {
    let mut world = World::settled(3, 20);
    for n in 0..20 {
        let mut capacity = world.nodes[n].capacity.clone();
        (capacity.cpu_millis, capacity.memory_bytes) = (100_000, 1 << 40);
        world.capacity(n, capacity);
    }
    world.run(2000);
    world.change(0, deployment("web", 1000));
    let took = world.run_until(60_000, |world| {
        world.runs_exactly(&deletion("web").workload, 1000)
    });
    println!("1000 replicas on 20 nodes: {took:?} ms");
    assert!(took.is_some());
    let loads: Vec<usize> = world.nodes.iter().map(|node| node.pods.len()).collect();
    assert!(loads.iter().all(|load| (30..=80).contains(load)), "{loads:?}");
}

#[test]
fn a_change_of_an_invalid_workload_is_refused_though_it_is_signed() {
    let mut world = World::settled(4, 1);
    let mut wish = deployment("web", 1);
    wish.spec.as_mut().unwrap().pod.containers.clear();
    world.change(0, wish);
    assert_eq!(world.saw("ChangeRefused"), 1);
    assert!(world.nodes[0].cell.as_ref().unwrap().changes().next().is_none());
}
