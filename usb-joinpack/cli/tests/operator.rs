//! The operator's way, by the binary itself: a fabric, a pack, a stick; and every bad pack refused with its word.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_joinpack_format::{Outcome, Pack, Receipt, SecretKey, Timestamp};
use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_joinpack");

/// What a run left.
struct Run {
    code: i32,
    out: String,
    err: String,
}

impl Run {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {}{}", self.out, self.err))
    }
}

fn joinpack(dir: &Path, args: &[&str]) -> Run {
    let run = Command::new(BINARY)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Run {
        code: run.status.code().unwrap(),
        out: String::from_utf8(run.stdout).unwrap(),
        err: String::from_utf8(run.stderr).unwrap(),
    }
}

fn done(dir: &Path, args: &[&str]) -> Run {
    let run = joinpack(dir, args);
    assert_eq!(run.code, 0, "{args:?}: {}{}", run.out, run.err);
    run
}

fn ends(dir: &Path, args: &[&str], code: i32, word: &str) {
    let run = joinpack(dir, args);
    assert_eq!(run.code, code, "{args:?}: {}{}", run.out, run.err);
    assert!(
        run.err.contains(word),
        "{args:?} does not say `{word}`: {}",
        run.err
    );
}

/// An OCI archive in form: `layer` is its only blob.
fn write_archive(path: &Path, layer: &[u8]) {
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    for (name, content) in [
        ("oci-layout", &b"{\"imageLayoutVersion\":\"1.0.0\"}"[..]),
        ("index.json", b"{}"),
        ("blobs/sha256/00", layer),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.finish().unwrap();
}

/// A folder with a fabric `fab`, an image `web.tar` and a pack `pack`.
fn bench() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    done(dir.path(), &["fabric", "init", "fab", "--name", "shop"]);
    write_archive(&dir.path().join("web.tar"), &[7; 3 << 20]);
    done(
        dir.path(),
        &[
            "create",
            "--fabric",
            "fab",
            "--out",
            "pack",
            "--node",
            "till-1,mac=52:54:00:AA:00:01,address=10.0.0.5/24,gateway=10.0.0.1,dns=10.0.0.1",
            "--node",
            "till-2",
            "--peer",
            "10.0.0.5:7946",
            "--image",
            "web=web.tar",
            "--found",
            "--blank-disk",
            "--cell",
            "floor",
        ],
    );
    dir
}

#[test]
fn pack_says_what_the_operator_asked_for() {
    let dir = bench();
    let view = done(dir.path(), &["inspect", "pack", "-o", "json"]).json();
    assert_eq!(view["fabric_name"], "shop");
    assert_eq!(view["cell"], "floor");
    assert_eq!(view["nodes"][0]["mac"], "52:54:00:aa:00:01");
    assert_eq!(view["nodes"][0]["network"]["addresses"][0], "10.0.0.5/24");
    assert_eq!(view["nodes"][1]["name"], "till-2");
    assert_eq!(view["images"][0]["name"], "web");
    assert_eq!(
        view["images"][0]["size"],
        fs::metadata(dir.path().join("web.tar")).unwrap().len()
    );
    assert_eq!(
        (&view["found"], &view["blank_disk"]),
        (&Value::Bool(true), &Value::Bool(true))
    );
    let seconds = |key: &str| Timestamp::parse(view[key].as_str().unwrap()).unwrap().0;
    assert_eq!(seconds("expires") - seconds("issued"), 30 * 86_400);
    let words = done(dir.path(), &["inspect", "pack"]).out;
    for word in [
        "shop",
        "till-1",
        "10.0.0.5/24",
        "any machine",
        "10.0.0.5:7946",
        "found the cell alone",
    ] {
        assert!(words.contains(word), "{word} is missing in {words}");
    }
    assert!(
        done(dir.path(), &["inspect", "pack", "-o", "yaml"])
            .out
            .contains("cell: floor")
    );
}

#[test]
fn no_secret_is_shown() {
    let dir = bench();
    let text = fs::read(dir.path().join("pack/joinpack.json")).unwrap();
    let pack = Pack::parse(&text)
        .unwrap()
        .verify(None, Timestamp::EPOCH, None)
        .unwrap();
    for form in ["table", "json", "yaml"] {
        for command in ["inspect", "verify"] {
            let run = done(dir.path(), &[command, "pack", "-o", form]);
            for voucher in &pack.manifest().vouchers {
                let secret: String = serde_json::to_value(&voucher.one_time_key)
                    .unwrap()
                    .as_str()
                    .unwrap()
                    .to_owned();
                assert!(!run.out.contains(&secret));
            }
        }
    }
}

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
fn keys_are_private_and_never_overwritten() {
    let dir = bench();
    let fab = dir.path().join("fab");
    let mode = |name: &str| fs::metadata(fab.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("keys"), 0o700);
    for name in [
        "operator.json",
        "keys/root-1.json",
        "keys/root-3.json",
        "keys/enrolment.json",
        "keys/recovery.json",
    ] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    let before = fs::read(fab.join("operator.json")).unwrap();
    ends(
        dir.path(),
        &["fabric", "init", "fab", "--name", "other"],
        2,
        "not empty",
    );
    assert_eq!(fs::read(fab.join("operator.json")).unwrap(), before);
    fs::set_permissions(fab.join("keys/enrolment.json"), fs::Permissions::from_mode(0o644)).unwrap();
    ends(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "x", "--nodes", "1"],
        3,
        "chmod 600",
    );
}

