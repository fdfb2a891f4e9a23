//! In the initramfs: from the kernel's hand-over to the real root. The phases are listed in `init/core`.
//!
//! The root image stays a file of the initramfs that the loop device keeps open; everything else there is deleted,
//! since it is memory.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use beemesh_init_core::boot::{INITRAMFS, Phase};
use beemesh_init_core::mounts::API;
use beemesh_init_core::volume::RootImage;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use crate::chain::{Attempt, StepError};
use crate::console::Console;
use crate::loader::{Loader, LoaderError};
use crate::phases::PhaseTimes;
use crate::system::mount_all;
use crate::{Fatal, SELF, STARTED_VARIABLE};

const IMAGE: &str = "/root.img";
const NEW_ROOT: &str = "/newroot";
/// Source: linux `include/uapi/linux/magic.h`; nix does not name it.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// Depth to which the initramfs is emptied.
const DEPTH_LIMIT: u32 = 32;

#[derive(Debug, thiserror::Error)]
enum EarlyError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Loader(#[from] LoaderError),
    #[error("failed to attach `{IMAGE}`")]
    Attach(#[source] beemesh_sys::LoopError),
    #[error("`{IMAGE}` is neither squashfs nor erofs")]
    UnknownImage,
    #[error("`/` is not an initramfs: this program must be started by the kernel as `/init`")]
    NotInitramfs,
}

/// Carries out the phases; comes back only when one failed.
pub fn run(started_ms: u64) -> Fatal {
    let mut early = Early {
        started_ms,
        kind: None,
        device: PathBuf::new(),
        times: PhaseTimes::default(),
    };
    for phase in INITRAMFS {
        if let Err(error) = early.carry_out(phase) {
            return Fatal::of(phase, &error);
        }
        early.times.ended(phase);
    }
    Fatal {
        what: Phase::SwitchRoot.what(),
        detail: "came back".to_owned(),
        remedy: Phase::SwitchRoot.remedy(),
    }
}

struct Early {
    started_ms: u64,
    kind: Option<RootImage>,
    device: PathBuf,
    times: PhaseTimes,
}

impl Early {
    fn carry_out(&mut self, phase: Phase) -> Result<(), EarlyError> {
        match phase {
            Phase::MountApi => {
                for target in API.iter().map(|m| m.target) {
                    fs::create_dir_all(target).attempt("make", target)?;
                }
                mount_all(&API)?;
                Console::open().say(&format!(
                    "beemesh: PID 1 started (init {})",
                    env!("CARGO_PKG_VERSION")
                ));
                Ok(())
            }
            Phase::LoadRootModules => self.load_modules(),
            Phase::AttachRoot => {
                let image = File::open(IMAGE).attempt("open", IMAGE)?;
                self.device = beemesh_sys::attach_read_only(&image).map_err(EarlyError::Attach)?;
                Ok(())
            }
            Phase::MountRoot => {
                fs::create_dir_all(NEW_ROOT).attempt("make", NEW_ROOT)?;
                let kind = self.kind.ok_or(EarlyError::UnknownImage)?.name();
                let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
                mount(Some(&self.device), NEW_ROOT, Some(kind), flags, None::<&str>)
                    .attempt("mount", IMAGE)?;
                Ok(())
            }
            Phase::SwitchRoot => self.switch_root(),
            _ => Ok(()),
        }
    }

    fn load_modules(&mut self) -> Result<(), EarlyError> {
        let mut head = Vec::with_capacity(2048);
        let image = File::open(IMAGE).attempt("open", IMAGE)?;
        image.take(2048).read_to_end(&mut head).attempt("read", IMAGE)?;
        let kind = RootImage::detect(&head).ok_or(EarlyError::UnknownImage)?;
        self.kind = Some(kind);
        let loader = Loader::open(false)?;
        for module in ["loop", kind.name()] {
            // A kernel with the driver built in has no such module; whether it works shows in the next phase.
            let first = loader
                .load(module)
                .err()
                .and_then(|errors| errors.into_iter().next());
            first.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    fn switch_root(&self) -> Result<(), EarlyError> {
        let root = statfs("/").attempt("look at", "/")?.filesystem_type();
        // Emptying anything else than a file system in memory would be a catastrophe.
        if ![RAMFS_MAGIC, TMPFS_MAGIC].contains(&root) {
            return Err(EarlyError::NotInitramfs);
        }
        for target in API.iter().map(|m| m.target) {
            let new = format!("{NEW_ROOT}{target}");
            mount(
                Some(target),
                new.as_str(),
                None::<&str>,
                MsFlags::MS_MOVE,
                None::<&str>,
            )
            .attempt("move", target)?;
        }
        let device = fs::metadata("/").attempt("look at", "/")?.dev();
        empty(Path::new("/"), device, 0);
        std::env::set_current_dir(NEW_ROOT).attempt("enter", NEW_ROOT)?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).attempt("move", NEW_ROOT)?;
        nix::unistd::chroot(".").attempt("make a root of", NEW_ROOT)?;
        std::env::set_current_dir("/").attempt("enter", "/")?;
        let error = Command::new(SELF)
            .env(STARTED_VARIABLE, self.started_ms.to_string())
            .envs([self.times.variable()])
            .exec();
        Err(error).attempt("run", SELF)?;
        Ok(())
    }
}

/// Deletes what lies on `device` below `directory`; other file systems are left alone. Best effort: what stays only
/// costs memory.
fn empty(directory: &Path, device: u64, depth: u32) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.dev() != device || depth > DEPTH_LIMIT {
            continue;
        }
        if metadata.is_dir() {
            empty(&path, device, depth + 1);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}
