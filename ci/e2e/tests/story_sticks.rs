//! One box, many sticks: every bad one is refused in words, none leaves anything behind, and the good one is taken a
//! moment later without a reboot, in a time that is measured. What the box runs is not touched by bad sticks. A second box has no
//! disk: after a power cut its TPM makes it the same member again, and with another TPM it is a stranger. What the good stick brings
//! home proves the visit without a network: a member's receipt, what it booted, and its log for the operator alone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_agent_runtime::fixture::{Archive, Defect, Layer};
use beemesh_ci_e2e::hostile::Hostile;
use beemesh_ci_e2e::site::{Serving, wait_until};
use beemesh_ci_e2e::{Binaries, Site, SiteOptions, nginx};
use beemesh_ci_testkit::{Mark, Stick, StickImage};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const BOOT: Duration = Duration::from_secs(180);
const REACTION: Duration = Duration::from_secs(45);

/// A pack on a stick of its own, with a name for the machine's USB port.
struct Bad {
    id: &'static str,
    image: PathBuf,
    /// The word of the refusal.
    word: &'static str,
}

/// Logs lie beside receipts.
fn is_receipt(name: &str) -> bool {
    name.starts_with("receipts/") && name.ends_with(".json")
}

fn vector(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../usb-joinpack/vectors")
        .join(name)
        .join("pack")
}

fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn stick_of(site: &Site, name: &str, folder: &Path, mebibytes: u64) -> PathBuf {
    let image = site.folder.join(format!("{name}.img"));
    StickImage::from_folder(&image, mebibytes, folder).unwrap();
    image
}

/// The site's own pack with one thing changed.
fn changed(site: &Site, name: &str, change: impl FnOnce(&Path)) -> PathBuf {
    let folder = site.folder.join(name);
    copy_folder(&site.folder.join("pack"), &folder);
    change(&folder);
    stick_of(site, &format!("stick-{name}"), &folder, 64)
}

