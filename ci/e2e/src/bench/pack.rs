//! `cargo xtask bench pack`: how fast `joinpack verify` is through a large pack, and how much memory it takes.
//!
//! The same files are read in turn by `cat` (the medium's speed), by `joinpack verify`, and by `sha256sum` (its peer: the same
//! digests, by the C library's people). Before each run the files are dropped from the page cache. Invariant: time and memory
//! are the kernel's, of that one program in that one run; what they say is judged nowhere else.

use super::host;
use super::statistics::{Summary, summary};
use crate::Binaries;
use crate::binaries::expect_success;
use anyhow::{Context, Result, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// `joinpack verify` takes at most so much memory, in KiB: 64 MiB.
pub const MEMORY_KIB: u64 = 64 * 1024;
/// Size of one image of the pack, in MiB.
const IMAGE_MIB: u64 = 1024;
/// Room beside the pack and what it is made from, in MiB.
const SPARE_MIB: u64 = 256;

/// Who reads the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reader {
    /// `cat`: reads and does nothing.
    Cat,
    /// `joinpack verify`.
    Joinpack,
    /// `sha256sum`.
    Sha256sum,
}

impl Reader {
    /// In the order in which they run.
    pub const ALL: [Self; 3] = [Self::Cat, Self::Joinpack, Self::Sha256sum];

    fn title(self) -> &'static str {
        match self {
            Self::Cat => "cat",
            Self::Joinpack => "joinpack verify",
            Self::Sha256sum => "sha256sum",
        }
    }
}

/// One run of one program.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// From its start to its end, in seconds.
    pub seconds: f64,
    /// Most memory that it had at once (`ru_maxrss`, getrusage(2)), in KiB.
    pub peak_kib: u64,
}

/// All runs of one program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    /// Which.
    pub reader: Reader,
    /// In their order.
    pub runs: Vec<Run>,
    /// Megabytes (10^6 bytes) of blobs in a second.
    pub mb_per_s: Summary,
    /// The largest of the runs' peaks, in KiB.
    pub peak_kib: u64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The day, UTC.
    pub date: String,
    /// This machine.
    pub host: String,
    /// Bytes of all blobs.
    pub bytes: u64,
    /// Blobs.
    pub blobs: usize,
    /// By reader.
    pub series: Vec<Series>,
    /// Median speed of `joinpack verify` by that of `cat`: 1 is the medium's speed.
    pub to_cat: f64,
    /// The same by that of `sha256sum`.
    pub to_sha256sum: f64,
    /// `joinpack verify` stayed within [`MEMORY_KIB`] in every run.
    pub within_memory: bool,
}

/// Makes a pack of `mib` MiB in `folder` and lets each reader through it `rounds` times. `measure` runs a command line and
/// says what [`measured`] said of it.
///
/// # Errors
/// Where there is no room, or a program fails.
pub fn bench(
    binaries: &Binaries,
    folder: &Path,
    mib: u64,
    rounds: u16,
    measure: impl Fn(&[OsString]) -> Result<Run>,
) -> Result<Report> {
    let pack = make_pack(binaries, folder, mib)?;
    let blobs = blobs(&pack)?;
    let bytes = blobs.iter().map(|(_, size)| size).sum();
    let mut runs = Reader::ALL.map(|reader| (reader, Vec::new()));
    for round in 1..=rounds {
        for (reader, runs) in &mut runs {
            for (path, _) in &blobs {
                forget(path)?;
            }
            let run = measure(&command(*reader, binaries, &pack, &blobs))
                .with_context(|| format!("{}, run {round}", reader.title()))?;
            eprintln!("[{round}/{rounds}] {}: {:.2} s", reader.title(), run.seconds);
            runs.push(run);
        }
    }
    report(bytes, blobs.len(), runs)
}

