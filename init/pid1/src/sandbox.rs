//! `run-service`: PID 1's program once more, in the child that becomes a service. Makes what the spec's sandbox says of
//! itself, then executes the service's program.
//!
//! So nothing complex runs between fork and exec of PID 1. Invariant: a step that fails ends the child before the program
//! runs ([`SANDBOX_FAILED`]): no service runs with more than its spec allows.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use beemesh_init_core::ending::{EXEC_FAILED, SANDBOX_FAILED};
use beemesh_init_core::mounts::SHARED;
use beemesh_init_core::spec::{Calls, Sandbox, ServiceSpec, View};
use caps::{CapSet, Capability};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

use crate::chain::{Attempt, StepError, words};

#[derive(Debug, thiserror::Error)]
enum SandboxError {
    #[error("there is no service `{0}`")]
    UnknownService(String),
    #[error("`{0}` is not a descriptor and its name")]
    Descriptor(String),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("failed to give up capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
    #[error("failed to forbid system calls")]
    Calls(#[source] seccompiler::Error),
    #[error("failed to hand over descriptors")]
    Descriptors(#[source] io::Error),
}

/// `NAME [NUMBER=DESCRIPTOR_NAME]...`; comes back only when something failed.
pub fn run(arguments: &[String]) -> ExitCode {
    let error = match prepare(arguments) {
        Ok(mut command) => {
            let error = command.exec();
            eprintln!("failed to run `{}`: {error}", command.get_program().display());
            return ExitCode::from(EXEC_FAILED);
        }
        Err(error) => error,
    };
    eprintln!("{}", words(&error));
    ExitCode::from(SANDBOX_FAILED)
}

fn prepare(arguments: &[String]) -> Result<Command, SandboxError> {
    let (name, kept) = arguments
        .split_first()
        .ok_or_else(|| SandboxError::UnknownService(String::new()))?;
    let spec: ServiceSpec = crate::specs()
        .into_iter()
        .find(|spec| spec.name == name)
        .ok_or_else(|| SandboxError::UnknownService(name.clone()))?;
    let kept = kept
        .iter()
        .map(|text| {
            let (number, name) = text.split_once('=')?;
            Some((number.parse().ok()?, name))
        })
        .collect::<Option<Vec<(RawFd, &str)>>>()
        .ok_or_else(|| SandboxError::Descriptor(kept.join(" ")))?;

    let mut command = Command::new(spec.program);
    command.args(spec.arguments);
    let pid = std::process::id().to_string();
    if spec.watchdog_ms.is_some() {
        command.env("WATCHDOG_PID", &pid);
    }
    if !kept.is_empty() {
        let names: Vec<&str> = kept.iter().map(|(_, name)| *name).collect();
        command
            .env("LISTEN_PID", &pid)
            .env("LISTEN_FDS", kept.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
    }
    enter_view(spec.sandbox.view)?;
    let numbers: Vec<RawFd> = kept.iter().map(|(number, _)| *number).collect();
    beemesh_sys::pass_on(&numbers).map_err(SandboxError::Descriptors)?;
    drop_capabilities(spec.sandbox.capabilities).map_err(SandboxError::Capabilities)?;
    forbid_calls(&spec.sandbox).map_err(SandboxError::Calls)?;
    Ok(command)
}

/// Why a child could not give up what it does not need.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("failed to give up capabilities")]
    Capabilities(#[source] caps::errors::CapsError),
    #[error("failed to forbid system calls")]
    Calls(#[source] seccompiler::Error),
}

/// From now on this thread has these capabilities at most, what it starts has none, and neither makes other calls of the
/// groups that are denied to services. What was given up once does not come back.
pub fn confine(capabilities: &[&str], allowed: &'static [Calls]) -> Result<(), ConfineError> {
    // Empty from the first time on: making it smaller later would take a capability by itself.
    bound_capabilities(&HashSet::new())
        .and_then(|()| hold_capabilities(&named(capabilities)?))
        .map_err(ConfineError::Capabilities)?;
    let sandbox = Sandbox {
        capabilities: &[],
        allowed,
        view: View::Shared,
    };
    forbid_calls(&sandbox).map_err(ConfineError::Calls)
}

fn enter_view(view: View) -> Result<(), StepError> {
    let View::Private {
        writable,
        propagated,
        hidden,
    } = view
    else {
        return Ok(());
    };
    unshare(CloneFlags::CLONE_NEWNS).attempt("leave the mount namespace of", "/proc/1")?;
    for path in SHARED.iter().filter(|path| !propagated.contains(path)) {
        change(path, MsFlags::MS_SLAVE | MsFlags::MS_REC).attempt("separate", path)?;
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").attempt("read", "/proc/self/mountinfo")?;
    let is_mount = |path: &str| table.lines().any(|line| line.split(' ').nth(4) == Some(path));
    for path in writable.iter().copied().filter(|path| !is_mount(path)) {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(path), path, None::<&str>, flags, None::<&str>).attempt("keep writable", path)?;
    }
    for path in hidden.iter().copied() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
        mount(
            Some("hidden"),
            path,
            Some("tmpfs"),
            flags,
            Some("mode=0555,size=4k"),
        )
        .attempt("hide", path)?;
    }
    beemesh_sys::set_read_only(Path::new("/"), true, true).attempt("make read-only", "/")?;
    for path in writable {
        beemesh_sys::set_read_only(Path::new(path), false, true).attempt("keep writable", path)?;
    }
    Ok(())
}

fn change(path: &str, flags: MsFlags) -> nix::Result<()> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
}

/// Leaves these in the bounding set, so that no program the service runs gets others either.
fn drop_capabilities(names: &[&str]) -> Result<(), caps::errors::CapsError> {
    let kept = named(names)?;
    bound_capabilities(&kept)?;
    hold_capabilities(&kept)
}

fn named(names: &[&str]) -> Result<HashSet<Capability>, caps::errors::CapsError> {
    names.iter().map(|name| name.parse()).collect()
}

fn bound_capabilities(kept: &HashSet<Capability>) -> Result<(), caps::errors::CapsError> {
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    for other in caps::all().difference(kept) {
        if caps::has_cap(None, CapSet::Bounding, *other)? {
            caps::drop(None, CapSet::Bounding, *other)?;
        }
    }
    Ok(())
}

fn hold_capabilities(kept: &HashSet<Capability>) -> Result<(), caps::errors::CapsError> {
    // What PID 1 itself has not, nobody can be given.
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept = permitted.intersection(kept).copied().collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

/// Sets `no_new_privs` and makes the calls that the spec does not allow fail with EPERM. A deny list: programs and their
/// C library keep working, and what would give power over the kernel is gone. Calls of other ABIs end the process; the
/// x32 ABI is off in Debian's kernel unless its command line switches it on.
fn forbid_calls(sandbox: &Sandbox) -> Result<(), seccompiler::Error> {
    let forbidden = || Calls::ALL.into_iter().filter(|c| !sandbox.allowed.contains(c));
    // glibc falls back to clone(2), whose flags a filter can see, when clone3(2) is unknown.
    if forbidden().any(|calls| calls == Calls::Namespaces) {
        apply(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)?;
    }
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = forbidden()
        .flat_map(numbers)
        .map(|number| (*number, Vec::new()))
        .collect();
    if forbidden().any(|calls| calls == Calls::Namespaces) {
        rules.insert(libc::SYS_clone, new_namespaces()?);
    }
    apply(rules, libc::EPERM)
}

fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<(), seccompiler::Error> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)
}

/// clone(2) with any flag that makes a namespace.
fn new_namespaces() -> Result<Vec<SeccompRule>, seccompiler::Error> {
    use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};
    [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ]
    .into_iter()
    .map(|flag| {
        let flag = u64::from(flag.unsigned_abs());
        let condition =
            SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(flag), flag)?;
        Ok(SeccompRule::new(vec![condition])?)
    })
    .collect()
}

