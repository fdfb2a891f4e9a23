//! Packs on media, by the binary itself: folders, images, partitions, and what fsck says about them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;

use bench::{bench, done, ends, write_archive};
use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

#[test]
fn pack_survives_every_kind_of_medium() {
    let dir = bench();
    let at = dir.path();
    done(at, &["verify", "pack", "--roots", "fab/root.json"]);
    done(at, &["write", "pack", "--to", "stick.img"]);
    done(at, &["verify", "stick.img"]);
    done(at, &["write", "stick.img", "--to", "copy"]);
    done(at, &["verify", "copy"]);
    let read = |path: &str| fs::read(at.join(path)).unwrap();
    assert!(read("pack/joinpack.json") == read("copy/joinpack.json"));
    // The same stick takes the next pack, and nothing of the first remains.
    write_archive(&at.join("web.tar"), &[8; 1 << 20]);
    done(
        at,
        &[
            "create",
            "--fabric",
            "fab",
            "--out",
            "next",
            "--nodes",
            "3",
            "--image",
            "web=web.tar",
        ],
    );
    for target in ["stick.img", "copy"] {
        done(at, &["write", "next", "--to", target]);
        let view = done(at, &["verify", target, "-o", "json"]).json();
        assert_eq!(view["nodes"][2]["name"], "node-3");
    }
    assert_eq!(fs::read_dir(at.join("copy/blobs/sha256")).unwrap().count(), 1);
}

#[test]
fn create_makes_a_stick_image_at_once() {
    let dir = bench();
    done(
        dir.path(),
        &[
            "create",
            "--fabric",
            "fab",
            "--out",
            "new.img",
            "--nodes",
            "2",
            "--image",
            "web=web.tar",
        ],
    );
    assert_eq!(
        done(dir.path(), &["verify", "new.img", "-o", "json"]).json()["blobs"],
        1
    );
    ends(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "new.img", "--nodes", "2"],
        2,
        "exists",
    );
}

/// An image with an ESP and an empty join partition, as the OS image has them.
fn write_os_image(path: &Path) -> (u64, u64) {
    const MIB: u64 = 1 << 20;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    file.set_len(200 * MIB).unwrap();
    ProtectiveMBR::with_lb_size(u32::try_from(200 * MIB / 512 - 1).unwrap())
        .overwrite_lba0(&mut file)
        .unwrap();
    let config = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512);
    let mut disk = config.create_from_device(file, None).unwrap();
    disk.add_partition("ESP", 64 * MIB, partition_types::EFI, 0, Some(2048))
        .unwrap();
    let id = disk
        .add_partition("BEEMESHJOIN", 80 * MIB, partition_types::BASIC, 0, Some(2048))
        .unwrap();
    let esp = disk.partitions()[&1]
        .bytes_start(LogicalBlockSize::Lb512)
        .unwrap();
    let start = disk.partitions()[&id]
        .bytes_start(LogicalBlockSize::Lb512)
        .unwrap();
    let mut file = disk.write().unwrap();
    file.seek(SeekFrom::Start(esp)).unwrap();
    file.write_all(&[0x5a; 4096]).unwrap();
    // Formatted apart and copied into place.
    let mut fat = tempfile::tempfile().unwrap();
    fat.set_len(80 * MIB).unwrap();
    fatfs::format_volume(
        &mut fat,
        fatfs::FormatVolumeOptions::new().volume_label(*b"BEEMESHJOIN"),
    )
    .unwrap();
    fat.rewind().unwrap();
    file.seek(SeekFrom::Start(start)).unwrap();
    std::io::copy(&mut fat, &mut file).unwrap();
    (esp, start)
}

#[test]
fn pack_goes_into_the_join_partition_and_nowhere_else() {
    let dir = bench();
    let path = dir.path().join("os.img");
    let (esp, start) = write_os_image(&path);
    let before = fs::read(&path).unwrap();
    done(dir.path(), &["write", "pack", "--to", "os.img"]);
    done(dir.path(), &["verify", "os.img"]);
    let after = fs::read(&path).unwrap();
    assert_eq!(after.len(), before.len());
    let (start, end) = (
        usize::try_from(start).unwrap(),
        usize::try_from(start + (80 << 20)).unwrap(),
    );
    assert!(before[..start] == after[..start] && before[end..] == after[end..]);
    assert_eq!(after[usize::try_from(esp).unwrap()], 0x5a);
}

#[test]
fn bare_fat_image_takes_a_pack() {
    let dir = bench();
    let mut fat = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join("bare.img"))
        .unwrap();
    fat.set_len(40 << 20).unwrap();
    fatfs::format_volume(
        &mut fat,
        fatfs::FormatVolumeOptions::new().volume_label(*b"BEEMESHJOIN"),
    )
    .unwrap();
    done(dir.path(), &["write", "pack", "--to", "bare.img"]);
    done(dir.path(), &["verify", "bare.img"]);
}

