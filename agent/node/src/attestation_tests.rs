use super::*;

use beemesh_agent_api::view::NodeAssurance;
use beemesh_agent_fabric::FabricEvent;
use beemesh_agent_sched::attestation::{Baseline, Refusal, Release, ReleaseNews, Releases, judge};
use beemesh_firmware_tpm::swtpm::Swtpm;
use beemesh_firmware_tpm::{DeviceTpm, SoftwareTpm};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

struct Everyone;

impl beemesh_agent_fabric::Admission for Everyone {
    fn admit(
        &self,
        peer: &PeerId,
        _: &[u8],
    ) -> Result<beemesh_agent_fabric::Admitted, beemesh_agent_fabric::Denial> {
        Ok(beemesh_agent_fabric::Admitted::by_first_key(peer))
    }
}

/// A machine with a TPM of its own, and its state.
struct Machine {
    _state: tempfile::TempDir,
    swtpm: Swtpm,
}

impl Machine {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        Self {
            swtpm: Swtpm::start(state.path()),
            _state: state,
        }
    }

    fn attestor(&self) -> Attestor {
        let tcti = self.swtpm.tcti().to_owned();
        Attestor::new(Arc::new(move || Box::new(DeviceTpm::with_tcti(tcti.clone()))))
    }

    fn extend(&self, pcr: u8) {
        let event = format!("{pcr}:sha256={}", "ab".repeat(32));
        let arguments = [event.as_str(), "-T", self.swtpm.tcti()];
        let done = std::process::Command::new("tpm2_pcrextend")
            .args(arguments)
            .output();
        let done = done.expect("these tests need tpm2-tools: apt-get install tpm2-tools");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

fn nothing() -> Attestor {
    Attestor::new(Arc::new(|| Box::new(SoftwareTpm)))
}

fn fabric(secret: u8) -> (Fabric, mpsc::Receiver<FabricEvent>) {
    let config = beemesh_agent_fabric::FabricConfig {
        credentials: beemesh_agent_fabric::Credentials {
            secret: [secret; 32],
            generation: 0,
            credential: Vec::new(),
        },
        node: None,
        admission: Arc::new(Everyone),
        listen_port: 0,
        bootstrap: Vec::new(),
        mdns: false,
    };
    Fabric::start_on(config, &[std::net::Ipv4Addr::LOCALHOST.into()]).unwrap()
}

/// A member that answers as `attestor` does, and whom it believes to be asked by; says where it listens.
async fn member(secret: u8, attestor: Attestor) -> (PeerId, String) {
    let (fabric, mut events) = fabric(secret);
    let (listens, address) = tokio::sync::oneshot::channel();
    let own = fabric.peer_id().clone();
    let me = own.clone();
    tokio::spawn(async move {
        let mut listens = Some(listens);
        while let Some(event) = events.recv().await {
            match event {
                FabricEvent::Listening { address } => drop(listens.take().map(|it| it.send(address))),
                FabricEvent::Stream { from, stream } => {
                    let (attestor, me) = (attestor.clone(), me.clone());
                    let service =
                        hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                            let (attestor, me, from) = (attestor.clone(), me.clone(), from.clone());
                            async move {
                                assert_eq!(request.uri().path(), path::ATTESTATION);
                                let body = http_body_util::BodyExt::collect(request.into_body())
                                    .await
                                    .unwrap();
                                let answer = attestor.answer(&me, &from, &body.to_bytes()).await;
                                let (status, body) = match answer {
                                    Ok(body) => (StatusCode::OK, body),
                                    Err(refused) => (refused.status, Vec::new()),
                                };
                                let mut answer =
                                    hyper::Response::new(http_body_util::Full::new(bytes::Bytes::from(body)));
                                *answer.status_mut() = status;
                                Ok::<_, std::convert::Infallible>(answer)
                            }
                        });
                    let http = hyper::server::conn::http1::Builder::new();
                    tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
                }
                _ => {}
            }
        }
        drop(fabric);
    });
    (own, address.await.unwrap())
}

/// A fabric that is connected to these members.
async fn verifier(addresses: &[&str]) -> Fabric {
    let (fabric, mut events) = fabric(9);
    for address in addresses {
        fabric.dial(address).unwrap();
    }
    let connected = async {
        while fabric.connected().len() < addresses.len() {
            events.recv().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), connected)
        .await
        .unwrap();
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    fabric
}

async fn ask(fabric: &Fabric, peer: &PeerId, proven: Option<Digest>) -> Report {
    let own = nothing();
    let asking = Asking {
        fabric,
        own: &own,
        peer,
        proven,
        vouched_ek: None,
    };
    asking.ask().await.unwrap()
}

fn releases(evidence: &Evidence) -> Releases {
    let mut known = Releases::default();
    known.learn(ReleaseNews {
        id: String::new(),
        releases: vec![Release {
            version: "1".into(),
            pcr11: *evidence.quote.pcrs.get(&11).unwrap(),
        }],
    });
    known
}

