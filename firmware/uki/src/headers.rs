//! The headers of a PE32+ file, located and checked once so that writer and reader agree on what is well formed.
//!
//! Does not look at section contents. Source: "PE Format", Microsoft. Every offset that leaves this file lies within
//! the bytes it was read from.

use object::{
    LittleEndian as LE,
    pe::{
        IMAGE_FILE_MACHINE_AMD64, ImageDataDirectory, ImageDosHeader, ImageNtHeaders64, ImageSectionHeader,
    },
    pod,
};

/// What makes a file unusable as a PE32+ EFI application for x86-64.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Ends within a header.
    #[error("the file ends within the {0}")]
    Truncated(&'static str),
    /// Wrong magic number.
    #[error("the {what} is {found:#x}, not {wanted:#x}")]
    Magic {
        /// Which field.
        what: &'static str,
        /// What the file says.
        found: u64,
        /// What an x86-64 EFI application says.
        wanted: u64,
    },
    /// An alignment is no power of two or out of range.
    #[error("the {what} {value:#x} is not a power of two from 0x200 to 0x10000")]
    Alignment {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u32,
    },
}

/// Where things are in a PE32+ file.
pub(crate) struct Layout {
    pub nt_offset: usize,
    pub table_offset: usize,
    pub nt: ImageNtHeaders64,
    pub directories: Vec<ImageDataDirectory>,
    pub sections: Vec<ImageSectionHeader>,
}

const NT_SIGNATURE: u32 = 0x4550;
const DOS_MAGIC: u16 = 0x5a4d;
const PE32_PLUS: u16 = 0x20b;

fn expect(what: &'static str, found: u64, wanted: u64) -> Result<(), HeaderError> {
    if found == wanted {
        Ok(())
    } else {
        Err(HeaderError::Magic { what, found, wanted })
    }
}

fn alignment(what: &'static str, value: u32) -> Result<(), HeaderError> {
    if value.is_power_of_two() && (0x200..=0x1_0000).contains(&value) {
        Ok(())
    } else {
        Err(HeaderError::Alignment { what, value })
    }
}

/// Locates the headers and the section table.
pub(crate) fn parse(bytes: &[u8]) -> Result<Layout, HeaderError> {
    let cut = |what| move |()| HeaderError::Truncated(what);
    let (dos, _) = pod::from_bytes::<ImageDosHeader>(bytes).map_err(cut("DOS header"))?;
    expect("DOS magic", dos.e_magic.get(LE).into(), DOS_MAGIC.into())?;
    let nt_offset = dos.e_lfanew.get(LE) as usize;
    let tail = bytes
        .get(nt_offset..)
        .ok_or(HeaderError::Truncated("PE header"))?;
    let (nt, tail) = pod::from_bytes::<ImageNtHeaders64>(tail).map_err(cut("PE header"))?;
    expect("PE signature", nt.signature.get(LE).into(), NT_SIGNATURE.into())?;
    expect(
        "machine",
        nt.file_header.machine.get(LE).0.into(),
        IMAGE_FILE_MACHINE_AMD64.0.into(),
    )?;
    expect(
        "optional header's magic",
        nt.optional_header.magic.get(LE).into(),
        PE32_PLUS.into(),
    )?;
    alignment("section alignment", nt.optional_header.section_alignment.get(LE))?;
    alignment("file alignment", nt.optional_header.file_alignment.get(LE))?;
    let count = nt.optional_header.number_of_rva_and_sizes.get(LE) as usize;
    let (directories, _) =
        pod::slice_from_bytes::<ImageDataDirectory>(tail, count).map_err(cut("data directories"))?;
    let table_offset = nt_offset
        + size_of::<u32>()
        + size_of::<object::pe::ImageFileHeader>()
        + usize::from(nt.file_header.size_of_optional_header.get(LE));
    let table = bytes
        .get(table_offset..)
        .ok_or(HeaderError::Truncated("section table"))?;
    let count = usize::from(nt.file_header.number_of_sections.get(LE));
    let (sections, _) =
        pod::slice_from_bytes::<ImageSectionHeader>(table, count).map_err(cut("section table"))?;
    Ok(Layout {
        nt_offset,
        table_offset,
        nt: *nt,
        directories: directories.to_vec(),
        sections: sections.to_vec(),
    })
}
