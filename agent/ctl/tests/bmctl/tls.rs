//! The client behind TLS: with certificates made for the test, and `bmctl --node` with those of a fabric.

use crate::node::{Answer, Node, line};
use crate::run::{Fabric, Ran, bmctl, command, run};
use crate::views;
use beemesh_agent_api::view::NodeView;
use beemesh_agent_ctl::client::{Client, ClientError, Endpoint};
use beemesh_agent_ctl::context::Operator;
use beemesh_agent_ctl::failure::Class;
use beemesh_joinpack_format::{RootChain, SecretKey};
use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::{Arc, RwLock};
use std::time::Duration;

struct Party {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Party {
    fn new() -> Self {
        let CertifiedKey { cert, signing_key }: CertifiedKey<KeyPair> =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        Self {
            certificate: cert.der().clone(),
            key: signing_key.serialize_der(),
        }
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.clone()).unwrap()
    }

    fn trusted(&self) -> RootCertStore {
        let mut store = RootCertStore::empty();
        store.add(self.certificate.clone()).unwrap();
        store
    }
}

/// Named, because other crates of the workspace switch on a second provider.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A node that accepts only `operator`.
fn node(node: &Party, operator: &Party, handler: impl FnMut() -> Answer + Send + 'static) -> Node {
    let mut handler = handler;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(operator.trusted()), provider())
        .build()
        .unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![node.certificate.clone()], node.key())
        .unwrap();
    Node::start_tls(config, move |_| handler())
}

/// A client that trusts only `node` and shows `operator`, if any.
fn client(at: &Node, node: &Party, operator: Option<&Party>) -> Client {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(node.trusted());
    let config = match operator {
        Some(party) => builder
            .with_client_auth_cert(vec![party.certificate.clone()], party.key())
            .unwrap(),
        None => builder.with_no_client_auth(),
    };
    let endpoint = Endpoint::Tls {
        address: at.socket().to_owned(),
        config: Arc::new(config),
    };
    Client::new(endpoint).with_timeout(Duration::from_secs(20))
}

#[tokio::test]
async fn lists_and_streams_come_over_tls() {
    let (box_, operator) = (Party::new(), Party::new());
    let at = node(&box_, &operator, || Answer::json(200, &views::nodes()));
    assert_eq!(
        client(&at, &box_, Some(&operator)).nodes().await.unwrap(),
        views::nodes()
    );

    let events = views::events();
    let (first, second) = (line(&events[0]), line(&events[1]));
    let at = node(&box_, &operator, move || {
        Answer::pieces(200, [Ok(first.clone()), Ok(second.clone())])
    });
    let mut stream = client(&at, &box_, Some(&operator)).follow_events().await.unwrap();
    for event in events {
        assert_eq!(stream.next().await.unwrap(), Some(event));
    }
    assert_eq!(stream.next().await.unwrap(), None);
}

#[track_caller]
fn assert_refused(result: Result<Vec<NodeView>, ClientError>, at: &Node) {
    let error = result.unwrap_err();
    assert_eq!(error.class(), Class::NotAuthorised, "{error:?}");
    assert!(!error.is_transient(), "{error:?}");
    assert!(at.seen().is_empty());
}

#[tokio::test]
async fn a_node_that_refuses_the_operators_certificate_is_not_authorised() {
    let (box_, operator, stranger) = (Party::new(), Party::new(), Party::new());
    let at = node(&box_, &operator, || Answer::json(200, &views::nodes()));
    assert_refused(client(&at, &box_, None).nodes().await, &at);
    assert_refused(client(&at, &box_, Some(&stranger)).nodes().await, &at);
}

#[tokio::test]
async fn a_node_that_cannot_prove_itself_is_asked_nothing() {
    let (box_, operator, other) = (Party::new(), Party::new(), Party::new());
    let at = node(&box_, &operator, || Answer::json(200, &views::nodes()));
    assert_refused(client(&at, &other, Some(&operator)).nodes().await, &at);
}

/// A member of `fabric` which judges operators by `roots`.
fn member(fabric: &Fabric, roots: RootChain) -> Node {
    let (key, membership) = fabric.member();
    let config =
        beemesh_agent_identity::server_config(&key, &membership, Arc::new(RwLock::new(roots))).unwrap();
    Node::start_tls(config, |seen| match seen.method.as_str() {
        "POST" => Answer::json(202, &serde_json::json!({"accepted": true})),
        _ => Answer::json(200, &views::nodes()),
    })
}

fn nodes(at: &Node, context: &str) -> Ran {
    bmctl(&["--node", at.socket(), "--context", context, "nodes", "-o", "json"])
}

#[test]
fn an_operator_reaches_a_member_of_its_fabric() {
    let fabric = Fabric::new();
    let at = member(&fabric, fabric.chain());
    let ran = nodes(&at, &fabric.context());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(
        serde_json::from_str::<Vec<NodeView>>(&ran.stdout).unwrap(),
        views::nodes()
    );

    let mut delete = command(&["delete", "deployment/web"]);
    delete
        .env("BMCTL_NODE", at.socket())
        .env("BMCTL_CONTEXT", fabric.context());
    assert_eq!(run(delete).code, 0);
    assert_eq!(at.lines(), ["GET /v1/nodes", "POST /v1/changes"]);
}

#[tokio::test]
async fn other_tools_reach_it_through_the_library() {
    let fabric = Fabric::new();
    let at = member(&fabric, fabric.chain());
    let operator = Operator::load(fabric.context().as_ref()).unwrap();
    let client = Client::for_operator(at.socket(), &operator).unwrap();
    assert_eq!(client.nodes().await.unwrap(), views::nodes());
}

#[test]
fn a_node_of_another_fabric_is_asked_nothing() {
    let (ours, theirs) = (Fabric::of_seed(7), Fabric::of_seed(8));
    let at = member(&theirs, theirs.chain());
    let ran = nodes(&at, &ours.context());
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{ran:?}");
    let said = format!("bmctl: list the nodes: failed to connect to `{}`: ", at.socket());
    assert!(
        ran.stderr.starts_with(&said) && ran.stderr.contains("\nhint: the node and the operator"),
        "{ran:?}"
    );
    assert!(at.seen().is_empty());
}

#[test]
fn an_operator_whose_role_went_to_another_key_is_not_authorised() {
    let fabric = Fabric::new();
    let successor = SecretKey::from_bytes([9; 32]);
    let at = member(&fabric, fabric.chain_with_operator(&successor));
    let ran = nodes(&at, &fabric.context());
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{ran:?}");
    assert!(at.seen().is_empty());
}
