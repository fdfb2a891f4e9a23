//! Keys on PKCS#11 tokens: found by a URI, used through the token's own library. The secret half never leaves the token.
//!
//! Sources: PKCS#11 2.40 and 3.0 (`CKM_EDDSA` without parameters is Ed25519 on that curve); RFC 7512 (URIs). Invariant: no PIN
//! is taken from a command line, where other users could read it.

pub mod softhsm;

use beemesh_joinpack_format::{PublicKey, SignError, Signer};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// How a URI begins.
pub const SCHEME: &str = "pkcs11:";
/// The library where the URI names none.
pub const MODULE_VARIABLE: &str = "BEEMESH_PKCS11_MODULE";
/// The PIN where the URI has no `pin-source`.
pub const PIN_VARIABLE: &str = "BEEMESH_PKCS11_PIN";
/// Longest PIN that is read, in bytes.
const PIN_LIMIT: u64 = 256;
/// Longest URI, in bytes.
const URI_LIMIT: usize = 2048;

/// Why a key on a token is not used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The URI is wrong, or nothing fits it.
    #[error("{0}")]
    Invalid(String),
    /// A safety rule, or the token, says no.
    #[error("{0}")]
    Forbidden(String),
    /// The token or its library does not work.
    #[error("failed to {what}")]
    Failed {
        /// What was tried.
        what: String,
        /// What it says.
        #[source]
        source: SignError,
    },
}

/// Returns [`TokenError::Invalid`] with a formatted message.
macro_rules! invalid {
    ($($text:tt)*) => { return Err(TokenError::Invalid(format!($($text)*))) };
}

/// For `map_err`: what was tried.
fn failed<E: Into<SignError>>(what: impl Into<String>) -> impl FnOnce(E) -> TokenError {
    let what = what.into();
    |error| TokenError::Failed {
        what,
        source: error.into(),
    }
}

/// What a URI says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Uri {
    token: Option<String>,
    serial: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    module: Option<PathBuf>,
    pin_source: Option<PathBuf>,
}

impl Uri {
    fn parse(text: &str) -> Result<Self, TokenError> {
        let rest = text.strip_prefix(SCHEME).filter(|_| text.len() <= URI_LIMIT);
        let Some(rest) = rest else {
            invalid!("`{text}` is not a PKCS#11 URI such as `pkcs11:token=safe;object=root-1`")
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let parts = path.split(';').chain(query.split('&'));
        for part in parts.filter(|part| !part.is_empty()) {
            let Some((name, value)) = part.split_once('=') else {
                invalid!("`{part}` in a PKCS#11 URI is not `name=value`")
            };
            let bytes = decode(value)?;
            let words = || {
                String::from_utf8(bytes.clone())
                    .map_err(|_| TokenError::Invalid(format!("`{part}` in a PKCS#11 URI is not text")))
            };
            let taken = match name {
                "token" => uri.token.replace(words()?).is_some(),
                "serial" => uri.serial.replace(words()?).is_some(),
                "manufacturer" => uri.manufacturer.replace(words()?).is_some(),
                "model" => uri.model.replace(words()?).is_some(),
                "object" => uri.object.replace(words()?).is_some(),
                "id" => uri.id.replace(bytes).is_some(),
                "module-path" => uri.module.replace(words()?.into()).is_some(),
                "pin-source" => {
                    let words = words()?;
                    let path = words
                        .strip_prefix("file://")
                        .or(words.strip_prefix("file:"))
                        .unwrap_or(&words);
                    if path.starts_with('|') {
                        invalid!("`pin-source` in a PKCS#11 URI names a command: name a file");
                    }
                    uri.pin_source.replace(path.into()).is_some()
                }
                "pin-value" => invalid!(
                    "a PIN in a PKCS#11 URI can be read by other users of this machine: use `?pin-source=file:PATH`, {PIN_VARIABLE}, or type it"
                ),
                "type" if value == "private" => false,
                other => invalid!(
                    "`{other}` in a PKCS#11 URI is not supported: use token, serial, manufacturer, model, object, id, module-path and pin-source"
                ),
            };
            if taken {
                invalid!("`{name}` is given twice in a PKCS#11 URI");
            }
        }
        if uri.object.is_none() && uri.id.is_none() {
            invalid!("the PKCS#11 URI names no key: add `;object=LABEL` or `;id=%01`");
        }
        Ok(uri)
    }

    /// The library of the token.
    fn module(&self) -> Result<PathBuf, TokenError> {
        let named = self.module.clone();
        let named = named.or_else(|| std::env::var_os(MODULE_VARIABLE).map(PathBuf::from));
        match named {
            Some(path) => Ok(path),
            None => invalid!(
                "the PKCS#11 URI names no library: add `?module-path=/usr/lib/….so`, or set {MODULE_VARIABLE}"
            ),
        }
    }

    fn pin(&self, token: &str) -> Result<AuthPin, TokenError> {
        if let Some(path) = &self.pin_source {
            let shown = path.display();
            let read = || {
                let file = File::open(path)?;
                let mode = file.metadata()?.permissions().mode();
                let mut text = String::new();
                file.take(PIN_LIMIT).read_to_string(&mut text)?;
                Ok::<_, std::io::Error>((mode, text))
            };
            let (mode, text) = read().map_err(failed(format!("read the PIN from `{shown}`")))?;
            if mode & 0o077 != 0 {
                return Err(TokenError::Forbidden(format!(
                    "`{shown}` can be read by other users: run `chmod 600 {shown}` and consider whether the PIN is still secret"
                )));
            }
            return Ok(text.trim_end_matches(['\r', '\n']).to_owned().into());
        }
        match std::env::var(PIN_VARIABLE) {
            Ok(pin) => Ok(pin.into()),
            Err(_) => prompt(token),
        }
    }
}

/// Percent-decoding (RFC 3986, section 2.1).
fn decode(text: &str) -> Result<Vec<u8>, TokenError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        // `from_str_radix` would take a sign.
        let digits = digits.filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            invalid!("`{text}` in a PKCS#11 URI has a `%` without two hexadecimal digits")
        };
        bytes.push(byte);
        rest = tail.get(2..).unwrap_or_default();
    }
    Ok(bytes)
}

