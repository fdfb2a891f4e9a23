//! The messages of services to PID 1. Source: sd_notify(3), sd_pid_notify_with_fds(3).
//!
//! Understood are READY, STATUS, STOPPING, WATCHDOG (1 and `trigger`), WATCHDOG_USEC, EXTEND_TIMEOUT_USEC, FDSTORE with
//! FDNAME, FDSTOREREMOVE and BARRIER, and of our own X_BEEMESH_ASK (what is asked of PID 1 itself). All else is ignored, MAINPID too: who the main process is, PID 1 knows better than
//! any message. Invariants: a message has at most [`MESSAGE_LIMIT`] bytes, a status [`STATUS_LIMIT`] characters without
//! control characters, and a [`Store`] never holds more than its limit.

/// The longest message, in bytes; a longer one is dropped as a whole.
pub const MESSAGE_LIMIT: usize = 4_096;
/// The longest status that is kept, in characters.
pub const STATUS_LIMIT: usize = 160;
/// The longest name of a descriptor, in bytes. Source: sd_pid_notify_with_fds(3).
pub const NAME_LIMIT: usize = 255;
/// The name of descriptors that are sent without one. Source: sd_pid_notify_with_fds(3).
const UNNAMED: &str = "stored";

use crate::machine::Shutdown;

/// What is asked of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// It shall run.
    Start,
    /// It shall not run until it is asked to.
    Stop,
    /// It shall end, and run again.
    Restart,
}

/// What is asked of PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// For the service with this name.
    Service(Wish, String),
    /// For the machine.
    Shutdown(Shutdown),
}

impl Ask {
    /// Reads `start NAME`, `stop NAME`, `restart NAME`, `poweroff`, `reboot` or `halt`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let wish = |wish, name: &str| Some(Self::Service(wish, name.to_owned()));
        match text.split_once(' ') {
            Some(("start", name)) => wish(Wish::Start, name),
            Some(("stop", name)) => wish(Wish::Stop, name),
            Some(("restart", name)) => wish(Wish::Restart, name),
            Some(_) => None,
            None => Shutdown::parse(text).map(Self::Shutdown),
        }
    }
}

/// What a service says about its watchdog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It is alive.
    Alive,
    /// It asks to be treated as if it had not answered.
    Trigger,
}

/// One message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notice {
    /// It serves.
    pub ready: bool,
    /// It goes down by itself.
    pub stopping: bool,
    /// What it is doing, for people.
    pub status: Option<String>,
    /// About its watchdog.
    pub watchdog: Option<Sign>,
    /// A new time for its watchdog, in milliseconds.
    pub watchdog_ms: Option<u64>,
    /// It needs so much more time from now on for its start or its end, in milliseconds.
    pub extend_ms: Option<u64>,
    /// The descriptors that came along are to be kept.
    pub store: bool,
    /// The descriptors with its name are to be dropped.
    pub remove: bool,
    /// Name of the descriptors.
    pub name: Option<String>,
    /// What it asks of PID 1; counts only from a service whose spec allows it.
    pub ask: Option<Ask>,
}

impl Notice {
    /// Reads a message. What is malformed in it is passed over.
    #[must_use]
    pub fn parse(message: &[u8]) -> Self {
        let mut notice = Self::default();
        if message.len() > MESSAGE_LIMIT {
            return notice;
        }
        let text = String::from_utf8_lossy(message);
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            match (key, value) {
                ("READY", "1") => notice.ready = true,
                ("STOPPING", "1") => notice.stopping = true,
                ("WATCHDOG", "1") => notice.watchdog = Some(Sign::Alive),
                ("WATCHDOG", "trigger") => notice.watchdog = Some(Sign::Trigger),
                ("STATUS", text) => notice.status = Some(printable(text)),
                ("WATCHDOG_USEC", number) => notice.watchdog_ms = milliseconds(number),
                ("EXTEND_TIMEOUT_USEC", number) => notice.extend_ms = milliseconds(number),
                ("FDSTORE", "1") => notice.store = true,
                ("FDSTOREREMOVE", "1") => notice.remove = true,
                ("X_BEEMESH_ASK", text) => notice.ask = Ask::parse(text),
                ("FDNAME", name) if is_name(name) => notice.name = Some(name.to_owned()),
                _ => {}
            }
        }
        notice
    }

    /// The name of the descriptors that came along.
    #[must_use]
    pub fn stored_name(&self) -> &str {
        self.name.as_deref().unwrap_or(UNNAMED)
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(STATUS_LIMIT)
        .collect()
}