fn report(bytes: u64, blobs: usize, runs: [(Reader, Vec<Run>); 3]) -> Result<Report> {
    let mut series = Vec::new();
    for (reader, runs) in runs {
        let speeds = runs.iter().map(|run| bytes as f64 / 1e6 / run.seconds);
        series.push(Series {
            reader,
            mb_per_s: summary(speeds).context("nothing was run")?,
            peak_kib: runs.iter().map(|run| run.peak_kib).max().unwrap_or_default(),
            runs,
        });
    }
    let median = |reader| {
        let of = series.iter().find(|series| series.reader == reader);
        of.map_or(f64::NAN, |series| series.mb_per_s.median)
    };
    let ours = median(Reader::Joinpack);
    let peaks = series.iter().filter(|series| series.reader == Reader::Joinpack);
    Ok(Report {
        date: time::OffsetDateTime::now_utc().date().to_string(),
        host: host::words(),
        bytes,
        blobs,
        to_cat: ours / median(Reader::Cat),
        to_sha256sum: ours / median(Reader::Sha256sum),
        within_memory: peaks
            .map(|series| series.peak_kib)
            .max()
            .is_some_and(|peak| peak <= MEMORY_KIB),
        series,
    })
}

/// The report for people.
#[must_use]
pub fn words(report: &Report) -> String {
    let mut text = format!(
        "{:.2} GiB in {} blobs, {}, {}\n{:<16} {:>8} {:>18} {:>9}\n",
        report.bytes as f64 / f64::from(1 << 30),
        report.blobs,
        report.date,
        report.host,
        "",
        "MB/s",
        "(lowest, highest)",
        "peak MiB"
    );
    for series in &report.series {
        let Summary {
            median,
            lowest,
            highest,
        } = series.mb_per_s;
        let spread = format!("({lowest:.0}, {highest:.0})");
        let peak = series.peak_kib as f64 / 1024.0;
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{:<16} {median:>8.0} {spread:>18} {peak:>9.1}",
            series.reader.title()
        );
    }
    let _ = write!(
        text,
        "joinpack verify: {:.2} of the speed of cat, {:.2} of that of sha256sum; at most 64 MiB: {}",
        report.to_cat,
        report.to_sha256sum,
        if report.within_memory { "yes" } else { "no" }
    );
    text
}

/// Runs a program as the only child of this process, and says what the kernel counted.
///
/// # Errors
/// Where it cannot be started, or fails; with its own words.
pub fn measured(line: &[OsString]) -> Result<Run> {
    let (program, arguments) = line.split_first().context("no program")?;
    let start = Instant::now();
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {}", program.display()))?;
    let seconds = start.elapsed().as_secs_f64();
    expect_success(&program.to_string_lossy(), &output)?;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("failed to ask for its memory")?;
    Ok(Run {
        seconds,
        peak_kib: u64::try_from(usage.max_rss()).unwrap_or_default(),
    })
}

fn command(reader: Reader, binaries: &Binaries, pack: &Path, blobs: &[(PathBuf, u64)]) -> Vec<OsString> {
    let files = blobs.iter().map(|(path, _)| path.clone().into_os_string());
    match reader {
        Reader::Cat => std::iter::once("cat".into()).chain(files).collect(),
        Reader::Sha256sum => std::iter::once("sha256sum".into()).chain(files).collect(),
        Reader::Joinpack => vec![binaries.joinpack().into(), "verify".into(), pack.into()],
    }
}

/// A pack of a new fabric with images of so many MiB in all.
fn make_pack(binaries: &Binaries, folder: &Path, mib: u64) -> Result<PathBuf> {
    let room = nix::sys::statvfs::statvfs(folder)
        .with_context(|| format!("failed to look at the file system of `{}`", folder.display()))?;
    let free = (room.blocks_available() * room.fragment_size()) >> 20;
    let needed = 2 * mib + SPARE_MIB;
    ensure!(
        free >= needed,
        "`{}` has {free} MiB free and {needed} are needed, for the images and the pack: choose another place with --folder, \
         or a smaller pack with --mib",
        folder.display()
    );
    let text = |name: &str| folder.join(name).display().to_string();
    let init = binaries.run_joinpack(["fabric", "init", &text("fabric"), "--name", "bench"])?;
    expect_success("joinpack fabric init", &init)?;
    let mut line: Vec<String> = ["create", "--fabric", &text("fabric"), "--out", &text("pack")]
        .map(str::to_owned)
        .to_vec();
    line.extend(["--node", "node-1"].map(str::to_owned));
    let mut archives = Vec::new();
    let mut left = mib;
    while left > 0 {
        let size = left.min(IMAGE_MIB);
        left -= size;
        let archive = folder.join(format!("image-{}.tar", archives.len() + 1));
        write_image(&archive, size, archives.len() as u64 + 1)
            .with_context(|| format!("failed to write `{}`", archive.display()))?;
        line.push("--image".to_owned());
        line.push(format!("bench:{}={}", archives.len() + 1, archive.display()));
        archives.push(archive);
    }
    eprintln!("making a pack of {mib} MiB");
    expect_success("joinpack create", &binaries.run_joinpack(&line)?)?;
    for archive in archives {
        fs::remove_file(&archive).with_context(|| format!("failed to remove `{}`", archive.display()))?;
    }
    Ok(folder.join("pack"))
}

