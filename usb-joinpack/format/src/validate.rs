//! Checks of single values that several documents share. Decides nothing about signatures or time.
//!
//! Invariant: what passes here is safe to show, to compare and to use as one path component where it names a file.

use crate::refusal::clean;
use crate::{Refusal, limits};
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};

/// The JSON text of a document that is to be signed.
pub(crate) fn payload<T: Serialize>(what: &'static str, document: &T) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(document).map_err(|e| Refusal::malformed(what, e))
}

/// Reads a payload that its limit bounds.
pub(crate) fn parse_payload<T: DeserializeOwned>(what: &'static str, payload: &[u8]) -> Result<T, Refusal> {
    if payload.len() > limits::DOCUMENT_LIMIT {
        return Err(Refusal::TooLarge {
            what,
            limit: limits::DOCUMENT_LIMIT,
        });
    }
    serde_json::from_slice(payload).map_err(|e| Refusal::malformed(what, e))
}

/// Reads a JSON object in which no name is given twice: serde's maps would silently keep the last.
pub(crate) fn unique_map<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord,
    V: Deserialize<'de>,
{
    struct Unique<K, V>(PhantomData<(K, V)>);
    impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for Unique<K, V> {
        type Value = BTreeMap<K, V>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = entries.next_entry()? {
                if map.insert(key, value).is_some() {
                    return Err(A::Error::custom("a name is given twice"));
                }
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Unique(PhantomData))
}

/// Reads a JSON array whose values ascend: one text for each set, and no value twice.
pub(crate) fn ascending<'de, D, T>(deserializer: D) -> Result<BTreeSet<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Ord,
{
    let values = Vec::<T>::deserialize(deserializer)?;
    if !values.is_sorted_by(|a, b| a < b) {
        return Err(D::Error::custom(
            "a list is not in ascending order, or names something twice",
        ));
    }
    Ok(values.into_iter().collect())
}

/// Refuses what is there twice.
pub(crate) fn distinct<T: Ord + ToString>(
    what: &'static str,
    values: impl Iterator<Item = T>,
) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for value in values {
        let text = value.to_string();
        if !seen.insert(value) {
            return Err(Refusal::Duplicate {
                what,
                value: clean(&text),
            });
        }
    }
    Ok(())
}

/// A machine's serial number: 1 to 64 printable ASCII characters, no space at its ends.
pub(crate) fn check_serial(serial: &str) -> Result<(), Refusal> {
    let printable = serial.bytes().all(|b| (b' '..=b'~').contains(&b));
    if serial.is_empty() || serial.len() > limits::SERIAL || !printable || serial.trim() != serial {
        return Err(Refusal::malformed(
            "serial number",
            format_args!(
                "`{}` is not 1 to {} printable characters",
                clean(serial),
                limits::SERIAL
            ),
        ));
    }
    Ok(())
}

/// A DNS label (RFC 1123): what names cells and fabrics.
pub(crate) fn check_label(what: &'static str, text: &str) -> Result<(), Refusal> {
    check_escape(text)?;
    if text.len() > limits::LABEL || text.parse::<beemesh_ids::NodeName>().is_err() {
        return Err(Refusal::malformed(
            what,
            format_args!("`{}` is not a DNS label", clean(text)),
        ));
    }
    Ok(())
}

/// A ULID in its canonical text form (Crockford base32, upper case, 26 characters).
pub(crate) fn check_ulid(what: &'static str, text: &str) -> Result<(), Refusal> {
    match ulid::Ulid::from_string(text) {
        Ok(id) if id.to_string() == text => Ok(()),
        _ => Err(Refusal::malformed(
            what,
            format_args!("`{}` is not a ULID", clean(text)),
        )),
    }
}

/// No component of a name may lead out of the place where it is used.
pub(crate) fn check_escape(path: &str) -> Result<(), Refusal> {
    let escapes = path.starts_with('/')
        || path.contains(['\\', '\0'])
        || path.split('/').any(|part| part == ".." || part == ".")
        || path.as_bytes().get(1) == Some(&b':')
            && path.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
    if escapes {
        Err(Refusal::PathEscapes { path: clean(path) })
    } else {
        Ok(())
    }
}

/// An image name: 1 to 255 of the characters that OCI references use, no climbing components.
pub(crate) fn check_image_name(name: &str) -> Result<(), Refusal> {
    let fail = |reason: &str| Refusal::malformed("image name", format_args!("`{}` {reason}", clean(name)));
    check_escape(name)?;
    if name.is_empty() || name.len() > limits::IMAGE_NAME {
        return Err(fail("is empty or longer than 255 characters"));
    }
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/' | b':' | b'@' | b'+');
    if !name.bytes().all(allowed) || name.split('/').any(str::is_empty) {
        return Err(fail("has characters that an image name cannot have"));
    }
    Ok(())
}

