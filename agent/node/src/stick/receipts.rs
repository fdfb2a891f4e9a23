//! Receipts on a mounted stick, and the logs beside them. Judges nothing, and makes neither: [`crate::sticks`] does.
//!
//! Invariants: a log is whole on the medium before the receipt that names it is, and the log before goes only after that, so
//! that power which fails at any moment leaves a receipt with its log, or one more log; at most [`limits::RECEIPTS`] of each
//! stay.

use super::remount;
use crate::store::write_atomic;
use beemesh_ids::{NodeName, PeerId};
use beemesh_joinpack_format::{
    Outcome, Proof, Receipt, SecretKey, Timestamp, limits, surplus_logs, surplus_receipts,
};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Receipts that are looked at on a stick: another writer may have left more of them than the bound.
const RECEIPTS: usize = 2 * limits::RECEIPTS;

/// Names of the nodes that other machines have become by this stick, as the receipts on it say: at most [`RECEIPTS`].
pub fn spent_places(stick: &Path, peer: &PeerId, serial: &str) -> Vec<NodeName> {
    let read = |path: &Path| {
        let (receipt, proof) = read_receipt(path)?;
        let other = matches!(&proof, Proof::SignedBy(signer) if signer != peer);
        let applied =
            other && receipt.outcome == Outcome::Applied && receipt.serial.as_deref() == Some(serial);
        receipt.node.filter(|_| applied)
    };
    list_receipts(stick)
        .iter()
        .filter_map(|path| read(path))
        .collect()
}

/// The files in the folder of the receipts that are no logs, at most [`RECEIPTS`].
fn list_receipts(stick: &Path) -> Vec<PathBuf> {
    let mut all = list(stick);
    all.retain(|path| !is_log(path));
    all.truncate(RECEIPTS);
    all
}

fn list(stick: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(stick.join("receipts")).into_iter().flatten();
    entries
        .flatten()
        .take(2 * RECEIPTS)
        .map(|entry| entry.path())
        .collect()
}

fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn read_receipt(path: &Path) -> Option<(Receipt, Proof)> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(limits::RECEIPT_LIMIT as u64 + 1)
        .read_to_end(&mut bytes)
        .ok()?;
    Receipt::parse(&bytes).ok()
}

/// Writes the log that `receipt` names, for which it has to come first. The stick is made writable for that moment only.
pub fn write_log(stick: &Path, receipt: &Receipt, content: &[u8]) -> io::Result<()> {
    writable(stick, || put_log(stick, receipt, content))
}

/// Removes the log that `receipt` names, where no receipt could be written after it.
pub fn remove_log(stick: &Path, receipt: &Receipt) -> io::Result<()> {
    writable(stick, || match receipt.log_path() {
        Some(path) => fs::remove_file(stick.join(path)),
        None => Ok(()),
    })
}

/// Writes a receipt to the stick, which is made writable for that moment only.
pub fn write_receipt(stick: &Path, receipt: &Receipt, key: Option<&SecretKey>) -> io::Result<()> {
    let envelope = receipt.to_envelope(key).map_err(io::Error::other)?;
    writable(stick, || put_receipt(stick, receipt, &envelope.to_json()))
}

/// What was written is on the medium after this.
fn writable(stick: &Path, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    remount(stick, false)?;
    let written = write();
    written.and(remount(stick, true))
}

fn put_log(stick: &Path, receipt: &Receipt, content: &[u8]) -> io::Result<()> {
    match receipt.log_path() {
        Some(path) => {
            let path = stick.join(path);
            let written = write_atomic(&path, content, 0o644);
            if written.is_err() {
                // A stick that is full: half a log must not take the receipt's room too.
                let _ = fs::remove_file(path.with_extension("tmp"));
            }
            written
        }
        None => Ok(()),
    }
}

