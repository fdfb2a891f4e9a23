//! The next root document: what changes in it, and whether anybody could still act by it.
//!
//! Pure: a root document and changes in, the next one out. Signs nothing. Invariant: each role of what comes out has at least
//! as many keys that sign as it demands, so that no change can lock a fabric out of one of its roles.

use crate::failure::{Failure, invalid};
use beemesh_joinpack_format::{KeyId, KeyLimits, PublicKey, Role, Root, Timestamp};
use std::collections::BTreeSet;

/// One change.
#[derive(Debug, Clone)]
pub enum Change {
    /// A key gets a role; one that has it gets these limits.
    Add {
        /// Which role.
        role: Role,
        /// Which key.
        key: PublicKey,
        /// Until when, and what.
        limits: KeyLimits,
    },
    /// A key signs no more; what it signed stays. Not for root keys.
    Retire {
        /// Which role.
        role: Role,
        /// Which key.
        key: KeyId,
    },
    /// A key leaves a role; for whoever hears of it anew, what it signed counts no more.
    Remove {
        /// Which role.
        role: Role,
        /// Which key.
        key: KeyId,
    },
    /// So many keys of a role must sign.
    Threshold {
        /// Which role.
        role: Role,
        /// How many.
        number: u32,
    },
}

/// The successor of `current`, made at `now`. `revoked` keys sign nothing whatever it says.
pub fn next(
    current: &Root,
    changes: &[Change],
    now: Timestamp,
    revoked: &BTreeSet<KeyId>,
) -> Result<Root, Failure> {
    let mut root = current.clone();
    root.version = root.version.saturating_add(1);
    // A clock that is behind must not make what came before seem later.
    root.issued = now.max(current.issued.plus_seconds(1));
    for change in changes {
        apply(&mut root, change)?;
    }
    let in_use: BTreeSet<KeyId> = root
        .roles
        .values()
        .flat_map(|spec| spec.keyids.iter().cloned())
        .collect();
    root.keys.retain(|id, _| in_use.contains(id));
    for (role, spec) in &root.roles {
        let signs = |id: &&KeyId| {
            let expires = root.limits_of(*role, id).expires;
            expires.is_none_or(|expires| expires >= root.issued)
                && (*role == Role::Root || !revoked.contains(*id))
        };
        let able = spec.keyids.iter().filter(signs).count();
        if able < spec.threshold as usize {
            invalid!(
                "then {able} key(s) would be left to sign for the role `{}`, which demands {}: add one first, or `replace` it",
                name(*role),
                spec.threshold
            );
        }
    }
    Ok(root)
}

fn apply(root: &mut Root, change: &Change) -> Result<(), Failure> {
    let issued = root.issued;
    let (role, named) = match change {
        Change::Add { role, .. } | Change::Threshold { role, .. } => (*role, None),
        Change::Retire { role, key } | Change::Remove { role, key } => (*role, Some(key)),
    };
    let Some(spec) = root.roles.get_mut(&role) else {
        invalid!("the fabric lacks the role `{}`", name(role))
    };
    if let Some(key) = named.filter(|key| !spec.keyids.contains(key)) {
        invalid!("key {key} does not have the role `{}`", name(role));
    }
    match change {
        Change::Add { key, limits, .. } => {
            let id = key.key_id();
            if !spec.keyids.contains(&id) {
                spec.keyids.push(id.clone());
            }
            spec.limits.remove(&id);
            if !limits.is_none() {
                spec.limits.insert(id.clone(), limits.clone());
            }
            root.keys.insert(id, *key);
        }
        Change::Retire { key, .. } => {
            if role == Role::Root {
                invalid!("root keys do not expire: a root key is removed or replaced");
            }
            let limits = spec.limits.entry(key.clone()).or_default();
            // Inclusive: the second of this root document is the first in which it signs no more.
            let end = issued.plus_seconds(-1);
            limits.expires = Some(limits.expires.map_or(end, |expires| expires.min(end)));
        }
        Change::Remove { key, .. } => {
            spec.keyids.retain(|id| id != key);
            spec.limits.remove(key);
        }
        Change::Threshold { number, .. } => spec.threshold = *number,
    }
    Ok(())
}

