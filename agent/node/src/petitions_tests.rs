//! Two boxes over loopback: one asks, an operator decides on the other, and what nobody signed lets nobody in.

use super::*;
use crate::fixture::{NOW, applicant, asking, key, operator, roots, voucher};
use crate::waiting::{End, Wish, wait};
use beemesh_agent_fabric::{Credentials, Fabric, FabricConfig, FabricEvent};
use beemesh_joinpack_format::{ApprovalCode, Machine, Member, Membership, SecretKey};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::RwLock;
use std::time::Duration;
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

fn secret(n: u8) -> SecretKey {
    SecretKey::from_bytes([n; 32])
}

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(secret(n).public().as_bytes())
}

fn journal() -> Journal {
    Journal::new("/nonexistent/console".into())
}

struct Node {
    fabric: Fabric,
    events: mpsc::Receiver<FabricEvent>,
    petitions: Petitions,
    address: String,
}

fn start(n: u8, membership: &Membership, member: Member, bootstrap: Vec<String>) -> Node {
    let shared = Arc::new(RwLock::new(roots()));
    let petitions = Petitions::new(member.fabric.clone(), member.cell.clone(), journal());
    let port = {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        free.local_addr().unwrap().port()
    };
    let config = FabricConfig {
        credentials: Credentials {
            secret: [n; 32],
            generation: 0,
            credential: membership.to_bytes(),
        },
        node: None,
        admission: Arc::new(Door {
            membership: MembershipAdmission::new(shared, member),
            petitions: petitions.clone(),
        }),
        listen_port: port,
        bootstrap,
        mdns: false,
    };
    let (fabric, events) = Fabric::start_on(config, &[Ipv4Addr::LOCALHOST.into()]).unwrap();
    Node {
        fabric,
        events,
        petitions,
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string(),
    }
}

/// A member by a voucher of a stick.
fn founder() -> Node {
    let offer = voucher(1, "till-1");
    let one_time = offer.one_time_key.unwrap();
    let membership = Membership::redeem(&offer.envelope, &one_time, &peer(1), Assurance::Low, NOW).unwrap();
    let member = membership.verify(&roots(), &peer(1)).unwrap();
    start(1, &membership, member, Vec::new())
}

fn wish(n: u8, peers: Vec<String>) -> Wish {
    let machine = Machine::default();
    let peer = peer(n);
    Wish::new(&asking(peers), &applicant(&peer, &machine))
}

/// What an operator signs for the key of box `n`.
fn word(n: u8) -> Voucher {
    Voucher {
        fabric: roots().fabric_id().clone(),
        id: format!("01KDVKFD00000000000000{:04}", 500 + u32::from(n)),
        node: "till-2".parse().unwrap(),
        cell: "shop".to_owned(),
        issued: NOW,
        expires: NOW.plus_seconds(3600),
        key: secret(n).public(),
        admission: Way::Approved,
        ek: None,
    }
}

fn signed(voucher: &Voucher, by: &SecretKey) -> Vec<u8> {
    voucher.sign(&[by]).unwrap().to_json()
}

fn refused(decided: Result<(), Refused>) -> u16 {
    decided.unwrap_err().status.as_u16()
}

