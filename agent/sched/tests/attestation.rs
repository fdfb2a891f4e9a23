//! What nodes booted, as they judge each other, and where pods go that demand an assurance.

#![allow(clippy::unwrap_used)]

use beemesh_agent_api::view::NodeAssurance;
use beemesh_agent_sched::attestation::{AGAIN_MS, EVERY_MS, FIRST_MS, VALID_MS};
use beemesh_ci_sim::{Wish, World, deployment};
use beemesh_firmware_measure::fake::FakeChip;
use beemesh_ids::Digest;
use std::collections::BTreeMap;

fn release() -> Digest {
    Digest::of(b"release")
}

fn registers(image: Digest) -> BTreeMap<u8, Digest> {
    let mut pcrs: BTreeMap<u8, Digest> = (0..8).map(|pcr| (pcr, Digest::of(&[pcr]))).collect();
    pcrs.extend([(11, image), (12, Digest::of(b"given"))]);
    pcrs
}

/// Three nodes with TPMs that booted the release, and know it.
fn world() -> World {
    let mut world = World::settled(21, 3);
    world.attests = true;
    for n in 0..3 {
        world.nodes[n].tpm = Some((FakeChip::new(), registers(release())));
        world.releases(n, &[release()]);
    }
    world
}

fn set(world: &mut World, n: usize, pcr: u8, value: &[u8]) {
    world.nodes[n]
        .tpm
        .as_mut()
        .unwrap()
        .1
        .insert(pcr, Digest::of(value));
}

/// How node `by` judges node `n`.
fn judged(world: &World, by: usize, n: usize) -> String {
    let nodes = world.nodes[by].cell.as_ref().unwrap().nodes();
    let found = nodes.into_iter().find(|node| node.peer_id == world.nodes[n].peer);
    found.unwrap().assurance.to_string()
}

fn all_trust(world: &World, n: usize) -> bool {
    (0..3).all(|by| judged(world, by, n) == "trusted")
}

fn secure(replicas: u32) -> Wish {
    let mut wish = deployment("vault", replicas);
    let selector = &mut wish.spec.as_mut().unwrap().pod.node_selector;
    selector.insert("assurance".into(), "trusted".into());
    wish
}

fn why(world: &World, at: usize) -> String {
    let pods = world.nodes[at].cell.as_ref().unwrap().pods();
    pods[0].reason.clone().unwrap_or_default()
}

#[test]
fn members_become_trusted_after_the_join_and_the_pod_waits_for_that_with_a_reason() {
    let mut world = world();
    assert_eq!(
        judged(&world, 0, 1),
        "tpm",
        "its claim, as long as nobody has judged"
    );
    world.change(0, secure(3));
    world.run(500);
    assert!(why(&world, 1).contains("not judged yet"), "{}", why(&world, 1));
    let took = world.run_until(3 * FIRST_MS, |world| (0..3).all(|n| all_trust(world, n)));
    assert!(took.is_some(), "{}", world.describe());
    let workload = secure(3).workload;
    let placed = world.run_until(6000, |world| world.runs_exactly(&workload, 3));
    assert!(placed.is_some(), "{}", world.describe());
}

#[test]
fn node_that_boots_another_image_is_changed_and_gets_no_pod_that_demands_trust() {
    let mut world = world();
    world.run(3 * FIRST_MS);
    assert!(all_trust(&world, 2));
    world.kill(2);
    world.run(8000);
    set(&mut world, 2, 11, b"altered");
    world.boot(2);
    world.releases(2, &[release()]);
    world.run(FIRST_MS / 2);
    assert_ne!(
        judged(&world, 0, 2),
        "trusted",
        "what it was before its reboot does not count"
    );
    world.run(AGAIN_MS + FIRST_MS);
    for by in 0..3 {
        assert_eq!(judged(&world, by, 2), "changed: PCR 11", "by {by}");
    }
    assert!(world.saw("AssuranceChanged") >= 3);
    // Each node says it on its own console, in words.
    for by in 0..3 {
        let mut lines = world.alarms.iter().filter(|(node, _)| *node == by);
        let told = lines.any(|(_, line)| {
            line.starts_with("do not trust node `node-2`: it booted an image that no join pack")
                && line.contains("(changed: PCR 11)")
        });
        assert!(told, "by {by}: {:?}", world.alarms);
    }
    assert!(
        world.alarms.iter().all(|(_, line)| line.contains("node-2")),
        "nobody else is an alarm: {:?}",
        world.alarms
    );
    world.change(2, secure(3));
    world.run(8000);
    assert_eq!(world.nodes[2].pods.len(), 0, "{}", world.describe());
    assert_eq!(world.nodes[0].pods.len() + world.nodes[1].pods.len(), 3);
    // It heals: the image that the release names.
    world.kill(2);
    world.run(8000);
    world.nodes[2].tpm.as_mut().unwrap().1.insert(11, release());
    world.boot(2);
    world.releases(2, &[release()]);
    let took = world.run_until(AGAIN_MS + 2 * FIRST_MS, |world| all_trust(world, 2));
    assert!(took.is_some(), "{}", world.describe());
}