/// What people and the format call a role.
pub fn name(role: Role) -> &'static str {
    match role {
        Role::Root => "root",
        Role::Enrolment => "enrolment",
        Role::Operator => "operator",
        Role::Release => "release",
        Role::Recovery => "recovery",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use beemesh_joinpack_format::{Act, RoleSpec, RootChain, SecretKey};

    const NOW: Timestamp = Timestamp(1_767_323_045);

    fn key(n: u8) -> SecretKey {
        SecretKey::from_bytes([n; 32])
    }

    fn id(n: u8) -> KeyId {
        key(n).public().key_id()
    }

    /// Three root keys 1 to 3 of which two sign, and 10 for all else.
    fn first() -> Root {
        let spec = |role: Role| match role {
            Role::Root => RoleSpec {
                keyids: [1, 2, 3].map(id).to_vec(),
                threshold: 2,
                ..RoleSpec::default()
            },
            _ => RoleSpec {
                keyids: vec![id(10)],
                threshold: 1,
                ..RoleSpec::default()
            },
        };
        Root {
            fabric_name: "shop".into(),
            version: 1,
            issued: NOW,
            keys: [1, 2, 3, 10].map(|n| (id(n), key(n).public())).into(),
            roles: Role::ALL.map(|role| (role, spec(role))).into(),
            nonce: "00112233445566778899aabbccddeeff".into(),
        }
    }

    fn add(role: Role, n: u8) -> Change {
        Change::Add {
            role,
            key: key(n).public(),
            limits: KeyLimits::default(),
        }
    }

    fn made(changes: &[Change]) -> Result<Root, Failure> {
        next(&first(), changes, NOW.plus_seconds(60), &BTreeSet::new())
    }

    #[test]
    fn lost_root_key_of_three_is_replaced_by_the_two_that_are_left() {
        let changes = [
            Change::Remove {
                role: Role::Root,
                key: id(3),
            },
            add(Role::Root, 4),
        ];
        let second = made(&changes).unwrap();
        assert!(!second.keys.contains_key(&id(3)), "a key without a role goes");
        let one = first().sign(&[&key(1), &key(2)]).unwrap();
        let two = second.sign(&[&key(1), &key(2)]).unwrap();
        let chain = RootChain::bootstrap(&[one, two]).unwrap();
        assert!(chain.role(Role::Root).key(&id(4)).is_some());
    }

    #[test]
    fn lost_key_of_any_other_role_is_replaced_and_what_it_signed_stays() {
        for role in Role::ALL.into_iter().filter(|role| *role != Role::Root) {
            let retire = Change::Retire { role, key: id(10) };
            assert!(
                made(std::slice::from_ref(&retire)).is_err(),
                "{role:?} without a key"
            );
            let second = made(&[retire, add(role, 20)]).unwrap();
            assert_eq!(
                second.limits_of(role, &id(10)).expires,
                Some(second.issued.plus_seconds(-1))
            );
            let envelopes = [
                first().sign(&[&key(1), &key(2)]).unwrap(),
                second.sign(&[&key(2), &key(3)]).unwrap(),
            ];
            let chain = RootChain::bootstrap(&envelopes).unwrap();
            let act = match role {
                Role::Enrolment => Act::Enrol,
                Role::Operator => Act::Network,
                Role::Release => Act::Release,
                _ => Act::RevokeKeys,
            };
            assert!(chain.may(&id(10), act, chain.past()).is_err(), "{role:?}");
            assert!(
                chain.may(&id(10), act, NOW).is_ok(),
                "{role:?}: before it was retired"
            );
            assert!(chain.may(&id(20), act, chain.past()).is_ok(), "{role:?}");
        }
    }

    #[test]
    fn no_role_is_left_without_those_who_can_sign() {
        let remove = |n: u8, role| Change::Remove { role, key: id(n) };
        assert!(made(&[remove(10, Role::Operator)]).is_err());
        assert!(made(&[remove(1, Role::Root)]).is_ok());
        assert!(made(&[remove(1, Role::Root), remove(2, Role::Root)]).is_err());
        let threshold = Change::Threshold {
            role: Role::Enrolment,
            number: 2,
        };
        assert!(made(std::slice::from_ref(&threshold)).is_err());
        assert!(made(&[add(Role::Enrolment, 11), threshold]).is_ok());
        assert!(
            made(&[remove(9, Role::Operator)]).is_err(),
            "a key that is not there"
        );
        let retire = Change::Retire {
            role: Role::Root,
            key: id(1),
        };
        assert!(made(&[retire]).is_err());
        let revoked = BTreeSet::from([id(10)]);
        assert!(
            next(&first(), &[], NOW, &revoked).is_err(),
            "a revoked key signs nothing"
        );
        let short = Change::Add {
            role: Role::Operator,
            key: key(10).public(),
            limits: KeyLimits {
                expires: Some(NOW),
                scope: None,
            },
        };
        assert!(made(&[short]).is_err(), "it would have expired already");
    }

    #[test]
    fn clock_that_is_behind_makes_no_root_document_older_than_the_one_before() {
        let second = next(&first(), &[], Timestamp::EPOCH, &BTreeSet::new()).unwrap();
        assert!(second.issued > first().issued && second.version == 2);
    }
}
