//! Claims about rotations of node keys and the orders for them: a chain proves every key of a node and no other; orders agree
//! whatever the order of arrival.
#![allow(clippy::unwrap_used)]

mod generator;

use beemesh_ids::PeerId;
use beemesh_usb_joinpack_format::{
    Assurance, Envelope, KeyOrder, KeyOrders, Member, Membership, ROTATION_PAYLOAD_TYPE, Refusal, RootChain,
    Rotation, SecretKey, Source, limits,
};
use generator::{FLOOR, ISSUED, draft, key, sign_order, time};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn roots() -> RootChain {
    RootChain::bootstrap(&draft("shop", 1).manifest.roots).unwrap()
}

fn peer(key: &SecretKey) -> PeerId {
    PeerId::from_ed25519(key.public().as_bytes())
}

fn code<T>(result: Result<T, Refusal>) -> &'static str {
    result.err().map_or("accepted", |refusal| refusal.code())
}

fn ulid(n: usize) -> String {
    format!("01KDVKFD0000000000001{n:05}")
}

fn node_key(n: usize) -> SecretKey {
    key(&format!("node key {n}"))
}

/// A member whose key is `node_key(0)`.
fn fresh() -> Membership {
    let pack = draft("shop", 1).manifest;
    let voucher = &pack.vouchers[0];
    let one_time = voucher.one_time_key.as_ref().unwrap();
    Membership::redeem(
        &voucher.envelope,
        one_time,
        &peer(&node_key(0)),
        Assurance::Tpm,
        time(FLOOR),
    )
    .unwrap()
}

fn rotation(from: usize, to: usize) -> Rotation {
    Rotation {
        fabric: roots().fabric_id().clone(),
        node: peer(&node_key(0)),
        generation: u32::try_from(from + 1).unwrap(),
        from: peer(&node_key(from)),
        to: peer(&node_key(to)),
        order: ulid(from + 1),
        issued: time(FLOOR),
    }
}

fn sign(rotation: &Rotation, keys: &[&SecretKey]) -> Envelope {
    let payload = serde_json::to_vec(rotation).unwrap();
    Envelope::sign(ROTATION_PAYLOAD_TYPE, &payload, keys)
}

/// The member after `n` rotations.
fn rotated(n: usize) -> Membership {
    let mut membership = fresh();
    for from in 0..n {
        let rotation = rotation(from, from + 1);
        membership
            .rotations
            .push(rotation.sign(&node_key(from), &node_key(from + 1)).unwrap());
    }
    membership
}

fn verify(membership: &Membership, n: usize) -> Result<Member, Refusal> {
    membership.verify(&roots(), &peer(&node_key(n)))
}

#[test]
fn rotated_node_is_who_it_was_by_each_of_its_keys_and_by_no_other() {
    let membership = rotated(3);
    for n in 0..=3 {
        let member = verify(&membership, n).unwrap();
        assert_eq!(member.peer_id, peer(&node_key(0)), "the node id stays");
        assert_eq!(member.keys.shown() as usize, n);
        assert_eq!(
            (member.keys.newest(), member.keys.generation()),
            (&peer(&node_key(3)), 3)
        );
        assert_eq!(member.keys.as_of(), ulid(3));
    }
    assert_eq!(code(verify(&membership, 4)), "other-peer");
    assert_eq!(
        verify(&fresh(), 0).unwrap().keys.as_of(),
        "01KDVKFD000000000000000001",
        "the voucher's id"
    );
}

#[test]
fn credential_of_most_rotations_is_read_and_one_more_is_refused() {
    let full = rotated(limits::ROTATIONS);
    let read = Membership::parse(&full.to_bytes()).unwrap();
    let member = verify(&read, limits::ROTATIONS).unwrap();
    assert_eq!(
        member
            .keys
            .next(&member.fabric, peer(&node_key(99)), ulid(99), time(FLOOR)),
        None
    );
    assert_eq!(code(verify(&rotated(limits::ROTATIONS + 1), 0)), "limit-exceeded");
}

#[test]
fn one_of_the_two_keys_alone_rotates_nothing() {
    let (old, new, stranger) = (node_key(0), node_key(1), key("stranger"));
    let with = |keys: &[&SecretKey]| {
        let mut membership = fresh();
        membership.rotations.push(sign(&rotation(0, 1), keys));
        code(verify(&membership, 1))
    };
    assert_eq!(with(&[&old, &new]), "accepted");
    assert_eq!(with(&[&old]), "threshold-not-met");
    assert_eq!(with(&[&new]), "threshold-not-met");
    assert_eq!(with(&[&old, &old]), "threshold-not-met");
    assert_eq!(with(&[&old, &stranger]), "unknown-key");
    assert_eq!(with(&[&old, &new, &stranger]), "unknown-key");
    assert_eq!(with(&[]), "threshold-not-met");
}

