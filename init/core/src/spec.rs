//! What a service is: data that `init/pid1` carries out, and the services of the product.
//!
//! Decides nothing and starts nothing. Invariant: what a spec does not ask for is denied: no capability, no call of
//! [`Calls`], nothing writable, no descriptor kept, bounded memory and processes.

use crate::backoff::Restart;

/// How a service ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Runs once, to its end.
    Oneshot,
    /// Runs for as long as the machine.
    Daemon,
}

/// What must be before a service is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// This service has ended (oneshot), was started, or is ready (daemon, see [`Readiness`]).
    Service(&'static str),
}

/// When those who need a daemon may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// As soon as it runs.
    Started,
    /// When it has said `READY=1`; without that within the spec's `start_limit_ms` it is ended and started again.
    Notified,
}

/// A part of the machine's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many MiB.
    Mib(u64),
    /// So much of a hundred of the machine's memory.
    Percent(u64),
}

impl Share {
    /// In bytes, on a machine with `total` bytes.
    #[must_use]
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Mib(mib) => mib.saturating_mul(1 << 20),
            Self::Percent(percent) => (total / 100).saturating_mul(percent),
        }
    }
}

/// Limits of a service's cgroup. Source: Linux `Documentation/admin-guide/cgroup-v2.rst`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `memory.max`: beyond it the whole service is ended.
    pub memory_max: Share,
    /// `memory.high`: beyond it the service is slowed down.
    pub memory_high: Option<Share>,
    /// `pids.max`: processes and threads.
    pub tasks: u32,
    /// `cpu.weight`: 1 to 10,000; the kernel's default is 100.
    pub cpu_weight: u32,
}

/// System calls that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Calls {
    /// Another kernel.
    Kexec,
    /// Kernel modules.
    Modules,
    /// Setting clocks.
    Clock,
    /// Rebooting, swap, process accounting, quotas.
    Administration,
    /// The processor's ports, and calls that nobody uses any more.
    Legacy,
    /// Looking into other processes, perf, faults handled by programs.
    Tracing,
    /// BPF programs.
    Bpf,
    /// The kernel's keyring.
    Keys,
    /// io_uring.
    Rings,
    /// Files by handle, past all directories.
    Handles,
    /// Mounts and roots.
    Mounts,
    /// Namespaces.
    Namespaces,
}

impl Calls {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Kexec,
        Self::Modules,
        Self::Clock,
        Self::Administration,
        Self::Legacy,
        Self::Tracing,
        Self::Bpf,
        Self::Keys,
        Self::Rings,
        Self::Handles,
        Self::Mounts,
        Self::Namespaces,
    ];
}

/// How a service sees the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// As PID 1 sees it, and with the same mounts: for who makes mounts that its successor must find.
    Shared,
    /// A mount namespace of its own, all of it read-only but for these directories. Mounts that others make appear.
    Private {
        /// Writable directories.
        writable: &'static [&'static str],
        /// Of those, mount points in which the service's own mounts are seen by everyone.
        propagated: &'static [&'static str],
        /// Directories that look empty.
        hidden: &'static [&'static str],
    },
}

/// What a service may do to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sandbox {
    /// Capabilities by name, e.g. `CAP_NET_ADMIN`.
    pub capabilities: &'static [&'static str],
    /// Calls that it may make; all others of [`Calls`] fail with EPERM.
    pub allowed: &'static [Calls],
    /// How it sees the file system.
    pub view: View,
}

/// What a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name: of its log, its cgroup and its notify socket.
    pub name: &'static str,
    /// Absolute path of the program.
    pub program: &'static str,
    /// Its arguments.
    pub arguments: &'static [&'static str],
    /// How it ends.
    pub kind: Kind,
    /// What must be before it is started.
    pub needs: Vec<Need>,
    /// When those who need it may go on.
    pub readiness: Readiness,
    /// A oneshot's time to end, a daemon's time to say `READY=1`, in milliseconds.
    pub start_limit_ms: u64,
    /// Once ready it must say `WATCHDOG=1` at least this often, in milliseconds.
    pub watchdog_ms: Option<u64>,
    /// The machine is worth nothing without it: when it was not ready for so long, in milliseconds, the machine starts
    /// again. The time in which it waits for its needs does not count: those have limits of their own.
    pub vital_ms: Option<u64>,
    /// From SIGTERM to SIGKILL, in milliseconds.
    pub grace_ms: u64,
    /// The pauses between two starts.
    pub restart: Restart,
    /// Descriptors that are kept for it over a restart (`FDSTORE=1`), at most.
    pub stored_limit: usize,
    /// A unix socket, in a folder of its own, that PID 1 listens on for it: it is started when somebody connects, and
    /// may end when it has nothing to do. It gets the socket as a
    /// descriptor (`SOCKET_NAME` in `init/api`).
    pub socket: Option<&'static str>,
    /// Its messages may ask for the start and stop of services and for a shutdown (`X_BEEMESH_ASK`).
    pub may_ask: bool,
    /// What it may use.
    pub limits: Limits,
    /// What it may do.
    pub sandbox: Sandbox,
}

