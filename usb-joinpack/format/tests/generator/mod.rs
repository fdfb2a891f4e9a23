//! Makes the test vectors of `SPEC.md` from fixed seeds: the same bytes wherever and whenever it runs.
//!
//! Writes nothing. A defect is put in where a real one would be: the rest of the pack is correct and correctly signed,
//! so that a vector is refused for its own defect and for no other.
#![allow(clippy::unwrap_used, dead_code, missing_docs)]

use beemesh_ids::{Digest, FabricId, NodeName, PeerId};
use beemesh_usb_joinpack_format as format;
use format::{
    Admission, EndorsementFile, Envelope, ImageEntry, KeyOrder, LogSecret, MANIFEST_LIMIT,
    MANIFEST_PAYLOAD_TYPE, Manifest, NodeEntry, NodeNetwork, PackVoucher, ReceiptMachine, ReleaseEntry,
    Request, Revocations, Role, RoleSpec, Root, RootChain, SealedKey, SecretKey, StatePolicy, Timestamp,
    VOUCHER_PAYLOAD_TYPE, Voucher,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

pub mod cases;

pub const ISSUED: &str = "2026-01-01T00:00:00Z";
pub const EXPIRES: &str = "2026-02-01T00:00:00Z";
pub const FLOOR: &str = "2026-01-15T00:00:00Z";
pub const SERIAL: &str = "01KDVKFD00000000000000000A";
pub const NEWER_SERIAL: &str = "01KDVKFD00000000000000000B";
pub const IMAGE: &[u8] = b"stands for an OCI archive";

/// `vector.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vector {
    /// The defect, for people.
    pub about: String,
    /// `accepted` or the code of the refusal.
    pub expect: String,
    /// Time floor to judge by.
    pub floor: Timestamp,
    /// Serial applied last.
    pub last_serial: Option<String>,
    /// `roots.json` beside this file holds the chain trusted already.
    pub trusted: bool,
    /// `joinpack.json` is to be filled up with spaces to this length before it is read.
    pub pad_to: Option<usize>,
    /// The machine that judges; without one it is not asked whether the pack has a place for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineCase>,
    /// The request that is judged after the pack: its path in the pack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The receipt that is judged after the pack, with the log beside it: its path in the pack. The log key at hand is the one named
    /// `log`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// The nonce of the quote in the receipt or request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Digest>,
    /// What the log must say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// A machine in `vector.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineCase {
    pub macs: Vec<String>,
    pub serial: Option<String>,
    pub ek: Option<Digest>,
    /// The place that it must get.
    pub place: Option<NodeName>,
}

/// One vector: a folder with these files.
pub struct Case {
    pub name: &'static str,
    pub files: BTreeMap<String, Vec<u8>>,
}

