//! What is mounted where before any service runs, and which directories and links a fresh system has. Data only.

/// One file system to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount {
    /// The source, or the type's name for those without a device.
    pub source: &'static str,
    /// Where.
    pub target: &'static str,
    /// The kernel's name of the file system.
    pub kind: &'static str,
    /// Programs may be run from it.
    pub exec: bool,
    /// Device nodes on it work.
    pub dev: bool,
    /// Options for the file system itself.
    pub data: &'static str,
    /// The system cannot run without it.
    pub needed: bool,
}

const fn api(target: &'static str, kind: &'static str, data: &'static str) -> Mount {
    Mount {
        source: kind,
        target,
        kind,
        exec: false,
        dev: false,
        data,
        needed: true,
    }
}

/// Mounted in the initramfs and moved to the real root, in this order.
pub const API: [Mount; 3] = [
    api("/proc", "proc", ""),
    api("/sys", "sysfs", ""),
    Mount {
        exec: true,
        dev: true,
        ..api("/dev", "devtmpfs", "mode=0755,size=4m")
    },
];

/// Mounted after the switch to the real root, in this order. The root is read-only: what must be writable is RAM
/// with a limit. Pods and the state volume live below `/var/lib/beemesh`, which is another mount.
pub const ROOT: [Mount; 9] = [
    Mount {
        dev: true,
        ..api("/dev/pts", "devpts", "mode=0620,gid=5,ptmxmode=0666")
    },
    Mount {
        exec: false,
        ..api("/dev/shm", "tmpfs", "mode=1777,size=25%")
    },
    // The runtime directory holds pod sandboxes and their copies of programs.
    Mount {
        exec: true,
        ..api("/run", "tmpfs", "mode=0755,size=25%,nr_inodes=65536")
    },
    Mount {
        exec: true,
        ..api("/tmp", "tmpfs", "mode=1777,size=25%")
    },
    Mount {
        exec: true,
        dev: true,
        ..api("/var", "tmpfs", "mode=0755,size=50%")
    },
    Mount {
        needed: true,
        ..api("/sys/fs/cgroup", "cgroup2", "nsdelegate")
    },
    Mount {
        needed: false,
        ..api("/sys/kernel/security", "securityfs", "")
    },
    Mount {
        needed: false,
        ..api("/sys/firmware/efi/efivars", "efivarfs", "")
    },
    Mount {
        needed: false,
        ..api("/sys/fs/bpf", "bpf", "mode=0700")
    },
];

/// Mounts whose inner mounts all mount namespaces see: sticks and pod sandboxes in the one, the state volume and the
/// pods' layers in the other.
pub const SHARED: [&str; 2] = ["/run", "/var"];

/// Mount points that do not exist before their parent is mounted, made in the order of [`ROOT`].
pub const MADE_FOR_MOUNTS: [&str; 2] = ["/dev/pts", "/dev/shm"];

/// Directories that every boot begins with.
pub const DIRECTORIES: [&str; 10] = [
    "/run/beemesh",
    "/run/beemesh/init",
    "/run/beemesh/log",
    "/run/beemesh/notify",
    "/run/beemesh/stick",
    "/run/lock",
    "/var/lib/beemesh",
    "/var/log",
    "/var/cache",
    "/var/tmp",
];

/// Links (from, to) that programs expect.
pub const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
    ("/var/run", "/run"),
];

/// Controllers that pods and services may use.
pub const CONTROLLERS: [&str; 5] = ["cpu", "memory", "pids", "io", "cpuset"];

/// Cgroups below `/sys/fs/cgroup` that hand the controllers on to their children, parents first.
pub const DELEGATING_CGROUPS: [&str; 4] = ["", "beemesh", "beemesh/services", "beemesh/pods"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_mount_hides_an_earlier_one() {
        let all: Vec<&Mount> = API.iter().chain(&ROOT).collect();
        for (at, mount) in all.iter().enumerate() {
            for earlier in &all[..at] {
                assert!(
                    !earlier.target.starts_with(&format!("{}/", mount.target)),
                    "{} hides {}",
                    mount.target,
                    earlier.target
                );
            }
        }
    }

    #[test]
    fn directories_lie_on_something_writable() {
        for directory in DIRECTORIES {
            let writable = ROOT
                .iter()
                .filter(|m| m.kind == "tmpfs")
                .any(|m| directory.starts_with(&format!("{}/", m.target)));
            assert!(writable, "{directory}");
        }
    }

    #[test]
    fn nothing_foreign_is_executed_from_memory_that_needs_it_not() {
        assert!(
            API.iter()
                .chain(&ROOT)
                .filter(|m| m.dev)
                .all(|m| ["/dev", "/dev/pts", "/var"].contains(&m.target))
        );
    }
}