#[test]
fn chain_with_a_defect_is_refused() {
    let with = |bend: &dyn Fn(&mut Rotation)| {
        let mut second = rotation(1, 2);
        bend(&mut second);
        let mut membership = rotated(1);
        membership
            .rotations
            .push(sign(&second, &[&node_key(1), &node_key(2)]));
        code(verify(&membership, 2))
    };
    assert_eq!(with(&|_| {}), "accepted");
    assert_eq!(with(&|second| second.generation = 3), "inconsistent");
    assert_eq!(with(&|second| second.generation = 1), "inconsistent");
    assert_eq!(with(&|second| second.node = peer(&key("other"))), "inconsistent");
    assert_eq!(with(&|second| second.order = ulid(1)), "inconsistent");
    assert_eq!(with(&|second| second.order = "first".to_owned()), "malformed");
    let warehouse = draft("warehouse", 1).manifest.fabric;
    assert_eq!(with(&|second| second.fabric = warehouse.clone()), "other-fabric");
    // A gap, and a key that comes back.
    let mut gap = rotated(3);
    gap.rotations.remove(1);
    assert_eq!(code(verify(&gap, 3)), "inconsistent");
    let mut back = rotated(1);
    let again = Rotation {
        to: peer(&node_key(0)),
        ..rotation(1, 2)
    };
    back.rotations.push(sign(&again, &[&node_key(1), &node_key(0)]));
    assert_eq!(code(verify(&back, 1)), "inconsistent");
}

#[test]
fn rotation_to_the_same_key_or_by_other_keys_is_not_signed() {
    assert_eq!(
        code(rotation(0, 0).sign(&node_key(0), &node_key(0))),
        "inconsistent"
    );
    assert_eq!(
        code(rotation(0, 1).sign(&node_key(1), &node_key(0))),
        "inconsistent"
    );
    assert_eq!(code(rotation(0, 1).sign(&node_key(0), &node_key(1))), "accepted");
}

fn order((id, nodes): &(usize, BTreeSet<u8>)) -> Envelope {
    let order = KeyOrder {
        fabric: roots().fabric_id().clone(),
        id: ulid(*id),
        issued: time(ISSUED),
        // An empty set stands for all.
        nodes: (!nodes.is_empty()).then(|| nodes.iter().map(|n| PeerId::from_ed25519(&[*n; 32])).collect()),
    };
    sign_order(&order, &["operator"])
}

/// Distinct ids, as ULIDs are.
fn orders() -> impl Strategy<Value = Vec<(usize, BTreeSet<u8>)>> {
    let nodes = proptest::collection::vec(proptest::collection::btree_set(0u8..8, 0..4), 0..12);
    nodes
        .prop_map(|nodes| nodes.into_iter().enumerate().collect())
        .prop_shuffle()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn invariant_the_newest_order_of_each_node_is_known_and_a_replay_says_nothing(arrivals in orders()) {
        let roots = roots();
        let mut held = KeyOrders::default();
        for arrival in &arrivals {
            held.take(&order(arrival), &roots, Source::Person).unwrap();
        }
        for n in 0..8u8 {
            let node = PeerId::from_ed25519(&[n; 32]);
            let of = arrivals.iter().filter(|(_, nodes)| nodes.is_empty() || nodes.contains(&n));
            let newest = of.map(|(id, _)| ulid(*id)).max();
            prop_assert_eq!(held.newest_for(&node).map(str::to_owned), newest);
        }
        for arrival in &arrivals {
            prop_assert_eq!(held.clone().take(&order(arrival), &roots, Source::Person), Ok(false));
        }
        let mut sorted = arrivals;
        sorted.sort();
        let mut other = KeyOrders::default();
        sorted.iter().for_each(|arrival| drop(other.take(&order(arrival), &roots, Source::Person)));
        prop_assert_eq!(other.digest(), held.digest());
        let envelopes: Vec<_> = held.envelopes().cloned().collect();
        prop_assert_eq!(KeyOrders::restore(&envelopes, &roots), held);
    }
}

#[test]
fn order_can_name_each_member_of_the_largest_cell_and_fits_with_all_its_signatures() {
    let named = |count: usize| KeyOrder {
        fabric: roots().fabric_id().clone(),
        id: ulid(1),
        issued: time(ISSUED),
        nodes: Some((1..=count as u64).map(numbered).collect()),
    };
    let keys: Vec<SecretKey> = (0..limits::SIGNATURES as u8)
        .map(|n| SecretKey::from_bytes([n; 32]))
        .collect();
    let keys: Vec<&SecretKey> = keys.iter().collect();
    let envelope = named(limits::MEMBERS).sign(&keys).unwrap();
    let bytes = envelope.to_json();
    assert!(
        bytes.len() <= limits::ORDER_LIMIT,
        "an order of {} bytes is not handed on",
        bytes.len()
    );
    assert_eq!(Envelope::parse(&bytes, limits::ORDER_LIMIT), Ok(envelope));
    let largest = sign_order(&named(limits::MEMBERS), &["operator"]);
    let mut held = KeyOrders::default();
    assert_eq!(held.take(&largest, &roots(), Source::Person), Ok(true));
    let last = numbered(limits::MEMBERS as u64);
    assert_eq!(held.newest_for(&last), Some(ulid(1).as_str()));
    assert_eq!(code(named(limits::MEMBERS + 1).sign(&keys)), "limit-exceeded");
}

fn numbered(n: u64) -> PeerId {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    PeerId::from_ed25519(&key)
}

#[test]
fn orders_beyond_the_bound_are_refused_and_one_for_all_makes_room() {
    let roots = roots();
    let mut held = KeyOrders::default();
    let one = |n: usize| order(&(n, BTreeSet::from([u8::try_from(n).unwrap()])));
    for n in 0..limits::ORDERS {
        assert_eq!(held.take(&one(n), &roots, Source::Person), Ok(true));
    }
    assert_eq!(
        code(held.take(&one(limits::ORDERS), &roots, Source::Person)),
        "limit-exceeded"
    );
    assert_eq!(
        held.take(&order(&(99, BTreeSet::new())), &roots, Source::Person),
        Ok(true)
    );
    assert_eq!(held.iter().count(), 1);
}
