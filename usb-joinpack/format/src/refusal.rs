//! Why a document is not accepted: one variant per reason, each with a code for machines and a sentence for people.
//!
//! A refusal is a decision, not a failure. Text that came from the document is cut and cleaned before it gets in here,
//! so a refusal can be shown on a console.

use crate::{KeyId, LogKey, Timestamp};
use beemesh_ids::{Digest, FabricId};

/// Why a pack, or a document in it, is refused. `Display` is a sentence that can be read out on the phone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Longer than its limit.
    #[error("the {what} is larger than {limit} bytes; this is not a genuine join pack")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// Not the JSON, base64 or form that the format demands.
    #[error("the {what} is damaged or not a genuine one ({reason}); write the stick again")]
    Malformed {
        /// Which document or field.
        what: &'static str,
        /// What is wrong, cleaned, at most 160 characters.
        reason: String,
    },
    /// A document of another kind than expected.
    #[error("expected a document of type `{expected}` but found `{found}`; use the right file")]
    WrongType {
        /// The type that belongs here.
        expected: String,
        /// The type found, cleaned.
        found: String,
    },
    /// A version of the format that this software does not read.
    #[error(
        "this {what} has format {found}, this system reads format {supported}; update the system or the joinpack tool"
    )]
    WrongVersion {
        /// Which document.
        what: &'static str,
        /// Version found.
        found: u32,
        /// Version read here.
        supported: u32,
    },
    /// A signature does not match: the content was altered or damaged.
    #[error(
        "the {what} was altered or damaged after signing (signature of key {key} is wrong); write the stick again"
    )]
    BadSignature {
        /// Which document.
        what: String,
        /// The key that should have signed, shortened by its Display.
        key: KeyId,
    },
    /// Signed by a key that is not allowed to sign this.
    #[error(
        "the {what} is signed by key {key}, which this fabric does not trust; ask your operator for a genuine pack"
    )]
    UnknownKey {
        /// Which document.
        what: String,
        /// The unknown key.
        key: KeyId,
    },
    /// Signed, or asked for, with a key whose time is over.
    #[error("key {key} expired on {expired}, and it is at least {now}: it may not {act} any more; {help}")]
    KeyExpired {
        /// The key.
        key: KeyId,
        /// What was to be done.
        act: String,
        /// Until when it signed.
        expired: Timestamp,
        /// The time it was judged by.
        now: Timestamp,
        /// Who can do it.
        help: String,
    },
    /// Signed, or asked for, with a key that may do other things.
    #[error("key {key} may not {act}: its scope is {scope}; {help}")]
    OutOfScope {
        /// The key.
        key: KeyId,
        /// What was to be done.
        act: String,
        /// What the key may do.
        scope: String,
        /// Who can do it.
        help: String,
    },
    /// Fewer different trusted keys signed than the fabric demands.
    #[error(
        "the {what} carries {have} of {need} necessary signatures; the operator must sign it with more keys"
    )]
    ThresholdNotMet {
        /// Which document.
        what: String,
        /// Different valid keys.
        have: usize,
        /// Keys demanded.
        need: usize,
    },
    /// Past its expiry.
    #[error("the {what} expired on {expired}, now it is at least {now}; ask your operator for a new one")]
    Expired {
        /// Which document.
        what: &'static str,
        /// When it expired.
        expired: Timestamp,
        /// The time it was judged by.
        now: Timestamp,
    },
    /// Before its time.
    #[error("the {what} is valid from {issued} on, but it is {now}; check this machine's clock")]
    NotYetValid {
        /// Which document.
        what: &'static str,
        /// From when on it is valid.
        issued: Timestamp,
        /// The time it was judged by.
        now: Timestamp,
    },
    /// Belongs to another fabric.
    #[error("the {what} belongs to fabric {}, this is fabric {}; use the pack of this fabric", found.short(), expected.short())]
    OtherFabric {
        /// Which document.
        what: &'static str,
        /// Fabric found.
        found: FabricId,
        /// Fabric that belongs here.
        expected: FabricId,
    },
    /// An older pack than the one applied last.
    #[error(
        "this join pack ({serial}) is older than the one already applied ({applied}); use the newest pack"
    )]
    OlderThanApplied {
        /// Serial of the pack.
        serial: String,
        /// Serial applied last.
        applied: String,
    },
    /// A request that was made for another pack than the one beside it.
    #[error(
        "this request was made for pack {asked}, but the stick holds pack {serial}: put the stick into that machine again, and it asks anew"
    )]
    OtherTrip {
        /// Serial of the pack that the machine met.
        asked: String,
        /// Serial of the pack on the stick.
        serial: String,
    },
    /// Every place in the pack is tied to another machine.
    #[error("this join pack is for other boxes, not for this one; use the stick that was made for it")]
    OtherBox,
    /// A root document that contradicts one already known with the same version.
    #[error(
        "root document {version} contradicts the one this system already trusts; ask your operator what happened"
    )]
    RootConflict {
        /// Version of the root document.
        version: u32,
    },
    /// The chain of root documents has a gap or does not start with version 1.
    #[error(
        "the chain of root documents has version {found} where {expected} belongs; ask your operator for a complete pack"
    )]
    RootGap {
        /// Version that belongs here.
        expected: u32,
        /// Version found.
        found: u32,
    },
    /// A file among the blobs that the manifest does not name.
    #[error(
        "the stick holds `{path}`, which the join pack does not list; remove it or write the stick again"
    )]
    UnlistedBlob {
        /// The path, cleaned.
        path: String,
    },
    /// A blob that the manifest names is not on the media.
    #[error("`{digest}` is missing on the stick; write the stick again")]
    MissingBlob {
        /// The blob.
        digest: Digest,
    },
    /// A blob has another content than the manifest says.
    #[error("`{expected}` has the wrong content on the stick (it is `{found}`); write the stick again")]
    WrongDigest {
        /// What the manifest says.
        expected: Digest,
        /// What was read.
        found: Digest,
    },
    /// A blob has another length than the manifest says.
    #[error(
        "`{digest}` has the wrong length on the stick ({found} instead of {expected} bytes); write the stick again"
    )]
    WrongSize {
        /// The blob.
        digest: Digest,
        /// Bytes that the manifest says.
        expected: u64,
        /// Bytes read; the reading stopped at the first piece too many.
        found: u64,
    },
    /// A name or path that would lead out of the pack.
    #[error(
        "the name `{path}` leads out of the join pack; this is not a genuine pack, do not use this stick"
    )]
    PathEscapes {
        /// The name, cleaned.
        path: String,
    },
    /// More of something than the format allows.
    #[error("the join pack has more than {limit} {what}; split it into several packs")]
    LimitExceeded {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Two entries that must differ are equal.
    #[error("the join pack names {what} `{value}` twice; create it again")]
    Duplicate {
        /// What kind of entry.
        what: &'static str,
        /// The value, cleaned.
        value: String,
    },
    /// Documents in a pack that do not fit each other.
    #[error("the {what} of `{value}` does not fit the rest of the join pack; create it again")]
    Inconsistent {
        /// Which part.
        what: &'static str,
        /// Whose part it is, cleaned.
        value: String,
    },
    /// A receipt names a log that is not there.
    #[error("the receipt names a log that is not on the stick: it was removed, or was not copied along")]
    LogMissing,
    /// The log that a receipt names is shorter than it was.
    #[error(
        "the log is cut off ({found} of {size} bytes are there): copy it again from the stick that the box wrote it to"
    )]
    LogCutOff {
        /// Bytes that the receipt says.
        size: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The log beside a receipt is not the one that belongs to it.
    #[error("the log is not the one that belongs to this receipt: it was altered, damaged or exchanged")]
    LogAltered,
    /// A log that is encrypted to a key that is not at hand.
    #[error(
        "the log is encrypted to the log key {key}, which is not among the `log*.json` of this fabric's folder: use the folder \
         that the pack was made from"
    )]
    OtherLogKey {
        /// Its public half.
        key: LogKey,
    },
    /// A credential of another machine.
    #[error("this credential belongs to another machine than the one that shows it")]
    OtherPeer,
}

