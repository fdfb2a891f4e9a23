//! `beemesh-control` as Debian's `busctl` (systemd's own D-Bus implementation) sees it. The program is the real one; the
//! test stands in for PID 1: it listens, passes the socket on, writes the documents and takes the requests.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use beemesh_init_api::{Changes, PhaseTime, ServiceChange, ServiceStatus};

const SERVICE: &str = "org.beemesh.Init1";
const MACHINE: &str = "/org/beemesh/Init1";
const NET: &str = "/org/beemesh/Init1/service/net";

/// PID 1, as far as the program can tell.
struct Pid1 {
    folder: tempfile::TempDir,
    listener: UnixListener,
    notify: UnixDatagram,
    program: Option<Child>,
}

impl Pid1 {
    fn start(idle_ms: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("init")).unwrap();
        let listener = UnixListener::bind(folder.path().join("init1")).unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut pid1 = Self {
            folder,
            listener,
            notify,
            program: None,
        };
        pid1.write(
            "services.json",
            &[
                service("net", "daemon", "running"),
                service("unlock", "oneshot", "ended"),
            ],
        );
        pid1.write("changes.json", &changes("running", &[]));
        let phase = PhaseTime {
            phase: "MountApi".to_owned(),
            ended_ms: 42,
        };
        pid1.write("boot.json", &[phase]);
        // sd_listen_fds(3): the first descriptor is 3, and the variable names the process that shall take it.
        let line =
            "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=socket exec \"$0\" \"$@\"";
        let program = Command::new("sh")
            .args(["-c", line, env!("CARGO_BIN_EXE_beemesh-control"), "--run"])
            .arg(pid1.folder.path())
            .args(["--idle-ms", &idle_ms.to_string()])
            .env("NOTIFY_SOCKET", pid1.folder.path().join("notify"))
            .stdin(Stdio::from(OwnedFd::from(pid1.listener.try_clone().unwrap())))
            .spawn();
        pid1.program = Some(program.unwrap());
        pid1
    }

    fn write<T: serde::Serialize + ?Sized>(&self, name: &str, content: &T) {
        let place = self.folder.path().join("init").join(name);
        fs::write(place.with_extension("new"), serde_json::to_vec(content).unwrap()).unwrap();
        fs::rename(place.with_extension("new"), place).unwrap();
    }

    fn address(&self) -> String {
        format!(
            "--address=unix:path={}",
            self.folder.path().join("init1").display()
        )
    }

    fn busctl(&self, arguments: &[&str]) -> Output {
        let mut busctl = Command::new("busctl");
        busctl.arg(self.address()).arg("--timeout=10").args(arguments);
        busctl
            .output()
            .expect("busctl is missing: run `cargo xtask setup`")
    }

    /// What it prints; it must succeed.
    fn ask(&self, arguments: &[&str]) -> String {
        let output = self.busctl(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "busctl {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// What it complains of; it must fail.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.busctl(arguments);
        assert!(!output.status.success(), "busctl {arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The next request; taking it closes the descriptor that came along, as PID 1 does.
    fn take_request(&self) -> String {
        let mut buffer = [0; 4096];
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            match beemesh_sys::receive(&self.notify, &mut buffer) {
                Ok(received) => {
                    assert_eq!(received.descriptors.len(), 1, "the barrier");
                    return String::from_utf8(buffer[..received.length].to_vec()).unwrap();
                }
                Err(error) => assert!(Instant::now() < end, "no request came: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Calls a method that asks PID 1, and returns what it was asked.
    fn request(&self, arguments: &[&str]) -> String {
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| self.ask(arguments));
            let request = self.take_request();
            assert_eq!(caller.join().unwrap(), "");
            let (ask, barrier) = request.split_once('\n').unwrap();
            assert_eq!(barrier, "BARRIER=1");
            ask.strip_prefix("X_BEEMESH_ASK=").unwrap().to_owned()
        })
    }
}

impl Drop for Pid1 {
    fn drop(&mut self) {
        if let Some(program) = &mut self.program {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

fn service(name: &str, kind: &str, state: &str) -> ServiceStatus {
    ServiceStatus {
        name: name.to_owned(),
        state: state.to_owned(),
        kind: kind.to_owned(),
        last_end: Some("was killed (signal 9)".to_owned()),
        pid: Some(77),
        restarts: 3,
        status: Some("two links are up".to_owned()),
        descriptors: Vec::new(),
        descriptors_refused: 0,
    }
}

fn changes(machine: &str, states: &[(u64, &str)]) -> Changes {
    let change = |(number, state): &(u64, &str)| ServiceChange {
        number: *number,
        name: "net".to_owned(),
        state: (*state).to_owned(),
        last_end: None,
        at_ms: 1_000,
    };
    Changes {
        machine: machine.to_owned(),
        latest: states.iter().map(change).collect(),
    }
}

#[test]
fn objects_properties_methods_and_signals_are_introspected() {
    let pid1 = Pid1::start(60_000);
    let tree = pid1.ask(&["tree", "--list", SERVICE]);
    for path in [MACHINE, NET, "/org/beemesh/Init1/service/unlock"] {
        assert!(tree.lines().any(|line| line == path), "{tree}");
    }
    let machine = pid1.ask(&["introspect", SERVICE, MACHINE, SERVICE]);
    for row in [
        ".GetService method s o",
        ".ListServices method - a(ssssuttso)",
        ".StartService method s -",
        ".StopService method s -",
        ".RestartService method s -",
        ".PowerOff method - -",
        ".Reboot method - -",
        ".Halt method - -",
        ".Subscribe method - -",
        ".BootPhases property a(st) 1 \"MountApi\" 42 const",
        ".State property s \"running\" emits-change",
        ".ServiceChanged signal tssst -",
    ] {
        assert!(has_row(&machine, row), "`{row}` is not in\n{machine}");
    }
    let net = pid1.ask(&["introspect", SERVICE, NET, "org.beemesh.Init1.Service"]);
    for row in [
        ".Restart method - -",
        ".State property s \"running\" emits-change",
        ".MainPID property u 77 emits-change",
        ".Restarts property t 3 emits-change",
        ".StatusText property s \"two links are up\" emits-change",
        ".LastEnd property s \"was killed (signal 9)\" emits-change",
    ] {
        assert!(has_row(&net, row), "`{row}` is not in\n{net}");
    }
}

/// The rows of a list in SPEC.md: what comes after this heading, indented.
fn specified(heading: &str) -> Vec<String> {
    let (_, after) = include_str!("../SPEC.md").split_once(heading).unwrap();
    let section = after.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("    "));
    rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

#[test]
fn specification_lists_exactly_what_is_introspected() {
    let pid1 = Pid1::start(60_000);
    for (heading, path, interface) in [
        ("interface `org.beemesh.Init1`", MACHINE, SERVICE),
        (
            "interface `org.beemesh.Init1.Service`",
            NET,
            "org.beemesh.Init1.Service",
        ),
    ] {
        let table = pid1.ask(&["introspect", SERVICE, path, interface]);
        let mut found: Vec<String> = table
            .lines()
            .filter_map(|line| {
                let words: Vec<&str> = line.strip_prefix('.')?.split_whitespace().collect();
                let (name, kind, signature) = (words[0], words[1], words[2]);
                Some(match kind {
                    "method" => format!("{name} method {signature} {}", words[3]),
                    // Values hold blanks; the flags come last.
                    "property" => format!("{name} property {signature} {}", words.last().unwrap()),
                    _ => format!("{name} {kind} {signature}"),
                })
            })
            .collect();
        let mut specified = specified(heading);
        found.sort();
        specified.sort();
        assert_eq!(found, specified);
    }
}

/// The table has this row, whatever the width of its columns.
fn has_row(table: &str, row: &str) -> bool {
    table.lines().any(|line| {
        line.split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .starts_with(row)
    })
}

#[test]
fn properties_and_lists_show_what_pid_1_wrote_last() {
    let pid1 = Pid1::start(60_000);
    let property =
        |path: &str, interface: &str, name: &str| pid1.ask(&["get-property", SERVICE, path, interface, name]);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(
        property(MACHINE, SERVICE, "BootId"),
        format!("s \"{}\"", boot_id.trim())
    );
    assert!(property(MACHINE, SERVICE, "Version").starts_with("s \""));
    assert_eq!(
        property(NET, "org.beemesh.Init1.Service", "State"),
        "s \"running\""
    );
    pid1.write(
        "services.json",
        &[
            service("net", "daemon", "ready"),
            service("unlock", "oneshot", "ended"),
        ],
    );
    assert_eq!(property(NET, "org.beemesh.Init1.Service", "State"), "s \"ready\"");
    assert_eq!(
        pid1.ask(&["call", SERVICE, MACHINE, SERVICE, "ListServices"]),
        "a(ssssuttso) 2 \
         \"net\" \"daemon\" \"ready\" \"was killed (signal 9)\" 77 3 0 \"two links are up\" \
         \"/org/beemesh/Init1/service/net\" \
         \"unlock\" \"oneshot\" \"ended\" \"was killed (signal 9)\" 77 3 0 \"two links are up\" \
         \"/org/beemesh/Init1/service/unlock\""
    );
    assert_eq!(
        pid1.ask(&["call", SERVICE, MACHINE, SERVICE, "GetService", "s", "net"]),
        format!("o \"{NET}\"")
    );
}

#[test]
fn requests_reach_pid_1_and_come_back_when_it_has_taken_them() {
    let pid1 = Pid1::start(60_000);
    let call = |arguments: &[&str]| pid1.request(&[&["call", SERVICE, MACHINE, SERVICE], arguments].concat());
    assert_eq!(call(&["StopService", "s", "net"]), "stop net");
    assert_eq!(call(&["StartService", "s", "net"]), "start net");
    assert_eq!(call(&["RestartService", "s", "net"]), "restart net");
    assert_eq!(call(&["PowerOff"]), "poweroff");
    assert_eq!(call(&["Reboot"]), "reboot");
    assert_eq!(call(&["Halt"]), "halt");
    let of_service = ["call", SERVICE, NET, "org.beemesh.Init1.Service", "Restart"];
    assert_eq!(pid1.request(&of_service), "restart net");
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason_and_pid_1_is_not_asked() {
    let pid1 = Pid1::start(60_000);
    let call = |arguments: &[&str]| pid1.refused(&[&["call", SERVICE, MACHINE, SERVICE], arguments].concat());
    assert!(call(&["StopService", "s", "nobody"]).contains("there is no service `nobody`"));
    assert!(call(&["GetService", "s", "nobody"]).contains("there is no service `nobody`"));
    assert!(call(&["RestartService", "s", "unlock"]).contains("it is of the kind `oneshot`"));
    pid1.write("changes.json", &changes("stopping", &[]));
    assert!(call(&["StartService", "s", "net"]).contains("the machine is going down"));
    let set = ["set-property", SERVICE, MACHINE, SERVICE, "State", "s", "x"];
    assert!(!pid1.refused(&set).is_empty());
    let mut buffer = [0; 64];
    assert!(
        beemesh_sys::receive(&pid1.notify, &mut buffer).is_err(),
        "PID 1 was asked"
    );
}

#[test]
fn every_state_change_is_a_signal_for_a_monitor() {
    let pid1 = Pid1::start(60_000);
    let mut monitor = Command::new("busctl")
        .arg(pid1.address())
        .args(["--json=short", "monitor", SERVICE])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, lines) = channel();
    let output = monitor.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = sender.send(serde_json::from_str::<serde_json::Value>(&line).unwrap());
        }
    });
    // The monitor says nothing when it has begun, so PID 1 changes something until it is seen.
    let mut number = 0;
    let first = loop {
        number += 1;
        assert!(number < 100, "the monitor shows nothing");
        pid1.write("changes.json", &changes("running", &[(number, "paused")]));
        if let Ok(message) = lines.recv_timeout(Duration::from_millis(200)) {
            break message;
        }
    };
    assert_eq!(first["member"], "ServiceChanged");
    assert_eq!(first["interface"], SERVICE);
    // Two changes in one write are two signals, in their order.
    pid1.write(
        "services.json",
        &[
            service("net", "daemon", "ready"),
            service("unlock", "oneshot", "ended"),
        ],
    );
    let latest = [(number + 1, "starting"), (number + 2, "ready")];
    pid1.write("changes.json", &changes("degraded", &latest));
    let (mut states, mut properties) = (Vec::new(), Vec::new());
    while states.len() < 2 || properties.len() < 2 {
        let message = lines.recv_timeout(Duration::from_secs(10)).expect("no signal");
        let data = message["payload"]["data"].clone();
        match message["member"].as_str().unwrap() {
            "ServiceChanged" if data[0].as_u64().unwrap() > number => states.push(data[2].clone()),
            "PropertiesChanged" if data[1].get("State").is_some() => {
                properties.push((message["path"].clone(), data[1]["State"]["data"].clone()));
            }
            _ => {}
        }
    }
    assert_eq!(states, ["starting", "ready"]);
    properties.sort_by_key(|(path, _)| path.to_string());
    assert_eq!(properties[0], (MACHINE.into(), "degraded".into()));
    assert_eq!(properties[1], (NET.into(), "ready".into()));
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}

#[test]
fn peer_of_another_user_is_not_answered_whatever_the_sockets_mode() {
    if !nix::unistd::geteuid().is_root() {
        // Only root can become somebody else; CI runs as root.
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        return;
    }
    let pid1 = Pid1::start(60_000);
    let socket = pid1.folder.path().join("init1");
    for place in [pid1.folder.path(), &socket] {
        fs::set_permissions(place, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let property = ["get-property", SERVICE, MACHINE, SERVICE, "State"];
    assert_eq!(pid1.ask(&property), "s \"running\"");
    let mut other = Command::new("setpriv");
    other
        .args(["--reuid=65534", "--clear-groups", "busctl"])
        .arg(pid1.address())
        .args(property);
    let output = other.output().unwrap();
    assert!(!output.status.success(), "a stranger was answered");
}

#[test]
fn program_ends_when_nobody_is_connected_and_not_before() {
    let mut pid1 = Pid1::start(500);
    let mut silent = UnixStream::connect(pid1.folder.path().join("init1")).unwrap();
    silent.write_all(b"\0AUTH EXTERNAL\r\n").unwrap();
    let begin = Instant::now();
    std::thread::sleep(Duration::from_millis(1_500));
    let mut program = pid1.program.take().unwrap();
    assert!(program.try_wait().unwrap().is_none(), "it left its peer alone");
    drop(silent);
    let status = program.wait().unwrap();
    assert!(
        status.success() && begin.elapsed() < Duration::from_secs(10),
        "{status}"
    );
}

#[test]
fn crowd_is_bounded_and_does_not_keep_others_out_for_ever() {
    let pid1 = Pid1::start(60_000);
    let socket: PathBuf = pid1.folder.path().join("init1");
    // They never say who they are: after the greeting's time they are let go.
    let crowd: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let property = ["get-property", SERVICE, MACHINE, SERVICE, "State"];
    assert!(!pid1.busctl(&property).status.success(), "the 41st was served");
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(pid1.ask(&property), "s \"running\"");
    drop(crowd);
}
