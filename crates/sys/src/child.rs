//! What a child does between fork and exec. Only async-signal-safe calls happen there.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the child of `command` leave its session, unblock all signals (a blocked mask would be inherited, and the
/// child would be deaf to SIGTERM) and, where `procs` is given, move itself into that cgroup before it runs a single
/// instruction of its program. `procs` is a writable descriptor of a `cgroup.procs` file.
///
/// Source: cgroups(7) (`0` stands for the writing process), setsid(2).
pub fn join_before_exec(command: &mut Command, procs: Option<OwnedFd>) {
    let enter = move || -> io::Result<()> {
        if let Some(fd) = &procs {
            let text = b"0";
            // SAFETY: the descriptor is owned by this closure and the buffer is a static slice; write(2) is
            // async-signal-safe, so it may be called between fork and exec.
            let written = unsafe { libc::write(fd.as_raw_fd(), text.as_ptr().cast(), text.len()) };
            if written < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: setsid(2) takes no arguments and is async-signal-safe. It fails only for a group leader, which a
        // freshly forked child never is.
        unsafe { libc::setsid() };
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set it is given, and sigprocmask only reads it; both are
        // async-signal-safe, and the child has one thread.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock and calls only async-signal-safe functions.
    unsafe { command.pre_exec(enter) };
}

/// Makes the child of `command` inherit these descriptors, under the numbers that are returned.
pub fn keep_open_over_exec(command: &mut Command, descriptors: Vec<OwnedFd>) -> Vec<RawFd> {
    let numbers = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let keep = move || -> io::Result<()> {
        for descriptor in &descriptors {
            // SAFETY: fcntl(2) with F_SETFD takes numbers only and is async-signal-safe; the closure owns the
            // descriptors, so they are open.
            if unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFD, 0) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock and calls only async-signal-safe functions.
    unsafe { command.pre_exec(keep) };
    numbers
}

/// Makes the child of `command` inherit its three streams and nothing else: libraries in C open descriptors that would stay
/// open over exec, and another thread may just do so. Source: close_range(2), Linux 5.11 and later.
pub fn inherit_streams_alone(command: &mut Command) {
    let close = || -> io::Result<()> {
        // SAFETY: close_range(2) takes numbers only, is async-signal-safe, and closes nothing before the exec.
        let done =
            unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock and calls only async-signal-safe functions.
    unsafe { command.pre_exec(close) };
}

/// Lets other threads go first: the calling thread's nice value rises by `steps` (at most to 19). Source: nice(2); on
/// Linux it is a property of the thread.
pub fn yield_to_others(steps: u8) {
    // SAFETY: nice(2) takes a number and touches no memory; raising the value needs no privilege.
    unsafe { libc::nice(steps.into()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn child_inherits_no_descriptor_that_a_library_left_open() {
        let (left, _other) = std::io::pipe().unwrap();
        nix::fcntl::fcntl(&left, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let listed = |command: &mut Command| {
            let output = command.arg("/proc/self/fd").output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let mark = left.as_raw_fd().to_string();
        let leaked = listed(&mut Command::new("ls"));
        assert!(leaked.lines().any(|line| line == mark), "{leaked}");
        let mut alone = Command::new("ls");
        inherit_streams_alone(&mut alone);
        let clean = listed(&mut alone);
        assert!(!clean.lines().any(|line| line == mark), "{clean}");
    }

    #[test]
    fn child_leads_a_session_of_its_own() {
        let mut command = Command::new("sh");
        command.args(["-c", "cut -d' ' -f6 /proc/self/stat; echo $$"]);
        join_before_exec(&mut command, None);
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next().unwrap(), lines.next().unwrap());
    }

    #[test]
    fn child_is_not_deaf_to_signals_that_its_parent_blocks() {
        use nix::sys::signal::{SigSet, Signal};
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTERM);
        let output = std::thread::spawn(move || {
            mask.thread_block().unwrap();
            let mut command = Command::new("grep");
            command.args(["SigBlk", "/proc/self/status"]);
            join_before_exec(&mut command, None);
            command.output().unwrap()
        });
        let text = String::from_utf8(output.join().unwrap().stdout).unwrap();
        assert_eq!(text.split_whitespace().last(), Some("0000000000000000"));
    }

    #[test]
    fn thread_that_yields_has_a_higher_nice_value_and_its_siblings_do_not() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let after_name = stat.rsplit_once(')').unwrap().1;
            after_name
                .split_whitespace()
                .nth(16)
                .unwrap()
                .parse::<i32>()
                .unwrap()
        };
        let before = nice();
        let yielded = std::thread::spawn(move || {
            yield_to_others(3);
            nice()
        });
        assert_eq!(yielded.join().unwrap(), (before + 3).min(19));
        assert_eq!(nice(), before);
    }

    #[test]
    fn child_has_the_kept_descriptor_and_no_other() {
        let kept = OwnedFd::from(std::fs::File::open("/dev/zero").unwrap());
        let other = std::fs::File::open("/dev/null").unwrap();
        let mut command = Command::new("ls");
        command.args(["-l", "/proc/self/fd"]);
        let numbers = keep_open_over_exec(&mut command, vec![kept]);
        let listed = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(
            listed.contains(&format!(" {} -> /dev/zero", numbers[0])),
            "{listed}"
        );
        assert!(
            !listed.contains(&format!(" {} -> /dev/null", other.as_raw_fd())),
            "{listed}"
        );
    }

    #[test]
    fn child_writes_itself_into_the_given_file() {
        let dir = std::env::temp_dir().join(format!("beemesh-sys-{}", std::process::id()));
        let file = std::fs::File::create(&dir).unwrap();
        let mut command = Command::new("true");
        join_before_exec(&mut command, Some(OwnedFd::from(file)));
        assert!(command.status().unwrap().success());
        let content = std::fs::read_to_string(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        assert_eq!(content, "0");
    }
}
