//! The one thing that somebody outside can do: connect to a member, ask, hear the answer, and be gone.
//!
//! Knows nothing of what is asked. Makes no swarm and opens one substream; whoever answers is not believed to be a member,
//! so an answer is worth what is signed in it.

use crate::{
    CREDENTIAL_TIMEOUT, FabricError, MAX_PETITION,
    address::{Target, tcp_address},
    gate::{drive, first_substream},
    hello::{First, HelloError, Verdict},
    transport,
};
use futures::AsyncWriteExt as _;
use libp2p::{
    Transport as _,
    core::{Endpoint, transport::DialOpts, transport::PortUse},
    identity::Keypair,
};
use std::{io, time::Duration};
use tokio::time::timeout;
use zeroize::Zeroize as _;

/// For the connection to the member.
const CONNECT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PetitionError {
    /// The address, the petition or the key cannot be used.
    #[error(transparent)]
    Input(#[from] FabricError),
    /// The petition is longer than members read.
    #[error("the petition has {len} bytes, at most {MAX_PETITION} are possible")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Nobody answers there.
    #[error("failed to connect to `{address}`: {why}")]
    Connect {
        /// Where.
        address: String,
        /// What the transport says.
        why: String,
    },
    /// The connection ended before the answer.
    #[error("the connection ended before the answer")]
    Broken(#[source] io::Error),
    /// It took too long.
    #[error("no answer within {} s", CREDENTIAL_TIMEOUT.as_secs())]
    Silent,
    /// Not an answer: a member that takes no petitions, or no member.
    #[error("the other side takes no petitions: {why}")]
    NoAnswer {
        /// What it says.
        why: String,
    },
}

/// Asks the member at `address` (`ip:port`), as the holder of the Ed25519 seed `secret`. The answer is at most
/// [`crate::MAX_ANSWER`] bytes, of whoever listens there. Must be called in a tokio runtime.
///
/// # Errors
/// See [`PetitionError`].
pub async fn petition(
    mut secret: [u8; 32],
    address: &str,
    petition: &[u8],
) -> Result<Vec<u8>, PetitionError> {
    if petition.len() > MAX_PETITION {
        return Err(PetitionError::TooLong { len: petition.len() });
    }
    let target = Target::parse(address).ok_or_else(|| FabricError::Address {
        text: address.to_owned(),
    })?;
    let key = Keypair::ed25519_from_bytes(&mut secret).map_err(|error| FabricError::Transport {
        what: error.to_string(),
    });
    secret.zeroize();
    let mut transport = transport::outside(&key?)?;
    let failed = |why: String| PetitionError::Connect {
        address: address.to_owned(),
        why,
    };
    let options = DialOpts {
        role: Endpoint::Dialer,
        port_use: PortUse::New,
    };
    let dial = transport
        .dial(tcp_address(target.socket), options)
        .map_err(|error| failed(error.to_string()))?;
    let (_, mut muxer) = match timeout(CONNECT, dial).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed(format!("no connection within {} s", CONNECT.as_secs()))),
    };
    let talk = async {
        let mut io = first_substream(&mut muxer, true)
            .await
            .map_err(PetitionError::Broken)?;
        let talk = async {
            First::write_petition(&mut io, petition).await?;
            let verdict = Verdict::read(&mut io).await;
            // The other side waits for this before it drops the connection.
            let _ = io.close().await;
            verdict
        };
        match drive(&mut muxer, talk).await.map_err(PetitionError::Broken)? {
            Ok(Verdict::Answer(answer)) => Ok(answer),
            Ok(Verdict::Refused(why)) => Err(PetitionError::NoAnswer { why }),
            Ok(other) => Err(PetitionError::NoAnswer {
                why: format!("{other:?}"),
            }),
            Err(HelloError::Io(error)) => Err(PetitionError::Broken(error)),
            Err(error) => Err(PetitionError::NoAnswer {
                why: error.to_string(),
            }),
        }
    };
    timeout(CREDENTIAL_TIMEOUT, talk)
        .await
        .unwrap_or(Err(PetitionError::Silent))
}
