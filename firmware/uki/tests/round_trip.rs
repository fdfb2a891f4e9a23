//! What is assembled is read back, by this crate and by binutils; what cannot be assembled is refused by its reason.

use beemesh_firmware_uki::{AssembleError, MAX_IMAGE_BYTES, Section, SectionName, assemble, sections};
use proptest::prelude::*;
use std::process::Command;

/// A stub as small as one can be: DOS header, PE32+ header, one `.text` section, `room` free section headers.
fn stub(section_alignment: u32, file_alignment: u32, room: usize) -> Vec<u8> {
    const OPTIONAL: usize = 240;
    let table = 64 + 24 + OPTIONAL;
    let headers = (table + 40 * (1 + room)).next_multiple_of(file_alignment as usize);
    // Exactly `room` headers fit: SizeOfHeaders says so even where alignment leaves more.
    let size_of_headers = table + 40 * (1 + room);
    let mut b = vec![0u8; headers + file_alignment as usize];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(60, &64u32.to_le_bytes());
    put(64, b"PE\0\0");
    put(68, &0x8664u16.to_le_bytes());
    put(70, &1u16.to_le_bytes());
    put(84, &(OPTIONAL as u16).to_le_bytes());
    put(86, &0x0206u16.to_le_bytes());
    let o = 88;
    put(o, &0x20bu16.to_le_bytes());
    put(o + 4, &file_alignment.to_le_bytes());
    put(o + 16, &section_alignment.to_le_bytes());
    put(o + 20, &section_alignment.to_le_bytes());
    put(o + 32, &section_alignment.to_le_bytes());
    put(o + 36, &file_alignment.to_le_bytes());
    put(o + 56, &(section_alignment * 2).to_le_bytes());
    put(o + 60, &(size_of_headers as u32).to_le_bytes());
    put(o + 68, &10u16.to_le_bytes());
    put(o + 108, &16u32.to_le_bytes());
    put(table, b".text\0\0\0");
    put(table + 8, &16u32.to_le_bytes());
    put(table + 12, &section_alignment.to_le_bytes());
    put(table + 16, &file_alignment.to_le_bytes());
    put(table + 20, &(headers as u32).to_le_bytes());
    put(table + 36, &0x6000_0020u32.to_le_bytes());
    put(headers, &[0x90; 16]);
    b
}

fn kernel(content: &[u8]) -> Section<'_> {
    Section {
        name: SectionName::Linux,
        content,
    }
}

fn contents() -> impl Strategy<Value = Vec<(SectionName, Vec<u8>)>> {
    let any = prop::collection::vec(any::<u8>(), 1..9000);
    (
        prop::sample::subsequence(SectionName::ALL[..8].to_vec(), 0..=8),
        prop::collection::vec(any, 9),
    )
        .prop_map(|(mut names, data)| {
            names.push(SectionName::Linux);
            names.into_iter().zip(data).collect()
        })
}

proptest! {
    #[test]
    fn what_is_assembled_is_read_back(
        contents in contents(),
        reversed: bool,
        section_alignment in prop::sample::select(vec![0x200u32, 0x1000, 0x10000]),
        file_alignment in prop::sample::select(vec![0x200u32, 0x1000]),
    ) {
        let stub = stub(section_alignment, file_alignment, 9);
        let mut given: Vec<_> = contents.iter().map(|(name, c)| Section { name: *name, content: c }).collect();
        if reversed {
            given.reverse();
        }
        let image = assemble(&stub, &given).unwrap();
        let read = sections(&image).unwrap();
        prop_assert_eq!(&read[0].name, ".text");
        prop_assert_eq!(read[0].content, &[0x90; 16]);
        prop_assert_eq!(read.len(), contents.len() + 1);
        let mut end = u64::from(section_alignment) + 16;
        for (section, (name, content)) in read[1..].iter().zip(&contents) {
            prop_assert_eq!(&section.name, name.as_str());
            prop_assert_eq!(section.content, content.as_slice());
            prop_assert_eq!(section.virtual_address % section_alignment.max(4096), 0);
            prop_assert!(u64::from(section.virtual_address) >= end, "sections overlap");
            end = u64::from(section.virtual_address) + content.len() as u64;
        }
        let size_of_image = u32::from_le_bytes(image[88 + 56..88 + 60].try_into().unwrap());
        prop_assert!(u64::from(size_of_image) >= end);
        prop_assert_eq!(size_of_image % section_alignment, 0);
        prop_assert_eq!(image.len() % file_alignment as usize, 0);
    }

    #[test]
    fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 0usize..600, value: u8) {
        let _ = sections(&bytes);
        bytes = stub(0x1000, 0x200, 4);
        bytes[at % 600] = value;
        let _ = sections(&bytes);
        if let Ok(image) = assemble(&bytes, &[kernel(b"k")]) {
            prop_assert!(image.len() <= MAX_IMAGE_BYTES);
        }
    }
}

#[test]
fn a_header_without_room_is_refused() {
    let many: Vec<_> = SectionName::ALL[5..]
        .iter()
        .map(|name| Section {
            name: *name,
            content: b"x",
        })
        .collect();
    assert!(assemble(&stub(0x1000, 0x200, 4), &many).is_ok());
    let refused = assemble(&stub(0x1000, 0x200, 3), &many);
    assert_eq!(refused, Err(AssembleError::NoHeaderRoom { room: 3, wanted: 4 }));
}

