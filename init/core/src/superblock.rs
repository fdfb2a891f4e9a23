//! Which file system lies on a device, its UUID and its label, told from the device's first bytes. Pure and bounded;
//! runs in children only, since PID 1 reads no disk.
//!
//! Sources: linux `fs/ext4/ext4.h`, `fs/xfs/libxfs/xfs_format.h`, `include/uapi/linux/btrfs_tree.h`, `include/linux/swap.h`;
//! LUKS On-Disk Formats 1.2.3 and 2; Microsoft's FAT and exFAT specifications. `blkid` agrees (tests/superblock.rs).

use crate::volume::parse_boot_sector;

/// How much of a device's start [`probe`] looks at: the superblock of btrfs lies farthest.
pub const HEAD: usize = 0x11000;

/// A file system, or a container of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// As `blkid` calls it, e.g. `ext4` (also for its elder siblings) or `crypto_LUKS`.
    pub kind: &'static str,
    /// As `blkid` writes it; in capitals for FAT, exFAT and NTFS.
    pub uuid: Option<String>,
    /// `None`: it has none.
    pub label: Option<String>,
}

/// Tells what begins with these bytes; `None`: nothing that is known here. A shorter head hides what lies behind its end.
#[must_use]
pub fn probe(head: &[u8]) -> Option<Superblock> {
    let at = |offset: usize, length: usize| head.get(offset..offset.checked_add(length)?);
    let found = |kind, uuid, label: Option<&[u8]>| {
        Some(Superblock {
            kind,
            uuid,
            label: label.and_then(text),
        })
    };
    if at(0, 6) == Some(b"LUKS\xba\xbe") {
        // Version 1 has the name of its hash where version 2 has its label.
        let label = if at(6, 2) == Some(&[0, 2]) {
            at(24, 48)
        } else {
            None
        };
        return found(
            "crypto_LUKS",
            at(168, 40).and_then(text).filter(|u| is_uuid(u)),
            label,
        );
    }
    if at(0, 4) == Some(b"XFSB") {
        return found("xfs", at(32, 16).and_then(uuid), at(108, 12));
    }
    if at(1080, 2) == Some(&[0x53, 0xef]) {
        return found("ext4", at(1128, 16).and_then(uuid), at(1144, 16));
    }
    if at(0x10040, 8) == Some(b"_BHRfS_M") {
        return found("btrfs", at(0x10020, 16).and_then(uuid), at(0x1012b, 256));
    }
    if at(4086, 10) == Some(b"SWAPSPACE2") {
        return found("swap", at(1036, 16).and_then(uuid), at(1052, 16));
    }
    if at(510, 2) != Some(&[0x55, 0xaa]) {
        return None;
    }
    if at(3, 8) == Some(b"NTFS    ") {
        let serial = at(72, 8).map(|bytes| hex(bytes.iter().rev(), true));
        return found("ntfs", serial, None);
    }
    if at(3, 8) == Some(b"EXFAT   ") {
        return found("exfat", at(100, 4).and_then(serial), None);
    }
    let fat = parse_boot_sector(head.get(..512)?)?;
    let number = if at(82, 5) == Some(b"FAT32") {
        at(67, 4)
    } else {
        at(39, 4)
    };
    Some(Superblock {
        kind: "vfat",
        uuid: number.and_then(serial),
        label: Some(fat.label).filter(|label| !label.is_empty()),
    })
}

/// Up to the first NUL, without blanks around it; `None`: nothing, or no text.
fn text(field: &[u8]) -> Option<String> {
    let field = field.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(field).ok()?.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// As RFC 9562 writes it; nothing but zeros is none.
fn uuid(bytes: &[u8]) -> Option<String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let mut written = String::with_capacity(36);
    for (number, byte) in bytes.iter().enumerate() {
        if matches!(number, 4 | 6 | 8 | 10) {
            written.push('-');
        }
        written.push_str(&format!("{byte:02x}"));
    }
    Some(written)
}

/// The serial number of FAT and exFAT: `1A2B-3C4D`.
fn serial(bytes: &[u8]) -> Option<String> {
    if bytes.iter().all(|byte| *byte == 0) {
        return None;
    }
    let (low, high) = bytes.split_at_checked(2)?;
    Some(format!(
        "{}-{}",
        hex(high.iter().rev(), true),
        hex(low.iter().rev(), true)
    ))
}

fn hex<'a>(bytes: impl Iterator<Item = &'a u8>, capitals: bool) -> String {
    bytes
        .map(|byte| {
            if capitals {
                format!("{byte:02X}")
            } else {
                format!("{byte:02x}")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (offset, bytes) in parts {
            head[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    const ID: [u8; 16] = [
        0x1a, 0x2b, 0x3c, 0x4d, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0xff,
    ];
    const WRITTEN: &str = "1a2b3c4d-0506-0708-090a-0b0c0d0e0fff";

    // Those for which no tool is at hand; the others are in tests/superblock.rs.
    #[test]
    fn xfs_btrfs_ntfs_and_exfat_are_told() {
        for (head, kind, uuid, label) in [
            (
                with(&[(0, b"XFSB"), (32, &ID), (108, b"data")]),
                "xfs",
                WRITTEN,
                Some("data"),
            ),
            (
                with(&[(0x10040, b"_BHRfS_M"), (0x10020, &ID), (0x1012b, b"pool")]),
                "btrfs",
                WRITTEN,
                Some("pool"),
            ),
            (
                with(&[(510, &[0x55, 0xaa]), (3, b"NTFS    "), (72, &ID[..8])]),
                "ntfs",
                "080706054D3C2B1A",
                None,
            ),
            (
                with(&[(510, &[0x55, 0xaa]), (3, b"EXFAT   "), (100, &ID[..4])]),
                "exfat",
                "4D3C-2B1A",
                None,
            ),
        ] {
            let found = probe(&head).unwrap();
            assert_eq!(
                (found.kind, found.uuid.as_deref(), found.label.as_deref()),
                (kind, Some(uuid), label)
            );
        }
    }

    #[test]
    fn zeros_a_partition_table_and_a_short_head_are_nothing() {
        assert_eq!(probe(&[0; HEAD]), None);
        assert_eq!(probe(&with(&[(510, &[0x55, 0xaa]), (450, &[0xee])])), None);
        assert_eq!(probe(b"XFS"), None);
        assert_eq!(
            probe(&with(&[(0, b"XFSB")])).unwrap().uuid,
            None,
            "zeros are no UUID"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_told_or_not(
            bytes in proptest::collection::vec(any::<u8>(), 0..2048),
            magic in 0usize..6,
        ) {
            let mut bytes = bytes;
            let (offset, text): (usize, &[u8]) = [
                (0, &b"LUKS\xba\xbe\x00\x02"[..]), (0, b"XFSB"), (1080, &[0x53, 0xef]),
                (510, &[0x55, 0xaa]), (3, b"NTFS    "), (3, b"EXFAT   "),
            ][magic];
            if let Some(place) = bytes.get_mut(offset..offset + text.len()) {
                place.copy_from_slice(text);
            }
            if let Some(found) = probe(&bytes) {
                prop_assert!(found.uuid.is_none_or(|uuid| uuid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')));
                prop_assert!(found.label.is_none_or(|label| !label.is_empty()));
            }
        }
    }
}
