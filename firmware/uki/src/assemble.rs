//! Appends sections to an EFI stub.
//!
//! Does not move what the stub holds: new data goes behind the last byte, new addresses behind the last address, new
//! headers into the room that the stub's linker left. A stub without that room is refused rather than re-laid out.

use crate::{
    Section, SectionName,
    headers::{self, HeaderError, Layout},
};
use object::{
    LittleEndian as LE, U16, U32,
    pe::{
        IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_READ, ImageNtHeaders64, ImageSectionHeader,
        SectionFlags,
    },
    pod,
};

/// The largest image that is assembled, bytes. Firmware reads the whole of it into memory below 4 GiB.
pub const MAX_IMAGE_BYTES: usize = 512 << 20;

/// Contents start on a page, whatever smaller alignment the stub asks for: the stub hands them on in place.
const PAGE: u64 = 4096;
/// Index of the certificate table among the data directories.
const SECURITY_DIRECTORY: usize = 4;

/// Why a UKI cannot be assembled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// The stub is not a PE32+ file for x86-64.
    #[error("the stub is not an x86-64 EFI application")]
    Stub(#[source] HeaderError),
    /// The stub carries a signature, which appended sections would break.
    #[error("the stub is signed already: assemble first, then sign")]
    Signed,
    /// A section of that name is there already.
    #[error("section `{0}` is given twice or is in the stub already")]
    Duplicate(SectionName),
    /// A section has no content.
    #[error("section `{0}` is empty")]
    Empty(SectionName),
    /// There is no kernel.
    #[error("there is no `.linux` section: a UKI needs a kernel")]
    NoKernel,
    /// No room for the headers.
    #[error("the stub's header has room for {room} more sections, not for {wanted}")]
    NoHeaderRoom {
        /// Section headers that still fit.
        room: usize,
        /// Section headers that are needed.
        wanted: usize,
    },
    /// Bytes behind the last section that are no symbol table. A signature over a file with a gap is computed in
    /// different ways by different programs.
    #[error("the stub has {0} bytes behind its last section that no header accounts for")]
    Trailing(usize),
    /// Beyond [`MAX_IMAGE_BYTES`].
    #[error("the image would be {0} bytes long: more than {MAX_IMAGE_BYTES}")]
    TooLarge(u64),
}

/// The stub with `sections` appended in the order of [`SectionName`], whatever the order given.
pub fn assemble(stub: &[u8], sections: &[Section<'_>]) -> Result<Vec<u8>, AssembleError> {
    let layout = headers::parse(stub).map_err(AssembleError::Stub)?;
    let ordered = check(&layout, sections)?;
    let optional = &layout.nt.optional_header;
    let file_alignment = u64::from(optional.file_alignment.get(LE));
    let section_alignment = u64::from(optional.section_alignment.get(LE));

    let stub = without_symbols(&layout, stub)?;
    let address_end = layout
        .sections
        .iter()
        .map(|s| {
            let size = s.virtual_size.get(LE).max(s.size_of_raw_data.get(LE));
            u64::from(s.virtual_address.get(LE)) + u64::from(size)
        })
        .fold(u64::from(optional.size_of_image.get(LE)), u64::max);

    let mut offset = (stub.len() as u64).next_multiple_of(file_alignment);
    let mut address = address_end.next_multiple_of(section_alignment.max(PAGE));
    let mut added = Vec::with_capacity(ordered.len());
    let mut data_size = u64::from(optional.size_of_initialized_data.get(LE));
    for section in &ordered {
        let size = section.content.len() as u64;
        let raw = size.next_multiple_of(file_alignment);
        let limit = offset + raw;
        if limit.max(address + raw) > MAX_IMAGE_BYTES as u64 {
            return Err(AssembleError::TooLarge(limit.max(address + raw)));
        }
        // The limit above keeps every number within 32 bits.
        added.push(header(
            section.name,
            address as u32,
            size as u32,
            offset as u32,
            raw as u32,
        ));
        data_size += raw;
        offset += raw;
        address = (address + size).next_multiple_of(section_alignment.max(PAGE));
    }

    let mut image = Vec::with_capacity(offset as usize);
    image.extend_from_slice(stub);
    for (section, header) in ordered.iter().zip(&added) {
        image.resize(header.pointer_to_raw_data.get(LE) as usize, 0);
        image.extend_from_slice(section.content);
    }
    image.resize(offset as usize, 0);
    write_headers(&mut image, &layout, &added, address as u32, data_size as u32);
    Ok(image)
}

fn check<'a>(layout: &Layout, sections: &[Section<'a>]) -> Result<Vec<Section<'a>>, AssembleError> {
    if layout
        .directories
        .get(SECURITY_DIRECTORY)
        .is_some_and(|d| d.size.get(LE) != 0)
    {
        return Err(AssembleError::Signed);
    }
    let mut ordered = sections.to_vec();
    ordered.sort_by_key(|s| s.name);
    for (index, section) in ordered.iter().enumerate() {
        let in_stub = layout.sections.iter().any(|s| s.name == padded(section.name));
        if in_stub
            || ordered
                .get(index + 1)
                .is_some_and(|next| next.name == section.name)
        {
            return Err(AssembleError::Duplicate(section.name));
        }
        if section.content.is_empty() {
            return Err(AssembleError::Empty(section.name));
        }
    }
    if !ordered.iter().any(|s| s.name == SectionName::Linux) {
        return Err(AssembleError::NoKernel);
    }
    let end = layout.table_offset + layout.sections.len() * size_of::<ImageSectionHeader>();
    let first_data = layout
        .sections
        .iter()
        .filter(|s| s.size_of_raw_data.get(LE) != 0)
        .map(|s| s.pointer_to_raw_data.get(LE) as usize)
        .fold(
            layout.nt.optional_header.size_of_headers.get(LE) as usize,
            usize::min,
        );
    let room = first_data.saturating_sub(end) / size_of::<ImageSectionHeader>();
    if room < ordered.len() {
        return Err(AssembleError::NoHeaderRoom {
            room,
            wanted: ordered.len(),
        });
    }
    Ok(ordered)
}

