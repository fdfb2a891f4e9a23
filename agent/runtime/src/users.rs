//! The user that a container runs as: `1000`, `1000:100`, `nginx`, `nginx:www-data`, by the root file system's own files.
//!
//! Pure: the texts of `/etc/passwd` and `/etc/group` come in. Invariant: a name that the files do not know is an error, never
//! root. Source: OCI image spec, `config.User`.

/// Ids to run with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups that the group file lists the user in; none where a group was given.
    pub groups: Vec<u32>,
    /// Home directory, where the files know the user.
    pub home: Option<String>,
}

/// Why there is no such user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The user's name is not in `/etc/passwd`.
    #[error("user `{0}` is not in the image's `/etc/passwd`")]
    NoUser(String),
    /// The group's name is not in `/etc/group`.
    #[error("group `{0}` is not in the image's `/etc/group`")]
    NoGroup(String),
}

/// Further groups beyond this number are dropped, as the kernel's limit (65,536) is far above what is sensible.
const GROUPS_MOST: usize = 256;

/// Finds the ids for `wanted`; empty means root.
pub fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<User, UserError> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (wanted, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let known = passwd
        .lines()
        .filter_map(Account::parse)
        .find(|account| match number {
            Some(uid) => account.uid == uid,
            None => account.name == user,
        });
    let (uid, own_gid) = match (&known, number) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::NoUser(user.into())),
    };
    let gid = match wanted_group {
        None => own_gid,
        Some(wanted) => match wanted.parse() {
            Ok(gid) => gid,
            Err(_) => group
                .lines()
                .filter_map(parse_group)
                .find(|(name, _, _)| *name == wanted)
                .map(|(_, gid, _)| gid)
                .ok_or_else(|| UserError::NoGroup(wanted.into()))?,
        },
    };
    let groups = match (&known, wanted_group) {
        (Some(account), None) => group
            .lines()
            .filter_map(parse_group)
            .filter(|(_, other, members)| {
                *other != gid && members.split(',').any(|name| name == account.name)
            })
            .map(|(_, gid, _)| gid)
            .take(GROUPS_MOST)
            .collect(),
        _ => Vec::new(),
    };
    Ok(User {
        uid,
        gid,
        groups,
        home: known.map(|account| account.home.to_owned()),
    })
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let _comment = fields.next();
        Some(Self {
            name,
            uid,
            gid,
            home: fields.next().filter(|home| !home.is_empty()).unwrap_or("/"),
        })
    }
}

fn parse_group(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let _password = fields.next()?;
    Some((name, fields.next()?.parse().ok()?, fields.next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34:web:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:44:web,other\nalone:x:45:other\n";

    fn ids(wanted: &str) -> Result<(u32, u32, Vec<u32>), UserError> {
        resolve(wanted, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn each_spelling_is_understood() {
        assert_eq!(ids(""), Ok((0, 0, vec![])));
        assert_eq!(ids("web"), Ok((33, 34, vec![44])));
        assert_eq!(ids("33"), Ok((33, 34, vec![44])));
        assert_eq!(ids("web:logs"), Ok((33, 44, vec![])));
        assert_eq!(ids("1000"), Ok((1000, 0, vec![])));
        assert_eq!(ids("1000:7"), Ok((1000, 7, vec![])));
        assert_eq!(
            resolve("web", PASSWD, GROUP).unwrap().home.as_deref(),
            Some("/var/www")
        );
    }

    #[test]
    fn an_unknown_name_is_never_root() {
        assert_eq!(ids("nobody"), Err(UserError::NoUser("nobody".into())));
        assert_eq!(ids("web:nogroup"), Err(UserError::NoGroup("nogroup".into())));
        assert_eq!(ids("broken"), Err(UserError::NoUser("broken".into())));
        assert_eq!(ids("-1"), Err(UserError::NoUser("-1".into())));
    }
}