impl Refusal {
    /// A stable word for the reason: used in receipts, events, `joinpack verify` and the test vectors.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too-large",
            Self::Malformed { .. } => "malformed",
            Self::WrongType { .. } => "wrong-type",
            Self::WrongVersion { .. } => "wrong-version",
            Self::BadSignature { .. } => "bad-signature",
            Self::UnknownKey { .. } => "unknown-key",
            Self::KeyExpired { .. } => "key-expired",
            Self::OutOfScope { .. } => "out-of-scope",
            Self::ThresholdNotMet { .. } => "threshold-not-met",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::OtherFabric { .. } => "other-fabric",
            Self::OlderThanApplied { .. } => "older-than-applied",
            Self::OtherTrip { .. } => "other-trip",
            Self::OtherBox => "other-box",
            Self::RootConflict { .. } => "root-conflict",
            Self::RootGap { .. } => "root-gap",
            Self::UnlistedBlob { .. } => "unlisted-blob",
            Self::MissingBlob { .. } => "missing-blob",
            Self::WrongDigest { .. } => "wrong-digest",
            Self::WrongSize { .. } => "wrong-size",
            Self::PathEscapes { .. } => "path-escapes",
            Self::LimitExceeded { .. } => "limit-exceeded",
            Self::Duplicate { .. } => "duplicate",
            Self::Inconsistent { .. } => "inconsistent",
            Self::LogMissing => "log-missing",
            Self::LogCutOff { .. } => "log-cut-off",
            Self::LogAltered => "log-altered",
            Self::OtherLogKey { .. } => "other-log-key",
            Self::OtherPeer => "other-peer",
        }
    }

    /// A [`Refusal::Malformed`] whose reason is cleaned and cut.
    pub fn malformed(what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self::Malformed {
            what,
            reason: clean(&reason.to_string()),
        }
    }
}

/// Makes foreign text fit for a console: control characters become `?`, and it is cut after 160 characters.
pub(crate) fn clean(text: &str) -> String {
    const MOST: usize = 160;
    let mut clean: String = text
        .chars()
        .take(MOST)
        .map(|c| {
            if c.is_control() || ('\u{200b}'..='\u{202e}').contains(&c) {
                '?'
            } else {
                c
            }
        })
        .collect();
    if text.chars().nth(MOST).is_some() {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_steer_the_console() {
        let refusal = Refusal::malformed("manifest", "\u{1b}[2J\r\n\u{202e}boo");
        assert!(
            !refusal
                .to_string()
                .chars()
                .any(|c| c.is_control() || c == '\u{202e}'),
            "{refusal:?}"
        );
    }

    #[test]
    fn foreign_text_is_cut() {
        assert_eq!(clean(&"x".repeat(1000)).chars().count(), 161);
        assert_eq!(clean("short"), "short");
    }
}
