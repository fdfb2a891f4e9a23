//! Root documents on their way through the cell: whoever has a longer chain hands on what the other lacks.
//!
//! It verifies nothing: documents are bytes, and the driver says how long the chain is. Invariant: what is handed on begins right
//! after what the other says that it has; a chain that got longer never gets shorter here; message and chain are bounded.

use crate::cell::Cell;
use crate::model::{Command, RootNews};
use crate::wire::{Blob, MAX_MESSAGE, Message};
use beemesh_ids::PeerId;

/// Root documents in a chain, at most.
pub const MAX_ROOTS: usize = 1024;
/// Bytes of root documents in one message, at most; a longer chain is handed on in pieces.
pub const MAX_PIECE: usize = MAX_MESSAGE * 3 / 4;

impl Cell {
    /// The driver follows this chain from now on.
    pub(crate) fn on_roots(&mut self, news: RootNews) {
        let before = self.root_documents.len();
        if news.documents.len() <= before || news.documents.len() > MAX_ROOTS {
            return;
        }
        self.root_documents = news.documents;
        if before == 0 {
            // The start: heartbeats tell.
            return;
        }
        let peers: Vec<PeerId> = self.connected.iter().cloned().collect();
        for peer in peers {
            self.send_roots(&peer, before);
        }
    }

    /// How long the chain is that the others hear of.
    pub(crate) fn root_version(&self) -> u32 {
        u32::try_from(self.root_documents.len()).unwrap_or(u32::MAX)
    }

    /// A member has a shorter chain. `theirs` is 0 where it does not say.
    pub(crate) fn on_root_version(&mut self, from: &PeerId, theirs: u32) {
        let theirs = theirs as usize;
        if theirs > 0 && theirs < self.root_documents.len() && self.may_ask(from, "roots", 300) {
            self.send_roots(from, theirs);
        }
    }

    /// As many as one message takes, from the one after `known` on.
    fn send_roots(&mut self, to: &PeerId, known: usize) {
        let mut bytes = 0;
        let fits = |document: &&Vec<u8>| {
            bytes += document.len();
            bytes <= MAX_PIECE
        };
        let rest = self.root_documents.iter().skip(known);
        let piece: Vec<Blob> = rest.take_while(fits).cloned().map(Blob).collect();
        if !piece.is_empty() {
            self.send(to, Message::Roots(piece));
        }
    }

    pub(crate) fn on_root_documents(&mut self, documents: Vec<Blob>) {
        if !documents.is_empty() && documents.len() <= MAX_ROOTS {
            let documents = documents.into_iter().map(|document| document.0).collect();
            self.out.push(Command::VerifyRoots { documents });
        }
    }
}
