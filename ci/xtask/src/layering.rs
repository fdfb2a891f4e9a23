//! The layering rule: ids <- PURE crates <- adapters <- binaries, and no arrow from init to agent.
//!
//! Read from `cargo metadata`, so that a manifest cannot break it unseen. Dev-dependencies do not count.

use crate::run;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Height of each crate: an arrow may only point to a lower one. A crate that is not listed fails the check.
const HEIGHT: &[(&str, u8)] = &[
    ("beemesh-ids", 0),
    ("beemesh-firmware-uki", 1),
    ("beemesh-firmware-measure", 1),
    ("beemesh-init-core", 1),
    ("beemesh-init-api", 1),
    ("beemesh-init-log", 1),
    ("beemesh-image-disk", 1),
    ("beemesh-usb-joinpack-format", 1),
    ("beemesh-agent-api", 2),
    ("beemesh-agent-sched", 3),
    ("beemesh-usb-joinpack-token", 2),
    ("beemesh-sys", 2),
    ("beemesh-firmware-credential", 2),
    ("beemesh-firmware-tpm", 3),
    ("beemesh-init-logd", 3),
    ("beemesh-agent-identity", 4),
    ("beemesh-agent-fabric", 5),
    ("beemesh-agent-runtime", 5),
    ("beemesh-init-pid1", 6),
    ("beemesh-init-net", 6),
    ("beemesh-init-control", 6),
    ("beemesh-init-unlock", 6),
    ("beemesh-usb-joinpack-cli", 6),
    ("beemesh-agent-shim", 6),
    ("beemesh-agent-node", 6),
    ("beemesh-agent-ctl", 6),
    ("beemesh-image-build", 6),
    ("beemesh-ci-testkit", 7),
    ("beemesh-ci-fuzz", 7),
    ("beemesh-ci-sim", 7),
    ("beemesh-ci-e2e", 8),
    ("beemesh-ci-xtask", 8),
];

/// Crates that open no file or socket, read no clock and no randomness, and have no async.
const PURE: &[&str] = &[
    "beemesh-ids",
    "beemesh-firmware-uki",
    "beemesh-firmware-measure",
    "beemesh-init-core",
    "beemesh-init-api",
    "beemesh-init-log",
    "beemesh-image-disk",
    "beemesh-agent-api",
    "beemesh-agent-sched",
    "beemesh-usb-joinpack-format",
];

/// What no PURE crate depends on directly.
const IMPURE: &[&str] = &[
    "tokio",
    "futures",
    "nix",
    "libc",
    "getrandom",
    "libp2p",
    "hyper",
    "rtnetlink",
    "zbus",
    "tss-esapi",
    "tempfile",
];

/// Foreign crates that exactly one of ours may name.
const SINGLE_OWNER: &[(&str, &[&str])] = &[
    ("libp2p", &["beemesh-agent-fabric"]),
    ("libcontainer", &["beemesh-agent-shim"]),
    ("tss-esapi", &["beemesh-firmware-tpm"]),
    ("cryptoki", &["beemesh-usb-joinpack-token"]),
    ("zbus", &["beemesh-init-control"]),
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Fails with every arrow that breaks the rule.
pub fn check() -> Result<()> {
    let output = run::cargo(&["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("failed to read cargo metadata")?;
    let arrows = metadata.packages.into_iter().map(|package| {
        let normal = package
            .dependencies
            .into_iter()
            .filter(|dependency| dependency.kind.is_none());
        (package.name, normal.map(|dependency| dependency.name).collect())
    });
    let broken = violations(&arrows.collect());
    if !broken.is_empty() {
        bail!("layering:\n  {}", broken.join("\n  "));
    }
    Ok(())
}

fn violations(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let height: BTreeMap<&str, u8> = HEIGHT.iter().copied().collect();
    let mut broken = Vec::new();
    for (from, targets) in arrows {
        let Some(own) = height.get(from.as_str()) else {
            broken.push(format!(
                "`{from}` has no height: add it to ci/xtask/src/layering.rs"
            ));
            continue;
        };
        for to in targets {
            if height.get(to.as_str()).is_some_and(|other| other >= own) {
                broken.push(format!("`{from}` -> `{to}` does not point down"));
            }
            if from.starts_with("beemesh-init") && to.starts_with("beemesh-agent") {
                broken.push(format!(
                    "`{from}` -> `{to}`: init never depends on agent, they meet in init/api"
                ));
            }
            if PURE.contains(&from.as_str()) && IMPURE.contains(&to.as_str()) {
                broken.push(format!("`{from}` is PURE and must not depend on `{to}`"));
            }
            let owners = SINGLE_OWNER.iter().find(|(name, _)| name == to);
            if owners.is_some_and(|(_, owners)| !owners.contains(&from.as_str())) {
                broken.push(format!("`{from}` must not name `{to}`: it has an owner"));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrow(from: &str, to: &str) -> BTreeMap<String, BTreeSet<String>> {
        BTreeMap::from([(from.to_owned(), BTreeSet::from([to.to_owned()]))])
    }

    #[test]
    fn an_arrow_that_runs_up_is_found() {
        assert_eq!(
            violations(&arrow("beemesh-agent-sched", "beemesh-agent-node")).len(),
            1
        );
        assert!(violations(&arrow("beemesh-agent-node", "beemesh-agent-sched")).is_empty());
    }

    #[test]
    fn purity_ownership_and_the_wall_between_init_and_agent_hold() {
        for (from, to) in [
            ("beemesh-init-pid1", "beemesh-agent-api"),
            ("beemesh-agent-sched", "tokio"),
            ("beemesh-agent-node", "libp2p"),
            ("beemesh-new", "serde"),
        ] {
            assert_eq!(violations(&arrow(from, to)).len(), 1, "{from} -> {to}");
        }
    }
}
