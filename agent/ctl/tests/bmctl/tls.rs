//! The client behind TLS: with certificates made for the test, and `bmctl --node` with those of a fabric.

use crate::node::{Answer, Node, line};
use crate::run::{Fabric, Ran, bmctl, command, run};
use crate::views;
use beemesh_agent_api::view::NodeView;
use beemesh_agent_ctl::client::{Client, ClientError, Endpoint};
use beemesh_agent_ctl::context::Operator;
use beemesh_agent_ctl::failure::Class;
use beemesh_joinpack_format::{Acceptance, Envelope, RootChain, SecretKey, Source};
use beemesh_joinpack_token::softhsm::{PIN, SoftHsm};
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
    let operator = Operator::load(fabric.context().as_ref(), None).unwrap();
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

/// A fabric whose operator's key is on a token, and the file with its root documents.
fn on_a_token() -> (Fabric, SoftHsm, String) {
    let mut fabric = Fabric::new();
    let safe = SoftHsm::new(fabric.folder.path(), &["operator", "another"]);
    fabric.hand_over_to(safe.public("operator"));
    let roots = serde_json::to_vec(&fabric.roots).unwrap();
    let roots = fabric.write("root.json", &roots).to_str().unwrap().to_owned();
    (fabric, safe, roots)
}

fn with_token(safe: &SoftHsm, pin: Option<&str>, args: &[&str]) -> Ran {
    let mut command = safe.command(env!("CARGO_BIN_EXE_bmctl"));
    if let Some(pin) = pin {
        command.env("BEEMESH_PKCS11_PIN", pin);
    }
    command.args(args);
    run(command)
}

#[test]
fn operators_key_on_a_token_opens_the_connection_and_signs() {
    let (fabric, safe, roots) = on_a_token();
    let at = member(&fabric, fabric.chain());
    let key = SoftHsm::uri("operator");
    let line = ["--node", at.socket(), "--context", &roots, "--key", &key];
    let ran = with_token(&safe, Some(PIN), &[&line[..], &["nodes", "-o", "json"]].concat());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let shown: Vec<NodeView> = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(shown, views::nodes());
    let ran = with_token(
        &safe,
        Some(PIN),
        &[&line[..], &["delete", "deployment/web"]].concat(),
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let seen = at.seen();
    let change = Envelope::parse(&seen.last().unwrap().body, 1 << 20).unwrap();
    let verified = fabric
        .chain()
        .accept::<beemesh_agent_api::record::Change>(&change, Source::Person);
    assert_eq!(verified.unwrap().workload.name, "web");
    assert!(
        fabric
            .chain()
            .accept::<Acceptance>(&change, Source::Person)
            .is_err()
    );
}

#[test]
fn token_that_does_not_serve_is_said_in_words_and_nothing_is_sent() {
    let (fabric, safe, roots) = on_a_token();
    let at = member(&fabric, fabric.chain());
    let refused = |pin: Option<&str>, context: &str, key: Option<&str>, code: i32, word: &str| {
        let mut line = vec![
            "--node",
            at.socket(),
            "--context",
            context,
            "delete",
            "deployment/web",
        ];
        line.extend(key.iter().flat_map(|key| ["--key", key]));
        let ran = with_token(&safe, pin, &line);
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.stderr.contains(word), "{word}: {}", ran.stderr);
    };
    let (operator, another) = (SoftHsm::uri("operator"), SoftHsm::uri("another"));
    refused(
        Some("0000"),
        &roots,
        Some(&operator),
        3,
        "PIN of token `safe` is wrong",
    );
    refused(None, &roots, Some(&operator), 2, "wants a PIN");
    refused(
        Some(PIN),
        &roots,
        Some(&another),
        3,
        "does not have the role `operator`",
    );
    refused(Some(PIN), &roots, None, 2, "holds root documents and no key");
    refused(
        Some(PIN),
        &roots,
        Some("operator.json"),
        2,
        "not named by a PKCS#11 URI",
    );
    let open = format!("{operator}?pin-value={PIN}");
    refused(Some(PIN), &roots, Some(&open), 2, "can be read by other users");
    // The key in the file is not the operator's any more; that on the token is.
    refused(Some(PIN), &fabric.context(), None, 3, "");
    assert!(at.seen().is_empty());
    let ran = with_token(
        &safe,
        Some(PIN),
        &[
            "--node",
            at.socket(),
            "--context",
            &roots,
            "--key",
            &operator,
            "nodes",
        ],
    );
    assert_eq!(ran.code, 0, "{ran:?}");
}
