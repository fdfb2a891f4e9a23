//! Reads the section table of a PE32+ file and the content of each section.
//!
//! Does not judge which sections belong into a UKI. Content is a slice of the input: nothing is copied.

use crate::headers::{self, HeaderError};
use object::LittleEndian as LE;

/// One section of a PE file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeSection<'a> {
    /// Name as in the table, without padding; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Address relative to the image base, bytes.
    pub virtual_address: u32,
    /// Content without the padding to the file alignment. A virtual size beyond the raw data reads as the raw data.
    pub content: &'a [u8],
}

/// Why a file's sections cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// A header is bad.
    #[error("not an x86-64 EFI application")]
    Header(#[source] HeaderError),
    /// A section's data lies outside the file.
    #[error("the data of section `{0}` lies outside the file")]
    Outside(String),
}

/// The sections of `bytes` in table order.
pub fn sections(bytes: &[u8]) -> Result<Vec<PeSection<'_>>, ReadError> {
    let layout = headers::parse(bytes).map_err(ReadError::Header)?;
    let mut found = Vec::with_capacity(layout.sections.len());
    for header in &layout.sections {
        let length = header
            .name
            .iter()
            .position(|b| *b == 0)
            .unwrap_or(header.name.len());
        let name = String::from_utf8_lossy(header.name.get(..length).unwrap_or_default()).into_owned();
        let start = header.pointer_to_raw_data.get(LE) as usize;
        let size = header.virtual_size.get(LE).min(header.size_of_raw_data.get(LE)) as usize;
        let content = if size == 0 {
            Some([].as_slice())
        } else {
            bytes.get(start..start + size)
        };
        let Some(content) = content else {
            return Err(ReadError::Outside(name));
        };
        found.push(PeSection {
            name,
            virtual_address: header.virtual_address.get(LE),
            content,
        });
    }
    Ok(found)
}
