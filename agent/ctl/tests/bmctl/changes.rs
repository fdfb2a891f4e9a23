//! apply and delete: what is signed and sent, what a dry run shows, and waiting.

use crate::node::{Answer, Node};
use crate::run::{Fabric, bmctl, bmctl_with_stdin, command, run};
use crate::views;
use beemesh_agent_api::record::CHANGE_PAYLOAD_TYPE;
use beemesh_agent_api::shim::Phase;
use beemesh_agent_api::view::PodView;
use beemesh_agent_api::{Change, parse_manifests};
use beemesh_joinpack_format::{Envelope, Role, SecretKey};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const WEB: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: nginx
        image: nginx:1.22
        ports: [{containerPort: 80, hostPort: 8080}]
        resources: {requests: {cpu: 250m, memory: 64Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: hello, namespace: shop}
spec:
  restartPolicy: Never
  containers: [{name: hello, image: 'busybox:1'}]
";

fn accepting() -> Node {
    Node::saying(202, &json!({"accepted": true}))
}

/// The change in a request's body, as a node would read it: signature, fabric and form are checked.
fn verified(fabric: &Fabric, body: &[u8]) -> Change {
    let envelope = Envelope::parse(body, 1 << 20).unwrap();
    let payload = envelope
        .verify_all(CHANGE_PAYLOAD_TYPE, &fabric.chain().role(Role::Operator))
        .unwrap();
    let change: Change = serde_json::from_slice(&payload).unwrap();
    assert_eq!(&change.fabric, fabric.chain().fabric_id());
    assert!(change.id.parse::<ulid::Ulid>().is_ok(), "{}", change.id);
    change
}

fn apply(fabric: &Fabric, node: &Node, more: &[&str]) -> crate::run::Ran {
    let file = fabric.write("web.yaml", WEB.as_bytes());
    let args = [
        "--socket",
        node.socket(),
        "--context",
        &fabric.context(),
        "apply",
        "-f",
        file.to_str().unwrap(),
    ];
    bmctl(&[&args[..], more].concat())
}

#[test]
fn apply_signs_and_sends_every_workload_of_the_file() {
    let (fabric, node) = (Fabric::new(), accepting());
    let ran = apply(&fabric, &node, &[]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    assert_eq!(node.lines(), ["POST /v1/changes", "POST /v1/changes"]);
    let changes: Vec<Change> = node
        .seen()
        .iter()
        .map(|seen| verified(&fabric, &seen.body))
        .collect();
    let specs = parse_manifests(WEB).unwrap();
    for (change, spec) in changes.iter().zip(&specs) {
        assert_eq!((&change.workload, change.spec.as_ref()), (&spec.id, Some(spec)));
    }
    assert!(changes[0].id < changes[1].id, "change ids rise within a run");
    let table = format!(
        "WORKLOAD                 ACTION   REPLICAS   CHANGE                       RESULT\n\
         default/deployment/web   apply    2          {}   accepted\n\
         shop/pod/hello           apply    1          {}   accepted\n",
        changes[0].id, changes[1].id
    );
    assert_eq!(ran.stdout, table);
}

#[test]
fn a_change_of_another_key_would_not_verify() {
    let (fabric, node) = (Fabric::new(), accepting());
    apply(&fabric, &node, &[]);
    let envelope = Envelope::parse(&node.seen()[0].body, 1 << 20).unwrap();
    let stranger = beemesh_joinpack_format::RoleKeys::new([SecretKey::from_bytes([8; 32]).public()], 1);
    assert!(envelope.verify(CHANGE_PAYLOAD_TYPE, &stranger).is_err());
}

#[test]
fn outcomes_are_json_too() {
    let (fabric, node) = (Fabric::new(), accepting());
    let ran = apply(&fabric, &node, &["-o", "json"]);
    let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
    let id = verified(&fabric, &node.seen()[1].body).id;
    let second = json!({"workload": {"namespace": "shop", "kind": "Pod", "name": "hello"},
                        "action": "apply", "replicas": 1, "change": id, "result": "accepted"});
    assert_eq!(shown[1], second);
}

#[test]
fn a_manifest_may_come_by_standard_input_and_the_context_by_environment() {
    let (fabric, node) = (Fabric::new(), accepting());
    let context = fabric.context();
    let args = [
        "--socket",
        node.socket(),
        "--context",
        &context,
        "apply",
        "-f",
        "-",
    ];
    assert_eq!(bmctl_with_stdin(&args, WEB.as_bytes()).code, 0);
    let file = fabric.write("web.yaml", WEB.as_bytes());
    let mut from_environment = command(&["--socket", node.socket(), "apply", "-f", file.to_str().unwrap()]);
    from_environment.env("BMCTL_CONTEXT", context);
    assert_eq!(run(from_environment).code, 0);
    assert_eq!(node.seen().len(), 4);
}

#[test]
fn a_dry_run_sends_nothing_and_shows_what_would_be_sent() {
    let (fabric, node) = (Fabric::new(), accepting());
    let json = apply(&fabric, &node, &["--dry-run", "-o", "json"]);
    let shown: Vec<Value> = serde_json::from_str(&json.stdout).unwrap();
    for (shown, spec) in shown.iter().zip(parse_manifests(WEB).unwrap()) {
        let envelope: Envelope = serde_json::from_value(shown["envelope"].clone()).unwrap();
        let change = verified(&fabric, &envelope.to_json());
        assert_eq!(serde_json::to_value(&change).unwrap(), shown["change"]);
        assert_eq!(change.spec, Some(spec));
    }
    let table = apply(&fabric, &node, &["--dry-run"]);
    assert_eq!(
        (table.code, table.stdout.matches("   not sent\n").count()),
        (0, 2),
        "{table:?}"
    );
    assert!(node.seen().is_empty(), "{:?}", node.lines());
    // Not even a node is needed.
    let file = fabric.path("web.yaml");
    let alone = bmctl(&[
        "--context",
        &fabric.context(),
        "apply",
        "-f",
        &file,
        "--dry-run",
        "-o",
        "yaml",
    ]);
    assert_eq!((alone.code, shown.len()), (0, 2), "{alone:?}");
}

#[test]
fn delete_sends_changes_without_a_specification() {
    let (fabric, node) = (Fabric::new(), accepting());
    let context = fabric.context();
    let delete = ["--socket", node.socket(), "--context", &context, "delete"];
    let named = ["-n", "shop", "pod/hello", "deploy/web", "pods/hello"];
    assert_eq!(bmctl(&[&delete[..], &named].concat()).code, 0);
    let file = fabric.write("web.yaml", WEB.as_bytes());
    assert_eq!(
        bmctl(&[&delete[..], &["-f", file.to_str().unwrap()]].concat()).code,
        0
    );
    let sent: Vec<String> = node
        .seen()
        .iter()
        .map(|seen| verified(&fabric, &seen.body))
        .map(|change| format!("{} {}", change.workload, change.spec.is_some()))
        .collect();
    let expected = [
        "shop/pod/hello",
        "shop/deployment/web",
        "default/deployment/web",
        "shop/pod/hello",
    ];
    assert_eq!(sent, expected.map(|id| format!("{id} false")));
}

#[test]
fn targets_without_a_kind_are_invalid_input() {
    let (fabric, node) = (Fabric::new(), accepting());
    for target in ["web", "service/web", "pod/", "pod/a/b"] {
        let ran = bmctl(&[
            "--socket",
            node.socket(),
            "--context",
            &fabric.context(),
            "delete",
            target,
        ]);
        assert_eq!(ran.code, 2, "{target}: {ran:?}");
    }
    assert!(node.seen().is_empty());
}

#[test]
fn what_was_accepted_before_a_refusal_is_shown() {
    let fabric = Fabric::new();
    let mut asked = 0;
    let node = Node::start(move |_| {
        asked += 1;
        match asked {
            1 => Answer::json(202, &json!({"accepted": true})),
            _ => Answer::error(409, "a newer change of `shop/pod/hello` is known"),
        }
    });
    let ran = apply(&fabric, &node, &[]);
    assert_eq!(
        (ran.code, ran.stdout.matches("accepted").count()),
        (1, 1),
        "{ran:?}"
    );
    let said = "bmctl: apply `shop/pod/hello`: a newer change of `shop/pod/hello` is known (status 409)\n";
    assert_eq!(ran.stderr, said);
}

#[test]
fn broken_manifests_name_file_and_field_and_send_nothing() {
    let (fabric, node) = (Fabric::new(), accepting());
    let cases = [
        (WEB.replace("replicas: 2", "replicas: many"), "spec.replicas"),
        (
            WEB.replace(
                "image: nginx:1.22",
                "image: nginx:1.22\n        livenessProbe: {}",
            ),
            "livenessProbe",
        ),
        (WEB.replace("kind: Pod", "kind: Service"), "Service"),
        (WEB.replace("cpu: 250m", "cpu: lots"), "cpu"),
        ("a: [".to_owned(), "not YAML"),
        (String::new(), "documents"),
    ];
    for (text, expected) in cases {
        let file = fabric.write("broken.yaml", text.as_bytes());
        let file = file.to_str().unwrap();
        let ran = bmctl(&[
            "--socket",
            node.socket(),
            "--context",
            &fabric.context(),
            "apply",
            "-f",
            file,
        ]);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{ran:?}");
        let first = ran.stderr.lines().next().unwrap();
        assert!(
            first.starts_with(&format!("bmctl: manifest in `{file}`: ")) && first.contains(expected),
            "{ran:?}"
        );
    }
    assert!(node.seen().is_empty());
}

#[test]
fn manifests_that_are_too_large_or_not_there_or_there_twice_are_invalid_input() {
    let (fabric, node) = (Fabric::new(), accepting());
    let context = fabric.context();
    let apply = |files: &[&str]| {
        let mut args = vec!["--socket", node.socket(), "--context", &context, "apply"];
        files.iter().for_each(|file| args.extend(["-f", file]));
        bmctl(&args)
    };
    let large = fabric.write("large.yaml", format!("{WEB}#{}", "x".repeat(2 << 20)).as_bytes());
    let ran = apply(&[large.to_str().unwrap()]);
    assert!(ran.code == 2 && ran.stderr.contains("at most 1048576"), "{ran:?}");
    let ran = apply(&[&fabric.path("missing.yaml")]);
    assert!(ran.code == 2 && ran.stderr.contains("No such file"), "{ran:?}");
    let (a, b) = (
        fabric.write("a.yaml", WEB.as_bytes()),
        fabric.write("b.yaml", WEB.as_bytes()),
    );
    let ran = apply(&[a.to_str().unwrap(), b.to_str().unwrap()]);
    assert!(
        ran.code == 2 && ran.stderr.contains("in another of the files too"),
        "{ran:?}"
    );
    assert!(node.seen().is_empty());
}

/// A node whose pods become ready at the third look.
fn slow_node() -> Node {
    let looks = AtomicUsize::new(0);
    Node::start(move |seen| {
        if seen.method == "POST" {
            return Answer::json(202, &json!({"accepted": true}));
        }
        let hello = PodView {
            workload: parse_manifests(WEB).unwrap()[1].id.clone(),
            phase: Phase::Succeeded,
            ready: false,
            ..views::pod("shop", "hello", 0, &["hello"])
        };
        let first = views::pod("default", "web", 0, &["nginx"]);
        match looks.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::json(200, &[views::unplaced("default", "web", 0)]),
            1 => Answer::error(503, "busy"),
            2 => Answer::json(200, &[first, hello, views::unplaced("default", "web", 1)]),
            _ => Answer::json(200, &[first, hello, views::pod("default", "web", 1, &["nginx"])]),
        }
    })
}

#[test]
fn wait_ends_when_all_pods_are_ready_and_says_what_it_waits_for() {
    let (fabric, node) = (Fabric::new(), slow_node());
    let ran = apply(&fabric, &node, &["--wait"]);
    let said = "\
waiting: default/deployment/web: 0 of 2 pods ready; web-0: no node has the image `nginx:1.22`
waiting: busy (status 503)
waiting: default/deployment/web: 1 of 2 pods ready; web-1: no node has the image `nginx:1.22`
";
    assert_eq!((ran.code, ran.stderr.as_str()), (0, said));
    assert_eq!(node.lines().len(), 2 + 4);
}

#[test]
fn wait_times_out_with_what_is_missing() {
    let fabric = Fabric::new();
    let node = Node::start(|seen| match seen.method.as_str() {
        "POST" => Answer::json(202, &json!({"accepted": true})),
        _ => Answer::json(200, &[views::pod("default", "web", 1, &["nginx"])]),
    });
    let start = Instant::now();
    let ran = apply(&fabric, &node, &["--wait", "--timeout", "700ms"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    let end = "timed out after 700ms: default/deployment/web: 1 of 2 pods ready\n";
    assert!(ran.stderr.contains(end), "{ran:?}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn wait_gives_up_on_a_pod_that_will_never_be_ready() {
    let fabric = Fabric::new();
    let node = Node::start(|seen| match seen.method.as_str() {
        "POST" => Answer::json(202, &json!({"accepted": true})),
        _ => {
            let id = parse_manifests(WEB).unwrap()[1].id.clone();
            let pod = views::pod("shop", "hello", 0, &[]);
            let reason = Some("exit code 1".to_owned());
            Answer::json(
                200,
                &[PodView {
                    workload: id,
                    phase: Phase::Failed,
                    ready: false,
                    reason,
                    ..pod
                }],
            )
        }
    });
    let ran = apply(&fabric, &node, &["--wait", "--timeout", "60s"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.stderr
            .contains("shop/pod/hello: pod `hello-0` failed: exit code 1"),
        "{ran:?}"
    );
}

#[test]
fn delete_waits_until_no_pod_is_left() {
    let fabric = Fabric::new();
    let mut looks = 0;
    let node = Node::start(move |seen| {
        if seen.method == "POST" {
            return Answer::json(202, &json!({"accepted": true}));
        }
        looks += 1;
        let other = views::pod("default", "other", 0, &[]);
        match looks {
            1 => Answer::json(200, &[other, views::pod("default", "web", 0, &[])]),
            _ => Answer::json(200, &[other]),
        }
    });
    let context = fabric.context();
    let ran = bmctl(&[
        "--socket",
        node.socket(),
        "--context",
        &context,
        "delete",
        "deployment/web",
        "--wait",
    ]);
    assert_eq!(
        (ran.code, ran.stderr.as_str()),
        (0, "waiting: default/deployment/web: 1 pods are left\n")
    );
}