/// Asks the person at the terminal, without showing what they type.
fn prompt(token: &str) -> Result<AuthPin, TokenError> {
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let Ok(mut terminal) = terminal else {
        invalid!(
            "token `{token}` wants a PIN, and there is no terminal to ask at: use `?pin-source=file:PATH` or {PIN_VARIABLE}"
        )
    };
    let what = "ask for the PIN";
    let before = tcgetattr(&terminal).map_err(failed(what))?;
    let mut quiet = before.clone();
    quiet.local_flags.remove(LocalFlags::ECHO);
    write!(terminal, "PIN of token `{token}`: ").map_err(failed(what))?;
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &quiet).map_err(failed(what))?;
    let mut pin = String::new();
    let mut reader = BufReader::new(&terminal);
    let read = reader.by_ref().take(PIN_LIMIT).read_line(&mut pin);
    let restored = tcsetattr(&terminal, SetArg::TCSAFLUSH, &before);
    let _ = writeln!(&terminal);
    read.map_err(failed(what))?;
    restored.map_err(failed(what))?;
    Ok(pin.trim_end_matches(['\r', '\n']).to_owned().into())
}

/// A library is initialised once in a process.
static MODULES: Mutex<Vec<(PathBuf, Pkcs11)>> = Mutex::new(Vec::new());

fn module(path: &Path) -> Result<Pkcs11, TokenError> {
    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, known)) = modules.iter().find(|(known, _)| known == path) {
        return Ok(known.clone());
    }
    let what = format!("use the PKCS#11 library `{}`", path.display());
    let library = Pkcs11::new(path).map_err(failed(what.as_str()))?;
    let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    library.initialize(arguments).map_err(failed(what))?;
    modules.push((path.to_owned(), library.clone()));
    Ok(library)
}

/// A key on a token.
pub struct TokenKey {
    /// A session is one thread's at a time (PKCS#11 2.40, section 2.6.6).
    session: Mutex<Session>,
    secret: ObjectHandle,
    public: PublicKey,
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey(of {:?})", self.public)
    }
}

