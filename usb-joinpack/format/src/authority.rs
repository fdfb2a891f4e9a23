//! Who may do what, and until when: the limits that a root document sets to a key of a role, and the one place that judges
//! a signature by them.
//!
//! Reads no clock. Invariant: whoever wants to know whether a key may do something asks [`RootChain::may`], and whoever has
//! a signed document [`RootChain::accept`], which asks it for each signer.

use crate::validate::check_label;
use crate::{Envelope, KeyId, Refusal, Role, RootChain, Timestamp, limits};
use beemesh_ids::FabricId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// What a root document says of one key of a role. Without a member, the key is not limited in that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyLimits {
    /// The key signs until then, inclusive. What it signed before stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// What an operator's key may do, at most [`limits::SCOPE`]; nothing but look where it is empty.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "scope")]
    pub scope: Option<BTreeSet<Grant>>,
}

fn scope<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<BTreeSet<Grant>>, D::Error> {
    crate::validate::ascending(from).map(Some)
}

impl KeyLimits {
    /// Whether nothing is limited: such an entry is not written.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn grants(&self, act: Act<'_>) -> bool {
        act == Act::Look
            || self
                .scope
                .as_ref()
                .is_none_or(|scope| scope.iter().any(|grant| grant.covers(act)))
    }
}

/// Names of workloads in one namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Names {
    /// All.
    Any,
    /// The one with this name.
    Exactly(String),
    /// Those that begin so.
    Prefix(String),
}

/// One thing that an operator's key may do. As text `workloads`, `workloads:NAMESPACE`, `workloads:NAMESPACE/NAME`,
/// `workloads:NAMESPACE/PREFIX*`, `nodes`, `network` or `keys`; ordered as that text is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Grant {
    /// Apply and delete workloads, run commands in their pods and bring images: all, or those of a namespace.
    Workloads(Option<(String, Names)>),
    /// Approve, deny and revoke nodes, and accept what they boot.
    Nodes,
    /// Try and confirm network settings.
    Network,
    /// Rotate keys of nodes.
    Keys,
}

impl Grant {
    fn covers(&self, act: Act<'_>) -> bool {
        match (self, act) {
            (Self::Workloads(None), Act::Workload { .. }) | (Self::Workloads(_), Act::Image) => true,
            (Self::Workloads(Some((own, names))), Act::Workload { namespace, name }) => {
                own == namespace
                    && match names {
                        Names::Any => true,
                        Names::Exactly(one) => one == name,
                        Names::Prefix(prefix) => name.starts_with(prefix.as_str()),
                    }
            }
            (Self::Nodes, Act::Approve | Act::AcceptBoot | Act::Revoke) => true,
            (Self::Network, Act::Network) | (Self::Keys, Act::RotateKeys) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workloads(None) => f.write_str("workloads"),
            Self::Workloads(Some((namespace, Names::Any))) => write!(f, "workloads:{namespace}"),
            Self::Workloads(Some((namespace, Names::Exactly(name)))) => {
                write!(f, "workloads:{namespace}/{name}")
            }
            Self::Workloads(Some((namespace, Names::Prefix(prefix)))) => {
                write!(f, "workloads:{namespace}/{prefix}*")
            }
            Self::Nodes => f.write_str("nodes"),
            Self::Network => f.write_str("network"),
            Self::Keys => f.write_str("keys"),
        }
    }
}

impl PartialOrd for Grant {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Grant {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.to_string().cmp(&other.to_string())
    }
}

