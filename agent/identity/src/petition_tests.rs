//! Claims about petitions: bounds, expiry, one decision, whatever strangers do.

use super::*;
use beemesh_ids::Digest;
use beemesh_joinpack_format::SecretKey;
use proptest::prelude::*;

fn fabric() -> FabricId {
    FabricId::from_root(Digest::of(b"root"))
}

fn peer(n: u16) -> PeerId {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&n.to_be_bytes());
    PeerId::from_ed25519(&key)
}

fn petition() -> Petition {
    Petition {
        fabric: fabric(),
        name: None,
        assurance: Assurance::Low,
    }
}

fn asked(n: u16, source: IpAddr) -> Event {
    Event::Asked {
        peer: peer(n),
        source,
        petition: petition().to_bytes(),
    }
}

fn v4(n: u8) -> IpAddr {
    [10, 0, 0, n].into()
}

fn voucher(n: u8) -> Envelope {
    Envelope::sign("test", &[n], &[&SecretKey::from_bytes([n; 32])])
}

fn approved(n: u16, by: u8) -> Event {
    Event::Approved {
        peer: peer(n),
        voucher: voucher(by),
    }
}

fn answer(commands: &[Command]) -> Answer {
    let mut answers = commands.iter().filter_map(|command| match command {
        Command::Answer(answer) => Some(answer.clone()),
        _ => None,
    });
    let answer = answers.next().unwrap();
    assert_eq!(answers.next(), None);
    answer
}

fn is_refused(commands: &[Command]) -> bool {
    matches!(answer(commands), Answer::Refused { .. })
}

#[test]
fn machine_waits_until_an_operator_approves_and_hears_the_first_word_only() {
    let mut petitions = Petitions::new(fabric());
    let first = petitions.step(0, asked(1, v4(1)));
    assert!(
        matches!(&first[..], [Command::Announce(pending), _] if pending.code == ApprovalCode::of(&fabric(), &peer(1)))
    );
    assert_eq!(
        petitions.step(1, asked(1, v4(1))),
        [Command::Answer(Answer::Waiting)]
    );
    assert_eq!(
        petitions.step(2, approved(2, 1)),
        [Command::Decided(Decided::NotPending)]
    );
    assert_eq!(
        petitions.step(2, approved(1, 1)),
        [Command::Decided(Decided::Taken)]
    );
    assert_eq!(
        petitions.step(2, approved(1, 1)),
        [Command::Decided(Decided::Taken)],
        "a repetition"
    );
    assert_eq!(
        petitions.step(3, approved(1, 2)),
        [Command::Decided(Decided::Before)]
    );
    assert_eq!(
        petitions.step(3, Event::Denied { peer: peer(1) }),
        [Command::Decided(Decided::Before)]
    );
    assert_eq!(
        answer(&petitions.step(4, asked(1, v4(1)))),
        Answer::Approved { voucher: voucher(1) }
    );
}

#[test]
fn denied_machine_hears_it_and_an_expired_petition_can_be_decided_no_more() {
    let mut petitions = Petitions::new(fabric());
    petitions.step(0, asked(1, v4(1)));
    petitions.step(0, asked(2, v4(1)));
    petitions.step(1, Event::Denied { peer: peer(1) });
    assert_eq!(answer(&petitions.step(2, asked(1, v4(1)))), Answer::Denied);
    assert_eq!(petitions.pending(VALID_S - 1).len(), 2);
    assert_eq!(
        petitions.step(VALID_S, approved(2, 1)),
        [Command::Decided(Decided::NotPending)]
    );
    assert!(petitions.pending(VALID_S).is_empty());
}

#[test]
fn petition_of_another_fabric_or_without_form_or_too_long_is_refused() {
    let mut petitions = Petitions::new(fabric());
    let other = Petition {
        fabric: FabricId::from_root(Digest::of(b"other")),
        ..petition()
    };
    let mut long = petition().to_bytes();
    long.resize(PETITION_LIMIT + 1, b' ');
    for petition in [other.to_bytes(), b"{".to_vec(), long] {
        let event = Event::Asked {
            peer: peer(1),
            source: v4(1),
            petition,
        };
        assert!(is_refused(&petitions.step(0, event)));
    }
    assert!(petitions.pending(0).is_empty());
}

