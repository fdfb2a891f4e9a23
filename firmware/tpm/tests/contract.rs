//! One contract, run over the fake and over a real TPM 2.0 implementation (swtpm), with tpm2-tools as the oracle.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use beemesh_firmware_measure::{PcrSet, QuoteRefusal};
use beemesh_firmware_tpm::swtpm::Swtpm;
use beemesh_firmware_tpm::{DeviceTpm, FakeTpm, Kind, MAX_MEMORY, MAX_SECRET, SoftwareTpm, Tpm, TpmError};
use std::process::Command;

/// A machine whose TPM the contract can mistreat.
trait Machine {
    fn tpm(&self) -> &dyn Tpm;
    fn reboot(&mut self);
    /// Reboots with other Secure Boot settings.
    fn change_secure_boot(&mut self);
}

struct FakeMachine {
    tpm: FakeTpm,
}

impl FakeMachine {
    fn new(chip: u64) -> Self {
        Self {
            tpm: FakeTpm::new(chip),
        }
    }
}

impl Machine for FakeMachine {
    fn tpm(&self) -> &dyn Tpm {
        &self.tpm
    }
    fn reboot(&mut self) {
        self.tpm = self.tpm.rebooted();
    }
    fn change_secure_boot(&mut self) {
        self.tpm.change_state();
    }
}

struct SwtpmMachine {
    state: tempfile::TempDir,
    swtpm: Option<Swtpm>,
    tcti: String,
    tpm: DeviceTpm,
}

impl SwtpmMachine {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let swtpm = Swtpm::start(state.path());
        let tcti = swtpm.tcti().to_owned();
        Self {
            tpm: DeviceTpm::with_tcti(tcti.clone()),
            state,
            swtpm: Some(swtpm),
            tcti,
        }
    }
}

impl Machine for SwtpmMachine {
    fn tpm(&self) -> &dyn Tpm {
        &self.tpm
    }
    fn reboot(&mut self) {
        // The old process ends before the new one takes its state.
        self.swtpm = None;
        let swtpm = Swtpm::start(self.state.path());
        self.tcti = swtpm.tcti().to_owned();
        self.swtpm = Some(swtpm);
        self.tpm = DeviceTpm::with_tcti(self.tcti.clone());
    }
    fn change_secure_boot(&mut self) {
        let extend = format!("7:sha256={}", "ab".repeat(32));
        tpm2_tool(&self.tcti, &["tpm2_pcrextend", &extend]);
    }
}