fn put_receipt(stick: &Path, receipt: &Receipt, content: &[u8]) -> io::Result<()> {
    let path = stick.join(receipt.path());
    make_room(stick, &path);
    write_atomic(&path, content, 0o644)?;
    let log = receipt.log_path().map(PathBuf::from);
    let all = list(stick);
    let names = |logs: bool| all.iter().filter(move |path| is_log(path) == logs);
    let gone = surplus_logs(
        &name_of(&path).unwrap_or_default(),
        log.as_deref().and_then(name_of).as_deref(),
        names(true).filter_map(|path| name_of(path)).collect(),
        &names(false).filter_map(|path| name_of(path)).collect(),
    );
    for name in gone {
        // One that stays takes no more than its place.
        let _ = fs::remove_file(stick.join("receipts").join(name));
    }
    Ok(())
}

/// Removes the oldest receipts until `new` is within the bound. They are read only where there are that many.
fn make_room(stick: &Path, new: &Path) {
    let there: Vec<_> = list_receipts(stick)
        .into_iter()
        .filter(|path| path != new)
        .collect();
    if there.len() < limits::RECEIPTS {
        return;
    }
    let dated = |path: PathBuf| -> Option<(String, Option<Timestamp>)> {
        let at = read_receipt(&path).map(|(receipt, _)| receipt.at);
        Some((name_of(&path)?, at))
    };
    for name in surplus_receipts(there.into_iter().filter_map(dated).collect()) {
        // One that stays takes no more than its place.
        let _ = fs::remove_file(stick.join("receipts").join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{NOW, in_small_volume, peer, roots};
    use beemesh_joinpack_format::{LogSecret, ReceiptMachine, TimeSource};

    const SERIAL: &str = "01KDVKFD00000000000000000A";

    fn receipt(n: u8, node: &str, serial: &str, outcome: Outcome) -> Receipt {
        let secret = SecretKey::from_bytes([n; 32]);
        Receipt {
            node: Some(node.parse().unwrap()),
            peer_id: Some(PeerId::from_ed25519(secret.public().as_bytes())),
            fabric: None,
            membership: None,
            machine: ReceiptMachine::default(),
            boot_id: String::new(),
            at: NOW.plus_seconds(i64::from(n)),
            time_source: TimeSource::Floor,
            serial: Some(serial.to_owned()),
            pack: None,
            outcome,
            parts: Vec::new(),
            log: None,
            attestation: None,
        }
    }

    fn leave_receipt(stick: &Path, n: u8, node: &str, serial: &str, outcome: Outcome, signed: bool) {
        let secret = SecretKey::from_bytes([n; 32]);
        let receipt = receipt(n, node, serial, outcome);
        let envelope = receipt.to_envelope(signed.then_some(&secret)).unwrap();
        fs::write(
            stick.join(format!("receipts/{n}-{node}.json")),
            envelope.to_json(),
        )
        .unwrap();
    }

    #[test]
    fn only_signed_receipts_of_others_that_applied_this_pack_tell_of_places_that_are_taken() {
        let stick = tempfile::tempdir().unwrap();
        assert!(spent_places(stick.path(), &peer(1), SERIAL).is_empty());
        fs::create_dir(stick.path().join("receipts")).unwrap();
        let refused = || Outcome::Refused {
            code: "expired".to_owned(),
            message: String::new(),
        };
        leave_receipt(stick.path(), 2, "taken", SERIAL, Outcome::Applied, true);
        leave_receipt(stick.path(), 3, "unsigned", SERIAL, Outcome::Applied, false);
        leave_receipt(stick.path(), 4, "refused", SERIAL, refused(), true);
        leave_receipt(
            stick.path(),
            5,
            "other-pack",
            "01KDVKFD00000000000000000B",
            Outcome::Applied,
            true,
        );
        leave_receipt(stick.path(), 6, "own", SERIAL, Outcome::Applied, true);
        fs::write(
            stick.path().join("receipts/noise.json"),
            vec![b'{'; limits::RECEIPT_LIMIT + 7],
        )
        .unwrap();
        let own = PeerId::from_ed25519(SecretKey::from_bytes([6; 32]).public().as_bytes());
        let taken: Vec<String> = spent_places(stick.path(), &own, SERIAL)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(taken, ["taken"]);
    }

    #[test]
    fn stick_that_is_full_of_receipts_loses_the_oldest_and_noise_before_them() {
        let stick = tempfile::tempdir().unwrap();
        let folder = stick.path().join("receipts");
        fs::create_dir(&folder).unwrap();
        for n in [1, 2] {
            leave_receipt(stick.path(), n, "till", SERIAL, Outcome::Applied, true);
        }
        let new = folder.join("new.json");
        make_room(stick.path(), &new);
        assert_eq!(list_receipts(stick.path()).len(), 2);
        for n in 0..limits::RECEIPTS - 2 {
            fs::write(folder.join(format!("noise-{n:04}.json")), b"{}").unwrap();
        }
        make_room(stick.path(), &new);
        assert!(!folder.join("noise-0000.json").exists() && folder.join("1-till.json").exists());
        assert_eq!(list_receipts(stick.path()).len(), limits::RECEIPTS - 1);
        fs::write(&new, b"{}").unwrap();
        make_room(stick.path(), &new);
        assert_eq!(
            list_receipts(stick.path()).len(),
            limits::RECEIPTS,
            "one that is replaced takes no place"
        );
    }

    #[test]
    fn log_is_there_before_its_receipt_and_the_one_before_goes_after_it() {
        let stick = tempfile::tempdir().unwrap();
        let secret = LogSecret::from_bytes(&[7; 32]).unwrap();
        let (fabric, stick) = (roots().fabric_id().clone(), stick.path());
        let attached = |text: &[u8]| {
            let mut receipt = receipt(1, "till", SERIAL, Outcome::Applied);
            let file = receipt.attach_log(text, &fabric, &secret.public(), [3; 32]);
            (receipt, file.unwrap())
        };
        let put = |receipt: &Receipt| {
            let key = SecretKey::from_bytes([1; 32]);
            let content = receipt.to_envelope(Some(&key)).unwrap().to_json();
            put_receipt(stick, receipt, &content).unwrap();
        };
        let read = |receipt: &Receipt| {
            let file = fs::read(stick.join(receipt.log_path().unwrap())).ok();
            let opened = receipt.open_log(file.as_deref(), &fabric, std::slice::from_ref(&secret));
            opened.map(Option::unwrap).map_err(|refusal| refusal.code())
        };
        let (first, file) = attached(b"first");
        put_log(stick, &first, &file).unwrap();
        put(&first);
        assert_eq!(read(&first), Ok(b"first".to_vec()));
        // The same pack again: power may fail here, and the receipt that is there still has its log.
        let (second, file) = attached(b"second");
        assert_eq!(first.path(), second.path());
        put_log(stick, &second, &file).unwrap();
        assert_eq!(
            (read(&first), list_receipts(stick).len()),
            (Ok(b"first".to_vec()), 1)
        );
        put(&second);
        assert_eq!(
            (read(&first), read(&second)),
            (Err("log-missing"), Ok(b"second".to_vec()))
        );
        // A visit without a log takes the last one along.
        put(&receipt(1, "till", SERIAL, Outcome::Applied));
        assert_eq!(list(stick).len(), 1);
    }

    #[test]
    fn full_stick_keeps_the_receipt_and_not_half_a_log() {
        in_small_volume(128 << 10, |stick| {
            let secret = LogSecret::from_bytes(&[7; 32]).unwrap();
            let mut receipt = receipt(1, "till", SERIAL, Outcome::Applied);
            let fabric = roots().fabric_id().clone();
            let file = receipt.attach_log(&vec![b'x'; limits::LOG], &fabric, &secret.public(), [3; 32]);
            let failed = put_log(stick, &receipt, &file.unwrap()).unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
            assert!(list(stick).is_empty());
            receipt.log = None;
            let content = receipt.to_envelope(None).unwrap().to_json();
            put_receipt(stick, &receipt, &content).unwrap();
            assert_eq!(list_receipts(stick).len(), 1);
        });
    }
}
