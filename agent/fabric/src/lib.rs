//! The libp2p network: transports that only members pass.
