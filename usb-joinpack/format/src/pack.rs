//! A join pack on its way from bytes to something that can be believed.
//!
//! Reads no media. Invariant: [`Pack<Unverified>`](Pack) shows nothing; [`Pack::verify`] is the only way on, and what comes
//! out was signed, is in its time, is not older than what was applied, and its parts fit each other.

use crate::blob::blob_path;
use crate::manifest::{MANIFEST_PAYLOAD_TYPE, Manifest, PackVoucher};
use crate::refusal::clean;
use crate::validate::check_escape;
use crate::{
    Admission, Deed as _, Envelope, Refusal, RevocationSet, Role, RootChain, Source, Standing, Timestamp,
    Voucher, limits,
};
use beemesh_ids::{Digest, NodeName};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

const WHAT: &str = "join pack";

/// A pack that only has the right form.
#[derive(Debug)]
pub struct Unverified {
    envelope: Envelope,
}

/// A pack that can be believed.
#[derive(Debug)]
pub struct Verified {
    manifest: Manifest,
    roots: RootChain,
    vouchers: Vec<Voucher>,
    revocations: RevocationSet,
    orders: Standing,
}

/// A join pack; `S` tells how far it can be believed.
#[derive(Debug)]
pub struct Pack<S> {
    state: S,
}

/// The one part of a payload that is read before its signatures: the roots, which carry their own.
#[derive(Deserialize)]
struct RootsOnly {
    #[serde(default)]
    roots: Vec<Envelope>,
}

impl Pack<Unverified> {
    /// Reads `joinpack.json`: at most [`limits::MANIFEST_LIMIT`] bytes, else [`Refusal::TooLarge`] (a reader need not read
    /// further than one byte past it).
    pub fn parse(joinpack_json: &[u8]) -> Result<Self, Refusal> {
        if joinpack_json.len() > limits::MANIFEST_LIMIT {
            return Err(Refusal::TooLarge {
                what: WHAT,
                limit: limits::MANIFEST_LIMIT,
            });
        }
        let envelope = Envelope::parse(joinpack_json, limits::MANIFEST_LIMIT)?;
        envelope.check_type(MANIFEST_PAYLOAD_TYPE)?;
        Ok(Self {
            state: Unverified { envelope },
        })
    }

    /// Verifies the pack.
    ///
    /// `trusted` is the chain that the node already follows: the pack must belong to its fabric, and is judged by the newer
    /// of the two chains. Without one the pack's own chain is the trust, which is the decision to join whatever fabric the
    /// stick names. `floor` is a time that has certainly passed: a pack that expired before it is refused. `last_serial` is
    /// the serial of the newest pack applied: an older one is refused, the same one is not.
    pub fn verify(
        self,
        trusted: Option<&RootChain>,
        floor: Timestamp,
        last_serial: Option<&str>,
    ) -> Result<Pack<Verified>, Refusal> {
        let envelope = self.state.envelope;
        let RootsOnly { roots } = serde_json::from_slice(&envelope.unverified_payload()?)
            .map_err(|e| Refusal::malformed(WHAT, e))?;
        let roots = match trusted {
            None => RootChain::bootstrap(&roots)?,
            Some(trusted) => {
                // The whole chain, from root 1 on: this is what ties the pack to the fabric.
                let own = RootChain::bootstrap(&roots)?;
                if own.fabric_id() != trusted.fabric_id() {
                    let (found, expected) = (own.fabric_id().clone(), trusted.fabric_id().clone());
                    return Err(Refusal::OtherFabric {
                        what: WHAT,
                        found,
                        expected,
                    });
                }
                trusted.extend(own.envelopes())?
            }
        };
        let roots = roots.as_of(floor);
        // Signatures of strangers are refused too: then no bit of the file can change unnoticed.
        let keys = roots.role(Role::Enrolment);
        let (payload, signers) = envelope.signers_all(MANIFEST_PAYLOAD_TYPE, &keys)?;
        let manifest = roots.check_fabric(Manifest::read(&payload)?)?;
        if manifest.expires < floor {
            return Err(Refusal::Expired {
                what: WHAT,
                expired: manifest.expires,
                now: floor,
            });
        }
        if let Some(applied) = last_serial.filter(|applied| manifest.serial.as_str() < *applied) {
            return Err(Refusal::OlderThanApplied {
                serial: manifest.serial,
                applied: clean(applied),
            });
        }
        roots.check_signers(Role::Enrolment, &signers, &manifest, Source::Person)?;
        let mut revocations = RevocationSet::default();
        for envelope in &manifest.revocations {
            // Who signed the pack vouches for what it holds, so a key that signed it may have expired since.
            revocations.take(envelope, &roots, Source::Member)?;
        }
        let mut orders = Standing::default();
        for envelope in &manifest.orders {
            orders.take(envelope, &roots, Source::Member)?;
        }
        let vouchers = verify_vouchers(&manifest, &roots)?;
        Ok(Pack {
            state: Verified {
                manifest,
                roots,
                vouchers,
                revocations,
                orders,
            },
        })
    }
}

