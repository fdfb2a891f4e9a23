//! What the first bytes of a device say: ours, someone else's, or nothing. Pure.
//!
//! Sources: LUKS2 On-Disk Format Specification 1.0 (binary header: magic, version, size, sequence, label of 48 bytes;
//! JSON area from byte 4096); linux `fs/ext4/ext4.h` (super block at byte 1024, `s_magic` at 56, `s_volume_name` at 120).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use beemesh_init_api::STATE_LABEL;
use serde::Deserialize;

/// How much of a device's start [`Signature::of`] looks at.
pub const HEAD: usize = 4096;
/// The largest LUKS2 header that is read, in bytes (specification: 4 MiB is the largest allowed).
pub const HEADER_LIMIT: u64 = 4 << 20;
/// The label while a volume is being made: a volume that carries it was never used.
pub const UNFINISHED_LABEL: &str = "BEEMESHNEW";
/// The type of our LUKS2 token.
pub const TOKEN_TYPE: &str = "beemesh-tpm";

/// What lies on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signature {
    /// Our encrypted volume; the size of its header in bytes.
    Luks(u64),
    /// Our volume, not encrypted.
    Ext4,
    /// Our volume, but its making was interrupted.
    Unfinished,
    /// Zeros, as far as this looks.
    Zeros,
    /// Something that is not ours.
    Foreign,
}

impl Signature {
    /// Tells by the first [`HEAD`] bytes; a shorter head is foreign.
    #[must_use]
    pub fn of(head: &[u8]) -> Self {
        let (Some(head), Some(ext4)) = (head.get(..HEAD), head.get(1024..2048)) else {
            return Self::Foreign;
        };
        let luks2 = head.starts_with(b"LUKS\xba\xbe\x00\x02");
        let ext4_magic = ext4.get(56..58) == Some(&[0x53, 0xef]);
        let label = match (luks2, ext4_magic) {
            (true, _) => label(head.get(24..72)),
            (false, true) => label(ext4.get(120..136)),
            (false, false) if head.iter().all(|b| *b == 0) => return Self::Zeros,
            (false, false) => return Self::Foreign,
        };
        match label {
            STATE_LABEL if luks2 => {
                let size = head
                    .get(8..16)
                    .and_then(|bytes| bytes.try_into().ok())
                    .map(u64::from_be_bytes);
                Self::Luks(size.unwrap_or(0).min(HEADER_LIMIT))
            }
            STATE_LABEL => Self::Ext4,
            UNFINISHED_LABEL => Self::Unfinished,
            _ => Self::Foreign,
        }
    }
}

fn label(field: Option<&[u8]>) -> &str {
    let field = field.unwrap_or_default();
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    field
        .get(..end)
        .and_then(|bytes| std::str::from_utf8(bytes).ok())
        .unwrap_or_default()
}

#[derive(Deserialize)]
struct Metadata {
    tokens: std::collections::BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct Token {
    r#type: String,
    blob: String,
}

/// The sealed keys in a LUKS2 header (its first bytes, as many as its size says).
#[must_use]
pub fn sealed_keys(header: &[u8]) -> Vec<Vec<u8>> {
    let area = header.get(HEAD..).unwrap_or_default();
    let end = area.iter().position(|b| *b == 0).unwrap_or(area.len());
    let metadata = area
        .get(..end)
        .and_then(|json| serde_json::from_slice::<Metadata>(json).ok());
    let tokens = metadata
        .into_iter()
        .flat_map(|metadata| metadata.tokens.into_values());
    let tokens = tokens.filter_map(|token| serde_json::from_value::<Token>(token).ok());
    tokens
        .filter(|t| t.r#type == TOKEN_TYPE)
        .filter_map(|t| STANDARD.decode(t.blob).ok())
        .collect()
}

/// The token that holds a sealed key.
#[must_use]
pub fn token(sealed: &[u8]) -> serde_json::Value {
    serde_json::json!({ "type": TOKEN_TYPE, "keyslots": ["0"], "blob": STANDARD.encode(sealed) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn luks(label: &str) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[..8].copy_from_slice(b"LUKS\xba\xbe\x00\x02");
        head[8..16].copy_from_slice(&16384u64.to_be_bytes());
        head[24..24 + label.len()].copy_from_slice(label.as_bytes());
        head
    }

    fn ext4(label: &str) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        head[1024 + 120..1024 + 120 + label.len()].copy_from_slice(label.as_bytes());
        head
    }

    #[test]
    fn our_volumes_are_told_by_their_label() {
        assert_eq!(Signature::of(&luks("BEEMESHSTATE")), Signature::Luks(16384));
        assert_eq!(Signature::of(&ext4("BEEMESHSTATE")), Signature::Ext4);
        assert_eq!(Signature::of(&luks("BEEMESHNEW")), Signature::Unfinished);
    }

    #[test]
    fn what_others_made_is_foreign() {
        let mut windows = vec![0; HEAD];
        windows[3..11].copy_from_slice(b"NTFS    ");
        for head in [
            luks("root"),
            ext4("BEEMESHSTATE2"),
            ext4(""),
            windows,
            vec![0; 100],
        ] {
            assert_eq!(Signature::of(&head), Signature::Foreign);
        }
    }

    #[test]
    fn sealed_key_survives_its_token() {
        let sealed = vec![7; 300];
        let mut header = luks(STATE_LABEL);
        header.extend(
            format!(
                r#"{{"keyslots":{{}},"tokens":{{"0":{{"type":"systemd-tpm2","x":1}},"1":{}}}}}"#,
                token(&sealed)
            )
            .bytes(),
        );
        header.resize(16384, 0);
        assert_eq!(sealed_keys(&header), [sealed]);
    }

    proptest! {
        #[test]
        fn any_byte_that_is_not_zero_makes_a_disk_foreign(at in 0usize..HEAD, value in 1u8..) {
            let mut head = vec![0; HEAD];
            head[at] = value;
            prop_assert_eq!(Signature::of(&head), Signature::Foreign);
        }

        #[test]
        fn any_header_is_read_or_yields_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut header = luks(STATE_LABEL);
            header.extend(bytes);
            let _ = sealed_keys(&header);
        }
    }
}
