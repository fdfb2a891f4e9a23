//! What systemd-stub measures of a unified kernel image into PCR 11: the name and the content of each section that it uses.
//!
//! Phases of the boot are not part of it: nothing here runs `systemd-pcrphase`. Knows the stubs 252 and 253; later ones
//! measure further sections, in another order.

use crate::pcr::extend;
use beemesh_ids::Digest;

/// The sections that are measured, in the order in which that is done whatever their order in the file (systemd 252,
/// `src/fundamental/tpm-pcr.h`, `UnifiedSection`; `.pcrsig` holds signatures over the result and is left out).
pub const MEASURED: [&str; 7] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey",
];

/// What a stub says of itself in its section `.sdmagic`, up to the version.
const MAGIC: &[u8] = b"#### LoaderInfo: systemd-stub ";
const VERSIONS: std::ops::RangeInclusive<u32> = 252..=253;

/// The stub measures something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StubError {
    /// It does not say what it is.
    #[error("the stub is not systemd's: what it measures is not known")]
    Foreign,
    /// A version that nobody has looked at.
    #[error("systemd-stub {0}: what it measures is known of 252 and 253 only")]
    Version(u32),
}

/// Whether [`predict_pcr11`] knows the stub with this content of `.sdmagic`.
///
/// # Errors
/// [`StubError`]: it would predict a wrong value.
pub fn check_stub(sdmagic: &[u8]) -> Result<(), StubError> {
    let version = sdmagic.strip_prefix(MAGIC).ok_or(StubError::Foreign)?;
    let digits = version.iter().take(9).take_while(|byte| byte.is_ascii_digit());
    let version = digits.fold(0_u32, |version, digit| version * 10 + u32::from(digit - b'0'));
    match VERSIONS.contains(&version) {
        true => Ok(()),
        false => Err(StubError::Version(version)),
    }
}

/// PCR 11 of the SHA-256 bank after the stub has measured these sections (name, content without padding).
pub fn predict_pcr11<'a>(sections: impl IntoIterator<Item = (&'a str, &'a [u8])> + Clone) -> Digest {
    let mut value = Digest::from([0; 32]);
    for name in MEASURED {
        let found = sections
            .clone()
            .into_iter()
            .find(|(other, content)| *other == name && !content.is_empty());
        if let Some((_, content)) = found {
            let named = [name.as_bytes(), &[0]].concat();
            value = extend(extend(value, Digest::of(&named)), Digest::of(content));
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_that_of_the_stub_and_empty_or_foreign_sections_do_not_count() {
        let sections = [(".linux", b"k".as_slice()), (".osrel", b"o"), (".initrd", b"i")];
        let value = predict_pcr11(sections);
        let mut other = vec![
            (".sbat", b"s".as_slice()),
            (".cmdline", b""),
            (".pcrsig", b"p"),
            (".uname", b"u"),
        ];
        other.extend(sections.iter().rev());
        assert_eq!(predict_pcr11(other), value);
        for changed in [(".linux", b"K".as_slice()), (".cmdline", b"quiet")] {
            let mut other = vec![changed];
            other.extend(sections);
            assert_ne!(predict_pcr11(other), value, "{changed:?}");
        }
    }

    #[test]
    fn stubs_that_measure_otherwise_are_refused() {
        let magic =
            |version: &str| check_stub(format!("#### LoaderInfo: systemd-stub {version} ####\0").as_bytes());
        assert_eq!(magic("252.39-1~deb12u2"), Ok(()));
        assert_eq!(magic("257"), Err(StubError::Version(257)));
        assert_eq!(magic(""), Err(StubError::Version(0)));
        assert_eq!(
            check_stub(b"#### LoaderInfo: systemd-boot 252 ####"),
            Err(StubError::Foreign)
        );
    }
}