/// The stub up to the end of its last section. Linkers leave a COFF symbol table behind it, which an image does not
/// need ("PE Format": "deprecated, should be zero for an image"); zeros are padding.
fn without_symbols<'a>(layout: &Layout, stub: &'a [u8]) -> Result<&'a [u8], AssembleError> {
    const SYMBOL: usize = 18;
    let headers = layout.nt.optional_header.size_of_headers.get(LE) as usize;
    let end = layout
        .sections
        .iter()
        .filter(|s| s.size_of_raw_data.get(LE) != 0)
        .map(|s| s.pointer_to_raw_data.get(LE) as usize + s.size_of_raw_data.get(LE) as usize)
        .fold(headers, usize::max)
        .min(stub.len());
    let (kept, rest) = stub.split_at(end);
    let file = &layout.nt.file_header;
    let table = (file.pointer_to_symbol_table.get(LE) as usize).checked_sub(end);
    let strings =
        table.and_then(|start| rest.get(start + file.number_of_symbols.get(LE) as usize * SYMBOL..));
    let accounted = match (table, strings) {
        // The string table begins with its own length.
        (Some(start), Some([a, b, c, d, more @ ..])) => {
            let named = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            let padding = named.checked_sub(4).and_then(|text| more.get(text..));
            padding.is_some_and(|p| p.iter().all(|b| *b == 0))
                && rest.get(..start).is_some_and(|p| p.iter().all(|b| *b == 0))
        }
        _ => rest.iter().all(|b| *b == 0),
    };
    if accounted {
        Ok(kept)
    } else {
        Err(AssembleError::Trailing(rest.len()))
    }
}

fn padded(name: SectionName) -> [u8; 8] {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(name.as_str().bytes()) {
        *to = from;
    }
    bytes
}

fn header(name: SectionName, address: u32, size: u32, offset: u32, raw: u32) -> ImageSectionHeader {
    let flags = SectionFlags(IMAGE_SCN_CNT_INITIALIZED_DATA.0 | IMAGE_SCN_MEM_READ.0);
    ImageSectionHeader {
        name: padded(name),
        virtual_size: U32::new(LE, size),
        virtual_address: U32::new(LE, address),
        size_of_raw_data: U32::new(LE, raw),
        pointer_to_raw_data: U32::new(LE, offset),
        pointer_to_relocations: U32::new(LE, 0),
        pointer_to_linenumbers: U32::new(LE, 0),
        number_of_relocations: U16::new(LE, 0),
        number_of_linenumbers: U16::new(LE, 0),
        characteristics: U32::new(LE, flags),
    }
}

/// `check` has seen that the headers are there and that the table has room, so both lookups find their bytes.
fn write_headers(
    image: &mut [u8],
    layout: &Layout,
    added: &[ImageSectionHeader],
    image_size: u32,
    data_size: u32,
) {
    let mut nt = layout.nt;
    nt.file_header
        .number_of_sections
        .set(LE, (layout.sections.len() + added.len()) as u16);
    nt.file_header.pointer_to_symbol_table.set(LE, 0);
    nt.file_header.number_of_symbols.set(LE, 0);
    nt.optional_header.size_of_image.set(LE, image_size);
    nt.optional_header.size_of_initialized_data.set(LE, data_size);
    // Zero: not computed. Firmware does not look at it, and signing changes the file once more.
    nt.optional_header.check_sum.set(LE, 0);
    let table_end = layout.table_offset + layout.sections.len() * size_of::<ImageSectionHeader>();
    overwrite(image, layout.nt_offset, pod::bytes_of::<ImageNtHeaders64>(&nt));
    overwrite(image, table_end, pod::bytes_of_slice(added));
}

fn overwrite(image: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(target) = image.get_mut(offset..offset + bytes.len()) {
        target.copy_from_slice(bytes);
    }
}