impl Pack<Verified> {
    /// What the pack says.
    pub fn manifest(&self) -> &Manifest {
        &self.state.manifest
    }

    /// The root chain to follow from now on: the newer of the pack's and the trusted one.
    pub fn roots(&self) -> &RootChain {
        &self.state.roots
    }

    /// The vouchers' documents, in the order of [`Manifest::vouchers`].
    pub fn vouchers(&self) -> &[Voucher] {
        &self.state.vouchers
    }

    /// What the pack says is revoked.
    pub fn revocations(&self) -> &RevocationSet {
        &self.state.revocations
    }

    /// The standing orders that the pack brings.
    pub fn orders(&self) -> &Standing {
        &self.state.orders
    }

    /// The voucher of a node, as it was signed and as it reads.
    pub fn voucher_of(&self, node: &NodeName) -> Option<(&PackVoucher, &Voucher)> {
        self.state
            .manifest
            .vouchers
            .iter()
            .zip(&self.state.vouchers)
            .find(|(_, voucher)| voucher.node == *node)
    }

    /// Where a blob lies in the pack: `blobs/sha256/<hex>`.
    pub fn blob_path(&self, digest: &Digest) -> String {
        blob_path(digest)
    }

    /// Checks the names of all files on the media, relative to the pack, with `/` between components: every file below
    /// `blobs` must be named by the manifest, every blob of the manifest must be there, no name may lead out. Files beside
    /// `blobs` are nobody's concern: nothing reads them. More than [`limits::LISTING`] names are refused.
    pub fn check_listing<T: AsRef<str>>(&self, names: impl IntoIterator<Item = T>) -> Result<(), Refusal> {
        let listed: BTreeSet<_> = self
            .state
            .manifest
            .blobs
            .keys()
            .map(|digest| (blob_path(digest), *digest))
            .collect();
        let mut missing: BTreeMap<_, _> = listed.into_iter().collect();
        let mut found = BTreeSet::new();
        for (count, name) in names.into_iter().enumerate() {
            let name = name.as_ref();
            if count >= limits::LISTING {
                return Err(Refusal::LimitExceeded {
                    what: "files",
                    limit: limits::LISTING,
                });
            }
            if name.len() > limits::PATH {
                return Err(Refusal::malformed(
                    "file name",
                    format_args!("`{}` is too long", clean(name)),
                ));
            }
            check_escape(name)?;
            let below = name
                .split('/')
                .next()
                .is_some_and(|top| top.eq_ignore_ascii_case("blobs"));
            if !below {
                continue;
            }
            if missing.remove(name).is_none() && !found.contains(name) {
                return Err(Refusal::UnlistedBlob { path: clean(name) });
            }
            found.insert(name.to_owned());
        }
        match missing.into_values().next() {
            Some(digest) => Err(Refusal::MissingBlob { digest }),
            None => Ok(()),
        }
    }
}

/// The vouchers must be the fabric's, for nodes of this pack, one for each at most, and with the right one-time keys.
fn verify_vouchers(manifest: &Manifest, roots: &RootChain) -> Result<Vec<Voucher>, Refusal> {
    let mut nodes: BTreeMap<_, _> = manifest.nodes.iter().map(|node| (&node.name, node)).collect();
    let mut ids = BTreeSet::new();
    let mut vouchers = Vec::with_capacity(manifest.vouchers.len());
    for entry in &manifest.vouchers {
        let voucher = Voucher::verify(&entry.envelope, roots, Source::Person)?;
        let node = nodes.remove(&voucher.node);
        let key_fits = match (&entry.one_time_key, &entry.sealed_key) {
            (Some(key), None) => voucher.ek.is_none() && key.public() == voucher.key,
            // Only the TPM of that machine can tell whether it is the right key.
            (None, Some(sealed)) => {
                voucher.ek == Some(sealed.ek) && node.is_some_and(|node| node.ek == Some(sealed.ek))
            }
            _ => false,
        };
        // An operator's word is for one who asked, and comes from members.
        let approved = voucher.admission == Admission::Approved;
        if voucher.cell != manifest.cell || node.is_none() || !key_fits || approved {
            return Err(Refusal::Inconsistent {
                what: "voucher",
                value: voucher.node.to_string(),
            });
        }
        if !ids.insert(voucher.id.clone()) {
            return Err(Refusal::Duplicate {
                what: "voucher",
                value: voucher.id,
            });
        }
        vouchers.push(voucher);
    }
    Ok(vouchers)
}