impl ServiceSpec {
    /// A service that may do nothing special.
    #[must_use]
    pub fn new(name: &'static str, program: &'static str, kind: Kind) -> Self {
        Self {
            name,
            program,
            arguments: &[],
            kind,
            needs: Vec::new(),
            readiness: Readiness::Started,
            start_limit_ms: 60_000,
            watchdog_ms: None,
            vital_ms: None,
            grace_ms: 2_000,
            restart: Restart::DEFAULT,
            stored_limit: 0,
            socket: None,
            may_ask: false,
            limits: Limits {
                memory_max: Share::Mib(64),
                memory_high: None,
                tasks: 32,
                cpu_weight: 100,
            },
            sandbox: Sandbox {
                capabilities: &[],
                allowed: &[],
                view: View::Private {
                    writable: &[],
                    propagated: &[],
                    hidden: &[],
                },
            },
        }
    }
}

/// The services of the product, in start order; they are stopped in reverse.
#[must_use]
pub fn product_services() -> Vec<ServiceSpec> {
    vec![logd(), control(), net(), unlock(), agent()]
}

/// First to come and last to go: it keeps what the others print. Reads the kernel's messages, writes the rings.
fn logd() -> ServiceSpec {
    ServiceSpec {
        sandbox: Sandbox {
            capabilities: &["CAP_SYSLOG"],
            allowed: &[],
            view: View::Private {
                writable: &["/run/beemesh", "/var"],
                propagated: &[],
                hidden: &[],
            },
        },
        ..ServiceSpec::new("logd", "/usr/lib/beemesh/beemesh-logd", Kind::Daemon)
    }
}

/// `org.beemesh.Init1` for whoever may open its socket. It parses what they send, and holds nothing but its right to ask
/// PID 1. It goes late, so that a shutdown can be watched.
#[must_use]
pub fn control() -> ServiceSpec {
    ServiceSpec {
        socket: Some("/run/beemesh/control/init1"),
        may_ask: true,
        limits: Limits {
            memory_max: Share::Mib(16),
            memory_high: None,
            tasks: 8,
            cpu_weight: 100,
        },
        sandbox: Sandbox {
            capabilities: &[],
            allowed: &[],
            view: View::Private {
                writable: &[],
                propagated: &[],
                hidden: &["/var/lib"],
            },
        },
        ..ServiceSpec::new("control", "/usr/lib/beemesh/beemesh-control", Kind::Daemon)
    }
}

/// Reads packets of strangers: it sees no state volume and writes its status only. It sets the clock.
fn net() -> ServiceSpec {
    ServiceSpec {
        sandbox: Sandbox {
            capabilities: &[
                "CAP_NET_ADMIN",
                "CAP_NET_BIND_SERVICE",
                "CAP_NET_RAW",
                "CAP_SYS_TIME",
            ],
            allowed: &[Calls::Clock],
            view: View::Private {
                writable: &["/run/beemesh", "/proc/sys/net"],
                propagated: &[],
                hidden: &["/var/lib"],
            },
        },
        ..ServiceSpec::new("net", "/usr/lib/beemesh/beemesh-net", Kind::Daemon)
    }
}

/// Mounts the state volume for everyone (below `/var`); libcryptsetup makes nodes in `/dev`, locks keys in memory and
/// hands them to the kernel by its keyring. Where there is no disk it fills RAM, hence the share. Its time holds its wait for
/// the disks.
fn unlock() -> ServiceSpec {
    ServiceSpec {
        start_limit_ms: 150_000,
        limits: Limits {
            memory_max: Share::Percent(60),
            memory_high: None,
            tasks: 64,
            cpu_weight: 100,
        },
        sandbox: Sandbox {
            capabilities: &[
                "CAP_SYS_ADMIN",
                "CAP_MKNOD",
                "CAP_CHOWN",
                "CAP_FOWNER",
                "CAP_IPC_LOCK",
                "CAP_SYS_NICE",
                "CAP_SYS_RESOURCE",
            ],
            allowed: &[Calls::Mounts, Calls::Keys],
            view: View::Private {
                writable: &["/var", "/run", "/dev", "/tmp"],
                propagated: &["/var"],
                hidden: &[],
            },
        },
        ..ServiceSpec::new("unlock", "/usr/lib/beemesh/beemesh-unlock", Kind::Oneshot)
    }
}

