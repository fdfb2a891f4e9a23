//! The clocks the agent reads, and the time floor.
//!
//! Whether a document has expired is judged by the floor, never by the RTC: a box whose clock says 1970 or 2099 must
//! join all the same. The floor is the greatest time that something trusted has vouched for, and it only rises.

use crate::store::{Store, write_atomic};
use beemesh_init_api::TimeFloor;
use beemesh_joinpack_format::Timestamp;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch by the system clock; 0 before it.
pub fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since the machine started, by CLOCK_BOOTTIME.
pub fn boot_ms() -> u64 {
    boot_us() / 1_000
}

/// Microseconds since the machine started, by CLOCK_BOOTTIME.
pub fn boot_us() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from);
    now.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The time floor: what is certainly past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor(pub Timestamp);

impl Floor {
    /// The floor of a box that knows only when its image was built, and what an earlier boot had learned.
    pub fn new(built: Timestamp, persisted: Option<Timestamp>) -> Self {
        Self(persisted.map_or(built, |persisted| built.max(persisted)))
    }

    /// Raises the floor to a time that a trusted signature vouches for. Returns whether it rose.
    pub fn raise(&mut self, seen: Timestamp) -> bool {
        let rises = seen > self.0;
        self.0 = self.0.max(seen);
        rises
    }

    /// The best guess of now that lies between `earliest` and `latest`: the system clock where it is plausible.
    pub fn now_within(&self, system: Timestamp, earliest: Timestamp, latest: Timestamp) -> Timestamp {
        system.max(self.0).max(earliest).min(latest)
    }
}

/// What the clock may be set by: hands the floor over to `beemesh-net`, and keeps what signed records have taught.
///
/// A record's time is by its operator's clock, so it raises only this floor, under which the system clock is not set,
/// and not the one that packs are judged by; and by no more than [`RECORD_MOST`], so that one wrong laptop does not make
/// every box refuse the right time for long.
#[derive(Clone)]
pub struct FloorKeeper(Arc<Mutex<Kept>>);

struct Kept {
    store: Store,
    document: PathBuf,
    floor: i64,
    persisted: i64,
}

/// How far a signed record may raise the floor above what packs and the build say, in seconds: a year.
pub const RECORD_MOST: i64 = 365 * 86_400;
/// The floor is made durable when it has risen by this much, in seconds: a record a second must not wear out a disk.
const PERSIST: i64 = 3_600;
/// Name of the document on the state volume.
const DOCUMENT: &str = "time-floor.json";

impl FloorKeeper {
    /// Hands over the greater of `floor` and what an earlier boot has persisted.
    pub fn open(store: Store, document: PathBuf, floor: Floor) -> Self {
        // A damaged document is no more than a lower floor.
        let persisted = store
            .load::<TimeFloor>(DOCUMENT)
            .ok()
            .flatten()
            .map_or(0, |floor| floor.unix);
        let kept = Kept {
            store,
            document,
            floor: i64::MIN,
            persisted,
        };
        let keeper = Self(Arc::new(Mutex::new(kept)));
        keeper.raise(floor.0.0.max(persisted));
        keeper
    }

    /// A pack or another trusted document vouches for this time.
    pub fn raise_to(&self, floor: Floor) {
        self.raise(floor.0.0);
    }

    /// A change with this id, a ULID, bears an operator's signature. `base` is what packs and the build say.
    pub fn raise_by_record(&self, id: &str, base: Timestamp) {
        let Ok(ulid) = id.parse::<ulid::Ulid>() else {
            return;
        };
        let unix = i64::try_from(ulid.timestamp_ms() / 1000).unwrap_or(i64::MAX);
        self.raise(unix.min(base.0.saturating_add(RECORD_MOST)));
    }

    /// What is certainly past.
    pub fn floor(&self) -> Timestamp {
        Timestamp(self.0.lock().unwrap_or_else(PoisonError::into_inner).floor)
    }

    fn raise(&self, unix: i64) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if unix <= kept.floor {
            return;
        }
        kept.floor = unix;
        let document = TimeFloor { unix };
        let bytes = serde_json::to_vec(&document).unwrap_or_default();
        if let Err(error) = write_atomic(&kept.document, &bytes, 0o644) {
            tracing::warn!(%error, "failed to hand over the time floor");
        }
        if unix.saturating_sub(kept.persisted) >= PERSIST {
            match kept.store.save(DOCUMENT, &document) {
                Ok(()) => kept.persisted = unix,
                Err(error) => tracing::warn!(error = crate::words(&error), "failed to keep the time floor"),
            }
        }
    }
}

/// The system clock as a timestamp.
pub fn system_now() -> Timestamp {
    Timestamp(i64::try_from(unix_ms() / 1000).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_only_rises() {
        let mut floor = Floor::new(Timestamp(100), Some(Timestamp(50)));
        assert!(!floor.raise(Timestamp(99)));
        assert!(floor.raise(Timestamp(200)));
        assert_eq!(floor, Floor(Timestamp(200)));
    }

    #[test]
    fn a_clock_of_1970_or_2099_is_brought_between_the_bounds() {
        let floor = Floor(Timestamp(1_000));
        for system in [0, 4_102_444_800] {
            let now = floor.now_within(Timestamp(system), Timestamp(900), Timestamp(2_000));
            assert!((1_000..=2_000).contains(&now.0), "{now:?}");
        }
    }

    fn handed_over(folder: &tempfile::TempDir) -> i64 {
        let text = std::fs::read(folder.path().join("run/time-floor.json")).unwrap();
        serde_json::from_slice::<TimeFloor>(&text).unwrap().unix
    }

    fn keeper(folder: &tempfile::TempDir, floor: i64) -> FloorKeeper {
        let store = Store::open(&folder.path().join("state")).unwrap();
        let document = folder.path().join("run/time-floor.json");
        FloorKeeper::open(store, document, Floor(Timestamp(floor)))
    }

    #[test]
    fn floor_is_handed_over_rises_with_records_and_survives_a_reboot() {
        let folder = tempfile::tempdir().unwrap();
        let (base, later) = (1_767_225_600, 1_767_225_600 + 7_200);
        let floor = keeper(&folder, base);
        assert_eq!(handed_over(&folder), base);
        let id = ulid::Ulid::from_parts(later as u64 * 1000, 7).to_string();
        floor.raise_by_record(&id, Timestamp(base));
        floor.raise_by_record("no ulid", Timestamp(base));
        floor.raise_to(Floor(Timestamp(base + 1)));
        assert_eq!(handed_over(&folder), later);
        std::fs::remove_dir_all(folder.path().join("run")).unwrap();
        keeper(&folder, base);
        assert_eq!(handed_over(&folder), later);
    }

    #[test]
    fn record_of_a_wrong_laptop_raises_the_floor_by_a_year_at_most() {
        let folder = tempfile::tempdir().unwrap();
        let base = 1_767_225_600;
        let id = ulid::Ulid::from_parts(4_085_000_000_000, 7).to_string();
        keeper(&folder, base).raise_by_record(&id, Timestamp(base));
        assert_eq!(handed_over(&folder), base + RECORD_MOST);
    }
}
