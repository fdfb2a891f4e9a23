//! Stories of a cell, each on the simulated network with the shipped state machine.

use beemesh_ci_sim::{World, deletion, deployment};

fn workload(name: &str) -> beemesh_agent_api::WorkloadId {
    deletion(name).workload
}

#[test]
fn a_founder_alone_starts_its_pods_at_once() {
    let mut world = World::settled(1, 1);
    world.change(0, deployment("web", 3));
    assert_eq!(world.starts.len(), 3);
    world.run(1000);
    assert!(world.runs_exactly(&workload("web"), 3));
    assert!(world.nodes[0].cell.as_ref().unwrap().is_settled());
}

#[test]
fn revoked_node_is_cut_off_everywhere_and_its_pods_start_elsewhere() {
    for seed in 0..8 {
        let mut world = World::settled(seed, 5);
        world.change(0, deployment("web", 3));
        world.run(2000);
        let revoked = (0..5).find(|n| !world.nodes[*n].pods.is_empty()).unwrap();
        let told = (revoked + 1) % 5;
        world.revoke(told, revoked);
        // A tenth of a second: flooded, not only told with the next heartbeat.
        world.run(100);
        let peer = world.nodes[revoked].peer.clone();
        for n in 0..5 {
            assert!(
                world.nodes[n].revoked.has_node(&peer),
                "seed {seed}: node {n} has not heard it"
            );
            let members: Vec<_> = world.nodes[n]
                .cell
                .as_ref()
                .unwrap()
                .members()
                .map(|(peer, _)| peer.clone())
                .collect();
            assert!(!members.contains(&peer), "seed {seed}: node {n}");
        }
        world.run(15_000);
        let elsewhere = (0..5)
            .filter(|n| *n != revoked)
            .map(|n| world.nodes[n].pods.len())
            .sum::<usize>();
        assert_eq!(elsewhere, 3, "seed {seed}");
        assert!(
            world.nodes[revoked].pods.is_empty(),
            "seed {seed}: it heard it, and stops what it ran"
        );
    }
}

#[test]
fn node_that_was_away_hears_of_a_revocation_when_it_returns() {
    let mut world = World::settled(3, 4);
    world.partition(&[0, 0, 0, 1]);
    world.run(2000);
    world.revoke(0, 1);
    world.run(1000);
    let peer = world.nodes[1].peer.clone();
    assert!(world.nodes[2].revoked.has_node(&peer) && !world.nodes[3].revoked.has_node(&peer));
    world.heal();
    world.run(3000);
    assert!(world.nodes[3].revoked.has_node(&peer));
    let cell = world.nodes[3].cell.as_ref().unwrap();
    assert!(cell.members().all(|(member, _)| *member != peer));
}

/// Root document `number`, with so many bytes.
fn root(number: usize, bytes: usize) -> Vec<u8> {
    format!("{number:04}{}", "r".repeat(bytes)).into_bytes()
}

#[test]
fn node_that_was_away_for_ten_root_documents_walks_all_ten_even_in_pieces() {
    for bytes in [1000, 200_000, 700_000] {
        let mut world = World::settled(5, 4);
        for n in 0..4 {
            world.learn_roots(n, vec![root(1, bytes)]);
        }
        world.partition(&[0, 0, 0, 1]);
        world.run(2000);
        for number in 2..=11 {
            // Each time at another node: what one learns all that are reachable learn at once.
            world.learn_roots(number % 3, vec![root(number, bytes)]);
            world.run(200);
        }
        let known: Vec<usize> = world.nodes.iter().map(|node| node.roots.len()).collect();
        assert_eq!(known, [11, 11, 11, 1], "{bytes} bytes each");
        world.heal();
        // A piece with each heartbeat.
        world.run(14_000);
        assert_eq!(world.nodes[3].roots, world.nodes[0].roots, "{bytes} bytes each");
    }
}