impl TokenKey {
    /// Finds the key that a URI names, and logs in to its token.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn open(text: &str) -> Result<Self, TokenError> {
        let uri = Uri::parse(text)?;
        let library = module(&uri.module()?)?;
        let mut fitting = Vec::new();
        for slot in library
            .get_slots_with_initialized_token()
            .map_err(failed("list tokens"))?
        {
            let info = library.get_token_info(slot).map_err(failed("look at a token"))?;
            let fits = |wanted: &Option<String>, is: &str| {
                wanted.as_ref().is_none_or(|wanted| wanted == is.trim_end())
            };
            if fits(&uri.token, info.label())
                && fits(&uri.serial, info.serial_number())
                && fits(&uri.manufacturer, info.manufacturer_id())
                && fits(&uri.model, info.model())
            {
                fitting.push((slot, info.label().trim_end().to_owned()));
            }
        }
        let (slot, token) = match fitting.as_slice() {
            [one] => one.clone(),
            [] => invalid!("no token fits `{text}`: is it plugged in?"),
            _ => invalid!("several tokens fit `{text}`: name one by `token=` or `serial=`"),
        };
        let session = library.open_ro_session(slot).map_err(failed("open the token"))?;
        let pin = uri.pin(&token)?;
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange, _)) => {
                return Err(TokenError::Forbidden(format!(
                    "the PIN of token `{token}` is wrong; too many wrong ones lock it"
                )));
            }
            Err(error) => {
                return Err(failed(format!("log in to token `{token}`"))(error));
            }
        }
        let public = find(&session, &uri, ObjectClass::PUBLIC_KEY, text)?;
        let secret = find(&session, &uri, ObjectClass::PRIVATE_KEY, text)?;
        let attributes = session.get_attributes(public, &[AttributeType::EcPoint]);
        let attributes = attributes.map_err(failed("read the public key"))?;
        let point = attributes.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(point) => ed25519_point(&point),
            _ => None,
        });
        let Some(point) = point else {
            invalid!(
                "`{text}` is not an Ed25519 key: make one with `pkcs11-tool --keypairgen --key-type EC:edwards25519`"
            )
        };
        Ok(Self {
            session: Mutex::new(session),
            secret,
            public: PublicKey::from_bytes(point),
        })
    }
}

fn find(session: &Session, uri: &Uri, class: ObjectClass, text: &str) -> Result<ObjectHandle, TokenError> {
    let mut template = vec![Attribute::Class(class), Attribute::KeyType(KeyType::EC_EDWARDS)];
    template.extend(
        uri.object
            .iter()
            .map(|label| Attribute::Label(label.clone().into_bytes())),
    );
    template.extend(uri.id.iter().map(|id| Attribute::Id(id.clone())));
    let found = session
        .find_objects(&template)
        .map_err(failed("look for the key"))?;
    match found.as_slice() {
        [one] => Ok(*one),
        [] => invalid!("the token holds no {class} of kind Ed25519 for `{text}`"),
        _ => invalid!("several keys fit `{text}`: name one by `id=`"),
    }
}

/// `CKA_EC_POINT`: 32 bytes, bare (PKCS#11 3.0) or in a DER octet string (2.40, and most tokens).
fn ed25519_point(bytes: &[u8]) -> Option<[u8; 32]> {
    let bare = match bytes {
        [0x04, 0x20, point @ ..] if point.len() == 32 => point,
        point => point,
    };
    bare.try_into().ok()
}

impl Signer for TokenKey {
    fn public(&self) -> PublicKey {
        self.public
    }

    fn sign(&self, message: &[u8]) -> Result<[u8; 64], SignError> {
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let signature = session.sign(&mechanism, self.secret, message)?;
        signature
            .try_into()
            .map_err(|_| "the token gave no Ed25519 signature".into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn uri_is_read_as_rfc_7512_writes_it() {
        let uri = Uri::parse("pkcs11:token=The%20Safe;serial=12;object=root-1;type=private;id=%01%fe?module-path=/usr/lib/x.so&pin-source=file:/run/pin").unwrap();
        assert_eq!(uri.token.as_deref(), Some("The Safe"));
        assert_eq!(
            (uri.serial.as_deref(), uri.object.as_deref()),
            (Some("12"), Some("root-1"))
        );
        assert_eq!(uri.id, Some(vec![1, 0xfe]));
        assert_eq!(uri.module.as_deref(), Some(Path::new("/usr/lib/x.so")));
        assert_eq!(uri.pin_source.as_deref(), Some(Path::new("/run/pin")));
    }

    #[test]
    fn other_texts_are_refused_in_words() {
        for (text, word) in [
            ("root-1", "is not a PKCS#11 URI"),
            ("pkcs11:token=a", "names no key"),
            ("pkcs11:object=a?pin-value=1234", "can be read by other users"),
            ("pkcs11:object=a?pin-source=|cat", "names a command"),
            ("pkcs11:object=a;object=b", "given twice"),
            ("pkcs11:object=%4", "without two hexadecimal digits"),
            ("pkcs11:object=%+1", "without two hexadecimal digits"),
            ("pkcs11:object=%ff", "is not text"),
            ("pkcs11:object", "is not `name=value`"),
            ("pkcs11:object=a;colour=red", "`colour`"),
            ("pkcs11:object=a;type=public", "`type`"),
        ] {
            let error = Uri::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn point_is_read_in_both_forms() {
        let point = [9; 32];
        let wrapped = [&[0x04, 0x20][..], &point].concat();
        assert_eq!(ed25519_point(&wrapped), Some(point));
        assert_eq!(ed25519_point(&point), Some(point));
        assert_eq!(ed25519_point(&wrapped[..33]), None);
    }
}
