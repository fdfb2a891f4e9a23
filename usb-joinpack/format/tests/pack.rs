//! Properties of packs: no change goes unnoticed, nothing panics, every bound holds.
#![allow(clippy::unwrap_used)]

mod generator;

use beemesh_ids::Digest;
use beemesh_usb_joinpack_format::{
    Envelope, MANIFEST_LIMIT, Pack, ROOT_PAYLOAD_TYPE, Refusal, Role, RootChain, Timestamp, Verified,
    blob_path, limits,
};
use generator::{Draft, FLOOR, draft, sign_payload, time};
use proptest::prelude::*;

fn verify(bytes: &[u8]) -> Result<Pack<Verified>, Refusal> {
    Pack::parse(bytes)?.verify(None, time(FLOOR), None)
}

fn code<T>(result: Result<T, Refusal>) -> &'static str {
    result.err().map_or("accepted", |refusal| refusal.code())
}

#[test]
fn one_bit_flipped_in_any_byte_is_refused() {
    let good = draft("shop", 1).joinpack();
    assert_eq!(code(verify(&good)), "accepted");
    let mut copy = good.clone();
    for at in 0..good.len() {
        let bit = 1 << (at % 8);
        copy[at] ^= bit;
        assert_ne!(code(verify(&copy)), "accepted", "bit {bit:#x} of byte {at}");
        copy[at] ^= bit;
    }
}

#[test]
fn trust_is_extended_by_the_pack_and_never_shortened() {
    let old = draft("shop", 1);
    let first = RootChain::bootstrap(&old.manifest.roots).unwrap();
    let mut roots = old.manifest.roots.clone();
    roots.push(generator::sign_root(
        &generator::second_root(first.current()),
        &["root-1", "root-2"],
    ));
    let second = RootChain::bootstrap(&roots).unwrap();
    assert_eq!(first.extend(&roots), Ok(second.clone()));
    assert_eq!(
        second.extend(&old.manifest.roots).map(|chain| chain.version()),
        Ok(2)
    );
    assert_eq!(second.extend(&roots[1..]), Ok(second.clone()));
    assert_eq!(first.extend(&roots[1..]), Ok(second));
}

#[test]
fn roots_of_another_fabric_with_the_same_keys_do_not_extend_the_chain() {
    let shop = RootChain::bootstrap(&draft("shop", 1).manifest.roots).unwrap();
    let other = generator::sign_root(
        &generator::second_root(&generator::root("warehouse", 1)),
        &["root-1", "root-2"],
    );
    assert_eq!(code(shop.extend(&[other])), "other-fabric");
}

#[test]
fn role_named_twice_in_a_root_is_refused() {
    let root = generator::root("shop", 1);
    let text = serde_json::to_string(&root).unwrap();
    let operator = format!(
        "\"operator\":{}",
        serde_json::to_string(&root.roles[&Role::Operator]).unwrap()
    );
    let sign = |text: &str| {
        let keys = ["root-1", "root-2"].map(generator::key);
        RootChain::bootstrap(&[Envelope::sign(
            ROOT_PAYLOAD_TYPE,
            text.as_bytes(),
            &keys.each_ref(),
        )])
    };
    assert_eq!(code(sign(&text)), "accepted");
    let doubled = text.replacen(&operator, &format!("{operator},{operator}"), 1);
    assert_ne!(doubled, text);
    assert_eq!(code(sign(&doubled)), "malformed");
}

