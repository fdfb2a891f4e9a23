//! `joinpack`: makes fabrics and join packs, offline. This file reads the command line and calls the rest.
//!
//! It opens no network connection. Exit codes: 0 done, 1 failed, 2 invalid input, 3 refused.

mod answer;
mod ask;
mod boot;
mod boxes;
mod chance;
mod create;
mod device;
mod disk;
mod dots;
mod exchange;
mod fabric;
mod failure;
mod keyring;
mod log_key;
mod media;
mod plan;
mod receipts;
mod revoke;
mod role;
mod show;
mod slice;
mod succession;
mod vendor;
mod write;

use anyhow::Context as _;
use beemesh_joinpack_format::{Machine, Pack, RootChain, Timestamp, Verified};
use clap::{Parser, Subcommand};
use failure::{Failure, invalid};
use keyring::KeyArgs;
use media::Media;
use show::{Form, PackView};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use write::{Content, Target};

/// Makes fabrics and join packs, offline.
#[derive(Parser)]
#[command(name = "joinpack", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fabrics
    #[command(subcommand)]
    Fabric(FabricCommand),
    /// Makes a pack; without a word about what goes into it, asks at the terminal
    Create {
        /// Folder of the fabric
        #[arg(long, value_name = "DIR")]
        fabric: PathBuf,
        /// Where the pack goes: a folder, or a new image of a stick (FILE.img)
        #[arg(long, value_name = "PACK")]
        out: PathBuf,
        #[command(flatten)]
        plan: Box<plan::PlanArgs>,
        #[command(flatten)]
        keys: KeyArgs,
        /// Show what would be made and write nothing
        #[arg(long)]
        dry_run: bool,
        /// Form of the output
        #[arg(short, long, value_enum, default_value = "table")]
        output: Form,
    },
    /// Says what is in a pack (a folder, an image or a stick)
    Inspect {
        /// The pack
        pack: PathBuf,
        /// Form of the output
        #[arg(short, long, value_enum, default_value = "table")]
        output: Form,
    },
    /// Judges a pack as a node would, and checks every blob
    Verify {
        /// The pack
        pack: PathBuf,
        /// Root documents that are trusted already (the fabric's root.json)
        #[arg(long, value_name = "FILE")]
        roots: Option<PathBuf>,
        /// Time to judge by, e.g. 2026-01-02T03:04:05Z [default: now]
        #[arg(long, value_name = "TIME")]
        at: Option<Timestamp>,
        /// Serial of the pack that was applied last
        #[arg(long, value_name = "SERIAL")]
        applied: Option<String>,
        /// Judge as the machine with this card would, which needs a place in the pack
        #[arg(long, value_name = "MAC")]
        mac: Vec<String>,
        /// The machine's serial number
        #[arg(long, value_name = "TEXT")]
        serial: Option<String>,
        /// The endorsement key of the machine's TPM
        #[arg(long, value_name = "sha256:HEX")]
        ek: Option<beemesh_ids::Digest>,
        /// Form of the output
        #[arg(short, long, value_enum, default_value = "table")]
        output: Form,
    },
    /// Writes a pack to a stick, an image or a folder, and reads it back
    Write {
        /// The pack
        pack: PathBuf,
        /// Where it goes
        #[arg(long, value_name = "DEVICE|IMAGE|FOLDER")]
        to: PathBuf,
        /// Do not ask before writing to a device
        #[arg(long)]
        yes: bool,
        /// Say what would be done and write nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Ends what nodes, vouchers or keys may do; later packs carry it, `bmctl revoke --file` brings it to a running fabric
    Revoke {
        /// Folder of the fabric
        #[arg(long, value_name = "DIR")]
        fabric: PathBuf,
        #[command(flatten)]
        what: revoke::RevokeArgs,
        /// A key to sign with beside those in the folder of the fabric: a key file, or one on a token (pkcs11:…, RFC 7512)
        #[arg(long, value_name = "FILE|URI")]
        sign_with: Vec<String>,
        /// Show what would be revoked and write nothing
        #[arg(long)]
        dry_run: bool,
        /// Form of the output
        #[arg(short, long, value_enum, default_value = "table")]
        output: Form,
    },
    /// Answers the requests of machines that found no place in the pack on a stick: a newer pack takes its place, with a place for
    /// each of them that its TPM alone opens
    Answer(Box<answer::AnswerArgs>),
    /// Lists and checks the receipts that nodes left on a stick: who did what with which pack, by whose clock; opens the logs
    /// beside them
    Receipts(receipts::ReceiptsArgs),
}

