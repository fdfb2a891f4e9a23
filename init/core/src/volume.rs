//! What lies on a block device, told from its first bytes: FAT labels, squashfs and erofs. Pure and bounded.
//!
//! A label may stand in the boot sector (mkfs.vfat, image tools) or only in the root directory (Windows' Explorer
//! writes it there), so both are read. Source: Microsoft, "FAT: General Overview of On-Disk Format", 1.03.

/// How many bytes of the device's start [`parse_boot_sector`] needs.
pub const BOOT_SECTOR: usize = 512;
/// How many bytes of the root directory are worth reading: the label is among the first entries.
pub const ROOT_DIRECTORY_BYTES: usize = 16 * 1024;

/// The root file system's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootImage {
    /// squashfs 4.
    Squashfs,
    /// erofs.
    Erofs,
}

impl RootImage {
    /// The name of the kernel's file system, and of its module.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }

    /// Tells an image by its magic number; `head` is at least its first 1028 bytes.
    #[must_use]
    pub fn detect(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"hsqs") {
            Some(Self::Squashfs)
        } else if head.get(1024..1028) == Some(&[0xe2, 0xe1, 0xf5, 0xe0]) {
            Some(Self::Erofs)
        } else {
            None
        }
    }
}

/// What a FAT boot sector says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fat {
    /// The label in the boot sector, without padding; empty for none.
    pub label: String,
    /// Where the root directory begins, in bytes from the start of the volume.
    pub root_directory: u64,
}

/// Reads a FAT12, FAT16 or FAT32 boot sector; `None`: it is not one.
#[must_use]
pub fn parse_boot_sector(sector: &[u8]) -> Option<Fat> {
    if sector.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let byte = |at: usize| sector.get(at).copied().map(u64::from);
    let word = |at: usize| Some(byte(at)? | byte(at + 1)? << 8);
    let long = |at: usize| Some(word(at)? | word(at + 2)? << 16);
    let (sector_bytes, cluster_sectors) = (word(11)?, byte(13)?);
    let (reserved, copies) = (word(14)?, byte(16)?);
    let sane = matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
        && cluster_sectors.is_power_of_two()
        && reserved > 0
        && (1..=2).contains(&copies);
    if !sane {
        return None;
    }
    let is = |at: usize, signature: &[u8]| sector.get(at..at + signature.len()) == Some(signature);
    if is(82, b"FAT32") {
        let first_data = reserved + copies * long(36)?;
        let root_cluster = long(44)?.checked_sub(2)?;
        let label = if byte(66)? == 0x29 {
            text(sector.get(71..82)?)
        } else {
            String::new()
        };
        let sector_number = first_data.checked_add(root_cluster.checked_mul(cluster_sectors)?)?;
        Some(Fat {
            label,
            root_directory: sector_number.checked_mul(sector_bytes)?,
        })
    } else if is(54, b"FAT12   ") || is(54, b"FAT16   ") || is(54, b"FAT     ") {
        let label = if byte(38)? == 0x29 {
            text(sector.get(43..54)?)
        } else {
            String::new()
        };
        Some(Fat {
            label,
            root_directory: (reserved + copies * word(22)?) * sector_bytes,
        })
    } else {
        None
    }
}

/// The label among the entries of a root directory; `None`: there is none.
#[must_use]
pub fn parse_root_label(directory: &[u8]) -> Option<String> {
    for entry in directory.chunks_exact(32) {
        let (first, attributes) = (entry.first()?, entry.get(11)?);
        if *first == 0 {
            return None;
        }
        // Volume label, and neither erased nor a piece of a long name (attributes 0x0f).
        if *first != 0xe5 && attributes & 0x0f != 0x0f && attributes & 0x08 != 0 {
            return Some(text(entry.get(..11)?));
        }
    }
    None
}

fn text(bytes: &[u8]) -> String {
    let label = String::from_utf8_lossy(bytes);
    let label = label.trim_end_matches([' ', '\0']);
    if label == "NO NAME" {
        String::new()
    } else {
        label.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sector(at_type: usize, kind: &[u8], at_label: usize) -> Vec<u8> {
        let mut s = vec![0; 512];
        s[11..13].copy_from_slice(&512u16.to_le_bytes());
        s[13] = 4;
        s[14] = 1;
        s[16] = 2;
        s[22] = 8;
        s[at_label - 5] = 0x29;
        s[at_label..at_label + 11].copy_from_slice(b"BEEMESHJOIN");
        s[at_type..at_type + kind.len()].copy_from_slice(kind);
        s[510..].copy_from_slice(&[0x55, 0xaa]);
        s
    }

    #[test]
    fn label_of_fat12_and_fat16_is_read() {
        for kind in [b"FAT12   ", b"FAT16   "] {
            let fat = parse_boot_sector(&sector(54, kind, 43)).unwrap();
            assert_eq!(
                (fat.label.as_str(), fat.root_directory),
                ("BEEMESHJOIN", (1 + 2 * 8) * 512)
            );
        }
    }

    #[test]
    fn label_of_fat32_is_read() {
        let mut s = sector(82, b"FAT32   ", 71);
        s[36..40].copy_from_slice(&100u32.to_le_bytes());
        s[44] = 2;
        let fat = parse_boot_sector(&s).unwrap();
        assert_eq!(
            (fat.label.as_str(), fat.root_directory),
            ("BEEMESHJOIN", (1 + 200) * 512)
        );
    }

    #[test]
    fn protective_mbr_is_not_a_fat() {
        let mut s = vec![0; 512];
        s[450] = 0xee;
        s[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(parse_boot_sector(&s), None);
    }

    #[test]
    fn label_that_windows_wrote_to_the_root_directory_is_read() {
        let mut directory = vec![0; 128];
        directory[0] = 0xe5;
        directory[11] = 0x08;
        directory[43] = 0x0f;
        directory[32] = b'A';
        directory[64..75].copy_from_slice(b"BEEMESHJOIN");
        directory[75] = 0x08;
        assert_eq!(parse_root_label(&directory).as_deref(), Some("BEEMESHJOIN"));
        assert_eq!(parse_root_label(&directory[..64]), None);
    }

    #[test]
    fn root_images_are_told_by_their_magic() {
        assert_eq!(RootImage::detect(b"hsqs...."), Some(RootImage::Squashfs));
        let mut erofs = vec![0; 1028];
        erofs[1024..].copy_from_slice(&0xE0F5_E1E2u32.to_le_bytes());
        assert_eq!(RootImage::detect(&erofs), Some(RootImage::Erofs));
        assert_eq!(RootImage::detect(&[0; 2048]), None);
    }

    proptest! {
        #[test]
        fn any_sector_is_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), fat32: bool) {
            if let Some(end) = bytes.get_mut(510..512) {
                end.copy_from_slice(&[0x55, 0xaa]);
                bytes[11..13].copy_from_slice(&512u16.to_le_bytes());
                bytes[13] = 8;
                bytes[16] = 1;
                if fat32 {
                    bytes[82..87].copy_from_slice(b"FAT32");
                }
            }
            let _ = parse_boot_sector(&bytes);
            if let Some(label) = parse_root_label(&bytes) {
                prop_assert!(label.chars().count() <= 11);
            }
        }
    }
}
