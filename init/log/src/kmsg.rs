//! One record of `/dev/kmsg`. Source: the kernel's Documentation/ABI/testing/dev-kmsg.

use crate::record::{FIELDS_LIMIT, Flags, MESSAGE_LIMIT, Record, Stream};

/// Reads `6,339,5140900,-;message` and the lines ` KEY=value` after it. `offset_us` is what the clock shows more than
/// CLOCK_MONOTONIC, in microseconds. `None` where it is not such a record.
#[must_use]
pub fn parse_kernel_message(text: &[u8], offset_us: u64) -> Option<Record> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let first = lines.next()?;
    let end = first.iter().position(|byte| *byte == b';')?;
    let (head, message) = first.split_at_checked(end)?;
    let message = message.get(1..).unwrap_or_default();
    let mut numbers = std::str::from_utf8(head).ok()?.split(',');
    // Facility times 8 plus priority (syslog(2)).
    let prefix: u32 = numbers.next()?.parse().ok()?;
    let seq = numbers.next()?.parse().ok()?;
    let monotonic_us: u64 = numbers.next()?.parse().ok()?;
    let mut fields = Vec::new();
    if prefix >> 3 != 0 {
        fields.push(("SYSLOG_FACILITY".to_owned(), (prefix >> 3).to_string()));
    }
    for line in lines.take(FIELDS_LIMIT) {
        let pair = std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.strip_prefix(' '));
        match pair.and_then(|pair| pair.split_once('=')) {
            Some((name @ ("SUBSYSTEM" | "DEVICE"), value)) => {
                fields.push((format!("_KERNEL_{name}"), value.to_owned()));
            }
            _ => continue,
        }
    }
    Some(Record {
        stream: Stream::Kernel,
        seq,
        realtime_us: monotonic_us.saturating_add(offset_us),
        monotonic_us,
        priority: u8::try_from(prefix & 7).unwrap_or(7),
        flags: Flags {
            continues: false,
            cut: message.len() > MESSAGE_LIMIT,
        },
        unit: "kernel".to_owned(),
        fields,
        message: message.get(..MESSAGE_LIMIT).unwrap_or(message).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_facility_place_and_device_are_read() {
        let text =
            b"30,339,5140900,-,caller=T1;NET: hello; world\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:01.0\n";
        let record = parse_kernel_message(text, 7).unwrap();
        assert_eq!((record.priority, record.seq), (6, 339));
        assert_eq!((record.monotonic_us, record.realtime_us), (5_140_900, 5_140_907));
        assert_eq!(record.message, b"NET: hello; world");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            record.fields,
            [
                pair("SYSLOG_FACILITY", "3"),
                pair("_KERNEL_SUBSYSTEM", "pci"),
                pair("_KERNEL_DEVICE", "+pci:0000:00:01.0")
            ]
        );
    }

    #[test]
    fn what_is_no_record_is_none() {
        for text in [
            &b""[..],
            b";",
            b"6,1;x",
            b"a,1,2,-;x",
            b"6,1,2,- no message",
            b"6,-1,2,-;x",
        ] {
            assert_eq!(parse_kernel_message(text, 0), None, "{text:?}");
        }
    }
}
