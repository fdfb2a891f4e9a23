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
        // All are listed, whatever is asked for: a key's point stands above its label.
        let shown = self.tool(&["--list-objects", "--type", "pubkey"]);
        let (mut point, mut found) = (None, None);
        for line in shown.lines().map(str::trim) {
            if let Some(shown) = line.strip_prefix("EC_POINT:") {
                // In a DER octet string.
                point = shown.trim().strip_prefix("0420");
            } else if line
                .strip_prefix("label:")
                .is_some_and(|shown| shown.trim() == label)
            {
                found = point;
                break;
            }
        }
        PublicKey::try_from(found.expect("it has no such key").to_owned()).unwrap()
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

    fn tool(&self, arguments: &[&str]) -> String {
        let open = [
            "--module",
            MODULE,
            "--token-label",
            "safe",
            "--login",
            "--pin",
            PIN,
        ];
        self.run("pkcs11-tool", &[&open[..], arguments].concat())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let run = self.command(program).args(arguments).output();
        let run = run.expect("run `cargo xtask setup`");
        assert!(
            run.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&run.stderr)
        );
        String::from_utf8(run.stdout).unwrap()
    }
}

/// Of a label, as an even number of hexadecimal digits.
fn id(label: &str) -> String {
    label.bytes().map(|byte| format!("{byte:02x}")).collect()
}