impl FromStr for Grant {
    type Err = Refusal;
    fn from_str(text: &str) -> Result<Self, Refusal> {
        match text {
            "workloads" => return Ok(Self::Workloads(None)),
            "nodes" => return Ok(Self::Nodes),
            "network" => return Ok(Self::Network),
            "keys" => return Ok(Self::Keys),
            _ => {}
        }
        let Some(rest) = text.strip_prefix("workloads:") else {
            return Err(Refusal::malformed(
                "scope",
                format_args!(
                    "`{text}` is none of `workloads[:NAMESPACE[/NAME|/PREFIX*]]`, `nodes`, `network`, `keys`"
                ),
            ));
        };
        let (namespace, names) = rest.split_once('/').unwrap_or((rest, ""));
        let names = match (names.strip_suffix('*'), rest.contains('/')) {
            (_, false) => Names::Any,
            (Some(prefix), _) => {
                // What a label can begin with: with one more letter it is one.
                check_label("scope", &format!("{prefix}a"))?;
                if prefix.is_empty() {
                    return Err(Refusal::malformed("scope", "`*` stands alone: leave it out"));
                }
                Names::Prefix(prefix.to_owned())
            }
            (None, _) => {
                check_label("scope", names)?;
                Names::Exactly(names.to_owned())
            }
        };
        check_label("scope", namespace)?;
        Ok(Self::Workloads(Some((namespace.to_owned(), names))))
    }
}

impl TryFrom<String> for Grant {
    type Error = Refusal;
    fn try_from(text: String) -> Result<Self, Refusal> {
        text.parse()
    }
}

impl From<Grant> for String {
    fn from(grant: Grant) -> Self {
        grant.to_string()
    }
}

/// Something that somebody wants to do with a role's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act<'a> {
    /// See what the fabric does. Every operator may.
    Look,
    /// Apply or delete a workload, or run a command in one of its pods.
    Workload {
        /// Its namespace.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// Bring an image to a node.
    Image,
    /// Let a node in that asks, or not.
    Approve,
    /// Say that a node boots in another way from now on.
    AcceptBoot,
    /// Try or confirm network settings.
    Network,
    /// Rotate keys of nodes.
    RotateKeys,
    /// Revoke nodes and vouchers.
    Revoke,
    /// Revoke keys of roles.
    RevokeKeys,
    /// Sign packs and vouchers.
    Enrol,
    /// Sign OS releases.
    Release,
}

impl Act<'_> {
    /// The roles that may, each by its own threshold.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::Look
            | Self::Workload { .. }
            | Self::Image
            | Self::Approve
            | Self::AcceptBoot
            | Self::Network
            | Self::RotateKeys => &[Role::Operator],
            Self::Revoke => &[Role::Recovery, Role::Enrolment, Role::Operator],
            Self::RevokeKeys => &[Role::Recovery],
            Self::Enrol => &[Role::Enrolment],
            Self::Release => &[Role::Release],
        }
    }
}

impl fmt::Display for Act<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Look => f.write_str("look"),
            Self::Workload { namespace, name } => {
                write!(
                    f,
                    "change the workload `{}`",
                    crate::refusal::clean(&format!("{namespace}/{name}"))
                )
            }
            Self::Image => f.write_str("bring images"),
            Self::Approve => f.write_str("let nodes in or keep them out"),
            Self::AcceptBoot => f.write_str("accept what nodes boot"),
            Self::Network => f.write_str("change network settings"),
            Self::RotateKeys => f.write_str("rotate keys"),
            Self::Revoke => f.write_str("revoke nodes or vouchers"),
            Self::RevokeKeys => f.write_str("revoke keys"),
            Self::Enrol => f.write_str("sign packs and vouchers"),
            Self::Release => f.write_str("sign releases"),
        }
    }
}

/// What a key of `role` may do, in a word for tables: an operator's grants with commas between them, `look` for none of them, `all`
/// without a scope; nothing for other roles.
pub fn scope_in_words<'a>(role: Role, scope: Option<impl IntoIterator<Item = &'a Grant>>) -> String {
    let grants: Option<Vec<String>> = scope.map(|scope| scope.into_iter().map(ToString::to_string).collect());
    match (grants, role) {
        (Some(grants), _) if grants.is_empty() => "look".to_owned(),
        (Some(grants), _) => grants.join(","),
        (None, Role::Operator) => "all".to_owned(),
        (None, _) => String::new(),
    }
}

