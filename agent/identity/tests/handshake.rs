//! TLS handshakes between operators and nodes, and the decision at the fabric's door, with real documents.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_agent_identity::{
    AdmissionRefusal, MembershipAdmission, Moment, NodeKey, Quarantine, RevocationDocument, Revoked,
    SharedRevocations, SharedRoots, client_config, member_of, operator_of, server_config,
};
use beemesh_firmware_tpm::FakeTpm;
use beemesh_joinpack_format::{
    Admission, Assurance, Envelope, KeyId, Member, Membership, Refusal, Revocations, Role, RoleSpec, Root,
    RootChain, SecretKey, Source, Timestamp, Voucher,
};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, RwLock},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const NOW: Timestamp = Timestamp(1_800_000_000);

/// A fabric with one key for all roles but the operator's.
struct Fabric {
    root_key: SecretKey,
    operator: SecretKey,
    roots: RootChain,
}

fn root(nonce: u8, version: u32, key: &SecretKey, operator: &SecretKey) -> Envelope {
    let role = |key: &SecretKey| RoleSpec {
        keyids: vec![key.public().key_id()],
        threshold: 1,
        ..RoleSpec::default()
    };
    let mut roles: BTreeMap<_, _> = Role::ALL.into_iter().map(|name| (name, role(key))).collect();
    roles.insert(Role::Operator, role(operator));
    let root = Root {
        fabric_name: "test".to_owned(),
        version,
        issued: NOW,
        keys: [key, operator]
            .map(|key| (key.public().key_id(), key.public()))
            .into(),
        roles,
        nonce: format!("{nonce:032x}"),
    };
    root.sign(&[key]).unwrap()
}

impl Fabric {
    fn new(seed: u8) -> Self {
        let (root_key, operator) = (
            SecretKey::from_bytes([seed; 32]),
            SecretKey::from_bytes([seed + 100; 32]),
        );
        let roots = RootChain::bootstrap(&[root(seed, 1, &root_key, &operator)]).unwrap();
        Self {
            root_key,
            operator,
            roots,
        }
    }

    fn voucher(&self, number: u8) -> (Envelope, SecretKey) {
        let one_time = SecretKey::from_bytes([number + 200; 32]);
        let voucher = Voucher {
            fabric: self.roots.fabric_id().clone(),
            id: format!("01ARZ3NDEKTSV4RRFFQ69G5F{number:02}"),
            node: format!("node-{number}").parse().unwrap(),
            cell: "cell".to_owned(),
            issued: Timestamp(NOW.0 - 1000),
            expires: Timestamp(NOW.0 + 1000),
            key: one_time.public(),
            admission: Admission::Policy,
            ek: None,
        };
        (voucher.sign(&[&self.root_key]).unwrap(), one_time)
    }

    fn membership(&self, key: &NodeKey, number: u8) -> Membership {
        let (voucher, one_time) = self.voucher(number);
        Membership::redeem(&voucher, &one_time, &key.peer_id(), Assurance::Tpm, NOW).unwrap()
    }

    fn member(&self, key: &NodeKey, number: u8) -> Member {
        self.membership(key, number)
            .verify(&self.roots, &key.peer_id())
            .unwrap()
    }

    fn shared(&self) -> SharedRoots {
        Arc::new(RwLock::new(self.roots.clone()))
    }
}

fn node_key(chip: u64) -> NodeKey {
    NodeKey::load_or_create(tempfile::tempdir().unwrap().path(), &FakeTpm::new(chip)).unwrap()
}

/// What each side learnt of the other, or why the handshake failed there.
struct Met {
    by_server: Result<Option<KeyId>, String>,
    by_client: Result<Option<Member>, String>,
}

async fn meet(server: rustls::ServerConfig, client: rustls::ClientConfig, fabric: &Fabric) -> Met {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let roots = fabric.roots.clone();
    let serve = async {
        let mut stream = tokio_rustls::TlsAcceptor::from(Arc::new(server))
            .accept(far)
            .await?;
        let operator = operator_of(stream.get_ref().1, &roots);
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        stream.write_all(&byte).await?;
        stream.shutdown().await?;
        Ok::<_, io::Error>(operator)
    };
    let ask = async {
        let name = rustls::pki_types::ServerName::try_from("192.0.2.1").unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client))
            .connect(name, near)
            .await?;
        let member = member_of(stream.get_ref().1, &fabric.roots);
        stream.write_all(&[42]).await?;
        let mut byte = [0];
        // With TLS 1.3 the client hears of a refused certificate only here.
        stream.read_exact(&mut byte).await?;
        assert_eq!(byte, [42]);
        Ok::<_, io::Error>(member)
    };
    let (by_server, by_client) = tokio::join!(serve, ask);
    let text = |error: io::Error| error.to_string();
    Met {
        by_server: by_server.map_err(text),
        by_client: by_client.map_err(text),
    }
}

