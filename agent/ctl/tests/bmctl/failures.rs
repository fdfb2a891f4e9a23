//! Every way a run can end badly: its exit code, its one line, its hint.

use crate::node::{Answer, Node, nowhere};
use crate::run::{Fabric, bmctl, command, run};
use beemesh_joinpack_format::SecretKey;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

#[test]
fn each_status_of_the_node_has_its_exit_code() {
    for (status, code) in [
        (400, 2),
        (422, 2),
        (401, 3),
        (403, 3),
        (404, 1),
        (409, 1),
        (500, 1),
        (503, 1),
        (408, 4),
        (504, 4),
    ] {
        let node = Node::start(move |_| Answer::error(status, "because of this"));
        let ran = bmctl(&["--socket", node.socket(), "nodes"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{status}");
        let first = ran.stderr.lines().next().unwrap();
        assert_eq!(
            first,
            format!("bmctl: list the nodes: because of this (status {status})")
        );
    }
}

#[test]
fn a_refused_operator_is_told_which_key_is_needed() {
    let node = Node::start(|_| Answer::error(403, "key 1234 is not an operator's"));
    let ran = bmctl(&["--socket", node.socket(), "pods"]);
    let said = "bmctl: list the pods: key 1234 is not an operator's (status 403)\n\
        hint: the key in the operator context must have the role `operator` in this fabric's root document\n";
    assert_eq!((ran.code, ran.stderr.as_str()), (3, said));
}

#[test]
fn an_error_that_is_not_the_interfaces_is_shown_bounded_and_without_escapes() {
    let node = Node::start(|_| Answer::raw(500, format!("\u{1b}[2J{}", "x".repeat(100_000))));
    let ran = bmctl(&["--socket", node.socket(), "nodes"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr.starts_with("bmctl: list the nodes: \\u{1b}[2Jxxx"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.len() < 600, "{}", ran.stderr.len());
}

#[test]
fn no_node_there_is_a_failure_with_a_hint() {
    let fabric = Fabric::new();
    let socket = nowhere(fabric.folder.path());
    let ran = bmctl(&["--socket", &socket, "nodes"]);
    let said = format!(
        "bmctl: list the nodes: failed to connect to `{socket}`: No such file or directory (os error 2)\n\
         hint: is the node up, and is --node or --socket right?\n"
    );
    assert_eq!((ran.code, ran.stderr), (1, said));
}

#[test]
fn a_node_that_never_answers_is_a_time_out() {
    let folder = tempfile::tempdir().unwrap();
    let socket = nowhere(folder.path());
    // Accepted by the kernel, answered by nobody.
    let _listener = UnixListener::bind(&socket).unwrap();
    let start = Instant::now();
    let ran = bmctl(&["--socket", &socket, "nodes", "--timeout", "300ms"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.stderr
            .contains("did not answer within 300ms\nhint: wait longer with --timeout"),
        "{ran:?}"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_answer_that_is_not_http_or_not_the_view_is_a_failure() {
    let node = Node::start(|_| Answer::raw(200, "{\"nodes\": []}"));
    let ran = bmctl(&["--socket", node.socket(), "nodes"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .starts_with("bmctl: list the nodes: answer to `/v1/nodes` is not as expected: "),
        "{ran:?}"
    );

    let folder = tempfile::tempdir().unwrap();
    let socket = nowhere(folder.path());
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        use std::io::Write as _;
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
    });
    let ran = bmctl(&["--socket", &socket, "nodes"]);
    server.join().unwrap();
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains(" broke: "), "{ran:?}");
}

#[test]
fn a_list_beyond_the_bound_is_refused_and_not_held() {
    let node = Node::start(|_| {
        let piece = bytes::Bytes::from(vec![b' '; 1 << 20]);
        Answer::pieces(200, (0..17).map(|_| Ok(piece.clone())))
    });
    let ran = bmctl(&["--socket", node.socket(), "nodes"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stderr
            .contains("answer to `/v1/nodes` is longer than 16777216 bytes"),
        "{ran:?}"
    );
}

#[test]
fn no_node_and_no_context_are_invalid_input() {
    let fabric = Fabric::new();
    let file = fabric.write(
        "a.yaml",
        b"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: b}]}}",
    );
    let without_context = bmctl(&["--socket", "/nowhere", "apply", "-f", file.to_str().unwrap()]);
    assert_eq!(without_context.code, 2);
    assert!(
        without_context
            .stderr
            .starts_with("bmctl: no operator context is given\nhint: "),
        "{without_context:?}"
    );
    let without_context = bmctl(&["--node", "127.0.0.1:1", "nodes"]);
    assert_eq!(without_context.code, 2);
    if !std::path::Path::new(beemesh_agent_ctl::args::DEFAULT_SOCKET).exists() {
        let without_node = bmctl(&["nodes"]);
        assert_eq!(without_node.code, 2);
        assert!(
            without_node
                .stderr
                .starts_with("bmctl: no node is given\nhint: name one with --node"),
            "{without_node:?}"
        );
    }
}

#[test]
fn a_context_that_others_may_read_is_refused_with_what_to_do() {
    let fabric = Fabric::new();
    let (file, context) = (fabric.path("x.yaml"), fabric.context());
    std::fs::write(
        &file,
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: b}]}}",
    )
    .unwrap();
    let apply = || bmctl(&["--context", &context, "apply", "-f", &file, "--dry-run"]);
    for mode in [0o640, 0o604, 0o660, 0o644, 0o601] {
        std::fs::set_permissions(&context, std::fs::Permissions::from_mode(mode)).unwrap();
        let ran = apply();
        let said = format!(
            "bmctl: operator context `{context}`: its mode is {mode:04o}: others may read the operator's secret key\n\
             hint: make it yours alone: chmod 600 {context}\n"
        );
        assert_eq!((ran.code, ran.stderr), (2, said));
    }
    for mode in [0o600, 0o400] {
        std::fs::set_permissions(&context, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(apply().code, 0, "{mode:o}");
    }
}

#[test]
fn contexts_that_cannot_be_used_are_refused() {
    let fabric = Fabric::new();
    let manifest = fabric.write(
        "a.yaml",
        b"{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: b}]}}",
    );
    let apply = |context: &str| {
        bmctl(&[
            "--context",
            context,
            "apply",
            "-f",
            manifest.to_str().unwrap(),
            "--dry-run",
        ])
    };
    let stranger = fabric.write_context("stranger.json", &SecretKey::from_bytes([9; 32]), 0o600);
    let ran = apply(&stranger);
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(
        ran.stderr.contains("does not have the role `operator`"),
        "{ran:?}"
    );

    let good = std::fs::read_to_string(fabric.context()).unwrap();
    for (name, text) in [
        ("empty.json", String::new()),
        ("version.json", good.replacen("\"version\":1", "\"version\":2", 1)),
        (
            "roots.json",
            good.replacen("\"payload\":\"ey", "\"payload\":\"eY", 1),
        ),
        ("key.json", good.replacen("0707", "07zz", 1)),
    ] {
        assert_ne!(text, good, "{name}");
        let path = fabric.write(name, text.as_bytes());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let ran = apply(path.to_str().unwrap());
        assert_eq!(ran.code, 2, "{name}: {ran:?}");
        assert!(!ran.stderr.contains("0707"), "the key must not be shown: {ran:?}");
    }
    assert_eq!(apply(&fabric.path("missing.json")).code, 2);
    assert_eq!(apply("/dev/null").code, 2);
    let pipe = fabric.path("pipe");
    nix::unistd::mkfifo(pipe.as_str(), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let ran = apply(&pipe);
    assert!(
        ran.code == 2 && ran.stderr.contains("it is not a regular file"),
        "{ran:?}"
    );
}

#[test]
fn wrong_command_lines_are_invalid_input_and_help_is_not() {
    for args in [
        &["frobnicate"][..],
        &["nodes", "-o", "xml"],
        &["nodes", "--timeout", "soon"],
        &[],
    ] {
        let ran = bmctl(args);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?}");
    }
    for command in [
        "nodes", "pods", "apply", "delete", "logs", "exec", "events", "images",
    ] {
        let ran = bmctl(&[command, "--help"]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("Usage: bmctl "), "{}", ran.stdout);
    }
    let help = bmctl(&["--help"]).stdout;
    for part in [
        "Examples:",
        "BMCTL_NODE",
        "chmod 600",
        "Exit codes: 0 done, 1 failed, 2 invalid input",
    ] {
        assert!(help.contains(part), "{help}");
    }
}

#[test]
fn the_node_may_be_named_by_environment() {
    let fabric = Fabric::new();
    let mut command = command(&["nodes"]);
    command
        .env("BMCTL_NODE", "nonsense")
        .env("BMCTL_CONTEXT", fabric.context());
    let ran = run(command);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(
        ran.stderr
            .contains("`nonsense` is not an address: expected `IP:PORT`"),
        "{ran:?}"
    );
}
