//! What an ELF file needs to be loaded: interpreter, libraries, symbol versions.
//!
//! Does not search for anything. Source: System V ABI, and "Symbol Versioning" of the LSB.

use object::{
    Endianness, elf,
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _, SectionTable},
};

type Header = elf::FileHeader64<Endianness>;

/// The needs and offers of one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Linkage {
    /// PT_INTERP.
    pub interpreter: Option<String>,
    /// DT_NEEDED, in order.
    pub needed: Vec<String>,
    /// Library and symbol version that must be in it.
    pub versions_needed: Vec<(String, String)>,
    /// Symbol versions that this file offers.
    pub versions_offered: Vec<String>,
}

impl Linkage {
    /// Runs without any other file.
    pub fn is_static(&self) -> bool {
        self.interpreter.is_none() && self.needed.is_empty()
    }
}

/// An ELF file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("not a sound x86-64 ELF file")]
pub struct ElfError(#[from] object::read::Error);

/// Reads the linkage; `None` where the bytes are no ELF file at all.
pub fn linkage(bytes: &[u8]) -> Result<Option<Linkage>, ElfError> {
    if !bytes.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let header = Header::parse(bytes)?;
    let endian = header.endian()?;
    let mut found = Linkage::default();
    for segment in header.program_headers(endian, bytes)? {
        if let Some(path) = segment.interpreter(endian, bytes)? {
            found.interpreter = Some(text(path));
        }
    }
    let sections = header.sections(endian, bytes)?;
    let dynamic = sections.dynamic_table(endian, bytes)?;
    for entry in dynamic.iter().filter(|entry| entry.tag == elf::DT_NEEDED) {
        found.needed.push(text(dynamic.string(entry)?));
    }
    versions(&sections, endian, bytes, &mut found)?;
    Ok(Some(found))
}

fn versions(
    sections: &SectionTable<'_, Header>,
    endian: Endianness,
    bytes: &[u8],
    found: &mut Linkage,
) -> Result<(), ElfError> {
    if let Some((mut files, link)) = sections.gnu_verneed(endian, bytes)? {
        let strings = sections.strings(endian, bytes, link)?;
        while let Some((file, mut versions)) = files.next()? {
            let library = text(file.file(endian, strings)?);
            while let Some(version) = versions.next()? {
                // Weak references may stay unresolved.
                if version.vna_flags.get(endian).0 & elf::VER_FLG_WEAK.0 == 0 {
                    found
                        .versions_needed
                        .push((library.clone(), text(version.name(endian, strings)?)));
                }
            }
        }
    }
    if let Some((mut definitions, link)) = sections.gnu_verdef(endian, bytes)? {
        let strings = sections.strings(endian, bytes, link)?;
        while let Some((_, mut names)) = definitions.next()? {
            // The first name is the version itself, the others are those it inherits from.
            if let Some(name) = names.next()? {
                found.versions_offered.push(text(name.name(endian, strings)?));
            }
        }
    }
    Ok(())
}

/// The content of a named section; `None` where there is none of that name.
pub fn section<'a>(bytes: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, ElfError> {
    let header = Header::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, bytes)?;
    match sections.section_by_name(endian, name.as_bytes()) {
        Some((_, section)) => Ok(Some(section.data(endian, bytes)?)),
        None => Ok(None),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, process::Command};

    #[test]
    fn readelf_sees_the_same_needs() {
        let program = std::env::current_exe().unwrap();
        let seen = linkage(&fs::read(&program).unwrap()).unwrap().unwrap();
        let listing = Command::new("readelf")
            .arg("-dlW")
            .arg(&program)
            .output()
            .expect("readelf (binutils) is installed");
        let listing = String::from_utf8(listing.stdout).unwrap();
        let needed: Vec<_> = listing
            .lines()
            .filter(|line| line.contains("(NEEDED)"))
            .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').to_owned()))
            .collect();
        assert!(!needed.is_empty());
        assert_eq!(seen.needed, needed);
        assert!(listing.contains(&format!("interpreter: {}", seen.interpreter.unwrap())));
        assert!(
            seen.versions_needed
                .iter()
                .any(|(library, v)| library == "libc.so.6" && v.starts_with("GLIBC_2."))
        );
    }

    #[test]
    fn what_is_no_elf_file_needs_nothing() {
        assert_eq!(linkage(b"#!/bin/sh\n").unwrap(), None);
        assert!(linkage(b"\x7fELF and then nothing").is_err());
    }

    proptest! {
        #[test]
        fn damaged_files_never_panic(at in 0usize..4096, value: u8, length in 64usize..8192) {
            let mut bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
            bytes[at] = value;
            let _ = linkage(&bytes);
            bytes.truncate(length);
            let _ = linkage(&bytes);
            let _ = section(&bytes, ".text");
        }
    }
}
