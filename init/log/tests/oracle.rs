//! systemd itself reads what is exported: `systemd-journal-remote` takes it, `journalctl` gives it back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_init_log::{Flags, Record, Stream, export};
use std::io::Write;
use std::process::{Command, Stdio};

const BOOT: &str = "30313233343536373839616263646566";

fn record(stream: Stream, seq: u64, unit: &str, message: &[u8]) -> Record {
    Record {
        stream,
        seq,
        realtime_us: 1_700_000_000_000_000 + seq,
        monotonic_us: 5_140_900 + seq,
        priority: 3,
        flags: Flags::default(),
        unit: unit.into(),
        fields: vec![
            ("_KERNEL_SUBSYSTEM".into(), "pci".into()),
            ("bad name\n".into(), "x".into()),
        ],
        message: message.to_vec(),
    }
}

/// What journalctl exports of it again.
fn read_back(export: &[u8]) -> Vec<u8> {
    let folder = std::env::temp_dir().join(format!("beemesh-journal-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let journal = folder.join("x.journal");
    let mut remote = Command::new("/lib/systemd/systemd-journal-remote")
        .args(["-o", journal.to_str().unwrap(), "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the Debian package `systemd-journal-remote` is needed: cargo xtask setup");
    remote.stdin.take().unwrap().write_all(export).unwrap();
    let done = remote.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let shown = Command::new("journalctl")
        .args(["--file", journal.to_str().unwrap(), "-o", "export", "--no-pager"])
        .output()
        .unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(shown.status.success(), "{shown:?}");
    shown.stdout
}

fn count(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes
        .windows(wanted.len())
        .filter(|window| *window == wanted)
        .count()
}

#[test]
fn systemd_reads_back_what_is_exported() {
    let records = [
        record(Stream::Services, 1, "agent", b"plain = text"),
        record(Stream::Services, 2, "agent", b"two\nlines\x00\xff"),
        record(Stream::Kernel, 3, "kernel", "ü\tx".as_bytes()),
    ];
    let exported: Vec<u8> = records
        .iter()
        .flat_map(|record| export::entry(BOOT, record))
        .collect();
    let got = read_back(&exported);
    assert_eq!(count(&got, b"\n__REALTIME_TIMESTAMP="), 3);
    for (wanted, times) in [
        (&b"\nMESSAGE=plain = text\n"[..], 1),
        (b"\nMESSAGE\n\x0b\0\0\0\0\0\0\0two\nlines\x00\xff\n", 1),
        ("\nMESSAGE=ü\tx\n".as_bytes(), 1),
        (b"\n__REALTIME_TIMESTAMP=1700000000000002\n", 1),
        (b"\n__MONOTONIC_TIMESTAMP=5140903\n", 1),
        (b"\n_SYSTEMD_UNIT=agent.service\n", 2),
        (b"\n_TRANSPORT=kernel\n", 1),
        (b"\nPRIORITY=3\n", 3),
        (b"\n_KERNEL_SUBSYSTEM=pci\n", 3),
        (b"bad name", 0),
    ] {
        assert_eq!(count(&got, wanted), times, "{}", String::from_utf8_lossy(wanted));
    }
}