#[test]
fn every_node_changed_means_no_place_and_the_reason_names_the_register() {
    let mut world = world();
    world.run(3 * FIRST_MS);
    for n in 0..3 {
        set(&mut world, n, 7, b"secure boot off");
    }
    world.run(EVERY_MS + 60_000);
    assert_eq!(judged(&world, 0, 1), "changed: PCR 7");
    world.change(0, secure(1));
    world.run(8000);
    assert!(why(&world, 1).contains("changed: PCR 7"), "{}", why(&world, 1));
}

#[test]
fn baseline_is_remembered_over_a_restart_of_the_agent() {
    let mut world = world();
    world.run(3 * FIRST_MS);
    set(&mut world, 1, 4, b"another boot loader");
    world.stop_agent(0);
    world.run(8000);
    world.boot(0);
    world.releases(0, &[release()]);
    world.run(AGAIN_MS + 2 * FIRST_MS);
    assert_eq!(judged(&world, 0, 1), "changed: PCR 4");
}

#[test]
fn node_without_a_tpm_is_low_and_without_releases_nobody_is_trusted() {
    let mut world = world();
    world.nodes[1].tpm = None;
    world.releases(2, &[]);
    world.run(4 * FIRST_MS);
    assert_eq!(judged(&world, 0, 1), NodeAssurance::Low.to_string());
    assert_eq!(
        (judged(&world, 0, 2), judged(&world, 2, 0)),
        ("trusted".into(), "tpm".into())
    );
}

#[test]
fn judgement_ends_where_no_answer_comes_any_more() {
    let mut world = world();
    world.run(3 * FIRST_MS);
    assert!(all_trust(&world, 1));
    // It stays connected and answers nothing.
    let taken = world.nodes[1].tpm.take();
    world.nodes[1].silent = true;
    world.run(VALID_MS - 4 * FIRST_MS);
    assert_eq!(judged(&world, 0, 1), "trusted");
    world.run(8 * FIRST_MS);
    assert_eq!(judged(&world, 0, 1), "tpm", "only its claim is left");
    world.nodes[1].silent = false;
    world.nodes[1].tpm = taken;
    world.run(EVERY_MS + 2 * FIRST_MS);
    assert_eq!(judged(&world, 0, 1), "trusted");
}

#[test]
fn firmware_update_that_an_operator_accepts_at_one_node_is_trusted_by_all_and_what_was_before_is_not() {
    let mut world = world();
    world.run(3 * FIRST_MS);
    set(&mut world, 2, 0, b"firmware 2");
    world.run(EVERY_MS + 60_000);
    for by in 0..3 {
        assert_eq!(judged(&world, by, 2), "changed: PCR 0", "by {by}");
    }
    let boots = world.nodes[1].cell.as_ref().unwrap().boots();
    let boot = boots
        .iter()
        .find(|boot| boot.node == world.nodes[2].peer)
        .unwrap();
    let (was, is) = (Digest::of(&[0]), Digest::of(b"firmware 2"));
    assert_eq!(
        boot.changes(),
        [(0, Some(was), Some(is))],
        "what changed, from what, to what"
    );
    assert_eq!(boot.release.as_deref(), Some("1"));
    world.accept(0, 2);
    let took = world.run_until(120_000, |world| all_trust(world, 2));
    assert!(took.is_some(), "{}", world.describe());
    // Back to the firmware that the operator replaced.
    set(&mut world, 2, 0, &[0]);
    world.run(EVERY_MS + 60_000);
    for by in 0..3 {
        assert_eq!(judged(&world, by, 2), "changed: PCR 0", "by {by}");
    }
}