#[test]
fn a_section_given_twice_is_refused() {
    let refused = assemble(&stub(0x1000, 0x200, 4), &[kernel(b"a"), kernel(b"b")]);
    assert_eq!(refused, Err(AssembleError::Duplicate(SectionName::Linux)));
    let once = assemble(&stub(0x1000, 0x200, 4), &[kernel(b"a")]).unwrap();
    assert_eq!(
        assemble(&once, &[kernel(b"b")]),
        Err(AssembleError::Duplicate(SectionName::Linux))
    );
}

#[test]
fn an_empty_section_and_a_missing_kernel_are_refused() {
    let stub = stub(0x1000, 0x200, 4);
    let initrd = Section {
        name: SectionName::Initrd,
        content: b"x",
    };
    assert_eq!(assemble(&stub, &[initrd]), Err(AssembleError::NoKernel));
    assert_eq!(
        assemble(&stub, &[initrd, kernel(b"")]),
        Err(AssembleError::Empty(SectionName::Linux))
    );
}

#[test]
fn a_signed_stub_is_refused() {
    let mut stub = stub(0x1000, 0x200, 4);
    let security_size = 88 + 112 + 4 * 8 + 4;
    stub[security_size..security_size + 4].copy_from_slice(&64u32.to_le_bytes());
    assert_eq!(assemble(&stub, &[kernel(b"k")]), Err(AssembleError::Signed));
}

#[test]
fn a_symbol_table_is_dropped_and_unknown_trailing_data_refused() {
    let plain = stub(0x1000, 0x200, 4);
    let mut with_symbols = plain.clone();
    with_symbols[76..80].copy_from_slice(&(plain.len() as u32).to_le_bytes());
    with_symbols[80..84].copy_from_slice(&2u32.to_le_bytes());
    with_symbols.extend([7; 36]);
    with_symbols.extend(12u32.to_le_bytes());
    with_symbols.extend(b"symbols\0");
    let image = assemble(&with_symbols, &[kernel(b"k")]).unwrap();
    assert_eq!(image, assemble(&plain, &[kernel(b"k")]).unwrap());
    with_symbols.push(1);
    assert_eq!(
        assemble(&with_symbols, &[kernel(b"k")]),
        Err(AssembleError::Trailing(49))
    );
    let mut padded = plain.clone();
    padded.extend([0; 100]);
    assert_eq!(assemble(&padded, &[kernel(b"k")]).unwrap(), image);
    padded.push(1);
    assert_eq!(
        assemble(&padded, &[kernel(b"k")]),
        Err(AssembleError::Trailing(101))
    );
}

#[test]
fn an_image_beyond_the_bound_is_refused() {
    let content = vec![0; MAX_IMAGE_BYTES];
    let refused = assemble(&stub(0x1000, 0x200, 4), &[kernel(&content)]);
    assert!(
        matches!(refused, Err(AssembleError::TooLarge(_))),
        "{:?}",
        refused.err()
    );
}

#[test]
fn binutils_reads_the_same_sections() {
    let initrd: Vec<u8> = (0..70_000u32).map(|i| (i % 251) as u8).collect();
    let given = [
        kernel(b"not really a kernel"),
        Section {
            name: SectionName::Initrd,
            content: &initrd,
        },
        Section {
            name: SectionName::Osrel,
            content: b"ID=beemesh\n",
        },
    ];
    let image = assemble(&stub(0x200, 0x200, 4), &given).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("uki.efi");
    std::fs::write(&path, &image).unwrap();
    let listing = Command::new("objdump")
        .arg("-h")
        .arg(&path)
        .output()
        .expect("objdump (binutils) is installed");
    assert!(
        listing.status.success(),
        "{}",
        String::from_utf8_lossy(&listing.stderr)
    );
    let text = String::from_utf8(listing.stdout).unwrap();
    for (name, size) in [(".osrel", 11), (".initrd", 70_000), (".linux", 19)] {
        let row = text
            .lines()
            .find(|l| l.split_whitespace().nth(1) == Some(name))
            .expect(name);
        let seen = u64::from_str_radix(row.split_whitespace().nth(2).unwrap(), 16).unwrap();
        assert_eq!(seen, size, "{row}");
    }
    let dump = folder.path().join("initrd");
    let status = Command::new("objcopy")
        .args(["-O", "binary", "--only-section=.initrd"])
        .arg(&path)
        .arg(&dump)
        .status()
        .expect("objcopy (binutils) is installed");
    assert!(status.success());
    assert_eq!(std::fs::read(dump).unwrap(), initrd);
}

#[test]
fn sbsign_signs_it_and_sbverify_accepts_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(
        at("uki.efi"),
        assemble(&stub(0x1000, 0x200, 4), &[kernel(b"kernel")]).unwrap(),
    )
    .unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(folder.path())
            .output();
        let output = output.unwrap_or_else(|e| panic!("`{program}` is installed: {e}"));
        assert!(
            output.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(
        "openssl",
        &[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "db.key", "-out", "db.crt", "-subj",
            "/CN=test",
        ],
    );
    run(
        "sbsign",
        &[
            "--key",
            "db.key",
            "--cert",
            "db.crt",
            "--output",
            "signed.efi",
            "uki.efi",
        ],
    );
    run("sbverify", &["--cert", "db.crt", "signed.efi"]);
    let signed = std::fs::read(at("signed.efi")).unwrap();
    assert_eq!(sections(&signed).unwrap().last().unwrap().content, b"kernel");
}
