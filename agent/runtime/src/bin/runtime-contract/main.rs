//! Holds the real runtime to its contract, on a machine with cgroup v2, overlayfs and root.
//!
//! `runtime-contract --busybox FILE [--root DIR] [--shim FILE] [--cgroup PATH] [--only PART]` prints `ok NAME` or
//! `FAILED NAME why` for each claim, `measured NAME VALUE` for each figure, then `N passed, N failed`, and exits with 1
//! where one failed. It makes its own image from the busybox (statically linked). It leaves nothing running.

mod kernel;

use anyhow::{Context, Result, bail};
use beemesh_agent_runtime::contract::{Claim, Subject, claims};
use beemesh_agent_runtime::{ContainerRuntime, Limits, Runtime, RuntimeConfig, fixture};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// No claim takes longer, even on an emulated machine.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(180);
const IMAGE: &str = "contract/box:1";
/// The same, run by its user `web`.
pub const WEB_IMAGE: &str = "contract/web:1";
const APPLETS: &[&str] = &[
    "sh", "sleep", "cat", "echo", "true", "false", "nc", "id", "hostname", "mount", "umount", "unshare",
    "mknod", "ls", "grep", "dd", "head", "tail", "wc", "seq", "kill", "ip", "wget", "httpd", "ps", "stat",
    "touch", "chroot", "date", "tr", "yes", "printf", "env", "pwd", "test", "readlink", "rm", "mkdir", "cut",
];

struct Options {
    busybox: PathBuf,
    config: RuntimeConfig,
    only: Option<String>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let (mut busybox, mut root, mut only) = (None, PathBuf::from("/var/lib/beemesh-contract"), None);
    let mut config = RuntimeConfig {
        cgroup: "beemesh-contract/pods".into(),
        ..RuntimeConfig::default()
    };
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("`{word}` needs a value"))?;
        match word.as_str() {
            "--busybox" => busybox = Some(PathBuf::from(value)),
            "--root" => root = value.into(),
            "--shim" => config.shim = value.into(),
            "--cgroup" => config.cgroup = value,
            "--only" => only = Some(value),
            _ => bail!("`{word}` is not an option"),
        }
    }
    config.images = root.join("images");
    config.pods = root.join("pods");
    config.addresses = root.join("addresses.json");
    // Small, so that rotation is seen.
    config.log_limit = 64 * 1024;
    config.limits = Limits::default();
    Ok(Options {
        busybox: busybox.context("`--busybox` is missing")?,
        config,
        only,
    })
}

fn main() -> ExitCode {
    let done = parse(std::env::args().skip(1)).and_then(|options| {
        let threads = tokio::runtime::Runtime::new().context("failed to start the async runtime")?;
        threads.block_on(run(options))
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            println!("FAILED setup {err:#}");
            ExitCode::from(2)
        }
    }
}

async fn run(options: Options) -> Result<bool> {
    let program = std::fs::read(&options.busybox)
        .with_context(|| format!("failed to read `{}`", options.busybox.display()))?;
    let archive = |user| fixture::busybox(&program, APPLETS, user).context("failed to make the image");
    let runtime = ContainerRuntime::open(options.config.clone()).context("failed to open the runtime")?;
    let found = runtime.recover().await;
    if !found.errors.is_empty() {
        bail!(
            "an earlier run cannot be cleaned away: {}",
            found.errors.join("; ")
        );
    }
    let begun = Instant::now();
    for (name, user) in [(IMAGE, ""), (WEB_IMAGE, "web")] {
        let images = runtime.images();
        images
            .import_archive(archive(user)?.as_slice(), Some(name))
            .context("failed to import the image")?;
    }
    println!("measured import_ms {}", begun.elapsed().as_millis());

    let (mut passed, mut failed) = (0, 0);
    let subject = Subject {
        runtime: Arc::new(runtime.clone()),
        image: IMAGE.into(),
    };
    let wanted = |name: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|part| name.contains(part.as_str()))
    };
    for (name, claim) in claims().into_iter().chain(kernel::claims()) {
        if wanted(name) {
            judge((name, claim), subject.clone(), &mut passed, &mut failed).await;
        }
    }
    for (name, claim) in kernel::machine_claims() {
        if wanted(name) {
            let outcome = tokio::time::timeout(CLAIM_TIMEOUT, claim(subject.clone(), options.config.clone()));
            report(
                name,
                outcome.await.unwrap_or_else(|_| Err("it takes too long".into())),
                &mut passed,
                &mut failed,
            );
            sweep(&subject.runtime).await;
        }
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

async fn judge((name, claim): Claim, subject: Subject, passed: &mut u32, failed: &mut u32) {
    let subject_runtime = subject.runtime.clone();
    let work = futures::FutureExt::catch_unwind(AssertUnwindSafe(claim(subject)));
    let outcome = match tokio::time::timeout(CLAIM_TIMEOUT, work).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err("it panicked".into()),
        Err(_) => Err("it takes too long".into()),
    };
    report(name, outcome, passed, failed);
    sweep(&subject_runtime).await;
}

/// What a failed claim has left must not fail the next one.
async fn sweep(runtime: &Arc<dyn Runtime>) {
    for pod in runtime.pods().await {
        let _ = runtime.stop(&pod.request.pod_id, Some(0)).await;
    }
}

fn report(name: &str, outcome: Result<(), String>, passed: &mut u32, failed: &mut u32) {
    match outcome {
        Ok(()) => {
            *passed += 1;
            println!("ok {name}");
        }
        Err(why) => {
            *failed += 1;
            println!("FAILED {name} {}", why.replace('\n', " / "));
        }
    }
}
