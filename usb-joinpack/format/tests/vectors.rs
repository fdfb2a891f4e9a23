//! Executes every vector of `usb-joinpack/vectors`, and checks that the generator still makes the same files.
#![allow(clippy::unwrap_used)]

mod generator;

use beemesh_usb_joinpack_format::{
    BlobCheck, Envelope, Machine, Pack, Proof, Receipt, Refusal, Request, RootChain,
};
use generator::Vector;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../vectors")
}

/// All files below `dir`, by relative path.
fn read_files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn judge(vector: &Vector, files: &BTreeMap<String, Vec<u8>>) -> Result<(), Refusal> {
    let trusted = vector.trusted.then(|| {
        let roots: Vec<Envelope> = serde_json::from_slice(&files["roots.json"]).unwrap();
        RootChain::bootstrap(&roots).unwrap()
    });
    let mut joinpack = files["pack/joinpack.json"].clone();
    if let Some(length) = vector.pad_to {
        joinpack.resize(length, b' ');
    }
    let pack =
        Pack::parse(&joinpack)?.verify(trusted.as_ref(), vector.floor, vector.last_serial.as_deref())?;
    if let Some(case) = &vector.machine {
        let machine = Machine {
            macs: case.macs.clone(),
            serial: case.serial.clone(),
            ek: case.ek,
        };
        pack.manifest().check_machine(&machine, None)?;
        let place = pack.manifest().entry_for(&machine).map(|node| node.name.clone());
        assert_eq!(place, case.place, "{}", vector.about);
    }
    pack.check_listing(files.keys().filter_map(|path| path.strip_prefix("pack/")))?;
    for (digest, size) in &pack.manifest().blobs {
        let mut check = BlobCheck::new(*digest, *size);
        for piece in files[&format!("pack/{}", pack.blob_path(digest))].chunks(7) {
            check.update(piece)?;
        }
        check.finish()?;
    }
    if let Some(path) = &vector.request {
        let request = Request::parse(&files[&format!("pack/{path}")])?;
        request.check_asked(&pack.manifest().fabric, &pack.manifest().serial)?;
        assert_eq!(request.path(), *path, "{}", vector.about);
        let quoted = request.attestation.is_some().then(|| request.nonce().unwrap());
        assert_eq!(quoted, vector.nonce, "{}", vector.about);
    }
    if let Some(path) = &vector.receipt {
        let (receipt, proof) = Receipt::parse(&files[&format!("pack/{path}")])?;
        assert_eq!(receipt.path(), *path, "{}", vector.about);
        let quoted = receipt.attestation.is_some().then(|| receipt.nonce().unwrap());
        assert_eq!(quoted, vector.nonce, "{}", vector.about);
        assert!(matches!(proof, Proof::SignedBy(_)) && receipt.member(pack.roots())?.is_some());
        let log = receipt
            .log_path()
            .and_then(|path| files.get(&format!("pack/{path}")));
        let log = receipt.open_log(
            log.map(Vec::as_slice),
            &pack.manifest().fabric,
            &[generator::log_key("log")],
        )?;
        assert_eq!(log.as_deref(), vector.log.as_deref().map(str::as_bytes));
    }
    Ok(())
}

#[test]
fn every_vector_is_judged_as_it_says() {
    let mut codes = BTreeSet::new();
    let mut wrong = Vec::new();
    for entry in fs::read_dir(top()).unwrap() {
        let dir = entry.unwrap().path();
        let files = read_files(&dir);
        let vector: Vector = serde_json::from_slice(&files["vector.json"]).unwrap();
        let verdict = judge(&vector, &files);
        let code = verdict.as_ref().map_or_else(Refusal::code, |()| "accepted");
        codes.insert(code);
        if code != vector.expect {
            wrong.push(format!(
                "{}: expected {}, got {verdict:?}",
                dir.display(),
                vector.expect
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Of all reasons, only these cannot be met by a pack as a whole: they need a redemption.
    let all = BTreeSet::from([
        "accepted",
        "bad-signature",
        "duplicate",
        "expired",
        "inconsistent",
        "key-expired",
        "limit-exceeded",
        "log-altered",
        "log-cut-off",
        "log-missing",
        "malformed",
        "missing-blob",
        "older-than-applied",
        "other-box",
        "other-fabric",
        "other-log-key",
        "other-trip",
        "out-of-scope",
        "path-escapes",
        "root-conflict",
        "root-gap",
        "threshold-not-met",
        "too-large",
        "unknown-key",
        "unlisted-blob",
        "wrong-digest",
        "wrong-size",
        "wrong-type",
        "wrong-version",
    ]);
    assert_eq!(codes, all);
}

#[test]
fn generator_makes_the_files_that_are_there() {
    let made: BTreeMap<String, Vec<u8>> = generator::cases::cases()
        .into_iter()
        .flat_map(|case| {
            case.files
                .into_iter()
                .map(move |(path, content)| (format!("{}/{path}", case.name), content))
        })
        .collect();
    let there = read_files(&top());
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&made), names(&there), "run the example `write-vectors`");
    for (path, content) in made {
        assert!(
            there[&path] == content,
            "`{path}` differs: run the example `write-vectors`"
        );
    }
}
