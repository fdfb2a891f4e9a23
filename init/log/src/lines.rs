//! Cuts what a service prints into lines, with the priority that it may begin with.
//!
//! Invariant: no byte but line ends and priority prefixes is lost, and at most [`MESSAGE_LIMIT`] bytes wait for the end of
//! their line.

use crate::record::{Flags, INFO, MESSAGE_LIMIT};

/// A line, or a part of one that is longer than [`MESSAGE_LIMIT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// 0 to 7, from the prefix `<N>` (sd-daemon(3)), else [`INFO`].
    pub priority: u8,
    /// Part of a longer line.
    pub flags: Flags,
    /// Without the prefix and the end.
    pub text: Vec<u8>,
}

/// What waits for the end of its line.
#[derive(Debug)]
pub struct Lines {
    rest: Vec<u8>,
    /// Priority of the line of which a part was given out already.
    within: Option<u8>,
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

impl Lines {
    /// Nothing waits.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            rest: Vec::new(),
            within: None,
        }
    }

    /// Takes what was printed, gives what became whole. Empty lines are left out.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut out = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ended) = piece
                .strip_suffix(b"\n")
                .map_or((piece, false), |text| (text, true));
            let mut text = text;
            loop {
                // The prefix is not counted: what is cut has exactly the limit.
                let room = (MESSAGE_LIMIT + 3).saturating_sub(self.rest.len());
                let (now, later) = text.split_at_checked(room).unwrap_or((text, &[]));
                self.rest.extend(now);
                text = later;
                if text.is_empty() {
                    break;
                }
                out.extend(self.take(true));
            }
            if ended {
                out.extend(self.flush());
            }
        }
        out
    }

    /// What waits, as if its line had ended: the printer is gone.
    pub fn flush(&mut self) -> Vec<Line> {
        let mut out = Vec::from_iter(self.take(false));
        // What waits may be longer than a message by the room for a prefix that it does not have.
        while !self.rest.is_empty() {
            out.extend(self.take(false));
        }
        self.within = None;
        out
    }

    fn take(&mut self, cut: bool) -> Option<Line> {
        let mut text = std::mem::take(&mut self.rest);
        let continues = self.within.is_some();
        let priority = match (self.within, text.as_slice()) {
            (Some(priority), _) => priority,
            (None, [b'<', digit @ b'0'..=b'7', b'>', ..]) => {
                let priority = digit - b'0';
                text.drain(..3);
                priority
            }
            (None, _) => INFO,
        };
        if text.len() > MESSAGE_LIMIT {
            self.rest = text.split_off(MESSAGE_LIMIT);
        }
        let more = cut || !self.rest.is_empty();
        if more {
            self.within = Some(priority);
        }
        if text.last() == Some(&b'\r') && !more {
            text.pop();
        }
        let flags = Flags { continues, cut: more };
        (!text.is_empty() || continues).then_some(Line {
            priority,
            flags,
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Line]) -> Vec<&[u8]> {
        lines.iter().map(|line| line.text.as_slice()).collect()
    }

    #[test]
    fn lines_come_whole_however_they_were_written_and_with_their_priority() {
        let mut lines = Lines::new();
        assert!(lines.push(b"<3>fa").is_empty());
        let got = lines.push(b"iled\nplain\r\n\n<9>odd\nres");
        assert_eq!(texts(&got), [b"failed".as_slice(), b"plain", b"<9>odd"]);
        assert_eq!((got[0].priority, got[1].priority), (3, INFO));
        assert_eq!(texts(&lines.flush()), [b"res".as_slice()]);
        assert_eq!(lines.flush(), []);
    }

    #[test]
    fn a_long_line_is_split_marked_and_loses_no_byte() {
        for prefix in ["", "<4>"] {
            for extra in [0, 1, 2, 3, 4, MESSAGE_LIMIT, 2 * MESSAGE_LIMIT + 7] {
                let body: Vec<u8> = (0..MESSAGE_LIMIT + extra)
                    .map(|n| b'a' + (n % 26) as u8)
                    .collect();
                let printed = [prefix.as_bytes(), &body, b"\n<1>next\n"].concat();
                for step in [1000, printed.len()] {
                    let mut lines = Lines::new();
                    let mut got = Vec::new();
                    for piece in printed.chunks(step) {
                        got.extend(lines.push(piece));
                    }
                    got.extend(lines.flush());
                    let next = got.pop().unwrap();
                    assert_eq!((next.priority, next.text.as_slice()), (1, b"next".as_slice()));
                    assert_eq!(next.flags, Flags::default());
                    assert_eq!(texts(&got).concat(), body, "{prefix} {extra} {step}");
                    assert!(got.iter().all(|line| line.text.len() <= MESSAGE_LIMIT));
                    for (number, line) in got.iter().enumerate() {
                        assert_eq!(line.flags.continues, number > 0);
                        assert_eq!(line.flags.cut, number + 1 < got.len(), "{prefix} {extra} {step}");
                        assert_eq!(line.priority, if prefix.is_empty() { INFO } else { 4 });
                    }
                }
            }
        }
    }
}
