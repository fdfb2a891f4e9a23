//! What the kernel left in the firmware's storage at its last fault: read, told, stored, removed. Runs in a child.
//!
//! What is what, and what is kept, is `init/core`'s. The storage is mounted only meanwhile: nobody else needs it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use beemesh_init_api::{StateStatus, path};
use beemesh_init_core::Outcome;
use beemesh_init_core::crash::{
    Crash, KEPT, RECORD_LIMIT, RECORDS_LIMIT, Record, assemble, plan_file, plan_removal,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::chain::{Attempt, StepError, words};
use crate::loader::{Loader, log};

const PSTORE: &str = "/sys/fs/pstore";
/// Which driver of pstore there is; `(null)` for none.
const BACKEND: &str = "/sys/module/pstore/parameters/backend";
/// Below the state volume.
const STORE: &str = "crashes";

/// Something keeps what the kernel says at its end.
pub fn is_kept_by_firmware() -> bool {
    fs::read_to_string(BACKEND).is_ok_and(|name| !name.trim().is_empty() && name.trim() != "(null)")
}

/// The job.
pub fn recover() -> Outcome {
    // Memory that survives a reset is no device that would ask for its driver: the command line names it.
    if fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.contains("ramoops.mem_address"))
        && let Ok(loader) = Loader::open(false)
    {
        let errors = loader.load("ramoops").err().unwrap_or_default();
        errors.iter().for_each(|error| log(&words(error)));
    }
    if !is_kept_by_firmware() {
        return Outcome::Nothing;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some("pstore"), PSTORE, Some("pstore"), flags, None::<&str>).attempt("mount", PSTORE);
    let done = mounted.and_then(|()| {
        let done = take(Path::new(PSTORE));
        let _ = umount2(PSTORE, MntFlags::MNT_DETACH);
        done
    });
    match done {
        Ok(outcome) => outcome,
        Err(error) => {
            log(&format!("<3>{}", words(&error)));
            Outcome::Failed
        }
    }
}

fn take(from: &Path) -> Result<Outcome, StepError> {
    let records = read(from)?;
    let crashes = assemble(&records);
    let mut stored = false;
    if let Some(newest) = crashes.last() {
        stored = is_state_on_disk() && {
            let done = store(&Path::new(path::STATE).join(STORE), &crashes);
            if let Err(error) = &done {
                log(&format!("<3>{}", words(error)));
            }
            done.is_ok()
        };
        tell(newest, crashes.len(), stored);
    }
    for name in plan_removal(&records, &crashes, stored) {
        if let Err(error) = fs::remove_file(from.join(&name)).attempt("remove", &name) {
            log(&format!("<4>{}", words(&error)));
        }
    }
    Ok(if crashes.is_empty() {
        Outcome::Nothing
    } else {
        Outcome::Done
    })
}

fn read(from: &Path) -> Result<Vec<Record>, StepError> {
    let mut records = Vec::new();
    for entry in fs::read_dir(from)
        .attempt("list", from)?
        .flatten()
        .take(RECORDS_LIMIT)
    {
        let (Ok(name), Ok(file)) = (entry.file_name().into_string(), File::open(entry.path())) else {
            continue;
        };
        let written = file
            .metadata()
            .ok()
            .and_then(|about| u64::try_from(about.mtime()).ok());
        let mut bytes = Vec::new();
        if file.take(RECORD_LIMIT as u64).read_to_end(&mut bytes).is_ok() {
            records.push(Record {
                name,
                written: written.unwrap_or(0),
                bytes,
            });
        }
    }
    Ok(records)
}

fn is_state_on_disk() -> bool {
    let text = fs::read(path::STATE_STATUS).unwrap_or_default();
    serde_json::from_slice::<StateStatus>(&text).is_ok_and(|status| status.device.is_some())
}

/// A file for each, synced with its directory: what comes back as `Ok` survives a loss of power.
fn store(directory: &Path, crashes: &[Crash]) -> Result<(), StepError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.attempt("make", directory)?;
    for crash in crashes.iter().skip(crashes.len().saturating_sub(KEPT)) {
        let there: Vec<String> = fs::read_dir(directory)
            .attempt("list", directory)?
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        let (name, gone) = plan_file(&there);
        for old in gone {
            fs::remove_file(directory.join(&old)).attempt("remove", directory.join(&old))?;
        }
        let path = directory.join(name);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| {
                file.write_all(crash.text.as_bytes())?;
                file.sync_all()
            });
        if written.is_err() {
            // Half a text would be taken for a whole one.
            let _ = fs::remove_file(&path);
        }
        written.attempt("write", &path)?;
    }
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .attempt("write", directory)
}

/// One sentence on the console; all of the newest in the log.
fn tell(newest: &Crash, count: usize, stored: bool) {
    let mut line = format!("this machine was started again after a fault: {}", newest.reason);
    if count > 1 {
        line.push_str(&format!(" (and {} before it)", count - 1));
    }
    if !stored {
        line.push_str("; there is no disk to keep its messages on");
    }
    line.push_str(". All of it: `bmctl logs --unit init`");
    log(&format!("<2>{line}"));
    for text in newest.text.lines() {
        log(&format!("<5>last fault: {text}"));
    }
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
    if let Ok(mut console) = OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path::CONSOLE)
    {
        let _ = console.write_all(format!("{line}\n").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_stored_within_their_bound_and_a_disk_that_takes_none_is_an_error() {
        let dir = std::env::temp_dir().join(format!("beemesh-crashes-{}", std::process::id()));
        let crash = |text: &str| Crash {
            text: text.to_owned(),
            reason: "r".to_owned(),
            records: Vec::new(),
        };
        for number in 0..20 {
            store(&dir, &[crash(&number.to_string())]).unwrap();
        }
        let mut texts: Vec<String> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        texts.sort();
        assert_eq!(texts, ["12", "13", "14", "15", "16", "17", "18", "19"]);
        assert!(store(&dir.join("00000020.txt/x"), &[crash("x")]).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn records_are_read_with_their_names_and_times() {
        let dir = std::env::temp_dir().join(format!("beemesh-pstore-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("dmesg-x-1"),
            "Panic#1 Part1\nKernel panic - not syncing: x\n",
        )
        .unwrap();
        let records = read(&dir).unwrap();
        assert!(
            assemble(&records)
                .first()
                .is_some_and(|crash| crash.reason == "x")
        );
        assert!(records.iter().all(|record| record.written > 1_700_000_000));
        fs::remove_dir_all(&dir).unwrap();
    }
}
