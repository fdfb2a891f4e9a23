//! Sticks that are copied, and boxes that are known: two boxes take copies of one stick with one place, and one of them
//! stays out, as both say; it asks by a stick, whose maker answers it after a look at the certificates of its TPM, and the stick is of no
//! use to the other box and brings this one in (two trips); a revoked box is cut off at once and stays out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::site::{FABRIC_PORT, address, mac, prefix, wait_until};
use beemesh_ci_e2e::{Binaries, Ctl, Site, SiteOptions};
use beemesh_ci_testkit::{DhcpPool, Stick, StickImage, TpmMaker};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BOOT: Duration = Duration::from_secs(180);
const REACTION: Duration = Duration::from_secs(60);

/// The line with the peer id in it: the console hands out lines while they are still being written.
fn joined(name: &str) -> regex::Regex {
    regex::Regex::new(&format!(r"joined fabric \w+ as {name} \(12D3KooW\w+,")).unwrap()
}

fn joinpack(site: &Site, arguments: &[&str]) -> String {
    let output = site.binaries.run_joinpack(arguments).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "joinpack {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn create(site: &Site, name: &str, more: &[&str]) -> PathBuf {
    let pack = site.folder.join(name);
    let (fabric, out) = (text(&site.folder.join("fabric")), text(&pack));
    let line = [
        "create",
        "--fabric",
        &fabric,
        "--out",
        &out,
        "--cell",
        "site",
        "--blank-disk",
    ];
    joinpack(site, &[&line[..], more].concat());
    pack
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn ok(ctl: &Ctl, arguments: &[&str]) -> String {
    let output = ctl.run(arguments).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bmctl {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn says(site: &Site, index: usize, words: &str) -> bool {
    let lines = site.nodes[index].machine.console().tail(400);
    lines.iter().any(|line| line.text.contains(words))
}

/// The receipts on a stick, once there are `count` of them, all proven by this fabric; the keys of the machines go to `keys`.
fn receipts(site: &Site, stick: &Path, count: usize, keys: &Path) -> Vec<Value> {
    let (stick, fabric, keys) = (text(stick), text(&site.folder.join("fabric")), text(keys));
    let line = [
        "receipts", &stick, "--fabric", &fabric, "--ek-to", &keys, "-o", "json",
    ];
    let found = wait_until(REACTION, &format!("{count} receipts"), || {
        let output = site.binaries.run_joinpack(line)?;
        let views: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        Ok(if output.status.success() && views.len() == count {
            Ok(views)
        } else {
            Err(format!("{views:?}"))
        })
    })
    .unwrap();
    for view in &found {
        let machine = &view["machine"];
        assert!(
            view["proof"] == "member"
                && machine["ek"]["public"].is_string()
                && machine["macs"][0].is_string(),
            "{view}"
        );
    }
    found
}

/// The machines that keep, and lose, the only place of the stick: by their index.
fn who_keeps_the_place(site: &Site) -> (usize, usize) {
    wait_until(BOOT, "one box to stay out and the other to say so", || {
        let found = (0..2).find(|loser| {
            says(site, *loser, "this box stays out")
                && says(
                    site,
                    1 - loser,
                    "which this box had redeemed before: a stick was copied",
                )
        });
        Ok(found
            .map(|loser| (1 - loser, loser))
            .ok_or_else(|| "neither".to_owned()))
    })
    .unwrap()
}

#[test]
fn copied_stick_lets_one_box_in_answered_stick_helps_no_other_and_revoked_box_stays_out() {
    let target = Binaries::find().unwrap().target;
    let options = SiteOptions {
        nodes: 2,
        images: Vec::new(),
        create: Vec::new(),
    };
    let mut site = Site::create(&target.join("e2e/enrolment"), options).unwrap();
    let pool = (1..=2).fold(DhcpPool::new(address(100), 20), |pool, n| {
        pool.fixed(mac(n), address(n))
    });
    site.host.dhcp_on(pool).unwrap();
    let pack = create(&site, "open", &["--nodes", "1", "--found"]);
    let maker = TpmMaker::new(&site.folder.join("maker")).unwrap();
    let mut sticks = Vec::new();
    for number in [1, 2] {
        let stick = site.stick(&format!("stick-{number}"), Some(&pack)).unwrap();
        let config = site.machine(number, &stick).unwrap();
        maker.make(config.tpm.as_ref().unwrap()).unwrap();
        site.start_machine(number, config).unwrap();
        sticks.push(stick);
    }
    let (first, second) = who_keeps_the_place(&site);
    assert_eq!(site.wait_members(first, 1, REACTION).unwrap().len(), 1);
    answered_stick_is_refused_elsewhere_and_brings_in_its_own(
        &mut site,
        first,
        second,
        &sticks[second],
        &maker,
    );
    revoked_box_is_cut_off_and_stays_out(&site, first, second);
    assert_eq!(site.switch.frames_outside(prefix()), 0, "frames left the site");
}

fn answered_stick_is_refused_elsewhere_and_brings_in_its_own(
    site: &mut Site,
    first: usize,
    second: usize,
    stick: &Path,
    maker: &TpmMaker,
) {
    // No network asks this box for its key: it is out of the fabric. The stick that it had says it.
    let keys = site.folder.join("keys");
    let seen = receipts(site, stick, 1, &keys);
    assert_eq!(seen[0]["result"], "applied");
    let ek = seen[0]["machine"]["ek"]["ek"].clone();
    let peer = format!("{}:{FABRIC_PORT}", site.nodes[first].address);
    let pack = create(site, "asking", &["--requests", "--peer", &peer]);
    let copy = site.folder.join("copy.img");
    StickImage::from_folder(&copy, 16, &pack).unwrap();
    asks_by_the_stick_and_is_answered(site, second, &copy, &ek, maker);

    let machine = &mut site.nodes[first].machine;
    let mark = machine.console().mark();
    machine.plug(Stick::data("copy", &copy)).unwrap();
    let refusal = "the join stick was refused (other-box): this join pack is for other boxes";
    machine.console().wait_for_after(mark, refusal, REACTION).unwrap();
    receipts(site, &copy, 2, &keys);
    let machine = &mut site.nodes[first].machine;
    machine.unplug("copy").unwrap();

    let machine = &mut site.nodes[second].machine;
    let mark = machine.console().mark();
    machine.plug(Stick::data("copy", &copy)).unwrap();
    machine
        .console()
        .wait_for_after(mark, joined("till"), REACTION)
        .unwrap();
    let nodes = site.wait_members(first, 2, REACTION).unwrap();
    assert!(nodes.iter().any(|node| node["name"] == "till"), "{nodes:?}");
    let visits = receipts(site, &copy, 3, &keys);
    let of = |result: &str| visits.iter().find(|view| view["result"] == result).unwrap();
    let elsewhere = visits.iter().find(|view| view["code"] == "other-box").unwrap();
    assert_eq!(elsewhere["node"], "node-1");
    assert_ne!(elsewhere["machine"]["ek"]["ek"], ek);
    assert_eq!(
        (&of("applied")["node"], &of("applied")["machine"]["ek"]["ek"]),
        (&"till".into(), &ek)
    );
    assert!(
        visits.iter().any(|view| view["code"] == "waits-for-answer"),
        "{visits:?}"
    );
}

/// The first trip, and what the operator does at home.
fn asks_by_the_stick_and_is_answered(
    site: &mut Site,
    index: usize,
    stick: &Path,
    ek: &Value,
    maker: &TpmMaker,
) {
    let machine = &mut site.nodes[index].machine;
    let mark = machine.console().mark();
    machine.plug(Stick::data("copy", stick)).unwrap();
    let words = "which wrote a request to it. Its code is";
    machine.console().wait_for_after(mark, words, REACTION).unwrap();
    machine.unplug("copy").unwrap();
    let files = StickImage::open(stick).unwrap().files().unwrap();
    let request = files
        .iter()
        .find_map(|name| name.strip_prefix("requests/"))
        .unwrap();
    let name = format!("{}=till", request.strip_suffix(".json").unwrap());
    let (stick, fabric, roots) = (
        text(stick),
        text(&site.folder.join("fabric")),
        text(&maker.roots()),
    );
    let line = [
        "answer", "--to", &stick, "--fabric", &fabric, "--name", &name, "-o", "json",
    ];
    // Nobody vouches for it, as far as this operator knows.
    let output = site.binaries.run_joinpack(line).unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let answered = joinpack(site, &[&line[..], &["--vendor-roots", &roots]].concat());
    let view: Value = serde_json::from_str(&answered).unwrap();
    let answer = &view["answers"][0];
    assert_eq!(
        (&answer["node"], &answer["machine"]["ek"]["ek"]),
        (&"till".into(), ek)
    );
    assert_eq!(answer["maker"], "CN=swtpm-localca-rootca");
    assert!(says(site, index, answer["code"].as_str().unwrap()), "{answer}");
}

fn revoked_box_is_cut_off_and_stays_out(site: &Site, first: usize, second: usize) {
    let ctl = site.ctl(first).unwrap();
    let nodes = site.wait_members(first, 2, REACTION).unwrap();
    let till = nodes.iter().find(|node| node["name"] == "till").unwrap();
    let peer = till["peer_id"].as_str().unwrap().to_owned();
    let mark = site.nodes[second].machine.console().mark();
    ok(&ctl, &["revoke", &format!("node/{peer}")]);
    wait_until(REACTION, "one member", || {
        let nodes = ctl.json(&["nodes"])?;
        let mut all = nodes.as_array().into_iter().flatten();
        let left = all.any(|node| node["peer_id"] == peer.as_str());
        Ok(if left { Err(nodes.to_string()) } else { Ok(()) })
    })
    .unwrap();
    let known = ctl.json(&["revocations"]).unwrap();
    assert!(
        known["nodes"].to_string().contains(&peer) && known["age_s"].as_u64().unwrap() < 3600,
        "{known}"
    );
    // It knocks again, with a credential that was good a moment ago.
    wait_until(REACTION, "the revoked box to be refused", || {
        let events = ctl.json(&["events"])?;
        let refused = |event: &Value| {
            event["reason"] == "StrangerRefused" && event["message"].to_string().contains("revoked")
        };
        let found = events.as_array().into_iter().flatten().any(refused);
        Ok(if found {
            Ok(())
        } else {
            Err("no refusal yet".to_owned())
        })
    })
    .unwrap();
    let lines = site.nodes[second].machine.console().lines_after(mark);
    assert!(
        !lines.iter().any(|line| line.text.contains("joined")),
        "till came back: {lines:?}"
    );
    assert_eq!(site.wait_members(first, 1, REACTION).unwrap().len(), 1);
}
