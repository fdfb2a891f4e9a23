//! Links, addresses, DHCP and DNS.
//!
//! Applies `NetworkConfig` (DHCP on every Ethernet link until there is one), again whenever its file changes or a
//! link comes, goes or gets its cable; while there is a `NetworkTrial`, that one. Writes `NetworkStatus`. Decisions are
//! in `plan` and `acd` (pure), the kernel is spoken to in `kernel`, one task per link in `dhcp` and `dhcp6`, one per
//! fixed address in `arp`. Links that programs made (veth, bridges: the pods') are left alone.

mod acd;
mod arp;
mod dhcp;
mod dhcp6;
mod kernel;
mod plan;
mod reconcile;
mod report;
mod watch;

use std::path::PathBuf;

use anyhow::{Context, bail};
use beemesh_init_api::path;

use crate::reconcile::{Options, Reconciler};

fn main() -> anyhow::Result<()> {
    let options = options(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no event loop")?;
    runtime.block_on(async { Reconciler::open(options)?.run().await })
}

/// `--run DIR` (for tests): in place of `/run/beemesh`. `--virtual`: treat links that programs made like hardware.
fn options(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Options> {
    let mut options = Options {
        run: PathBuf::from(path::RUN),
        with_virtual: false,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--run" => options.run = arguments.next().context("`--run` needs a directory")?.into(),
            "--virtual" => options.with_virtual = true,
            other => bail!("unknown argument `{other}`: known are `--run DIR` and `--virtual`"),
        }
    }
    Ok(options)
}