pub fn time(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

/// The key of a name: its seed is the SHA-256 of a fixed prefix and the name.
pub fn key(name: &str) -> SecretKey {
    SecretKey::from_bytes(*Digest::of(format!("beemesh test key: {name}").as_bytes()).as_bytes())
}

/// The log key of a name: its seed is made like that of other keys.
pub fn log_key(name: &str) -> LogSecret {
    let bytes = Digest::of(format!("beemesh test key: {name}").as_bytes());
    LogSecret::from_bytes(bytes.as_bytes()).unwrap()
}

fn role(names: &[&str], threshold: u32) -> RoleSpec {
    RoleSpec {
        keyids: names.iter().map(|name| key(name).public().key_id()).collect(),
        threshold,
        ..RoleSpec::default()
    }
}

/// Root 1 of a fabric: three root keys of which two sign, and `enrolment` of two enrolment keys.
pub fn root(fabric: &str, enrolment: u32) -> Root {
    let names = [
        "root-1",
        "root-2",
        "root-3",
        "enrolment-1",
        "enrolment-2",
        "operator",
        "release",
        "recovery",
    ];
    Root {
        fabric_name: fabric.to_owned(),
        version: 1,
        issued: time(ISSUED),
        keys: names
            .iter()
            .map(|name| (key(name).public().key_id(), key(name).public()))
            .collect(),
        roles: BTreeMap::from([
            (Role::Root, role(&["root-1", "root-2", "root-3"], 2)),
            (Role::Enrolment, role(&["enrolment-1", "enrolment-2"], enrolment)),
            (Role::Operator, role(&["operator"], 1)),
            (Role::Release, role(&["release"], 1)),
            (Role::Recovery, role(&["recovery"], 1)),
        ]),
        nonce: Digest::of(fabric.as_bytes()).hex()[..32].to_owned(),
    }
}

/// Root 2: the first enrolment key gives way to a third.
pub fn second_root(first: &Root) -> Root {
    let mut root = first.clone();
    root.version = 2;
    root.keys.remove(&key("enrolment-1").public().key_id());
    root.keys
        .insert(key("enrolment-3").public().key_id(), key("enrolment-3").public());
    root.roles
        .insert(Role::Enrolment, role(&["enrolment-2", "enrolment-3"], 1));
    root
}

pub fn sign_root(root: &Root, names: &[&str]) -> Envelope {
    let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
    root.sign(&keys.iter().collect::<Vec<_>>()).unwrap()
}

/// What a pack is made of, to be bent before it is signed.
#[derive(Clone)]
pub struct Draft {
    pub manifest: Manifest,
    pub signers: Vec<&'static str>,
    pub blobs: BTreeMap<String, Vec<u8>>,
}

pub fn voucher(fabric: &FabricId, node: &str, id: &str, signers: &[&str]) -> PackVoucher {
    let one_time = key(&format!("one-time {node}"));
    let voucher = Voucher {
        fabric: fabric.clone(),
        id: id.to_owned(),
        node: node.parse().unwrap(),
        cell: "shop".to_owned(),
        issued: time(ISSUED),
        expires: time(EXPIRES),
        key: one_time.public(),
        admission: Admission::Policy,
        ek: None,
    };
    let keys: Vec<_> = signers.iter().map(|name| key(name)).collect();
    PackVoucher {
        envelope: voucher.sign(&keys.iter().collect::<Vec<_>>()).unwrap(),
        one_time_key: Some(one_time),
        sealed_key: None,
    }
}

/// A voucher whose one-time key only the TPM with endorsement key `ek` can open. What is sealed here opens nowhere: no
/// vector has a TPM.
pub fn targeted(fabric: &FabricId, node: &str, id: &str, ek: Digest) -> PackVoucher {
    let voucher = Voucher {
        fabric: fabric.clone(),
        id: id.to_owned(),
        node: node.parse().unwrap(),
        cell: "shop".to_owned(),
        issued: time(ISSUED),
        expires: time(EXPIRES),
        key: key(&format!("one-time {node}")).public(),
        admission: Admission::Targeted,
        ek: Some(ek),
    };
    PackVoucher {
        envelope: voucher.sign(&[&key("enrolment-1")]).unwrap(),
        one_time_key: None,
        sealed_key: Some(SealedKey {
            ek,
            credential: "AAAA".to_owned(),
            secret: "AAAA".to_owned(),
        }),
    }
}

/// A snapshot in which a node and a voucher are revoked.
pub fn snapshot(fabric: &FabricId) -> Revocations {
    let mut snapshot = Revocations::none(fabric.clone(), time(ISSUED));
    snapshot.nodes = BTreeSet::from([1, 2].map(|n| PeerId::from_ed25519(&[n; 32])));
    snapshot.vouchers.insert("01KDVKFD000000000000000009".to_owned());
    snapshot
}

pub fn sign_snapshot(snapshot: &Revocations, names: &[&str]) -> Envelope {
    let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
    snapshot.sign(&keys.iter().collect::<Vec<_>>()).unwrap()
}

/// An order to rotate the keys of two nodes.
pub fn key_order(fabric: &FabricId, id: &str) -> KeyOrder {
    KeyOrder {
        fabric: fabric.clone(),
        id: id.to_owned(),
        issued: time(ISSUED),
        nodes: Some(BTreeSet::from([1, 2].map(|n| PeerId::from_ed25519(&[n; 32])))),
    }
}

pub fn sign_order(order: &KeyOrder, names: &[&str]) -> Envelope {
    let keys: Vec<_> = names.iter().map(|name| key(name)).collect();
    order.sign(&keys.iter().collect::<Vec<_>>()).unwrap()
}

/// A pack of fabric `shop` for two nodes with one image.
pub fn draft(fabric: &str, enrolment: u32) -> Draft {
    let roots = vec![sign_root(
        &root(fabric, enrolment),
        &["root-1", "root-2", "root-3"],
    )];
    let id = RootChain::bootstrap(&roots).unwrap().fabric_id().clone();
    let signers: Vec<_> = ["enrolment-1", "enrolment-2"]
        .into_iter()
        .take(enrolment as usize)
        .collect();
    let image = Digest::of(IMAGE);
    let network = NodeNetwork {
        dhcp: false,
        addresses: vec!["10.77.0.11/24".into()],
        gateway: Some("10.77.0.1".into()),
        dns: vec!["10.77.0.1".into()],
    };
    let node = |name: &str| name.parse::<NodeName>().unwrap();
    let manifest = Manifest {
        format: 1,
        fabric: id.clone(),
        serial: SERIAL.to_owned(),
        issued: time(ISSUED),
        expires: time(EXPIRES),
        roots,
        cell: "shop".to_owned(),
        roster_size: 2,
        nodes: vec![
            NodeEntry {
                name: node("node-1"),
                mac: Some("52:54:00:00:00:01".into()),
                serial: None,
                ek: None,
                network: Some(network),
            },
            NodeEntry {
                name: node("node-2"),
                mac: None,
                serial: None,
                ek: None,
                network: None,
            },
        ],
        peers: vec!["10.77.0.11:7946".into(), "[fd77::11]:7946".into()],
        vouchers: vec![
            voucher(&id, "node-1", "01KDVKFD000000000000000001", &signers),
            voucher(&id, "node-2", "01KDVKFD000000000000000002", &signers),
        ],
        images: vec![ImageEntry {
            name: "nginx:1".into(),
            digest: image,
            size: IMAGE.len() as u64,
        }],
        blobs: BTreeMap::from([(image, IMAGE.len() as u64)]),
        found: true,
        state: StatePolicy { blank_disk: true },
        revocations: Vec::new(),
        orders: Vec::new(),
        approval: false,
        requests: false,
        releases: Vec::new(),
        log_key: None,
    };
    Draft {
        manifest,
        signers,
        blobs: BTreeMap::from([(format::blob_path(&image), IMAGE.to_vec())]),
    }
}

/// Signs whatever payload it is given, as no careful tool would.
pub fn sign_payload(payload: &[u8], signers: &[&str]) -> Vec<u8> {
    let keys: Vec<_> = signers.iter().map(|name| key(name)).collect();
    Envelope::sign(MANIFEST_PAYLOAD_TYPE, payload, &keys.iter().collect::<Vec<_>>()).to_json()
}

impl Draft {
    pub fn payload(&self) -> String {
        serde_json::to_string(&self.manifest).unwrap()
    }

    pub fn joinpack(&self) -> Vec<u8> {
        sign_payload(self.payload().as_bytes(), &self.signers)
    }

    /// The pack with one text of its payload replaced before signing.
    fn bent(&self, from: &str, to: &str) -> Vec<u8> {
        let payload = self.payload();
        assert!(payload.contains(from), "`{from}` is not in the manifest");
        sign_payload(payload.replacen(from, to, 1).as_bytes(), &self.signers)
    }
}