fn evidence(report: Report) -> Evidence {
    match report {
        Report::Evidence(evidence) => *evidence,
        Report::NoTpm => panic!("it has a TPM"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_with_a_tpm_is_proven_over_the_fabric_and_judged_by_its_registers() {
    let machine = Machine::new();
    let (peer, address) = member(1, machine.attestor()).await;
    let fabric = verifier(&[&address]).await;
    let me = fabric.peer_id().clone();
    let first = evidence(ask(&fabric, &peer, None).await);
    let known = releases(&first);
    let (judgement, baseline) = judge(&me, &peer, &first, None, None, &known).unwrap();
    assert_eq!(judgement, NodeAssurance::Trusted);
    assert_eq!(
        first.ek,
        DeviceTpm::with_tcti(machine.swtpm.tcti())
            .endorsement()
            .unwrap()
            .key
            .digest()
    );

    // Its key is known now: no credential is made, and the quote is a fresh one.
    let second = evidence(ask(&fabric, &peer, Some(baseline.ak)).await);
    assert_eq!(second.activation, None);
    assert_ne!(second.nonce, first.nonce);
    assert_eq!(
        judge(&me, &peer, &second, Some(&baseline), None, &known)
            .unwrap()
            .0,
        NodeAssurance::Trusted
    );
    machine.extend(7);
    machine.extend(11);
    let third = evidence(ask(&fabric, &peer, Some(baseline.ak)).await);
    let (judgement, _) = judge(&me, &peer, &third, Some(&baseline), None, &known).unwrap();
    assert_eq!(judgement.to_string(), "changed: PCR 7,11");
    // An old answer is none to a new question.
    let replayed = Evidence {
        nonce: third.nonce,
        ..second
    };
    assert!(judge(&me, &peer, &replayed, Some(&baseline), None, &known).is_err());
}

/// A member without a good boot that passes its questions on to one with a good boot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_another_member_are_refused() {
    let machine = Machine::new();
    let (good, liar) = (crate::fixture::peer(1), crate::fixture::peer(2));
    let me = crate::fixture::peer(3);
    let nonce = [5; 32];
    // The liar asks the good one, as a member may, and shows the answer as its own.
    let attestor = machine.attestor();
    let shown = attestor.quote(nonce, liar.clone(), good.clone()).await.unwrap();
    let ak = STANDARD.decode(&shown.ak).unwrap();
    let ek = STANDARD.decode(&shown.ek).unwrap();
    let (ek_key, ak_key) = (
        EndorsementKey::parse(&ek).unwrap(),
        AttestationKey::parse(&ak).unwrap(),
    );
    let secret = [6; 32];
    let credential = make_for(&ek_key, &ak_key.name(), &secret).unwrap();
    let question = AttestationQuestion::Activate {
        credential: STANDARD.encode(credential.credential),
        secret: STANDARD.encode(credential.secret),
    };
    let question = serde_json::to_vec(&question).unwrap();
    let activated = attestor.answer(&good, &liar, &question).await.unwrap();
    let activated: ActivationAnswer = serde_json::from_slice(&activated).unwrap();
    let mut evidence = Evidence {
        ek: ek_key.digest(),
        vouched_ek: None,
        ak,
        nonce,
        quote: Quote {
            attest: STANDARD.decode(&shown.attest).unwrap(),
            signature: STANDARD.decode(&shown.signature).unwrap(),
            pcrs: shown.pcrs,
        },
        activation: Some(Activation {
            ek: ek_key.digest(),
            ak: ak_key.digest(),
            secret,
            proof: activated.proof,
        }),
    };
    let known = releases(&evidence);
    assert_eq!(
        judge(&me, &liar, &evidence, None, None, &known),
        Err(Refusal::Unproven)
    );
    // Even where the liar got the key taken for its own, it has no quote for itself.
    let baseline = Baseline {
        ek: ek_key.digest(),
        ak: ak_key.digest(),
        pcrs: BTreeMap::new(),
        accepted: None,
    };
    assert!(matches!(
        judge(&me, &liar, &evidence, Some(&baseline), None, &known),
        Err(Refusal::Quote(_))
    ));
    evidence.vouched_ek = Some(Digest::of(b"the liar's own"));
    assert!(matches!(
        judge(&me, &liar, &evidence, Some(&baseline), None, &known),
        Err(Refusal::OtherTpm(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_without_a_tpm_says_so_and_a_node_asks_its_own_without_a_stream() {
    let (peer, address) = member(1, nothing()).await;
    let fabric = verifier(&[&address]).await;
    assert_eq!(ask(&fabric, &peer, None).await, Report::NoTpm);
    let machine = Machine::new();
    let (own, me) = (machine.attestor(), fabric.peer_id().clone());
    let asking = Asking {
        fabric: &fabric,
        own: &own,
        peer: &me,
        proven: None,
        vouched_ek: None,
    };
    let evidence = evidence(asking.ask().await.unwrap());
    let known = releases(&evidence);
    assert_eq!(
        judge(&me, &me, &evidence, None, None, &known).unwrap().0,
        NodeAssurance::Trusted
    );
    assert!(matches!(
        Asking {
            fabric: &fabric,
            own: &own,
            peer: &crate::fixture::peer(77),
            proven: None,
            vouched_ek: None
        }
        .ask()
        .await,
        Err(AttestError::Ask(_))
    ));
}

#[tokio::test]
async fn questions_that_are_garbage_or_come_too_often_are_refused() {
    let (attestor, me, asker) = (nothing(), crate::fixture::peer(1), crate::fixture::peer(2));
    let status = |question: &'static str, asker: PeerId| {
        let (attestor, me) = (attestor.clone(), me.clone());
        async move {
            attestor
                .answer(&me, &asker, question.as_bytes())
                .await
                .unwrap_err()
                .status
        }
    };
    for bad in [
        "",
        "{}",
        r#"{"ask":"quote","nonce":"AAAA"}"#,
        r#"{"ask":"activate","credential":"!","secret":""}"#,
    ] {
        assert_eq!(status(bad, asker.clone()).await, StatusCode::BAD_REQUEST, "{bad}");
    }
    let good = r#"{"ask":"quote","nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}"#;
    let mut last = StatusCode::OK;
    for _ in 0..OFTEN {
        last = status(good, asker.clone()).await;
    }
    assert_eq!(last, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        status(good, crate::fixture::peer(3)).await,
        StatusCode::NOT_FOUND,
        "others are still answered"
    );
    assert!(attestor.may_ask(&asker, Instant::now() + WINDOW));
}
