//! Two trips, by the binary itself: a pack that lets machines ask, their requests, and what answers them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;
#[path = "bench/maker.rs"]
mod maker;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{
    ApprovalCode, EndorsementFile, Machine, Pack, ReceiptMachine, Request, SecretKey, Timestamp, Verified,
};
use bench::{bench, done, ends, joinpack};
use maker::{Chip, Maker};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The time that the machines' clocks show.
const AT: Timestamp = Timestamp(1_767_323_045);

fn pack(folder: &Path) -> Pack<Verified> {
    let bytes = fs::read(folder.join("joinpack.json")).unwrap();
    Pack::parse(&bytes)
        .unwrap()
        .verify(None, Timestamp::EPOCH, None)
        .unwrap()
}

fn peer(n: u8) -> PeerId {
    PeerId::from_ed25519(SecretKey::from_bytes([n; 32]).public().as_bytes())
}

/// What machine `n` with this TPM asks of the pack in `folder`.
fn request(folder: &Path, n: u8, chip: &Chip, maker: &Maker) -> Request {
    let pack = pack(folder);
    Request {
        fabric: pack.manifest().fabric.clone(),
        serial: pack.manifest().serial.clone(),
        peer_id: peer(n),
        machine: ReceiptMachine {
            macs: vec![format!("52:54:00:00:00:{n:02x}")],
            serial: Some(format!("SN {n}")),
            ek: Some(EndorsementFile::new(
                &chip.public(),
                Some(&maker.certify(chip, |_| {})),
            )),
        },
        chain: Some(STANDARD.encode(&maker.link)),
        boot_id: String::new(),
        at: AT.plus_seconds(i64::from(n)),
        attestation: None,
    }
}