#[test]
fn failed_fabric_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    ends(
        dir.path(),
        &["fabric", "init", "fab", "--name", "Not A Label"],
        2,
        "fabric name",
    );
    ends(
        dir.path(),
        &["fabric", "init", "fab", "--name", "shop", "--root-threshold", "4"],
        2,
        "threshold",
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn operator_context_opens_with_the_operators_key() {
    let dir = bench();
    let text = fs::read(dir.path().join("fab/operator.json")).unwrap();
    let context = beemesh_joinpack_format::OperatorContext::parse(&text).unwrap();
    let info: Value = serde_json::from_slice(&fs::read(dir.path().join("fab/fabric.json")).unwrap()).unwrap();
    assert_eq!(context.chain().unwrap().fabric_id().as_str(), info["fabric"]);
}

#[test]
fn plan_file_says_the_same_as_flags() {
    let dir = bench();
    fs::create_dir(dir.path().join("plans")).unwrap();
    fs::rename(dir.path().join("web.tar"), dir.path().join("plans/web.tar")).unwrap();
    let plan = r#"
        cell = "floor"
        expires = "12h"
        found = true
        peers = ["10.0.0.5:7946"]
        roster-size = 5
        [[node]]
        name = "till-1"
        mac = "52:54:00:AA:00:01"
        addresses = ["10.0.0.5/24"]
        gateway = "10.0.0.1"
        [[image]]
        name = "web"
        archive = "web.tar"
    "#;
    fs::write(dir.path().join("plans/floor.toml"), plan).unwrap();
    let args = [
        "create",
        "--fabric",
        "fab",
        "--out",
        "p2",
        "--from",
        "plans/floor.toml",
        "--node",
        "till-2",
        "-o",
        "json",
    ];
    let planned = done(dir.path(), &[&args[..], &["--dry-run"]].concat()).json();
    assert_eq!(planned["result"], "would-create");
    assert!(!dir.path().join("p2").exists());
    let view = done(dir.path(), &args).json();
    assert_eq!(
        (&view["roster_size"], &view["nodes"][1]["name"]),
        (&5.into(), &"till-2".into())
    );
    done(dir.path(), &["verify", "p2"]);
    fs::write(
        dir.path().join("plans/floor.toml"),
        plan.replace("gateway", "gatewey"),
    )
    .unwrap();
    ends(
        dir.path(),
        &[
            "create",
            "--fabric",
            "fab",
            "--out",
            "p3",
            "--from",
            "plans/floor.toml",
        ],
        2,
        "gatewey",
    );
}

#[test]
fn mistakes_of_the_operator_are_named() {
    let dir = bench();
    let create = |args: &[&str], word: &str| {
        let all = [&["create", "--fabric", "fab", "--out", "bad"], args].concat();
        ends(dir.path(), &all, 2, word);
        assert!(!dir.path().join("bad").exists(), "{args:?}");
    };
    create(&[], "names no node");
    create(&["--node", "till", "--node", "till"], "`till` twice");
    create(
        &[
            "--node",
            "a,mac=52:54:00:00:00:01",
            "--node",
            "b,mac=52:54:00:00:00:01",
        ],
        "MAC address",
    );
    create(&["--nodes", "513"], "513");
    create(&["--nodes", "1", "--peer", "example.org:1"], "`example.org:1`");
    create(&["--nodes", "1", "--expires", "soon"], "`soon`");
    create(&["--nodes", "1", "--image", "web=missing.tar"], "missing.tar");
    create(&["--nodes", "1", "--image", "../../etc=web.tar"], "../../etc");
    create(&["--node", "a,address=10.0.0.300/24"], "10.0.0.300");
    fs::write(dir.path().join("noise.tar"), [1; 2048]).unwrap();
    create(
        &["--nodes", "1", "--image", "web=noise.tar"],
        "not an OCI archive",
    );
    ends(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "pack", "--nodes", "1"],
        2,
        "holds a pack already",
    );
    ends(
        dir.path(),
        &["write", "pack", "--to", "pack"],
        2,
        "the pack itself",
    );
    ends(
        dir.path(),
        &["write", "pack", "--to", "web.tar"],
        2,
        "not overwritten",
    );
    ends(dir.path(), &["verify", "nowhere"], 2, "nowhere");
    ends(dir.path(), &["verify", "fab"], 2, "joinpack.json");
    assert_eq!(joinpack(dir.path(), &["no-such-command"]).code, 2);
}