/// Who hands a signed document over. It decides by which time the keys that signed it are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// An operator, or a stick: by what is certainly past, and by the document's own time. A key that expired signs nothing
    /// new, whatever date it writes.
    Person,
    /// A member, which judged it when it came, or this node's own disk: by the document's own time alone, so that all members
    /// go on agreeing on what one of them once accepted.
    Member,
}

/// A document that a role signs.
pub trait Deed: Sized {
    /// DSSE payload type.
    const PAYLOAD_TYPE: &'static str;
    /// What it is called.
    const WHAT: &'static str;
    /// Who may sign one; what it says decides which of them must have.
    const ROLES: &'static [Role];

    /// Reads a payload and checks its form.
    ///
    /// # Errors
    /// It is not one.
    fn read(payload: &[u8]) -> Result<Self, Refusal>;
    /// What its signers do by it.
    fn act(&self) -> Act<'_>;
    /// When it was made, by its maker's clock.
    fn at(&self) -> Timestamp;
    /// The fabric that it is meant for.
    fn fabric(&self) -> &FabricId;
}

impl RootChain {
    /// Whether a key may do something at a moment, by the newest root and what is revoked: for what is done by a connection;
    /// `at` is [`RootChain::past`] there. What is done by a document is judged by [`RootChain::accept`].
    ///
    /// # Errors
    /// [`Refusal::UnknownKey`], [`Refusal::KeyExpired`] or [`Refusal::OutOfScope`]: the sentence says what the key may do,
    /// and who else can help.
    pub fn may(&self, key: &KeyId, act: Act<'_>, at: Timestamp) -> Result<(), Refusal> {
        let roles = act
            .roles()
            .iter()
            .filter(|role| self.role(**role).key(key).is_some());
        let mut refused = None;
        for role in roles {
            match self.may_as(*role, key, act, at) {
                Ok(()) => return Ok(()),
                Err(refusal) => refused = refused.or(Some(refusal)),
            }
        }
        Err(refused.unwrap_or_else(|| Refusal::UnknownKey {
            what: format!("wish to {act}"),
            key: key.clone(),
        }))
    }

    /// [`RootChain::may`] by one role that the key has.
    fn may_as(&self, role: Role, key: &KeyId, act: Act<'_>, at: Timestamp) -> Result<(), Refusal> {
        let limits = self.current().limits_of(role, key);
        if let Some(expires) = limits.expires.filter(|expires| at > *expires) {
            return Err(Refusal::KeyExpired {
                key: key.clone(),
                act: act.to_string(),
                expired: expires,
                now: at,
                help: self.help(key, act, at),
            });
        }
        if !limits.grants(act) {
            let scope = limits.scope.unwrap_or_default();
            let scope: Vec<String> = scope.iter().map(|grant| format!("`{grant}`")).collect();
            return Err(Refusal::OutOfScope {
                key: key.clone(),
                act: act.to_string(),
                scope: match scope.is_empty() {
                    true => "look alone".to_owned(),
                    false => scope.join(", "),
                },
                help: self.help(key, act, at),
            });
        }
        Ok(())
    }

    /// Who can do it instead.
    fn help(&self, key: &KeyId, act: Act<'_>, at: Timestamp) -> String {
        const SHOWN: usize = 3;
        let mut able = BTreeSet::new();
        for role in act.roles() {
            let current = self.current();
            let may = |id: &KeyId| {
                let limits = current.limits_of(*role, id);
                limits.expires.is_none_or(|expires| at <= expires) && limits.grants(act)
            };
            able.extend(
                self.role(*role)
                    .keys()
                    .map(|(id, _)| id.clone())
                    .filter(|id| id != key && may(id)),
            );
        }
        let shown: Vec<String> = able.iter().take(SHOWN).map(ToString::to_string).collect();
        let roots =
            "who holds the root keys can sign a root document that allows it (`joinpack fabric role`)";
        match shown.is_empty() {
            true => format!("no other key may either; {roots}"),
            false => format!("who holds key {} may; {roots}", shown.join(" or ")),
        }
    }

