//! Imports of sound and of broken images, each broken one named by its defect. Needs root (whiteouts are device nodes).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_agent_runtime::fixture::{Archive, Compression, Defect, Layer};
use beemesh_agent_runtime::{ImageError, ImageId, ImageRefusal, ImageStore, Limits};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::EntryType;
use xattr::FileExt;

struct Place {
    dir: tempfile::TempDir,
    store: ImageStore,
}

fn place_with(limits: Limits) -> Place {
    assert!(
        nix::unistd::geteuid().is_root(),
        "run this test as root: it makes whiteouts"
    );
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images"), limits).unwrap();
    Place { dir, store }
}

fn place() -> Place {
    place_with(Limits::default())
}

impl Place {
    fn import(&self, archive: Archive) -> Result<ImageId, ImageError> {
        self.store
            .import_archive(archive.build().unwrap().as_slice(), Some("test/image:1"))
    }

    fn layer(&self, archive: Archive) -> PathBuf {
        let id = self.import(archive).unwrap();
        self.store.load(&id).unwrap().layers.pop().unwrap()
    }

    /// The refusal; and nothing of the image is left.
    fn refused(&self, archive: Archive) -> ImageRefusal {
        let refusal = self
            .import(archive)
            .unwrap_err()
            .refusal()
            .expect("a refusal, not a failure")
            .clone();
        assert!(self.store.list().is_empty(), "a refused image is listed");
        assert!(matches!(
            self.store.resolve("test/image:1"),
            Err(ImageError::NotFound { .. })
        ));
        let layers = self.dir.path().join("images/layers");
        assert_eq!(
            fs::read_dir(layers).unwrap().count(),
            0,
            "a refused layer is in place"
        );
        let blobs = self.dir.path().join("images/blobs/sha256");
        assert_eq!(fs::read_dir(blobs).unwrap().count(), 0, "a refused blob is kept");
        assert_eq!(
            fs::read_dir(self.dir.path().join("images/tmp")).unwrap().count(),
            0,
            "a staging directory is left"
        );
        refusal
    }
}

fn of(layer: Layer) -> Archive {
    Archive::default().layer(layer).unwrap()
}

fn hello() -> Layer {
    Layer::default()
        .dir("etc/")
        .unwrap()
        .file("etc/hello", 0o640, b"hello\n")
        .unwrap()
}

#[test]
fn each_compression_gives_the_same_files() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let place = place();
        let layer = place.layer(of(hello()).compression(compression));
        assert_eq!(
            fs::read(layer.join("etc/hello")).unwrap(),
            b"hello\n",
            "{compression:?}"
        );
        let meta = fs::metadata(layer.join("etc/hello")).unwrap();
        assert_eq!(
            (meta.permissions().mode() & 0o7777, meta.mtime()),
            (0o640, 1_700_000_000)
        );
    }
}

