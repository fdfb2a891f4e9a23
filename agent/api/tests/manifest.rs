//! What the manifest subset takes, and what it says about the rest. Each case gives the whole message, since that is
//! what an operator reads.

use beemesh_agent_api::manifest::{MAX_DOCUMENTS, MAX_SIZE, ManifestFault, RestartPolicy, to_yaml};
use beemesh_agent_api::{ManifestError, WorkloadKind, WorkloadSpec, check_workload, parse_manifests};

const NGINX: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {team: shop}
  annotations: {note: "not kept"}
spec:
  replicas: 3
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web, tier: front}
    spec:
      nodeSelector: {disk: ssd}
      terminationGracePeriodSeconds: 5
      containers:
      - name: nginx
        image: nginx:1.22
        args: ["-g", "daemon off;"]
        env: [{name: LANG, value: C.UTF-8}]
        ports:
        - {name: http, containerPort: 80, hostPort: 8080}
        resources:
          requests: {cpu: 250m, memory: 64Mi}
          limits: {cpu: 1, memory: 128Mi, beemesh.org/pids: 64}
"#;

fn pod_with(container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec:\n  containers:\n  - name: a\n    image: i\n{container}"
    )
}

fn refusal(text: &str) -> ManifestError {
    match parse_manifests(text) {
        Ok(specs) => panic!("taken: {specs:?}"),
        Err(error) => error,
    }
}

#[test]
fn deployment_is_read_with_its_defaults() {
    let specs = parse_manifests(NGINX).unwrap();
    let [spec] = specs.as_slice() else {
        panic!("{specs:?}")
    };
    assert_eq!(spec.id.to_string(), "default/deployment/web");
    assert_eq!((spec.id.kind, spec.replicas), (WorkloadKind::Deployment, 3));
    assert_eq!(spec.labels.get("tier").map(String::as_str), Some("front"));
    assert_eq!(spec.pod.reserved(), (250, 64 << 20));
    assert_eq!(spec.pod.host_ports().collect::<Vec<_>>(), [8080]);
    assert_eq!(spec.pod.restart_policy, RestartPolicy::Always);
    assert_eq!(spec.pod.containers[0].resources.limits.pids, Some(64));
}

#[test]
fn pod_needs_no_more_than_a_name_and_an_image() {
    let specs = parse_manifests(&pod_with("")).unwrap();
    assert_eq!(specs[0].replicas, 1);
    assert_eq!(specs[0].pod.termination_grace_period_seconds, 30);
    assert_eq!(specs[0].pod.reserved(), (0, 0));
}

#[test]
fn json_is_read_like_yaml() {
    let spec = parse_manifests(NGINX).unwrap().remove(0);
    let json = serde_json::to_string_pretty(&beemesh_agent_api::Manifest::from(&spec)).unwrap();
    assert_eq!(parse_manifests(&json).unwrap(), std::slice::from_ref(&spec));
    let tabs = json.replace("  ", "\t");
    assert_eq!(parse_manifests(&tabs).unwrap(), [spec]);
}

#[test]
fn what_is_written_is_read_back() {
    for text in [
        NGINX.to_owned(),
        pod_with("    command: [\"yes\", \"1.5\", \"null\", \"\"]\n"),
    ] {
        let spec: WorkloadSpec = parse_manifests(&text).unwrap().remove(0);
        let yaml = to_yaml(&spec).unwrap();
        assert_eq!(parse_manifests(&yaml).unwrap(), [spec], "{yaml}");
    }
}

#[test]
fn several_documents_are_several_workloads() {
    let text = format!("{NGINX}---\n{}---\n", pod_with(""));
    let names: Vec<_> = parse_manifests(&text)
        .unwrap()
        .iter()
        .map(|spec| spec.id.to_string())
        .collect();
    assert_eq!(names, ["default/deployment/web", "default/pod/p"]);
}

#[test]
fn the_same_workload_twice_is_refused_with_its_document_and_line() {
    let error = refusal(&format!("{NGINX}---{NGINX}"));
    assert_eq!(
        error.what,
        ManifestFault::Duplicate("default/deployment/web".into())
    );
    assert_eq!((error.document, error.line), (2, Some(32)));
}

