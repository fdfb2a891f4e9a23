//! LUKS2 through cryptsetup(8). The key goes through a pipe: never on a command line, never in a file.
//!
//! The key is 32 random bytes, so stretching it would cost boot time and add nothing: PBKDF2 with the least
//! iterations that cryptsetup allows.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use beemesh_firmware_tpm::{Tpm, TpmError, Zeroizing};
use beemesh_init_api::{STATE_LABEL, STATE_MAPPER};

use crate::signature::{UNFINISHED_LABEL, sealed_keys, token_json};

/// Bytes of the key that is sealed.
pub const KEY_BYTES: usize = 32;

/// Why a LUKS step failed.
#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    /// A program is missing.
    #[error("failed to run `{0}`")]
    Run(&'static str, #[source] std::io::Error),
    /// A program failed.
    #[error("`{program} {step}` failed: {output}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its first argument.
        step: String,
        /// What it said, shortened.
        output: String,
    },
    /// The device cannot be read.
    #[error("failed to read `{0}`")]
    Read(PathBuf, #[source] std::io::Error),
    /// No randomness.
    #[error("the kernel gives no random bytes ({0})")]
    Random(getrandom::Error),
    /// The TPM does not give or take the key.
    #[error("the tpm does not work")]
    Tpm(#[from] TpmError),
    /// The TPM gave back something else than it was given.
    #[error("the tpm does not give back the key that it sealed")]
    Forgetful,
    /// Neither the TPM's key nor anything else of ours in the header.
    #[error("`{0}` holds no key that was sealed by this product")]
    NoToken(PathBuf),
}

/// The opened volume's node.
#[must_use]
pub fn mapped() -> PathBuf {
    Path::new("/dev/mapper").join(STATE_MAPPER)
}

/// A new key and its sealed form.
pub struct SealedKey {
    key: Zeroizing<Vec<u8>>,
    sealed: Vec<u8>,
}

/// Makes a key that only `tpm` can give back. Touches no disk, so it can be done while the disks are still coming.
///
/// # Errors
/// [`LuksError::Random`], [`LuksError::Tpm`].
pub fn new_key(tpm: &dyn Tpm) -> Result<SealedKey, LuksError> {
    let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
    getrandom::fill(&mut key).map_err(LuksError::Random)?;
    let sealed = tpm.seal(&key)?;
    // A sealed key that does not come back is found now, not at the next boot.
    if *tpm.unseal(&sealed)? != *key {
        return Err(LuksError::Forgetful);
    }
    Ok(SealedKey { key, sealed })
}

/// Makes a LUKS2 volume, opens it, and lets `fill` make a file system in it. It is marked as unfinished until all of
/// that is done.
///
/// # Errors
/// [`LuksError`], or what `fill` returns.
pub fn format<E: From<LuksError>>(
    device: &Path,
    new: &SealedKey,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let arguments = [
        "luksFormat",
        "--batch-mode",
        "--type=luks2",
        "--cipher=aes-xts-plain64",
        "--key-size=512",
        "--hash=sha256",
        "--pbkdf=pbkdf2",
        "--pbkdf-force-iterations=1000",
        "--luks2-metadata-size=64k",
        "--luks2-keyslots-size=2m",
        "--key-file=-",
        "--label",
        UNFINISHED_LABEL,
    ];
    cryptsetup(&arguments, Some(device), &new.key)?;
    // Two programs at a time: most of their time is their own start.
    std::thread::scope(|scope| {
        let json = token_json(&new.sealed);
        let import = scope.spawn(move || {
            cryptsetup(
                &["token", "import", "--json-file=-"],
                Some(device),
                json.as_bytes(),
            )
        });
        let node = open_with(device, &new.key)?;
        fill(&node)?;
        import.join().unwrap_or(Err(LuksError::Forgetful))?;
        cryptsetup(&["config", "--label", STATE_LABEL], Some(device), b"")?;
        Ok(node)
    })
}

/// Opens a volume with the key that `tpm` gives back.
///
/// # Errors
/// [`LuksError::Tpm`] for a volume of another machine.
pub fn open(device: &Path, header_bytes: u64, tpm: &dyn Tpm) -> Result<PathBuf, LuksError> {
    let mut header = Vec::new();
    let file = File::open(device).map_err(|e| LuksError::Read(device.to_owned(), e))?;
    file.take(header_bytes)
        .read_to_end(&mut header)
        .map_err(|e| LuksError::Read(device.to_owned(), e))?;
    let mut last = LuksError::NoToken(device.to_owned());
    for sealed in sealed_keys(&header) {
        let started = Instant::now();
        let unsealed = tpm.unseal(&sealed);
        println!("the TPM took {} ms", started.elapsed().as_millis());
        match unsealed {
            Ok(key) => return open_with(device, &key),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn open_with(device: &Path, key: &[u8]) -> Result<PathBuf, LuksError> {
    let arguments = ["open", "--type=luks2", "--key-file=-", "--allow-discards"];
    // The name comes after the device.
    let mut command = Command::new("cryptsetup");
    command.args(arguments).arg(device).arg(STATE_MAPPER);
    run("cryptsetup", command, key)?;
    Ok(mapped())
}

/// Closes the opened volume.
///
/// # Errors
/// [`LuksError`].
pub fn close() -> Result<(), LuksError> {
    cryptsetup(&["close", STATE_MAPPER], None, b"")
}

fn cryptsetup(arguments: &[&str], device: Option<&Path>, input: &[u8]) -> Result<(), LuksError> {
    let mut command = Command::new("cryptsetup");
    command.args(arguments).args(device);
    run("cryptsetup", command, input)
}

/// Runs a program with `input` on its standard input; an error carries what it said.
pub fn run(program: &'static str, mut command: Command, input: &[u8]) -> Result<(), LuksError> {
    // Nobody answers device-mapper's questions to udev here.
    command
        .env("DM_DISABLE_UDEV", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let step = command
        .get_args()
        .next()
        .map(|a| a.to_string_lossy().into_owned())
        .unwrap_or_default();
    let started = Instant::now();
    let mut child = command.spawn().map_err(|e| LuksError::Run(program, e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails before it reads says why on its own.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(|e| LuksError::Run(program, e))?;
    println!("`{program} {step}` took {} ms", started.elapsed().as_millis());
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    });
    let output = said
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(300)
        .collect();
    Err(LuksError::Failed {
        program,
        step,
        output,
    })
}
