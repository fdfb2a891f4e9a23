//! Tables, JSON and YAML of nodes, pods, events and images.

use crate::node::{Answer, Node};
use crate::run::{Fabric, bmctl};
use crate::views;
use beemesh_agent_api::view::{EventView, ImageView, NodeView, PodView};

#[track_caller]
fn check(node: &Node, args: &[&str], expected: &str) {
    let ran = bmctl(&[&["--socket", node.socket()], args].concat());
    assert_eq!(
        (ran.stdout.as_str(), ran.stderr.as_str(), ran.code),
        (expected, "", 0)
    );
}

#[test]
fn nodes_are_a_table_in_the_order_of_the_answer() {
    let node = Node::saying(200, &views::nodes());
    check(&node, &["nodes"], "\
NAME     STATUS    ASSURANCE           PODS   ADDRESS             VERSION   JOINED   PEER-ID
node-1   Ready     trusted             1      192.168.1.21:7443   0.1.0     3120ms   12D3KooW9tHTtS3inCZiYykw4u5G4frbjVFqhkmJX12gSNCVeH3e
till     Suspect   low                 2      192.168.1.22:7443   0.1.0     -        12D3KooW9xCm2jWjNVrwh51SWCQBMYdMyeU3NpT85QhLVkF6PcNM
node-3   Down      changed: PCR 7,11   3      -                   0.1.0     4001ms   12D3KooWA284B2yjxoAAqAFwwVj6eRQ8DogF3t8wdpMzZ8Hh8wh4
");
    assert_eq!(node.lines(), ["GET /v1/nodes"]);
}

fn pods() -> Node {
    let pods = [
        views::unplaced("default", "web", 1),
        views::pod("default", "web", 0, &["nginx", "side"]),
        views::pod("shop", "till", 0, &["till"]),
    ];
    Node::saying(200, &pods)
}

#[test]
fn pods_are_those_of_the_namespace() {
    check(&pods(), &["pods"], "\
NAME    READY   STATUS    RESTARTS   NODE     IP          PORTS                START   REASON
web-0   2/2     Running   2          node-1   10.42.0.2   8080->80,8443->443   212ms   -
web-1   0/0     Pending   0          -        -           -                    -       no node has the image `nginx:1.22`
");
    check(
        &pods(),
        &["pods", "-n", "shop"],
        "\
NAME     READY   STATUS    RESTARTS   NODE     IP          PORTS                START   REASON
till-0   1/1     Running   1          node-1   10.42.0.2   8080->80,8443->443   212ms   -
",
    );
}

#[test]
fn all_namespaces_have_a_column_of_their_own() {
    check(&pods(), &["pods", "-A"], "\
NAMESPACE   NAME     READY   STATUS    RESTARTS   NODE     IP          PORTS                START   REASON
default     web-0    2/2     Running   2          node-1   10.42.0.2   8080->80,8443->443   212ms   -
default     web-1    0/0     Pending   0          -        -           -                    -       no node has the image `nginx:1.22`
shop        till-0   1/1     Running   1          node-1   10.42.0.2   8080->80,8443->443   212ms   -
");
}

#[test]
fn a_namespace_without_pods_is_said_on_standard_error() {
    let node = pods();
    let ran = bmctl(&["--socket", node.socket(), "pods", "-n", "empty"]);
    assert_eq!(
        ran.stderr,
        "no pods in the namespace `empty`; -A shows all namespaces\n"
    );
    assert_eq!(
        ran.stdout,
        "NAME   READY   STATUS   RESTARTS   NODE   IP   PORTS   START   REASON\n"
    );
    check(&node, &["pods", "-n", "empty", "-o", "json"], "[]\n");
}

#[test]
fn events_and_images_are_tables() {
    check(
        &Node::saying(200, &views::events()),
        &["events"],
        "\
TIME                       NODE     REASON       OBJECT        MESSAGE
2026-01-02T03:04:05.679Z   node-1   Joined       node/node-1   joined fabric shop with assurance tpm
2026-01-02T03:04:05.680Z   node-1   PodStarted   pod/web-0     started in 212 ms
",
    );
    check(
        &Node::saying(200, &views::images()),
        &["images"],
        "\
NAME         DIGEST                                                                    SIZE
busybox:1    sha256:765f875080a9220ec3186dfc31b67b030c07e570665ba0e000bb9d17d5481cd5   4.0KiB
nginx:1.22   sha256:95ea1566b5d0982e09b7d25fb52337306b08d59d1c3526effe604e11f2ed0db0   58.1MiB
",
    );
}

#[test]
fn json_and_yaml_give_the_views_back_unchanged() {
    let node = Node::saying(200, &views::nodes());
    let json = bmctl(&["--socket", node.socket(), "nodes", "-o", "json"]).stdout;
    assert_eq!(
        serde_json::from_str::<Vec<NodeView>>(&json).unwrap(),
        views::nodes()
    );
    let yaml = bmctl(&["--socket", node.socket(), "nodes", "-o", "yaml"]).stdout;
    assert_eq!(
        serde_saphyr::from_str::<Vec<NodeView>>(&yaml).unwrap(),
        views::nodes()
    );

    let pods = vec![views::pod("a", "b", 0, &["c"]), views::unplaced("a", "b", 1)];
    let node = Node::saying(200, &pods);
    let json = bmctl(&["--socket", node.socket(), "pods", "-A", "-o", "json"]).stdout;
    assert_eq!(serde_json::from_str::<Vec<PodView>>(&json).unwrap(), pods);
    let yaml = bmctl(&["--socket", node.socket(), "pods", "-A", "-o", "yaml"]).stdout;
    assert_eq!(serde_saphyr::from_str::<Vec<PodView>>(&yaml).unwrap(), pods);

    let node = Node::saying(200, &views::events());
    let yaml = bmctl(&["--socket", node.socket(), "events", "-o", "yaml"]).stdout;
    assert_eq!(
        serde_saphyr::from_str::<Vec<EventView>>(&yaml).unwrap(),
        views::events()
    );
}

#[test]
fn json_and_yaml_of_an_event_look_like_this() {
    let node = Node::saying(200, &&views::events()[..1]);
    check(
        &node,
        &["events", "-o", "json"],
        r#"[
  {
    "seq": 1,
    "at_ms": 1767323045679,
    "node": "node-1",
    "reason": "Joined",
    "object": "node/node-1",
    "message": "joined fabric shop with assurance tpm"
  }
]
"#,
    );
    check(
        &node,
        &["events", "-o", "yaml"],
        "\
- seq: 1
  at_ms: 1767323045679
  node: node-1
  reason: Joined
  object: node/node-1
  message: joined fabric shop with assurance tpm
",
    );
}

#[test]
fn an_imported_archive_arrives_whole_and_with_its_length() {
    let fabric = Fabric::new();
    let archive: Vec<u8> = (0..1_000_003u32).flat_map(|n| n.to_le_bytes()).collect();
    let path = fabric.write("nginx.tar", &archive);
    let node = Node::start(|_| Answer::json(200, &&views::images()[..1]));
    let ran = bmctl(&[
        "--socket",
        node.socket(),
        "images",
        "import",
        path.to_str().unwrap(),
        "-o",
        "json",
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        serde_json::from_str::<Vec<ImageView>>(&ran.stdout).unwrap(),
        views::images()[..1]
    );
    let seen = node.seen().remove(0);
    assert_eq!(
        (seen.line().as_str(), seen.length.as_deref()),
        ("POST /v1/images", Some("4000012"))
    );
    assert!(seen.body == archive);
}

#[test]
fn an_archive_that_cannot_be_read_is_invalid_input() {
    let fabric = Fabric::new();
    let node = Node::saying(200, &views::images());
    let missing = bmctl(&[
        "--socket",
        node.socket(),
        "images",
        "import",
        &fabric.path("no.tar"),
    ]);
    assert_eq!(missing.code, 2);
    let folder = bmctl(&[
        "--socket",
        node.socket(),
        "images",
        "import",
        fabric.folder.path().to_str().unwrap(),
    ]);
    assert_eq!(folder.code, 2);
    assert!(
        folder
            .stderr
            .contains("it is a folder\nhint: make an archive of it: tar -C "),
        "{}",
        folder.stderr
    );
    assert!(node.seen().is_empty());
}

#[test]
fn a_node_that_refuses_an_archive_before_reading_it_is_understood() {
    use std::io::{Read as _, Write as _};
    let fabric = Fabric::new();
    let path = fabric.write("large.tar", &vec![1; 8 << 20]);
    let socket = fabric.path("agent.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _some = stream.read(&mut [0; 4096]).unwrap();
        let body = "{\"error\":\"only an operator may import\"}";
        let head = format!(
            "HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).unwrap();
    });
    let ran = bmctl(&["--socket", &socket, "images", "import", path.to_str().unwrap()]);
    server.join().unwrap();
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stderr.contains("only an operator may import (status 403)"),
        "{ran:?}"
    );
}

#[test]
fn standard_input_that_stays_open_does_not_keep_a_refused_import() {
    let node = Node::start(|_| Answer::error(500, "must not be reached"));
    let mut command = crate::run::command(&[
        "--socket",
        &(node.socket().to_owned() + "x"),
        "images",
        "import",
        "-",
    ]);
    let mut child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let open = child.stdin.take();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(open);
}