#[test]
fn chain_never_gets_shorter_and_a_node_that_starts_anew_keeps_telling() {
    let mut world = World::settled(6, 3);
    let chain: Vec<_> = (1..=3).map(|number| root(number, 100)).collect();
    for n in 0..3 {
        world.learn_roots(n, chain[..1 + n].to_vec());
    }
    world.run(3000);
    assert!(world.nodes.iter().all(|node| node.roots == chain));
    world.learn_roots(0, chain[..1].to_vec());
    world.run(1000);
    assert!(world.nodes.iter().all(|node| node.roots == chain));
}

#[test]
fn replicas_are_spread_over_the_nodes() {
    for seed in 0..20 {
        let mut world = World::settled(seed, 3);
        world.change(seed as usize % 3, deployment("web", 3));
        world.run(2000);
        assert!(
            world.runs_exactly(&workload("web"), 3),
            "seed {seed}: {:?}",
            world.starts
        );
        assert!(
            world.nodes.iter().all(|node| node.pods.len() == 1),
            "seed {seed}: {:?}",
            world.starts
        );
        assert!(
            world
                .nodes
                .iter()
                .all(|node| node.cell.as_ref().unwrap().is_settled()),
            "seed {seed}"
        );
    }
}

#[test]
fn accepted_to_started_takes_less_than_100_ms() {
    let mut took = Vec::new();
    for (seed, nodes) in [(1, 3), (2, 5), (3, 12)] {
        let mut world = World::settled(seed, nodes);
        world.network.min_ms = 5;
        for n in 0..40 {
            let at = world.now;
            world.change(n % nodes, deployment(&format!("w{n}"), 3));
            world.run(3000);
            took.extend(
                world
                    .starts
                    .iter()
                    .filter(|start| start.at >= at)
                    .map(|start| start.at - at),
            );
            world.change(0, deletion(&format!("w{n}")));
            world.run(3000);
        }
    }
    assert_eq!(took.len(), 360);
    took.sort_unstable();
    let p = |per_mille: usize| took[(took.len() * per_mille / 1000).min(took.len() - 1)];
    println!(
        "accepted to started: p50 {} ms, p95 {} ms, p99 {} ms, most {} ms",
        p(500),
        p(950),
        p(990),
        p(1000)
    );
    assert!(p(990) < 100, "{took:?}");
}

#[test]
fn a_dead_node_is_noticed_and_replaced() {
    let (mut slowest_notice, mut slowest) = (0, 0);
    for seed in 0..20 {
        let mut world = World::settled(seed, 3);
        world.network.hiccup = (300, 20);
        world.change(0, deployment("web", 3));
        world.run(3000);
        assert!(world.runs_exactly(&workload("web"), 3), "seed {seed}");
        let killed_at = world.now;
        world.kill(seed as usize % 3);
        let took = world.run_until(20_000, |world| world.runs_exactly(&workload("web"), 3));
        let took = took.unwrap_or_else(|| panic!("seed {seed}: {:#?}", world.events));
        let noticed = world
            .events
            .iter()
            .find(|(at, _, reason, ..)| *reason == "NodeDown" && *at >= killed_at);
        slowest_notice = slowest_notice.max(noticed.unwrap().0 - killed_at);
        slowest = slowest.max(took);
    }
    println!("declared dead after at most {slowest_notice} ms, replaced after at most {slowest} ms");
    assert!(
        slowest_notice < 6000 && slowest < 10_500,
        "{slowest_notice} {slowest}"
    );
}

#[test]
fn hiccups_of_300_ms_kill_nobody() {
    for seed in 0..5 {
        let mut world = World::settled(seed, 3);
        world.network.hiccup = (300, 200);
        world.change(0, deployment("web", 3));
        world.run(120_000);
        assert_eq!(world.saw("NodeDown"), 0, "seed {seed}: {:#?}", world.events);
        assert_eq!(world.starts.len(), 3, "seed {seed}");
    }
}

#[test]
fn half_of_the_nodes_killed_at_once_is_healed_within_20_s() {
    let mut slowest = 0;
    for seed in 0..10 {
        let mut world = World::settled(seed, 10);
        world.change(0, deployment("web", 20));
        world.run(5000);
        assert!(world.runs_exactly(&workload("web"), 20));
        for n in 0..5 {
            world.kill((n * 2 + seed as usize) % 10);
        }
        let took = world.run_until(20_000, |world| world.runs_exactly(&workload("web"), 20));
        slowest = slowest.max(took.unwrap_or_else(|| panic!("seed {seed}")));
    }
    println!("healed after half of the nodes were killed: at most {slowest} ms");
}