/// What `joinpack create` takes for an OCI archive: its two documents, and something large that no disk makes smaller.
fn write_image(path: &Path, mib: u64, seed: u64) -> Result<()> {
    let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(path)?));
    let documents: [(&str, &[u8]); 2] = [
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", br#"{"schemaVersion":2,"manifests":[]}"#),
    ];
    for (name, content) in documents {
        append(&mut archive, name, content.len() as u64, content)?;
    }
    let size = mib << 20;
    append(&mut archive, "noise", size, Noise(seed).take(size))?;
    archive.into_inner()?.into_inner()?;
    Ok(())
}

fn append(
    archive: &mut tar::Builder<impl io::Write>,
    name: &str,
    size: u64,
    content: impl Read,
) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    Ok(archive.append_data(&mut header, name, content)?)
}

/// Bytes without end that nothing compresses (xorshift64, Marsaglia 2003). Not for secrets.
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for piece in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            for (to, from) in piece.iter_mut().zip(self.0.to_le_bytes()) {
                *to = from;
            }
        }
        Ok(buffer.len())
    }
}

/// The pack's blobs and their sizes.
fn blobs(pack: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let folder = pack.join("blobs/sha256");
    let context = || format!("failed to list `{}`", folder.display());
    let mut blobs = Vec::new();
    for entry in fs::read_dir(&folder).with_context(context)? {
        let entry = entry.with_context(context)?;
        blobs.push((entry.path(), entry.metadata().with_context(context)?.len()));
    }
    blobs.sort();
    Ok(blobs)
}

/// Writes a file to the disk and drops it from the page cache, so that the next reader needs the medium.
fn forget(path: &Path) -> Result<()> {
    let context = || format!("failed to drop `{}` from the page cache", path.display());
    let file = File::open(path).with_context(context)?;
    file.sync_all().with_context(context)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_of_medians_and_says_when_memory_was_not_enough() {
        let run = |seconds, peak_kib| Run { seconds, peak_kib };
        let of = |joinpack: Vec<Run>| {
            let runs = [
                (Reader::Cat, vec![run(1.0, 1); 3]),
                (Reader::Joinpack, joinpack),
                (Reader::Sha256sum, vec![run(4.0, 1); 3]),
            ];
            report(1_000_000_000, 1, runs).unwrap()
        };
        let good = of(vec![run(2.0, 10), run(1.0, 30), run(9.0, 20)]);
        assert_eq!(
            (good.to_cat, good.to_sha256sum, good.within_memory),
            (0.5, 2.0, true)
        );
        assert!(words(&good).contains("at most 64 MiB: yes"), "{}", words(&good));
        let large = of(vec![run(1.0, 1), run(1.0, MEMORY_KIB + 1), run(1.0, 1)]);
        assert!(!large.within_memory);
    }

    #[test]
    fn memory_of_a_program_is_what_it_took() {
        let line = ["dd", "if=/dev/zero", "of=/dev/null", "bs=48M", "count=1"].map(OsString::from);
        let run = measured(&line).unwrap();
        assert!((48 * 1024..200 * 1024).contains(&run.peak_kib), "{run:?}");
        assert!(measured(&["false".into()]).is_err());
    }
}