fn tpm2_tool(tcti: &str, arguments: &[&str]) -> String {
    let output = Command::new(arguments[0])
        .args(&arguments[1..])
        .args(["-T", tcti])
        .output()
        .expect("these tests need tpm2-tools: apt-get install tpm2-tools");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn contract(mut machine: impl Machine, other: impl Machine) {
    let secret: Vec<u8> = (0..MAX_SECRET as u8).collect();
    let blob = machine.tpm().seal(&secret).unwrap();
    assert!(blob.len() <= beemesh_firmware_tpm::MAX_BLOB);

    // What goes in comes out, the longest secret and the shortest, again after a reboot.
    assert_eq!(*machine.tpm().unseal(&blob).unwrap(), secret);
    let short = machine.tpm().seal(&[7]).unwrap();
    assert_eq!(*machine.tpm().unseal(&short).unwrap(), vec![7]);
    machine.reboot();
    assert_eq!(*machine.tpm().unseal(&blob).unwrap(), secret);

    // Bounds.
    for wrong in [vec![], vec![0; MAX_SECRET + 1]] {
        assert!(matches!(
            machine.tpm().seal(&wrong),
            Err(TpmError::SecretLength { .. })
        ));
    }

    // A blob of another TPM, of no TPM, and a damaged one.
    let foreign = other.tpm().unseal(&blob).unwrap_err();
    assert!(matches!(foreign, TpmError::Foreign), "{foreign:?}");
    let plain = SoftwareTpm.seal(&secret).unwrap();
    assert!(matches!(
        machine.tpm().unseal(&plain),
        Err(TpmError::OtherKind { .. })
    ));
    assert!(matches!(
        SoftwareTpm.unseal(&blob),
        Err(TpmError::OtherKind { .. })
    ));
    assert!(matches!(SoftwareTpm.endorsement(), Err(TpmError::NoEndorsement)));
    assert!(matches!(
        machine.tpm().unseal(b"{}"),
        Err(TpmError::Malformed { .. })
    ));

    // Changed Secure Boot settings refuse the old blob and seal a new one.
    machine.change_secure_boot();
    let changed = machine.tpm().unseal(&blob).unwrap_err();
    assert!(matches!(changed, TpmError::StateChanged), "{changed:?}");
    let fresh = machine.tpm().seal(&secret).unwrap();
    assert_eq!(*machine.tpm().unseal(&fresh).unwrap(), secret);
}

/// What a machine without a disk needs of its TPM.
fn memory_contract(mut machine: impl Machine, other: impl Machine) {
    assert_eq!(machine.tpm().recall().unwrap(), None);
    machine.tpm().forget().unwrap();

    // What goes in comes out, again after a reboot; the last counts, be it shorter or longer.
    for length in [40, MAX_MEMORY, 1, 0, 700] {
        let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        machine.tpm().remember(&bytes).unwrap();
        assert_eq!(machine.tpm().recall().unwrap(), Some(bytes.clone()));
        machine.reboot();
        assert_eq!(machine.tpm().recall().unwrap(), Some(bytes));
    }
    let long = machine.tpm().remember(&[0; MAX_MEMORY + 1]);
    assert!(matches!(long, Err(TpmError::MemoryLength { .. })), "{long:?}");
    assert_eq!(other.tpm().recall().unwrap(), None, "another machine");

    machine.tpm().forget().unwrap();
    assert_eq!(machine.tpm().recall().unwrap(), None);
    machine.tpm().remember(b"again").unwrap();

    // Other Secure Boot settings neither read nor write it; they may remove it.
    machine.change_secure_boot();
    let read = machine.tpm().recall();
    assert!(matches!(read, Err(TpmError::StateChanged)), "{read:?}");
    let written = machine.tpm().remember(b"mine now");
    assert!(matches!(written, Err(TpmError::StateChanged)), "{written:?}");
    machine.tpm().forget().unwrap();
    assert_eq!(machine.tpm().recall().unwrap(), None);

    // There is nothing of it without a TPM, and that is no failure.
    assert_eq!(SoftwareTpm.recall().unwrap(), None);
    SoftwareTpm.forget().unwrap();
    assert!(matches!(SoftwareTpm.remember(b"x"), Err(TpmError::NoEndorsement)));
}

#[test]
fn the_fake_keeps_the_contract_of_memory() {
    memory_contract(FakeMachine::new(1), FakeMachine::new(2));
}

#[test]
fn a_tpm_2_keeps_the_contract_of_memory() {
    memory_contract(SwtpmMachine::new(), SwtpmMachine::new());
}

const INDEX: &str = "0x0180bee5";

#[test]
fn index_is_what_tpm2_tools_say_that_it_is_and_no_password_opens_it() {
    let machine = SwtpmMachine::new();
    machine.tpm.remember(b"what a box knows").unwrap();
    let listed = tpm2_tool(&machine.tcti, &["tpm2_getcap", "handles-nv-index"]);
    assert!(listed.to_lowercase().contains("180bee5"), "{listed}");
    let public = tpm2_tool(&machine.tcti, &["tpm2_nvreadpublic", INDEX]);
    let friendly = public
        .lines()
        .find(|line| line.contains("friendly:") && line.contains('|'));
    let mut attributes: Vec<_> = friendly
        .and_then(|line| line.split_once(':'))
        .map(|(_, words)| words.trim().split('|').collect())
        .unwrap_or_default();
    attributes.sort_unstable();
    assert_eq!(
        attributes,
        ["no_da", "policyread", "policywrite", "written"],
        "{public}"
    );
    let size = public.lines().find_map(|line| line.trim().strip_prefix("size:"));
    assert_eq!(size.map(str::trim), Some("1024"), "{public}");
    for (tool, arguments) in [
        ("tpm2_nvread", vec![INDEX]),
        ("tpm2_nvread", vec![INDEX, "-C", "o"]),
        ("tpm2_nvwrite", vec![INDEX, "-i", "/dev/null"]),
        ("tpm2_nvwrite", vec![INDEX, "-C", "o", "-i", "/dev/null"]),
    ] {
        let line = Command::new(tool)
            .args(&arguments)
            .args(["-T", &machine.tcti])
            .output();
        assert!(!line.unwrap().status.success(), "{tool} {arguments:?}");
    }
    // Whoever has the policy's state reads it with other tools too: nothing is hidden, and the frame is as it is documented.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("area").display().to_string();
    tpm2_tool(
        &machine.tcti,
        &["tpm2_nvread", INDEX, "-P", "pcr:sha256:7", "-o", &path],
    );
    let area = std::fs::read(&path).unwrap();
    let sum = beemesh_ids::Digest::of(b"what a box knows");
    let framed = [b"BMM1\x00\x10".as_slice(), sum.as_bytes(), b"what a box knows"].concat();
    assert!(area.starts_with(&framed), "{area:02x?}");
    for handles in [
        "handles-transient",
        "handles-loaded-session",
        "handles-saved-session",
    ] {
        let left = tpm2_tool(&machine.tcti, &["tpm2_getcap", handles]);
        assert_eq!(left.trim(), "", "{handles}");
    }
    machine.tpm.forget().unwrap();
    let listed = tpm2_tool(&machine.tcti, &["tpm2_getcap", "handles-nv-index"]);
    assert!(!listed.to_lowercase().contains("180bee5"), "{listed}");
}

#[test]
fn index_of_somebody_else_is_left_alone_a_damaged_one_is_said_and_a_cleared_tpm_has_none() {
    let machine = SwtpmMachine::new();
    let attributes = "ownerread|ownerwrite";
    tpm2_tool(
        &machine.tcti,
        &["tpm2_nvdefine", INDEX, "-C", "o", "-s", "64", "-a", attributes],
    );
    for refused in [
        machine.tpm.recall().map(drop),
        machine.tpm.remember(b"mine"),
        machine.tpm.forget(),
    ] {
        assert!(
            matches!(refused, Err(TpmError::MemoryTaken { .. })),
            "{refused:?}"
        );
    }
    tpm2_tool(&machine.tcti, &["tpm2_nvreadpublic", INDEX]);
    tpm2_tool(&machine.tcti, &["tpm2_nvundefine", INDEX, "-C", "o"]);

    machine.tpm.remember(b"what a box knows").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("byte").display().to_string();
    std::fs::write(&path, b"!").unwrap();
    tpm2_tool(
        &machine.tcti,
        &[
            "tpm2_nvwrite",
            INDEX,
            "-P",
            "pcr:sha256:7",
            "--offset",
            "40",
            "-i",
            &path,
        ],
    );
    let damaged = machine.tpm.recall();
    assert!(matches!(damaged, Err(TpmError::MemoryDamaged)), "{damaged:?}");
    machine.tpm.remember(b"anew").unwrap();
    assert_eq!(machine.tpm.recall().unwrap().as_deref(), Some(b"anew".as_slice()));

    tpm2_tool(&machine.tcti, &["tpm2_clear", "-c", "l"]);
    assert_eq!(machine.tpm.recall().unwrap(), None);
}

#[test]
fn tpm_without_room_says_so_and_a_place_that_was_never_written_is_empty() {
    let machine = SwtpmMachine::new();
    // Indices of the owner until nothing more fits.
    let mut taken = 0;
    for number in 0..400 {
        let index = format!("{:#x}", 0x0180_0000 + number);
        let line = ["-C", "o", "-s", "1024", "-T", &machine.tcti];
        let defined = Command::new("tpm2_nvdefine").arg(index).args(line).output();
        match defined.unwrap().status.success() {
            true => taken += 1,
            false => break,
        }
    }
    let full = machine.tpm.remember(b"no room");
    assert!(
        matches!(full, Err(TpmError::MemoryFull { .. })),
        "{full:?}, {taken} taken"
    );
    assert_eq!(machine.tpm.recall().unwrap(), None);
    assert!(taken > 0, "the fixture takes no room");
}

#[test]
fn the_fake_keeps_the_contract() {
    contract(FakeMachine::new(1), FakeMachine::new(2));
}

#[test]
fn a_tpm_2_keeps_the_contract() {
    contract(SwtpmMachine::new(), SwtpmMachine::new());
}

#[test]
fn a_flipped_bit_in_the_private_part_is_refused_by_the_tpm() {
    let machine = SwtpmMachine::new();
    let blob = machine.tpm.seal(b"secret").unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&blob).unwrap();
    let private = json["private"].as_str().unwrap().to_owned();
    let flipped = if private.as_bytes()[60] == b'A' { "B" } else { "A" };
    json["private"] = format!("{}{flipped}{}", &private[..60], &private[61..]).into();
    let error = machine
        .tpm
        .unseal(&serde_json::to_vec(&json).unwrap())
        .unwrap_err();
    assert!(
        matches!(
            error,
            TpmError::Foreign | TpmError::Command { command: "Load", .. }
        ),
        "{error:?}"
    );
}

