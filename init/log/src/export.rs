//! systemd's journal export format, for `systemd-journal-remote` and everything else that reads it.
//! Source: systemd.io/JOURNAL_EXPORT_FORMATS.

use crate::record::{Record, Stream};

/// One entry with its empty line. `boot` in 32 lower-case hexadecimal digits.
#[must_use]
pub fn entry(boot: &str, record: &Record) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 + record.message.len());
    let (transport, stream) = match record.stream {
        Stream::Kernel => ("kernel", "k"),
        Stream::Services => ("stdout", "s"),
    };
    let mut put = |name: &str, value: &[u8]| field(&mut out, name, value);
    let cursor = format!("b={boot};t={stream};i={:x}", record.seq);
    put("__CURSOR", cursor.as_bytes());
    put("__REALTIME_TIMESTAMP", record.realtime_us.to_string().as_bytes());
    put(
        "__MONOTONIC_TIMESTAMP",
        record.monotonic_us.to_string().as_bytes(),
    );
    put("_BOOT_ID", boot.as_bytes());
    put("_TRANSPORT", transport.as_bytes());
    put("PRIORITY", record.priority.to_string().as_bytes());
    put("SYSLOG_IDENTIFIER", record.unit.as_bytes());
    if record.stream == Stream::Services {
        put("_SYSTEMD_UNIT", format!("{}.service", record.unit).as_bytes());
    }
    put("BEEMESH_SEQ", record.seq.to_string().as_bytes());
    if record.flags.continues || record.flags.cut {
        let part = match (record.flags.continues, record.flags.cut) {
            (false, _) => "first",
            (true, true) => "middle",
            (true, false) => "last",
        };
        put("BEEMESH_PART", part.as_bytes());
    }
    for (name, value) in record.fields.iter().filter(|(name, _)| is_field_name(name)) {
        put(name, value.as_bytes());
    }
    put("MESSAGE", &record.message);
    out.push(b'\n');
    out
}

/// Upper-case letters, digits and `_`, not a digit first, not `__` first (those are the format's own), at most 64.
fn is_field_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    !name.starts_with("__")
        && name.len() <= 64
        && bytes.first().is_some_and(|first| !first.is_ascii_digit())
        && bytes
            .iter()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_')
}

/// `NAME=value`, or the form for values with control characters: name, 64-bit little-endian length, value.
fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend(name.as_bytes());
    let plain =
        std::str::from_utf8(value).is_ok_and(|text| text.chars().all(|c| !c.is_control() || c == '\t'));
    if plain {
        out.push(b'=');
    } else {
        out.push(b'\n');
        out.extend((value.len() as u64).to_le_bytes());
    }
    out.extend(value);
    out.push(b'\n');
}
