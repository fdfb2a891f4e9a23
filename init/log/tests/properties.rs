//! Whatever is written, rotated, cut and flipped: nothing panics, nothing is read that was not written, the newest
//! record survives, the bounds hold.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_init_log::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn record() -> impl Strategy<Value = Record> {
    let field = ("[A-Z_]{1,12}", ".{0,30}");
    let message = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        // What the reader looks for, inside a message.
        proptest::collection::vec(
            prop_oneof![Just(0xb5u8), Just(b'B'), Just(b'M'), Just(b'R'), Just(0)],
            0..60
        ),
        (0usize..3).prop_map(|n| vec![b'x'; n * 20_000]),
    ];
    let numbers = (any::<bool>(), any::<u64>(), any::<u64>(), 0u8..8, 0u8..4);
    (
        numbers,
        "[a-z-]{1,16}",
        proptest::collection::vec(field, 0..FIELDS_LIMIT),
        message,
    )
        .prop_map(
            |((kernel, seq, time, priority, flags), unit, fields, message)| Record {
                stream: if kernel { Stream::Kernel } else { Stream::Services },
                seq,
                realtime_us: time,
                monotonic_us: time / 3,
                priority,
                flags: Flags {
                    continues: flags & 1 != 0,
                    cut: flags & 2 != 0,
                },
                unit,
                fields,
                message,
            },
        )
}

/// The ring on an imaginary disk.
struct Disk {
    ring: Ring,
    salt: u64,
    segments: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    fn header(&self, number: u64) -> Header {
        Header {
            number,
            boot: [7; 16],
            salt: self.salt.wrapping_mul(number | 1),
        }
    }

    fn write(&mut self, record: &Record) {
        let length = append(&self.header(0), 0, record).len();
        let placed = self.ring.place(length as u64);
        for number in placed.remove {
            assert!(self.segments.remove(&number).is_some());
        }
        let header = self.header(placed.number);
        let segment = self.segments.entry(placed.number).or_default();
        if placed.fresh {
            assert!(segment.is_empty());
            segment.extend(header.encode());
        }
        assert_eq!(segment.len() as u64, placed.offset);
        segment.extend(append(&header, placed.offset, record));
    }

    fn bytes(&self) -> usize {
        self.segments.values().map(Vec::len).sum()
    }
}

fn read(segment: &[u8]) -> Vec<Record> {
    let Some(header) = Header::decode(segment) else {
        return Vec::new();
    };
    let (mut at, mut found) = (HEADER_LEN.min(segment.len()), Vec::new());
    loop {
        let step = scan(&header, &segment[at..], at as u64, true);
        at += step.consumed;
        match step.record {
            Some(record) => found.push(record),
            None => return found,
        }
    }
}

const LIMITS: Limits = Limits {
    segment_bytes: 80_000,
    total_bytes: 200_000,
    segments: 4,
};

fn written(records: &[Record], salt: u64) -> Disk {
    let mut disk = Disk {
        ring: Ring::new(LIMITS, Vec::new()),
        salt,
        segments: BTreeMap::new(),
    };
    for record in records {
        disk.write(record);
        assert!(disk.bytes() <= 200_000 && disk.segments.len() <= 4, "the bounds");
        let newest = disk.segments.values().next_back().unwrap();
        assert_eq!(read(newest).last(), Some(record), "the newest record");
    }
    disk
}