fn leave(folder: &Path, n: u8, request: &Request) -> PathBuf {
    let path = folder.join(request.path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let envelope = request.to_envelope(&SecretKey::from_bytes([n; 32])).unwrap();
    fs::write(&path, envelope.to_json()).unwrap();
    path
}

fn machine(n: u8, chip: &Chip) -> Machine {
    Machine {
        macs: vec![format!("52:54:00:00:00:{n:02x}")],
        serial: Some(format!("SN {n}")),
        ek: Some(beemesh_ids::Digest::of(&chip.public())),
    }
}

/// A fabric `fab`, vendor roots `roots` of a maker, and a pack `asking` with `more` arguments.
fn asking(more: &str) -> (tempfile::TempDir, Maker) {
    let (dir, maker) = (bench(), Maker::new("chips"));
    maker.save(&dir.path().join("roots"), false);
    create(dir.path(), "asking", more);
    (dir, maker)
}

fn create(dir: &Path, out: &str, more: &str) {
    let line = format!("create --fabric fab --out {out} --requests --found --blank-disk {more}");
    done(dir, &line.split_whitespace().collect::<Vec<_>>());
}

const ANSWER: [&str; 5] = ["answer", "--to", "asking", "--fabric", "fab"];

fn line(more: &str) -> Vec<&str> {
    ANSWER.into_iter().chain(more.split_whitespace()).collect()
}

fn answered(dir: &Path, more: &str) -> Value {
    done(dir, &line(&format!("{more} -o json"))).json()
}

#[test]
fn answer_has_a_place_for_each_tpm_that_asked_and_none_for_another() {
    let (dir, maker) =
        asking("--image web=web.tar --node till-9,mac=52:54:00:00:00:09,address=10.0.0.9/24,request");
    let (at, folder) = (dir.path(), dir.path().join("asking"));
    ends(at, &line("--vendor-roots roots"), 2, "no request");
    let (one, two, nine) = (Chip::new(), Chip::new(), Chip::new());
    for (n, chip) in [(1, &one), (2, &two), (9, &nine)] {
        leave(&folder, n, &request(&folder, n, chip, &maker));
    }
    // Laptops write such files.
    fs::write(folder.join("requests/._x.json"), "noise").unwrap();
    let before = fs::read(folder.join("joinpack.json")).unwrap();
    let name = format!("--vendor-roots roots --name {}=till-1", peer(1).short());
    let would = answered(at, &format!("{name} --dry-run"));
    assert_eq!(would["result"], "would-answer");
    assert!(
        fs::read(folder.join("joinpack.json")).unwrap() == before && !at.join("fab/answered.json").exists()
    );

    let view = answered(at, &name);
    assert_eq!(
        (&view["result"], view["answers"].as_array().unwrap().len()),
        (&"answered".into(), 3)
    );
    for answer in view["answers"].as_array().unwrap() {
        assert_eq!(answer["maker"], "CN=chips root", "{answer}");
        let peer: PeerId = serde_json::from_value(answer["peer_id"].clone()).unwrap();
        let code = ApprovalCode::of(&pack(&folder).manifest().fabric, &peer);
        assert_eq!(answer["code"], code.to_string(), "what the console shows");
    }
    let now = pack(&folder);
    let manifest = now.manifest();
    assert!(!manifest.requests && manifest.found && manifest.images.len() == 1);
    let own = format!("node-{}", peer(2).short().to_lowercase());
    for (n, chip, node) in [(1, &one, "till-1"), (2, &two, own.as_str()), (9, &nine, "till-9")] {
        let entry = manifest.entry_for(&machine(n, chip)).unwrap();
        assert_eq!(entry.name.as_str(), node);
        let (offer, voucher) = now.voucher_of(&entry.name).unwrap();
        assert!(offer.one_time_key.is_none() && voucher.ek == entry.ek);
    }
    let till_9 = manifest.entry_for(&machine(9, &nine)).unwrap();
    assert_eq!(till_9.network.as_ref().unwrap().addresses, ["10.0.0.9/24"]);
    let refused = manifest
        .check_machine(&machine(3, &Chip::new()), None)
        .map_err(|r| r.code());
    assert_eq!(refused, Err("other-box"));
    done(at, &["verify", "asking", "--roots", "fab/root.json"]);
    let left: Vec<_> = fs::read_dir(folder.join("requests")).unwrap().collect();
    assert_eq!(left.len(), 1, "what was answered is gone");
    // No pack of this fabric is older than the answer.
    create(at, "next", "");
    assert!(pack(&at.join("next")).manifest().serial > manifest.serial);
}

#[test]
fn stick_is_answered_like_a_folder_and_keeps_what_else_is_on_it() {
    let (dir, maker) = asking("--image web=web.tar");
    let (at, folder) = (dir.path(), dir.path().join("asking"));
    let chip = Chip::new();
    leave(&folder, 1, &request(&folder, 1, &chip, &maker));
    let open = || {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(at.join("stick.img")).unwrap()
    };
    open().set_len(70 << 20).unwrap();
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"BEEMESHJOIN");
    fatfs::format_volume(open(), options).unwrap();
    done(at, &["write", "asking", "--to", "stick.img"]);
    // What the machine does to the stick.
    let place = request(&folder, 1, &chip, &maker).path();
    {
        let disk = fatfs::FileSystem::new(open(), fatfs::FsOptions::new()).unwrap();
        let root = disk.root_dir();
        root.create_dir("requests").unwrap();
        for (name, content) in [
            (place.as_str(), fs::read(folder.join(&place)).unwrap()),
            ("mine.txt", vec![7; 9]),
        ] {
            let mut file = root.create_file(name).unwrap();
            file.write_all(&content).unwrap();
            file.flush().unwrap();
        }
    }
    let line = "answer --to stick.img --fabric fab --vendor-roots roots --requests -o json";
    let view = done(at, &line.split_whitespace().collect::<Vec<_>>()).json();
    assert_eq!(view["answers"][0]["file"], place);
    let shown = done(
        at,
        &["verify", "stick.img", "--roots", "fab/root.json", "-o", "json"],
    )
    .json();
    assert_eq!(
        (
            &shown["targeted"],
            &shown["blobs"],
            &shown["requests"],
            &shown["serial"]
        ),
        (&1.into(), &1.into(), &true.into(), &view["serial"])
    );
    ends(
        at,
        &["answer", "--to", "stick.img", "--fabric", "fab"],
        2,
        "no request",
    );
    let disk = fatfs::FileSystem::new(open(), fatfs::FsOptions::new()).unwrap();
    let names: Vec<_> = disk
        .root_dir()
        .iter()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        names.contains(&"mine.txt".to_owned()) && !names.contains(&"joinpack.new".to_owned()),
        "{names:?}"
    );
    ends(
        at,
        &["answer", "--to", "none.img", "--fabric", "fab"],
        2,
        "none.img",
    );
}

