//! Claims about the runtime configuration and about what is touched in a root file system.

use super::*;
use beemesh_agent_api::manifest::{EnvVar, Quantities, Resources};

fn image(config: &str) -> ImageConfiguration {
    let text = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{config},\
         \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[]}}}}"
    );
    serde_json::from_str(&text).unwrap()
}

fn container() -> Container {
    Container {
        name: "web".into(),
        image: "x".into(),
        command: None,
        args: None,
        env: Vec::new(),
        working_dir: None,
        ports: Vec::new(),
        resources: Resources::default(),
    }
}

fn pod() -> PodFiles {
    PodFiles {
        hosts: "/p/hosts".into(),
        hostname_file: "/p/hostname".into(),
        resolv_conf: "/p/resolv.conf".into(),
        hostname: "web-0".into(),
        cgroup: "beemesh/pods/P".into(),
    }
}

fn root() -> User {
    User {
        uid: 0,
        gid: 0,
        groups: vec![],
        home: Some("/root".into()),
    }
}

fn plan(container: &Container, config: &str) -> Value {
    plan_config(container, &image(config), &pod(), &root()).unwrap()
}

#[test]
fn command_and_args_replace_by_kubernetes_rules() {
    let config = r#"{"Entrypoint":["/e","x"],"Cmd":["c"]}"#;
    let args = |command: Option<&[&str]>, args: Option<&[&str]>| {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let mut container = container();
        container.command = command.map(owned);
        container.args = args.map(owned);
        plan(&container, config)["process"]["args"].clone()
    };
    assert_eq!(args(None, None), json!(["/e", "x", "c"]));
    assert_eq!(args(Some(&["/b"]), None), json!(["/b"]));
    assert_eq!(args(None, Some(&["d"])), json!(["/e", "x", "d"]));
    assert_eq!(args(Some(&["/b"]), Some(&["d"])), json!(["/b", "d"]));
}

#[test]
fn an_image_without_a_command_needs_one() {
    let refused = plan_config(&container(), &image("{}"), &pod(), &root());
    assert!(matches!(refused, Err(BundleError::NoCommand)));
}

#[test]
fn the_environment_is_layered_and_has_a_path() {
    let mut container = container();
    container.env = vec![EnvVar {
        name: "A".into(),
        value: "manifest".into(),
    }];
    let plan = plan(&container, r#"{"Cmd":["c"],"Env":["A=image","B=2"]}"#);
    assert_eq!(
        plan["process"]["env"],
        json!([PATH_DEFAULT, "HOME=/root", "A=manifest", "B=2", "HOSTNAME=web-0"])
    );
}

#[test]
fn limits_become_quota_weight_memory_and_pids() {
    let mut container = container();
    container.resources.limits = Quantities {
        cpu: Some(250),
        memory: Some(64 << 20),
        pids: Some(7),
    };
    container.resources.requests = Quantities {
        cpu: Some(100),
        ..Quantities::default()
    };
    let planned = plan(&container, r#"{"Cmd":["c"]}"#);
    assert_eq!(
        planned["linux"]["resources"],
        json!({
            "cpu": {"shares": 102},
            "memory": {"limit": 67_108_864},
            "unified": {"memory.swap.max": "0"},
            "pids": {"limit": 7},
        })
    );
    let bare = plan(&super::tests::container(), r#"{"Cmd":["c"]}"#);
    assert_eq!(bare["linux"]["resources"], json!({"pids": {"limit": 1024}}));
}

#[test]
fn a_container_is_confined_and_shares_the_pods_network() {
    let planned = plan(&container(), r#"{"Cmd":["c"]}"#);
    let spec: oci_spec::runtime::Spec = serde_json::from_value(planned.clone()).unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(process.no_new_privileges(), Some(true));
    let bounding = process
        .capabilities()
        .as_ref()
        .unwrap()
        .bounding()
        .as_ref()
        .unwrap();
    assert_eq!(bounding.len(), CAPABILITIES.len());
    assert!(!planned.to_string().contains("CAP_SYS_ADMIN") && !planned.to_string().contains("CAP_MKNOD"));
    let kinds: Vec<_> = planned["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["type"].clone())
        .collect();
    assert_eq!(kinds, [json!("pid"), json!("mount"), json!("cgroup")]);
    assert_eq!(planned["linux"]["cgroupsPath"], "/beemesh/pods/P/web");
    assert_eq!(planned["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
}

#[test]
fn a_link_in_the_image_does_not_lead_to_the_nodes_files() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    let bundle = dir.path().join("bundle");
    fs::create_dir_all(bundle.join("rootfs/etc")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("passwd"), "evil:x:0:0::/:/bin/sh\n").unwrap();
    std::os::unix::fs::symlink(outside.join("passwd"), bundle.join("rootfs/etc/passwd")).unwrap();
    std::os::unix::fs::symlink(&outside, bundle.join("rootfs/work")).unwrap();
    let mut container = container();
    container.working_dir = Some("/work/made".into());
    let named = image(r#"{"Cmd":["c"],"User":"evil"}"#);
    assert!(matches!(
        write_bundle(&bundle, &container, &named, &pod()),
        Err(BundleError::User(_))
    ));
    let _ = write_bundle(&bundle, &container, &image(r#"{"Cmd":["c"]}"#), &pod());
    assert!(
        !outside.join("made").exists(),
        "the working directory was made outside"
    );
}

#[test]
fn a_missing_working_directory_is_made() {
    let bundle = tempfile::tempdir().unwrap();
    fs::create_dir_all(bundle.path().join("rootfs")).unwrap();
    let mut container = container();
    container.working_dir = Some("/srv/a/b".into());
    write_bundle(bundle.path(), &container, &image(r#"{"Cmd":["c"]}"#), &pod()).unwrap();
    assert!(bundle.path().join("rootfs/srv/a/b").is_dir());
    assert!(oci_spec::runtime::Spec::load(bundle.path().join("config.json")).is_ok());
}