#[test]
fn a_cut_off_copy_is_replaced_and_the_newer_one_stays_after_the_heal() {
    for seed in 0..10 {
        let mut world = World::settled(seed, 5);
        world.change(0, deployment("web", 1));
        world.run(2000);
        let key = (workload("web"), 0);
        let [old] = world.holders(&key)[..] else {
            panic!("seed {seed}")
        };
        let sides: Vec<u32> = (0..5).map(|n| u32::from(n == old)).collect();
        world.partition(&sides);
        assert!(
            world.run_until(20_000, |world| world.copies(&key) == 2).is_some(),
            "seed {seed}"
        );
        world.run(5000);
        assert_eq!(world.copies(&key), 2);
        world.heal();
        let took = world.run_until(15_000, |world| world.copies(&key) == 1);
        assert!(took.is_some(), "seed {seed}");
        assert_ne!(world.holders(&key), [old], "seed {seed}: the higher token stays");
        world.run(5000);
        assert!(world.runs_exactly(&workload("web"), 1), "seed {seed}");
    }
}

#[test]
fn a_third_or_less_of_the_cell_starts_nothing() {
    let mut world = World::settled(3, 6);
    world.partition(&[0, 0, 0, 0, 1, 1]);
    world.run(15_000);
    let before = world.starts.len();
    world.change(4, deployment("web", 2));
    world.run(30_000);
    assert_eq!(world.starts.len(), before);
    world.heal();
    assert!(
        world
            .run_until(20_000, |world| world.runs_exactly(&workload("web"), 2))
            .is_some()
    );
}

#[test]
fn two_sides_that_lost_the_holder_each_start_one_and_no_more() {
    for seed in 0..5 {
        let mut world = World::settled(seed, 9);
        world.change(0, deployment("web", 1));
        world.run(2000);
        let key = (workload("web"), 0);
        let [holder] = world.holders(&key)[..] else {
            panic!("seed {seed}")
        };
        let others = (0..9).filter(|n| *n != holder);
        let mut sides = vec![2; 9];
        others
            .enumerate()
            .for_each(|(rank, n)| sides[n] = u32::from(rank % 2 == 0));
        let most = [0, 1].map(|side| sides.iter().filter(|s| **s == side).count());
        assert_eq!(most, [4, 4], "more than a third each");
        world.partition(&sides);
        world.run(60_000);
        assert_eq!(
            (world.copies(&key), world.invariants.most_copies),
            (3, 3),
            "seed {seed}"
        );
        world.heal();
        assert!(
            world.run_until(15_000, |world| world.copies(&key) == 1).is_some(),
            "seed {seed}"
        );
    }
}

#[test]
fn a_leased_copy_that_loses_more_than_two_thirds_of_the_cell_stops_itself() {
    let mut world = World::settled(4, 9);
    world.change(0, deployment("web", 1));
    world.run(2000);
    let key = (workload("web"), 0);
    let mut sides = vec![0; 9];
    for cut in 1..5 {
        let Some(holder) = world.holders(&key).into_iter().find(|n| sides[*n] == 0) else {
            break;
        };
        sides[holder] = cut;
        world.partition(&sides);
        world.run(60_000);
    }
    // The first copy was free and runs on; each later one was leased and stopped when its node was cut off.
    assert_eq!(
        (world.copies(&key), world.invariants.most_copies),
        (2, 2),
        "{:#?}",
        world.starts
    );
    assert!(world.starts.len() >= 4, "{:#?}", world.starts);
    assert!(
        world
            .events
            .iter()
            .any(|(.., message)| message.contains("do not renew its lease"))
    );
    world.heal();
    assert!(
        world
            .run_until(20_000, |world| world.runs_exactly(&workload("web"), 1))
            .is_some()
    );
}