async fn until_asked(node: &Node, count: usize) -> Vec<PetitionView> {
    for _ in 0..300 {
        let view = node.petitions.view();
        if view.len() == count {
            return view;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("nobody asked");
}

async fn until_connected(node: &mut Node, other: &PeerId) {
    let connected = async {
        while let Some(event) = node.events.recv().await {
            if matches!(&event, FabricEvent::Connected { peer, .. } if peer == other) {
                return;
            }
        }
        panic!("the fabric ended");
    };
    tokio::time::timeout(PATIENCE, connected).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn box_waits_an_operator_approves_its_code_and_it_is_a_member() {
    let mut member = founder();
    let wish = wish(2, vec![member.address.clone(), "127.0.0.1:1".to_owned()]);
    let code = wish.code.clone();
    let asking = tokio::spawn(wait(wish, secret(2), journal()));
    let view = until_asked(&member, 1).await;
    assert_eq!((&view[0].code, &view[0].peer_id), (&code, &peer(2)));
    assert_eq!(
        (view[0].state, view[0].cell.as_str()),
        (PetitionState::Waiting, "shop")
    );
    assert_eq!(code, ApprovalCode::of(roots().fabric_id(), &peer(2)));
    assert!(member.fabric.connected().is_empty(), "a petition is no way in");

    let decide = |bytes: &[u8]| {
        member
            .petitions
            .decide(bytes, &roots(), |name, _| name.as_str() == "till-1")
    };
    let other_cell = Voucher {
        cell: "other".to_owned(),
        ..word(2)
    };
    let name_in_use = Voucher {
        node: "till-1".parse().unwrap(),
        ..word(2)
    };
    let by_policy = Voucher {
        admission: Way::Policy,
        ..word(2)
    };
    assert_eq!(
        refused(decide(&signed(&word(2), &secret(99)))),
        403,
        "a stranger's word"
    );
    assert_eq!(
        refused(decide(&signed(&word(2), &key()))),
        403,
        "the enrolment role has no say here"
    );
    assert_eq!(
        refused(decide(&signed(&by_policy, &operator()))),
        403,
        "nor operators about other vouchers"
    );
    assert_eq!(refused(decide(&signed(&by_policy, &key()))), 400);
    assert_eq!(refused(decide(&signed(&other_cell, &operator()))), 409);
    assert_eq!(refused(decide(&signed(&name_in_use, &operator()))), 409);
    assert_eq!(
        refused(decide(&signed(&word(3), &operator()))),
        404,
        "a key that was swapped"
    );
    assert_eq!(member.petitions.view()[0].state, PetitionState::Waiting);
    assert!(decide(&signed(&word(2), &operator())).is_ok());
    let again = Voucher {
        id: "01KDVKFD000000000000000999".to_owned(),
        ..word(2)
    };
    assert_eq!(refused(decide(&signed(&again, &operator()))), 409, "one decision");

    let End::Joined(joined) = tokio::time::timeout(PATIENCE, asking).await.unwrap().unwrap() else {
        panic!("not let in");
    };
    assert_eq!(
        (joined.member.name.as_str(), joined.member.assurance),
        ("till-2", Assurance::Low)
    );
    assert!(!joined.document.found);
    let mut newcomer = start(
        2,
        &joined.document.membership,
        joined.member.clone(),
        vec![member.address.clone()],
    );
    until_connected(&mut member, &peer(2)).await;
    until_connected(&mut newcomer, &peer(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn box_that_an_operator_denies_hears_it() {
    let member = founder();
    let asking = tokio::spawn(wait(wish(2, vec![member.address.clone()]), secret(2), journal()));
    until_asked(&member, 1).await;
    let denial = |n: u8| Denial {
        fabric: roots().fabric_id().clone(),
        peer_id: peer(n),
        issued: NOW,
    };
    let decide = |bytes: &[u8]| member.petitions.decide(bytes, &roots(), |_, _| false);
    assert_eq!(
        refused(decide(&denial(2).sign(&[&key()]).unwrap().to_json())),
        403
    );
    assert_eq!(
        refused(decide(&denial(3).sign(&[&operator()]).unwrap().to_json())),
        404
    );
    assert!(decide(&denial(2).sign(&[&operator()]).unwrap().to_json()).is_ok());
    assert_eq!(refused(decide(&signed(&word(2), &operator()))), 409);
    let end = tokio::time::timeout(PATIENCE, asking).await.unwrap().unwrap();
    assert!(matches!(end, End::Denied), "{end:?}");
}

#[test]
fn newcomer_takes_an_operators_voucher_for_its_own_key_and_no_other() {
    let wish = wish(2, vec!["127.0.0.1:1".to_owned()]);
    let fulfil = |voucher: &Voucher, by: &SecretKey, own: u8| {
        wish.fulfil(&voucher.sign(&[by]).unwrap(), &secret(own), NOW)
            .map(|joined| joined.member.peer_id)
            .map_err(|refusal| refusal.code())
    };
    assert_eq!(fulfil(&word(2), &operator(), 2), Ok(peer(2)));
    assert_eq!(
        fulfil(&word(3), &operator(), 2),
        Err("inconsistent"),
        "another machine's approval"
    );
    assert_eq!(fulfil(&word(2), &secret(99), 2), Err("unknown-key"));
    let by_policy = Voucher {
        admission: Way::Policy,
        ..word(2)
    };
    assert_eq!(fulfil(&by_policy, &key(), 2), Err("inconsistent"));
    // Whoever copies the approval on its way cannot use it.
    let voucher = word(2).sign(&[&operator()]).unwrap();
    let stolen = Membership::redeem(&voucher, &secret(2), &peer(3), Assurance::Low, NOW).unwrap();
    assert_eq!(
        stolen
            .verify(&roots(), &peer(3))
            .map_err(|refusal| refusal.code()),
        Err("other-peer")
    );
}

#[test]
fn console_shows_the_code_and_a_picture_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let console = folder.path().join("console");
    nix::unistd::mkfifo(&console, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut reader = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(&console)
        .unwrap();
    let journal = Journal::new(console.clone());
    let wish = wish(2, vec!["127.0.0.1:1".to_owned()]);
    wish.show(&journal);
    let mut bytes = vec![0; 1 << 16];
    let length = reader.read(&mut bytes).unwrap();
    let text = std::str::from_utf8(&bytes[..length]).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains(&wish.code.to_string()));
    // Version 2 and its quiet zone, two rows of modules a line: it fits onto a screen of 80 by 25.
    let modules = 25 + 8_usize;
    assert_eq!(lines.len(), 1 + modules.div_ceil(2), "{text}");
    let wide = lines[1..].iter().all(|line| line.chars().count() == modules);
    assert!(wide && lines[1].starts_with('\u{2588}'), "{text}");
    let (events, _) = journal.subscribe();
    assert!(
        events[0]
            .message
            .contains(&format!("bmctl node approve {}", wish.code))
    );
}
