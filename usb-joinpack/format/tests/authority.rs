//! Claims about who may do what, and until when.
#![allow(clippy::unwrap_used)]

mod generator;

use beemesh_ids::{FabricId, PeerId};
use beemesh_usb_joinpack_format::{
    Act, Assurance, Deed, Denial, Envelope, Grant, KeyLimits, Membership, Refusal, Revocations, Role, Root,
    RootChain, Source, Timestamp, Voucher,
};
use generator::{FLOOR, ISSUED, draft, key, root, second_root, sign_root, sign_snapshot, time};
use proptest::prelude::*;

/// A document of operators for these tests: what it does is what it says.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Order {
    fabric: FabricId,
    at: Timestamp,
    namespace: String,
    name: String,
}

impl Deed for Order {
    const PAYLOAD_TYPE: &'static str = "application/vnd.beemesh.order.v1+json";
    const WHAT: &'static str = "order";
    const ROLES: &'static [Role] = &[Role::Operator];
    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(payload).map_err(|e| Refusal::malformed(Self::WHAT, e))
    }
    fn act(&self) -> Act<'_> {
        Act::Workload {
            namespace: &self.namespace,
            name: &self.name,
        }
    }
    fn at(&self) -> Timestamp {
        self.at
    }
    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

fn order(roots: &RootChain, at: Timestamp, workload: &str, signers: &[&str]) -> Envelope {
    let (namespace, name) = workload.split_once('/').unwrap();
    let order = Order {
        fabric: roots.fabric_id().clone(),
        at,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let keys: Vec<_> = signers.iter().map(|name| key(name)).collect();
    let keys: Vec<_> = keys.iter().collect();
    Envelope::sign(Order::PAYLOAD_TYPE, &serde_json::to_vec(&order).unwrap(), &keys)
}

fn limits(expires: Option<Timestamp>, scope: Option<&[&str]>) -> KeyLimits {
    KeyLimits {
        expires,
        scope: scope.map(|scope| scope.iter().map(|grant| grant.parse().unwrap()).collect()),
    }
}

/// The fabric of the vectors with these operators; root 2 is issued when the vectors are.
fn operators(all: &[(&str, KeyLimits)], threshold: u32) -> RootChain {
    let first = root("shop", 1);
    let mut second: Root = first.clone();
    second.version = 2;
    let spec = second.roles.get_mut(&Role::Operator).unwrap();
    spec.keyids = all.iter().map(|(name, _)| key(name).public().key_id()).collect();
    spec.threshold = threshold;
    for (name, limits) in all {
        second
            .keys
            .insert(key(name).public().key_id(), key(name).public());
        if !limits.is_none() {
            spec.limits.insert(key(name).public().key_id(), limits.clone());
        }
    }
    let names = ["root-1", "root-2"];
    RootChain::bootstrap(&[
        sign_root(&first, &["root-1", "root-2", "root-3"]),
        sign_root(&second, &names),
    ])
    .unwrap()
}

fn code<T>(result: Result<T, Refusal>) -> &'static str {
    result.err().map_or("accepted", |refusal| refusal.code())
}

fn judge(roots: &RootChain, envelope: &Envelope, source: Source) -> &'static str {
    code(roots.accept::<Order>(envelope, source))
}

#[test]
fn scope_is_kept_by_namespace_and_by_name() {
    let roots = operators(
        &[(
            "anna",
            limits(
                None,
                Some(&["network", "workloads:shop/till-*", "workloads:test"]),
            ),
        )],
        1,
    );
    for (workload, expect) in [
        ("shop/till-1", "accepted"),
        ("shop/till-", "accepted"),
        ("shop/till", "out-of-scope"),
        ("shop/printer", "out-of-scope"),
        ("test/anything", "accepted"),
        ("testing/anything", "out-of-scope"),
        ("default/till-1", "out-of-scope"),
    ] {
        let signed = order(&roots, time(ISSUED), workload, &["anna"]);
        assert_eq!(judge(&roots, &signed, Source::Person), expect, "{workload}");
        assert_eq!(
            judge(&roots, &signed, Source::Member),
            expect,
            "{workload}: every member judges alike"
        );
    }
    let anna = key("anna").public().key_id();
    let may = |act| code(roots.may(&anna, act, roots.past()));
    assert_eq!(may(Act::Look), "accepted");
    assert_eq!(may(Act::Network), "accepted");
    assert_eq!(may(Act::Image), "accepted");
    for act in [Act::Approve, Act::Revoke, Act::RotateKeys] {
        assert_eq!(may(act), "out-of-scope", "{act}");
    }
    assert_eq!(may(Act::Enrol), "unknown-key");
}

