//! The targets, and the inputs that they begin with.

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_ids::Digest;
use beemesh_joinpack_format::{
    Envelope, MANIFEST_PAYLOAD_TYPE, Membership, Pack, REQUEST_PAYLOAD_TYPE, REVOCATION_PAYLOAD_TYPE,
    ROOT_PAYLOAD_TYPE, Receipt, Request, RevocationSet, Role, RootChain, SecretKey, Source, Timestamp,
    limits,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// What is fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// `joinpack.json` as a stick holds it.
    Joinpack,
    /// A manifest that a careless holder of the enrolment key signed: the way past the signatures.
    Manifest,
    /// The documents that come over the network: credentials, revocations, receipts, root documents.
    Documents,
    /// Requests that machines leave on a stick, as files and as what the machine's key may have signed.
    Requests,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Joinpack, Self::Manifest, Self::Documents, Self::Requests];

    /// Feeds one input. Panics when the code under test breaks its promise.
    pub fn run(self, data: &[u8]) {
        match self {
            Self::Joinpack => joinpack(data),
            Self::Manifest => {
                joinpack(&Envelope::sign(MANIFEST_PAYLOAD_TYPE, data, &[&key("enrolment-1")]).to_json())
            }
            Self::Documents => documents(data),
            Self::Requests => {
                request(data);
                request(&Envelope::sign(REQUEST_PAYLOAD_TYPE, data, &[&key("machine-1")]).to_json());
            }
        }
    }
}

/// The key of the vectors with this name (`usb-joinpack/SPEC.md`, "Vectors").
fn key(name: &str) -> SecretKey {
    SecretKey::from_bytes(*Digest::of(format!("beemesh test key: {name}").as_bytes()).as_bytes())
}

/// Whatever is accepted keeps the bounds, and is written as it was read.
fn joinpack(data: &[u8]) {
    let verify = |data: &[u8]| Pack::parse(data)?.verify(None, Timestamp::EPOCH, None);
    let Ok(pack) = verify(data) else { return };
    let manifest = pack.manifest();
    assert!(data.len() <= limits::MANIFEST_LIMIT);
    assert_eq!(manifest.check(), Ok(()));
    assert!(manifest.nodes.len() <= limits::NODES && manifest.roster_size as usize <= limits::MEMBERS);
    assert_eq!(pack.vouchers().len(), manifest.vouchers.len());
    assert!(pack.revocations().envelopes().count() <= limits::SNAPSHOTS);
    let signed = manifest.sign(&[&key("enrolment-1")]);
    match signed.and_then(|envelope| verify(&envelope.to_json())) {
        Ok(again) => assert_eq!(again.manifest(), manifest),
        // Some vectors are of fabrics whose packs other enrolment keys sign; white space may have held it below the bound.
        Err(refusal) => {
            assert!(
                matches!(refusal.code(), "unknown-key" | "threshold-not-met" | "too-large"),
                "{refusal}"
            );
        }
    }
}

/// Whatever is accepted keeps the bounds, names a file that leads nowhere, and has a key that is the one it is named by.
fn request(data: &[u8]) {
    let Ok(request) = Request::parse(data) else { return };
    assert!(data.len() <= limits::REQUEST_LIMIT && request.machine.macs.len() <= limits::CARDS);
    let path = request.path();
    assert!(path.starts_with("requests/") && !path.contains(".."), "{path}");
    let chain = request.chain().map(|chain| chain.len() <= limits::CHAIN);
    assert_eq!(chain, Ok(true));
    let key = request.endorsement().and_then(|ek| Ok((ek.ek, ek.public_key()?)));
    assert!(key.is_ok_and(|(ek, public)| ek == Digest::of(&public)));
    // It counts for the one pack that it names.
    assert_eq!(request.check_asked(&request.fabric, &request.serial), Ok(()));
    assert!(request.check_asked(&request.fabric, "").is_err());
}

