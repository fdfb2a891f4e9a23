//! Links, addresses, DHCP, DNS and time.
//!
//! Applies `NetworkConfig` (DHCP on every Ethernet link until there is one), again whenever its file changes or a
//! link comes, goes or gets its cable; while there is a `NetworkTrial`, that one. Writes `NetworkStatus`. Decisions are
//! in `plan` and `acd` (pure), the kernel is spoken to in `kernel`, one task per link in `dhcp` and `dhcp6`, one per
//! fixed address in `arp`; beside them the clocks (`clocks`). Links that programs made (veth, bridges: the pods') are left alone.

mod acd;
mod arp;
mod clocks;
mod dhcp;
mod dhcp6;
mod kernel;
mod plan;
mod ra;
mod reconcile;
mod report;
mod settings;

use std::path::PathBuf;

use anyhow::{Context, bail};
use beemesh_init_api::path;

use tokio::sync::watch;

use crate::clocks::TimeTask;
use crate::clocks::clock::{Clock, PretendedClock, SystemClock};
use crate::reconcile::{Options, Reconciler, Task};

fn main() -> anyhow::Result<()> {
    let options = options(std::env::args().skip(1))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no event loop")?;
    runtime.block_on(async {
        let (servers, watching) = watch::channel(Vec::new());
        let clock: Box<dyn Clock> = match options.clock {
            None => Box::new(SystemClock),
            Some(unix) => Box::new(PretendedClock::new(unix)),
        };
        let reconciler = Reconciler::open(options.clone(), servers)?;
        let _clocks = Task::spawn(TimeTask::new(&options.run, watching, clock).run());
        reconciler.run().await
    })
}

/// For tests: `--run DIR` in place of `/run/beemesh`; `--virtual`: treat links that programs made like hardware;
/// `--clock SECONDS`: pretended clocks, which show this time, in place of the machine's.
fn options(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Options> {
    let mut options = Options {
        run: PathBuf::from(path::RUN),
        with_virtual: false,
        clock: None,
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--run" => options.run = arguments.next().context("`--run` needs a directory")?.into(),
            "--clock" => {
                let seconds = arguments
                    .next()
                    .context("`--clock` needs seconds since the Unix epoch")?;
                let parsed = seconds.parse();
                options.clock =
                    Some(parsed.with_context(|| format!("`{seconds}` is not a number of seconds"))?);
            }
            "--virtual" => options.with_virtual = true,
            other => {
                bail!("unknown argument `{other}`: known are `--run DIR`, `--virtual` and `--clock SECONDS`")
            }
        }
    }
    Ok(options)
}
