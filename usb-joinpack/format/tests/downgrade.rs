//! Attacks that take a fabric back: documents that are genuine and signed, but older than what a node knows. Each fails.
#![allow(clippy::unwrap_used)]

mod generator;

use beemesh_ids::Digest;
use beemesh_usb_joinpack_format::{
    Envelope, Pack, Refusal, ReleaseEntry, ReleaseList, Revocations, RootChain, Source, Standing, Verified,
};
use generator::{Draft, FLOOR, NEWER_SERIAL, SERIAL, draft, key, second_root, sign_root, time};

fn verify(pack: &Draft, trusted: &RootChain, last_serial: &str) -> Result<Pack<Verified>, Refusal> {
    Pack::parse(&pack.joinpack())?.verify(Some(trusted), time(FLOOR), Some(last_serial))
}

fn code<T>(result: Result<T, Refusal>) -> &'static str {
    result.err().map_or("accepted", |refusal| refusal.code())
}

fn roots(pack: &Draft) -> RootChain {
    RootChain::bootstrap(&pack.manifest.roots).unwrap()
}

/// The list of the pack with this serial.
fn list(pack: &Draft, serial: &str, versions: &[&str]) -> Envelope {
    let list = ReleaseList {
        fabric: roots(pack).fabric_id().clone(),
        id: serial.to_owned(),
        issued: pack.manifest.issued,
        releases: versions
            .iter()
            .map(|version| ReleaseEntry {
                version: (*version).to_owned(),
                pcr11: Digest::of(version.as_bytes()),
            })
            .collect(),
    };
    list.sign(&[&key("enrolment-1")]).unwrap()
}

fn counts(standing: &Standing) -> Vec<&str> {
    let lists = standing.releases.iter();
    lists
        .flat_map(|list| list.releases.iter().map(|release| release.version.as_str()))
        .collect()
}

#[test]
fn attack_replay_of_an_older_pack_is_refused_and_the_same_pack_again_is_not() {
    let older = draft("shop", 1);
    let mut newer = older.clone();
    newer.manifest.serial = NEWER_SERIAL.to_owned();
    let trusted = roots(&older);
    assert_eq!(code(verify(&newer, &trusted, SERIAL)), "accepted");
    assert_eq!(code(verify(&older, &trusted, NEWER_SERIAL)), "older-than-applied");
    assert_eq!(code(verify(&newer, &trusted, NEWER_SERIAL)), "accepted");
}

#[test]
fn attack_downgrade_of_roots_brings_back_no_key_that_was_taken_away() {
    let older = draft("shop", 1);
    let first = roots(&older);
    let second = sign_root(&second_root(first.current()), &["root-1", "root-2"]);
    let second = first.extend(&[second]).unwrap();
    // The pack has the shorter chain, whose enrolment key is gone in the longer one; its serial is a new one.
    let mut pack = older.clone();
    pack.manifest.serial = NEWER_SERIAL.to_owned();
    assert_eq!(code(verify(&pack, &first, SERIAL)), "accepted");
    assert_eq!(code(verify(&pack, &second, SERIAL)), "unknown-key");
    assert_eq!(second.extend(&older.manifest.roots).unwrap().version(), 2);
}

#[test]
fn attack_downgrade_of_revocations_by_the_snapshot_of_an_older_pack_takes_nothing_back() {
    let pack = draft("shop", 1);
    let trusted = roots(&pack);
    let mut known = beemesh_usb_joinpack_format::RevocationSet::default();
    let mut newer = Revocations::none(trusted.fabric_id().clone(), time(FLOOR));
    let stolen = beemesh_ids::PeerId::from_ed25519(&[9; 32]);
    newer.nodes.insert(stolen.clone());
    let older = Revocations::none(trusted.fabric_id().clone(), pack.manifest.issued);
    let sign = |snapshot: &Revocations| snapshot.sign(&[&key("enrolment-1")]).unwrap();
    assert_eq!(known.take(&sign(&newer), &trusted, Source::Person), Ok(true));
    let mut replay = pack.clone();
    replay.manifest.revocations = vec![sign(&older)];
    let replayed = verify(&replay, &trusted, SERIAL).unwrap();
    assert!(!replayed.revocations().has_node(&stolen));
    for envelope in replayed.revocations().envelopes() {
        assert_eq!(known.take(envelope, &trusted, Source::Member), Ok(false));
    }
    assert!(known.has_node(&stolen));
}

#[test]
fn attack_downgrade_of_releases_by_the_list_of_an_older_pack_is_no_news() {
    let pack = draft("shop", 1);
    let trusted = roots(&pack);
    let mut known = Standing::default();
    let newer = list(&pack, NEWER_SERIAL, &["0.2.0"]);
    let older = list(&pack, SERIAL, &["0.1.0"]);
    assert_eq!(known.take(&older, &trusted, Source::Member), Ok(true));
    assert_eq!(known.take(&newer, &trusted, Source::Member), Ok(true));
    assert_eq!(counts(&known), ["0.2.0"]);
    for source in [Source::Person, Source::Member] {
        assert_eq!(known.take(&older, &trusted, source), Ok(false));
    }
    // As a pack brings it, to a box that never saw the newer one.
    let mut replay = pack.clone();
    replay.manifest.orders = vec![older];
    let replayed = verify(&replay, &trusted, SERIAL).unwrap();
    assert_eq!(counts(replayed.orders()), ["0.1.0"]);
    for envelope in replayed.orders().envelopes() {
        assert_eq!(known.take(envelope, &trusted, Source::Member), Ok(false));
    }
    assert_eq!(counts(&known), ["0.2.0"]);
    let envelopes: Vec<Envelope> = known.envelopes().cloned().collect();
    assert_eq!(Standing::restore(&envelopes, &trusted), known);
}

#[test]
fn attack_downgrade_of_releases_by_a_list_that_nobody_may_sign_is_refused() {
    let pack = draft("shop", 1);
    let trusted = roots(&pack);
    let mut newest = ReleaseList {
        fabric: trusted.fabric_id().clone(),
        id: "7ZZZZZZZZZZZZZZZZZZZZZZZZZ".to_owned(),
        issued: pack.manifest.issued,
        releases: vec![ReleaseEntry {
            version: "0.1.0".to_owned(),
            pcr11: Digest::of(b"0.1.0"),
        }],
    };
    let take = |list: &ReleaseList, by: &str| {
        let signed = list.sign(&[&key(by)]).unwrap();
        code(Standing::default().take(&signed, &trusted, Source::Member))
    };
    assert_eq!(take(&newest, "enrolment-1"), "accepted");
    for by in ["operator", "nobody"] {
        assert_eq!(take(&newest, by), "unknown-key", "{by}");
    }
    newest.fabric = roots(&draft("warehouse", 1)).fabric_id().clone();
    assert_eq!(take(&newest, "enrolment-1"), "other-fabric");
    newest.releases.clear();
    assert_eq!(code(newest.to_payload()), "malformed");
}
