//! Making a pack: images are measured, vouchers and one-time keys made, the manifest signed. Writing it is `write`'s.
//!
//! Invariant: an image is never held in memory; it is read once to know its digest and once to copy it, and a file that
//! changed in between is refused.

use crate::chance;
use crate::fabric::Fabric;
use crate::failure::{Failure, invalid};
use crate::keyring::{self, KeyArgs};
use crate::log_key;
use crate::media::PIECE;
use crate::plan::Plan;
use anyhow::{Context as _, anyhow};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_firmware_credential::EndorsementKey;
use beemesh_ids::{Digest, DigestHasher, NodeName};
use beemesh_joinpack_format::{
    Act, Admission, Envelope, ImageEntry, KEY_ORDER_PAYLOAD_TYPE, KeyOrder, MANIFEST_PAYLOAD_TYPE, Manifest,
    PackVoucher, RELEASE_LIST_PAYLOAD_TYPE, Refusal, ReleaseEntry, ReleaseList, SealedKey, SecretKey,
    StatePolicy, Timestamp, VOUCHER_PAYLOAD_TYPE, Voucher,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

/// Entries of an OCI archive that are looked at before giving up.
const ENTRIES: usize = 100_000;

/// A signed pack whose images still lie where they were.
pub struct Draft {
    /// What it says.
    pub manifest: Manifest,
    /// `joinpack.json`.
    pub joinpack: Vec<u8>,
    /// Where each blob lies.
    pub archives: BTreeMap<Digest, PathBuf>,
}

/// Makes a pack of `fabric` as planned. Writes nothing.
pub fn draft(fabric: &Fabric, plan: Plan, keys: &KeyArgs) -> Result<Draft, Failure> {
    let mut blobs = BTreeMap::new();
    let mut archives = BTreeMap::new();
    let mut images = Vec::new();
    for (name, path) in plan.images {
        check_archive(&path)?;
        let (digest, size) = measure(&path)?;
        blobs.insert(digest, size);
        archives.insert(digest, path);
        images.push(ImageEntry { name, digest, size });
    }
    let issued = chance::now();
    let expires = issued.plus_seconds(plan.expires);
    // Older than the vouchers: who joins by this pack has a new key anyway.
    let order = chance::ulid(None)?;
    let serial = fabric.next_serial()?.to_string();
    let mut orders = match plan.rotate_keys {
        true => vec![rotate_keys(fabric, keys, order, issued)?],
        false => Vec::new(),
    };
    if !plan.releases.is_empty() {
        orders.push(release_list(fabric, &serial, issued, &plan.releases)?);
    }
    let (mut vouchers, mut last) = (Vec::new(), order);
    for place in plan.nodes.iter().filter(|place| !place.asks()) {
        let (node, key) = (&place.entry.name, place.key.as_ref());
        // Each greater than the one before it: those of one millisecond would else be the same.
        last = chance::ulid(Some(last))?;
        vouchers.push(voucher(fabric, &plan.cell, node, key, last, (issued, expires))?);
    }
    let manifest = Manifest {
        format: 1,
        fabric: fabric.roots.fabric_id().clone(),
        serial,
        issued,
        expires,
        roots: fabric.roots.envelopes().to_vec(),
        cell: plan.cell,
        roster_size: plan
            .roster_size
            .unwrap_or(u32::try_from(plan.nodes.len().max(1)).unwrap_or(u32::MAX)),
        nodes: plan.nodes.into_iter().map(|place| place.entry).collect(),
        peers: plan.peers,
        vouchers,
        images,
        blobs,
        found: plan.found,
        state: StatePolicy {
            blank_disk: plan.blank_disk,
        },
        // Dated today, so that whoever applies the pack knows how fresh its knowledge is.
        revocations: fabric.snapshots(issued)?,
        orders,
        approval: plan.approval,
        requests: plan.requests,
        releases: plan.releases,
        log_key: log_key::public(fabric.dir())?,
    };
    let joinpack = sign(fabric, &manifest)?;
    Ok(Draft {
        manifest,
        joinpack,
        archives,
    })
}

/// The order to all members to take a new key.
fn rotate_keys(
    fabric: &Fabric,
    keys: &KeyArgs,
    id: ulid::Ulid,
    issued: Timestamp,
) -> Result<Envelope, Failure> {
    let order = KeyOrder {
        fabric: fabric.roots.fabric_id().clone(),
        id: id.to_string(),
        issued,
        nodes: None,
    };
    let payload = order.to_payload().map_err(as_input)?;
    keyring::sign(
        KEY_ORDER_PAYLOAD_TYPE,
        &payload,
        &fabric.keys_for(Act::RotateKeys, keys)?,
    )
}

/// The releases as members hand them on to each other.
fn release_list(
    fabric: &Fabric,
    serial: &str,
    issued: Timestamp,
    releases: &[ReleaseEntry],
) -> Result<Envelope, Failure> {
    let list = ReleaseList {
        fabric: fabric.roots.fabric_id().clone(),
        id: serial.to_owned(),
        issued,
        releases: releases.to_vec(),
    };
    let payload = list.to_payload().map_err(as_input)?;
    keyring::sign(RELEASE_LIST_PAYLOAD_TYPE, &payload, &fabric.enrolment)
}

/// `joinpack.json`: the manifest, signed by the fabric's enrolment keys.
pub fn sign(fabric: &Fabric, manifest: &Manifest) -> Result<Vec<u8>, Failure> {
    let payload = manifest.to_payload().map_err(as_input)?;
    let signed = keyring::sign(MANIFEST_PAYLOAD_TYPE, &payload, &fabric.enrolment)?;
    Ok(Manifest::check_length(signed).map_err(as_input)?.to_json())
}

/// The voucher `id` for `node` of `cell`, from and until `valid`; its one-time key in the clear, or only for the TPM with the
/// endorsement key `ek`.
pub fn voucher(
    fabric: &Fabric,
    cell: &str,
    node: &NodeName,
    ek: Option<&EndorsementKey>,
    id: ulid::Ulid,
    valid: (Timestamp, Timestamp),
) -> Result<PackVoucher, Failure> {
    let one_time_key = chance::key()?;
    let sealed_key = ek.map(|ek| seal(&one_time_key, ek)).transpose()?;
    let voucher = Voucher {
        fabric: fabric.roots.fabric_id().clone(),
        id: id.to_string(),
        node: node.clone(),
        cell: cell.to_owned(),
        issued: valid.0,
        expires: valid.1,
        key: one_time_key.public(),
        admission: match &sealed_key {
            Some(_) => Admission::Targeted,
            None => Admission::Policy,
        },
        ek: sealed_key.as_ref().map(|sealed| sealed.ek),
    };
    let payload = voucher.to_payload().map_err(as_input)?;
    Ok(PackVoucher {
        envelope: keyring::sign(VOUCHER_PAYLOAD_TYPE, &payload, &fabric.enrolment)?,
        // In the clear or sealed, never both.
        one_time_key: sealed_key.is_none().then_some(one_time_key),
        sealed_key,
    })
}

/// The one-time key for the TPM with this endorsement key alone.
fn seal(key: &SecretKey, ek: &EndorsementKey) -> Result<SealedKey, Failure> {
    let sealed =
        beemesh_firmware_credential::make(ek, &key.to_bytes()).context("failed to encrypt a one-time key")?;
    Ok(SealedKey {
        ek: ek.digest(),
        credential: STANDARD.encode(sealed.credential),
        secret: STANDARD.encode(sealed.secret),
    })
}

/// What the format refuses here, the operator asked for.
pub fn as_input(refusal: Refusal) -> Failure {
    Failure::Invalid(anyhow!("the pack cannot be made: {refusal}"))
}

/// Digest and size of a file, in one pass.
fn measure(path: &Path) -> Result<(Digest, u64), Failure> {
    let context = || format!("failed to read `{}`", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut hasher = DigestHasher::default();
    let mut size = 0u64;
    let mut buffer = vec![0; PIECE];
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(anyhow!(error).context(context()).into()),
        };
        hasher.update(buffer.get(..read).unwrap_or_default());
        size += read as u64;
    }
}

/// An OCI archive is a tar file with `oci-layout` and `index.json` (OCI image layout specification).
fn check_archive(path: &Path) -> Result<(), Failure> {
    let wrong = |why: &str| {
        let path = path.display();
        Failure::Invalid(anyhow!(
            "`{path}` is not an OCI archive ({why}): make one with `skopeo copy SOURCE oci-archive:{path}`"
        ))
    };
    let file = File::open(path)
        .map_err(|e| Failure::Invalid(anyhow!("failed to open `{}`: {e}", path.display())))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        invalid!("`{}` is not a plain file", path.display());
    }
    let mut archive = tar::Archive::new(file);
    let (mut layout, mut index) = (false, false);
    let entries = archive.entries_with_seek().map_err(|e| wrong(&e.to_string()))?;
    for entry in entries.take(ENTRIES) {
        let entry = entry.map_err(|e| wrong(&e.to_string()))?;
        let name = entry.path_bytes();
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        layout |= name == b"oci-layout";
        index |= name == b"index.json";
        if layout && index {
            return Ok(());
        }
    }
    Err(wrong(if layout {
        "it lacks `index.json`"
    } else {
        "it lacks `oci-layout`"
    }))
}
