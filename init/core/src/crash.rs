//! What the kernel left in the firmware's storage (pstore) at its last faults, put together from its pieces, and what of
//! that is kept. Pure: names and bytes in, texts and a plan out.
//!
//! A dump is cut into parts from its end: part 1 holds the newest lines. Each part begins with a line such as
//! `Panic#1 Part3`. Source: Linux `fs/pstore/platform.c` (`pstore_dump`), `Documentation/ABI/testing/pstore`.
//!
//! Invariants (tested below): whatever the bytes, the texts are within their bounds; a record is only given up once its
//! text is safely stored, but for those of older faults where nothing can be stored: variables of the firmware are few.

/// Records that are read; more wait for the next boot.
pub const RECORDS_LIMIT: usize = 512;
/// Bytes of a record that are read.
pub const RECORD_LIMIT: usize = 64 << 10;
/// Bytes of a fault's text that are kept: its end.
pub const TEXT_LIMIT: usize = 256 << 10;
/// Texts that are kept on the state volume.
pub const KEPT: usize = 8;
/// The longest reason that is shown, in characters.
const REASON_LIMIT: usize = 160;
/// What PID 1 writes to the kernel's log before it gives up, so that it is found here.
pub const EMERGENCY: &str = "beemesh: emergency: ";
/// What the kernel says before the reason.
const PANIC: &str = "Kernel panic - not syncing: ";

/// A file of pstore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// When it was written, in seconds since the Unix epoch by the clock of then.
    pub written: u64,
    /// What it holds, up to [`RECORD_LIMIT`].
    pub bytes: Vec<u8>,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// The kernel's messages before and during it, oldest first.
    pub text: String,
    /// Why, in the kernel's words or PID 1's.
    pub reason: String,
    /// The names of its records.
    pub records: Vec<String>,
}

struct Part<'a> {
    key: (u64, u64, u64),
    kind: &'a str,
    text: &'a [u8],
    name: &'a str,
}

impl<'a> Part<'a> {
    fn parse(record: &'a Record) -> Option<Self> {
        // Pieces that the kernel could not unpack, and records of other kinds, are no text.
        if !record.name.starts_with("dmesg-") || record.name.ends_with(".enc.z") {
            return None;
        }
        let end = record.bytes.iter().take(80).position(|byte| *byte == b'\n')?;
        let (head, rest) = record.bytes.split_at_checked(end)?;
        let (kind, part) = std::str::from_utf8(head).ok()?.split_once(" Part")?;
        let count = kind.rsplit_once('#')?.1.parse().ok()?;
        Some(Self {
            key: (record.written, count, part.trim().parse().ok()?),
            kind,
            text: rest.get(1..).unwrap_or_default(),
            name: &record.name,
        })
    }
}

/// The faults, oldest first. Records that are part of none are in no [`Crash`].
#[must_use]
pub fn assemble(records: &[Record]) -> Vec<Crash> {
    let mut parts: Vec<Part<'_>> = records.iter().filter_map(Part::parse).collect();
    parts.sort_by_key(|part| part.key);
    let mut crashes: Vec<Vec<Part<'_>>> = Vec::new();
    for part in parts {
        let last = crashes.last().and_then(|crash| crash.last());
        let goes_on = last.is_some_and(|last| last.kind == part.kind && last.key.2 < part.key.2);
        match crashes.last_mut().filter(|_| goes_on) {
            Some(crash) => crash.push(part),
            None => crashes.push(vec![part]),
        }
    }
    crashes.iter().map(|crash| join(crash)).collect()
}

