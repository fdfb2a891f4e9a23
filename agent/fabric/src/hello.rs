//! What two peers say to each other on the first substream of a connection. Bytes in, values out; no decision.
//!
//! Dialer: `Hello`. Listener: `Verdict`, and its `Hello` if the verdict is `Admitted`. Dialer: `Verdict`.
//! `Hello` is a length (u32, big endian) and that many bytes: version (u8), listen port (u16), credential.
//! `Verdict` is a code (u8), a length (u8) and a reason of that many bytes (UTF-8); with code 3 a length (u16, big endian) and
//! a credential of that many bytes follow.
//!
//! A dialer without a credential may send a petition in place of its `Hello`: the same form with version 2, port 0 and the
//! petition. The listener answers it with code 4, an empty reason, a length (u16, big endian) and an answer of that many bytes,
//! and the connection ends there.

use crate::{MAX_ANSWER, MAX_CREDENTIAL, MAX_PETITION};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use std::io;

const VERSION: u8 = 1;
const PETITION: u8 = 2;
const HEADER: usize = 3;
/// Longest reason that is told to the other side, in bytes.
pub(crate) const MAX_REASON: usize = 200;

/// What a node shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The TCP and UDP port it listens on.
    pub(crate) port: u16,
    pub(crate) credential: Vec<u8>,
}

/// What a listener hears first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    Hello(Hello),
    /// From somebody who is no member and asks to become one.
    Petition(Vec<u8>),
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Admitted,
    Refused(String),
    /// There is a connection already, or one is being made.
    Duplicate,
    /// Refused, with the credential of who redeemed the same voucher before.
    Taken(String, Vec<u8>),
    /// The answer to a petition.
    Answer(Vec<u8>),
}

/// Why what was read is not what was expected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    #[error("the connection ended during the exchange of credentials")]
    Io(#[from] io::Error),
    #[error("the credential is too large: {0} bytes, at most {MAX_CREDENTIAL} are possible")]
    TooLarge(usize),
    #[error("the other side speaks version {0} of the handshake, this side version {VERSION}")]
    Version(u8),
    #[error("the other side does not speak this handshake")]
    Malformed,
}

impl Hello {
    pub(crate) async fn write(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        write_first(io, VERSION, self.port, &self.credential).await
    }

    /// Reads at most what [`MAX_CREDENTIAL`] allows: the length is judged before anything is allocated for it.
    pub(crate) async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Self, HelloError> {
        match First::read(io).await? {
            First::Hello(hello) => Ok(hello),
            First::Petition(_) => Err(HelloError::Version(PETITION)),
        }
    }
}

async fn write_first(
    io: &mut (impl AsyncWrite + Unpin),
    version: u8,
    port: u16,
    content: &[u8],
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(4 + HEADER + content.len());
    bytes.extend(((HEADER + content.len()) as u32).to_be_bytes());
    bytes.push(version);
    bytes.extend(port.to_be_bytes());
    bytes.extend(content);
    io.write_all(&bytes).await?;
    io.flush().await
}

impl First {
    /// Sends a petition of at most [`MAX_PETITION`] bytes.
    pub(crate) async fn write_petition(
        io: &mut (impl AsyncWrite + Unpin),
        petition: &[u8],
    ) -> io::Result<()> {
        write_first(io, PETITION, 0, petition).await
    }

    /// Reads at most what [`MAX_CREDENTIAL`] and [`MAX_PETITION`] allow.
    pub(crate) async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Self, HelloError> {
        let mut length = [0; 4];
        io.read_exact(&mut length).await?;
        let length = u32::from_be_bytes(length) as usize;
        let credential = length.checked_sub(HEADER).ok_or(HelloError::Malformed)?;
        if credential > MAX_CREDENTIAL {
            return Err(HelloError::TooLarge(credential));
        }
        let mut header = [0; HEADER];
        io.read_exact(&mut header).await?;
        let [version, high, low] = header;
        match version {
            VERSION => {}
            PETITION if credential > MAX_PETITION => return Err(HelloError::TooLarge(credential)),
            PETITION => {}
            _ => return Err(HelloError::Version(version)),
        }
        let mut bytes = vec![0; credential];
        io.read_exact(&mut bytes).await?;
        Ok(match version {
            PETITION => Self::Petition(bytes),
            _ => Self::Hello(Hello {
                port: u16::from_be_bytes([high, low]),
                credential: bytes,
            }),
        })
    }
}

impl Verdict {
    pub(crate) async fn write(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let (code, reason) = match self {
            Verdict::Admitted => (0, ""),
            Verdict::Refused(reason) => (1, cut(reason)),
            Verdict::Duplicate => (2, ""),
            Verdict::Taken(reason, _) => (3, cut(reason)),
            Verdict::Answer(_) => (4, ""),
        };
        let mut bytes = vec![code, reason.len() as u8];
        bytes.extend(reason.as_bytes());
        if let Verdict::Taken(_, rival) | Verdict::Answer(rival) = self {
            // What a peer once showed is within the bound; anything else is not sent on.
            let rival = rival.get(..MAX_CREDENTIAL).unwrap_or(rival);
            bytes.extend((rival.len() as u16).to_be_bytes());
            bytes.extend(rival);
        }
        io.write_all(&bytes).await?;
        io.flush().await
    }

