//! Claims about revocations: sets only grow, agree whatever the order, stay within their bounds; revoked keys sign nothing.
#![allow(clippy::unwrap_used)]

mod generator;

use beemesh_ids::{FabricId, PeerId};
use beemesh_usb_joinpack_format::{
    Envelope, Membership, Pack, Refusal, RevocationSet, Revocations, Role, RootChain, Source, Timestamp,
    limits,
};
use generator::{FLOOR, draft, key, sign_snapshot, time};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn roots() -> RootChain {
    RootChain::bootstrap(&draft("shop", 1).manifest.roots).unwrap()
}

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn ulid(n: u8) -> String {
    format!("01KDVKFD00000000000000{n:04}")
}

fn snapshot(fabric: &FabricId, (issued, nodes, vouchers): &(i64, BTreeSet<u8>, BTreeSet<u8>)) -> Envelope {
    let mut snapshot = Revocations::none(fabric.clone(), Timestamp(*issued));
    snapshot.nodes = nodes.iter().map(|n| peer(*n)).collect();
    snapshot.vouchers = vouchers.iter().map(|n| ulid(*n)).collect();
    sign_snapshot(&snapshot, &["operator"])
}

fn code<T>(result: Result<T, Refusal>) -> &'static str {
    result.err().map_or("accepted", |refusal| refusal.code())
}

fn snapshots() -> impl Strategy<Value = Vec<(i64, BTreeSet<u8>, BTreeSet<u8>)>> {
    let set = || proptest::collection::btree_set(0u8..12, 0..5);
    proptest::collection::vec((0i64..9, set(), set()), 0..limits::SNAPSHOTS)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn invariant_a_set_only_grows_and_its_age_only_falls(documents in snapshots()) {
        let roots = roots();
        let mut set = RevocationSet::default();
        let (mut nodes, mut newest) = (BTreeSet::new(), None);
        for document in &documents {
            let before = set.clone();
            let changed = set.take(&snapshot(roots.fabric_id(), document), &roots, Source::Person).unwrap();
            nodes.extend(document.1.iter().copied());
            newest = newest.max(Some(Timestamp(document.0)));
            prop_assert_eq!(changed, set != before);
            prop_assert!((0..12).all(|n| set.has_node(&peer(n)) == nodes.contains(&n)));
            prop_assert_eq!(set.issued(), newest);
            prop_assert!(set.envelopes().count() <= limits::SNAPSHOTS);
        }
    }

    #[test]
    fn invariant_order_and_repetition_do_not_matter(documents in snapshots(), seed in any::<u64>()) {
        let roots = roots();
        let mut one = RevocationSet::default();
        let mut other = RevocationSet::default();
        let mut shuffled = documents.clone();
        if !shuffled.is_empty() {
            let middle = seed as usize % shuffled.len();
            shuffled.rotate_left(middle);
            shuffled.reverse();
        }
        for document in &documents {
            one.take(&snapshot(roots.fabric_id(), document), &roots, Source::Person).unwrap();
        }
        for document in shuffled.iter().chain(&documents) {
            other.take(&snapshot(roots.fabric_id(), document), &roots, Source::Person).unwrap();
        }
        prop_assert_eq!(one.digest(), other.digest());
        let held: Vec<_> = one.envelopes().cloned().collect();
        prop_assert_eq!(RevocationSet::restore(&held, &roots).digest(), one.digest());
    }
}

#[test]
fn snapshots_that_each_lack_what_another_has_are_bounded_and_one_of_all_replaces_them() {
    let roots = roots();
    let mut set = RevocationSet::default();
    let at = |n: u8| snapshot(roots.fabric_id(), &(1, BTreeSet::from([n]), BTreeSet::new()));
    for n in 0..limits::SNAPSHOTS as u8 {
        assert_eq!(set.take(&at(n), &roots, Source::Person), Ok(true));
    }
    let before = set.clone();
    assert_eq!(code(set.take(&at(100), &roots, Source::Person)), "limit-exceeded");
    assert_eq!(set, before);
    let mut all = set.union(roots.fabric_id());
    all.nodes.insert(peer(100));
    assert_eq!(
        set.take(&sign_snapshot(&all, &["operator"]), &roots, Source::Person),
        Ok(true)
    );
    assert_eq!(set.envelopes().count(), 1);
}

#[test]
fn replayed_snapshot_takes_nothing_back() {
    let roots = roots();
    let mut set = RevocationSet::default();
    let older = snapshot(roots.fabric_id(), &(1, BTreeSet::new(), BTreeSet::new()));
    let newer = snapshot(roots.fabric_id(), &(2, BTreeSet::from([1]), BTreeSet::new()));
    assert_eq!(set.take(&newer, &roots, Source::Person), Ok(true));
    assert_eq!(set.take(&older, &roots, Source::Person), Ok(false));
    assert!(set.has_node(&peer(1)) && set.issued() == Some(Timestamp(2)));
}

#[test]
fn largest_snapshot_fits_its_bounds() {
    let roots = roots();
    let mut snapshot = Revocations::none(roots.fabric_id().clone(), time(FLOOR));
    let id = |n: usize| format!("01KDVKFD000000000000{n:06}");
    snapshot.vouchers = (0..limits::REVOKED).map(id).collect();
    snapshot.nodes = (0..limits::REVOKED)
        .map(|n| {
            let mut bytes = [7; 32];
            bytes[..2].copy_from_slice(&(n as u16).to_be_bytes());
            PeerId::from_ed25519(&bytes)
        })
        .collect();
    let envelope = sign_snapshot(&snapshot, &["operator"]);
    let length = envelope.to_json().len();
    assert!(length <= limits::REVOCATION_LIMIT, "{length}");
    assert_eq!(
        Revocations::verify(&envelope, &roots, Source::Person),
        Ok(snapshot)
    );
}

#[test]
fn revoked_key_signs_nothing_but_the_members_it_admitted_stay() {
    let pack = draft("shop", 1);
    let voucher = &pack.manifest.vouchers[0];
    let machine = peer(9);
    let assurance = beemesh_usb_joinpack_format::Assurance::Low;
    let key_of = voucher.one_time_key.as_ref().unwrap();
    let membership = Membership::redeem(&voucher.envelope, key_of, &machine, assurance, time(FLOOR)).unwrap();
    let (enrolment, root) = (
        key("enrolment-1").public().key_id(),
        key("root-1").public().key_id(),
    );
    let roots = roots().without([&enrolment, &root]);
    assert!(roots.role(Role::Enrolment).key(&enrolment).is_none());
    assert!(
        roots.role(Role::Root).key(&root).is_some(),
        "root keys go by root documents alone"
    );
    assert_eq!(code(membership.verify(&roots, &machine)), "unknown-key");
    assert_eq!(code(membership.verify_known(&roots, &machine)), "accepted");
    assert_eq!(code(membership.verify_known(&roots, &peer(8))), "other-peer");
    let stick = Pack::parse(&pack.joinpack()).unwrap();
    assert_eq!(code(stick.verify(Some(&roots), time(FLOOR), None)), "unknown-key");
    let extended = roots.extend(&pack.manifest.roots).unwrap();
    assert!(
        extended.role(Role::Enrolment).key(&enrolment).is_none(),
        "a longer chain brings nothing back"
    );
}