#[tokio::test]
async fn an_operator_and_a_member_know_each_other() {
    let (fabric, key) = (Fabric::new(1), node_key(1));
    let server = server_config(&key, &fabric.membership(&key, 1), fabric.shared()).unwrap();
    let client = client_config(Some(Arc::new(fabric.operator.clone())), fabric.roots.clone()).unwrap();
    let met = meet(server, client, &fabric).await;
    assert_eq!(met.by_server.unwrap(), Some(fabric.operator.public().key_id()));
    assert_eq!(met.by_client.unwrap(), Some(fabric.member(&key, 1)));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_connected_and_is_no_operator() {
    let (fabric, key) = (Fabric::new(1), node_key(1));
    let server = server_config(&key, &fabric.membership(&key, 1), fabric.shared()).unwrap();
    let met = meet(
        server,
        client_config(None, fabric.roots.clone()).unwrap(),
        &fabric,
    )
    .await;
    assert_eq!(met.by_server.unwrap(), None);
    assert!(met.by_client.unwrap().is_some());
}

#[tokio::test]
async fn a_client_with_an_unknown_key_is_refused() {
    let (fabric, key) = (Fabric::new(1), node_key(1));
    // A stranger, the operator of another fabric, and a key of this fabric with another role.
    for unknown in [
        SecretKey::from_bytes([77; 32]),
        Fabric::new(2).operator,
        fabric.root_key.clone(),
    ] {
        let server = server_config(&key, &fabric.membership(&key, 1), fabric.shared()).unwrap();
        let client = client_config(Some(Arc::new(unknown.clone())), fabric.roots.clone()).unwrap();
        let met = meet(server, client, &fabric).await;
        let reason = met.by_server.unwrap_err();
        assert!(
            reason.contains("NoOperator") || reason.contains("not an operator's key"),
            "{reason}"
        );
        assert!(met.by_client.is_err());
    }
}

#[tokio::test]
async fn a_server_that_is_no_member_is_refused() {
    let (fabric, other, key) = (Fabric::new(1), Fabric::new(2), node_key(1));
    // A member of another fabric; somebody who shows the membership of another node.
    let foreign = other.membership(&key, 1);
    let stolen = fabric.membership(&node_key(2), 2);
    for membership in [foreign, stolen] {
        let server = server_config(&key, &membership, fabric.shared()).unwrap();
        let client = client_config(Some(Arc::new(fabric.operator.clone())), fabric.roots.clone()).unwrap();
        let met = meet(server, client, &fabric).await;
        let reason = met.by_client.unwrap_err();
        assert!(
            reason.contains("not a member") || reason.contains("NoMember"),
            "{reason}"
        );
        assert!(met.by_server.is_err());
    }
}

#[tokio::test]
async fn a_server_with_an_ordinary_certificate_is_refused() {
    let fabric = Fabric::new(1);
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let own = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.der().clone()], private.into())
        .unwrap();
    let met = meet(
        server,
        client_config(None, fabric.roots.clone()).unwrap(),
        &fabric,
    )
    .await;
    let reason = met.by_client.unwrap_err();
    assert!(
        reason.contains("no membership") || reason.contains("NoMembership"),
        "{reason}"
    );
}

/// Shows a certificate that is not its own: it has the chain, but signs with another key.
#[derive(Debug)]
struct Impostor(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Impostor {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[tokio::test]
async fn a_copied_certificate_without_its_key_is_refused() {
    let (fabric, key) = (Fabric::new(1), node_key(1));
    // Learn the genuine certificate as anybody on the network can.
    let genuine = server_config(&key, &fabric.membership(&key, 1), fabric.shared()).unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(genuine));
    let connector =
        tokio_rustls::TlsConnector::from(Arc::new(client_config(None, fabric.roots.clone()).unwrap()));
    let name = rustls::pki_types::ServerName::try_from("node").unwrap();
    let (_server, client) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    let chain = client.unwrap().get_ref().1.peer_certificates().unwrap().to_vec();

    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let private = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.serialize_der());
    let signer = rustls::crypto::ring::sign::any_eddsa_type(&private).unwrap();
    let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, signer));
    let server =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Impostor(certified)));
    let met = meet(
        server,
        client_config(None, fabric.roots.clone()).unwrap(),
        &fabric,
    )
    .await;
    let reason = met.by_client.unwrap_err();
    assert!(reason.contains("BadSignature"), "{reason}");
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let (fabric, key) = (Fabric::new(1), node_key(1));
    let server = server_config(&key, &fabric.membership(&key, 1), fabric.shared()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let met = meet(server, client, &fabric).await;
    assert!(met.by_server.is_err() && met.by_client.is_err());
}

