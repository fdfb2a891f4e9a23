//! The end of a machine's disks, in a child of PID 1: everything written, every file system unmounted from the innermost
//! out, the state volume closed.
//!
//! No disk is waited for by another: what lies in memory or over other file systems goes first, then each disk in a thread
//! of its own. A file system that is in use is tried again until the time is up: whoever holds it was killed, and goes as
//! soon as its disk has answered. Invariant: ends within the time it is given, whatever hangs, and says [`Outcome::Done`]
//! only when nothing that lies on a disk is left mounted.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use beemesh_init_api::STATE_MAPPER;
use beemesh_init_core::Outcome;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Without these nothing more can be done.
const KEPT: [&str; 5] = ["/", "/proc", "/sys", "/dev", "/run"];

/// A row of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mounted {
    /// `major:minor` of the file system.
    device: String,
    target: String,
    /// It lies on a block device.
    on_disk: bool,
    /// It uses directories of other file systems.
    overlay: bool,
}

impl Mounted {
    fn is_below(&self, other: &Self) -> bool {
        let below = self.target.strip_prefix(other.target.as_str());
        below.is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Knows how to close the state volume.
const UNLOCK: &str = "/usr/lib/beemesh/beemesh-unlock";
/// Between two tries to unmount what is in use.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Closes them within `time`. [`Outcome::Nothing`]: a disk did not answer, or kept a killed program from ending, all that time.
pub fn close_disks(time: Duration) -> Outcome {
    let end = Instant::now() + time;
    let all = read();
    let (disks, others): (Vec<Mounted>, Vec<Mounted>) = all.into_iter().partition(|m| m.on_disk);
    let over = others
        .into_iter()
        .filter(|m| m.overlay || disks.iter().any(|disk| m.is_below(disk)));
    // What lies over a disk that hangs may hang with it: half of the time for all of that.
    in_threads(vec![over.collect()], Instant::now() + time / 2);
    let mut by_disk: Vec<Vec<Mounted>> = Vec::new();
    for mounted in disks {
        match by_disk
            .iter_mut()
            .find(|of| of.iter().any(|m| m.device == mounted.device))
        {
            Some(of) => of.push(mounted),
            None => by_disk.push(vec![mounted]),
        }
    }
    let through = in_threads(by_disk, end);
    let state = Path::new("/dev/mapper").join(STATE_MAPPER);
    let closed = !state.exists()
        || Command::new(UNLOCK)
            .arg("close")
            .status()
            .is_ok_and(|status| status.success());
    if closed && !read().iter().any(|m| m.on_disk) {
        Outcome::Done
    } else if through {
        Outcome::Failed
    } else {
        Outcome::Nothing
    }
}

/// All that is mounted and may go, the innermost first.
fn read() -> Vec<Mounted> {
    parse(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Source: proc(5): mount id, parent, device, root, target, options, optional fields, `-`, kind, source. Octal escapes
/// stand for blanks; no mount of ours has one.
fn parse(table: &str) -> Vec<Mounted> {
    let row = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let (device, target) = (left.next()?, left.nth(1)?);
        let (kind, source) = right.split_once(' ')?;
        (!KEPT.contains(&target)).then(|| Mounted {
            device: device.to_owned(),
            target: target.to_owned(),
            on_disk: source.starts_with("/dev/"),
            overlay: kind == "overlay",
        })
    };
    table.lines().rev().filter_map(row).collect()
}

/// Unmounts each group in a thread of its own; comes back when all are through, or at `end`. True: all of them were through.
fn in_threads(groups: Vec<Vec<Mounted>>, end: Instant) -> bool {
    let (done, through) = channel();
    let count = groups.len();
    for group in groups {
        let done = done.clone();
        std::thread::spawn(move || {
            group.iter().for_each(unmount);
            let _ = done.send(());
        });
    }
    (0..count).all(|_| {
        let left = end.saturating_duration_since(Instant::now());
        through.recv_timeout(left).is_ok()
    })
}

/// An unmount writes what is not written yet. Comes back when nothing more can be done: for a disk that is in use that may
/// be never. What is in use is made read-only where that is possible, and so consistent.
fn unmount(mounted: &Mounted) {
    let target = mounted.target.as_str();
    while let Err(error) = umount2(target, MntFlags::empty()) {
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let _ = mount(None::<&str>, target, None::<&str>, read_only, None::<&str>);
        if !mounted.on_disk {
            let _ = umount2(target, MntFlags::MNT_DETACH);
            return;
        }
        if error != Errno::EBUSY {
            return;
        }
        std::thread::sleep(AGAIN_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 7:0 / / ro,relatime - squashfs /dev/loop0 ro\n\
22 21 0:20 / /proc rw,nosuid - proc proc rw\n\
26 21 0:24 / /run rw shared:1 - tmpfs tmpfs rw\n\
27 21 0:25 / /var rw shared:2 - tmpfs tmpfs rw\n\
30 27 253:0 / /var/lib/beemesh rw shared:3 - ext4 /dev/mapper/beemesh-state rw\n\
31 30 0:40 / /var/lib/beemesh/pods/a rw shared:4 - overlay overlay rw,lowerdir=x\n\
32 26 8:17 / /run/beemesh/stick ro - vfat /dev/sdb1 ro\n";

    #[test]
    fn innermost_come_first_and_what_everything_needs_stays() {
        let mounts = parse(TABLE);
        let targets: Vec<(&str, bool)> = mounts.iter().map(|m| (m.target.as_str(), m.on_disk)).collect();
        assert_eq!(
            targets,
            [
                ("/run/beemesh/stick", true),
                ("/var/lib/beemesh/pods/a", false),
                ("/var/lib/beemesh", true),
                ("/var", false),
            ]
        );
        let below = |inner: &str, outer: &str| {
            let named = |target: &str| mounts.iter().find(|m| m.target == target);
            named(inner)
                .zip(named(outer))
                .is_some_and(|(inner, outer)| inner.is_below(outer))
        };
        assert!(below("/var/lib/beemesh/pods/a", "/var/lib/beemesh") && below("/var/lib/beemesh", "/var"));
        assert!(!below("/var", "/var/lib/beemesh") && !below("/var", "/var"));
        assert_eq!(mounts.iter().filter(|m| m.overlay).count(), 1);
        assert!(parse("nonsense\n\n1 2 3 - x").is_empty());
    }

    #[test]
    fn group_that_hangs_is_left_behind_at_the_end_of_the_time() {
        let begin = Instant::now();
        // Nothing is mounted there: the threads are through at once.
        let nowhere = Mounted {
            device: "0:0".to_owned(),
            target: "/nonexistent/beemesh".to_owned(),
            on_disk: true,
            overlay: false,
        };
        assert!(in_threads(
            vec![vec![nowhere.clone()], vec![nowhere]],
            begin + Duration::from_secs(60),
        ));
        assert!(begin.elapsed() < Duration::from_secs(10));
        let _ = in_threads(vec![Vec::new(); 3], begin);
    }
}