#[test]
fn empty_scope_is_good_for_looking_alone_and_none_for_everything() {
    let roots = operators(
        &[("eve", limits(None, Some(&[]))), ("anna", KeyLimits::default())],
        1,
    );
    let may = |name: &str, act| code(roots.may(&key(name).public().key_id(), act, roots.past()));
    let acts = [
        Act::Image,
        Act::Approve,
        Act::Network,
        Act::RotateKeys,
        Act::Revoke,
    ];
    assert_eq!(may("eve", Act::Look), "accepted");
    assert!(acts.iter().all(|act| may("eve", *act) == "out-of-scope"));
    assert!(acts.iter().all(|act| may("anna", *act) == "accepted"));
}

#[test]
fn refusal_names_the_key_what_it_may_and_who_can_help() {
    let roots = operators(
        &[
            ("anna", limits(None, Some(&["network", "workloads:shop"]))),
            ("ben", limits(None, Some(&["nodes"]))),
        ],
        1,
    );
    let id = |name: &str| key(name).public().key_id();
    let words = roots
        .may(&id("anna"), Act::Approve, roots.past())
        .unwrap_err()
        .to_string();
    for word in [
        id("anna").to_string(),
        id("ben").to_string(),
        "`network`, `workloads:shop`".into(),
        "joinpack fabric role".into(),
    ] {
        assert!(words.contains(&word), "`{word}` is not in: {words}");
    }
    let words = roots
        .may(&id("ben"), Act::Network, time("2030-01-01T00:00:00Z"))
        .unwrap_err()
        .to_string();
    assert!(
        words.contains(&id("anna").to_string()) && !words.contains("no other key"),
        "{words}"
    );
    let nobody = roots
        .may(&id("anna"), Act::RotateKeys, roots.past())
        .unwrap_err()
        .to_string();
    assert!(nobody.contains("no other key"), "{nobody}");
}

#[test]
fn expired_key_signs_nothing_new_and_what_it_signed_before_stays() {
    let end = time(ISSUED).plus_seconds(3600);
    let roots = operators(&[("anna", limits(Some(end), None))], 1);
    let (before, after) = (
        order(&roots, end, "shop/till", &["anna"]),
        order(&roots, end.plus_seconds(1), "shop/till", &["anna"]),
    );
    assert_eq!(judge(&roots, &before, Source::Person), "accepted");
    // By its own date it is too late, whatever the floor of the reader says.
    assert_eq!(judge(&roots, &after, Source::Person), "key-expired");
    assert_eq!(judge(&roots, &after, Source::Member), "key-expired");
    let later = roots.clone().as_of(end.plus_seconds(1));
    // Dated back: no operator gets it in any more; members that have it hand it on, to those who were not there too.
    assert_eq!(judge(&later, &before, Source::Person), "key-expired");
    assert_eq!(judge(&later, &before, Source::Member), "accepted");
    let anna = key("anna").public().key_id();
    assert_eq!(code(later.may(&anna, Act::Look, later.past())), "key-expired");
    assert_eq!(code(roots.may(&anna, Act::Look, roots.past())), "accepted");
}