#[test]
fn tpm_that_no_maker_vouches_for_is_answered_only_by_an_operator_who_says_so() {
    let (dir, maker) = asking("");
    let (at, folder) = (dir.path(), dir.path().join("asking"));
    leave(&folder, 1, &request(&folder, 1, &Chip::new(), &maker));
    let before = fs::read(folder.join("joinpack.json")).unwrap();
    ends(at, &line(""), 3, "no vendor roots were given");
    // A name given to it does not hide why.
    let named = format!("--name {}=till-1", peer(1).short());
    ends(at, &line(&named), 3, "no vendor roots were given");
    Maker::new("others").save(&at.join("others"), true);
    ends(
        at,
        &line("--vendor-roots others"),
        3,
        "leads to none of the vendor roots",
    );
    let mut bare = request(&folder, 1, &Chip::new(), &maker);
    bare.machine.ek.as_mut().unwrap().certificate = None;
    leave(&folder, 1, &bare);
    ends(at, &line("--vendor-roots roots"), 3, "no certificate");
    let mut mixed = request(&folder, 1, &Chip::new(), &maker);
    let other = maker.certify(&Chip::new(), |_| {});
    mixed.machine.ek.as_mut().unwrap().certificate = Some(STANDARD.encode(other));
    leave(&folder, 1, &mixed);
    ends(
        at,
        &line("--vendor-roots roots --accept-unproven"),
        3,
        "of another TPM",
    );
    assert!(
        fs::read(folder.join("joinpack.json")).unwrap() == before && !at.join("fab/answered.json").exists()
    );
    leave(&folder, 1, &bare);
    let shown = done(at, &line("--vendor-roots roots --accept-unproven")).out;
    assert!(
        shown.contains("UNPROVEN") && shown.contains("may be a program"),
        "{shown}"
    );
}

#[test]
fn requests_that_do_not_count_are_named_and_left_out_only_when_asked() {
    let (dir, maker) = asking("");
    let (at, folder) = (dir.path(), dir.path().join("asking"));
    let chip = Chip::new();
    let good = request(&folder, 1, &chip, &maker);
    // Of the trip before, of another fabric, altered, and a second of the same TPM by a machine that was wiped.
    let mut older = request(&folder, 2, &Chip::new(), &maker);
    older.serial = "01KDVKFC00000000000000000A".to_owned();
    let older = leave(&folder, 2, &older);
    ends(at, &line("--vendor-roots roots"), 3, "(other-trip)");
    fs::remove_file(older).unwrap();
    let mut foreign = request(&folder, 3, &Chip::new(), &maker);
    foreign.fabric = beemesh_ids::FabricId::from_root(beemesh_ids::Digest::of(b"x"));
    let foreign = leave(&folder, 3, &foreign);
    ends(at, &line("--vendor-roots roots"), 3, "(other-fabric)");
    fs::remove_file(foreign).unwrap();
    let altered = leave(&folder, 4, &request(&folder, 4, &Chip::new(), &maker));
    let stolen = fs::read(&altered).unwrap();
    let text = String::from_utf8(stolen).unwrap();
    let signature = text.find("\"sig\":\"").unwrap() + 7;
    let mut bytes = text.into_bytes();
    bytes[signature] = if bytes[signature] == b'A' { b'B' } else { b'A' };
    fs::write(&altered, bytes).unwrap();
    ends(at, &line("--vendor-roots roots"), 3, "(bad-signature)");
    leave(&folder, 1, &good);
    let wiped = request(&folder, 5, &chip, &maker);
    leave(&folder, 5, &wiped);
    let run = joinpack(at, &line("--vendor-roots roots"));
    assert!(
        run.code == 3 && run.out.contains("bad-signature") && run.out.contains("duplicate"),
        "{}",
        run.out
    );
    let view = answered(at, "--vendor-roots roots --skip-refused");
    let answers = view["answers"].as_array().unwrap();
    assert_eq!(
        (answers.len(), &answers[0]["peer_id"]),
        (1, &peer(5).to_string().into()),
        "the latest counts"
    );
    assert_eq!(view["refused"].as_array().unwrap().len(), 2);
    assert!(altered.exists(), "what was not answered stays");
}

