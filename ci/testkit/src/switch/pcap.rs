//! A capture of what crossed the switch, in the classic pcap format (draft-ietf-opsawg-pcap), for Wireshark.
//!
//! Invariant: the file never grows past [`MAX_CAPTURE`]; what comes after is counted instead.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The largest capture, in bytes.
pub const MAX_CAPTURE: u64 = 256 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Capture {
    file: BufWriter<File>,
    left: u64,
    /// Frames that were not written: no space, or the disk refused.
    pub(super) skipped: u64,
}

impl Capture {
    pub(super) fn create(path: &Path, limit: u64) -> Result<Self> {
        let file = File::create(path)
            .with_context(|| format!("failed to create the capture `{}`", path.display()))?;
        let mut file = BufWriter::new(file);
        let mut header = Vec::with_capacity(24);
        header.extend(0xa1b2_c3d4u32.to_le_bytes());
        header.extend(2u16.to_le_bytes());
        header.extend(4u16.to_le_bytes());
        header.extend([0; 8]);
        header.extend((crate::MAX_FRAME as u32).to_le_bytes());
        header.extend(1u32.to_le_bytes()); // LINKTYPE_ETHERNET
        file.write_all(&header)
            .context("failed to write the capture's header")?;
        Ok(Self {
            file,
            left: limit.saturating_sub(24),
            skipped: 0,
        })
    }

    pub(super) fn record(&mut self, frame: &[u8]) {
        let size = 16 + frame.len() as u64;
        if size > self.left {
            self.skipped += 1;
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut head = [0u8; 16];
        head[..4].copy_from_slice(&(now.as_secs() as u32).to_le_bytes());
        head[4..8].copy_from_slice(&now.subsec_micros().to_le_bytes());
        head[8..12].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        head[12..].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        match self
            .file
            .write_all(&head)
            .and_then(|()| self.file.write_all(frame))
        {
            Ok(()) => self.left -= size,
            Err(_) => self.skipped += 1,
        }
    }

    pub(super) fn finish(mut self) -> Result<u64> {
        self.file
            .flush()
            .context("failed to write the end of the capture")?;
        Ok(self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_has_the_format_s_header_and_stops_at_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        let mut capture = Capture::create(&path, 24 + 2 * (16 + 60)).unwrap();
        for i in 0..5 {
            capture.record(&[i; 60]);
        }
        assert_eq!(capture.finish().unwrap(), 3);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 2 * 76);
        assert_eq!(&bytes[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(&bytes[24 + 16..24 + 76], [0; 60]);
    }
}