/// `part` is `whole` with some left out.
fn is_subsequence(part: &[Record], whole: &[Record]) -> bool {
    let mut whole = whole.iter();
    part.iter().all(|record| whole.any(|other| other == record))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_read_is_the_newest_of_what_was_written(records in proptest::collection::vec(record(), 1..40), salt: u64) {
        let disk = written(&records, salt);
        let all: Vec<Record> = disk.segments.values().flat_map(|segment| read(segment)).collect();
        prop_assert!(records.ends_with(&all));
    }

    #[test]
    fn a_cut_loses_only_what_was_behind_it(records in proptest::collection::vec(record(), 1..12), salt: u64, at: prop::sample::Index) {
        let disk = written(&records, salt);
        let newest = disk.segments.values().next_back().unwrap();
        let whole = read(newest);
        let part = read(&newest[..at.index(newest.len())]);
        prop_assert!(whole.starts_with(&part));
    }

    #[test]
    fn a_flipped_bit_costs_one_record_at_most(records in proptest::collection::vec(record(), 1..12), salt: u64, at: prop::sample::Index, bit in 0u8..8) {
        let disk = written(&records, salt);
        let mut newest = disk.segments.values().next_back().unwrap().clone();
        let whole = read(&newest);
        let at = at.index(newest.len());
        newest[at] ^= 1 << bit;
        let part = read(&newest);
        prop_assert!(is_subsequence(&part, &whole));
        let lost = usize::from(at >= HEADER_LEN);
        prop_assert_eq!(part.len(), whole.len() - lost);
    }

    #[test]
    fn a_reader_that_sees_it_grow_gets_the_same(records in proptest::collection::vec(record(), 1..8), salt: u64, step in 1usize..5000) {
        let disk = written(&records, salt);
        let newest = disk.segments.values().next_back().unwrap();
        let header = Header::decode(newest).unwrap();
        let (mut at, mut found) = (HEADER_LEN, Vec::new());
        let mut shown = HEADER_LEN;
        while shown < newest.len() {
            shown = newest.len().min(shown + step);
            loop {
                let scanned = scan(&header, &newest[at..shown], at as u64, false);
                at += scanned.consumed;
                match scanned.record {
                    Some(record) => found.push(record),
                    None => break,
                }
            }
        }
        prop_assert_eq!(found, read(newest));
    }

    #[test]
    fn foreign_bytes_are_no_records(bytes in proptest::collection::vec(any::<u8>(), 0..3000), salt: u64) {
        let header = Header { number: 1, boot: [0; 16], salt };
        prop_assert_eq!(scan(&header, &bytes, 96, true).record, None);
        prop_assert_eq!(Header::decode(&bytes), None);
    }

    #[test]
    fn lines_lose_nothing(pieces in proptest::collection::vec("[ab\n]{0,9}", 0..30)) {
        let mut lines = Lines::new();
        let mut got: Vec<Vec<u8>> = Vec::new();
        for piece in &pieces {
            got.extend(lines.push(piece.as_bytes()).into_iter().map(|line| line.text));
        }
        got.extend(lines.flush().into_iter().map(|line| line.text));
        let whole = pieces.concat();
        let wanted: Vec<&[u8]> = whole.as_bytes().split(|b| *b == b'\n').filter(|line| !line.is_empty()).collect();
        prop_assert_eq!(got, wanted);
    }

    #[test]
    fn kernel_text_never_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse_kernel_message(&text, 1);
    }
}

#[test]
fn a_record_that_a_service_prints_is_not_taken_for_one() {
    let forged = Record {
        unit: "agent".into(),
        message: b"all is well".to_vec(),
        ..plain()
    };
    let guess = Header {
        number: 1,
        boot: [7; 16],
        salt: 0,
    };
    let real = Header {
        salt: 0x1234_5678_9abc_def0,
        ..guess
    };
    // The service knows everything but the salt, even where its message will lie.
    let start = HEADER_LEN + append(&real, 96, &plain()).len();
    let message = append(&guess, start as u64, &forged);
    let mut segment = real.encode();
    segment.extend(append(&real, 96, &Record { message, ..plain() }));
    // Damage in the outer record makes the reader look inside it.
    segment[HEADER_LEN] ^= 1;
    assert_eq!(read(&segment), []);
}

#[test]
fn what_is_over_a_bound_is_cut_and_readable() {
    let record = Record {
        unit: "u".repeat(500),
        fields: vec![("N".repeat(100), "é".repeat(2000)); 20],
        message: vec![b'm'; 100_000],
        ..plain()
    };
    let header = Header {
        number: 1,
        boot: [1; 16],
        salt: 5,
    };
    let bytes = append(&header, 96, &record);
    assert!(bytes.len() <= RECORD_LIMIT);
    let read = scan(&header, &bytes, 96, true).record.unwrap();
    assert_eq!(
        (read.unit.len(), read.fields.len(), read.message.len()),
        (UNIT_LIMIT, FIELDS_LIMIT, MESSAGE_LIMIT)
    );
}

#[test]
fn a_ring_that_is_opened_again_never_writes_into_an_old_segment_and_comes_within_its_bounds() {
    let mut ring = Ring::new(LIMITS, vec![(9, 90_000), (4, 90_000), (5, 90_000)]);
    let placed = ring.place(100);
    assert_eq!((placed.number, placed.fresh, placed.remove), (10, true, vec![4]));
    ring.close();
    assert_eq!(ring.place(100).number, 11);
    // A full disk: hundreds of attempts that fail cost no old segment.
    let mut ring = Ring::new(LIMITS, vec![(1, 50_000), (2, 50_000)]);
    for _ in 0..300 {
        assert_eq!(ring.place(100).remove, []);
        ring.forget_newest();
    }
}

#[test]
fn segment_names_are_read_back_and_others_are_not() {
    assert_eq!(segment_number(&segment_name(0xabc)), Some(0xabc));
    for name in [
        "",
        "1.bml",
        "000000000000000g.bml",
        "+00000000000000a.bml",
        "0000000000000001.bml.new",
    ] {
        assert_eq!(segment_number(name), None, "{name}");
    }
}

fn plain() -> Record {
    Record {
        stream: Stream::Services,
        seq: 1,
        realtime_us: 2,
        monotonic_us: 3,
        priority: INFO,
        flags: Flags::default(),
        unit: "net".into(),
        fields: Vec::new(),
        message: b"hello".to_vec(),
    }
}
