//! The links below `/dev/disk`, made and taken away in a child of PID 1, since it reads disks.
//!
//! What each device claims is kept in a file: when two claim a name, the first has it, and when that one goes the other gets
//! it, without another look at its disk. Invariants: a link points to a device that claims it; a disk that does not answer
//! holds up its own links only.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use beemesh_init_api::path;
use beemesh_init_core::Outcome;
use beemesh_init_core::names::Described;
use beemesh_init_core::superblock::{HEAD, probe};
use beemesh_init_core::uevent::parse_sysfs;
use nix::fcntl::{Flock, FlockArg};

use crate::chain::{Attempt, StepError, words};
use crate::loader::log;

/// Disks that are read at the same time.
const READERS: usize = 4;

/// `-DEVICE` for each that is gone, then `+DEVICE` for each that is there (names below `/dev`).
pub fn link_devices(arguments: &[String]) -> Outcome {
    beemesh_sys::yield_to_others(10);
    let links = Links {
        disk: PathBuf::from("/dev/disk"),
        claims: Path::new(path::RUN).join("init/links"),
    };
    let mut failed = false;
    for device in arguments.iter().filter_map(|argument| argument.strip_prefix('-')) {
        failed |= report(links.claim(device, &BTreeSet::new()));
    }
    let there = arguments.iter().filter_map(|argument| argument.strip_prefix('+'));
    let queue = Mutex::new(there.collect::<Vec<_>>());
    let work = || {
        let mut failed = false;
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(device) = next else { return failed };
            let names = describe(device).map(|described| described.names());
            failed |= report(links.claim(device, &names.into_iter().flatten().collect()));
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(work)).collect();
        for reader in readers {
            failed |= reader.join().unwrap_or(true);
        }
    });
    if failed { Outcome::Failed } else { Outcome::Done }
}

fn report(result: Result<(), StepError>) -> bool {
    if let Err(error) = &result {
        log(&words(error));
    }
    result.is_err()
}

/// What the kernel and its superblock say of a device; `None`: it is gone.
fn describe(device: &str) -> Option<Described> {
    let place = fs::canonicalize(Path::new("/sys/class/block").join(device.replace('/', "!"))).ok()?;
    let read = |place: &Path, name: &str| {
        let text = fs::read_to_string(place.join(name)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let number = |place: &Path, name: &str| read(place, name)?.parse::<u32>().ok();
    let text = read(&place, "uevent").unwrap_or_default();
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .map(str::to_owned)
    };
    let partition = number(&place, "partition");
    let disk = match partition {
        Some(_) => place.parent()?,
        None => &place,
    };
    let hardware = disk.join("device");
    let above = |name: &str| {
        let is_it = |part: &&Path| {
            part.file_name()
                .and_then(|n| n.to_str())
                .is_some_and(|n| is_numbered(n, name))
        };
        disk.ancestors().find(is_it)
    };
    Some(Described {
        partname: parse_sysfs("block", &text).partname,
        partuuid: value("PARTUUID="),
        partition,
        serial: read(disk, "serial").or_else(|| read(&hardware, "serial")),
        model: read(&hardware, "model"),
        wwid: read(disk, "wwid").or_else(|| read(&hardware, "wwid")),
        ata_port: above("ata").and_then(|port| {
            let name = port.file_name()?;
            number(&port.join("ata_port").join(name), "port_no")
        }),
        namespace: number(disk, "nsid"),
        first_host: above("host").and_then(|host| first_host(host.parent()?)),
        superblock: superblock(device, &place),
        place: place.to_str()?.to_owned(),
    })
}

fn is_numbered(text: &str, name: &str) -> bool {
    let number = text.strip_prefix(name);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn first_host(adapter: &Path) -> Option<u32> {
    let names = fs::read_dir(adapter)
        .ok()?
        .flatten()
        .map(|entry| entry.file_name());
    let hosts = names.filter_map(|name| name.to_str()?.strip_prefix("host")?.parse().ok());
    hosts.min()
}

fn superblock(device: &str, place: &Path) -> Option<beemesh_init_core::superblock::Superblock> {
    let size = fs::read_to_string(place.join("size")).ok()?;
    // A reader without a card, a loop device without a file.
    if size.trim() == "0" {
        return None;
    }
    let mut head = Vec::with_capacity(HEAD);
    let file = File::open(Path::new("/dev").join(device)).ok()?;
    file.take(HEAD as u64).read_to_end(&mut head).ok()?;
    probe(&head)
}

/// The links and who claims them.
struct Links {
    disk: PathBuf,
    claims: PathBuf,
}

impl Links {
    /// `device` has exactly these names from now on.
    fn claim(&self, device: &str, names: &BTreeSet<String>) -> Result<(), StepError> {
        fs::create_dir_all(&self.claims).attempt("make", &self.claims)?;
        let lock = File::open(&self.claims).attempt("open", &self.claims)?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .attempt("lock", &self.claims)?;
        let file = self.claims.join(device.replace('/', "!"));
        let before = read_claims(&file);
        if names.is_empty() {
            match fs::remove_file(&file) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).attempt("remove", &file),
                _ => {}
            }
        } else {
            let text: String = names.iter().map(|name| format!("{name}\n")).collect();
            fs::write(&file, text).attempt("write", &file)?;
        }
        for name in before.difference(names) {
            self.release(device, name)?;
        }
        names.iter().try_for_each(|name| self.link(device, name))
    }

    /// Makes the link, unless another device has the name.
    fn link(&self, device: &str, name: &str) -> Result<(), StepError> {
        let link = self.disk.join(name);
        if let Some(owner) = self.owner(name)
            && (owner == device || read_claims(&self.claims.join(owner.replace('/', "!"))).contains(name))
        {
            return Ok(());
        }
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder).attempt("make", folder)?;
        }
        let new = self.disk.join(".new");
        let _ = fs::remove_file(&new);
        symlink(format!("../../{device}"), &new).attempt("link", &link)?;
        fs::rename(&new, &link).attempt("link", &link)
    }

    /// Takes the link away, or gives it to another device that claims the name.
    fn release(&self, device: &str, name: &str) -> Result<(), StepError> {
        if self.owner(name).as_deref() != Some(device) {
            return Ok(());
        }
        let mut files: Vec<PathBuf> = fs::read_dir(&self.claims)
            .attempt("read", &self.claims)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        files.sort();
        let heir = files.iter().find(|file| read_claims(file).contains(name));
        let heir = heir.and_then(|file| file.file_name()?.to_str().map(|name| name.replace('!', "/")));
        match heir {
            Some(heir) => self.link(&heir, name),
            None => fs::remove_file(self.disk.join(name)).attempt("remove", self.disk.join(name)),
        }
    }

    /// The device that the link points to.
    fn owner(&self, name: &str) -> Option<String> {
        let target = fs::read_link(self.disk.join(name)).ok()?;
        Some(target.to_str()?.strip_prefix("../../")?.to_owned())
    }
}

