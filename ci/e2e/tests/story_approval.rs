//! A box with a stick that admits nobody: it shows a code, waits, and is a member seconds after an operator typed that code.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_ci_e2e::site::wait_until;
use beemesh_ci_e2e::{Binaries, Site, SiteOptions};
use std::time::Duration;

const BOOT: Duration = Duration::from_secs(180);
const REACTION: Duration = Duration::from_secs(45);

#[test]
fn operator_lets_a_box_in_by_the_code_on_its_console() {
    let folder = Binaries::find().unwrap().target.join("e2e/story-approval");
    let options = SiteOptions {
        nodes: 1,
        images: Vec::new(),
        create: Vec::new(),
    };
    let mut site = Site::create(&folder, options).unwrap();
    let place = "till-9,mac=52:54:00:77:00:02,address=10.77.0.12/24,approval";
    let asking = site.make_pack("asking", &["--node", place]).unwrap();
    site.start(1).unwrap();
    site.nodes[0].machine.wait_for("joined fabric", BOOT).unwrap();

    let stick = site.stick("stick-2", Some(&asking)).unwrap();
    let config = site.machine(2, &stick).unwrap();
    site.start_machine(2, config).unwrap();
    let line = site.nodes[1].machine.wait_for("Its code is ", BOOT).unwrap();
    let (_, rest) = line.text.split_once("Its code is ").unwrap();
    let code = rest[..11].to_owned();
    let ctl = site.ctl(0).unwrap();
    wait_until(REACTION, "the petition at the member", || {
        let pending = ctl.json(&["node", "pending"])?;
        Ok(
            if pending[0]["code"] == code.as_str() && pending[0]["name"] == "till-9" {
                Ok(())
            } else {
                Err(pending.to_string())
            },
        )
    })
    .unwrap();
    let wrong = ctl.run(&["node", "approve", "00000-00000"]).unwrap();
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    let nodes = ctl.json(&["nodes"]).unwrap();
    assert_eq!(
        nodes.as_array().unwrap().len(),
        1,
        "nobody is in by a stick alone: {nodes}"
    );

    let approved = ctl.run(&["node", "approve", &code.to_lowercase()]).unwrap();
    assert!(approved.status.success(), "{approved:?}");
    site.nodes[1].machine.wait_for("joined fabric", REACTION).unwrap();
    let nodes = site.wait_members(0, 2, REACTION).unwrap();
    let newcomer = nodes.iter().find(|node| node["name"] == "till-9").unwrap();
    assert_eq!(newcomer["assurance"], "tpm");
}
