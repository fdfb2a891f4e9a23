//! A maker of software TPMs: an authority of its own (swtpm_localca) that certifies the endorsement keys of the TPMs that it makes.
//!
//! `swtpm_setup` certifies keys of other kinds (RSA 2048, ECC P-384) than the ECC P-256 one of the TCG's template L-2, so that certificate is
//! made here and put where a maker puts it. Invariant: a TPM that exists is never changed.

use crate::process::Program;
use crate::tpm;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// NV index of the certificate of an ECC P-256 endorsement key, and of the first certificate above it (TCG EK Credential Profile 2.5,
/// section 2.2.1).
const CERTIFICATE: &str = "0x01c0000a";
const ABOVE: &str = "0x01c00100";
/// How long swtpm may take to open its ports.
const START: Duration = Duration::from_secs(10);

/// A maker of TPMs.
#[derive(Debug, Clone)]
pub struct TpmMaker {
    folder: PathBuf,
}

impl TpmMaker {
    /// A maker whose keys and certificates lie in `folder`; they are made with its first TPM.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        let folder = tpm::absolute(folder)?;
        fs::create_dir_all(folder.join("roots"))
            .with_context(|| format!("failed to make `{}`", folder.display()))?;
        let at = folder.display();
        let config = format!(
            "statedir = {at}\nsigningkey = {at}/signkey.pem\nissuercert = {at}/issuercert.pem\ncertserial = {at}/certserial\n"
        );
        fs::write(folder.join("localca.conf"), config)?;
        let options = "--platform-manufacturer Beemesh\n--platform-version 1\n--platform-model testkit\n";
        fs::write(folder.join("localca.options"), options)?;
        Ok(Self { folder })
    }

    /// The folder with its root certificate (PEM). Empty until it has made a TPM.
    #[must_use]
    pub fn roots(&self) -> PathBuf {
        self.folder.join("roots")
    }

    /// Makes a TPM in `state` whose endorsement key (ECC P-256) it certifies; the certificate and the one above it lie in its NV.
    ///
    /// # Errors
    /// When there is a TPM already, or a program is missing; the error quotes what it said.
    pub fn make(&self, state: &Path) -> Result<()> {
        let state = tpm::absolute(state)?;
        ensure!(
            !state.join("tpm2-00.permall").exists(),
            "there is a TPM in `{}` already",
            state.display()
        );
        tpm::manufacture(&state)?;
        let work = tempfile::tempdir().context("failed to make a folder")?;
        let place = |name: &str| work.path().join(name).display().to_string();
        let (_running, tcti) = serve(&state, &work.path().join("swtpm.log"))?;
        let tool = |line: &[&str]| run(line[0], &[&line[1..], &["-T", &tcti]].concat());
        tool(&[
            "tpm2_createek",
            "-G",
            "ecc",
            "-c",
            &place("ek.ctx"),
            "-u",
            &place("ek.pub"),
        ])?;
        let (x, y) = point(&fs::read(place("ek.pub"))?).context("the endorsement key is not one of P-256")?;
        self.certify(&x, &y, work.path())?;
        run(
            "openssl",
            &[
                "x509",
                "-in",
                &self.file("issuercert.pem"),
                "-outform",
                "der",
                "-out",
                &place("above"),
            ],
        )?;
        for (index, name) in [(CERTIFICATE, "ek.cert"), (ABOVE, "above")] {
            let size = fs::metadata(place(name))?.len().to_string();
            let attributes = "ppwrite|ppread|authread|ownerread|no_da|platformcreate";
            tool(&["tpm2_nvdefine", index, "-C", "p", "-s", &size, "-a", attributes])?;
            tool(&["tpm2_nvwrite", index, "-C", "p", "-i", &place(name)])?;
        }
        let root = self.file("swtpm-localca-rootca-cert.pem");
        fs::copy(&root, self.roots().join("root.pem")).with_context(|| format!("failed to copy `{root}`"))?;
        Ok(())
    }

    fn certify(&self, x: &str, y: &str, into: &Path) -> Result<()> {
        let key = format!("x={x},y={y},id=secp256r1");
        let into = into.display().to_string();
        let (config, options) = (self.file("localca.conf"), self.file("localca.options"));
        let line = "--type ek --tpm2 --tpm-spec-family 2.0 --tpm-spec-level 0 --tpm-spec-revision 164 \
                    --tpm-manufacturer id:00001014 --tpm-model swtpm --tpm-version id:20191023";
        let mut arguments: Vec<&str> = line.split_whitespace().collect();
        arguments.extend([
            "--ek",
            &key,
            "--dir",
            &into,
            "--configfile",
            &config,
            "--optsfile",
            &options,
        ]);
        run("swtpm_localca", &arguments)
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

/// The coordinates in a `TPM2B_PUBLIC` of template L-2, in hexadecimal digits: the last two `TPM2B_ECC_PARAMETER`.
fn point(public: &[u8]) -> Option<(String, String)> {
    // The size of the whole, and of what lies before the point.
    let rest = public.get(2 + 54..)?;
    let coordinate = |bytes: &[u8]| -> Option<(String, usize)> {
        let size = usize::from(u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?));
        let digits = bytes.get(2..2 + size)?.iter().map(|byte| format!("{byte:02x}"));
        Some((digits.collect(), 2 + size))
    };
    let (x, used) = coordinate(rest)?;
    let (y, more) = coordinate(rest.get(used..)?)?;
    (rest.len() == used + more).then_some((x, y))
}