#[test]
fn newest_root_is_a_time_floor_of_its_own() {
    let first = root("shop", 1);
    let mut second = first.clone();
    (second.version, second.issued) = (2, time(FLOOR));
    let operator = key("operator").public().key_id();
    let expires = time(FLOOR).plus_seconds(-1);
    second
        .roles
        .get_mut(&Role::Operator)
        .unwrap()
        .limits
        .insert(operator.clone(), limits(Some(expires), None));
    let names = ["root-1", "root-2", "root-3"];
    let roots = RootChain::bootstrap(&[sign_root(&first, &names), sign_root(&second, &names)]).unwrap();
    assert_eq!(code(roots.may(&operator, Act::Look, roots.past())), "key-expired");
    assert_eq!(
        roots.clone().as_of(Timestamp::EPOCH).past(),
        time(FLOOR),
        "a floor takes nothing back"
    );
}

#[test]
fn threshold_counts_those_who_may() {
    let roots = operators(
        &[
            ("anna", KeyLimits::default()),
            ("ben", limits(None, Some(&["workloads:shop"]))),
            ("eve", limits(Some(time(ISSUED)), None)),
        ],
        2,
    );
    let judged = |workload: &str, at: Timestamp, names: &[&str]| {
        judge(&roots, &order(&roots, at, workload, names), Source::Member)
    };
    let at = time(FLOOR);
    assert_eq!(judged("shop/till", at, &["anna", "ben"]), "accepted");
    assert_eq!(judged("test/till", at, &["anna", "ben"]), "out-of-scope");
    assert_eq!(judged("shop/till", at, &["anna", "eve"]), "key-expired");
    assert_eq!(judged("shop/till", at, &["anna", "ben", "eve"]), "accepted");
    assert_eq!(judged("shop/till", at, &["anna"]), "threshold-not-met");
    assert_eq!(
        judged("shop/till", at, &["anna", "stranger"]),
        "threshold-not-met"
    );
    assert_eq!(judged("shop/till", at, &["stranger"]), "unknown-key");
}

#[test]
fn operator_without_nodes_neither_admits_nor_denies_nor_revokes() {
    let roots = operators(
        &[
            ("anna", limits(None, Some(&["workloads"]))),
            ("ben", limits(None, Some(&["nodes"]))),
        ],
        1,
    );
    let peer = PeerId::from_ed25519(&[1; 32]);
    let fabric = roots.fabric_id().clone();
    let denial = Denial {
        fabric: fabric.clone(),
        peer_id: peer.clone(),
        issued: time(ISSUED),
    };
    let voucher = Voucher {
        fabric: fabric.clone(),
        id: "01KDVKFD000000000000000001".to_owned(),
        node: "till".parse().unwrap(),
        cell: "shop".to_owned(),
        issued: time(ISSUED),
        expires: time(FLOOR),
        key: key("machine").public(),
        admission: beemesh_usb_joinpack_format::Admission::Approved,
        ek: None,
    };
    let mut snapshot = Revocations::none(fabric, time(ISSUED));
    snapshot.nodes.insert(peer);
    for (name, expect) in [("anna", "out-of-scope"), ("ben", "accepted")] {
        let key = key(name);
        assert_eq!(
            code(Denial::verify(&denial.sign(&[&key]).unwrap(), &roots)),
            expect
        );
        let voucher = voucher.sign(&[&key]).unwrap();
        assert_eq!(code(Voucher::verify(&voucher, &roots, Source::Person)), expect);
        // A member that let it in shows it to others: none of them takes it either.
        let machine = PeerId::from_ed25519(generator::key("machine").public().as_bytes());
        let membership = Membership::redeem(
            &voucher,
            &generator::key("machine"),
            &machine,
            Assurance::Low,
            time(ISSUED),
        )
        .unwrap();
        assert_eq!(code(membership.verify(&roots, &machine)), expect);
        for source in [Source::Person, Source::Member] {
            assert_eq!(
                code(Revocations::verify(
                    &sign_snapshot(&snapshot, &[name]),
                    &roots,
                    source
                )),
                expect
            );
        }
    }
}

