//! Three boxes, one fabric: they join from sticks, run nginx, trust each other by what their TPMs say, survive the loss of one
//! and a new key of one, and know their own and whoever booted something else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::site::{Serving, prefix, wait_until};
use beemesh_ci_e2e::{Binaries, Ctl, Site, SiteOptions, nginx};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

const BOOT: Duration = Duration::from_secs(180);
const REACTION: Duration = Duration::from_secs(60);

fn site() -> Site {
    let binaries = Binaries::find().unwrap();
    let archive = nginx::archive(&binaries.target).unwrap();
    let images = vec![(nginx::IMAGE.to_owned(), archive)];
    let folder = binaries.target.join("e2e/fabric");
    let release = binaries.target.join("image/release.json").display().to_string();
    let mut site = Site::create(
        &folder,
        SiteOptions {
            nodes: 3,
            images,
            create: vec!["--release".into(), release],
        },
    )
    .unwrap();
    for number in 1..=3 {
        site.start(number).unwrap();
    }
    for node in &site.nodes {
        node.machine.wait_for(joined(), BOOT).unwrap();
        node.machine
            .wait_for(format!("image {} is ready", nginx::IMAGE).as_str(), REACTION)
            .unwrap();
    }
    site
}

/// The line with the peer id in it: the console hands out lines while they are still being written.
fn joined() -> regex::Regex {
    regex::Regex::new(r"joined fabric \w+ as .*\(12D3KooW\w+,").unwrap()
}

fn ok(ctl: &Ctl, arguments: &[&str]) -> String {
    let output = ctl.run(arguments).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bmctl {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn peer_id(site: &Site, name: &str) -> String {
    let nodes = site.ctl(0).unwrap().json(&["nodes"]).unwrap();
    let node = nodes
        .as_array()
        .unwrap()
        .iter()
        .find(|node| node["name"] == name)
        .unwrap();
    node["peer_id"].as_str().unwrap().to_owned()
}

fn nodes_of(serving: &[Serving]) -> BTreeSet<&str> {
    serving.iter().map(|replica| replica.node.as_str()).collect()
}

#[test]
fn three_boxes_join_run_nginx_survive_a_loss_and_know_their_own() {
    let mut site = site();
    let members = site.wait_members(0, 3, REACTION).unwrap();
    assert!(
        members
            .iter()
            .all(|node| node["assurance"] == "tpm" || node["assurance"] == "trusted"),
        "{members:?}"
    );
    let ctl = site.ctl(0).unwrap();
    // The next heartbeats tell everybody that the image is everywhere.
    std::thread::sleep(Duration::from_secs(5));

    replicas_are_spread_and_the_operator_sees_into_them(&site, &ctl);
    a_change_that_no_operator_signed_is_refused(&site);
    strangers_stay_out(&mut site);
    for name in ["node-1", "node-2", "node-3"] {
        is_judged(&site, name, "trusted");
    }
    a_new_key_disturbs_nobody(&site, &ctl);
    a_restart_keeps_the_peer_id(&mut site);
    assert_eq!(key_of(&ctl, "node-3")["generation"], 1, "and the new key");
    is_judged(&site, "node-3", "trusted");
    the_key_is_useless_on_another_tpm(&mut site);
    box_with_an_altered_image_is_no_place_for_what_demands_trust(&mut site, &ctl);
    a_dead_box_is_replaced(&mut site);
    deleting_ends_everything(&site, &ctl);
    assert_eq!(
        site.switch.frames_outside(prefix()),
        0,
        "{:?}",
        site.switch.outsiders(prefix())
    );
}

fn replicas_are_spread_and_the_operator_sees_into_them(site: &Site, ctl: &Ctl) {
    let manifest = site.folder.join("web.yaml");
    fs::write(&manifest, nginx::deployment(3, 0)).unwrap();
    ok(ctl, &["apply", "-f", &manifest.display().to_string(), "--wait"]);
    let serving = site.wait_serving(0, 3, REACTION).unwrap();
    // On emulated machines that boot beside each other an answer can come after the placer's window: two boxes at least.
    assert!(nodes_of(&serving).len() >= 2, "not spread: {serving:?}");
    // Logs and exec of a pod on another node go through the node that was asked.
    let far = serving.iter().find(|replica| replica.node != "node-1").unwrap();
    wait_until(REACTION, "the access log", || {
        let log = ok(ctl, &["logs", &far.pod]);
        Ok(if log.contains("\"GET / HTTP/") {
            Ok(())
        } else {
            Err(log)
        })
    })
    .unwrap();
    let output = ctl
        .run(&["exec", &far.pod, "--", "/usr/sbin/nginx", "-v"])
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && text.contains("nginx version"),
        "{text}"
    );
    let failing = ctl
        .run(&["exec", &far.pod, "--", "/usr/sbin/nginx", "-t", "-c", "/absent"])
        .unwrap();
    assert_eq!(
        failing.status.code(),
        Some(1),
        "the exit code of the command is passed on"
    );
    let events: Value = ctl.json(&["events"]).unwrap();
    let reasons: BTreeSet<&str> = events
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["reason"].as_str())
        .collect();
    assert!(
        reasons.contains("Joined") && reasons.contains("PackApplied"),
        "{reasons:?}"
    );
}

