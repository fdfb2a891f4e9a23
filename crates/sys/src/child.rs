//! What a child does between fork and exec. Only async-signal-safe calls happen there.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the child of `command` leave its session and, where `procs` is given, move itself into that cgroup before
/// it runs a single instruction of its program. `procs` is a writable descriptor of a `cgroup.procs` file.
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
        Ok(())
    };
    // SAFETY: the closure allocates nothing, takes no lock and calls only async-signal-safe functions.
    unsafe { command.pre_exec(enter) };
}

#[cfg(test)]
mod tests {
    use super::*;

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
