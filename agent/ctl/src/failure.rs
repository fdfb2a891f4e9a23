//! How a run of `bmctl` ends when it does not end well: an exit code, one line that says what and why, and a hint.
//!
//! Invariant: the cause is printed on one line whatever the causes contain, and control characters of foreign texts
//! never reach the terminal.

use std::{error::Error, io};

/// What kind of end it is; each has an exit code that scripts may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It was tried and did not work: exit code 1.
    Failed,
    /// The command line, a manifest or a file is wrong; the node was not changed: exit code 2.
    Invalid,
    /// The node does not accept this operator, or the operator cannot accept this node: exit code 3.
    NotAuthorised,
    /// It took longer than `--timeout`: exit code 4.
    TimedOut,
    /// Whoever read the output went away, as `head` does: nothing is said, exit code 0.
    ReaderGone,
}

impl Class {
    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::ReaderGone => 0,
            Self::Failed => 1,
            Self::Invalid => 2,
            Self::NotAuthorised => 3,
            Self::TimedOut => 4,
        }
    }
}

/// A failed run.
#[derive(Debug)]
pub struct Failure {
    class: Class,
    what: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
    hint: Option<String>,
}

impl Failure {
    /// A failure of `class`; `what` says what was wanted, in backquotes where it names a thing.
    pub fn new(class: Class, what: impl Into<String>) -> Self {
        Self {
            class,
            what: what.into(),
            cause: None,
            hint: None,
        }
    }

    /// Adds the error that caused it; its own sources are printed after it.
    pub fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Adds what a person can do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Writes `bmctl: what: cause: cause`, and a second line `hint: …` where there is one.
    ///
    /// # Errors
    /// What writing to `to` gives.
    pub fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        if self.class == Class::ReaderGone {
            return Ok(());
        }
        let mut line = self.what.clone();
        let mut said = String::new();
        let mut next: Option<&(dyn Error + 'static)> = self.cause.as_deref().map(|cause| cause as _);
        while let Some(cause) = next {
            let text = cause.to_string();
            // Wrappers of the libraries below often repeat their source.
            if !text.is_empty() && text != said {
                line.push_str(": ");
                line.push_str(&text);
            }
            said = text;
            next = cause.source();
        }
        writeln!(to, "bmctl: {}", one_line(&line))?;
        match &self.hint {
            Some(hint) => writeln!(to, "hint: {}", one_line(hint)),
            None => Ok(()),
        }
    }
}

/// `text` on one line: white space runs become one blank, other control characters become visible escapes.
pub(crate) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        for c in word.chars() {
            if c.is_control() {
                out.extend(c.escape_unicode())
            } else {
                out.push(c)
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("failed to open `x`")]
    struct Outer(#[source] io::Error);

    fn text(failure: &Failure) -> String {
        let mut out = Vec::new();
        failure.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_chain_of_causes_is_one_line_and_the_hint_another() {
        let cause = Outer(io::Error::other("no such file"));
        let failure = Failure::new(Class::Invalid, "apply")
            .because(cause)
            .hint("make one");
        assert_eq!(
            text(&failure),
            "bmctl: apply: failed to open `x`: no such file\nhint: make one\n"
        );
    }

    #[test]
    fn line_breaks_and_escape_sequences_of_causes_do_not_reach_the_terminal() {
        let failure = Failure::new(Class::Failed, "get").because("two\nlines \u{1b}[31mred");
        assert_eq!(text(&failure), "bmctl: get: two lines \\u{1b}[31mred\n");
    }

    #[test]
    fn nothing_is_said_when_the_reader_is_gone() {
        let failure = Failure::new(Class::ReaderGone, "write");
        assert_eq!((text(&failure).as_str(), failure.class().exit_code()), ("", 0));
    }
}
