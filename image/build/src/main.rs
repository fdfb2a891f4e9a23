//! `image`: from packages.lock and our binaries to a UKI, a raw USB disk and a release manifest.
//!
//! This file is the command line alone. Invariant of the whole: the same inputs give the same bytes, and nothing comes
//! from the machine that builds but the tools that pack.

mod apt;
mod assembly;
mod cache;
mod elf;
mod initrd;
mod kernel;
mod lock;
mod modules;
mod packages;
mod profile;
mod release;
mod rootfs;
mod squashfs;
mod tree;
mod usb;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Builds the Beemesh OS image.
#[derive(Parser)]
#[command(name = "image", version)]
struct Arguments {
    /// Folder with packages.toml, packages.lock and profiles/.
    #[arg(long, default_value = "image", global = true)]
    source: PathBuf,
    /// Where downloads and intermediate results are kept, at most 4 GiB.
    #[arg(long, default_value = "target/image/cache", global = true)]
    cache: PathBuf,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compare packages.lock with what the archive offers, or resolve it anew.
    Lock {
        /// Resolve anew, write packages.lock and print what changed.
        #[arg(long, conflicts_with = "check")]
        update: bool,
        /// Fail when a locked package is not offered any more or a wanted one is not locked.
        #[arg(long)]
        check: bool,
    },
    /// Build UKI, kernel, initrd, disk image and release.json.
    Build {
        /// Hardware profile: a file of profiles/ without `.toml`.
        #[arg(long, default_value = "generic")]
        profile: String,
        /// Where the results go.
        #[arg(long)]
        out: PathBuf,
        /// Folders with our binaries, searched in this order.
        #[arg(long, required = true)]
        binaries: Vec<PathBuf>,
        /// Version of the release.
        #[arg(long = "release", default_value = env!("CARGO_PKG_VERSION"))]
        release: String,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let lock_path = arguments.source.join("packages.lock");
    let wanted = packages::Wanted::load(&arguments.source.join("packages.toml"))?;
    match &arguments.command {
        Verb::Lock { update: true, .. } => {
            let new = apt::resolve(&wanted.resolve).context("failed to resolve the packages")?;
            let old = if lock_path.exists() {
                Some(lock::Lock::load(&lock_path)?)
            } else {
                None
            };
            let changes = lock::changes(old.as_ref(), &new);
            for change in &changes {
                println!("{change}");
            }
            if changes.is_empty() {
                println!("{} packages, nothing changed", new.packages.len());
                return Ok(());
            }
            new.write(&lock_path)?;
            println!("{} packages locked", new.packages.len());
            Ok(())
        }
        Verb::Lock { check: true, .. } => {
            let lock = lock::Lock::load(&lock_path)?;
            lock.check_wanted(&wanted.resolve)?;
            apt::check_offered(&lock)?;
            println!("{} packages, all offered as locked", lock.packages.len());
            Ok(())
        }
        Verb::Lock { .. } => bail!("say `--update` or `--check`"),
        Verb::Build {
            profile,
            out,
            binaries,
            release,
        } => assembly::build(&assembly::Inputs {
            lock: lock::Lock::load(&lock_path)?,
            wanted,
            profile: profile::Profile::load(&arguments.source.join("profiles"), profile)?,
            binaries: binaries.clone(),
            out: out.clone(),
            cache: arguments.cache.clone(),
            version: release.clone(),
        }),
    }
}
