//! What the simulated network does to messages. Plain data.

/// How the network behaves.
#[derive(Debug, Clone)]
pub struct Network {
    /// Least delay of a message in milliseconds.
    pub min_ms: u64,
    /// Greatest delay.
    pub max_ms: u64,
    /// Longest delay of the slow messages, and how many of a thousand are slow.
    pub tail: (u64, u32),
    /// Messages lost of a thousand.
    pub lost: u32,
    /// Bytes that a node can send in a millisecond; 0: as many as it likes.
    pub bandwidth: u64,
    /// Longest pause of a node, and how many of a thousand ticks begin one.
    pub hiccup: (u64, u32),
    /// Credentials are exchanged at each connection (as the fabric does); otherwise only when a node is admitted.
    pub handshake: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            min_ms: 3,
            max_ms: 5,
            tail: (0, 0),
            lost: 0,
            bandwidth: 0,
            hiccup: (0, 0),
            handshake: true,
        }
    }
}

impl Network {
    /// A site on a bad day: 100 Mbit/s for each node, one message of a hundred up to 200 ms late, one of a thousand lost.
    pub fn site() -> Self {
        Self {
            min_ms: 1,
            max_ms: 5,
            tail: (200, 10),
            lost: 1,
            bandwidth: 12_500,
            ..Self::default()
        }
    }
}
