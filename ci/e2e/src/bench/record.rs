//! The line that every system of the bench prints when it is ready, and the shell that prints it where there is one.
//!
//! Invariant: a line that lacks a field, or has one that cannot be, is refused: a figure is measured or missing.

use serde::{Deserialize, Serialize};

/// What the line begins with. `init/pid1` prints the same line with `beemesh.bench` on the kernel's command line.
const MARK: &str = "beemesh-bench: ";

/// And what it ends with: half a line is no record.
const END: &str = " end";
/// What to wait for on the console.
pub const PATTERN: &str = "beemesh-bench: .* end";

/// Sets `line` in a POSIX shell without starting a process. Processes without memory are the kernel's threads; the
/// shell itself counts only where it is PID 1.
pub const SHELL: &str = r#"
read -r up _ < /proc/uptime
while read -r key value _; do
  case "$key" in
    MemTotal:) total=$value ;;
    MemAvailable:) available=$value ;;
  esac
done < /proc/meminfo
while read -r key value _; do
  case "$key" in VmRSS:) rss=$value ;; esac
done < /proc/1/status
count=0
for process in /proc/[0-9]*; do
  pages=0
  { read -r pages _ < "$process/statm"; } 2>/dev/null
  [ "$pages" = 0 ] || count=$((count + 1))
done
[ $$ = 1 ] || count=$((count - 1))
line="beemesh-bench: uptime=$up total_kib=$total available_kib=$available pid1_rss_kib=$rss processes=$count end"
"#;

/// What a machine said of itself at the moment it was ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Milliseconds since the kernel started its clock (`/proc/uptime`, in steps of 10).
    pub uptime_ms: u64,
    /// MemTotal, KiB.
    pub total_kib: u64,
    /// MemAvailable, KiB.
    pub available_kib: u64,
    /// VmRSS of PID 1, KiB.
    pub pid1_rss_kib: u64,
    /// Processes without the kernel's threads.
    pub processes: u64,
}

/// Why a line is no record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// Not a line of the bench.
    #[error("the line has no `beemesh-bench:`")]
    NoMark,
    /// The line ends too early.
    #[error("the line has no end")]
    Cut,
    /// A field is missing or is no number.
    #[error("`{0}` is missing or no number")]
    Field(&'static str),
    /// More memory available than there is, or a value that cannot be zero.
    #[error("`{0}` cannot be")]
    Impossible(&'static str),
}

impl Record {
    /// Reads a console line.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn parse(line: &str) -> Result<Self, RecordError> {
        let (_, fields) = line.split_once(MARK).ok_or(RecordError::NoMark)?;
        let (fields, _) = fields.split_once(END).ok_or(RecordError::Cut)?;
        let field = |name: &'static str| {
            let values = fields.split_whitespace().filter_map(|word| word.split_once('='));
            let value = values
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| value)
                .next();
            value.ok_or(RecordError::Field(name))
        };
        let number = |name| field(name)?.parse::<u64>().map_err(|_| RecordError::Field(name));
        let record = Self {
            uptime_ms: milliseconds(field("uptime")?).ok_or(RecordError::Field("uptime"))?,
            total_kib: number("total_kib")?,
            available_kib: number("available_kib")?,
            pid1_rss_kib: number("pid1_rss_kib")?,
            processes: number("processes")?,
        };
        if record.available_kib > record.total_kib {
            return Err(RecordError::Impossible("available_kib"));
        }
        for (name, value) in [
            ("uptime", record.uptime_ms),
            ("pid1_rss_kib", record.pid1_rss_kib),
            ("processes", record.processes),
        ] {
            if value == 0 {
                return Err(RecordError::Impossible(name));
            }
        }
        Ok(record)
    }

    /// Memory in use: MemTotal - MemAvailable, KiB.
    #[must_use]
    pub fn used_kib(&self) -> u64 {
        self.total_kib - self.available_kib
    }
}

/// Milliseconds of `12.34`, as `/proc/uptime` writes seconds.
fn milliseconds(seconds: &str) -> Option<u64> {
    let (whole, hundredths) = seconds.split_once('.')?;
    if hundredths.len() != 2 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    Some(whole.checked_mul(1000)? + hundredths.parse::<u64>().ok()? * 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const LINE: &str = "[  OK  ] beemesh-bench: uptime=12.05 total_kib=1000 available_kib=900 pid1_rss_kib=11 processes=2 end\r";

    #[test]
    fn a_line_is_read_whatever_stands_before_it() {
        let record = Record::parse(LINE).unwrap();
        assert_eq!(
            (record.uptime_ms, record.used_kib(), record.processes),
            (12_050, 100, 2)
        );
    }

    #[test]
    fn lines_with_a_defect_are_refused_by_name() {
        let cut = LINE.replace("processes=2", "");
        assert_eq!(Record::parse(&cut), Err(RecordError::Field("processes")));
        let empty = LINE.replace("uptime=12.05", "uptime=");
        assert_eq!(Record::parse(&empty), Err(RecordError::Field("uptime")));
        let more = LINE.replace("available_kib=900", "available_kib=1001");
        assert_eq!(
            Record::parse(&more),
            Err(RecordError::Impossible("available_kib"))
        );
        assert_eq!(Record::parse("uptime=1.00"), Err(RecordError::NoMark));
        assert_eq!(
            Record::parse(LINE.split_once(" end").unwrap().0),
            Err(RecordError::Cut)
        );
    }

    #[test]
    fn both_shells_of_the_bench_print_a_line_that_is_read() {
        for shell in [&["busybox", "sh"][..], &["dash"]] {
            let script = format!("{SHELL}\necho \"$line\"");
            let output = Command::new(shell[0])
                .args(&shell[1..])
                .args(["-c", &script])
                .output()
                .unwrap();
            let record = Record::parse(&String::from_utf8_lossy(&output.stdout)).unwrap();
            assert!(record.processes > 1 && record.used_kib() > 0, "{record:?}");
            assert!(output.stderr.is_empty(), "{output:?}");
        }
    }
}