fn read_claims(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct House {
        folder: tempfile::TempDir,
        links: Links,
    }

    fn house() -> House {
        let folder = tempfile::tempdir().unwrap();
        let links = Links {
            disk: folder.path().join("disk"),
            claims: folder.path().join("claims"),
        };
        House { folder, links }
    }

    impl House {
        fn claim(&self, device: &str, names: &[&str]) {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            self.links.claim(device, &names).unwrap();
        }

        fn targets(&self) -> Vec<(String, String)> {
            let mut found = Vec::new();
            for folder in fs::read_dir(self.folder.path().join("disk")).unwrap().flatten() {
                for link in fs::read_dir(folder.path()).unwrap().flatten() {
                    let target = fs::read_link(link.path()).unwrap();
                    found.push((
                        link.file_name().into_string().unwrap(),
                        target.to_str().unwrap().to_owned(),
                    ));
                }
            }
            found.sort();
            found
        }
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    #[test]
    fn links_come_change_and_go_with_their_device() {
        let house = house();
        house.claim("sda1", &["by-uuid/u1", "by-label/data"]);
        house.claim("cciss/c0d0", &["by-uuid/u2"]);
        assert_eq!(
            house.targets(),
            pairs(&[
                ("data", "../../sda1"),
                ("u1", "../../sda1"),
                ("u2", "../../cciss/c0d0")
            ])
        );
        house.claim("sda1", &["by-uuid/u3"]);
        assert_eq!(
            house.targets(),
            pairs(&[("u2", "../../cciss/c0d0"), ("u3", "../../sda1")])
        );
        house.claim("sda1", &[]);
        house.claim("cciss/c0d0", &[]);
        house.claim("never-seen", &[]);
        assert!(house.targets().is_empty());
        assert_eq!(
            fs::read_dir(house.folder.path().join("claims")).unwrap().count(),
            0
        );
    }

    #[test]
    fn name_that_two_claim_is_the_firsts_and_then_the_others() {
        let house = house();
        house.claim("sda1", &["by-label/data"]);
        house.claim("sdb1", &["by-label/data"]);
        assert_eq!(house.targets(), pairs(&[("data", "../../sda1")]));
        house.claim("sda1", &[]);
        assert_eq!(house.targets(), pairs(&[("data", "../../sdb1")]));
        house.claim("sdb1", &[]);
        assert!(house.targets().is_empty());
    }

    #[test]
    fn link_whose_device_does_not_claim_it_any_more_is_no_hindrance() {
        let house = house();
        house.claim("sda1", &["by-label/data"]);
        fs::remove_dir_all(house.folder.path().join("claims")).unwrap();
        house.claim("sdb1", &["by-label/data"]);
        assert_eq!(house.targets(), pairs(&[("data", "../../sdb1")]));
    }

    #[test]
    fn disks_of_this_machine_are_described_without_harm() {
        for entry in fs::read_dir("/sys/class/block")
            .into_iter()
            .flatten()
            .flatten()
            .take(8)
        {
            let name = entry.file_name().into_string().unwrap();
            let described = describe(&name).unwrap();
            assert!(described.place.starts_with("/sys/devices/"), "{described:?}");
        }
        assert_eq!(describe("no-such-disk"), None);
    }
}
