//! The smallest user space: an initrd with one program that prints a line and powers the machine off. Pure: bytes in,
//! bytes out.
//!
//! It is assembled here, instruction by instruction, so that a probe needs neither a compiler nor busybox.

/// What the program prints.
pub(crate) const GREETING: &str = "beemesh probe: user space runs";

/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
/// Sizes of the ELF header and of its one program header.
const HEADERS: u64 = 64 + 56;

/// A static x86-64 ELF program: `write(1, GREETING)`, `reboot(POWER_OFF)`, and a loop in case that fails.
fn program() -> Vec<u8> {
    let text = format!("{GREETING}\n");
    let mut code: Vec<u8> = Vec::new();
    code.extend([0xb8, 1, 0, 0, 0]); // mov eax, SYS_write
    code.extend([0xbf, 1, 0, 0, 0]); // mov edi, 1
    code.extend([0x48, 0x8d, 0x35]); // lea rsi, [rip + distance to the text]
    let distance_at = code.len();
    code.extend([0; 4]);
    code.push(0xba); // mov edx, length
    code.extend((text.len() as u32).to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xb8, 169, 0, 0, 0]); // mov eax, SYS_reboot
    code.extend([0xbf, 0xad, 0xde, 0xe1, 0xfe]); // mov edi, LINUX_REBOOT_MAGIC1
    code.extend([0xbe, 0x69, 0x19, 0x12, 0x28]); // mov esi, LINUX_REBOOT_MAGIC2
    code.extend([0xba, 0xdc, 0xfe, 0x21, 0x43]); // mov edx, LINUX_REBOOT_CMD_POWER_OFF
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xeb, 0xfe]); // jmp to itself
    let distance = (code.len() - (distance_at + 4)) as u32;
    code[distance_at..distance_at + 4].copy_from_slice(&distance.to_le_bytes());
    code.extend(text.as_bytes());

    let size = HEADERS + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend(2u16.to_le_bytes()); // ET_EXEC
    elf.extend(62u16.to_le_bytes()); // EM_X86_64
    elf.extend(1u32.to_le_bytes());
    elf.extend((BASE + HEADERS).to_le_bytes()); // entry
    elf.extend(64u64.to_le_bytes()); // program headers
    elf.extend(0u64.to_le_bytes()); // no sections
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1u32.to_le_bytes()); // PT_LOAD
    elf.extend(5u32.to_le_bytes()); // read, execute
    for word in [0, BASE, BASE, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// An uncompressed cpio archive ("newc") with `/dev/console` and the program as `/init`.
pub(crate) fn initrd() -> Vec<u8> {
    let mut archive = Vec::new();
    entry(&mut archive, "dev", 0o040_755, (0, 0), &[]);
    // The kernel gives the first program this device; without it, the line would go nowhere.
    entry(&mut archive, "dev/console", 0o020_600, (5, 1), &[]);
    entry(&mut archive, "init", 0o100_755, (0, 0), &program());
    entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

fn entry(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
    let inode = archive.len() as u32 + 1;
    let fields = [
        inode,
        mode,
        0,
        0,
        1,
        0,
        content.len() as u32,
        0,
        0,
        device.0,
        device.1,
        name.len() as u32 + 1,
        0,
    ];
    archive.extend(b"070701");
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(name.bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_program_runs_on_this_machine_and_says_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init");
        let mut harmless = program();
        // reboot() becomes exit(173): the same program, fit for a machine that is in use.
        let at = harmless
            .windows(5)
            .position(|w| w == [0xb8, 169, 0, 0, 0])
            .unwrap();
        harmless[at + 1] = 60;
        std::fs::write(&path, harmless).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let output = Command::new(&path).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{GREETING}\n"));
        assert_eq!(output.status.code(), Some(0xad));
    }

    #[test]
    fn the_archive_s_entries_are_aligned_and_end_with_the_trailer() {
        let archive = initrd();
        assert_eq!(archive.len() % 4, 0);
        assert_eq!(archive.windows(6).filter(|w| w == b"070701").count(), 4);
        assert!(archive.windows(10).any(|w| w == b"TRAILER!!!"));
    }
}