#[test]
fn root_that_could_never_be_followed_is_refused() {
    let bend = |change: fn(&mut beemesh_usb_joinpack_format::Root)| {
        let mut root = generator::root("shop", 1);
        change(&mut root);
        let keys = ["root-1", "root-2", "root-3"].map(generator::key);
        let text = serde_json::to_vec(&root).unwrap();
        code(RootChain::bootstrap(&[Envelope::sign(
            ROOT_PAYLOAD_TYPE,
            &text,
            &keys.each_ref(),
        )]))
    };
    assert_eq!(bend(|_| ()), "accepted");
    assert_eq!(
        bend(|root| root.roles.get_mut(&Role::Root).unwrap().threshold = 4),
        "malformed"
    );
    assert_eq!(
        bend(|root| root.roles.get_mut(&Role::Enrolment).unwrap().threshold = 0),
        "malformed"
    );
    assert_eq!(bend(|root| drop(root.roles.remove(&Role::Recovery))), "malformed");
    assert_eq!(bend(|root| drop(root.keys.pop_first())), "malformed");
    assert_eq!(bend(|root| root.nonce.clear()), "malformed");
    assert_eq!(bend(|root| root.version = 0), "malformed");
    assert_eq!(bend(|root| root.version = 2), "root-gap");
    let repeat = |root: &mut beemesh_usb_joinpack_format::Root| {
        let ids = &mut root.roles.get_mut(&Role::Root).unwrap().keyids;
        ids[1] = ids[0].clone();
    };
    assert_eq!(bend(repeat), "malformed");
    let many = |root: &mut beemesh_usb_joinpack_format::Root| {
        let keys = (0..=limits::KEYS).map(|n| generator::key(&n.to_string()).public());
        root.keys.extend(keys.map(|key| (key.key_id(), key)));
    };
    assert_eq!(bend(many), "limit-exceeded");
}

#[test]
fn expiry_is_judged_by_the_floor_alone() {
    let bytes = draft("shop", 1).joinpack();
    let at = |floor| code(Pack::parse(&bytes).and_then(|pack| pack.verify(None, floor, None)));
    assert_eq!(
        at(Timestamp::EPOCH),
        "accepted",
        "a box whose clock was never set"
    );
    assert_eq!(at(time(generator::EXPIRES)), "accepted");
    assert_eq!(at(time(generator::EXPIRES).plus_seconds(1)), "expired");
}

#[test]
fn listing_is_bounded_and_confined() {
    let draft = draft("shop", 1);
    let pack = verify(&draft.joinpack()).unwrap();
    let blob = blob_path(&Digest::of(generator::IMAGE));
    let check = |names: &[&str]| code(pack.check_listing(names));
    assert_eq!(
        check(&[
            &blob,
            "joinpack.json",
            "receipts/x.json",
            "System Volume Information/x"
        ]),
        "accepted"
    );
    assert_eq!(check(&["joinpack.json"]), "missing-blob");
    assert_eq!(check(&[&blob, "blobs/sha256/evil"]), "unlisted-blob");
    assert_eq!(check(&[&blob, "BLOBS/sha256/evil"]), "unlisted-blob");
    assert_eq!(check(&[&blob, "blobs/../../etc/passwd"]), "path-escapes");
    assert_eq!(check(&[&blob, "/etc/passwd"]), "path-escapes");
    assert_eq!(check(&[&blob, &"x".repeat(limits::PATH + 1)]), "malformed");
    let endless = std::iter::repeat("receipts/x.json");
    assert_eq!(code(pack.check_listing(endless)), "limit-exceeded");
}

