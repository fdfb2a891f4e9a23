//! Mutations: one input from others, decided by a seed alone.
//!
//! Knows JSON and base64 a little: signed documents are texts, and a text with flipped bits is mostly no JSON. Invariant: an
//! output is at most [`MOST`] bytes.

use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

/// Longest output, in bytes.
pub const MOST: usize = 1 << 20;
/// What is put in: values at the edges of what parsers expect.
const TOKENS: &[&[u8]] = &[
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"\"\"",
    b"0",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"4294967296",
    b"..",
    b"/",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\"",
    b",",
    b"}",
    b"[[[[[[[[",
    b"=",
    b"9999-12-31T23:59:59Z",
    b"1969-12-31T23:59:59Z",
    b"sha256:",
    b"ff:ff:ff:ff:ff:ff",
];

/// Makes inputs from a corpus.
pub struct Mutator {
    corpus: Vec<Vec<u8>>,
    random: SmallRng,
}

impl Mutator {
    /// Mutates what is in `corpus`, which must not be empty, by `seed`.
    pub fn new(corpus: Vec<Vec<u8>>, seed: u64) -> Self {
        Self {
            corpus,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        match bound {
            0 => 0,
            bound => self.random.random_range(0..bound),
        }
    }

    fn pick(&mut self) -> Vec<u8> {
        let at = self.below(self.corpus.len());
        self.corpus.get(at).cloned().unwrap_or_default()
    }

    /// The next input.
    pub fn next_input(&mut self) -> Vec<u8> {
        let mut bytes = self.pick();
        for _ in 0..=self.below(4) {
            self.mutate(&mut bytes);
        }
        bytes.truncate(MOST);
        bytes
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let (from, length) = (self.below(bytes.len()), self.below(64));
        let to = (from + length).min(bytes.len());
        match self.below(7) {
            0 => {
                let bit = self.below(8);
                if let Some(byte) = bytes.get_mut(from) {
                    *byte ^= 1 << bit;
                }
            }
            1 => drop(bytes.drain(from..to)),
            2 => {
                let repeated: Vec<u8> = bytes.get(from..to).unwrap_or_default().to_vec();
                let times = self.below(9);
                bytes.splice(from..from, repeated.repeat(times));
            }
            3 => {
                let at = self.below(TOKENS.len());
                let token = TOKENS.get(at).copied().unwrap_or_default();
                bytes.splice(from..to, token.iter().copied());
            }
            // A value between two marks of JSON gives way to a token or to a value of another input.
            4 => {
                let token = match self.below(2) {
                    0 => TOKENS
                        .get(self.below(TOKENS.len()))
                        .copied()
                        .unwrap_or_default()
                        .to_vec(),
                    _ => {
                        let other = self.pick();
                        let start = self.below(other.len());
                        let end = (start + self.below(200)).min(other.len());
                        other.get(start..end).unwrap_or_default().to_vec()
                    }
                };
                let mark = |byte: &u8| matches!(byte, b':' | b',' | b'[' | b'{');
                if let Some(start) = bytes.iter().skip(from).position(mark).map(|at| from + at + 1) {
                    let close = |byte: &u8| matches!(byte, b',' | b']' | b'}');
                    let end = bytes
                        .iter()
                        .skip(start)
                        .position(close)
                        .map_or(bytes.len(), |at| start + at);
                    bytes.splice(start..end, token);
                }
            }
            5 => {
                let other = self.pick();
                let cut = self.below(other.len());
                bytes.truncate(from);
                bytes.extend_from_slice(other.get(cut..).unwrap_or_default());
            }
            _ => bytes.truncate(from),
        }
    }
}