fn a_change_that_no_operator_signed_is_refused(site: &Site) {
    // Another fabric's operator: his client does not even accept the node as one of his.
    let other = site.folder.join("other-fabric");
    let init = ["fabric", "init", &other.display().to_string(), "--name", "other"].map(str::to_owned);
    assert!(site.binaries.run_joinpack(&init).unwrap().status.success());
    let stranger = Ctl::new(&site.binaries, &other.join("operator.json"), site.nodes[0].rest);
    let refused = stranger.run(&["nodes"]).unwrap();
    assert_eq!(
        refused.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&refused.stderr)
    );
    let mut apply = site.ctl(0).unwrap().command(["apply", "-f", "-"]);
    let mut apply = apply
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let manifest = nginx::deployment(1, 0).replace("replicas: 1", "replicas: 1\n  strategia: x");
    apply
        .stdin
        .take()
        .unwrap()
        .write_all(manifest.as_bytes())
        .unwrap();
    let output = apply.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("spec.strategia"));
}

/// The same image with another fabric's stick, pointed at our node: no member accepts it.
fn strangers_stay_out(site: &mut Site) {
    let other = site.folder.join("other-fabric").display().to_string();
    let pack = site.folder.join("other-pack");
    let peer = format!("{}:7400", site.nodes[0].address);
    let node = "node-9,mac=52:54:00:77:00:09,address=10.77.0.19/24";
    let out = pack.display().to_string();
    let line = [
        "create",
        "--fabric",
        &other,
        "--out",
        &out,
        "--node",
        node,
        "--peer",
        &peer,
        "--blank-disk",
    ];
    let created = site.binaries.run_joinpack(line).unwrap();
    assert!(
        created.status.success(),
        "{}",
        String::from_utf8_lossy(&created.stderr)
    );
    let stick = site.stick("stick-9", Some(&pack)).unwrap();
    let config = site.machine(9, &stick).unwrap();
    site.start_machine(9, config).unwrap();
    let stranger = site.nodes.last().unwrap();
    stranger.machine.wait_for("the join stick is good", BOOT).unwrap();
    let ctl = site.ctl(0).unwrap();
    wait_until(BOOT, "the stranger to be refused", || {
        let events = ctl.json(&["events"])?;
        let refused = events
            .as_array()
            .into_iter()
            .flatten()
            .find(|event| event["reason"] == "StrangerRefused");
        Ok(refused.map(|_| ()).ok_or_else(|| "no refusal yet".to_owned()))
    })
    .unwrap();
    assert_eq!(site.wait_members(0, 3, REACTION).unwrap().len(), 3);
    let mut stranger = site.nodes.pop().unwrap();
    stranger.machine.kill().unwrap();
}

fn key_of(ctl: &Ctl, name: &str) -> Value {
    let view = ctl.json(&["keys", "status"]).unwrap();
    let mut nodes = view["nodes"].as_array().unwrap().iter();
    nodes.find(|node| node["name"] == name).unwrap().clone()
}

/// Every copy of a pod with its process, its start and its restarts.
fn copies(ctl: &Ctl) -> BTreeSet<String> {
    let pods = ctl.json(&["pods"]).unwrap();
    let copy = |pod: &Value| format!("{} on {}: {}", pod["pod_id"], pod["node"], pod["containers"]);
    pods.as_array().unwrap().iter().map(copy).collect()
}

