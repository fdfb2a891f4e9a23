//! Waiting for text on the console. Invariant: an error always shows the last lines, because that is what the person
//! who reads the failed test needs.

use super::{Console, Line, Mark, State};
use regex::Regex;
use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// How many lines an error shows.
const TAIL: usize = 40;

/// What to look for in a line.
#[derive(Debug, Clone)]
pub enum Pattern {
    /// The line contains this text.
    Text(String),
    /// The line matches this expression.
    Regex(Regex),
}

impl Pattern {
    fn matches(&self, line: &str) -> bool {
        match self {
            Self::Text(text) => line.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(line),
        }
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Pattern {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Regex> for Pattern {
    fn from(regex: Regex) -> Self {
        Self::Regex(regex)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "`{text}`"),
            Self::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

/// Why the awaited text was not seen.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It did not come in time.
    #[error("no line with {wanted} within {timeout:?}; the console's last lines were:\n{tail}")]
    TimedOut {
        /// What was looked for.
        wanted: String,
        /// How long.
        timeout: Duration,
        /// The last lines.
        tail: String,
    },
    /// The serial line closed: the machine is off.
    #[error("the machine's console closed before a line with {wanted} came; its last lines were:\n{tail}")]
    Closed {
        /// What was looked for.
        wanted: String,
        /// The last lines.
        tail: String,
    },
}

impl Console {
    /// Waits for a line with the pattern, among all that is kept and what comes. The line has come whole: whoever reads
    /// a number behind the text finds all of it.
    ///
    /// # Errors
    /// [`WaitError`], with the last lines.
    pub fn wait_for(&self, pattern: impl Into<Pattern>, timeout: Duration) -> Result<Line, WaitError> {
        self.wait_for_after(Mark(0), pattern, timeout)
    }

    /// Waits for a line with the pattern after the mark.
    ///
    /// # Errors
    /// [`WaitError`], with the last lines.
    pub fn wait_for_after(
        &self,
        mark: Mark,
        pattern: impl Into<Pattern>,
        timeout: Duration,
    ) -> Result<Line, WaitError> {
        self.wait_for_any(mark, &[pattern.into()], timeout)
            .map(|(_, line)| line)
    }

    /// Waits for a prompt: text that the machine leaves at the end without ending the line. What is kept counts too.
    ///
    /// # Errors
    /// [`WaitError`], with the last lines.
    pub fn wait_for_prompt(&self, prompt: &str, timeout: Duration) -> Result<Line, WaitError> {
        self.wait_until(timeout, &[prompt.into()], |state| {
            let partial = state.partial().filter(|line| line.text.ends_with(prompt))?;
            Some((0, partial))
        })
        .map(|(_, line)| line)
    }

    /// Waits for a line after the mark with any of the patterns, such as success and the known ways to fail; returns
    /// which one it was. The first line that matches wins, and in it the first pattern.
    ///
    /// # Errors
    /// [`WaitError`], with the last lines.
    pub fn wait_for_any(
        &self,
        mark: Mark,
        patterns: &[Pattern],
        timeout: Duration,
    ) -> Result<(usize, Line), WaitError> {
        let mut from = mark.0;
        self.wait_until(timeout, patterns, |state| {
            let found = state.search(from, patterns);
            from = from.max(state.next);
            found
        })
    }

    fn wait_until(
        &self,
        timeout: Duration,
        patterns: &[Pattern],
        mut find: impl FnMut(&State) -> Option<(usize, Line)>,
    ) -> Result<(usize, Line), WaitError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&state) {
                return Ok(found);
            }
            let wanted = || {
                patterns
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" or ")
            };
            if !state.attached {
                return Err(WaitError::Closed {
                    wanted: wanted(),
                    tail: state.tail_text(),
                });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WaitError::TimedOut {
                    wanted: wanted(),
                    timeout,
                    tail: state.tail_text(),
                });
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl State {
    fn search(&self, from: u64, patterns: &[Pattern]) -> Option<(usize, Line)> {
        let oldest = self.lines.front().map_or(self.next, |l| l.number);
        let skip = usize::try_from(from.saturating_sub(oldest)).unwrap_or(usize::MAX);
        self.lines.iter().skip(skip).find_map(|line| {
            let which = patterns.iter().position(|p| p.matches(&line.text))?;
            Some((which, line.clone()))
        })
    }

    fn tail_text(&self) -> String {
        let first = self.lines.len().saturating_sub(TAIL);
        let mut text = String::new();
        for line in self.lines.iter().skip(first).cloned().chain(self.partial()) {
            text.push_str("  | ");
            text.push_str(&line.text);
            text.push('\n');
        }
        if text.is_empty() {
            "  (nothing)\n".to_owned()
        } else {
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MAX_LINES;
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const SOON: Duration = Duration::from_secs(10);

    fn console() -> (Console, UnixStream) {
        let (ours, machine) = UnixStream::pair().unwrap();
        let console = Console::new(None).unwrap();
        console.attach(ours).unwrap();
        (console, machine)
    }

    #[test]
    fn text_and_expressions_are_found_with_their_time() {
        let (console, mut machine) = console();
        let before = Instant::now();
        machine
            .write_all(b"boot\r\n\x1b[1mnode n1 joined in 4200 ms\x1b[0m\r\n")
            .unwrap();
        let line = console
            .wait_for(Regex::new(r"joined in \d+ ms").unwrap(), SOON)
            .unwrap();
        assert_eq!(
            (line.number, line.text.as_str()),
            (1, "node n1 joined in 4200 ms")
        );
        assert!(line.at >= before && line.at <= Instant::now());
        assert_eq!(console.wait_for("boot", SOON).unwrap().number, 0);
    }

    #[test]
    fn what_came_before_the_mark_does_not_count() {
        let (console, mut machine) = console();
        machine.write_all(b"ready\nrebo").unwrap();
        console.wait_for_prompt("rebo", SOON).unwrap();
        let mark = console.mark();
        machine.write_all(b"ot, not ready\n").unwrap();
        let late = console.wait_for_after(mark, "ready", Duration::from_millis(50));
        assert!(matches!(late, Err(WaitError::TimedOut { .. })));
        machine.write_all(b"ready again\n").unwrap();
        assert_eq!(
            console.wait_for_after(mark, "ready", SOON).unwrap().text,
            "ready again"
        );
    }

    #[test]
    fn a_prompt_without_line_end_is_found_and_can_be_answered() {
        let (console, mut machine) = console();
        machine.write_all(b"login: ").unwrap();
        console.wait_for_prompt("login: ", SOON).unwrap();
        console.write("root\r").unwrap();
        let mut typed = [0; 5];
        machine.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"root\r");
    }

    #[test]
    fn a_line_is_found_when_all_of_it_is_there() {
        let (console, mut machine) = console();
        machine.write_all(b"Its code is ").unwrap();
        console.wait_for_prompt("Its code is ", SOON).unwrap();
        let early = console.wait_for("Its code is", Duration::from_millis(50));
        assert!(matches!(early, Err(WaitError::TimedOut { .. })), "{early:?}");
        machine.write_all(b"12345-67890\n").unwrap();
        assert_eq!(
            console.wait_for("Its code is", SOON).unwrap().text,
            "Its code is 12345-67890"
        );
    }

    #[test]
    fn a_time_out_shows_the_last_forty_lines() {
        let (console, mut machine) = console();
        for i in 0..50 {
            writeln!(machine, "line {i}").unwrap();
        }
        console.wait_for("line 49", SOON).unwrap();
        let text = console
            .wait_for("joined", Duration::from_millis(20))
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("no line with `joined`")
                && text.contains("| line 49\n")
                && text.contains("| line 10\n")
        );
        assert!(!text.contains("| line 9\n"), "{text}");
    }

    #[test]
    fn a_paused_console_reads_nothing_and_goes_on_where_it_was() {
        let (console, mut machine) = console();
        machine.write_all(b"first\n").unwrap();
        console.wait_for("first", SOON).unwrap();
        console.pause(true);
        // One read may be under way and still takes something; what is more stays in the socket, which fills up.
        machine.set_nonblocking(true).unwrap();
        let fill = |machine: &mut UnixStream| {
            let block = [&[b'x'; 63][..], b"\n"].concat().repeat(64);
            let written = (0..4096).map_while(|_| machine.write(&block).ok());
            written.sum::<usize>()
        };
        let mut full = 0;
        for _ in 0..100 {
            full = match fill(&mut machine) {
                0 => full + 1,
                _ => 0,
            };
            if full == 3 {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(full, 3, "the console reads on");
        console.pause(false);
        machine.set_nonblocking(false).unwrap();
        machine.write_all(b"\nlater\n").unwrap();
        console.wait_for("later", SOON).unwrap();
    }

    #[test]
    fn a_machine_that_goes_off_ends_the_waiting_at_once() {
        let (console, mut machine) = console();
        machine.write_all(b"panic: no root").unwrap();
        drop(machine);
        let started = Instant::now();
        let error = console.wait_for("joined", SOON).unwrap_err();
        assert!(
            matches!(&error, WaitError::Closed { tail, .. } if tail.contains("panic: no root")),
            "{error}"
        );
        assert!(started.elapsed() < SOON);
        assert!(console.write("x").is_err());
    }

    #[test]
    fn the_first_of_several_patterns_that_appears_is_told() {
        let (console, mut machine) = console();
        machine.write_all(b"one\nrefused: expired\njoined\n").unwrap();
        let (which, line) = console
            .wait_for_any(Mark(0), &["joined".into(), "refused".into()], SOON)
            .unwrap();
        assert_eq!((which, line.text.as_str()), (1, "refused: expired"));
    }

    #[test]
    fn the_ring_forgets_the_oldest_lines_and_the_numbers_go_on() {
        let (console, mut machine) = console();
        let many = (0..MAX_LINES + 500).map(|i| format!("{i}\n")).collect::<String>() + "end\n";
        machine.write_all(many.as_bytes()).unwrap();
        let end = console.wait_for("end", SOON).unwrap();
        assert_eq!(end.number as usize, MAX_LINES + 500);
        let kept = console.lines_after(Mark(0));
        assert_eq!(kept.len(), MAX_LINES);
        assert_eq!(kept[0].text, "501");
    }

    #[test]
    fn a_second_boot_goes_on_where_the_first_ended() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        let console = Console::new(Some(&log)).unwrap();
        for boot in ["first", "second"] {
            let mark = console.mark();
            let (ours, mut machine) = UnixStream::pair().unwrap();
            console.attach(ours).unwrap();
            writeln!(machine, "{boot} boot").unwrap();
            assert_eq!(
                console.wait_for_after(mark, "boot", SOON).unwrap().text,
                format!("{boot} boot")
            );
        }
        let text = std::fs::read_to_string(&log).unwrap();
        assert!(
            text.lines().next().unwrap().ends_with(" first boot") && text.contains(" second boot"),
            "{text}"
        );
    }
}