fn first_blob(pack: &Path) -> PathBuf {
    fs::read_dir(pack.join("blobs/sha256"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
}

fn bad_sticks(site: &Site) -> Vec<Bad> {
    let of_vector = |id: &'static str, word: &'static str| {
        let image = stick_of(site, &format!("stick-{id}"), &vector(id), 16);
        Bad { id, image, word }
    };
    let flipped = changed(site, "flipped-bit", |_| {});
    let stick = StickImage::open(&flipped).unwrap();
    let mut bytes = stick.read("joinpack.json").unwrap();
    // In the signature, so that the word is always the same; the format's tests flip a bit of every byte.
    let signature = bytes
        .windows(7)
        .rposition(|window| window == b"\"sig\":\"")
        .unwrap()
        + 7;
    let even = |&at: &usize| bytes[at].is_ascii_alphanumeric() && (bytes[at] ^ 1).is_ascii_alphanumeric();
    let offset = (signature..).find(even);
    bytes[offset.unwrap()] ^= 1;
    stick.write("joinpack.json", &bytes).unwrap();
    let huge = site.folder.join("huge");
    fs::create_dir(&huge).unwrap();
    fs::File::create(huge.join("joinpack.json"))
        .unwrap()
        .set_len((2 << 30) - 1)
        .unwrap();
    let swapped = changed(site, "wrong-digest", |pack| {
        let blob = first_blob(pack);
        let mut bytes = fs::read(&blob).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&blob, bytes).unwrap();
    });
    let unlisted = changed(site, "unlisted-blob", |pack| {
        fs::write(
            pack.join("blobs/sha256").join("0".repeat(64)),
            b"not in the manifest",
        )
        .unwrap();
    });
    vec![
        Bad {
            id: "flipped",
            image: flipped,
            word: "bad-signature",
        },
        Bad {
            id: "unlisted",
            image: unlisted,
            word: "unlisted-blob",
        },
        Bad {
            id: "swapped",
            image: swapped,
            word: "wrong-digest",
        },
        of_vector("unknown-signer", "unknown-key"),
        of_vector("expired", "expired"),
        of_vector("path-escapes", "path-escapes"),
        Bad {
            id: "huge",
            image: stick_of(site, "stick-huge", &huge, 2304),
            word: "too-large",
        },
    ]
}

/// Puts the stick in, waits for the refusal on the console, pulls it, and reads the receipt.
fn refuse(site: &mut Site, bad: &Bad) {
    let mark = site.nodes[0].machine.console().mark();
    let machine = &mut site.nodes[0].machine;
    machine.plug(Stick::data(bad.id, &bad.image)).unwrap();
    let expected = format!("the join stick was refused ({})", bad.word);
    machine
        .console()
        .wait_for_after(mark, expected.as_str(), REACTION)
        .unwrap();
    let receipt = wait_until(REACTION, "a receipt on the stick", || {
        let stick = StickImage::open(&bad.image)?;
        let names = stick.files()?;
        match names.iter().find(|name| is_receipt(name)) {
            Some(name) => Ok(Ok(stick.read(name)?)),
            None => Ok(Err(format!("{names:?}"))),
        }
    });
    machine.unplug(bad.id).unwrap();
    let folder = site.folder.join(format!("receipts-{}", bad.id));
    fs::create_dir_all(folder.join("receipts")).unwrap();
    fs::write(folder.join("receipts/receipt.json"), receipt.unwrap()).unwrap();
    // The tool, not this test, judges the signature.
    let shown = site
        .binaries
        .run_joinpack(["receipts", &folder.display().to_string(), "-o", "json"])
        .unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(
        shown.status.success(),
        "{text} {}",
        String::from_utf8_lossy(&shown.stderr)
    );
    assert!(
        text.contains(bad.word) && text.contains("12D3KooW"),
        "{}: {text}",
        bad.id
    );
}

/// Sticks whose file system was tampered with, and what the box says to each. They are made of the site's own good pack.
fn hostile_sticks(site: &Site) -> Vec<(&'static str, PathBuf, &'static str)> {
    type Edit = fn(&mut Hostile) -> anyhow::Result<()>;
    let good = site.folder.join("hostile-good.img");
    StickImage::from_folder(&good, 64, &site.folder.join("pack")).unwrap();
    let edits: [(&str, Edit, &str); 7] = [
        ("cross", Hostile::cross_link, "refused (malformed)"),
        ("endless", Hostile::endless_file, "refused (wrong-size)"),
        ("circle", Hostile::endless_folder, "refused (read-failed)"),
        ("itself", Hostile::folder_in_itself, "refused (read-failed)"),
        (
            "crowd",
            |stick| stick.huge_folder(20_000),
            "refused (limit-exceeded)",
        ),
        ("table", Hostile::lying_table, "refused (read-failed)"),
        ("broken", Hostile::unmountable, "cannot be read: it is damaged"),
    ];
    edits
        .into_iter()
        .map(|(id, edit, words)| {
            let mut stick = Hostile::open(&good).unwrap();
            edit(&mut stick).unwrap();
            let image = site.folder.join(format!("hostile-{id}.img"));
            stick.write(&image).unwrap();
            (id, image, words)
        })
        .collect()
}

/// What an operator sends to the node is no more trusted than a stick.
fn bad_images_are_refused_in_words(site: &Site) {
    let ctl = site.ctl(0).unwrap();
    let layer = Layer::default;
    let good = || layer().file("bin/true", 0o755, b"x").unwrap();
    let altered = Archive::default()
        .layer(good())
        .unwrap()
        .defect(Defect::FlippedBit);
    let hostile = [
        (
            layer().file("../outside", 0o644, b"x").unwrap(),
            "`../outside` climbs out of the layer",
        ),
        (
            layer()
                .symlink("link", "/etc")
                .unwrap()
                .file("link/passwd", 0o644, b"x")
                .unwrap(),
            "`link/passwd` would be written through a symbolic link",
        ),
        (
            layer()
                .member(tar::EntryType::Block, "dev/sda", "", 0o660, b"")
                .unwrap(),
            "`dev/sda` is a device node",
        ),
    ];
    let hostile = hostile.map(|(layer, words)| (Archive::default().layer(layer).unwrap(), words));
    for (archive, words) in [(altered, "the image was altered or damaged")]
        .into_iter()
        .chain(hostile)
    {
        let path = site.folder.join("bad.oci.tar");
        fs::write(&path, archive.name("bad:1").build().unwrap()).unwrap();
        let refused = ctl
            .run(&["images", "import", &path.display().to_string()])
            .unwrap();
        let error = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(error.contains(words), "{error}");
    }
    let images = ctl.json(&["images"]).unwrap().to_string();
    assert!(
        !images.contains("bad:1") && images.contains(nginx::IMAGE),
        "{images}"
    );
}

fn copies(serving: &[Serving]) -> Vec<String> {
    serving.iter().map(|replica| replica.pod_id.clone()).collect()
}

/// From the moment at which the stick is in to the member, step by step; printed, and written to `stick-to-joined.json`.
fn good_stick_joins(site: &mut Site, stick: &Path) -> Mark {
    let machine = &mut site.nodes[0].machine;
    let (mark, start) = (machine.console().mark(), Instant::now());
    machine.plug(Stick::data("good", stick)).unwrap();
    let steps = [
        ("read_ms", "reading the join stick"),
        ("accepted_ms", "the join stick is good"),
        ("stick_to_joined_ms", "joined fabric"),
    ];
    let mut report = serde_json::Map::new();
    for (name, words) in steps {
        let line = machine.console().wait_for_after(mark, words, REACTION).unwrap();
        let ms = line.at.duration_since(start).as_millis();
        println!("measured {name}: {ms} ms from the plugging of the stick to `{words}`");
        report.insert(name.to_owned(), u64::try_from(ms).unwrap().into());
    }
    let text = serde_json::to_vec_pretty(&report).unwrap();
    fs::write(site.folder.join("stick-to-joined.json"), text).unwrap();
    mark
}

/// What the operator learns at home from the stick of a box that joined by it.
fn visit_is_proven_without_a_network(site: &Site, stick: &Path) {
    let text = |path: &Path| path.display().to_string();
    let (stick, fabric) = (text(stick), text(&site.folder.join("fabric")));
    let (logs, release) = (site.folder.join("logs"), text(&site.binaries.release_json()));
    let line = |more: &[&str]| {
        let line = ["receipts", &stick, "--fabric", &fabric, "-o", "json"];
        let shown = site.binaries.run_joinpack([&line[..], more].concat()).unwrap();
        let error = String::from_utf8_lossy(&shown.stderr);
        assert!(shown.status.success(), "{more:?}: {error}");
        let views: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!(views.as_array().map(Vec::len), Some(1), "{views}");
        views[0].clone()
    };
    let view = line(&["--logs", &text(&logs), "--release", &release]);
    assert_eq!(
        (&view["proof"], &view["node"], &view["revoked"]),
        (&"member".into(), &"node-1".into(), &false.into()),
        "{view}"
    );
    assert_eq!(view["boot"]["assurance"], "trusted", "{view}");
    assert_eq!(line(&[])["boot"]["assurance"], "tpm", "nothing to compare with");
    let saved = view["log"]["saved"].as_str().unwrap();
    let log = fs::read_to_string(saved).unwrap();
    for words in [
        "reading the join stick",
        "the join stick was refused (bad-signature)",
    ] {
        assert!(log.contains(words), "{saved} does not say `{words}`");
    }
    println!("measured log on the stick: {} bytes", log.len());
    // Nobody reads it who only holds the stick.
    let files = StickImage::open(Path::new(&stick)).unwrap();
    let sealed = files.read(view["log"]["file"].as_str().unwrap()).unwrap();
    assert!(!sealed.windows(7).any(|window| window == b"message"));
}

fn joined() -> regex::Regex {
    regex::Regex::new(r"joined fabric \w+ as node-2 \((12D3KooW\w+),").unwrap()
}

fn box_without_a_disk_is_the_same_after_a_power_cut(site: &mut Site) {
    let start = Instant::now();
    let stick = site.stick("os-2", Some(&site.folder.join("pack"))).unwrap();
    let mut config = site.machine(2, &stick).unwrap();
    config.disks.clear();
    site.start_machine(2, config.clone()).unwrap();
    let line = site.nodes[1].machine.wait_for(joined(), BOOT).unwrap();
    let peer = joined().captures(&line.text).unwrap()[1].to_owned();
    site.wait_members(0, 2, REACTION).unwrap();

    site.nodes[1].machine.kill().unwrap();
    site.nodes[1].machine.power_on().unwrap();
    let line = site.nodes[1].machine.wait_for(joined(), BOOT).unwrap();
    assert!(line.text.contains(&peer), "{} is not {peer}", line.text);
    let members = site.wait_members(0, 2, REACTION).unwrap();
    assert!(
        members.iter().any(|node| node["peer_id"] == peer.as_str()),
        "{members:?}"
    );
    let events = site.ctl(0).unwrap().json(&["events"]).unwrap().to_string();
    assert!(!events.contains("Quarantined"), "{events}");

    // Whoever takes the stick to another machine, and has no disk to take.
    site.nodes.pop().unwrap().machine.kill().unwrap();
    let other = site.folder.join("another-tpm");
    site.start_machine(2, config.tpm(Some(&other))).unwrap();
    let machine = &mut site.nodes[1].machine;
    machine.wait_for("this box stays out", BOOT).unwrap();
    let lines = machine.console().lines_after(machine.boot_mark());
    // It is told who was first, and never is that one itself.
    let is_peer = |text: &str| joined().captures(text).is_some_and(|found| found[1] == *peer);
    assert!(!lines.iter().any(|line| is_peer(&line.text)), "{lines:?}");
    machine.kill().unwrap();
    println!("measured box without a disk: {} s", start.elapsed().as_secs());
}

#[test]
fn bad_sticks_are_refused_in_words_and_the_good_one_is_taken_without_a_reboot() {
    let binaries = Binaries::find().unwrap();
    let archive = nginx::archive(&binaries.target).unwrap();
    let images = vec![(nginx::IMAGE.to_owned(), archive)];
    let folder = binaries.target.join("e2e/sticks");
    let mut site = Site::create(
        &folder,
        SiteOptions {
            nodes: 2,
            images,
            create: Vec::new(),
        },
    )
    .unwrap();
    let os = site.stick("os", None).unwrap();
    let config = site.machine(1, &os).unwrap();
    site.start_machine(1, config).unwrap();
    site.nodes[0]
        .machine
        .wait_for("insert a join stick", BOOT)
        .unwrap();
    let bad = bad_sticks(&site);
    for stick in &bad {
        refuse(&mut site, stick);
    }
    for (id, image, words) in hostile_sticks(&site) {
        let machine = &mut site.nodes[0].machine;
        let mark = machine.console().mark();
        machine.plug(Stick::data(id, &image)).unwrap();
        machine.console().wait_for_after(mark, words, REACTION).unwrap();
        machine.unplug(id).unwrap();
    }

    // Pulled out in the middle of reading: said, and the box is still a stranger.
    let good = stick_of(&site, "stick-good", &site.folder.join("pack"), 64);
    let mark = site.nodes[0].machine.console().mark();
    let machine = &mut site.nodes[0].machine;
    machine.plug(Stick::data("slow", &good).slow(400_000)).unwrap();
    machine
        .console()
        .wait_for_after(mark, "reading the join stick", REACTION)
        .unwrap();
    machine.wait_stick_read("slow", 1_000_000, REACTION).unwrap();
    machine.unplug("slow").unwrap();
    machine
        .console()
        .wait_for_after(mark, "the join stick was refused (read-failed)", REACTION)
        .unwrap();
    assert!(
        site.ctl(0)
            .unwrap()
            .run(&["nodes"])
            .is_ok_and(|output| !output.status.success()),
        "half joined"
    );

    let mark = good_stick_joins(&mut site, &good);
    let image = format!("image {} is ready", nginx::IMAGE);
    site.nodes[0]
        .machine
        .console()
        .wait_for_after(mark, image.as_str(), REACTION)
        .unwrap();
    let receipts = wait_until(REACTION, "a receipt", || {
        let names = StickImage::open(&good)?.files()?;
        Ok(if names.iter().any(|name| is_receipt(name)) {
            Ok(())
        } else {
            Err(format!("{names:?}"))
        })
    });
    receipts.unwrap();
    site.nodes[0].machine.unplug("good").unwrap();
    visit_is_proven_without_a_network(&site, &good);

    // A member with work: bad sticks change nothing of it.
    let manifest = site.folder.join("web.yaml");
    fs::write(&manifest, nginx::deployment(1, 8080)).unwrap();
    let applied = site
        .ctl(0)
        .unwrap()
        .run(&["apply", "-f", &manifest.display().to_string()])
        .unwrap();
    assert!(
        applied.status.success(),
        "{}",
        String::from_utf8_lossy(&applied.stderr)
    );
    let before = site.wait_serving(0, 1, Duration::from_secs(60)).unwrap();
    let flipped = bad.iter().find(|stick| stick.id == "flipped").unwrap();
    let stranger = Bad {
        id: "foreign",
        word: "other-fabric",
        image: stick_of(&site, "stick-foreign", &vector("good"), 16),
    };
    for stick in [
        &Bad {
            id: "again",
            image: flipped.image.clone(),
            word: flipped.word,
        },
        &stranger,
    ] {
        refuse(&mut site, stick);
    }
    bad_images_are_refused_in_words(&site);
    let after = site.wait_serving(0, 1, Duration::from_secs(10)).unwrap();
    assert_eq!(copies(&before), copies(&after), "the workload was touched");
    box_without_a_disk_is_the_same_after_a_power_cut(&mut site);
    assert_eq!(
        site.switch.frames_outside(beemesh_ci_e2e::site::prefix()),
        0,
        "frames left the site"
    );
    site.nodes[0].machine.power_off(Duration::from_secs(60)).unwrap();
}