#[derive(Subcommand)]
enum FabricCommand {
    /// Which key may do what, and until when: each change is one more root document
    #[command(subcommand)]
    Role(role::RoleCommand),
    /// Makes the key to which boxes encrypt the logs that they leave on sticks, in the place of the one that the fabric has
    LogKey {
        /// Folder of the fabric
        dir: PathBuf,
        /// Form of the output
        #[arg(short, long, value_enum, default_value = "table")]
        output: Form,
    },
    /// Makes a fabric: root and delegated keys in a new folder
    Init {
        /// The new folder
        dir: PathBuf,
        /// Name for people, a DNS label
        #[arg(long)]
        name: String,
        /// Number of root keys
        #[arg(long, default_value_t = 3)]
        root_keys: u32,
        /// Root keys that must sign a change of the keys
        #[arg(long, default_value_t = 2)]
        root_threshold: u32,
        /// A key that is there already, in place of one that is made: root=, enrolment=, release= or recovery= and a key file or
        /// a key on a token (pkcs11:…, RFC 7512); several for root
        #[arg(long = "key", value_name = "ROLE=FILE|URI")]
        keys: Vec<String>,
        /// Form of the output
        #[arg(short, long, value_enum, default_value = "table")]
        output: Form,
    },
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let form = match &command {
        Command::Inspect { output, .. } | Command::Verify { output, .. } => *output,
        _ => Form::Table,
    };
    // A file system that someone damaged on purpose may make its parser panic: that is a failure like any other.
    let result = std::panic::catch_unwind(|| run(command));
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            if form != Form::Table {
                let view = serde_json::json!({ "result": "refused", "code": failure.code(), "message": failure.to_string() });
                // The failure itself is reported below in any case.
                let _ = show::print(form, &view, |_| String::new());
            }
            eprintln!("joinpack: {failure}");
            ExitCode::from(failure.exit_code())
        }
        Err(_) => {
            eprintln!("joinpack: gave up on something that it could not read");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Fabric(FabricCommand::Role(command)) => role::run(command),
        Command::Fabric(FabricCommand::LogKey { dir, output }) => {
            show::print(output, &log_key::replace(&dir)?, log_key::Made::in_words)
        }
        Command::Fabric(FabricCommand::Init {
            dir,
            name,
            root_keys,
            root_threshold,
            keys,
            output,
        }) => {
            let given = keys
                .iter()
                .map(|text| role::parse_given(text))
                .collect::<Result<Vec<_>, _>>()?;
            let info = fabric::init(&dir, &name, root_keys, root_threshold, &given)?;
            show::print(output, &info, |info| {
                format!(
                    "fabric {} ({})\nmade in {}\nmove keys/root-*.json to places that do not burn together; operator.json is for bmctl; \
                     log.json opens the logs that boxes leave on sticks\n",
                    info.name,
                    info.fabric,
                    dir.display()
                )
            })
        }
        Command::Create {
            fabric,
            out,
            plan,
            keys,
            dry_run,
            output,
        } => create(&fabric, &out, *plan, &keys, dry_run, output),
        Command::Inspect { pack, output } => {
            let pack = open(&pack, None, Timestamp::EPOCH, None)?.1;
            show::print(
                output,
                &PackView::new("accepted", pack.manifest(), pack.roots()),
                PackView::in_words,
            )
        }
        Command::Verify {
            pack,
            roots,
            at,
            applied,
            mac,
            serial,
            ek,
            output,
        } => {
            let machine = Machine {
                macs: mac,
                serial,
                ek,
            };
            let trusted = roots.as_deref().map(fabric::load_roots).transpose()?;
            let floor = at.unwrap_or_else(chance::now);
            let (media, pack) = open(&pack, trusted.as_ref(), floor, applied.as_deref())?;
            if machine != Machine::default() {
                pack.manifest().check_machine(&machine, None)?;
            }
            media.check_blobs(&pack, &mut |_| {})?;
            show::print(
                output,
                &PackView::new("accepted", pack.manifest(), pack.roots()),
                |view| {
                    format!(
                        "accepted: pack {} of fabric {} ({}), {} node(s), {} blob(s) checked, valid until {}\n",
                        view.serial,
                        view.fabric_name,
                        view.fabric.short(),
                        view.nodes.len(),
                        view.blobs,
                        view.expires
                    )
                },
            )
        }
        Command::Write {
            pack,
            to,
            yes,
            dry_run,
        } => copy(&pack, &to, yes, dry_run),
        Command::Revoke {
            fabric,
            what,
            sign_with,
            dry_run,
            output,
        } => revoke::revoke(&fabric, what, &KeyArgs::of(sign_with), dry_run, output),
        Command::Answer(arguments) => answer::answer(*arguments),
        Command::Receipts(arguments) => receipts::receipts(&arguments),
    }
}