#[tokio::test]
async fn an_operator_whose_key_is_rotated_out_is_refused_by_a_running_server() {
    let (fabric, key) = (Fabric::new(1), node_key(1));
    let shared = fabric.shared();
    let server = server_config(&key, &fabric.membership(&key, 1), shared.clone()).unwrap();
    let successor = SecretKey::from_bytes([99; 32]);
    let next = fabric
        .roots
        .extend(&[root(1, 2, &fabric.root_key, &successor)])
        .unwrap();
    *shared.write().unwrap() = next.clone();

    let old = client_config(Some(Arc::new(fabric.operator.clone())), fabric.roots.clone()).unwrap();
    let met = meet(server.clone(), old, &fabric).await;
    assert!(met.by_server.is_err() && met.by_client.is_err());

    let new = client_config(Some(Arc::new(successor.clone())), fabric.roots.clone()).unwrap();
    let rotated = Fabric {
        roots: next,
        ..Fabric::new(1)
    };
    let met = meet(server, new, &rotated).await;
    assert_eq!(met.by_server.unwrap(), Some(successor.public().key_id()));
}

/// A door that knows revocations, at a moment that the test sets.
fn door(fabric: &Fabric, own: &NodeKey) -> (MembershipAdmission, SharedRevocations, Arc<RwLock<Moment>>) {
    let moment = Arc::new(RwLock::new(Moment { up_ms: 0, floor: NOW }));
    let revoked = Revoked::restore(
        &RevocationDocument::default(),
        &fabric.roots,
        NOW,
        *moment.read().unwrap(),
    );
    let revocations: SharedRevocations = Arc::new(RwLock::new(revoked));
    let clock = {
        let moment = moment.clone();
        Arc::new(move || *moment.read().unwrap())
    };
    let door = MembershipAdmission::new(fabric.shared(), fabric.member(own, 1))
        .with_revocations(revocations.clone(), clock);
    (door, revocations, moment)
}

fn revoke(fabric: &Fabric, revocations: &SharedRevocations, change: impl FnOnce(&mut Revocations)) {
    let mut snapshot = Revocations::none(fabric.roots.fabric_id().clone(), NOW);
    change(&mut snapshot);
    let signer = match snapshot.keys.is_empty() {
        true => &fabric.operator,
        false => &fabric.root_key,
    };
    let envelope = snapshot.sign(&[signer]).unwrap();
    let now = Moment { up_ms: 0, floor: NOW };
    assert!(
        revocations
            .write()
            .unwrap()
            .take(&envelope, &fabric.roots, Source::Person, now)
            .unwrap()
    );
}

#[test]
fn revoked_node_and_whoever_holds_a_revoked_voucher_stay_out() {
    let (fabric, own, first, second) = (Fabric::new(1), node_key(1), node_key(2), node_key(3));
    let (door, revocations, _) = door(&fabric, &own);
    let credential = |key: &NodeKey, number| fabric.membership(key, number).to_bytes();
    assert!(door.judge(&first.peer_id(), &credential(&first, 2)).is_ok());
    revoke(&fabric, &revocations, |snapshot| {
        snapshot.nodes.insert(first.peer_id());
    });
    revoke(&fabric, &revocations, |snapshot| {
        snapshot.vouchers.insert(fabric.member(&second, 3).voucher_id);
    });
    // Known before or not, by an old voucher or a fresh one, and when it is recalled after a restart.
    for (key, number) in [(&first, 2), (&first, 4), (&second, 3)] {
        for judged in [
            door.judge(&key.peer_id(), &credential(key, number)),
            door.recall(&key.peer_id(), &credential(key, number)),
        ] {
            assert!(
                matches!(judged, Err(AdmissionRefusal::Revoked { .. })),
                "{judged:?}"
            );
        }
    }
    assert!(
        door.judge(&second.peer_id(), &credential(&second, 5)).is_ok(),
        "the node itself is not revoked"
    );
}

