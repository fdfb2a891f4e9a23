//! Who signs in the simulated fabric: one key that has every role, and a root document that says so.

use beemesh_ids::{Digest, PeerId};
use beemesh_joinpack_format::{
    Acceptance, Admission, Assurance, Envelope, KeyOrder, Membership, Registers, ReleaseEntry, ReleaseList,
    Revocations, Role, RoleSpec, Root, RootChain, SecretKey, Timestamp, Voucher,
};
use std::collections::BTreeMap;

/// When the simulated fabric was made.
const FOUNDED: Timestamp = Timestamp(1_767_323_045);

/// Signs what operators sign.
pub struct Authority {
    key: SecretKey,
    /// The fabric's root documents.
    pub roots: RootChain,
    /// Snapshots and orders that were signed: each is newer than the one before.
    signed: i64,
}

impl Default for Authority {
    fn default() -> Self {
        let key = SecretKey::from_bytes([7; 32]);
        let spec = RoleSpec {
            keyids: vec![key.public().key_id()],
            threshold: 1,
            limits: BTreeMap::new(),
        };
        let root = Root {
            fabric_name: "sim".to_owned(),
            version: 1,
            issued: FOUNDED,
            keys: [(key.public().key_id(), key.public())].into(),
            roles: Role::ALL.map(|role| (role, spec.clone())).into(),
            nonce: "00112233445566778899aabbccddeeff".to_owned(),
        };
        let roots = RootChain::bootstrap(&[root.sign(&[&key]).unwrap()]).unwrap();
        Self {
            key,
            roots,
            signed: 0,
        }
    }
}

impl Authority {
    /// The list, of the pack with this number, that names one release.
    pub fn list(&self, number: usize, version: &str, pcr11: Digest) -> Envelope {
        let list = ReleaseList {
            fabric: self.roots.fabric_id().clone(),
            id: format!("01KDVKFD0000000000002{number:05}"),
            issued: FOUNDED,
            releases: vec![ReleaseEntry {
                version: version.to_owned(),
                pcr11,
            }],
        };
        list.sign(&[&self.key]).unwrap()
    }

    /// Accepts that a node boots like this.
    pub fn accept(&mut self, node: PeerId, registers: BTreeMap<u8, Digest>) -> Envelope {
        self.signed += 1;
        let acceptance = Acceptance {
            fabric: self.roots.fabric_id().clone(),
            id: format!("01KDVKFD0000000000001{:05}", self.signed),
            issued: Timestamp(FOUNDED.0 + self.signed),
            reason: None,
            nodes: [(node, Registers(registers))].into(),
        };
        acceptance.sign(&[&self.key]).unwrap()
    }

    /// A snapshot that revokes these nodes and no others.
    pub fn revoke(&mut self, nodes: impl IntoIterator<Item = PeerId>) -> Envelope {
        self.signed += 1;
        let issued = Timestamp(FOUNDED.0 + self.signed);
        let mut snapshot = Revocations::none(self.roots.fabric_id().clone(), issued);
        snapshot.nodes.extend(nodes);
        snapshot.sign(&[&self.key]).unwrap()
    }

    /// What `node`, the machine of that number, has redeemed.
    pub fn admit(&self, number: usize, node: &PeerId) -> Membership {
        let one_time = SecretKey::from_bytes([9; 32]);
        let voucher = Voucher {
            fabric: self.roots.fabric_id().clone(),
            id: format!("01KDVKFD00000000{number:010}"),
            node: format!("node-{number}").parse().unwrap(),
            cell: "sim".to_owned(),
            issued: FOUNDED,
            expires: Timestamp(FOUNDED.0 + 86_400),
            key: one_time.public(),
            admission: Admission::Policy,
            ek: None,
        };
        let voucher = voucher.sign(&[&self.key]).unwrap();
        Membership::redeem(&voucher, &one_time, node, Assurance::Tpm, FOUNDED).unwrap()
    }

    /// An order to all nodes to rotate their keys; newer than every voucher.
    pub fn order(&mut self) -> Envelope {
        self.signed += 1;
        let order = KeyOrder {
            fabric: self.roots.fabric_id().clone(),
            id: format!("01KDVKFE00000000{:010}", self.signed),
            issued: self.now(),
            nodes: None,
        };
        order.sign(&[&self.key]).unwrap()
    }

    /// The time as of the newest thing that was signed.
    pub fn now(&self) -> Timestamp {
        Timestamp(FOUNDED.0 + self.signed)
    }
}