fn numbers(calls: Calls) -> &'static [i64] {
    match calls {
        Calls::Kexec => &[libc::SYS_kexec_load, libc::SYS_kexec_file_load],
        Calls::Modules => &[
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_delete_module,
        ],
        Calls::Clock => &[
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_adjtimex,
            libc::SYS_clock_adjtime,
        ],
        Calls::Administration => &[
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_swapoff,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_quotactl_fd,
        ],
        Calls::Legacy => &[
            libc::SYS_iopl,
            libc::SYS_ioperm,
            libc::SYS_modify_ldt,
            libc::SYS_uselib,
            libc::SYS_vhangup,
            libc::SYS_sysfs,
            libc::SYS__sysctl,
            libc::SYS_nfsservctl,
            libc::SYS_lookup_dcookie,
        ],
        Calls::Tracing => &[
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_perf_event_open,
            libc::SYS_kcmp,
            libc::SYS_userfaultfd,
            libc::SYS_pidfd_getfd,
        ],
        Calls::Bpf => &[libc::SYS_bpf],
        Calls::Keys => &[libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl],
        Calls::Rings => &[
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
        ],
        Calls::Handles => &[libc::SYS_open_by_handle_at],
        Calls::Mounts => &[
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fspick,
            libc::SYS_mount_setattr,
        ],
        Calls::Namespaces => &[libc::SYS_unshare, libc::SYS_setns],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_init_core::spec::product_services;

    #[test]
    fn every_capability_of_a_service_is_one_that_linux_has() {
        for spec in product_services() {
            for name in spec.sandbox.capabilities {
                assert!(name.parse::<Capability>().is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn no_call_is_in_two_groups() {
        let mut seen = HashSet::new();
        for number in Calls::ALL.into_iter().flat_map(numbers) {
            assert!(seen.insert(number), "{number}");
        }
    }

    #[test]
    fn forbidden_calls_fail_and_others_work() {
        let sandbox = Sandbox {
            capabilities: &[],
            allowed: &[],
            view: View::Shared,
        };
        // A filter is a property of the thread, and this one ends.
        let results = std::thread::spawn(move || {
            forbid_calls(&sandbox).unwrap();
            let unshared = unshare(CloneFlags::CLONE_NEWNS);
            let mounted = mount(Some("x"), "/", Some("tmpfs"), MsFlags::empty(), None::<&str>);
            let ran = Command::new("true").status().unwrap().success();
            (unshared, mounted, ran, nix::sys::prctl::get_no_new_privs())
        });
        let (unshared, mounted, ran, no_new_privs) = results.join().unwrap();
        assert_eq!(unshared, Err(nix::errno::Errno::EPERM));
        assert_eq!(mounted, Err(nix::errno::Errno::EPERM));
        assert!(ran);
        assert_eq!(no_new_privs, Ok(true));
    }

    #[test]
    fn confined_thread_mounts_and_can_do_nothing_else() {
        let confined = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root");
            change("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE).unwrap();
            confine(
                &["CAP_SYS_ADMIN", "CAP_SYS_MODULE"],
                &[Calls::Mounts, Calls::Modules],
            )
            .unwrap();
            // Less each time, and never more again.
            confine(&["CAP_SYS_ADMIN"], &[Calls::Mounts]).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let kept = caps::read(None, CapSet::Effective).unwrap();
            let bound = caps::read(None, CapSet::Bounding).unwrap();
            let mounted = mount(
                Some("x"),
                folder.path(),
                Some("tmpfs"),
                MsFlags::MS_RDONLY,
                None::<&str>,
            );
            let unshared = unshare(CloneFlags::CLONE_NEWNET);
            let again = drop_capabilities(&["CAP_SYS_ADMIN", "CAP_SYS_MODULE"]);
            let after = caps::read(None, CapSet::Permitted).unwrap();
            nix::mount::umount(folder.path()).unwrap();
            (kept, bound, mounted, unshared, again.is_ok(), after)
        });
        let (kept, bound, mounted, unshared, _, after) = confined.join().unwrap();
        let admin = HashSet::from([Capability::CAP_SYS_ADMIN]);
        assert_eq!((&kept, &after, bound.len()), (&admin, &admin, 0));
        assert_eq!((mounted, unshared), (Ok(()), Err(nix::errno::Errno::EPERM)));
    }

    #[test]
    fn unknown_service_is_not_run() {
        assert!(matches!(
            prepare(&["nobody".to_owned()]),
            Err(SandboxError::UnknownService(_))
        ));
    }
}