#[test]
fn every_bad_vector_is_refused_with_its_word() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors");
    let mut seen = 0;
    for entry in fs::read_dir(&vectors).unwrap() {
        let dir = entry.unwrap().path();
        let vector: Value = serde_json::from_slice(&fs::read(dir.join("vector.json")).unwrap()).unwrap();
        let expect = vector["expect"].as_str().unwrap();
        let mut args = vec![
            "verify",
            "pack",
            "-o",
            "json",
            "--at",
            vector["floor"].as_str().unwrap(),
        ];
        if vector["trusted"] == true {
            args.extend(["--roots", "roots.json"]);
        }
        if let Some(serial) = vector["last_serial"].as_str() {
            args.extend(["--applied", serial]);
        }
        if vector["pad_to"].is_number() {
            continue;
        }
        seen += 1;
        let run = joinpack(&dir, &args);
        let name = dir.display();
        if expect == "accepted" {
            assert_eq!(
                (run.code, &run.json()["result"]),
                (0, &"accepted".into()),
                "{name}: {}",
                run.err
            );
        } else {
            assert_eq!(
                (run.code, &run.json()["code"]),
                (3, &expect.into()),
                "{name}: {}",
                run.err
            );
            assert!(
                run.err.contains(&format!("refused ({expect}): ")),
                "{name}: {}",
                run.err
            );
        }
    }
    assert!(seen > 40, "only {seen} vectors");
}

#[test]
fn manifest_of_two_gigabytes_is_refused_without_reading_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("pack")).unwrap();
    let file = File::create(dir.path().join("pack/joinpack.json")).unwrap();
    file.set_len(2 << 30).unwrap();
    // With 256 MiB of address space, reading it whole would fail otherwise than with a refusal.
    let run = Command::new("sh")
        .args(["-c", "ulimit -v 262144; exec \"$0\" verify pack", BINARY])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(3), "{text}");
    assert!(text.contains("too-large"), "{text}");
}

#[test]
fn file_that_is_no_plain_file_is_not_opened() {
    let dir = bench();
    let manifest = dir.path().join("pack/joinpack.json");
    fs::rename(&manifest, dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", &manifest).unwrap();
    ends(dir.path(), &["verify", "pack"], 2, "not a plain file");
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

#[test]
fn receipts_are_listed_and_forged_ones_refused() {
    let dir = bench();
    let key = SecretKey::from_bytes([9; 32]);
    let peer = beemesh_ids::PeerId::from_ed25519(key.public().as_bytes());
    let receipt = |outcome| Receipt {
        node: Some("till-1".parse().unwrap()),
        peer_id: Some(peer.clone()),
        fabric: None,
        serial: None,
        boot_id: "boot".into(),
        at: Timestamp(1_767_225_600),
        outcome,
    };
    let folder = dir.path().join("pack/receipts");
    fs::create_dir(&folder).unwrap();
    let refused = receipt(Outcome::Refused {
        code: "expired".into(),
        message: "it \u{1b}[2Jexpired".into(),
    });
    fs::write(
        folder.join("a.json"),
        receipt(Outcome::Applied)
            .to_envelope(Some(&key))
            .unwrap()
            .to_json(),
    )
    .unwrap();
    fs::write(
        folder.join("b.json"),
        refused.to_envelope(None).unwrap().to_json(),
    )
    .unwrap();
    let views = done(dir.path(), &["receipts", "pack", "-o", "json"]).json();
    assert_eq!(
        (&views[0]["result"], &views[0]["signed"]),
        (&"applied".into(), &true.into())
    );
    assert_eq!(
        (&views[1]["code"], &views[1]["signed"]),
        (&"expired".into(), &false.into())
    );
    assert!(!done(dir.path(), &["receipts", "pack"]).out.contains('\u{1b}'));
    // Receipts do not spoil the pack, and a new pack does not remove them.
    done(dir.path(), &["verify", "pack"]);
    done(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "next", "--nodes", "1"],
    );
    done(dir.path(), &["write", "next", "--to", "pack"]);
    assert!(folder.join("a.json").exists());
    let thief = SecretKey::from_bytes([8; 32]);
    fs::write(
        folder.join("c.json"),
        receipt(Outcome::Applied)
            .to_envelope(Some(&thief))
            .unwrap()
            .to_json(),
    )
    .unwrap();
    ends(dir.path(), &["receipts", "pack"], 3, "unknown-key");
}

#[test]
fn newer_pack_has_a_greater_serial() {
    let dir = bench();
    let serial = |pack: &str| {
        done(dir.path(), &["inspect", pack, "-o", "json"]).json()["serial"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    done(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "second", "--nodes", "1"],
    );
    let (first, second) = (serial("pack"), serial("second"));
    assert!(second > first);
    ends(
        dir.path(),
        &["verify", "pack", "--applied", &second],
        3,
        "older-than-applied",
    );
    // Even when the operator's clock went back since.
    fs::write(dir.path().join("fab/last-serial"), "7ZZZZZZZZZZZZZZZZZZZZZZZZY\n").unwrap();
    done(
        dir.path(),
        &["create", "--fabric", "fab", "--out", "third", "--nodes", "1"],
    );
    assert_eq!(serial("third"), "7ZZZZZZZZZZZZZZZZZZZZZZZZZ");
}