#[test]
fn a_copy_whose_predecessor_is_known_to_have_stopped_is_set_free() {
    let mut world = World::settled(5, 5);
    world.change(0, deployment("web", 1));
    world.run(2000);
    let key = (workload("web"), 0);
    let first = world.holders(&key)[0];
    world.kill(first);
    world.run(20_000);
    world.boot(first);
    world.run(10_000);
    // Cut off alone, it runs on: it is leased no more.
    let second = world.holders(&key)[0];
    assert_ne!(first, second);
    let sides: Vec<u32> = (0..5).map(|n| u32::from(n == second)).collect();
    world.partition(&sides);
    world.run(60_000);
    assert!(world.holders(&key).contains(&second));
}

#[test]
fn in_a_cell_of_three_nothing_stops_itself() {
    let mut world = World::settled(6, 3);
    world.change(0, deployment("web", 3));
    world.run(3000);
    world.kill(2);
    world.run(20_000);
    assert!(world.runs_exactly(&workload("web"), 3));
    world.partition(&[0, 1, 2]);
    world.run(120_000);
    assert!(world.runs_exactly(&workload("web"), 3));
}

#[test]
fn a_growing_roster_starts_no_second_copy() {
    for seed in 0..20 {
        let mut world = World::settled(seed, 1);
        world.change(0, deployment("web", 4));
        for n in 0..8 {
            world.join();
            if n % 3 == 0 {
                world.change(0, deployment(&format!("more-{n}"), 2));
            }
            let pause = [20, 150, 1000][(seed as usize + n) % 3];
            world.run(pause);
        }
        world.run(20_000);
        for (name, replicas) in [("web", 4), ("more-0", 2), ("more-3", 2), ("more-6", 2)] {
            assert!(
                world.runs_exactly(&workload(name), replicas),
                "seed {seed}: {name}"
            );
        }
        assert_eq!(world.starts.len(), 10, "seed {seed}: {:?}", world.starts);
        assert!(
            world
                .nodes
                .iter()
                .all(|node| node.cell.as_ref().unwrap().members().count() == 9),
            "seed {seed}"
        );
    }
}

#[test]
fn members_are_learned_from_members() {
    let mut world = World::new(5);
    world.network.handshake = false;
    for _ in 0..5 {
        world.join();
        world.run(500);
    }
    world.run(10_000);
    assert!(
        world
            .nodes
            .iter()
            .all(|node| node.cell.as_ref().unwrap().members().count() == 5)
    );
    world.change(4, deployment("web", 5));
    world.run(3000);
    assert!(world.nodes.iter().all(|node| node.pods.len() == 1));
}

#[test]
fn a_restarted_agent_finds_its_pods_and_nobody_replaces_them() {
    for seed in 0..10 {
        let mut world = World::settled(seed, 3);
        world.change(0, deployment("web", 3));
        world.run(3000);
        for n in 0..3 {
            world.stop_agent(n);
            world.run(2000);
            world.boot(n);
            world.run(6000);
        }
        assert_eq!(world.starts.len(), 3, "seed {seed}: {:?}", world.starts);
        assert!(
            world
                .nodes
                .iter()
                .all(|node| node.cell.as_ref().unwrap().is_settled()),
            "seed {seed}"
        );
    }
}

#[test]
fn all_agents_restarted_at_once_find_everything() {
    let mut world = World::settled(6, 3);
    world.change(0, deployment("web", 3));
    world.run(3000);
    (0..3).for_each(|n| world.stop_agent(n));
    world.run(60_000);
    (0..3).for_each(|n| world.boot(n));
    world.run(30_000);
    assert_eq!(world.starts.len(), 3);
    assert!(
        world
            .nodes
            .iter()
            .all(|node| node.cell.as_ref().unwrap().is_settled())
    );
}

#[test]
fn a_site_after_a_power_cut_runs_everything_again() {
    let mut world = World::settled(7, 3);
    world.change(0, deployment("web", 3));
    world.run(3000);
    (0..3).for_each(|n| world.kill(n));
    world.run(3_600_000);
    (0..3).for_each(|n| world.boot(n));
    let took = world.run_until(20_000, |world| world.runs_exactly(&workload("web"), 3));
    println!("after a power cut: {took:?} ms");
    assert!(took.is_some_and(|ms| ms < 15_000), "{took:?}");
}

