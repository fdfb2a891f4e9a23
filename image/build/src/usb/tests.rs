//! The image as other programs see it: fsck.fat, mtools and the gpt crate's reader.

use super::*;
use beemesh_image_disk::{UsbSizes, plan_usb};
use std::fs;

fn image(path: &Path, content: &[u8]) -> DiskPlan {
    let plan = plan_usb(
        UsbSizes {
            esp: 64 << 20,
            join: 64 << 20,
        },
        &[7; 32],
    )
    .unwrap();
    let mut esp = Tree::default();
    let source = path.with_extension("efi");
    fs::write(&source, content).unwrap();
    esp.copy("EFI/Linux/beemesh_0.1.0.efi", 0o644, &source).unwrap();
    esp.text("loader/loader.conf", "timeout 0\n").unwrap();
    File::create_new(path).unwrap();
    write(path, &plan, &esp, 1_700_000_000).unwrap();
    plan
}

fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("`{program}` is installed: {e}"));
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
    output.stdout
}

#[test]
fn the_same_content_gives_the_same_sparse_image() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    let content = vec![0xa5; 3 << 20];
    image(&one, &content);
    image(&other, &content);
    assert!(
        fs::read(&one).unwrap() == fs::read(&other).unwrap(),
        "the images differ"
    );
    let used = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&one).unwrap()) * 512;
    assert!(used < 16 << 20, "{used} bytes are allocated");
}

#[test]
fn fsck_and_mtools_accept_both_file_systems() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let content: Vec<u8> = (0..5_000_000u32).map(|i| (i % 253) as u8).collect();
    let plan = image(&path, &content);
    let bytes = fs::read(&path).unwrap();
    for partition in &plan.partitions {
        let part = folder.path().join(&partition.name);
        let start = partition.offset() as usize;
        fs::write(&part, &bytes[start..start + partition.size() as usize]).unwrap();
        let part = part.to_str().unwrap();
        run("/usr/sbin/fsck.fat", &["-n", part]);
        let label = String::from_utf8(run("mlabel", &["-s", "-i", part, "::"])).unwrap();
        assert!(label.contains(&partition.name), "{label}");
    }
    let esp = folder.path().join("BEEMESH-ESP");
    let read = run(
        "mtype",
        &["-i", esp.to_str().unwrap(), "::/EFI/Linux/beemesh_0.1.0.efi"],
    );
    assert!(read == content, "mtools reads another content");
}

#[test]
fn the_table_is_read_back_from_either_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let plan = image(&path, b"uki");
    let check = || {
        let table = gpt::GptConfig::new().open(&path).unwrap();
        assert_eq!(*table.guid(), plan.guid);
        for partition in &plan.partitions {
            let entry = &table.partitions()[&partition.number];
            assert_eq!(
                (entry.first_lba, entry.last_lba),
                (partition.first_lba, partition.last_lba)
            );
            assert_eq!((&entry.name, entry.part_guid), (&partition.name, partition.guid));
        }
    };
    check();
    let file = File::options().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 512], 512).unwrap();
    check();
}
