//! LUKS2 through libcryptsetup, in this process: the cryptsetup program would be started five times for a new volume,
//! and its start is most of its time. The key never leaves this process's memory.
//!
//! The key is 32 random bytes, so stretching it would cost boot time and add nothing: PBKDF2 with the least
//! iterations that libcryptsetup allows.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use beemesh_firmware_tpm::{Tpm, TpmError, Zeroizing};
use beemesh_init_api::{STATE_LABEL, STATE_MAPPER};
use libcryptsetup_rs::consts::flags::{CryptActivate, CryptDeactivate, CryptPbkdf, CryptVolumeKey};
use libcryptsetup_rs::consts::vals::{CryptKdf, EncryptionFormat, KeyslotsSize, MetadataSize};
use libcryptsetup_rs::{
    CryptDevice, CryptInit, CryptParamsLuks2, CryptParamsLuks2Ref, CryptPbkdfType, Either, LibcryptErr,
    TokenInput,
};

use crate::signature::{UNFINISHED_LABEL, sealed_keys, token};

/// Bytes of the key that is sealed.
pub const KEY_BYTES: usize = 32;

/// Why a LUKS step failed.
#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    /// A program is missing.
    #[error("failed to run `{0}`")]
    Run(&'static str, #[source] std::io::Error),
    /// A program failed; what it said, shortened.
    #[error("`{0}` failed: {1}")]
    Failed(&'static str, String),
    /// libcryptsetup refuses a step.
    #[error("failed to {0}")]
    Step(&'static str, #[source] LibcryptErr),
    /// The device cannot be read.
    #[error("failed to read `{0}`")]
    Read(PathBuf, #[source] std::io::Error),
    /// No randomness.
    #[error("the kernel gives no random bytes ({0})")]
    Random(getrandom::Error),
    /// The TPM does not give or take the key.
    #[error("the tpm does not work")]
    Tpm(#[from] TpmError),
    /// Neither the TPM's key nor anything else of ours in the header.
    #[error("`{0}` holds no key that was sealed by this product")]
    NoToken(PathBuf),
}

/// The opened volume's node.
#[must_use]
pub fn mapped() -> PathBuf {
    Path::new("/dev/mapper").join(STATE_MAPPER)
}

/// A new key, and its sealed form as soon as the TPM has made it.
pub struct NewKey {
    key: Arc<Zeroizing<Vec<u8>>>,
    sealing: JoinHandle<Result<Vec<u8>, TpmError>>,
}

impl NewKey {
    /// Makes a key and begins to seal it, so that only `tpm` can give it back. Touches no disk, so it can be done while
    /// the disks are still coming.
    ///
    /// # Errors
    /// [`LuksError::Random`].
    pub fn make(tpm: Arc<dyn Tpm>) -> Result<Self, LuksError> {
        let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
        getrandom::fill(&mut key).map_err(LuksError::Random)?;
        let key = Arc::new(key);
        let secret = Arc::clone(&key);
        let sealing = std::thread::spawn(move || {
            let started = Instant::now();
            let sealed = tpm.seal(&secret);
            println!("the TPM took {} ms to seal", started.elapsed().as_millis());
            sealed
        });
        Ok(Self { key, sealing })
    }

    fn sealed(self) -> Result<Vec<u8>, LuksError> {
        let ended = self.sealing.join();
        Ok(ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)
    }
}

/// Names the step of a failure and logs how long it took.
fn timed<T>(what: &'static str, step: impl FnOnce() -> Result<T, LibcryptErr>) -> Result<T, LuksError> {
    let started = Instant::now();
    let result = step().map_err(|e| LuksError::Step(what, e));
    println!("to {what} took {} ms", started.elapsed().as_millis());
    result
}

/// Makes a LUKS2 volume, opens it, and lets `fill` make a file system in it. It is marked as unfinished until all of
/// that is done.
///
/// # Errors
/// [`LuksError`], or what `fill` returns.
pub fn format<E: From<LuksError>>(
    device: &Path,
    new: NewKey,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, E> {
    let mut volume = timed("make the encrypted volume", || make_header(device, &new.key))?;
    timed("open the new volume", || {
        let flags = CryptActivate::ALLOW_DISCARDS;
        volume
            .activate_handle()
            .activate_by_volume_key(Some(STATE_MAPPER), None, flags)
    })?;
    let node = mapped();
    fill(&node)?;
    let token = token(&new.sealed()?);
    timed("store the sealed key", || {
        volume.token_handle().json_set(TokenInput::AddToken(&token))
    })?;
    timed("name the new volume", || {
        volume.context_handle().set_label(Some(STATE_LABEL), None)
    })?;
    Ok(node)
}

fn make_header(device: &Path, key: &[u8]) -> Result<CryptDevice, LibcryptErr> {
    let pbkdf = CryptPbkdfType {
        type_: CryptKdf::Pbkdf2,
        hash: Some("sha256".to_owned()),
        time_ms: 0,
        iterations: 1000,
        max_memory_kb: 0,
        parallel_threads: 0,
        flags: CryptPbkdf::NO_BENCHMARK,
    };
    let mut volume = CryptInit::init(device)?;
    volume
        .settings_handle()
        .set_metadata_size(MetadataSize::Kb64, KeyslotsSize::try_from(2 << 20)?)?;
    volume.settings_handle().set_pbkdf_type(&pbkdf)?;
    let parameters = CryptParamsLuks2 {
        pbkdf: Some(pbkdf),
        integrity: None,
        integrity_params: None,
        data_alignment: 0,
        data_device: None,
        sector_size: 512,
        label: Some(UNFINISHED_LABEL.to_owned()),
        subsystem: None,
    };
    let mut parameters: CryptParamsLuks2Ref<'_> = (&parameters).try_into()?;
    volume.context_handle().format(
        EncryptionFormat::Luks2,
        ("aes", "xts-plain64"),
        None,
        Either::Right(512 / 8),
        Some(&mut parameters),
    )?;
    volume
        .keyslot_handle()
        .add_by_key(Some(0), None, key, CryptVolumeKey::empty())?;
    Ok(volume)
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
    timed("open the volume", || {
        let mut volume = CryptInit::init(device)?;
        volume
            .context_handle()
            .load::<CryptParamsLuks2Ref<'_>>(Some(EncryptionFormat::Luks2), None)?;
        let flags = CryptActivate::ALLOW_DISCARDS;
        volume
            .activate_handle()
            .activate_by_passphrase(Some(STATE_MAPPER), None, key, flags)
    })?;
    Ok(mapped())
}

/// Closes the opened volume.
///
/// # Errors
/// [`LuksError`].
pub fn close() -> Result<(), LuksError> {
    timed("close the volume", || {
        let mut volume = CryptInit::init_by_name_and_header(STATE_MAPPER, None)?;
        let flags = CryptDeactivate::empty();
        volume.activate_handle().deactivate(STATE_MAPPER, flags)
    })
}

/// Runs a program; an error carries what it said.
///
/// # Errors
/// [`LuksError::Run`], [`LuksError::Failed`].
pub fn run(program: &'static str, mut command: Command) -> Result<(), LuksError> {
    let started = Instant::now();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| LuksError::Run(program, e))?;
    println!("`{program}` took {} ms", started.elapsed().as_millis());
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(if output.stderr.is_empty() {
        &output.stdout
    } else {
        &output.stderr
    });
    let said = said
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .take(300)
        .collect();
    Err(LuksError::Failed(program, said))
}