#[test]
fn members_stay_when_the_key_that_let_them_in_retires() {
    let pack = draft("shop", 1);
    let first = root("shop", 1);
    let mut second = second_root(&first);
    // Kept in the role, with an end just after its last voucher.
    let old = key("enrolment-1");
    second.keys.insert(old.public().key_id(), old.public());
    let spec = second.roles.get_mut(&Role::Enrolment).unwrap();
    spec.keyids.push(old.public().key_id());
    spec.limits
        .insert(old.public().key_id(), limits(Some(time(ISSUED)), None));
    let roots = RootChain::bootstrap(&[
        pack.manifest.roots[0].clone(),
        sign_root(&second, &["root-1", "root-2"]),
    ])
    .unwrap();
    let roots = roots.as_of(time("2030-01-01T00:00:00Z"));
    let (voucher, machine) = (&pack.manifest.vouchers[0], PeerId::from_ed25519(&[9; 32]));
    let one_time = voucher.one_time_key.as_ref().unwrap();
    let membership =
        Membership::redeem(&voucher.envelope, one_time, &machine, Assurance::Low, time(FLOOR)).unwrap();
    // To those who never heard of it too.
    assert_eq!(code(membership.verify(&roots, &machine)), "accepted");
    assert_eq!(
        code(Voucher::verify(&voucher.envelope, &roots, Source::Person)),
        "key-expired"
    );
}

#[test]
fn chain_of_eleven_is_walked_in_any_pieces_and_none_can_be_left_out() {
    let first = root("shop", 1);
    let mut chain = vec![sign_root(&first, &["root-1", "root-2"])];
    let mut last = first;
    // Each root replaces one root key, so that after three of them nobody of the first is left.
    for version in 2..=11u32 {
        let mut next = last.clone();
        next.version = version;
        let names: Vec<String> = (0..3).map(|n| format!("root-{}", version + n)).collect();
        let olds: Vec<String> = (0..3).map(|n| format!("root-{}", version - 1 + n)).collect();
        next.roles.get_mut(&Role::Root).unwrap().keyids =
            names.iter().map(|name| key(name).public().key_id()).collect();
        next.keys.extend(
            names
                .iter()
                .map(|name| (key(name).public().key_id(), key(name).public())),
        );
        // Two that are in both.
        chain.push(sign_root(&next, &[&olds[1], &olds[2]]));
        last = next;
    }
    let whole = RootChain::bootstrap(&chain).unwrap();
    assert_eq!(whole.version(), 11);
    let old = RootChain::bootstrap(&chain[..1]).unwrap();
    assert_eq!(old.extend(&chain[1..]).unwrap().version(), 11);
    for size in 1..=10 {
        let walked = chain
            .chunks(size)
            .try_fold(old.clone(), |known, some| known.extend(some))
            .unwrap();
        assert_eq!(walked, whole, "in pieces of {size}");
    }
    for missing in 1..11 {
        let mut holed = chain.clone();
        holed.remove(missing);
        let judged = code(old.extend(&holed));
        // Without the last one it is merely a shorter chain.
        assert_eq!(
            judged,
            if missing == 10 { "accepted" } else { "root-gap" },
            "without root {}",
            missing + 1
        );
    }
    // A chain never gets shorter, whatever is handed over.
    assert_eq!(whole.extend(&chain[..3]).unwrap().version(), 11);
    let mut skipped: Vec<Envelope> = chain[..1].to_vec();
    skipped.push(chain[10].clone());
    assert_eq!(code(old.extend(&skipped)), "root-gap");
}

proptest! {
    #[test]
    fn invariant_scope_is_read_as_it_is_written(namespace in "[a-z][a-z0-9-]{0,10}[a-z0-9]", name in "[a-z0-9][a-z0-9-]{0,10}", kind in 0..3) {
        let text = match kind {
            0 => format!("workloads:{namespace}"),
            1 => format!("workloads:{namespace}/{name}x"),
            _ => format!("workloads:{namespace}/{name}*"),
        };
        let grant: Grant = text.parse().unwrap();
        prop_assert_eq!(grant.to_string(), text);
    }

    #[test]
    fn invariant_other_texts_are_no_scope(text in "[a-z:/*. -]{0,24}") {
        if let Ok(grant) = text.parse::<Grant>() {
            prop_assert_eq!(grant.to_string(), text);
        }
    }
}