#[test]
fn tpm_keeps_the_name_that_it_was_answered_by() {
    let (dir, maker) = asking("");
    let (at, folder) = (dir.path(), dir.path().join("asking"));
    let chip = Chip::new();
    leave(&folder, 1, &request(&folder, 1, &chip, &maker));
    answered(
        at,
        &format!("--vendor-roots roots --name {}=till-1", peer(1).short()),
    );
    ends(at, &line("--vendor-roots roots"), 2, "lets no machine ask");
    // The stick is lost, and the machine asks by another one.
    fs::remove_dir_all(&folder).unwrap();
    create(at, "asking", "");
    leave(&folder, 1, &request(&folder, 1, &chip, &maker));
    ends(
        at,
        &[
            "answer",
            "--to",
            "asking",
            "--fabric",
            "fab",
            "--vendor-roots",
            "roots",
            "--name",
            "SN 1=till-2",
        ],
        3,
        "answered as `till-1`",
    );
    ends(
        at,
        &line("--vendor-roots roots --name nobody=till-2"),
        2,
        "`nobody`",
    );
    leave(&folder, 2, &request(&folder, 2, &Chip::new(), &maker));
    let taken = format!("--vendor-roots roots --name {}=till-1", peer(2).short());
    ends(at, &line(&taken), 3, "given to another TPM");
    fs::write(
        at.join("boxes.csv"),
        "name,serial,address\ntill-5,SN 2,10.0.0.5/24\ntill-6,SN 6,dhcp\n",
    )
    .unwrap();
    let view = answered(at, "--vendor-roots roots --csv boxes.csv");
    let names: Vec<_> = view["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["node"].clone())
        .collect();
    assert_eq!(names, ["till-5", "till-1"], "the latest first");
    let network = pack(&folder)
        .manifest()
        .nodes
        .iter()
        .find_map(|node| node.network.clone());
    assert_eq!(network.unwrap().addresses, ["10.0.0.5/24"]);
    let known: Value = serde_json::from_slice(&fs::read(at.join("fab/answered.json")).unwrap()).unwrap();
    assert_eq!(known.as_array().unwrap().len(), 2);
    // Who is revoked is not answered.
    fs::remove_dir_all(&folder).unwrap();
    create(at, "asking", "");
    leave(&folder, 1, &request(&folder, 1, &chip, &maker));
    done(at, &["revoke", "--fabric", "fab", "--node", &peer(1).to_string()]);
    ends(at, &line("--vendor-roots roots"), 3, "revoked");
}

#[test]
fn place_with_a_voucher_is_not_given_again() {
    let (dir, maker) = asking("--node till-1,serial=SN1");
    let (at, folder) = (dir.path(), dir.path().join("asking"));
    let mut sly = request(&folder, 1, &Chip::new(), &maker);
    sly.machine.serial = Some("SN1".to_owned());
    leave(&folder, 1, &sly);
    ends(at, &line("--vendor-roots roots"), 3, "has a voucher in this pack");
}
