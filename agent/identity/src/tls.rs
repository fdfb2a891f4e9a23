//! TLS between operators and nodes: version 1.3 and Ed25519 only, no certificate authority.
//!
//! A node shows its membership, bound to its key; an operator shows the operator's key. Hostnames, dates and resumption
//! play no part. Whether a connection without an operator may do something is decided behind it: see [`operator_of`].

use crate::{NodeKey, SharedRoots, certificate, read};
use beemesh_ids::PeerId;
use beemesh_joinpack_format::{Act, KeyId, Member, Membership, Refusal, RootChain, Signer};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error,
    OtherError, PeerIncompatible, ServerConfig, ServerConnection, SignatureAlgorithm, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SigningKey, SingleCertAndKey},
    version::TLS13,
};
use std::fmt;
use std::sync::{Arc, RwLock};

/// A key that signs handshakes: in memory, or on a token.
pub type OperatorKey = Arc<dyn Signer + Send + Sync>;

/// A key as rustls uses one.
struct Hand(OperatorKey);

impl fmt::Debug for Hand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hand(of {:?})", self.0.public())
    }
}

impl SigningKey for Hand {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let own = offered.contains(&SignatureScheme::ED25519);
        own.then(|| Box::new(Self(Arc::clone(&self.0))) as Box<dyn rustls::sign::Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl rustls::sign::Signer for Hand {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = self.0.sign(message);
        signature
            .map(|signature| signature.to_vec())
            .map_err(|error| Error::General(format!("the key did not sign: {error}")))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// What one side shows.
fn identity(key: OperatorKey, membership: Option<&Membership>) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let own = certificate::make(key.as_ref(), membership).map_err(TlsError::Certificate)?;
    let own = CertifiedKey::new(vec![own], Arc::new(Hand(key)));
    Ok(Arc::new(own.into()))
}

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate was not made.
    #[error("failed to make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// TLS does not take it.
    #[error("failed to set up tls")]
    Tls(#[source] rustls::Error),
}

/// Why the other side's certificate is refused. Told in the chain of the handshake's error.
#[derive(Debug, thiserror::Error)]
enum Distrust {
    #[error(transparent)]
    Certificate(#[from] certificate::CertificateError),
    #[error("the node shows no membership")]
    NoMembership,
    #[error("the node is not a member of this fabric: {0}")]
    NoMember(#[from] Refusal),
    #[error("the key is not that of an operator of this fabric: {0}")]
    NoOperator(Refusal),
}

impl From<Distrust> for Error {
    fn from(distrust: Distrust) -> Self {
        CertificateError::Other(OtherError(Arc::new(distrust))).into()
    }
}

/// The server's side, for a member. Clients may show a certificate; one that is not an operator's fails the handshake.
/// `roots` are read at each handshake.
///
/// # Errors
/// The certificate cannot be made, or is not taken by TLS.
pub fn server_config(
    key: &NodeKey,
    membership: &Membership,
    roots: SharedRoots,
) -> Result<ServerConfig, TlsError> {
    let own = identity(Arc::new(key.secret_key().clone()), Some(membership))?;
    let provider = provider();
    let verifier = Verifier {
        roots,
        provider: provider.clone(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Tls)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(own);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The client's side: shows the operator's key if there is one, and accepts only members of the fabric of `roots`.
///
/// # Errors
/// The certificate cannot be made, or is not taken by TLS.
pub fn client_config(operator: Option<OperatorKey>, roots: RootChain) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier = Verifier {
        roots: Arc::new(RwLock::new(roots)),
        provider: provider.clone(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Tls)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match operator {
        None => builder.with_no_client_auth(),
        Some(key) => builder.with_client_cert_resolver(identity(key, None)?),
    };
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// The operator at the other end, judged by `roots` as they are now; `None` if the client showed no certificate or its
/// key is not an operator's (any more).
pub fn operator_of(connection: &ServerConnection, roots: &RootChain) -> Option<KeyId> {
    operator(first(connection.peer_certificates())?, roots).ok()
}

/// The node at the other end; `None` before the handshake is done.
pub fn member_of(connection: &ClientConnection, roots: &RootChain) -> Option<Member> {
    member(first(connection.peer_certificates())?, roots).ok()
}

fn first<'a>(certificates: Option<&'a [CertificateDer<'static>]>) -> Option<&'a CertificateDer<'static>> {
    certificates?.first()
}

fn operator(certificate: &CertificateDer<'_>, roots: &RootChain) -> Result<KeyId, Distrust> {
    let id = certificate::parse(certificate)?.key.key_id();
    roots
        .may(&id, Act::Look, roots.past())
        .map_err(Distrust::NoOperator)?;
    Ok(id)
}

fn member(certificate: &CertificateDer<'_>, roots: &RootChain) -> Result<Member, Distrust> {
    let shown = certificate::parse(certificate)?;
    let membership = Membership::parse(&shown.membership.ok_or(Distrust::NoMembership)?)?;
    Ok(membership.verify(roots, &PeerId::from_ed25519(shown.key.as_bytes()))?)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Judges certificates; the proof that the other side holds the key is rustls's.
#[derive(Debug)]
struct Verifier {
    roots: SharedRoots,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn check_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }
}

/// Not reached: no configuration here offers TLS 1.2.
fn no_tls12() -> Error {
    PeerIncompatible::ServerDoesNotSupportTls12Or13.into()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        member(certificate, &read(&self.roots))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        operator(certificate, &read(&self.roots))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