    pub(crate) async fn read(io: &mut (impl AsyncRead + Unpin)) -> Result<Self, HelloError> {
        let mut header = [0; 2];
        io.read_exact(&mut header).await?;
        let [code, length] = header;
        if usize::from(length) > MAX_REASON {
            return Err(HelloError::Malformed);
        }
        let mut reason = vec![0; usize::from(length)];
        io.read_exact(&mut reason).await?;
        match code {
            0 => Ok(Verdict::Admitted),
            1 => Ok(Verdict::Refused(printable(&String::from_utf8_lossy(&reason)))),
            2 => Ok(Verdict::Duplicate),
            3 | 4 => {
                let mut length = [0; 2];
                io.read_exact(&mut length).await?;
                let length = usize::from(u16::from_be_bytes(length));
                let bound = if code == 3 { MAX_CREDENTIAL } else { MAX_ANSWER };
                if length > bound {
                    return Err(HelloError::TooLarge(length));
                }
                let mut rival = vec![0; length];
                io.read_exact(&mut rival).await?;
                if code == 4 {
                    return Ok(Verdict::Answer(rival));
                }
                Ok(Verdict::Taken(
                    printable(&String::from_utf8_lossy(&reason)),
                    rival,
                ))
            }
            _ => Err(HelloError::Malformed),
        }
    }
}

fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(MAX_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or("")
}

/// The reason is a stranger's text and will be printed.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    fn written(hello: &Hello) -> Vec<u8> {
        let mut bytes = Vec::new();
        block_on(hello.write(&mut bytes)).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(port: u16, credential in proptest::collection::vec(any::<u8>(), 0..MAX_CREDENTIAL)) {
            let hello = Hello { port, credential };
            let read = block_on(Hello::read(&mut Cursor::new(written(&hello)))).unwrap();
            prop_assert_eq!(read, hello);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic_and_within_the_bound(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(hello) = block_on(Hello::read(&mut Cursor::new(bytes.clone()))) {
                prop_assert!(hello.credential.len() <= MAX_CREDENTIAL);
            }
            if let Ok(Verdict::Refused(reason)) = block_on(Verdict::read(&mut Cursor::new(bytes))) {
                prop_assert!(!reason.chars().any(char::is_control));
            }
        }

        #[test]
        fn a_rival_arrives_whole(rival in proptest::collection::vec(any::<u8>(), 0..=MAX_CREDENTIAL)) {
            let mut bytes = Vec::new();
            let verdict = Verdict::Taken("taken".to_owned(), rival);
            block_on(verdict.write(&mut bytes)).unwrap();
            prop_assert_eq!(block_on(Verdict::read(&mut Cursor::new(bytes))).unwrap(), verdict);
        }

        #[test]
        fn a_reason_arrives_cut_at_the_bound_and_whole_characters(reason in "[a-zäß€😀]{0,300}") {
            let mut bytes = Vec::new();
            block_on(Verdict::Refused(reason.clone()).write(&mut bytes)).unwrap();
            let Verdict::Refused(read) = block_on(Verdict::read(&mut Cursor::new(bytes))).unwrap() else {
                panic!("not refused")
            };
            prop_assert!(reason.starts_with(&read) && read.len() <= MAX_REASON);
            prop_assert!(read.len() + 4 > reason.len().min(MAX_REASON));
        }
    }

    #[test]
    fn a_length_over_the_bound_is_refused_before_its_bytes_are_read() {
        let mut bytes = u32::MAX.to_be_bytes().to_vec();
        bytes.push(VERSION);
        let error = block_on(Hello::read(&mut Cursor::new(bytes))).unwrap_err();
        assert!(matches!(error, HelloError::TooLarge(_)), "{error}");
    }

    #[test]
    fn another_version_is_refused() {
        let mut bytes = written(&Hello {
            port: 1,
            credential: vec![],
        });
        bytes[4] = 3;
        assert!(matches!(
            block_on(Hello::read(&mut Cursor::new(bytes))),
            Err(HelloError::Version(3))
        ));
    }

    #[test]
    fn petition_and_answer_arrive_whole_and_a_petition_is_no_hello() {
        let mut bytes = Vec::new();
        block_on(First::write_petition(&mut bytes, b"let me in")).unwrap();
        let read = |bytes: &[u8]| block_on(First::read(&mut Cursor::new(bytes.to_vec())));
        assert_eq!(read(&bytes).unwrap(), First::Petition(b"let me in".to_vec()));
        assert!(matches!(
            block_on(Hello::read(&mut Cursor::new(bytes))),
            Err(HelloError::Version(PETITION))
        ));
        let mut long = Vec::new();
        block_on(First::write_petition(&mut long, &[0; MAX_PETITION + 1])).unwrap();
        assert!(matches!(read(&long), Err(HelloError::TooLarge(_))));
        let answer = Verdict::Answer(vec![7; MAX_ANSWER]);
        let mut bytes = Vec::new();
        block_on(answer.write(&mut bytes)).unwrap();
        assert_eq!(block_on(Verdict::read(&mut Cursor::new(bytes))).unwrap(), answer);
    }
}
