//! Executes the test vectors of `SPEC.md`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_init_log::*;

/// The hexadecimal block that follows `name` in the specification.
fn vector(name: &str) -> Vec<u8> {
    let text = include_str!("../SPEC.md");
    let after = text.split(&format!("Vector `{name}`")).nth(1).expect(name);
    let block = after.split("```").nth(1).unwrap();
    let digits: String = block.lines().skip(1).flat_map(str::split_whitespace).collect();
    hex::decode(digits).unwrap()
}

fn header() -> Header {
    Header {
        number: 3,
        boot: *b"0123456789abcdef",
        salt: 0x1122_3344_5566_7788,
    }
}

fn record() -> Record {
    Record {
        stream: Stream::Kernel,
        seq: 339,
        realtime_us: 1_700_000_000_000_000,
        monotonic_us: 5_140_900,
        priority: 4,
        flags: Flags {
            continues: false,
            cut: true,
        },
        unit: "kernel".into(),
        fields: vec![("_KERNEL_SUBSYSTEM".into(), "pci".into())],
        message: b"hello".to_vec(),
    }
}

#[test]
fn header_vector() {
    assert_eq!(hex::encode(header().encode()), hex::encode(vector("header")));
    assert_eq!(Header::decode(&vector("header")), Some(header()));
}

#[test]
fn record_vector() {
    let bytes = append(&header(), 96, &record());
    assert_eq!(hex::encode(&bytes), hex::encode(vector("record")));
    let found = scan(&header(), &vector("record"), 96, true);
    assert_eq!((found.consumed, found.record), (bytes.len(), Some(record())));
}

#[test]
fn export_vector() {
    let record = Record {
        stream: Stream::Services,
        unit: "net".into(),
        fields: Vec::new(),
        message: b"a\nb".to_vec(),
        ..record()
    };
    let bytes = export::entry("30313233343536373839616263646566", &record);
    assert_eq!(hex::encode(bytes), hex::encode(vector("export")));
}