    /// The document in an envelope, if those signed it who may do what it says, at the time that `source` demands, and it is
    /// meant for this fabric.
    ///
    /// # Errors
    /// Why not.
    pub fn accept<T: Deed>(&self, envelope: &Envelope, source: Source) -> Result<T, Refusal> {
        let (mut unknown, mut refused) = (None, None);
        for role in T::ROLES {
            let keys = self.role(*role);
            let (payload, signers) = match envelope.signers(T::PAYLOAD_TYPE, &keys) {
                Ok(signed) => signed,
                Err(refusal @ Refusal::UnknownKey { .. }) => {
                    unknown = unknown.or(Some(refusal));
                    continue;
                }
                // Another role with the same key may have enough.
                Err(refusal @ Refusal::ThresholdNotMet { .. }) => {
                    refused = refused.or(Some(refusal));
                    continue;
                }
                Err(refusal) => return Err(refusal),
            };
            let deed = T::read(&payload)?;
            if deed.act().roles().contains(role) {
                self.check_signers(*role, &signers, &deed, source)?;
                return self.check_fabric(deed);
            }
            unknown = unknown.or_else(|| {
                signers.into_iter().next().map(|key| Refusal::UnknownKey {
                    what: T::WHAT.to_owned(),
                    key,
                })
            });
        }
        // At least one role was asked, and none of them answered without a refusal.
        Err(refused.or(unknown).unwrap_or(Refusal::ThresholdNotMet {
            what: T::WHAT.to_owned(),
            have: 0,
            need: 1,
        }))
    }

    /// Whether enough of those who signed may do what the document says.
    pub(crate) fn check_signers<T: Deed>(
        &self,
        role: Role,
        signers: &BTreeSet<KeyId>,
        deed: &T,
        source: Source,
    ) -> Result<(), Refusal> {
        let at = match source {
            Source::Person => deed.at().max(self.past()),
            Source::Member => deed.at(),
        };
        let need = self.role(role).threshold();
        let (mut have, mut refused) = (0, None);
        for signer in signers {
            match self.may_as(role, signer, deed.act(), at) {
                Ok(()) => have += 1,
                Err(refusal) => refused = refused.or(Some(refusal)),
            }
        }
        if have >= need {
            return Ok(());
        }
        Err(refused.unwrap_or(Refusal::ThresholdNotMet {
            what: T::WHAT.to_owned(),
            have,
            need,
        }))
    }

    pub(crate) fn check_fabric<T: Deed>(&self, deed: T) -> Result<T, Refusal> {
        if deed.fabric() == self.fabric_id() {
            return Ok(deed);
        }
        Err(Refusal::OtherFabric {
            what: T::WHAT,
            found: deed.fabric().clone(),
            expected: self.fabric_id().clone(),
        })
    }
}

/// The limits of one role's keys.
pub(crate) fn check_limits(role: Role, limits: &KeyLimits) -> Result<(), Refusal> {
    let fail = |reason: &str| Err(Refusal::malformed("root document", reason));
    if role == Role::Root {
        return fail("a root key has limits: a fabric whose root keys expired could never be helped");
    }
    if limits.is_none() {
        return fail("a key has an entry of limits that limits nothing");
    }
    match &limits.scope {
        Some(_) if role != Role::Operator => fail("a key that is no operator's has a scope"),
        Some(scope) if scope.len() > limits::SCOPE => Err(Refusal::LimitExceeded {
            what: "parts of a key's scope",
            limit: limits::SCOPE,
        }),
        _ => Ok(()),
    }
}
