//! The join pack: signed documents, bounded parsing, verification.