#[test]
fn nothing_stays_in_the_tpm_after_seal_and_unseal() {
    let machine = SwtpmMachine::new();
    for _ in 0..10 {
        let blob = machine.tpm.seal(b"secret").unwrap();
        machine.tpm.unseal(&blob).unwrap();
    }
    for handles in [
        "handles-transient",
        "handles-loaded-session",
        "handles-saved-session",
        "handles-persistent",
    ] {
        assert_eq!(
            tpm2_tool(&machine.tcti, &["tpm2_getcap", handles]).trim(),
            "",
            "{handles}"
        );
    }
}

#[test]
fn the_secret_is_not_in_the_blob_of_a_tpm() {
    let machine = SwtpmMachine::new();
    let secret = [0x5a; 32];
    let blob = machine.tpm.seal(&secret).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&blob).unwrap();
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    for part in ["public", "private"] {
        let bytes = STANDARD.decode(json[part].as_str().unwrap()).unwrap();
        assert!(!bytes.windows(8).any(|window| window == &secret[..8]), "{part}");
    }
    assert_eq!(machine.tpm.kind(), Kind::Device);
}

#[test]
fn what_is_encrypted_to_an_endorsement_key_is_opened_by_that_tpm_and_by_no_other() {
    let (mut machine, thief) = (SwtpmMachine::new(), SwtpmMachine::new());
    let endorsement = machine.tpm.endorsement().unwrap();
    for secret in [vec![7; 32], vec![1]] {
        let credential = beemesh_firmware_credential::make(&endorsement.key, &secret).unwrap();
        assert_eq!(*machine.tpm.activate(&credential).unwrap(), secret);
        let stolen = thief.tpm.activate(&credential).unwrap_err();
        assert!(matches!(stolen, TpmError::Foreign), "{stolen:?}");
        let mut altered = credential.clone();
        altered.credential[35] ^= 1;
        let altered = machine.tpm.activate(&altered).unwrap_err();
        assert!(matches!(altered, TpmError::Foreign), "{altered:?}");
        let mut off_the_curve = credential;
        off_the_curve.secret[67] ^= 1;
        let refused = machine.tpm.activate(&off_the_curve).unwrap_err();
        assert!(matches!(refused, TpmError::Foreign), "{refused:?}");
    }
    machine.reboot();
    assert_eq!(
        machine.tpm.endorsement().unwrap(),
        endorsement,
        "the same key after a reboot"
    );
    assert_ne!(
        thief.tpm.endorsement().unwrap().key.digest(),
        endorsement.key.digest()
    );
    // Fresh TPMs have no certificate; garbage is an answer and no panic.
    assert_eq!(endorsement.certificate, None);
    let garbage = beemesh_firmware_credential::Credential {
        credential: vec![0xff; 7],
        secret: vec![0; 3],
    };
    assert!(machine.tpm.activate(&garbage).is_err());
}