#[test]
fn a_rebooted_node_is_up_again_within_seconds() {
    for seed in 0..10 {
        let mut world = World::settled(seed, 3);
        world.kill(1);
        world.run(if seed % 2 == 0 { 1000 } else { 20_000 });
        world.boot(1);
        let peer = world.nodes[1].peer.clone();
        let took = world.run_until(10_000, |world| {
            let seen = world.nodes[0].cell.as_ref().unwrap().nodes();
            let ready = beemesh_agent_api::view::NodeStatus::Ready;
            world.nodes[1]
                .cell
                .as_ref()
                .unwrap()
                .nodes()
                .iter()
                .all(|node| node.status == ready)
                && seen
                    .iter()
                    .any(|node| node.peer_id == peer && node.status == ready)
        });
        assert!(took.is_some_and(|ms| ms <= 3000), "seed {seed}: {took:?}");
    }
}

#[test]
fn a_new_specification_replaces_one_ordinal_at_a_time() {
    for seed in 0..5 {
        let mut world = World::settled(seed, 3);
        world.change(0, deployment("web", 3));
        world.run(3000);
        let old: Vec<String> = world
            .nodes
            .iter()
            .flat_map(|node| node.pods.keys().cloned())
            .collect();
        world.change(1, beemesh_ci_sim::Wish::with("web", 3, "web:2", ""));
        let mut fewest = 3;
        for _ in 0..2000 {
            world.run(10);
            fewest = fewest.min(world.nodes.iter().map(|node| node.pods.len()).sum::<usize>());
        }
        assert!(world.runs_exactly(&workload("web"), 3), "seed {seed}");
        assert!(
            world
                .nodes
                .iter()
                .all(|node| node.pods.keys().all(|id| !old.contains(id))),
            "seed {seed}"
        );
        assert_eq!(fewest, 2, "seed {seed}");
        assert!(world.nodes[0].cell.as_ref().unwrap().is_settled());
    }
}

#[test]
fn scaling_and_deleting_stop_what_is_not_wanted() {
    let mut world = World::settled(8, 3);
    world.change(0, deployment("web", 5));
    world.run(3000);
    assert!(world.runs_exactly(&workload("web"), 5));
    let kept: Vec<_> = world.starts.clone();
    world.change(2, deployment("web", 2));
    world.run(3000);
    assert!(world.runs_exactly(&workload("web"), 2));
    assert_eq!(world.starts, kept, "what stays is not restarted");
    world.change(1, deletion("web"));
    world.run(3000);
    assert!(world.runs_exactly(&workload("web"), 0));
    assert!(
        world
            .nodes
            .iter()
            .all(|node| node.cell.as_ref().unwrap().pods().is_empty())
    );
    world.change(1, deployment("web", 1));
    world.run(3000);
    assert!(world.runs_exactly(&workload("web"), 1));
}

#[test]
fn a_node_that_was_away_learns_what_changed() {
    let mut world = World::settled(10, 3);
    world.change(0, deployment("web", 3));
    world.run(3000);
    world.partition(&[0, 0, 1]);
    world.change(0, deletion("web"));
    world.change(0, deployment("new", 1));
    world.run(20_000);
    world.heal();
    world.run(10_000);
    assert!(world.runs_exactly(&workload("web"), 0) && world.runs_exactly(&workload("new"), 1));
    assert_eq!(world.nodes[2].cell.as_ref().unwrap().changes().count(), 2);
}

#[test]
fn what_fits_nowhere_says_why_and_runs_once_it_fits() {
    let mut world = World::settled(11, 3);
    world.change(0, beemesh_ci_sim::Wish::with("web", 1, "absent:1", ""));
    world.run(10_000);
    let pods = world.nodes[1].cell.as_ref().unwrap().pods();
    assert!(
        pods[0]
            .reason
            .as_ref()
            .unwrap()
            .contains("image `absent:1` is not in its store"),
        "{pods:?}"
    );
    assert!(world.saw("PodUnplaced") >= 1 && world.saw("PodUnplaced") < 5);
    world.nodes[2].capacity.images.insert("absent:1".into());
    let capacity = world.nodes[2].capacity.clone();
    world.capacity(2, capacity);
    assert!(
        world
            .run_until(6000, |world| world.runs_exactly(&workload("web"), 1))
            .is_some()
    );
    assert_eq!(world.nodes[2].pods.len(), 1);
}

