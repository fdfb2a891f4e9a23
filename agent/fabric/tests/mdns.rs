//! Members find each other by multicast DNS alone, in a network namespace of their own. Needs root, as CI has it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_agent_fabric::{Admission, Admitted, Credentials, Denial, Fabric, FabricConfig, FabricEvent};
use beemesh_ids::PeerId;
use std::{process::Command, sync::Arc, time::Duration};

struct Everybody;

impl Admission for Everybody {
    fn admit(&self, peer: &PeerId, credential: &[u8]) -> Result<Admitted, Denial> {
        match credential {
            b"member" => Ok(Admitted::by_first_key(peer)),
            _ => Err("not a member".to_owned().into()),
        }
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(
        status
            .expect("this test needs `ip`: apt-get install iproute2")
            .success(),
        "ip {arguments}"
    );
}

fn start(seed: u8, credential: &[u8]) -> (Fabric, tokio::sync::mpsc::Receiver<FabricEvent>) {
    let config = FabricConfig {
        credentials: Credentials {
            secret: [seed; 32],
            generation: 0,
            credential: credential.to_vec(),
        },
        node: None,
        admission: Arc::new(Everybody),
        listen_port: 7400 + u16::from(seed),
        bootstrap: vec![],
        mdns: true,
    };
    Fabric::start(config).unwrap()
}

#[test]
fn members_find_each_other_by_mdns_and_a_stranger_that_does_so_stays_out() {
    // The namespace is this thread's, and so is everything that the runtime opens.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
    ip("link set lo up");
    ip("link add bee0 type veth peer name bee1");
    ip("link set bee1 up");
    ip("address add 192.0.2.1/24 dev bee0");
    ip("link set bee0 up multicast on");
    ip("route add 224.0.0.0/4 dev bee0");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (a, mut from_a) = start(1, b"member");
        let (b, _from_b) = start(2, b"member");
        let (stranger, _from_stranger) = start(3, b"nobody");
        let (mut found, mut refused) = (false, false);
        let search = async {
            while !(found && refused) {
                match from_a.recv().await.unwrap() {
                    FabricEvent::Connected { peer, .. } => {
                        assert_eq!(peer, *b.peer_id());
                        found = true;
                    }
                    FabricEvent::Refused { peer, .. } => {
                        assert_eq!(peer.as_ref(), Some(stranger.peer_id()));
                        refused = true;
                    }
                    _ => {}
                }
            }
        };
        let result = tokio::time::timeout(Duration::from_secs(30), search).await;
        assert!(
            result.is_ok(),
            "member found: {found}, stranger refused: {refused}"
        );
        assert_eq!(a.connected(), vec![b.peer_id().clone()]);
        assert!(stranger.connected().is_empty());
    });
}
