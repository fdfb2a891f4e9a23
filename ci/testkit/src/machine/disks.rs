//! Disks that go bad while the machine runs.
//!
//! Invariant: what the machine has written before is in the image file, whatever fails later.

use super::Machine;
use super::arguments::disk_file;
use anyhow::{Context, Result};
use serde_json::json;

impl Machine {
    /// From now on the disk `id` answers every write with an I/O error; what it holds can still be read. Holds until the
    /// machine is switched off.
    ///
    /// # Errors
    /// When the machine is off or has no such disk.
    pub fn fail_writes(&self, id: &str) -> Result<()> {
        let bad = format!("bad-{id}");
        let error = |kind: &str| json!({"event": "none", "iotype": kind, "errno": 5, "once": false, "immediately": true});
        let node = json!({
            "driver": "blkdebug",
            "node-name": bad,
            "image": disk_file(id),
            "inject-error": [error("write"), error("write-zeroes"), error("discard"), error("flush")],
        });
        self.execute("blockdev-add", node)?;
        let disk = json!({"driver": "raw", "node-name": id, "file": bad});
        self.execute("blockdev-reopen", json!({ "options": [disk] }))
            .with_context(|| format!("failed to spoil the disk `{id}`"))?;
        Ok(())
    }
}