fn a_new_key_disturbs_nobody(site: &Site, ctl: &Ctl) {
    let (id, old, before) = (peer_id(site, "node-3"), key_of(ctl, "node-3"), copies(ctl));
    assert_eq!(
        (&old["generation"], old["key"].as_str()),
        (&Value::from(0), Some(id.as_str()))
    );
    let serving = site.wait_serving(0, 3, REACTION).unwrap();
    let rotate = ["keys", "rotate", "node-3", "--wait"];
    let mut rotation = ctl.command(rotate).stderr(Stdio::piped()).spawn().unwrap();
    let mut pages = 0;
    // Until the order is obeyed, and once more.
    loop {
        let is_over = rotation.try_wait().unwrap().is_some();
        for replica in &serving {
            let node = site.nodes.iter().find(|node| node.name == replica.node).unwrap();
            let answer = site
                .host
                .http_get(node.address, replica.port, "/", Duration::from_secs(10))
                .unwrap_or_else(|error| panic!("{replica:?} does not answer: {error}"));
            assert_eq!(
                (answer.status, answer.body.as_slice()),
                (200, nginx::PAGE.as_bytes())
            );
            pages += 1;
        }
        if is_over {
            break;
        }
    }
    let output = rotation.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(pages >= 2 * serving.len(), "{pages} pages");
    let new = key_of(ctl, "node-3");
    assert_eq!(
        (&new["generation"], &new["node"]),
        (&Value::from(1), &old["node"])
    );
    assert_ne!(new["key"], old["key"]);
    assert_eq!(new["order"], Value::Null, "nothing is outstanding");
    assert_eq!(key_of(ctl, "node-2")["generation"], 0, "nobody else was named");
    assert_eq!(peer_id(site, "node-3"), id);
    assert_eq!(copies(ctl), before, "a pod was started again");
}

fn a_restart_keeps_the_peer_id(site: &mut Site) {
    let before = peer_id(site, "node-3");
    let machine = &mut site.nodes[2].machine;
    machine.power_off(REACTION).unwrap();
    let console = machine.console().lines_after(machine.boot_mark());
    assert!(
        console
            .iter()
            .any(|line| line.text.contains("the disks are closed")),
        "the encrypted state volume was left open: {console:?}"
    );
    machine.power_on().unwrap();
    let line = machine.wait_for(joined(), BOOT).unwrap();
    assert!(line.text.contains(&before), "{} is not {before}", line.text);
    site.wait_members(0, 3, REACTION).unwrap();
    assert_eq!(peer_id(site, "node-3"), before);
    site.wait_serving(0, 3, Duration::from_secs(90)).unwrap();
}

/// The disk of node-3 in a machine with another TPM: neither the state volume nor the node key opens.
fn the_key_is_useless_on_another_tpm(site: &mut Site) {
    let own = peer_id(site, "node-3");
    let mut node = site.nodes.pop().unwrap();
    node.machine.power_off(REACTION).unwrap();
    let config = node.machine.config().clone();
    drop(node);
    let other_tpm = site.folder.join("another-tpm");
    fs::create_dir_all(&other_tpm).unwrap();
    let mut foreign = config.clone().tpm(Some(&other_tpm));
    foreign.sticks = vec![beemesh_ci_testkit::Stick::bootable(
        "os",
        &site.stick("os-only", None).unwrap(),
    )];
    site.start_machine(3, foreign).unwrap();
    let machine = &mut site.nodes[2].machine;
    machine.wait_for("another machine", BOOT).unwrap();
    machine.wait_for("insert a join stick", BOOT).unwrap();
    let console = machine.console().lines_after(machine.boot_mark());
    assert!(
        !console.iter().any(|line| line.text.contains(&own)),
        "the foreign machine has the identity"
    );
    machine.kill().unwrap();
    site.nodes.pop();
    // Back in its own machine it is itself again: the attempt has changed nothing. What it boots is another matter.
    alter_image(&site.folder.join("stick-3.img"));
    site.start_machine(3, config).unwrap();
    let line = site.nodes[2].machine.wait_for(joined(), BOOT).unwrap();
    assert!(line.text.contains(&own), "{}", line.text);
    site.wait_members(0, 3, REACTION).unwrap();
    site.wait_serving(0, 3, Duration::from_secs(90)).unwrap();
}