fn join(parts: &[Part<'_>]) -> Crash {
    let mut bytes: Vec<u8> = Vec::new();
    for part in parts.iter().rev() {
        bytes.extend(part.text);
        if part.text.last().is_some_and(|byte| *byte != b'\n') {
            bytes.push(b'\n');
        }
    }
    let from = bytes.len().saturating_sub(TEXT_LIMIT);
    let text = String::from_utf8_lossy(bytes.get(from..).unwrap_or_default());
    // What is not text takes more room when it is written as such.
    let mut text: String = text.replace(char::REPLACEMENT_CHARACTER, "?");
    text.retain(|c| c == '\n' || c == '\t' || !c.is_control());
    let kind = parts.first().map_or("", |part| part.kind);
    Crash {
        reason: reason(&text).unwrap_or_else(|| format!("a fault of the kernel ({kind})")),
        text,
        records: parts.iter().map(|part| part.name.to_owned()).collect(),
    }
}

/// PID 1's own words before the kernel's, since the kernel's fault is then only how PID 1 ended.
fn reason(text: &str) -> Option<String> {
    let after = |mark: &str| text.lines().rev().find_map(|line| Some(line.split_once(mark)?.1));
    let oops = || {
        let line = text
            .lines()
            .rev()
            .find_map(|line| Some(line.split_once("] BUG: ")?.1));
        line.or_else(|| after("] Oops: "))
    };
    let reason = after(EMERGENCY).or_else(|| after(PANIC)).or_else(oops)?;
    let reason: String = reason.chars().take(REASON_LIMIT).collect();
    Some(reason.trim().to_owned()).filter(|reason| !reason.is_empty())
}

/// The records that are given up: all that were read when the texts were `stored`, otherwise those of all faults but the
/// newest, and those that are part of none.
#[must_use]
pub fn plan_removal(records: &[Record], crashes: &[Crash], stored: bool) -> Vec<String> {
    let kept = crashes.last().filter(|_| !stored);
    let is_kept = |name: &String| kept.is_some_and(|crash| crash.records.contains(name));
    let names = records.iter().map(|record| record.name.clone());
    names.filter(|name| !is_kept(name)).collect()
}

/// The name of the next text on the state volume and those that must go for it, given the names that are there.
#[must_use]
pub fn plan_file(there: &[String]) -> (String, Vec<String>) {
    let number = |name: &String| name.strip_suffix(".txt")?.parse::<u32>().ok();
    let mut numbers: Vec<u32> = there.iter().filter_map(number).collect();
    numbers.sort_unstable();
    let next = numbers.last().copied().unwrap_or(0).saturating_add(1);
    let old = (numbers.len() + 1).saturating_sub(KEPT);
    let file = |number: u32| format!("{number:08}.txt");
    (file(next), numbers.into_iter().take(old).map(file).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(name: &str, written: u64, text: &str) -> Record {
        Record {
            name: name.to_owned(),
            written,
            bytes: text.as_bytes().to_vec(),
        }
    }

    fn panic_in_parts() -> Vec<Record> {
        vec![
            record("dmesg-efi_pstore-3", 101, "Panic#1 Part3\n<6>[    1.0] oldest\n"),
            record(
                "dmesg-efi_pstore-1",
                100,
                "Panic#1 Part1\n<0>[   28.0] Kernel panic - not syncing: Fatal machine check\n<4>[   28.1] newest",
            ),
            record("dmesg-efi_pstore-2", 100, "Panic#1 Part2\n<4>[   27.0] middle\n"),
        ]
    }

    #[test]
    fn parts_are_joined_oldest_line_first_and_the_reason_found() {
        let crashes = assemble(&panic_in_parts());
        assert_eq!(crashes.len(), 1);
        let lines: Vec<&str> = crashes[0].text.lines().collect();
        assert!(lines[0].ends_with("oldest") && lines[1].ends_with("middle") && lines[3].ends_with("newest"));
        assert_eq!(crashes[0].reason, "Fatal machine check");
        assert_eq!(crashes[0].records.len(), 3);
    }

    #[test]
    fn words_of_pid_1_come_before_the_kernels() {
        let text = "Panic#1 Part1\n<0>[ 9.0] beemesh: emergency: failed to go on: planted\n<0>[ 9.1] Kernel panic - not syncing: sysrq triggered crash\n";
        let crashes = assemble(&[record("dmesg-ramoops-0", 5, text)]);
        assert_eq!(crashes[0].reason, "failed to go on: planted");
    }

    #[test]
    fn faults_of_several_boots_and_an_oops_before_a_panic_are_apart() {
        let mut records = panic_in_parts();
        records.push(record(
            "dmesg-efi_pstore-9",
            900,
            "Oops#1 Part1\n<1>[ 3.0] BUG: kernel NULL pointer dereference\n",
        ));
        records.push(record(
            "dmesg-efi_pstore-8",
            900,
            "Panic#2 Part1\n<0>[ 3.1] Kernel panic - not syncing: Fatal exception\n",
        ));
        let reasons: Vec<String> = assemble(&records).into_iter().map(|crash| crash.reason).collect();
        assert_eq!(
            reasons,
            [
                "Fatal machine check",
                "kernel NULL pointer dereference",
                "Fatal exception"
            ]
        );
    }

    #[test]
    fn records_are_given_up_once_stored_and_else_only_those_of_older_faults() {
        let mut records = panic_in_parts();
        records.push(record("dmesg-efi_pstore-7", 700, "Panic#1 Part1\nnew\n"));
        records.push(record("console-x-0", 1, "no dump"));
        let crashes = assemble(&records);
        assert_eq!(plan_removal(&records, &crashes, true).len(), 5);
        let gone = plan_removal(&records, &crashes, false);
        assert_eq!(gone.len(), 4);
        assert!(!gone.contains(&"dmesg-efi_pstore-7".to_owned()));
    }

    #[test]
    fn texts_on_the_state_volume_are_bounded_and_the_oldest_go_first() {
        let mut there = vec!["00000007.txt".to_owned(), "notes".to_owned()];
        assert_eq!(plan_file(&there), ("00000008.txt".to_owned(), vec![]));
        for _ in 0..20 {
            let (next, gone) = plan_file(&there);
            there.retain(|name| !gone.contains(name));
            there.push(next);
        }
        assert_eq!(there.len(), KEPT + 1);
        assert!(there.contains(&"00000027.txt".to_owned()) && there.contains(&"notes".to_owned()));
    }

    proptest! {
        #[test]
        fn invariant_any_records_are_taken_within_the_bounds(
            pieces in prop::collection::vec(
                (0u64..4, "[A-Za-z]{1,6}#[0-9]{1,3} Part[0-9]{1,3}\n|", prop::collection::vec(any::<u8>(), 0..3_000), 0u8..3),
                0..40,
            ),
        ) {
            let records: Vec<Record> = pieces
                .into_iter()
                .enumerate()
                .map(|(number, (written, head, rest, kind))| Record {
                    name: format!("{}-{number}", ["dmesg", "dmesg-efi_pstore", "x"][usize::from(kind)]),
                    written,
                    bytes: head.into_bytes().into_iter().chain(rest).collect(),
                })
                .collect();
            let crashes = assemble(&records);
            for crash in &crashes {
                prop_assert!(crash.text.len() <= TEXT_LIMIT);
                prop_assert!(!crash.reason.is_empty() && crash.reason.chars().count() <= REASON_LIMIT);
                prop_assert!(crash.reason.chars().all(|c| c == '\t' || !c.is_control()));
            }
            let assembled: usize = crashes.iter().map(|crash| crash.records.len()).sum();
            prop_assert!(assembled <= records.len());
            let kept = crashes.last().map_or(0, |crash| crash.records.len());
            prop_assert_eq!(plan_removal(&records, &crashes, false).len(), records.len() - kept);
        }
    }
}