#[test]
fn ten_thousand_strangers_take_no_more_than_their_share_and_nobodys_place() {
    let mut petitions = Petitions::new(fabric());
    petitions.step(0, asked(60_000, v4(200)));
    // From one address: each with a key of its own, and each as often as it likes.
    let taken = (0..10_000)
        .filter(|n| !is_refused(&petitions.step(1, asked(*n, v4(1)))))
        .count();
    assert_eq!((taken, petitions.pending(1).len()), (PER_SOURCE, PER_SOURCE + 1));
    // A whole IPv6 network is one source.
    let v6 = |n: u16| IpAddr::from([0xfd00, 0, 0, 1, 0, 0, 0, n]);
    let taken = (10_000..10_100)
        .filter(|n| !is_refused(&petitions.step(1, asked(*n, v6(*n)))))
        .count();
    assert_eq!(taken, PER_SOURCE);
    // From every address there is.
    for n in 20_000..30_000 {
        petitions.step(2, asked(n, [10, 1, (n >> 8) as u8, n as u8].into()));
    }
    assert_eq!(petitions.pending(2).len(), PENDING);
    assert_eq!(
        answer(&petitions.step(3, asked(60_000, v4(200)))),
        Answer::Waiting,
        "who waited first still waits"
    );
    assert!(is_refused(&petitions.step(3, asked(60_001, v4(201)))));
    // What is decided makes room, what waits does not.
    petitions.step(4, Event::Denied { peer: peer(0) });
    assert_eq!(
        answer(&petitions.step(5, asked(60_001, v4(201)))),
        Answer::Waiting
    );
    assert!(is_refused(&petitions.step(5, asked(60_002, v4(202)))));
}

#[derive(Debug, Clone)]
enum Act {
    Ask(u16, u8),
    Approve(u16, u8),
    Deny(u16),
    Wait(u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0..100_u16, 0..20_u8).prop_map(|(n, source)| Act::Ask(n, source)),
        2 => (0..100_u16, 1..3_u8).prop_map(|(n, by)| Act::Approve(n, by)),
        1 => (0..100_u16).prop_map(Act::Deny),
        1 => (0..VALID_S).prop_map(Act::Wait),
    ];
    proptest::collection::vec(act, 0..150)
}

fn invariant_bounds(pending: &[Pending], now: u64) {
    assert!(pending.len() <= PENDING);
    for one in pending {
        let same = pending.iter().filter(|other| other.source == one.source);
        let open = same.filter(|other| !matches!(other.state, State::Approved(_)));
        assert!(open.count() <= PER_SOURCE);
        assert!(now - one.since_s < VALID_S);
    }
}

/// Between two looks: what waited is still there unless its time is up, and what was decided is not decided anew.
fn invariant_steady(before: &[Pending], after: &[Pending], now: u64) {
    for old in before.iter().filter(|old| now - old.since_s < VALID_S) {
        match after
            .iter()
            .find(|new| new.peer == old.peer && new.since_s == old.since_s)
        {
            Some(new) => assert!(old.state == State::Waiting || old.state == new.state),
            None => assert!(old.state != State::Waiting, "pushed out"),
        }
    }
}

proptest! {
    // Each new petition costs a slow hash.
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn whatever_happens_the_bounds_hold_and_a_decision_stands(acts in acts()) {
        let (mut petitions, mut now) = (Petitions::new(fabric()), 0);
        for act in acts {
            let before = petitions.pending(now);
            let event = match act {
                Act::Wait(seconds) => {
                    now += seconds;
                    None
                }
                Act::Ask(n, source) => Some(asked(n, v4(source))),
                Act::Approve(n, by) => Some(approved(n, by)),
                Act::Deny(n) => Some(Event::Denied { peer: peer(n) }),
            };
            if let Some(event) = event {
                petitions.step(now, event);
            }
            let after = petitions.pending(now);
            invariant_bounds(&after, now);
            invariant_steady(&before, &after, now);
        }
    }
}

#[test]
fn answers_are_read_as_they_were_written() {
    for answer in [
        Answer::Waiting,
        Answer::Denied,
        Answer::Approved { voucher: voucher(1) },
        Answer::Refused {
            reason: "no".to_owned(),
        },
    ] {
        assert_eq!(Answer::parse(&answer.to_bytes()), Some(answer));
    }
    assert_eq!(Answer::parse(b"[]"), None);
}