/// One letter of the unified kernel image on a stick.
fn alter_image(stick: &Path) {
    let file = fs::OpenOptions::new().read(true).write(true).open(stick).unwrap();
    let (words, mut at, mut piece) = (b"PRETTY_NAME=\"Beemesh OS", 0, vec![0; 1 << 20]);
    loop {
        let read = file.read_at(&mut piece, at).unwrap();
        assert!(read > words.len(), "`{}` has no os-release", stick.display());
        if let Some(found) = piece[..read]
            .windows(words.len())
            .position(|bytes| bytes == words)
        {
            let letter = at + (found + words.len() - 1) as u64;
            return file.write_all_at(b"Z", letter).unwrap();
        }
        at += (read - words.len() + 1) as u64;
    }
}

/// Waits until the first box judges `name` like this.
fn is_judged(site: &Site, name: &str, judgement: &str) {
    let ctl = site.ctl(0).unwrap();
    wait_until(
        Duration::from_secs(120),
        &format!("{name} to be {judgement}"),
        || {
            let nodes = ctl.json(&["nodes"])?;
            let mut all = nodes.as_array().into_iter().flatten();
            let node = all.find(|node| node["name"] == name);
            let words = node
                .and_then(|node| node["assurance"].as_str())
                .unwrap_or_default();
            Ok(if words == judgement {
                Ok(())
            } else {
                Err(nodes.to_string())
            })
        },
    )
    .unwrap();
}

fn box_with_an_altered_image_is_no_place_for_what_demands_trust(site: &mut Site, ctl: &Ctl) {
    // The image itself, and its digest among what the firmware loaded.
    is_judged(site, "node-3", "changed: PCR 4,11");
    let events = ctl.json(&["events"]).unwrap();
    let alarm = |event: &Value| event["reason"] == "AssuranceChanged" && event["object"] == "node/node-3";
    assert!(events.as_array().unwrap().iter().any(alarm), "{events}");
    // Whoever stands before another box reads it there.
    let console = &site.nodes[0].machine;
    console
        .wait_for(
            "do not trust node `node-3`: it booted an image that no join pack",
            REACTION,
        )
        .unwrap();
    let manifest = site.folder.join("vault.yaml");
    let pods = nginx::deployment(3, 0)
        .replace("name: web", "name: vault")
        .replace(
            "      containers:",
            "      nodeSelector: {assurance: trusted}\n      containers:",
        );
    fs::write(&manifest, pods).unwrap();
    ok(ctl, &["apply", "-f", &manifest.display().to_string(), "--wait"]);
    let pods = ctl.json(&["pods"]).unwrap();
    let of = |pod: &&Value| pod["workload"]["name"] == "vault";
    let nodes: Vec<&str> = pods
        .as_array()
        .unwrap()
        .iter()
        .filter(of)
        .filter_map(|pod| pod["node"].as_str())
        .collect();
    assert!(nodes.len() == 3 && !nodes.contains(&"node-3"), "{pods}");
    ok(ctl, &["delete", "deployment/vault"]);
}

fn a_dead_box_is_replaced(site: &mut Site) {
    site.nodes[2].machine.kill().unwrap();
    let healed = wait_until(Duration::from_secs(60), "three replicas on two boxes", || {
        let serving = site.wait_serving(0, 3, Duration::ZERO)?;
        Ok(if serving.iter().any(|replica| replica.node == "node-3") {
            Err(format!("{serving:?}"))
        } else {
            Ok(serving)
        })
    })
    .unwrap();
    assert_eq!(nodes_of(&healed).len(), 2, "{healed:?}");
}

fn deleting_ends_everything(site: &Site, ctl: &Ctl) {
    let last = site.wait_serving(0, 3, REACTION).unwrap();
    ok(ctl, &["delete", "deployment/web"]);
    wait_until(REACTION, "no pods", || {
        let pods = ctl.json(&["pods"])?;
        Ok(if pods.as_array().is_some_and(Vec::is_empty) {
            Ok(())
        } else {
            Err(pods.to_string())
        })
    })
    .unwrap();
    let replica = &last[0];
    let node = site.nodes.iter().find(|node| node.name == replica.node).unwrap();
    let answer = site
        .host
        .http_get(node.address, replica.port, "/", Duration::from_secs(3));
    assert!(answer.is_err(), "the port still answers");
}
