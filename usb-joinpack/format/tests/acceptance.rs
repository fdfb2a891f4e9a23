//! Claims about acceptances: exactly what an operator who may has named is accepted, and of two the newer one.
#![allow(clippy::unwrap_used)]

mod generator;

use beemesh_ids::{Digest, PeerId};
use beemesh_usb_joinpack_format::{
    ACCEPTANCE_PAYLOAD_TYPE, Acceptance, Acceptances, Envelope, Refusal, Registers, RootChain, Source, limits,
};
use generator::{FLOOR, draft, key, time};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn roots() -> RootChain {
    RootChain::bootstrap(&draft("shop", 1).manifest.roots).unwrap()
}

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

fn registers(value: u8) -> Registers {
    Registers((0..10).map(|pcr| (pcr, Digest::from([value; 32]))).collect())
}

fn acceptance(n: usize, nodes: &[(u8, u8)]) -> Acceptance {
    Acceptance {
        fabric: roots().fabric_id().clone(),
        id: format!("01KDVKFD0000000000001{n:05}"),
        issued: time(FLOOR),
        reason: Some("firmware 2.1".into()),
        nodes: nodes
            .iter()
            .map(|(n, value)| (peer(*n), registers(*value)))
            .collect(),
    }
}

fn signed(acceptance: &Acceptance) -> Envelope {
    acceptance.sign(&[&key("operator")]).unwrap()
}

fn code<T>(result: Result<T, Refusal>) -> &'static str {
    result.err().map_or("accepted", |refusal| refusal.code())
}

#[test]
fn digest_of_registers_is_that_of_the_specification() {
    let registers = Registers([(0, [0x11; 32].into()), (7, [0x22; 32].into())].into());
    let spec = include_str!("../../SPEC.md");
    assert!(
        spec.contains(&format!("`{}`", registers.digest())),
        "{}",
        registers.digest()
    );
}

#[test]
fn acceptance_that_names_what_no_reader_takes_is_refused() {
    let bent = |bend: &dyn Fn(&mut Acceptance)| {
        let mut acceptance = acceptance(1, &[(1, 1)]);
        bend(&mut acceptance);
        let refused = code(acceptance.to_payload());
        // A signer that does not check itself is refused by every reader, with the same word.
        let payload = serde_json::to_vec(&acceptance).unwrap();
        let envelope = Envelope::sign(ACCEPTANCE_PAYLOAD_TYPE, &payload, &[&key("operator")]);
        assert_eq!(
            code(roots().accept::<Acceptance>(&envelope, Source::Person)),
            refused
        );
        refused
    };
    assert_eq!(bent(&|_| {}), "accepted");
    assert_eq!(bent(&|it| it.id = "1".into()), "malformed");
    assert_eq!(bent(&|it| it.nodes.clear()), "malformed");
    assert_eq!(
        bent(&|it| drop(it.nodes.insert(peer(1), Registers::default()))),
        "malformed"
    );
    assert_eq!(
        bent(&|it| drop(
            it.nodes
                .insert(peer(1), Registers([(24, Digest::of(b"x"))].into()))
        )),
        "malformed"
    );
    assert_eq!(bent(&|it| it.reason = Some(String::new())), "malformed");
    assert_eq!(bent(&|it| it.reason = Some("a\nb".into())), "malformed");
    assert_eq!(
        bent(&|it| it.reason = Some("x".repeat(limits::REASON + 1))),
        "malformed"
    );
    let many: Vec<(u8, u8)> = (0..=limits::ACCEPTED)
        .map(|n| (u8::try_from(n).unwrap(), 1))
        .collect();
    assert_eq!(
        bent(&|it| it.nodes = acceptance(1, &many).nodes),
        "limit-exceeded"
    );
    assert_eq!(bent(&|it| it.nodes = acceptance(1, &many[1..]).nodes), "accepted");
}

#[test]
fn register_that_is_named_twice_is_refused() {
    let payload = String::from_utf8(acceptance(1, &[(1, 1)]).to_payload().unwrap()).unwrap();
    let twice = payload.replacen("\"1\":", "\"0\":", 1);
    assert_ne!(twice, payload);
    let envelope = Envelope::sign(ACCEPTANCE_PAYLOAD_TYPE, twice.as_bytes(), &[&key("operator")]);
    assert_eq!(
        code(roots().accept::<Acceptance>(&envelope, Source::Person)),
        "malformed"
    );
}

#[test]
fn only_operators_of_this_fabric_accept() {
    let by = |name: &str| acceptance(1, &[(1, 1)]).sign(&[&key(name)]).unwrap();
    let take = |envelope: &Envelope| code(Acceptances::default().take(envelope, &roots(), Source::Person));
    assert_eq!(take(&by("operator")), "accepted");
    assert_eq!(take(&by("enrolment-1")), "unknown-key");
    assert_eq!(take(&by("nobody")), "unknown-key");
    let mut foreign = acceptance(1, &[(1, 1)]);
    foreign.fabric = RootChain::bootstrap(&draft("warehouse", 1).manifest.roots)
        .unwrap()
        .fabric_id()
        .clone();
    assert_eq!(take(&signed(&foreign)), "other-fabric");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn invariant_the_newest_acceptance_of_each_node_counts_whatever_the_order_and_a_replay_takes_nothing_back(
        arrivals in proptest::collection::vec(proptest::collection::btree_map(0u8..6, 0u8..4, 1..4), 1..10)
            .prop_map(|all| all.into_iter().enumerate().collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let roots = roots();
        let envelope = |(n, nodes): &(usize, BTreeMap<u8, u8>)| {
            signed(&acceptance(*n, &nodes.iter().map(|(n, value)| (*n, *value)).collect::<Vec<_>>()))
        };
        let mut held = Acceptances::default();
        for arrival in &arrivals {
            held.take(&envelope(arrival), &roots, Source::Person).unwrap();
        }
        let mut newest = BTreeMap::new();
        let mut sorted = arrivals.clone();
        sorted.sort();
        for (_, nodes) in &sorted {
            newest.extend(nodes.iter().map(|(n, value)| (peer(*n), registers(*value))));
        }
        prop_assert_eq!(held.accepted(), newest);
        for arrival in &arrivals {
            prop_assert_eq!(held.take(&envelope(arrival), &roots, Source::Member), Ok(false));
        }
        let envelopes: Vec<_> = held.envelopes().cloned().collect();
        prop_assert_eq!(Acceptances::restore(&envelopes, &roots), held);
    }
}