/// Runs swtpm on two neighbouring ports of this machine, one for commands and one for control, which the tools need.
fn serve(state: &Path, log: &Path) -> Result<(Program, String)> {
    for _ in 0..20 {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        if port == u16::MAX || TcpListener::bind(("127.0.0.1", port + 1)).is_err() {
            continue;
        }
        let arguments = [
            "socket".to_owned(),
            "--tpm2".to_owned(),
            "--flags".to_owned(),
            "not-need-init,startup-clear".to_owned(),
            "--tpmstate".to_owned(),
            format!("dir={}", state.display()),
            "--server".to_owned(),
            format!("type=tcp,bindaddr=127.0.0.1,port={port}"),
            "--ctrl".to_owned(),
            format!("type=tcp,bindaddr=127.0.0.1,port={}", port + 1),
        ];
        let mut program = Program::start("swtpm", &arguments, log)?;
        let deadline = Instant::now() + START;
        // Somebody may take a port in between: then it ends.
        while program.ended()?.is_none() && Instant::now() < deadline {
            if TcpStream::connect(("127.0.0.1", port + 1)).is_ok() {
                return Ok((program, format!("swtpm:host=127.0.0.1,port={port}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    bail!("swtpm found no two ports of its own")
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run `{program}`: run `cargo xtask setup`"))?;
    ensure!(
        output.status.success(),
        "`{program}` failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tpms_of_one_maker_have_certificates_that_lead_to_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let maker = TpmMaker::new(&dir.path().join("maker")).unwrap();
        let mut keys = Vec::new();
        for name in ["one", "two"] {
            let state = dir.path().join(name);
            maker.make(&state).unwrap();
            assert!(maker.make(&state).is_err(), "a TPM that exists stays");
            let (_running, tcti) = serve(&state, &dir.path().join("log")).unwrap();
            let place = |file: &str| dir.path().join(format!("{name}-{file}")).display().to_string();
            for (index, file) in [(CERTIFICATE, "ek"), (ABOVE, "above")] {
                run(
                    "tpm2_nvread",
                    &[index, "-C", index, "-o", &place(file), "-T", &tcti],
                )
                .unwrap();
                let pem = format!("{}.pem", place(file));
                run(
                    "openssl",
                    &["x509", "-inform", "der", "-in", &place(file), "-out", &pem],
                )
                .unwrap();
            }
            let root = maker.roots().join("root.pem").display().to_string();
            let (above, ek) = (format!("{}.pem", place("above")), format!("{}.pem", place("ek")));
            run(
                "openssl",
                &["verify", "-CAfile", &root, "-untrusted", &above, &ek],
            )
            .unwrap();
            keys.push(fs::read(place("ek")).unwrap());
        }
        assert_ne!(keys[0], keys[1]);
    }
}
