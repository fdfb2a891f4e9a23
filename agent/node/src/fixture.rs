//! A fabric and its packs for this crate's tests: one key has every role.
#![allow(clippy::unwrap_used)]

use crate::clock::Floor;
use crate::join::Applicant;
use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{
    Admission, Assurance, Envelope, ImageEntry, Machine, Manifest, NodeEntry, Pack, PackVoucher, Revocations,
    Role, RoleSpec, Root, RootChain, SecretKey, StatePolicy, Timestamp, Verified, Voucher,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::path::Path;

/// Works on a tmpfs of `bytes`, in a mount namespace of its own and without a network. Threads that `work` starts share both.
pub fn in_small_volume(bytes: u64, work: impl FnOnce(&Path) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("this test needs root");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let size = format!("size={bytes}");
            let none = MsFlags::empty();
            mount(
                Some("small"),
                folder.path(),
                Some("tmpfs"),
                none,
                Some(size.as_str()),
            )
            .unwrap();
            work(folder.path());
            umount2(folder.path(), MntFlags::MNT_DETACH).unwrap();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A box without a TPM at [`NOW`] that is no member yet.
pub fn applicant<'a>(peer: &'a PeerId, machine: &'a Machine) -> Applicant<'a> {
    Applicant {
        peer,
        assurance: Assurance::Low,
        machine,
        floor: Floor(NOW),
        system: NOW,
        joined: None,
        again: None,
        spent: &[],
    }
}

pub const NOW: Timestamp = Timestamp(1_767_323_045);

pub fn key() -> SecretKey {
    SecretKey::from_bytes([7; 32])
}

/// A key that signs for operators and nothing else.
pub fn operator() -> SecretKey {
    SecretKey::from_bytes([8; 32])
}

pub fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(&[n; 32])
}

pub fn roots() -> RootChain {
    let role = |role: Role| {
        let key = if role == Role::Operator { operator() } else { key() };
        let spec = RoleSpec {
            keyids: vec![key.public().key_id()],
            threshold: 1,
            ..RoleSpec::default()
        };
        (role, spec)
    };
    let root = Root {
        fabric_name: "shop".to_owned(),
        version: 1,
        issued: NOW,
        keys: [key(), operator()]
            .map(|key| (key.public().key_id(), key.public()))
            .into(),
        roles: Role::ALL.map(role).into(),
        nonce: "00112233445566778899aabbccddeeff".to_owned(),
    };
    RootChain::bootstrap(&[root.sign(&[&key()]).unwrap()]).unwrap()
}

/// The chain of [`roots`] with root documents up to `version`, one a second.
pub fn chain(version: u32) -> RootChain {
    let mut chain = roots();
    while chain.version() < version {
        let mut next = chain.current().clone();
        next.version += 1;
        next.issued = next.issued.plus_seconds(1);
        chain = chain.extend(&[next.sign(&[&key()]).unwrap()]).unwrap();
    }
    chain
}

/// A voucher for `node`, with its key in the clear; or for the TPM `ek`, with a sealed key that `seal` makes.
pub fn voucher(number: u8, node: &str) -> PackVoucher {
    let one_time_key = SecretKey::from_bytes([number + 100; 32]);
    let voucher = Voucher {
        fabric: roots().fabric_id().clone(),
        id: format!("01KDVKFD00000000000000{number:04}"),
        node: node.parse().unwrap(),
        cell: "shop".to_owned(),
        issued: NOW,
        expires: NOW.plus_seconds(3600),
        key: one_time_key.public(),
        admission: Admission::Policy,
        ek: None,
    };
    PackVoucher {
        envelope: voucher.sign(&[&key()]).unwrap(),
        one_time_key: Some(one_time_key),
        sealed_key: None,
    }
}

/// A pack with these places, the first `tied` of them for cards `52:54:00:00:00:01` and so on; `revoked` are vouchers.
pub fn pack(places: u8, tied: u8, revoked: &[u8]) -> Pack<Verified> {
    signed(&manifest(places, tied, revoked))
}

/// `joinpack.json` of [`pack`].
pub fn pack_bytes(places: u8, tied: u8, revoked: &[u8]) -> Vec<u8> {
    manifest(places, tied, revoked).sign(&[&key()]).unwrap().to_json()
}

/// A pack that brings nothing but an image with this content.
pub fn with_blob(content: &[u8]) -> Pack<Verified> {
    let (digest, size) = (Digest::of(content), content.len() as u64);
    signed(&Manifest {
        images: vec![ImageEntry {
            name: "web:1".to_owned(),
            digest,
            size,
        }],
        blobs: [(digest, size)].into(),
        ..manifest(0, 0, &[])
    })
}

/// A pack without places, by which machines may ask these members.
pub fn asking(peers: Vec<String>) -> Pack<Verified> {
    signed(&Manifest {
        peers,
        approval: true,
        ..manifest(0, 0, &[])
    })
}

fn manifest(places: u8, tied: u8, revoked: &[u8]) -> Manifest {
    let name = |n: u8| format!("node-{n}");
    let mac = |n: u8| (n <= tied).then(|| format!("52:54:00:00:00:{n:02x}"));
    Manifest {
        format: 1,
        fabric: roots().fabric_id().clone(),
        serial: "01KDVKFD00000000000000000A".to_owned(),
        issued: NOW,
        expires: NOW.plus_seconds(3600),
        roots: roots().envelopes().to_vec(),
        cell: "shop".to_owned(),
        roster_size: u32::from(places.max(1)),
        nodes: (1..=places)
            .map(|n| NodeEntry {
                name: name(n).parse().unwrap(),
                mac: mac(n),
                serial: None,
                ek: None,
                network: None,
            })
            .collect(),
        peers: Vec::new(),
        vouchers: (1..=places).map(|n| voucher(n, &name(n))).collect(),
        images: Vec::new(),
        blobs: std::collections::BTreeMap::<Digest, u64>::new(),
        found: true,
        state: StatePolicy { blank_disk: true },
        revocations: match revoked {
            [] => Vec::new(),
            _ => vec![snapshot(1, |all| {
                all.vouchers = revoked
                    .iter()
                    .map(|n| format!("01KDVKFD00000000000000{n:04}"))
                    .collect();
            })],
        },
        orders: Vec::new(),
        approval: false,
        requests: false,
        releases: Vec::new(),
        log_key: None,
    }
}

fn signed(manifest: &Manifest) -> Pack<Verified> {
    let text = manifest.sign(&[&key()]).unwrap().to_json();
    Pack::parse(&text).unwrap().verify(None, NOW, None).unwrap()
}

/// An operator's snapshot, `later` seconds after [`NOW`].
pub fn snapshot(later: i64, change: impl FnOnce(&mut Revocations)) -> Envelope {
    let mut snapshot = Revocations::none(roots().fabric_id().clone(), NOW.plus_seconds(later));
    change(&mut snapshot);
    let signer = if snapshot.keys.is_empty() {
        operator()
    } else {
        key()
    };
    snapshot.sign(&[&signer]).unwrap()
}