#[test]
fn endorsement_key_is_the_one_that_tpm2_tools_make_and_nothing_stays_behind() {
    let machine = SwtpmMachine::new();
    let ours = machine.tpm.endorsement().unwrap().key;
    let credential = beemesh_firmware_credential::make(&ours, &[9; 32]).unwrap();
    for _ in 0..5 {
        machine.tpm.activate(&credential).unwrap();
    }
    for handles in [
        "handles-transient",
        "handles-loaded-session",
        "handles-saved-session",
    ] {
        assert_eq!(
            tpm2_tool(&machine.tcti, &["tpm2_getcap", handles]).trim(),
            "",
            "{handles}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (context, public) = (path("ek.ctx"), path("ek.pub"));
    tpm2_tool(
        &machine.tcti,
        &["tpm2_createek", "-G", "ecc", "-c", &context, "-u", &public],
    );
    // A TPM2B_PUBLIC: the size goes before the TPMT_PUBLIC.
    assert_eq!(std::fs::read(&public).unwrap()[2..], *ours.public());
}

const BOOT: PcrSet = PcrSet::of(&[0, 1, 2, 3, 4, 5, 6, 7, 11, 12]);

#[test]
fn quote_is_over_the_registers_as_they_are_and_its_key_the_same_after_a_reboot() {
    let mut machine = SwtpmMachine::new();
    let key = machine.tpm.attestation_key().unwrap();
    let first = machine.tpm.attest(&[7; 32], BOOT).unwrap();
    assert_eq!(first.key, key);
    let started = first.quote.verify(&key, &[7; 32], BOOT).unwrap();
    assert_eq!(first.quote.verify(&key, &[8; 32], BOOT), Err(QuoteRefusal::Nonce));
    assert_eq!(first.quote.pcrs.len(), 10);
    let zeros = beemesh_ids::Digest::from([0; 32]);
    assert_eq!(first.quote.pcrs.get(&11), Some(&zeros));
    let extend = format!("11:sha256={}", "cd".repeat(32));
    tpm2_tool(&machine.tcti, &["tpm2_pcrextend", &extend]);
    let second = machine.tpm.attest(&[9; 32], BOOT).unwrap();
    second.quote.verify(&key, &[9; 32], BOOT).unwrap();
    let event = beemesh_ids::Digest::from([0xcd; 32]);
    assert_eq!(
        second.quote.pcrs.get(&11),
        Some(&beemesh_firmware_measure::extend(zeros, event))
    );
    machine.reboot();
    let third = machine.tpm.attest(&[1; 32], BOOT).unwrap();
    let again = third.quote.verify(&key, &[1; 32], BOOT).unwrap();
    assert!(again.resets > started.resets, "{again:?} {started:?}");
    assert_ne!(SwtpmMachine::new().tpm.attestation_key().unwrap(), key);
    for handles in [
        "handles-transient",
        "handles-loaded-session",
        "handles-saved-session",
    ] {
        let left = tpm2_tool(&machine.tcti, &["tpm2_getcap", handles]);
        assert_eq!(left.trim(), "", "{handles}");
    }
}

#[test]
fn attestation_key_and_quote_are_those_of_tpm2_tools() {
    let machine = SwtpmMachine::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (context, public, message, signature) = (path("ak.ctx"), path("ak.pub"), path("msg"), path("sig"));
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign";
    let kind = "ecc256:ecdsa-sha256:null";
    tpm2_tool(
        &machine.tcti,
        &[
            "tpm2_createprimary",
            "-C",
            "e",
            "-G",
            kind,
            "-g",
            "sha256",
            "-a",
            attributes,
            "-c",
            &context,
        ],
    );
    tpm2_tool(
        &machine.tcti,
        &["tpm2_readpublic", "-c", &context, "-f", "tss", "-o", &public],
    );
    let attested = machine.tpm.attest(&[0xab; 32], BOOT).unwrap();
    // A TPM2B_PUBLIC: the size goes before the TPMT_PUBLIC.
    assert_eq!(std::fs::read(&public).unwrap()[2..], *attested.key.public());

    // A TPMT_SIGNATURE: ECDSA, SHA-256, r, s.
    let (r, s) = attested.quote.signature.split_at(32);
    let size = [0, 32].as_slice();
    std::fs::write(&signature, [&[0, 0x18, 0, 0x0b], size, r, size, s].concat()).unwrap();
    std::fs::write(&message, &attested.quote.attest).unwrap();
    let check = |nonce: &str| {
        let arguments = [
            "-u", &public, "-m", &message, "-s", &signature, "-g", "sha256", "-q", nonce,
        ];
        let output = Command::new("tpm2_checkquote").args(arguments).output();
        output.expect("these tests need tpm2-tools: apt-get install tpm2-tools")
    };
    let good = check(&"ab".repeat(32));
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(!check(&"ac".repeat(32)).status.success());
}

#[test]
fn credential_for_an_attestation_key_is_opened_where_that_key_is_and_nowhere_else() {
    let (machine, thief) = (SwtpmMachine::new(), SwtpmMachine::new());
    let ek = machine.tpm.endorsement().unwrap().key;
    let name = machine.tpm.attestation_key().unwrap().name();
    let other = thief.tpm.attestation_key().unwrap().name();
    let make = |name: &[u8]| beemesh_firmware_credential::make_for(&ek, name, &[5; 32]).unwrap();
    let opened = machine.tpm.activate_for_attestation(&make(&name)).unwrap();
    assert_eq!(*opened, vec![5; 32]);
    // Another key's name; the machine's key with another object; another TPM.
    for refused in [
        machine.tpm.activate_for_attestation(&make(&other)),
        machine.tpm.activate(&make(&name)),
        thief.tpm.activate_for_attestation(&make(&name)),
        thief.tpm.activate_for_attestation(&make(&other)),
    ] {
        assert!(matches!(refused, Err(TpmError::Foreign)), "{refused:?}");
    }
    let nothing = SoftwareTpm.attest(&[0; 32], BOOT);
    assert!(matches!(nothing, Err(TpmError::NoEndorsement)));
}

#[test]
fn certificates_of_the_endorsement_key_are_read_in_the_order_of_their_indices() {
    let machine = SwtpmMachine::new();
    assert_eq!(machine.tpm.endorsement().unwrap().certificate, None);
    assert_eq!(machine.tpm.endorsement_chain().unwrap(), Vec::<u8>::new());
    let folder = tempfile::tempdir().unwrap();
    let keep = |index: &str, content: &[u8]| {
        let path = folder.path().join(index).display().to_string();
        std::fs::write(&path, content).unwrap();
        let size = content.len().to_string();
        let attributes = "ppwrite|ppread|authread|ownerread|no_da|platformcreate";
        tpm2_tool(
            &machine.tcti,
            &["tpm2_nvdefine", index, "-C", "p", "-s", &size, "-a", attributes],
        );
        tpm2_tool(&machine.tcti, &["tpm2_nvwrite", index, "-C", "p", "-i", &path]);
    };
    // Longer than one read of NV, and beside what is none of them.
    keep("0x01c00101", &[2; 1500]);
    keep("0x01c0000a", &[7; 900]);
    keep("0x01c00100", &[1; 40]);
    keep("0x01c00200", &[9; 8]);
    let certificate = machine.tpm.endorsement().unwrap().certificate.unwrap();
    assert!(certificate == [7; 900]);
    let chain = machine.tpm.endorsement_chain().unwrap();
    assert!(
        chain == [[1; 40].as_slice(), &[2; 1500]].concat(),
        "{} bytes",
        chain.len()
    );
    // More than is read of a chain.
    for index in 0x01c0_0110..0x01c0_0118 {
        keep(&format!("{index:#010x}"), &[3; 2000]);
    }
    assert_eq!(machine.tpm.endorsement_chain().unwrap(), Vec::<u8>::new());
}