#[test]
fn acceptance_reaches_a_member_that_was_off_and_survives_restarts_of_all() {
    let mut world = world();
    world.run(3 * FIRST_MS);
    world.kill(0);
    set(&mut world, 2, 0, b"firmware 2");
    world.run(EVERY_MS + 60_000);
    world.accept(1, 2);
    world.run(120_000);
    assert_eq!(judged(&world, 1, 2), "trusted");
    // The one at which it was given is gone when the other comes back.
    world.kill(1);
    world.run(8000);
    world.boot(0);
    world.releases(0, &[release()]);
    world.run(180_000);
    assert_eq!(judged(&world, 0, 2), "trusted", "{}", world.describe());
    for n in [0, 2] {
        world.kill(n);
    }
    for n in 0..3 {
        world.boot(n);
        world.releases(n, &[release()]);
    }
    let took = world.run_until(240_000, |world| all_trust(world, 2));
    assert!(took.is_some(), "{}", world.describe());
}

#[test]
fn what_comes_after_an_acceptance_is_not_accepted_with_it() {
    let mut world = world();
    world.run(3 * FIRST_MS);
    set(&mut world, 2, 0, b"firmware 2");
    world.accept(0, 2);
    set(&mut world, 2, 0, b"firmware 3");
    world.run(EVERY_MS + 120_000);
    for by in 0..3 {
        assert_eq!(judged(&world, by, 2), "changed: PCR 0", "by {by}");
    }
}

/// An attacker puts an older genuine image back: the fabric has gone on to another release.
#[test]
fn downgrade_to_an_older_image_is_old_and_gets_no_pod_that_demands_trust() {
    let mut world = world();
    let newer = Digest::of(b"release 2");
    world.list_release(0, 1, "1", release());
    world.run(3 * FIRST_MS);
    assert!(all_trust(&world, 2));
    for n in 0..2 {
        world.nodes[n].tpm.as_mut().unwrap().1.insert(11, newer);
    }
    // One node hears of the newer release, by a stick.
    world.list_release(0, 2, "2", newer);
    world.run(240_000);
    for by in 0..3 {
        assert_eq!(judged(&world, by, 2), "old: release 1", "by {by}");
        assert_eq!(judged(&world, by, 1), "trusted", "by {by}");
    }
    assert!(world.saw("AssuranceChanged") >= 3);
    world.change(2, secure(3));
    world.run(8000);
    assert_eq!(world.nodes[2].pods.len(), 0, "{}", world.describe());
    assert_eq!(world.nodes[0].pods.len() + world.nodes[1].pods.len(), 3);
}

/// An attacker shows one box an older pack, which that box has never seen, and one that is joined by it alone.
#[test]
fn replay_of_an_older_pack_at_one_box_downgrades_nobodys_releases_and_its_own_are_repaired() {
    let mut world = world();
    let newer = Digest::of(b"release 2");
    for n in 0..2 {
        world.nodes[n].tpm.as_mut().unwrap().1.insert(11, newer);
    }
    world.list_release(0, 2, "2", newer);
    world.run(240_000);
    assert_eq!(judged(&world, 1, 2), "old: release 1");
    world.list_release(1, 1, "1", release());
    // As if by an older pack, apart from the others.
    world.releases(1, &[release()]);
    world.run(240_000);
    for by in 0..3 {
        assert_eq!(judged(&world, by, 2), "old: release 1", "by {by}");
        assert_eq!(judged(&world, by, 0), "trusted", "by {by}");
    }
    // Over restarts of the agents too, with an older pack on their disks.
    for n in 0..3 {
        world.stop_agent(n);
    }
    for n in 0..3 {
        world.boot(n);
        world.releases(n, &[release()]);
    }
    world.run(240_000);
    for by in 0..3 {
        assert_eq!(judged(&world, by, 2), "old: release 1", "by {by}");
    }
}
