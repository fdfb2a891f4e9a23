//! Unified kernel images: an EFI stub and a set of sections become one PE32+ file, and are read back from it.
//!
//! Pure: bytes in, bytes out. Nothing here signs, measures or interprets a section's content; the names and their
//! order are those of the UAPI group's UKI specification.
//!
//! Invariant: what [`assemble`] returns, [`sections`] reads back byte for byte, and the stub's own sections are kept.

mod assemble;
mod headers;
mod read;

pub use assemble::{AssembleError, MAX_IMAGE_BYTES, assemble};
pub use read::{PeSection, ReadError, sections};

/// A section that the UKI specification names. The order of the variants is the order in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionName {
    /// `.osrel`: the content of `/etc/os-release`, which the boot menu shows and sorts by.
    Osrel,
    /// `.cmdline`: the kernel's command line, without a trailing newline.
    Cmdline,
    /// `.uname`: what `uname -r` says.
    Uname,
    /// `.splash`: a BMP picture.
    Splash,
    /// `.dtb`: a device tree.
    Dtb,
    /// `.pcrpkey`: the public key (PEM) that the PCR signature is made with.
    Pcrpkey,
    /// `.pcrsig`: signed PCR 11 values (JSON).
    Pcrsig,
    /// `.initrd`: the initial RAM disk.
    Initrd,
    /// `.linux`: the kernel, itself a PE file.
    Linux,
}

impl SectionName {
    /// Every name, in file order.
    pub const ALL: [Self; 9] = [
        Self::Osrel,
        Self::Cmdline,
        Self::Uname,
        Self::Splash,
        Self::Dtb,
        Self::Pcrpkey,
        Self::Pcrsig,
        Self::Initrd,
        Self::Linux,
    ];

    /// The name as the section table spells it, at most 8 bytes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Osrel => ".osrel",
            Self::Cmdline => ".cmdline",
            Self::Uname => ".uname",
            Self::Splash => ".splash",
            Self::Dtb => ".dtb",
            Self::Pcrpkey => ".pcrpkey",
            Self::Pcrsig => ".pcrsig",
            Self::Initrd => ".initrd",
            Self::Linux => ".linux",
        }
    }
}

impl std::fmt::Display for SectionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A section to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'a> {
    /// Which one.
    pub name: SectionName,
    /// Its content, not empty.
    pub content: &'a [u8],
}
