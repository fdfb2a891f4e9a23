//! Oracles: `systemd-measure` for the prediction of PCR 11, `tpm2_eventlog` for the replay of the event log.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_firmware_measure::{LogError, MAX_LOG, extend, predict_pcr11, replay};
use beemesh_ids::Digest;
use proptest::prelude::*;
use std::{fs, path::Path, process::Command};

const MEASURE: &str = "/lib/systemd/systemd-measure";

/// What systemd says of an image with these sections.
fn systemd_measure(folder: &Path, sections: &[(&str, Vec<u8>)]) -> String {
    let mut command = Command::new(MEASURE);
    command.args(["calculate", "--bank=sha256", "--phase=:"]);
    for (name, content) in sections {
        let path = folder.join(&name[1..]);
        fs::write(&path, content).unwrap();
        command.arg(format!("--{}={}", &name[1..], path.display()));
    }
    let output = command
        .output()
        .expect("these tests need `systemd-measure`: apt-get install systemd");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix("11:sha256="));
    value.unwrap().to_owned()
}

#[test]
fn prediction_is_that_of_systemd_measure() {
    let folder = tempfile::tempdir().unwrap();
    let all = [
        ".pcrpkey", ".initrd", ".cmdline", ".osrel", ".linux", ".splash", ".dtb",
    ];
    for count in [1, 4, all.len()] {
        let mut sections: Vec<(&str, Vec<u8>)> = all[..count]
            .iter()
            .enumerate()
            .map(|(at, name)| (*name, vec![at as u8; 1 + 4097 * at]))
            .collect();
        if count < 5 {
            // The tool wants a kernel.
            sections.push((".linux", vec![9; 5000]));
        }
        let ours = predict_pcr11(sections.iter().map(|(name, content)| (*name, content.as_slice())));
        assert_eq!(
            ours.hex(),
            systemd_measure(folder.path(), &sections),
            "{count} sections"
        );
    }
}

/// A value that does not depend on the tool that is installed.
#[test]
fn golden_prediction() {
    let sections: [(&str, &[u8]); 4] = [
        (".linux", &[0; 5000]),
        (".osrel", b"content of osrel"),
        (".cmdline", b"content of cmdline"),
        (".initrd", b"content of initrd"),
    ];
    assert_eq!(
        predict_pcr11(sections).hex(),
        "0105d04019a9b130eab5f1968f5c0181cdd160fdb7515ae57bb247d94c598329"
    );
}

/// Writes a log as firmware does: SHA-1 and SHA-256 of each event's data.
struct Log(Vec<u8>);

impl Log {
    fn new() -> Self {
        let banks = [2_u32.to_le_bytes().to_vec(), vec![4, 0, 20, 0, 11, 0, 32, 0]].concat();
        let spec = [
            b"Spec ID Event03\0".as_slice(),
            &[0; 4],
            &[0, 2, 0, 2],
            &banks,
            &[0],
        ]
        .concat();
        let size = (spec.len() as u32).to_le_bytes();
        Self([&[0; 4][..], &3_u32.to_le_bytes(), &[0; 20], &size, &spec].concat())
    }

    fn event(mut self, pcr: u32, kind: u32, digest: Digest, data: &[u8]) -> Self {
        let head = [pcr.to_le_bytes(), kind.to_le_bytes(), 2_u32.to_le_bytes()].concat();
        let digests = [&[4, 0][..], &[1; 20], &[11, 0], digest.as_bytes()].concat();
        self.0.extend(
            [
                head,
                digests,
                (data.len() as u32).to_le_bytes().to_vec(),
                data.to_vec(),
            ]
            .concat(),
        );
        self
    }
}

fn sample() -> Log {
    let of = |data: &[u8]| Digest::of(data);
    Log::new()
        .event(0, 8, of(b"version"), b"version")
        .event(7, 4, of(&[0; 4]), &[0; 4])
        .event(0, 4, of(&[0; 4]), &[0; 4])
        .event(4, 4, of(&[0; 4]), &[0; 4])
        .event(4, 5, of(b"Calling EFI Application"), b"Calling EFI Application")
        .event(11, 0xd, of(b".linux\0"), &[b'.', 0, b'l', 0, 0, 0])
}

#[test]
fn replay_is_that_of_tpm2_eventlog() {
    let (folder, log) = (tempfile::tempdir().unwrap(), sample());
    let path = folder.path().join("log");
    fs::write(&path, &log.0).unwrap();
    let output = Command::new("tpm2_eventlog").arg(&path).output();
    let output = output.expect("these tests need `tpm2_eventlog`: apt-get install tpm2-tools");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, table) = text.rsplit_once("\n  sha256:\n").unwrap();
    let theirs: Vec<(u8, String)> = table
        .lines()
        .map_while(|line| line.trim().split_once(": 0x"))
        .map(|(pcr, value)| (pcr.trim().parse().unwrap(), value.to_owned()))
        .collect();
    let ours = replay(&log.0).unwrap();
    let ours: Vec<(u8, String)> = ours.pcrs.iter().map(|(pcr, value)| (*pcr, value.hex())).collect();
    assert_eq!(theirs.len(), 4, "{text}");
    assert_eq!(ours, theirs);
}

/// tpm2-tools 5.4 do not know this event: the register begins at the locality that the TPM was started from.
#[test]
fn startup_locality_is_what_register_0_begins_with() {
    let mut begin = [0; 32];
    begin[31] = 3;
    let log = Log::new()
        .event(0, 3, Digest::from([0; 32]), b"StartupLocality\0\x03")
        .event(0, 8, Digest::of(b"version"), b"version");
    let found = replay(&log.0).unwrap();
    let value = extend(Digest::from(begin), Digest::of(b"version"));
    assert_eq!((found.events.len(), found.pcrs.get(&0)), (1, Some(&value)));
}

#[test]
fn replay_tells_events_and_registers() {
    let log = sample();
    let found = replay(&log.0).unwrap();
    assert_eq!(found.events.len(), 6);
    assert_eq!(
        (found.events[0].pcr, found.events[0].kind, found.events[0].data),
        (0, 8, b"version".as_slice())
    );
    let separator = extend(Digest::from([0; 32]), Digest::of(&[0; 4]));
    assert_eq!(found.pcrs.get(&7), Some(&separator));
    assert_eq!(found.pcrs.keys().copied().collect::<Vec<_>>(), [0, 4, 7, 11]);
}

#[test]
fn damaged_logs_are_refused_by_the_name_of_the_damage() {
    let good = sample().0;
    assert_eq!(replay(&[]), Err(LogError::CutOff));
    assert_eq!(replay(&vec![0; MAX_LOG + 1]), Err(LogError::TooLong));
    let mut header = good.clone();
    header[32] ^= 1;
    assert_eq!(replay(&header), Err(LogError::Header));
    let no_sha256 = {
        let mut bytes = Log::new().0;
        let at = bytes.len() - 5;
        bytes[at] = 12;
        bytes
    };
    assert_eq!(replay(&no_sha256), Err(LogError::Bank));
    let register = Log::new().event(24, 4, Digest::of(b"x"), b"x").0;
    assert_eq!(replay(&register), Err(LogError::Event));
}

proptest! {
    #[test]
    fn invariant_a_cut_or_altered_log_is_an_answer_and_no_panic(cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut log = sample().0;
        let index = at.index(log.len());
        log[index] = byte;
        log.truncate(cut.index(log.len()));
        if let Ok(found) = replay(&log) {
            prop_assert!(found.events.len() <= 6);
        }
    }
}