#[test]
fn seven_days_without_word_of_revocations_admit_nobody_new_and_keep_everybody() {
    let (fabric, own, first, second) = (Fabric::new(1), node_key(1), node_key(2), node_key(3));
    let third = node_key(4);
    let (door, revocations, moment) = door(&fabric, &own);
    let credential = |key: &NodeKey, number| fabric.membership(key, number).to_bytes();
    assert!(door.judge(&first.peer_id(), &credential(&first, 2)).is_ok());
    moment.write().unwrap().up_ms = 8 * 86_400_000;
    let stranger = door.judge(&second.peer_id(), &credential(&second, 3));
    assert_eq!(stranger, Err(AdmissionRefusal::OldRevocations { days: 8 }));
    assert!(
        door.judge(&first.peer_id(), &credential(&first, 2)).is_ok(),
        "a member stays one"
    );
    assert!(
        door.recall(&second.peer_id(), &credential(&second, 3)).is_ok(),
        "known from an earlier run"
    );
    revocations
        .write()
        .unwrap()
        .vouched(Timestamp(NOW.0 + 60), *moment.read().unwrap());
    assert!(door.judge(&third.peer_id(), &credential(&third, 4)).is_ok());
}

#[test]
fn revoked_enrolment_key_admits_nobody_new_and_keeps_those_it_admitted() {
    let (fabric, own, first, second) = (Fabric::new(2), node_key(1), node_key(2), node_key(3));
    // This test's fabric has one key for root and enrolment, and root keys are not revoked: the filter is tested alone.
    let shared = fabric.shared();
    let door = MembershipAdmission::new(shared.clone(), fabric.member(&own, 1));
    let credential = |key: &NodeKey, number| fabric.membership(key, number).to_bytes();
    assert!(door.judge(&first.peer_id(), &credential(&first, 2)).is_ok());
    *shared.write().unwrap() = fabric.roots.clone().without([&fabric.root_key.public().key_id()]);
    assert!(door.judge(&first.peer_id(), &credential(&first, 2)).is_ok());
    let stranger = door.judge(&second.peer_id(), &credential(&second, 3));
    assert!(
        matches!(
            stranger,
            Err(AdmissionRefusal::Credential(Refusal::UnknownKey { .. }))
        ),
        "{stranger:?}"
    );
}

#[test]
fn who_comes_second_with_a_voucher_is_shown_who_came_first() {
    let (fabric, own, first, second) = (Fabric::new(1), node_key(1), node_key(2), node_key(3));
    let (door, ..) = door(&fabric, &own);
    let credential = fabric.membership(&first, 2).to_bytes();
    door.judge(&first.peer_id(), &credential).unwrap();
    let refused = door
        .judge(&second.peer_id(), &fabric.membership(&second, 2).to_bytes())
        .unwrap_err();
    let proof = door.rival(&refused).unwrap();
    assert_eq!(proof, credential);
    let subject = Membership::parse(&proof).unwrap().subject(&fabric.roots).unwrap();
    assert_eq!(subject, fabric.member(&first, 2));
    assert_eq!(door.rival(&AdmissionRefusal::OldRevocations { days: 8 }), None);
}

#[test]
fn the_door_lets_members_in_and_a_copied_stick_out() {
    let (fabric, own, first, second) = (Fabric::new(1), node_key(1), node_key(2), node_key(3));
    let door = MembershipAdmission::new(fabric.shared(), fabric.member(&own, 1));
    let credential = fabric.membership(&first, 2).to_bytes();
    assert_eq!(
        door.judge(&first.peer_id(), &credential).unwrap(),
        fabric.member(&first, 2)
    );
    assert!(door.judge(&first.peer_id(), &credential).is_ok(), "again");

    // The credential of somebody else, of another fabric, no credential, and a voucher that was redeemed before.
    let refused = |peer: &NodeKey, bytes: &[u8]| door.judge(&peer.peer_id(), bytes).unwrap_err();
    assert_eq!(
        refused(&second, &credential),
        AdmissionRefusal::Credential(Refusal::OtherPeer)
    );
    let foreign = Fabric::new(2).membership(&second, 3).to_bytes();
    assert!(matches!(
        refused(&second, &foreign),
        AdmissionRefusal::Credential(_)
    ));
    assert!(matches!(
        refused(&second, b""),
        AdmissionRefusal::Credential(Refusal::Malformed { .. })
    ));
    for number in [1, 2] {
        let copied = refused(&second, &fabric.membership(&second, number).to_bytes());
        assert!(
            matches!(
                copied,
                AdmissionRefusal::Quarantine(Quarantine::VoucherTaken { .. })
            ),
            "{copied}"
        );
    }
    assert!(
        door.judge(&second.peer_id(), &fabric.membership(&second, 4).to_bytes())
            .is_ok()
    );
    assert_eq!(door.roster().members().count(), 3);
}