fn documents(data: &[u8]) {
    if let Ok((receipt, _)) = Receipt::parse(data) {
        let path = receipt.path();
        assert!(path.starts_with("receipts/") && !path.contains(".."), "{path}");
        if let Some(path) = receipt.log_path() {
            assert!(path.starts_with("receipts/") && !path.contains(".."), "{path}");
        }
    }
    if let Ok(membership) = Membership::parse(data) {
        assert!(membership.to_bytes().len() <= limits::MEMBERSHIP_LIMIT);
    }
    if let Ok(envelope) = Envelope::parse(data, limits::REVOCATION_LIMIT) {
        assert_eq!(envelope.to_json(), data, "one text for one envelope");
    }
    // The way past the signatures of a successor: what the root keys may have signed.
    if let Some(roots) = roots() {
        let signed = Envelope::sign(ROOT_PAYLOAD_TYPE, data, &[&key("root-1"), &key("root-2")]);
        if let Ok(longer) = roots.extend(&[signed]) {
            assert!(longer.version() >= roots.version() && longer.fabric_id() == roots.fabric_id());
            let root = longer.current();
            assert!(
                root.roles
                    .get(&Role::Root)
                    .is_some_and(|spec| spec.limits.is_empty())
            );
            let again: Result<beemesh_joinpack_format::Root, _> =
                serde_json::to_vec(root).and_then(|text| serde_json::from_slice(&text));
            assert!(again.is_ok_and(|again| again == *root));
        }
    }
    // The way past the signature: what an operator may have signed.
    let Some(roots) = roots() else { return };
    let signed = Envelope::sign(REVOCATION_PAYLOAD_TYPE, data, &[&key("operator")]);
    let mut set = RevocationSet::default();
    if set.take(&signed, roots, Source::Member).is_ok() {
        let union = set.union(roots.fabric_id());
        assert!(union.nodes.len() <= limits::REVOKED && union.vouchers.len() <= limits::REVOKED);
        assert!(union.keys.is_empty(), "an operator revokes no keys");
        assert_eq!(
            set.take(&signed, roots, Source::Member),
            Ok(false),
            "the same again is no news"
        );
    }
}

/// The chain of the vectors' fabric.
fn roots() -> Option<&'static RootChain> {
    static ROOTS: OnceLock<Option<RootChain>> = OnceLock::new();
    let load = || {
        let good = fs::read(vectors().join("good/pack/joinpack.json")).ok()?;
        let pack = Pack::parse(&good).and_then(|pack| pack.verify(None, Timestamp::EPOCH, None));
        Some(pack.ok()?.roots().clone())
    };
    ROOTS.get_or_init(load).as_ref()
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../usb-joinpack/vectors")
}

/// The inputs that a target begins with: the test vectors of the format, unwrapped as far as the target is past them.
pub fn corpus(target: Target) -> Result<Vec<Vec<u8>>> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(vectors()).context("failed to read the test vectors")? {
        let folder = entry?.path().join("pack");
        if target == Target::Requests {
            for file in fs::read_dir(folder.join("requests")).into_iter().flatten() {
                let text = fs::read(file?.path())?;
                inputs.extend(payload(&text));
                inputs.push(text);
            }
            continue;
        }
        let path = folder.join("joinpack.json");
        let text = fs::read(&path).with_context(|| format!("failed to read `{}`", path.display()))?;
        match target {
            Target::Joinpack => inputs.push(text),
            Target::Manifest => inputs.extend(payload(&text)),
            Target::Documents => inputs.extend(documents_of(&text)),
            Target::Requests => {}
        }
    }
    // One order on every machine, so that a seed means the same everywhere.
    inputs.sort();
    inputs.dedup();
    Ok(inputs)
}

/// What an envelope is around.
fn payload(envelope: &[u8]) -> Option<Vec<u8>> {
    let value: serde_json::Value = serde_json::from_slice(envelope).ok()?;
    STANDARD.decode(value.get("payload")?.as_str()?).ok()
}

/// The documents inside a pack: their envelopes and what is in them.
fn documents_of(joinpack: &[u8]) -> Vec<Vec<u8>> {
    let manifest: Option<serde_json::Value> =
        payload(joinpack).and_then(|payload| serde_json::from_slice(&payload).ok());
    let Some(manifest) = manifest else {
        return Vec::new();
    };
    let list = |name: &str| {
        manifest
            .get(name)
            .and_then(|list| list.as_array())
            .cloned()
            .unwrap_or_default()
    };
    let vouchers = list("vouchers")
        .into_iter()
        .filter_map(|entry| entry.get("envelope").cloned());
    let envelopes = list("revocations")
        .into_iter()
        .chain(vouchers)
        .chain(list("roots"));
    let texts = envelopes.filter_map(|envelope| serde_json::to_vec(&envelope).ok());
    texts
        .flat_map(|text| [payload(&text).unwrap_or_default(), text])
        .collect()
}