#[test]
fn a_port_of_the_node_is_given_once() {
    let mut world = World::settled(12, 3);
    world.change(
        0,
        beemesh_ci_sim::Wish::with(
            "web",
            4,
            "web:1",
            "        ports: [{containerPort: 80, hostPort: 80}]\n",
        ),
    );
    world.run(8000);
    assert!(world.nodes.iter().all(|node| node.pods.len() == 1));
    let pods = world.nodes[0].cell.as_ref().unwrap().pods();
    let waiting: Vec<_> = pods.iter().filter(|pod| pod.pod_id.is_none()).collect();
    assert_eq!(waiting.len(), 1);
    assert!(
        waiting[0].reason.as_ref().unwrap().contains("port 80 is taken"),
        "{waiting:?}"
    );
}

#[test]
fn memory_is_never_promised_twice() {
    let mut world = World::settled(13, 3);
    let gib = "        resources: {requests: {memory: 1Gi}}\n";
    world.change(0, beemesh_ci_sim::Wish::with("web", 20, "web:1", gib));
    world.run(10_000);
    assert!(
        world.nodes.iter().all(|node| node.pods.len() == 4),
        "{:?}",
        world.starts.len()
    );
}

#[test]
fn a_lost_pod_is_placed_anew_with_growing_pauses() {
    let mut world = World::settled(14, 3);
    world.change(0, deployment("web", 1));
    world.run(1000);
    let began = world.now;
    while world.now < began + 30_000 {
        let key = (workload("web"), 0);
        if let [n] = world.holders(&key)[..] {
            let id = world.nodes[n].pods.keys().next().unwrap().clone();
            world.lose(n, &id);
        }
        world.run(10);
    }
    let starts = world.starts.len();
    assert!((5..60).contains(&starts), "{starts} starts in 30 s");
    world.run(10_000);
    assert!(world.runs_exactly(&workload("web"), 1));
}

#[test]
fn a_voucher_redeemed_twice_keeps_the_second_out() {
    let mut world = World::settled(15, 3);
    let thief = world.join_with(|member| member.voucher_id = "voucher-1".into());
    world.run(5000);
    let peer = world.nodes[thief].peer.clone();
    for n in 0..3 {
        assert!(
            world.nodes[n]
                .cell
                .as_ref()
                .unwrap()
                .members()
                .all(|(member, _)| *member != peer),
            "{n}"
        );
    }
    assert!(world.saw("VoucherReused") >= 1);
    world.change(0, deployment("web", 8));
    world.run(5000);
    assert!(world.nodes[thief].pods.is_empty());
    assert!(world.runs_exactly(&workload("web"), 8));
}

#[test]
fn lost_messages_only_delay() {
    for seed in 0..5 {
        let mut world = World::settled(seed, 5);
        world.network.lost = 100;
        world.network.max_ms = 60;
        world.change(0, deployment("web", 5));
        world.run(20_000);
        assert!(
            world.runs_exactly(&workload("web"), 5),
            "seed {seed}: {:?}",
            world.starts
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut world = World::settled(seed, 4);
        world.network.lost = 50;
        world.change(0, deployment("web", 6));
        world.run(3000);
        world.kill(2);
        world.run(12_000);
        (world.trace(), world.starts)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).0, run(2).0);
}

#[test]
fn an_idle_cell_says_little() {
    let mut world = World::settled(16, 5);
    world.change(0, deployment("web", 5));
    world.run(10_000);
    let before = world.traffic.messages;
    world.run(60_000);
    let per_node_and_second = (world.traffic.messages - before) / 5 / 60;
    assert!(per_node_and_second < 12, "{per_node_and_second}");
}