/// A release's version, as `image build` takes it.
pub(crate) fn check_version(version: &str) -> Result<(), Refusal> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'~' | b'^');
    if version.is_empty() || version.len() > limits::VERSION || !version.bytes().all(allowed) {
        return Err(Refusal::malformed(
            "release",
            format_args!("`{}` is not a version", clean(version)),
        ));
    }
    Ok(())
}

/// A MAC address in the one form `aa:bb:cc:dd:ee:ff`, not a group address.
pub(crate) fn check_mac(mac: &str) -> Result<(), Refusal> {
    let mut parts = mac.split(':');
    let good = |part: &str| part.len() == 2 && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let group = |mac: &str| {
        mac.get(..2)
            .and_then(|p| u8::from_str_radix(p, 16).ok())
            .is_some_and(|b| b & 1 == 1)
    };
    if mac.len() != 17 || parts.clone().count() != 6 || !parts.all(good) || group(mac) {
        let reason =
            format_args!("`{}` is not like `52:54:00:12:34:56` in lower case", clean(mac)).to_string();
        return Err(Refusal::malformed("MAC address", reason));
    }
    Ok(())
}

/// `ip:port` or `[ip]:port`, port not 0, a unicast address.
pub(crate) fn check_peer(peer: &str) -> Result<(), Refusal> {
    match peer.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 && is_unicast(address.ip()) => Ok(()),
        _ => Err(Refusal::malformed(
            "peer",
            format_args!("`{}` is not `IP:PORT`", clean(peer)),
        )),
    }
}

/// An address in CIDR notation.
pub(crate) fn check_cidr(cidr: &str) -> Result<(), Refusal> {
    let parse = || {
        let (ip, prefix) = cidr.split_once('/')?;
        let ip: IpAddr = ip.parse().ok()?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|_| prefix.len() <= 3 && !prefix.starts_with('+'))?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        (prefix > 0 && prefix <= most && is_unicast(ip)).then_some(())
    };
    parse().ok_or_else(|| {
        Refusal::malformed(
            "address",
            format_args!("`{}` is not like `10.0.0.5/24`", clean(cidr)),
        )
    })
}

/// A unicast IP address.
pub(crate) fn check_ip(what: &'static str, ip: &str) -> Result<(), Refusal> {
    match ip.parse() {
        Ok(address) if is_unicast(address) => Ok(()),
        _ => Err(Refusal::malformed(
            what,
            format_args!("`{}` is not an IP address", clean(ip)),
        )),
    }
}

fn is_unicast(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::from([255, 255, 255, 255])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_climb_are_escapes() {
        for path in [
            "../x",
            "a/../b",
            "..",
            ".",
            "/etc/passwd",
            "a\\..\\b",
            "C:/x",
            "a/./b",
            "x\0y",
        ] {
            assert_eq!(
                check_escape(path).map_err(|r| r.code()),
                Err("path-escapes"),
                "{path}"
            );
        }
        for path in ["a", "a/b", "..a", "a..b", "blobs/sha256/00"] {
            assert_eq!(check_escape(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn addresses_are_checked() {
        for good in ["10.0.0.1/24", "fd00::1/64", "10.0.0.1/32"] {
            assert_eq!(check_cidr(good), Ok(()), "{good}");
        }
        for bad in [
            "10.0.0.1",
            "10.0.0.1/33",
            "10.0.0.1/0",
            "0.0.0.0/8",
            "224.0.0.1/4",
            "10.0.0.1/+8",
            "x/24",
            "1.2.3/24",
        ] {
            assert!(check_cidr(bad).is_err(), "{bad}");
        }
        for good in ["10.0.0.1:7946", "[fd00::1]:7946"] {
            assert_eq!(check_peer(good), Ok(()), "{good}");
        }
        for bad in [
            "10.0.0.1",
            "10.0.0.1:0",
            "host:7946",
            "0.0.0.0:1",
            "10.0.0.1:65536",
            "fd00::1:7946",
        ] {
            assert!(check_peer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mac_addresses_have_one_form() {
        assert_eq!(check_mac("52:54:00:12:34:56"), Ok(()));
        for bad in [
            "52:54:00:12:34:5G",
            "52-54-00-12-34-56",
            "52:54:00:AB:34:56",
            "01:54:00:12:34:56",
            "",
            "5:54:00:12:34:567",
        ] {
            assert!(check_mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn image_names_are_references() {
        for good in [
            "nginx",
            "docker.io/library/nginx:1.25",
            "localhost:5000/a@sha256:00",
        ] {
            assert_eq!(check_image_name(good), Ok(()), "{good}");
        }
        for bad in ["", "a//b", "a b", "nginx\u{1b}", &"a".repeat(256)] {
            assert_eq!(
                check_image_name(bad).map_err(|r| r.code()),
                Err("malformed"),
                "{bad}"
            );
        }
        assert_eq!(
            check_image_name("../../etc/nginx").map_err(|r| r.code()),
            Err("path-escapes")
        );
    }
}