#[test]
fn unsupported_fields_are_named_with_path_and_line() {
    let text = NGINX.replace("        args:", "        livenessProbe: {}\n        args:");
    let error = refusal(&text);
    assert_eq!(error.path, "spec.template.spec.containers[0].livenessProbe");
    assert_eq!(error.what, ManifestFault::Unsupported);
    assert_eq!(error.line, Some(21));
    let said = error.to_string();
    assert!(
        said.starts_with(
            "spec.template.spec.containers[0].livenessProbe: not supported (document 1, line 21); "
        ),
        "{said}"
    );
    for (field, path) in [("status", "status"), ("metadata", "")] {
        let text = format!("{}\n{field}: {{}}\n", pod_with(""));
        assert_eq!(refusal(&text).path, path, "{field}");
    }
}

#[test]
fn missing_fields_are_named() {
    let error =
        refusal("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n");
    assert_eq!(
        (error.path.as_str(), &error.what),
        ("spec.containers[0].image", &ManifestFault::Missing)
    );
    assert_eq!(error.line, Some(6));
    assert_eq!(refusal("kind: Pod\n").path, "apiVersion");
    assert_eq!(
        refusal("apiVersion: v1\nkind: Pod\nspec: {containers: []}").path,
        "metadata"
    );
}

#[test]
fn other_kinds_and_versions_are_refused() {
    for (text, path) in [
        ("apiVersion: v1\nkind: Service", "kind"),
        ("apiVersion: apps/v1\nkind: StatefulSet", "kind"),
        ("apiVersion: extensions/v1beta1\nkind: Deployment", "apiVersion"),
        ("apiVersion: apps/v1\nkind: Pod", "apiVersion"),
    ] {
        let error = refusal(text);
        assert!(matches!(error.what, ManifestFault::Kind(_)), "{error}");
        assert_eq!(error.path, path);
    }
}

#[test]
fn values_outside_their_range_are_refused_at_their_path() {
    for (change, path) in [
        (("name: web\n", "name: Web\n"), "metadata.name"),
        (
            ("name: web\n", "name: web\n  namespace: a_b\n"),
            "metadata.namespace",
        ),
        (("replicas: 3", "replicas: 1001"), "spec.replicas"),
        (("replicas: 3", "replicas: -1"), "spec.replicas"),
        (
            ("replicas: 3", "replicas: 1\n  strategy: {type: Recreate}"),
            "spec.strategy.type",
        ),
        (
            ("replicas: 3", "replicas: 1\n  strategy: {rollingUpdate: {}}"),
            "spec.strategy.rollingUpdate",
        ),
        (("{app: web}\n", "{app: other}\n"), "spec.selector.matchLabels"),
        (("{app: web}\n", "{}\n"), "spec.selector.matchLabels"),
        (
            ("disk: ssd", "disk: 'a b'"),
            "spec.template.spec.nodeSelector.disk",
        ),
        (
            ("{disk: ssd}", "{assurance: high}"),
            "spec.template.spec.nodeSelector.assurance",
        ),
        (
            ("Seconds: 5", "Seconds: 3601"),
            "spec.template.spec.terminationGracePeriodSeconds",
        ),
        (
            ("image: nginx:1.22", "image: 'a b'"),
            "spec.template.spec.containers[0].image",
        ),
        (
            ("name: LANG", "name: A=B"),
            "spec.template.spec.containers[0].env[0].name",
        ),
        (
            ("containerPort: 80", "containerPort: 0"),
            "spec.template.spec.containers[0].ports[0].containerPort",
        ),
        (
            ("containerPort: 80", "containerPort: 70000"),
            "spec.template.spec.containers[0].ports[0].containerPort",
        ),
        (
            ("hostPort: 8080", "protocol: UDP"),
            "spec.template.spec.containers[0].ports[0].protocol",
        ),
        (
            ("{cpu: 250m", "{cpu: 2"),
            "spec.template.spec.containers[0].resources.requests.cpu",
        ),
        (
            ("memory: 64Mi", "memory: 64X"),
            "spec.template.spec.containers[0].resources.requests.memory",
        ),
        (
            ("memory: 128Mi", "memory: -1"),
            "spec.template.spec.containers[0].resources.limits.memory",
        ),
        (
            ("nodeSelector", "restartPolicy: Never\n      nodeSelector"),
            "spec.template.spec.restartPolicy",
        ),
    ] {
        let text = NGINX.replacen(change.0, change.1, 1);
        assert_ne!(text, NGINX, "{change:?}");
        let error = refusal(&text);
        assert_eq!(error.path, path, "{error}");
        assert!(error.line.is_some(), "{error}");
    }
}