#[test]
fn links_modes_attributes_and_long_names_are_kept() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let layer = Layer::default()
        .file("bin/su", 0o4755, b"su")
        .unwrap()
        .hard_link("bin/other", "bin/su")
        .unwrap()
        .symlink("bin/absolute", "/etc/passwd")
        .unwrap()
        .symlink("bin/outside", "../../../etc/passwd")
        .unwrap()
        .pax(&[("path", long.as_bytes()), ("SCHILY.xattr.user.note", b"kept")])
        .unwrap()
        .file("short", 0o600, b"x")
        .unwrap();
    let place = place();
    let at = place.layer(of(layer));
    assert_eq!(fs::metadata(at.join("bin/su")).unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(
        fs::metadata(at.join("bin/su")).unwrap().ino(),
        fs::metadata(at.join("bin/other")).unwrap().ino()
    );
    assert_eq!(
        fs::read_link(at.join("bin/absolute")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(
        fs::read_link(at.join("bin/outside")).unwrap(),
        Path::new("../../../etc/passwd")
    );
    let file = fs::File::open(at.join(&long)).unwrap();
    assert_eq!(
        file.get_xattr("user.note").unwrap().as_deref(),
        Some(&b"kept"[..])
    );
    assert!(!at.join("short").exists());
}

#[test]
fn whiteouts_become_overlays_own() {
    let layer = Layer::default()
        .dir("etc/")
        .unwrap()
        .file("etc/.wh.gone", 0o644, b"")
        .unwrap()
        .dir("srv/")
        .unwrap()
        .file("srv/.wh..wh..opq", 0o644, b"")
        .unwrap()
        .file("srv/.wh..wh.plnk", 0o644, b"")
        .unwrap();
    let place = place();
    let at = place.layer(of(layer));
    let gone = fs::symlink_metadata(at.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = fs::File::open(at.join("srv"))
        .unwrap()
        .get_xattr("trusted.overlay.opaque")
        .unwrap();
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
    assert_eq!(fs::read_dir(at.join("srv")).unwrap().count(), 0);
}

#[test]
fn wrong_digest_is_refused() {
    let refusal = place().refused(of(hello()).defect(Defect::FlippedBit));
    assert!(matches!(refusal, ImageRefusal::WrongDigest { .. }), "{refusal}");
}

#[test]
fn missing_blob_is_refused() {
    let refusal = place().refused(of(hello()).defect(Defect::MissingBlob));
    assert!(matches!(refusal, ImageRefusal::MissingBlob { .. }), "{refusal}");
}

#[test]
fn wrong_size_is_refused() {
    let refusal = place().refused(of(hello()).defect(Defect::ShortDescriptor));
    assert!(matches!(refusal, ImageRefusal::WrongSize { .. }), "{refusal}");
}

#[test]
fn wrong_diff_id_is_refused() {
    let refusal = place().refused(of(hello()).defect(Defect::WrongDiffId));
    assert!(matches!(refusal, ImageRefusal::WrongDiffId { .. }), "{refusal}");
}

#[test]
fn other_platform_and_missing_layout_file_are_refused() {
    assert_eq!(
        place().refused(of(hello()).defect(Defect::OtherPlatform)),
        ImageRefusal::NoPlatform
    );
    let refusal = place().refused(of(hello()).defect(Defect::NoLayoutFile));
    assert!(matches!(refusal, ImageRefusal::Malformed { .. }), "{refusal}");
}

#[test]
fn what_is_no_archive_is_refused() {
    for garbage in [&b""[..], &[0; 2048], &[b'x'; 5000], b"{}"] {
        let place = place();
        let err = place.store.import_archive(garbage, Some("x")).unwrap_err();
        assert!(
            matches!(err.refusal(), Some(ImageRefusal::Malformed { .. })),
            "{err}"
        );
    }
}

#[test]
fn a_truncated_archive_is_refused() {
    let whole = of(hello()).build().unwrap();
    for length in [600, whole.len() / 2, whole.len() - 2000] {
        let place = place();
        let err = place
            .store
            .import_archive(&whole[..length], Some("x"))
            .unwrap_err();
        assert!(err.refusal().is_some(), "cut at {length}: {err}");
    }
}

#[test]
fn dot_dot_is_refused() {
    for path in ["../outside", "etc/../../outside", "/../outside", "a/.."] {
        let place = place();
        let refusal = place.refused(of(Layer::default().file(path, 0o644, b"x").unwrap()));
        assert!(
            matches!(refusal, ImageRefusal::PathEscapes { .. }),
            "{path}: {refusal}"
        );
        assert!(
            !place.dir.path().join("images/outside").exists() && !place.dir.path().join("outside").exists()
        );
    }
    let long = Layer::default()
        .pax(&[("path", b"a/../../outside")])
        .unwrap()
        .file("x", 0o644, b"x")
        .unwrap();
    assert!(matches!(
        place().refused(of(long)),
        ImageRefusal::PathEscapes { .. }
    ));
}

#[test]
fn absolute_names_stay_inside() {
    let place = place();
    let at = place.layer(of(Layer::default().file("/etc/inside", 0o644, b"x").unwrap()));
    assert!(at.join("etc/inside").exists() && !Path::new("/etc/inside").exists());
}

#[test]
fn writing_through_a_symlink_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let base = || Layer::default().symlink("link", target).unwrap();
    let up = || {
        Layer::default()
            .dir("a/")
            .unwrap()
            .symlink("a/link", "../../..")
            .unwrap()
    };
    for layer in [
        base().file("link/written", 0o644, b"x").unwrap(),
        base().dir("link/made/").unwrap(),
        base().symlink("link/linked", "x").unwrap(),
        base().file("link/deep/er", 0o644, b"x").unwrap(),
        base().file("link/.wh.gone", 0o644, b"").unwrap(),
        base().file("link/.wh..wh..opq", 0o644, b"").unwrap(),
        up().file("a/link/written", 0o644, b"x").unwrap(),
        Layer::default()
            .dir("real/")
            .unwrap()
            .symlink("in", "real")
            .unwrap()
            .file("in/x", 0o644, b"x")
            .unwrap(),
    ] {
        let refusal = place().refused(of(layer));
        assert!(
            matches!(refusal, ImageRefusal::ThroughSymlink { .. }),
            "{refusal}"
        );
    }
    assert_eq!(
        fs::read_dir(outside.path()).unwrap().count(),
        0,
        "something was written outside"
    );
}

#[test]
fn a_file_in_the_place_of_a_symlink_replaces_it() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let layer = Layer::default()
        .symlink("link", victim.to_str().unwrap())
        .unwrap()
        .file("link", 0o644, b"new")
        .unwrap();
    let place = place();
    let at = place.layer(of(layer));
    assert_eq!(fs::read(at.join("link")).unwrap(), b"new");
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
}

#[test]
fn a_directory_in_the_place_of_a_symlink_changes_nothing_behind_it() {
    let outside = tempfile::tempdir().unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let layer = Layer::default()
        .symlink("link", outside.path().to_str().unwrap())
        .unwrap()
        .dir("link/")
        .unwrap();
    let place = place();
    let at = place.layer(of(layer));
    assert!(fs::symlink_metadata(at.join("link")).unwrap().is_dir());
    assert_eq!(fs::metadata(outside.path()).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn hard_links_out_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let secret = outside.path().join("secret").display().to_string();
    let through = Layer::default()
        .symlink("link", outside.path().to_str().unwrap())
        .unwrap();
    for layer in [
        Layer::default().hard_link("x", "../../../etc/passwd").unwrap(),
        Layer::default().hard_link("x", &secret).unwrap(),
        Layer::default().hard_link("x", "/etc/passwd").unwrap(),
        through.hard_link("x", "link/secret").unwrap(),
        Layer::default().hard_link("x", "nothing").unwrap(),
    ] {
        let refusal = place().refused(of(layer));
        assert!(matches!(refusal, ImageRefusal::LinkEscapes { .. }), "{refusal}");
    }
    assert_eq!(fs::metadata(outside.path().join("secret")).unwrap().nlink(), 1);
}

#[test]
fn device_nodes_are_refused() {
    for kind in [EntryType::Char, EntryType::Block] {
        let refusal = place().refused(of(Layer::default()
            .member(kind, "dev/sda", "", 0o660, b"")
            .unwrap()));
        assert_eq!(
            refusal,
            ImageRefusal::DeviceNode {
                path: "dev/sda".into()
            }
        );
    }
}

#[test]
fn attributes_of_the_overlay_are_refused() {
    let layer = Layer::default()
        .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")])
        .unwrap()
        .dir("x/")
        .unwrap();
    assert!(matches!(
        place().refused(of(layer)),
        ImageRefusal::ForbiddenAttribute { .. }
    ));
}

#[test]
fn unknown_members_and_conflicts_are_refused() {
    let sparse = Layer::default()
        .member(EntryType::GNUSparse, "x", "", 0o644, b"")
        .unwrap();
    assert!(matches!(
        place().refused(of(sparse)),
        ImageRefusal::UnsupportedMember { .. }
    ));
    let conflict = Layer::default().dir("x/").unwrap().file("x", 0o644, b"").unwrap();
    assert!(matches!(
        place().refused(of(conflict)),
        ImageRefusal::Conflict { .. }
    ));
    let below = Layer::default()
        .file("x", 0o644, b"")
        .unwrap()
        .file("x/y", 0o644, b"")
        .unwrap();
    assert!(matches!(
        place().refused(of(below)),
        ImageRefusal::Conflict { .. }
    ));
    for name in [".wh.", ".wh...", "a/.wh..."] {
        let odd = Layer::default().file(name, 0o644, b"").unwrap();
        assert!(
            matches!(place().refused(of(odd)), ImageRefusal::PathEscapes { .. }),
            "{name}"
        );
    }
}

#[test]
fn a_bomb_is_refused_at_the_bound() {
    let limits = Limits {
        unpacked: 4 << 20,
        ..Limits::default()
    };
    for compression in [Compression::Gzip, Compression::Zstd] {
        let bomb = Layer::default().file("zeros", 0o644, &vec![0; 64 << 20]).unwrap();
        let archive = of(bomb).compression(compression);
        let refusal = place_with(limits).refused(archive);
        assert!(
            matches!(refusal, ImageRefusal::TooLarge { limit: 4_194_304, .. }),
            "{refusal}"
        );
    }
}

#[test]
fn too_many_files_are_refused() {
    let limits = Limits {
        files: 100,
        ..Limits::default()
    };
    let layer = |count| {
        (0..count).fold(Layer::default(), |layer, n| {
            layer.file(&format!("f{n}"), 0o644, b"").unwrap()
        })
    };
    assert!(place_with(limits).import(of(layer(100))).is_ok());
    let refusal = place_with(limits).refused(of(layer(101)));
    assert!(
        matches!(refusal, ImageRefusal::TooLarge { limit: 100, .. }),
        "{refusal}"
    );
    let two = Archive::default()
        .layer(layer(60))
        .unwrap()
        .layer(layer(61))
        .unwrap();
    let err = place_with(limits).import(two).unwrap_err();
    assert!(
        matches!(err.refusal(), Some(ImageRefusal::TooLarge { .. })),
        "the bound is the image's: {err}"
    );
}

#[test]
fn an_endless_name_is_refused_in_bounded_memory() {
    let layer = Layer::default()
        .member(
            EntryType::GNULongName,
            "././@LongLink",
            "",
            0o644,
            &vec![b'a'; 8 << 20],
        )
        .unwrap();
    let refusal = place().refused(of(layer.file("x", 0o644, b"").unwrap()));
    assert!(matches!(refusal, ImageRefusal::TooLarge { .. }), "{refusal}");
}

#[test]
fn a_size_told_in_two_ways_is_refused() {
    let layer = Layer::default()
        .pax(&[("size", b"4096")])
        .unwrap()
        .file("x", 0o644, b"12")
        .unwrap();
    assert!(matches!(
        place().refused(of(layer)),
        ImageRefusal::Malformed { .. }
    ));
}

#[test]
fn an_archive_over_the_bound_is_refused() {
    let limits = Limits {
        blobs: 2000,
        ..Limits::default()
    };
    let noise: Vec<u8> = (0..6000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let refusal = place_with(limits).refused(of(Layer::default().file("x", 0o644, &noise).unwrap()));
    assert!(
        matches!(refusal, ImageRefusal::TooLarge { limit: 2000, .. }),
        "{refusal}"
    );
}

#[test]
fn names_digests_removal_and_collection() {
    let place = place();
    let store = &place.store;
    let one = store
        .import_archive(of(hello()).build().unwrap().as_slice(), Some("web"))
        .unwrap();
    let other = Layer::default().file("other", 0o644, b"o").unwrap();
    let two = store
        .import_archive(of(other).name("two:2").build().unwrap().as_slice(), None)
        .unwrap();
    assert_eq!(store.resolve("web:latest").unwrap(), one);
    assert_eq!(store.resolve("two:2").unwrap(), two);
    assert_eq!(store.resolve(&one.to_string()).unwrap(), one);
    assert!(matches!(store.resolve("web:2"), Err(ImageError::NotFound { .. })));
    let again = ImageStore::open(&place.dir.path().join("images"), Limits::default()).unwrap();
    assert_eq!(again.list(), store.list());
    assert_eq!(
        store
            .list()
            .iter()
            .map(|entry| entry.names.clone())
            .collect::<BTreeSet<_>>()
            .len(),
        2
    );

    store.remove("web").unwrap();
    assert_eq!(
        store.gc(&BTreeSet::from([one])).unwrap(),
        0,
        "a running pod keeps its image"
    );
    assert!(store.load(&one).unwrap().layers[0].exists());
    assert_eq!(
        store.gc(&BTreeSet::new()).unwrap(),
        4,
        "manifest, configuration, blob and layer"
    );
    assert!(store.load(&one).is_err() && store.load(&two).unwrap().layers[0].exists());
    store.remove(&two.to_string()).unwrap();
    assert!(matches!(store.resolve("two:2"), Err(ImageError::NotFound { .. })));
}

#[test]
fn an_image_without_a_name_is_refused() {
    let err = place()
        .store
        .import_archive(of(hello()).build().unwrap().as_slice(), None)
        .unwrap_err();
    assert_eq!(err.refusal(), Some(&ImageRefusal::Nameless));
}

#[test]
fn an_interrupted_import_leaves_nothing_and_can_be_repeated() {
    let place = place();
    let tmp = place.dir.path().join("images/tmp/import/layer");
    fs::create_dir_all(&tmp).unwrap();
    fs::write(tmp.join("half"), "x").unwrap();
    let store = ImageStore::open(&place.dir.path().join("images"), Limits::default()).unwrap();
    assert!(!tmp.exists() && store.list().is_empty());
    store
        .import_archive(of(hello()).build().unwrap().as_slice(), Some("x"))
        .unwrap();
}

/// Two independent programs on both ends: skopeo reads our archive and writes a layout, umoci unpacks it, and what this store
/// makes of the layout is what umoci makes of it.
#[test]
fn skopeo_and_umoci_agree_with_the_store() {
    let place = place();
    let dir = place.dir.path();
    let run = |program: &str, words: &[&str]| {
        let done = Command::new(program)
            .args(words)
            .output()
            .unwrap_or_else(|err| panic!("`{program}` is needed: {err}"));
        assert!(
            done.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        done.stdout
    };
    let layer = hello()
        .symlink("etc/link", "hello")
        .unwrap()
        .hard_link("etc/hard", "etc/hello")
        .unwrap();
    let archive = Archive::default()
        .layer(layer)
        .unwrap()
        .name("v1")
        .build()
        .unwrap();
    let (file, layout, bundle) = (dir.join("a.tar"), dir.join("layout"), dir.join("bundle"));
    fs::write(&file, &archive).unwrap();
    let (file, to) = (
        format!("oci-archive:{}:v1", file.display()),
        format!("oci:{}:v1", layout.display()),
    );
    run(
        "skopeo",
        &["--insecure-policy", "copy", "--preserve-digests", &file, &to],
    );

    let id = place.store.import_layout(&layout, Some("site/web:v1")).unwrap();
    let direct = place
        .store
        .import_archive(archive.as_slice(), Some("direct"))
        .unwrap();
    assert_eq!(id, direct, "skopeo kept the digests");
    let told = run("skopeo", &["inspect", "--format", "{{.Digest}}", &to]);
    assert_eq!(String::from_utf8_lossy(&told).trim(), id.to_string());

    let image = format!("{}:v1", layout.display());
    run("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    let ours = place.store.load(&id).unwrap().layers.pop().unwrap();
    assert_eq!(tree(&ours), tree(&bundle.join("rootfs")));
}

/// Path, type and mode, owner, size, time and link target of everything below `top`.
fn tree(top: &Path) -> Vec<String> {
    let listed = Command::new("find")
        .args([
            top.to_str().unwrap(),
            "-mindepth",
            "1",
            "-printf",
            "%P %M %U:%G %s %n %T@ %l\\n",
        ])
        .output()
        .unwrap();
    let mut lines: Vec<String> = String::from_utf8(listed.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    // A directory's size is the file system's business.
    lines.retain(|line| !line.contains(" d"));
    assert!(lines.len() >= 3, "{lines:?}");
    lines
}