#[test]
fn every_list_of_the_manifest_is_bounded() {
    let bend = |change: fn(&mut Draft)| {
        let mut draft = draft("shop", 1);
        change(&mut draft);
        code(verify(&draft.joinpack()))
    };
    assert_eq!(
        bend(|d| d
            .manifest
            .blobs
            .extend((0..limits::BLOBS).map(|n| (Digest::of(&n.to_le_bytes()), 1)))),
        "limit-exceeded"
    );
    assert_eq!(
        bend(|d| d
            .manifest
            .blobs
            .extend((1..limits::BLOBS).map(|n| (Digest::of(&n.to_le_bytes()), 1)))),
        "accepted"
    );
    let images = |d: &mut Draft, count: usize| {
        let image = d.manifest.images[0].clone();
        d.manifest.images = (0..count)
            .map(|n| {
                let mut i = image.clone();
                i.name = format!("i{n}");
                i
            })
            .collect();
    };
    let mut at = draft("shop", 1);
    images(&mut at, limits::IMAGES);
    assert_eq!(code(verify(&at.joinpack())), "accepted");
    images(&mut at, limits::IMAGES + 1);
    assert_eq!(code(verify(&at.joinpack())), "limit-exceeded");
    assert_eq!(
        bend(|d| d.manifest.vouchers = vec![d.manifest.vouchers[0].clone(); limits::VOUCHERS + 1]),
        "limit-exceeded"
    );
    let roots = vec![draft("shop", 1).manifest.roots[0].clone(); limits::ROOTS + 1];
    assert_eq!(code(RootChain::bootstrap(&roots)), "limit-exceeded");
    assert_eq!(
        bend(|d| *d.manifest.blobs.values_mut().next().unwrap() = limits::BLOB_SIZE + 1),
        "malformed"
    );
    assert_eq!(bend(|d| d.manifest.roster_size = 1), "malformed");
    assert_eq!(
        bend(|d| d.manifest.roster_size = limits::MEMBERS as u32),
        "accepted",
        "a cell of 1000, in several packs"
    );
    assert_eq!(
        bend(|d| d.manifest.roster_size = limits::MEMBERS as u32 + 1),
        "malformed"
    );
}

#[test]
fn as_many_nodes_as_a_pack_may_have_fit_into_it() {
    let mut draft = draft("shop", 1);
    let fabric = draft.manifest.fabric.clone();
    let name = |n: usize| format!("node-{n}");
    draft.manifest.roster_size = limits::MEMBERS as u32;
    draft.manifest.vouchers = (0..limits::NODES)
        .map(|n| {
            generator::voucher(
                &fabric,
                &name(n),
                &format!("01KDVKFD0000000000000{n:05}"),
                &["enrolment-1"],
            )
        })
        .collect();
    let entry = draft.manifest.nodes[1].clone();
    draft.manifest.nodes = (0..limits::NODES)
        .map(|n| {
            let mut entry = entry.clone();
            entry.name = name(n).parse().unwrap();
            entry
        })
        .collect();
    let bytes = draft.joinpack();
    assert!(bytes.len() < MANIFEST_LIMIT / 2, "{}", bytes.len());
    let pack = verify(&bytes).unwrap();
    assert_eq!(pack.vouchers().len(), limits::NODES);
    assert!(pack.voucher_of(&name(511).parse().unwrap()).is_some());
}

proptest! {
    #[test]
    fn any_changed_bits_are_refused(flips in proptest::collection::vec((any::<proptest::sample::Index>(), 0u8..8), 1..4)) {
        let good = draft("shop", 1).joinpack();
        let mut copy = good.clone();
        for (at, bit) in flips {
            copy[at.index(good.len())] ^= 1 << bit;
        }
        prop_assert_eq!(code(verify(&copy)) == "accepted", copy == good);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        prop_assert_ne!(code(verify(&bytes)), "accepted");
    }

    #[test]
    fn arbitrary_signed_payloads_never_panic(bytes: Vec<u8>) {
        prop_assert_ne!(code(verify(&sign_payload(&bytes, &["enrolment-1"]))), "accepted");
    }

    #[test]
    fn signed_payloads_with_any_part_missing_never_panic(from: prop::sample::Index, length in 1usize..200) {
        let mut payload = draft("shop", 1).payload().into_bytes();
        let from = from.index(payload.len());
        payload.drain(from..(from + length).min(payload.len()));
        let _ = verify(&sign_payload(&payload, &["enrolment-1"]));
    }

    #[test]
    fn deep_nesting_never_overflows(depth in 1usize..100_000) {
        prop_assert_eq!(code(Pack::parse("[".repeat(depth).as_bytes())), "malformed");
        let payload = format!("{{\"roots\":{}", "[".repeat(depth));
        prop_assert_eq!(code(verify(&sign_payload(payload.as_bytes(), &["enrolment-1"]))), "malformed");
    }
}