#[test]
fn names_and_ports_that_collide_are_refused() {
    let second = "  - name: b\n    image: i\n    ports: [{containerPort: 1, hostPort: 5}]\n";
    let first = "    ports: [{containerPort: 1, hostPort: 5}]\n";
    for (text, path) in [
        (pod_with("  - name: a\n    image: i\n"), "spec.containers[1].name"),
        (
            pod_with(&format!("{first}{second}")),
            "spec.containers[1].ports[0].hostPort",
        ),
        (
            pod_with("    ports: [{containerPort: 1}, {containerPort: 1}]\n"),
            "spec.containers[0].ports[1].containerPort",
        ),
        (
            pod_with("    env: [{name: A}, {name: A}]\n"),
            "spec.containers[0].env[1].name",
        ),
    ] {
        let error = refusal(&text);
        assert!(matches!(error.what, ManifestFault::Duplicate(_)), "{error}");
        assert_eq!(error.path, path);
    }
}

#[test]
fn inputs_past_the_bounds_are_refused() {
    let big = "#".repeat(MAX_SIZE + 1);
    assert!(matches!(refusal(&big).what, ManifestFault::TooLarge { .. }));
    let many = pod_with("") + "\n---\n";
    assert!(matches!(
        refusal(&many.repeat(MAX_DOCUMENTS + 1)).what,
        ManifestFault::Documents { .. }
    ));
    assert!(matches!(
        refusal("").what,
        ManifestFault::Documents { found: 0, .. }
    ));
    let containers: String = (0..17)
        .map(|n| format!("  - name: c{n}\n    image: i\n"))
        .collect();
    assert_eq!(refusal(&pod_with(&containers)).path, "spec.containers");
}

#[test]
fn what_is_not_yaml_is_refused_without_a_panic() {
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(0..9)
            .map(|n| {
                format!(
                    "{c}: &{c} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]\n",
                    c = (b'b' + n) as char,
                    p = (b'a' + n) as char
                )
            })
            .collect::<String>();
    let deep = "[".repeat(100_000);
    for text in [
        "a: [",
        "\u{0}",
        "%YAML 9",
        "a: b: c",
        "- x: *none",
        "kind: Pod\nkind: Pod",
        &bomb,
        &deep,
    ] {
        let error = refusal(text);
        assert!(
            matches!(error.what, ManifestFault::Syntax(_)),
            "{text:.40}: {error}"
        );
    }
    for text in ["- a", "text", "7"] {
        assert!(matches!(refusal(text).what, ManifestFault::Invalid(_)), "{text}");
    }
}

#[test]
fn a_signed_workload_is_checked_like_a_manifest() {
    let mut spec = parse_manifests(NGINX).unwrap().remove(0);
    assert_eq!(check_workload(&spec), Ok(()));
    spec.pod.containers[0].working_dir = Some("/srv/../etc".into());
    assert_eq!(
        check_workload(&spec).unwrap_err().path,
        "spec.template.spec.containers[0].workingDir"
    );
    let mut pod = parse_manifests(&pod_with("")).unwrap().remove(0);
    pod.replicas = 2;
    assert_eq!(check_workload(&pod).unwrap_err().path, "spec.replicas");
}

/// The examples of `SPEC.md` are read, and its refusals say what the page says that they say.
#[test]
fn the_page_tells_the_truth() {
    let page = include_str!("../SPEC.md");
    let mut taken = 0;
    let mut refused = 0;
    for block in page.split("```yaml\n").skip(1) {
        let (text, after) = block.split_once("```").unwrap();
        match after.trim_start().strip_prefix("Refused: `") {
            None => {
                parse_manifests(text).unwrap();
                taken += 1;
            }
            Some(said) => {
                let said = said.split('`').next().unwrap();
                let error = refusal(text).to_string();
                assert!(error.starts_with(said), "{error}");
                refused += 1;
            }
        }
    }
    assert!(taken >= 2 && refused >= 2, "{taken} {refused}");
}