/// The agent makes mounts, network namespaces and cgroups for pods, which its successor must find: it shares the view
/// of PID 1, and its shims inherit what it may do. It has no module, clock, raw memory, BPF, kexec or reboot. A state
/// volume in RAM is counted as its memory, hence the share.
///
/// It starts beside `unlock` and waits by itself for the state volume: its own start is a tenth of the boot. The time
/// to be ready holds both tries of `unlock`.
fn agent() -> ServiceSpec {
    ServiceSpec {
        readiness: Readiness::Notified,
        start_limit_ms: 330_000,
        watchdog_ms: Some(30_000),
        vital_ms: Some(900_000),
        grace_ms: 8_000,
        stored_limit: 8,
        limits: Limits {
            memory_max: Share::Percent(75),
            memory_high: None,
            tasks: 2_048,
            cpu_weight: 200,
        },
        sandbox: Sandbox {
            capabilities: &[
                "CAP_AUDIT_WRITE",
                "CAP_CHOWN",
                "CAP_DAC_OVERRIDE",
                "CAP_DAC_READ_SEARCH",
                "CAP_FOWNER",
                "CAP_FSETID",
                "CAP_IPC_LOCK",
                "CAP_KILL",
                "CAP_MKNOD",
                "CAP_NET_ADMIN",
                "CAP_NET_BIND_SERVICE",
                "CAP_NET_RAW",
                "CAP_SETFCAP",
                "CAP_SETGID",
                "CAP_SETPCAP",
                "CAP_SETUID",
                "CAP_SYS_ADMIN",
                "CAP_SYS_CHROOT",
                "CAP_SYS_NICE",
                "CAP_SYS_PTRACE",
                "CAP_SYS_RESOURCE",
            ],
            allowed: &[Calls::Mounts, Calls::Namespaces, Calls::Keys, Calls::Tracing],
            view: View::Shared,
        },
        ..ServiceSpec::new("agent", "/usr/lib/beemesh/beemesh-agent", Kind::Daemon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_that_asks_for_nothing_may_do_nothing() {
        let spec = ServiceSpec::new("x", "/x", Kind::Daemon);
        assert!(spec.sandbox.capabilities.is_empty() && spec.sandbox.allowed.is_empty());
        assert_eq!(spec.stored_limit, 0);
        assert_eq!(
            spec.sandbox.view,
            View::Private {
                writable: &[],
                propagated: &[],
                hidden: &[]
            }
        );
    }

    #[test]
    fn mounts_that_others_see_are_made_below_what_is_shared_and_writable() {
        for spec in product_services() {
            let View::Private {
                writable, propagated, ..
            } = spec.sandbox.view
            else {
                continue;
            };
            for path in propagated {
                assert!(
                    writable.contains(path) && crate::mounts::SHARED.contains(path),
                    "{path}"
                );
                // A bind mount there, made to keep a directory writable, would be seen by everyone.
                let below = format!("{path}/");
                assert!(!writable.iter().any(|w| w.starts_with(&below)), "{path}");
            }
        }
    }

    #[test]
    fn services_together_leave_memory_for_pods_on_a_box_of_a_gibibyte_when_the_state_is_on_a_disk() {
        let fixed: u64 = product_services()
            .iter()
            .filter_map(|s| match s.limits.memory_max {
                Share::Mib(mib) => Some(mib),
                Share::Percent(_) => None,
            })
            .sum();
        assert!(fixed <= 144, "{fixed} MiB");
        assert_eq!(Share::Percent(75).bytes(1 << 30), (1 << 30) / 100 * 75);
    }

    #[test]
    fn nobody_but_the_control_service_may_ask_and_sockets_lie_in_folders_of_their_own() {
        let services = product_services();
        let asking: Vec<&str> = services.iter().filter(|s| s.may_ask).map(|s| s.name).collect();
        assert_eq!(asking, ["control"]);
        for path in services.iter().filter_map(|s| s.socket) {
            let (folder, _) = path.rsplit_once('/').unwrap();
            assert!(
                folder.starts_with("/run/beemesh/") && !crate::mounts::DIRECTORIES.contains(&folder),
                "{path}"
            );
        }
    }

    #[test]
    fn machine_does_not_give_up_a_service_that_is_still_in_its_time_to_start() {
        let longest = |spec: &ServiceSpec| spec.start_limit_ms + crate::service::EXTENSION_LIMIT_MS;
        let vital: Vec<ServiceSpec> = product_services()
            .into_iter()
            .filter(|spec| spec.vital_ms.is_some())
            .collect();
        assert_eq!(vital.iter().map(|spec| spec.name).collect::<Vec<_>>(), ["agent"]);
        assert!(vital.iter().all(|spec| spec.vital_ms > Some(longest(spec))));
    }

    #[test]
    fn watchdog_leaves_room_for_several_signs_of_life() {
        for spec in product_services() {
            assert!(spec.watchdog_ms.is_none_or(|ms| ms >= 10_000), "{}", spec.name);
        }
    }
}