fn open(
    path: &Path,
    trusted: Option<&RootChain>,
    floor: Timestamp,
    applied: Option<&str>,
) -> Result<(Media, Pack<Verified>), Failure> {
    let media = Media::open(path)?;
    let pack = media.pack()?.1.verify(trusted, floor, applied)?;
    Ok((media, pack))
}

fn create(
    dir: &Path,
    out: &Path,
    plan: plan::PlanArgs,
    keys: &KeyArgs,
    dry_run: bool,
    output: Form,
) -> Result<(), Failure> {
    let fabric = fabric::Fabric::load(dir, keys)?;
    let target = Target::resolve(out)?;
    match &target {
        Target::NewImage(_) => {}
        Target::Folder(dir) if dir.join("joinpack.json").exists() => {
            invalid!("`{}` holds a pack already: choose another folder", dir.display())
        }
        Target::Folder(_) => {}
        _ => invalid!(
            "`{}` exists: `create` makes new packs, `write --to` puts one onto a stick or image",
            out.display()
        ),
    }
    let draft = create::draft(&fabric, plan.resolve()?, keys)?;
    let view = PackView::new(
        if dry_run { "would-create" } else { "created" },
        &draft.manifest,
        &fabric.roots,
    );
    if !dry_run {
        let content = Content {
            joinpack: draft.joinpack,
            blobs: draft.manifest.blobs.clone(),
            open: Box::new(|digest| {
                let path = draft
                    .archives
                    .get(digest)
                    .context("an image got lost on the way")?;
                Ok(Box::new(File::open(path).with_context(|| {
                    format!("failed to open `{}`", path.display())
                })?))
            }),
        };
        target.write(&content, &fabric.roots)?;
        fabric.remember(&draft.manifest.serial)?;
    }
    show::print(output, &view, PackView::in_words)
}

fn copy(from: &Path, to: &Path, yes: bool, dry_run: bool) -> Result<(), Failure> {
    if let (Ok(from), Ok(to)) = (from.canonicalize(), to.canonicalize())
        && from == to
    {
        invalid!("`{}` is the pack itself: choose another place", to.display());
    }
    let media = Media::open(from)?;
    let (joinpack, pack) = media.pack()?;
    let pack = pack.verify(None, chance::now(), None)?;
    pack.check_listing(media.listing()?)?;
    let target = Target::resolve(to)?;
    if dry_run {
        println!("{}", target.in_words());
        return Ok(());
    }
    target.confirm(yes)?;
    let content = Content {
        joinpack,
        blobs: pack.manifest().blobs.clone(),
        open: Box::new(|digest| media.blob(digest)),
    };
    target.write(&content, pack.roots())?;
    println!(
        "pack {} is on `{}`, read back and correct",
        pack.manifest().serial,
        to.display()
    );
    Ok(())
}
