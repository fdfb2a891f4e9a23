//! Sticks, checked with programs that are not ours.

use super::*;
use std::process::Command;

fn stick(dir: &Path) -> StickImage {
    let folder = dir.join("pack");
    std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    std::fs::write(folder.join("joinpack.json"), "{\"payload\":1}").unwrap();
    std::fs::write(
        folder.join("blobs/sha256/0123456789abcdef0123456789abcdef"),
        vec![0xa5; 300_000],
    )
    .unwrap();
    StickImage::from_folder(&dir.join("stick.img"), 64, &folder).unwrap()
}

#[test]
fn what_goes_onto_a_stick_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let stick = stick(dir.path());
    let blob = "blobs/sha256/0123456789abcdef0123456789abcdef";
    assert_eq!(stick.files().unwrap(), [blob, "joinpack.json"]);
    assert_eq!(stick.read(blob).unwrap(), vec![0xa5; 300_000]);
    stick.write("receipts/n1/receipt.json", b"{}").unwrap();
    stick.write("receipts/n1/receipt.json", b"[]").unwrap();
    let again = StickImage::open(stick.path()).unwrap();
    assert_eq!(again.read("receipts/n1/receipt.json").unwrap(), b"[]");
    again.remove("joinpack.json").unwrap();
    assert!(again.read("joinpack.json").is_err());
}

#[test]
fn one_bit_is_flipped_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let good = stick(dir.path());
    let bad = good.copy_to(&dir.path().join("bad.img")).unwrap();
    bad.flip_bit("joinpack.json", 3, 4).unwrap();
    let (before, after) = (
        std::fs::read(good.path()).unwrap(),
        std::fs::read(bad.path()).unwrap(),
    );
    let content = bad.read("joinpack.json").unwrap();
    assert_eq!(content[3], b"{\"payload\":1}"[3] ^ 16);
    assert_eq!(content.len(), 13);
    let changed = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    // The byte itself, and perhaps the file's time stamps.
    assert!((1..=8).contains(&changed), "{changed} bytes differ");
    assert!(
        bad.flip_bit("joinpack.json", 13, 0).is_err(),
        "there is no byte 13"
    );
}

#[test]
fn other_programs_agree_with_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let stick = stick(dir.path());
    let sgdisk = |args: &[&str]| {
        let output = Command::new("/usr/sbin/sgdisk")
            .args(args)
            .arg(stick.path())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(
        sgdisk(&["-v"]).contains("No problems found"),
        "{}",
        sgdisk(&["-v"])
    );
    let partition = sgdisk(&["-i", "1"]);
    assert!(partition.contains("Partition name: 'BEEMESHJOIN'"), "{partition}");
    assert!(partition.contains("First sector: 2048 "), "{partition}");
    let at = format!("{}@@1M", stick.path().display());
    let text = Command::new("mtype")
        .args(["-i", &at, "::joinpack.json"])
        .output()
        .unwrap();
    assert_eq!(text.stdout, b"{\"payload\":1}");
    let label = Command::new("mlabel")
        .args(["-s", "-i", &at, "::"])
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&label.stdout).contains(LABEL),
        "{label:?}"
    );
    let whole = std::fs::read(stick.path()).unwrap();
    let partition = dir.path().join("partition");
    std::fs::write(&partition, &whole[1 << 20..whole.len() - (1 << 20)]).unwrap();
    let check = Command::new("/usr/sbin/fsck.fat")
        .arg("-n")
        .arg(&partition)
        .output()
        .unwrap();
    assert!(
        check.status.success(),
        "{}",
        String::from_utf8_lossy(&check.stdout)
    );
}

#[test]
fn a_folder_that_does_not_fit_and_a_foreign_image_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("big");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("big"), vec![0; 10 << 20]).unwrap();
    assert!(StickImage::from_folder(&dir.path().join("s.img"), 8, &folder).is_err());
    assert!(
        StickImage::from_folder(&dir.path().join("s.img"), 1, &folder)
            .unwrap_err()
            .to_string()
            .contains("too small")
    );
    let foreign = dir.path().join("foreign.img");
    std::fs::write(&foreign, vec![0; 1 << 20]).unwrap();
    assert!(StickImage::open(&foreign).is_err());
}
