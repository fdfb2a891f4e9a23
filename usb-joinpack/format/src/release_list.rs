//! Release lists: the OS releases that members may have booted, as a document that goes from member to member.
//!
//! Reads no clock: of two lists the one with the greater id counts ([`crate::Order`]), so that no older pack brings back a
//! release that its fabric has left behind.

use crate::validate::{check_ulid, check_version, distinct, parse_payload, payload};
use crate::{Act, Deed, Envelope, Order, Orders, Refusal, ReleaseEntry, Role, SecretKey, Timestamp, limits};
use beemesh_ids::{FabricId, PeerId};
use serde::{Deserialize, Serialize};

/// DSSE payload type of a [`ReleaseList`].
pub const RELEASE_LIST_PAYLOAD_TYPE: &str = "application/vnd.beemesh.releases.v1+json";
const WHAT: &str = "release list";

/// The releases that members may have booted. The payload of an envelope of type [`RELEASE_LIST_PAYLOAD_TYPE`], signed by the
/// role [`Role::Enrolment`] as packs are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseList {
    /// The fabric.
    pub fabric: FabricId,
    /// A ULID, that of the pack which brings it: the greater one is the newer one, whatever the clocks said.
    pub id: String,
    /// When, by its signer's clock.
    pub issued: Timestamp,
    /// All releases that count, 1 to [`limits::RELEASES`].
    pub releases: Vec<ReleaseEntry>,
}

impl ReleaseList {
    /// Signs the list with each of `keys`. Refuses one that no reader would accept.
    pub fn sign(&self, keys: &[&SecretKey]) -> Result<Envelope, Refusal> {
        Ok(Envelope::sign(
            RELEASE_LIST_PAYLOAD_TYPE,
            &self.to_payload()?,
            keys,
        ))
    }

    /// What is signed. Refuses a list that no reader would accept.
    pub fn to_payload(&self) -> Result<Vec<u8>, Refusal> {
        self.check()?;
        payload(WHAT, self)
    }

    fn check(&self) -> Result<(), Refusal> {
        check_ulid("release list id", &self.id)?;
        if self.releases.is_empty() {
            return Err(Refusal::malformed(WHAT, "it names no release"));
        }
        check_releases(&self.releases)
    }
}

/// Releases in a list or a manifest.
pub(crate) fn check_releases(releases: &[ReleaseEntry]) -> Result<(), Refusal> {
    if releases.len() > limits::RELEASES {
        return Err(Refusal::LimitExceeded {
            what: "releases",
            limit: limits::RELEASES,
        });
    }
    distinct("release", releases.iter().map(|release| &release.pcr11))?;
    releases
        .iter()
        .try_for_each(|release| check_version(&release.version))
}

impl Deed for ReleaseList {
    const PAYLOAD_TYPE: &'static str = RELEASE_LIST_PAYLOAD_TYPE;
    const WHAT: &'static str = WHAT;
    const ROLES: &'static [Role] = &[Role::Enrolment];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        let list: Self = parse_payload(WHAT, payload)?;
        list.check()?;
        Ok(list)
    }

    fn act(&self) -> Act<'_> {
        Act::Enrol
    }

    fn at(&self) -> Timestamp {
        self.issued
    }

    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

impl Order for ReleaseList {
    const MANY: &'static str = "release lists";

    fn id(&self) -> &str {
        &self.id
    }

    fn names(&self, _: &PeerId) -> bool {
        true
    }

    fn nodes(&self) -> Option<impl Iterator<Item = &PeerId>> {
        // It is about all of them, so the newest one alone is held.
        None::<std::iter::Empty<&PeerId>>
    }
}

/// The newest release list.
pub type ReleaseLists = Orders<ReleaseList>;
