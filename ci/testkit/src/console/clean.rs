//! Turns terminal output into lines of text: control sequences (ECMA-48) and carriage returns go, a jump of the cursor
//! ends a line. Invariant: never holds more than one line of [`MAX_LINE`](super::MAX_LINE) bytes.

use super::MAX_LINE;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC [: parameters until a final byte.
    Control,
    /// After ESC ], P, X, ^ or _: text until BEL or ESC \.
    Text7,
    /// After ESC and an intermediate byte such as `(`: one more byte.
    Charset,
}

#[derive(Debug, Default)]
pub(super) struct Cleaner {
    mode: Mode,
    line: Vec<u8>,
}

impl Cleaner {
    /// The line that has begun, so far.
    pub(super) fn partial(&self) -> &[u8] {
        &self.line
    }

    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for byte in bytes {
            self.mode = match (self.mode, *byte) {
                (_, 0x1b) => Mode::Escape,
                (Mode::Text, b'\n') => {
                    line(self.finish());
                    Mode::Text
                }
                (Mode::Text, b) => {
                    if b == b'\t' || b >= 0x20 && b != 0x7f {
                        self.line.push(b);
                        if self.line.len() >= MAX_LINE {
                            line(self.finish());
                        }
                    }
                    Mode::Text
                }
                (Mode::Escape, b'[') => Mode::Control,
                (Mode::Escape, b']' | b'P' | b'X' | b'^' | b'_') => Mode::Text7,
                (Mode::Escape, b' '..=b'/') => Mode::Charset,
                (Mode::Escape | Mode::Charset, _) => Mode::Text,
                (Mode::Control, b'@'..=b'~') => {
                    // Cursor position and "erase display": what follows stands elsewhere on the screen.
                    if matches!(*byte, b'H' | b'f' | b'J') && !self.line.is_empty() {
                        line(self.finish());
                    }
                    Mode::Text
                }
                (Mode::Control, b'\n') => {
                    line(self.finish());
                    Mode::Text
                }
                (Mode::Control, _) => Mode::Control,
                (Mode::Text7, 0x07 | b'\n') => Mode::Text,
                (Mode::Text7, _) => Mode::Text7,
            };
        }
    }

    fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.line).into_owned();
        self.line.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        let mut cleaner = Cleaner::default();
        cleaner.push(input, |l| whole.push(l));
        let mut bytewise = Vec::new();
        let mut cleaner = Cleaner::default();
        for b in input {
            cleaner.push(&[*b], |l| bytewise.push(l));
        }
        assert_eq!(whole, bytewise, "chunking must not matter");
        whole
    }

    #[test]
    fn colours_and_carriage_returns_vanish() {
        assert_eq!(
            lines(b"\x1b[0;32m  OK  \x1b[0m done\r\n\x1b]0;title\x07next\x1b(B\n"),
            ["  OK   done", "next"]
        );
    }

    #[test]
    fn a_jump_of_the_cursor_ends_a_line() {
        assert_eq!(
            lines(b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: loading\x1b[02;01Hsecond\n"),
            ["BdsDxe: loading", "second"]
        );
    }

    #[test]
    fn a_line_without_end_is_cut_at_the_bound() {
        let seen = lines(&vec![b'x'; MAX_LINE * 2 + 10]);
        assert_eq!(
            seen.iter().map(String::len).collect::<Vec<_>>(),
            [MAX_LINE, MAX_LINE]
        );
    }

    #[test]
    fn bytes_that_are_no_utf8_do_not_stop_the_reading() {
        assert_eq!(lines(b"a\xff\xfeb\n"), ["a\u{fffd}\u{fffd}b"]);
    }
}
