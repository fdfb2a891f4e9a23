//! A PKCS#11 token in software (SoftHSM 2) for tests: its state in a folder, its keys made by `pkcs11-tool`.
//!
//! Panics where something is missing: it is for tests alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use beemesh_joinpack_format::PublicKey;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The token's library.
pub const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// The PIN of the token.
pub const PIN: &str = "48230917";

/// A token with the label `safe`.
pub struct SoftHsm {
    folder: PathBuf,
}

impl SoftHsm {
    /// Makes a token with these Ed25519 keys in `folder`.
    ///
    /// # Panics
    /// Where there is no SoftHSM or no `pkcs11-tool`, or they fail.
    pub fn new(folder: &Path, keys: &[&str]) -> Self {
        assert!(
            Path::new(MODULE).exists(),
            "`{MODULE}` is missing: run `cargo xtask setup`"
        );
        let tokens = folder.join("tokens");
        fs::create_dir(&tokens).unwrap();
        let text = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\n",
            tokens.display()
        );
        let token = Self {
            folder: folder.to_owned(),
        };
        fs::write(token.configuration(), text).unwrap();
        let init = [
            "--init-token",
            "--free",
            "--label",
            "safe",
            "--so-pin",
            "12345678",
        ];
        token.run("softhsm2-util", &[&init[..], &["--pin", PIN]].concat());
        for label in keys {
            let make = ["--keypairgen", "--key-type", "EC:edwards25519", "--label", label];
            token.tool(&[&make[..], &["--id", &id(label)]].concat());
        }
        token
    }

    /// What `SOFTHSM2_CONF` must name.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("softhsm2.conf")
    }

    /// The URI of one of its keys, without the library.
    pub fn uri(label: &str) -> String {
        format!("pkcs11:token=safe;object={label}")
    }

    /// The public half of one of its keys, as another program reads it.
    ///
    /// # Panics
    /// It has no such key.
    pub fn public(&self, label: &str) -> PublicKey {
        let file = self.folder.join(format!("{label}.der"));
        let read = ["--read-object", "--type", "pubkey", "--output-file"];
        self.tool(&[&read[..], &[file.to_str().unwrap(), "--id", &id(label)]].concat());
        // RFC 8410: the key is the end of the structure.
        let der = fs::read(file).unwrap();
        PublicKey::from_bytes(*der.last_chunk().unwrap())
    }

    /// A command that finds the token and is not told its PIN.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.folder)
            .env("SOFTHSM2_CONF", self.configuration())
            .env(crate::MODULE_VARIABLE, MODULE)
            .env_remove(crate::PIN_VARIABLE)
            .stdin(Stdio::null());
        command
    }

    fn tool(&self, arguments: &[&str]) {
        let open = [
            "--module",
            MODULE,
            "--token-label",
            "safe",
            "--login",
            "--pin",
            PIN,
        ];
        self.run("pkcs11-tool", &[&open[..], arguments].concat());
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let run = self.command(program).args(arguments).output();
        let run = run.expect("run `cargo xtask setup`");
        assert!(
            run.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&run.stderr)
        );
    }
}

/// Of a label, as an even number of hexadecimal digits.
fn id(label: &str) -> String {
    label.bytes().map(|byte| format!("{byte:02x}")).collect()
}