fn check_by_fsck(path: &Path) {
    let fsck = Command::new("fsck.vfat").args(["-n", "-v"]).arg(path).output();
    let fsck = fsck.expect("this test needs fsck.vfat (package dosfstools)");
    let text = String::from_utf8_lossy(&fsck.stdout);
    assert!(fsck.status.success(), "{text}");
    for word in ["Expected", "Bad", "Deleting", "Moving", "differ"] {
        assert!(!text.contains(word), "{text}");
    }
}

#[test]
fn file_system_that_is_made_satisfies_fsck() {
    let dir = bench();
    done(dir.path(), &["write", "pack", "--to", "stick.img"]);
    let image = fs::read(dir.path().join("stick.img")).unwrap();
    let path = dir.path().join("part.img");
    fs::write(&path, &image[1 << 20..image.len() - (1 << 20)]).unwrap();
    check_by_fsck(&path);
    done(dir.path(), &["write", "pack", "--to", "part.img"]);
    check_by_fsck(&path);
}

#[test]
fn fat_of_every_width_satisfies_fsck() {
    let dir = bench();
    for (name, size, kind) in [
        ("12.img", 7, fatfs::FatType::Fat12),
        ("16.img", 40, fatfs::FatType::Fat16),
        ("32.img", 70, fatfs::FatType::Fat32),
    ] {
        let path = dir.path().join(name);
        let mut fat = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        fat.set_len(size << 20).unwrap();
        let options = fatfs::FormatVolumeOptions::new()
            .volume_label(*b"BEEMESHJOIN")
            .fat_type(kind);
        fatfs::format_volume(&mut fat, options).unwrap();
        done(dir.path(), &["write", "pack", "--to", name]);
        done(dir.path(), &["verify", name]);
        check_by_fsck(&path);
    }
}

#[test]
fn pack_too_large_for_the_medium_is_named_and_the_old_one_stays() {
    let dir = bench();
    let mut fat = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join("small.img"))
        .unwrap();
    fat.set_len(2 << 20).unwrap();
    fatfs::format_volume(&mut fat, fatfs::FormatVolumeOptions::new()).unwrap();
    ends(
        dir.path(),
        &["write", "pack", "--to", "small.img"],
        2,
        "use a larger one",
    );
    ends(dir.path(), &["verify", "small.img"], 2, "no `joinpack.json`");
    write_archive(&dir.path().join("tiny.tar"), &[1; 1 << 20]);
    done(
        dir.path(),
        &[
            "create",
            "--fabric",
            "fab",
            "--out",
            "tiny",
            "--nodes",
            "1",
            "--image",
            "t=tiny.tar",
        ],
    );
    done(dir.path(), &["write", "tiny", "--to", "small.img"]);
    ends(
        dir.path(),
        &["write", "pack", "--to", "small.img"],
        2,
        "use a larger one",
    );
    done(dir.path(), &["verify", "small.img"]);
    // Its own place is enough for it, again and again.
    done(dir.path(), &["write", "tiny", "--to", "small.img"]);
}

#[test]
fn damaged_image_is_never_copied() {
    let dir = bench();
    let blobs = dir.path().join("pack/blobs/sha256");
    let blob = fs::read_dir(&blobs).unwrap().next().unwrap().unwrap().path();
    let mut content = fs::read(&blob).unwrap();
    content[100_000] ^= 1;
    fs::write(&blob, content).unwrap();
    ends(dir.path(), &["write", "pack", "--to", "copy"], 3, "wrong-digest");
    ends(dir.path(), &["verify", "copy"], 2, "no `joinpack.json`");
    ends(
        dir.path(),
        &["write", "pack", "--to", "stick.img"],
        3,
        "wrong-digest",
    );
    assert!(!dir.path().join("stick.img").exists());
}

#[test]
fn holes_of_an_image_stay_holes() {
    let dir = bench();
    write_archive(&dir.path().join("sparse.tar"), &vec![0; 32 << 20]);
    done(
        dir.path(),
        &[
            "create",
            "--fabric",
            "fab",
            "--out",
            "p2",
            "--nodes",
            "1",
            "--image",
            "s=sparse.tar",
        ],
    );
    done(dir.path(), &["verify", "p2"]);
    let blob = fs::read_dir(dir.path().join("p2/blobs/sha256"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let metadata = blob.metadata().unwrap();
    assert!(metadata.len() > 32 << 20);
    assert!(metadata.blocks() * 512 < 2 << 20, "{} blocks", metadata.blocks());
}
