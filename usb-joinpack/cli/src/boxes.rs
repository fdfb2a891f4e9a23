//! Places from a CSV file, a row for each box: for those who set up a hundred. Makes no pack.
//!
//! Invariant: whatever is wrong is said with the file, the line and the field; a file is taken whole or not at all.

use crate::failure::{Failure, invalid};
use crate::plan::{PLAN_LIMIT, Place, place, read_ek};
use anyhow::anyhow;
use beemesh_joinpack_format::{NodeNetwork, limits};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

/// The columns that a file may have, in any order.
const COLUMNS: [&str; 7] = ["name", "mac", "serial", "ek", "address", "gateway", "dns"];
/// The columns whose values must differ.
const DISTINCT: [&str; 4] = ["name", "mac", "serial", "ek"];

/// Reads the file. A row without a name becomes `node-N`, N being its number among the rows.
pub fn read(path: &Path) -> Result<Vec<Place>, Failure> {
    let failed =
        |error: std::io::Error| Failure::Invalid(anyhow!("failed to read `{}`: {error}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(PLAN_LIMIT + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > PLAN_LIMIT {
        invalid!("`{}` is larger than {PLAN_LIMIT} bytes", path.display());
    }
    let base = path.parent().unwrap_or(Path::new(""));
    match parse(&text, base) {
        Ok(places) => Ok(places),
        Err(message) => invalid!("`{}`, {message}", path.display()),
    }
}

/// The places; or what is wrong, with its line and field.
fn parse(text: &str, base: &Path) -> Result<Vec<Place>, String> {
    // Spreadsheets begin their files with a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.as_bytes());
    let headers = reader.headers().map_err(|error| in_words(&error))?.clone();
    for (index, name) in headers.iter().enumerate() {
        if !COLUMNS.contains(&name) {
            return Err(format!("line 1: `{name}` is not one of {}", COLUMNS.join(", ")));
        }
        if headers.iter().take(index).any(|before| before == name) {
            return Err(format!("line 1: `{name}` is given twice"));
        }
    }
    let mut places: Vec<Place> = Vec::new();
    let mut seen = BTreeMap::new();
    for row in reader.records() {
        let row = row.map_err(|error| in_words(&error))?;
        let line = row.position().map_or(0, csv::Position::line);
        if places.len() == limits::NODES {
            return Err(format!(
                "line {line}: a pack can bring {} boxes at most",
                limits::NODES
            ));
        }
        let value = |column: &str| {
            let index = headers.iter().position(|name| name == column)?;
            row.get(index).filter(|value| !value.is_empty())
        };
        let place = read_row(value, places.len() + 1, base)
            .map_err(|(field, why)| format!("line {line}, field `{field}`: {why}"))?;
        let of_place = [
            Some(place.entry.name.to_string()),
            place.entry.mac.clone(),
            place.entry.serial.clone(),
            place.entry.ek.map(|ek| ek.to_string()),
        ];
        for (field, value) in DISTINCT.into_iter().zip(of_place) {
            let Some(value) = value else { continue };
            if let Some(first) = seen.insert((field, value.clone()), line) {
                return Err(format!(
                    "line {line}, field `{field}`: `{value}` is in line {first} already"
                ));
            }
        }
        places.push(place);
    }
    match places.is_empty() {
        true => Err("line 1: there is no box below it".to_owned()),
        false => Ok(places),
    }
}

/// One row; or the field that is wrong, and why.
fn read_row<'a>(
    value: impl Fn(&str) -> Option<&'a str>,
    number: usize,
    base: &Path,
) -> Result<Place, (&'static str, String)> {
    let name = value("name").map_or_else(|| format!("node-{number}"), str::to_owned);
    let name = name
        .parse()
        .map_err(|e: beemesh_ids::InvalidId| ("name", e.to_string()))?;
    let mac = value("mac").map(str::to_ascii_lowercase);
    if let Some(mac) = mac.as_ref().filter(|mac| !is_mac(mac)) {
        return Err(("mac", format!("`{mac}` is not like `52:54:00:00:00:01`")));
    }
    let serial = value("serial").map(str::to_owned);
    if let Some(serial) = serial.as_ref().filter(|serial| serial.len() > limits::SERIAL) {
        return Err((
            "serial",
            format!("`{serial}` is longer than {} characters", limits::SERIAL),
        ));
    }
    let ek = value("ek").map(|text| read_ek(base, text)).transpose();
    let ek = ek.map_err(|why| ("ek", why))?;
    let mut network = NodeNetwork::default();
    if let Some(address) = value("address").filter(|address| *address != "dhcp") {
        let parts = address.split_once('/');
        let parsed =
            parts.and_then(|(ip, bits)| Some((ip.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?)));
        let fits = |(ip, bits): (IpAddr, u8)| bits <= if ip.is_ipv4() { 32 } else { 128 };
        if !parsed.is_some_and(fits) {
            return Err((
                "address",
                format!("`{address}` is neither `dhcp` nor like `10.0.0.11/24`"),
            ));
        }
        network.addresses.push(address.to_owned());
    }
    for field in ["gateway", "dns"] {
        // Several DNS servers stand in one field, with spaces between them.
        for ip in value(field).into_iter().flat_map(str::split_whitespace) {
            if network.addresses.is_empty() {
                return Err((
                    field,
                    "it needs an address; with DHCP the server names it".to_owned(),
                ));
            }
            if ip.parse::<IpAddr>().is_err() {
                return Err((field, format!("`{ip}` is not an IP address")));
            }
            match field {
                "dns" => network.dns.push(ip.to_owned()),
                _ if network.gateway.is_some() => return Err((field, "there are two".to_owned())),
                _ => network.gateway = Some(ip.to_owned()),
            }
        }
    }
    Ok(place(name, mac, serial, ek, network))
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `csv`'s own words hold the line, but not in a person's way.
fn in_words(error: &csv::Error) -> String {
    let line = error.position().map_or(1, csv::Position::line);
    match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => {
            format!("line {line}: it has {len} fields, the first line has {expected_len}")
        }
        _ => format!("line {line}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        parse(text, Path::new("")).unwrap_err()
    }

    #[test]
    fn hundred_boxes_are_read_with_their_serials_keys_and_addresses() {
        let mut text = "\u{feff}serial,ek,address,gateway,dns\n# the shops of the north\n".to_owned();
        for n in 1..=100 {
            text += &format!("SN {n},sha256:{n:064x},10.0.0.{n}/24,10.0.0.254,10.0.0.1 10.0.0.2\n");
        }
        let places = parse(&text, Path::new("")).unwrap();
        assert_eq!(places.len(), 100);
        let last = &places[99].entry;
        assert_eq!(
            (last.name.as_str(), last.serial.as_deref()),
            ("node-100", Some("SN 100"))
        );
        let network = last.network.as_ref().unwrap();
        assert_eq!((network.addresses.len(), network.dns.len()), (1, 2));
        let plain = parse("name,address\ntill-1,dhcp\ntill-2,\n", Path::new("")).unwrap();
        assert!(plain.iter().all(|place| place.entry.network.is_none()));
    }

    #[test]
    fn whatever_is_wrong_is_said_with_its_line_and_field() {
        for (text, words) in [
            ("name,adress\n", "line 1: `adress`"),
            ("name,name\n", "line 1: `name` is given twice"),
            ("name\n", "line 1: there is no box"),
            ("name,mac\ntill-1\n", "line 2: it has 1 fields"),
            ("name\ntill-1\nTill 2\n", "line 3, field `name`"),
            ("mac\n52:54:00:00:00\n", "line 2, field `mac`"),
            ("serial,ek\nA,sha256:12\n", "line 2, field `ek`"),
            (
                "serial,ek\nA,none.ek\n",
                "line 2, field `ek`: failed to read `none.ek`",
            ),
            ("address\n10.0.0.1\n", "line 2, field `address`"),
            ("address\n10.0.0.1/33\n", "line 2, field `address`"),
            ("address,dns\n10.0.0.1/24,nine\n", "line 2, field `dns`: `nine`"),
            (
                "address,gateway\ndhcp,10.0.0.1\n",
                "line 2, field `gateway`: it needs",
            ),
            (
                "serial\nA\nB\nA\n",
                "line 4, field `serial`: `A` is in line 2 already",
            ),
        ] {
            assert!(refused(text).starts_with(words), "{text:?}: {}", refused(text));
        }
        assert!(refused(&format!("serial\n{}\n", "x".repeat(65))).starts_with("line 2, field `serial`"));
        let many: String = (0..=limits::NODES).map(|n| format!("SN {n}\n")).collect();
        assert!(refused(&format!("serial\n{many}")).starts_with("line 514: a pack can bring 512"));
    }
}
