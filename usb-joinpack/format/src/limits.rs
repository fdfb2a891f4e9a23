//! Every bound of the format, in one place. `SPEC.md`, section "Limits", repeats them.
//!
//! A reader stops at `limit + 1` bytes: whatever is longer is refused without reading it.

/// Length of `joinpack.json` in bytes.
pub const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;
/// Length of a membership credential in bytes: so many rotations of about 900 bytes fit.
pub const MEMBERSHIP_LIMIT: usize = 40 * 1024;
/// Rotations in a membership credential: of a key that changes every three months, eight years.
pub const ROTATIONS: usize = 32;
/// Standing orders in a manifest; key orders, and acceptances, held by a node: each says something that the newer ones do not.
pub const ORDERS: usize = 32;
/// Standing orders of all kinds: key orders, acceptances and one release list.
pub const STANDING: usize = 2 * ORDERS + 1;
/// Nodes in one acceptance: so many fit into [`DOCUMENT_LIMIT`] with ten registers each.
pub const ACCEPTED: usize = 64;
/// Registers of a TPM (TCG PC Client Platform TPM Profile, section 4.6.1).
pub const REGISTERS: u8 = 24;
/// Length of an acceptance's reason in bytes.
pub const REASON: usize = 256;
/// Length of a receipt file in bytes: a payload of [`DOCUMENT_LIMIT`] in base64, in which a credential fits.
pub const RECEIPT_LIMIT: usize = 85 * 1024;
/// Receipts on one stick, one for each place that a pack can have: with their length 43 MiB. The oldest go first.
pub const RECEIPTS: usize = 512;
/// Length of the log that a receipt may have beside it in bytes, before it is encrypted: with so many receipts 128 MiB.
pub const LOG: usize = 256 * 1024;
/// Length of such a log's file in bytes: what tells it apart, the encapsulated key and the tag come on top.
pub const LOG_LIMIT: usize = LOG + 14 + 32 + 16;
/// Length of a request file in bytes.
pub const REQUEST_LIMIT: usize = 64 * 1024;
/// Requests on one stick, one for each place that a pack can have.
pub const REQUESTS: usize = NODES;
/// Length of the certificates that a request may hold beside the endorsement key's own, in bytes (DER, one after the other).
pub const CHAIN: usize = 16 * 1024;
/// Network cards of one machine that it is shown by.
pub const CARDS: usize = 32;
/// Length of an operator context file in bytes.
pub const OPERATOR_LIMIT: usize = 4 * 1024 * 1024;
/// Length of one root, voucher or redemption payload in bytes.
pub const DOCUMENT_LIMIT: usize = 64 * 1024;
/// Signatures in one envelope.
pub const SIGNATURES: usize = 32;
/// Length of an envelope's payload type in bytes.
pub const PAYLOAD_TYPE: usize = 128;
/// Length of a root document's envelope in bytes: its payload and its signatures in base64.
pub const ROOT_LIMIT: usize = 96 * 1024;
/// Root documents in a chain.
pub const ROOTS: usize = 1024;
/// Keys in a root document.
pub const KEYS: usize = 64;
/// Parts of the scope of one operator's key.
pub const SCOPE: usize = 32;
/// Members of a cell, as many as a manifest's roster size can say, and nodes that one key order names: their ids fit into a document of [`DOCUMENT_LIMIT`].
pub const MEMBERS: usize = 1000;
/// Length of the envelope of a key order in bytes: a payload of [`DOCUMENT_LIMIT`] in base64, and its signatures.
pub const ORDER_LIMIT: usize = 96 * 1024;
/// Nodes in a manifest. A larger cell takes several packs.
pub const NODES: usize = 512;
/// Vouchers in a manifest.
pub const VOUCHERS: usize = 512;
/// Peers in a manifest.
pub const PEERS: usize = 64;
/// Images in a manifest.
pub const IMAGES: usize = 64;
/// Blobs in a manifest.
pub const BLOBS: usize = 4096;
/// Size of one blob in bytes: 1 TiB.
pub const BLOB_SIZE: u64 = 1 << 40;
/// Length of an image name in bytes.
pub const IMAGE_NAME: usize = 255;
/// Length of a cell name or a fabric name in bytes (a DNS label, RFC 1123).
pub const LABEL: usize = 63;
/// Static addresses of one node.
pub const ADDRESSES: usize = 16;
/// DNS servers of one node.
pub const DNS_SERVERS: usize = 8;
/// Paths in a listing of the media: every blob, and as many receipts and other files again.
pub const LISTING: usize = 16 * 1024;
/// Length of one path in a listing in bytes.
pub const PATH: usize = 1024;
/// Length of a machine's serial number in bytes.
pub const SERIAL: usize = 64;
/// Length of one part of a sealed one-time key, in characters of base64.
pub const SEALED: usize = 512;
/// Nodes, and vouchers, in a revocation snapshot: four of the largest cells.
pub const REVOKED: usize = 4096;
/// Length of a revocation snapshot's payload in bytes: so many nodes and vouchers fit.
pub const REVOCATION_PAYLOAD: usize = 512 * 1024;
/// Length of a revocation snapshot's envelope in bytes: it fits into one message between nodes.
pub const REVOCATION_LIMIT: usize = 768 * 1024;
/// Releases in a manifest.
pub const RELEASES: usize = 8;
/// Length of a release's version in bytes.
pub const VERSION: usize = 64;
/// Revocation snapshots in a manifest, and held by a node: each has something that the others lack.
pub const SNAPSHOTS: usize = 8;