fn milliseconds(microseconds: &str) -> Option<u64> {
    microseconds.parse::<u64>().ok().map(|us| us / 1_000)
}

fn is_name(name: &str) -> bool {
    (1..=NAME_LIMIT).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic() && b != b':')
}

/// Descriptors that are kept for a service while it does not run, with their names, in the order of their arrival.
#[derive(Debug)]
pub struct Store<T> {
    kept: Vec<(String, T)>,
    limit: usize,
}

impl<T> Store<T> {
    /// Keeps at most `limit`.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            kept: Vec::new(),
            limit,
        }
    }

    /// Keeps what there is room for; how many were refused (and dropped).
    pub fn put(&mut self, name: &str, descriptors: Vec<T>) -> usize {
        let room = self.limit.saturating_sub(self.kept.len());
        let refused = descriptors.len().saturating_sub(room);
        let kept = descriptors.into_iter().take(room);
        self.kept.extend(kept.map(|one| (name.to_owned(), one)));
        refused
    }

    /// Drops those with this name.
    pub fn remove(&mut self, name: &str) {
        self.kept.retain(|(known, _)| known != name);
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.kept.clear();
    }

    /// What is kept.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.kept.iter().map(|(name, one)| (name.as_str(), one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn message_with_several_lines_says_all_of_them() {
        let notice =
            Notice::parse(b"READY=1\nSTATUS=serving\x1b[2J\nWATCHDOG=1\nMAINPID=1\nFDSTORE=1\nFDNAME=rest");
        assert!(notice.ready && notice.store && !notice.stopping);
        assert_eq!(notice.status.as_deref(), Some("serving[2J"));
        assert_eq!(notice.watchdog, Some(Sign::Alive));
        assert_eq!(notice.stored_name(), "rest");
    }

    #[test]
    fn only_the_words_of_the_list_ask_for_something() {
        let asked = |text: &str| Notice::parse(format!("X_BEEMESH_ASK={text}").as_bytes()).ask;
        let net = |wish| Some(Ask::Service(wish, "net".to_owned()));
        assert_eq!(asked("start net"), net(Wish::Start));
        assert_eq!(asked("stop net"), net(Wish::Stop));
        assert_eq!(asked("restart net"), net(Wish::Restart));
        assert_eq!(asked("halt"), Some(Ask::Shutdown(Shutdown::Halt)));
        for text in ["", "stop", "kill net", "poweroff now", "Reboot"] {
            assert_eq!(asked(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_microseconds_and_nonsense_is_passed_over() {
        let notice =
            Notice::parse(b"EXTEND_TIMEOUT_USEC=2500000\nWATCHDOG_USEC=-3\nREADY=yes\nWATCHDOG=trigger");
        assert_eq!((notice.extend_ms, notice.watchdog_ms), (Some(2_500), None));
        assert!(!notice.ready);
        assert_eq!(notice.watchdog, Some(Sign::Trigger));
    }

    #[test]
    fn message_past_the_limit_says_nothing() {
        let mut message = b"READY=1\nSTATUS=".to_vec();
        message.resize(MESSAGE_LIMIT, b'x');
        assert!(Notice::parse(&message).ready);
        message.push(b'x');
        assert_eq!(Notice::parse(&message), Notice::default());
    }

    #[test]
    fn name_that_could_break_the_list_of_names_is_not_taken() {
        for name in ["", "a:b", "a b", "a\u{e4}", &"x".repeat(NAME_LIMIT + 1)] {
            assert_eq!(
                Notice::parse(format!("FDSTORE=1\nFDNAME={name}").as_bytes()).stored_name(),
                UNNAMED,
                "{name}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            let notice = Notice::parse(&message);
            prop_assert!(notice.status.is_none_or(|s| s.chars().count() <= STATUS_LIMIT));
            prop_assert!(notice.name.is_none_or(|n| is_name(&n)));
        }

        #[test]
        fn invariant_store_never_holds_more_than_its_limit_and_loses_nothing_unsaid(
            limit in 0usize..6,
            acts in proptest::collection::vec((0u8..4, 0usize..9, any::<bool>()), 0..40),
        ) {
            let mut store = Store::new(limit);
            for (name, count, remove) in acts {
                let name = format!("n{name}");
                let before = store.iter().count();
                if remove {
                    let of_it = store.iter().filter(|(n, _)| *n == name).count();
                    store.remove(&name);
                    prop_assert_eq!(store.iter().count(), before - of_it);
                } else {
                    let refused = store.put(&name, vec![(); count]);
                    prop_assert_eq!(store.iter().count(), before + count - refused);
                }
                prop_assert!(store.iter().count() <= limit);
            }
        }
    }
}
