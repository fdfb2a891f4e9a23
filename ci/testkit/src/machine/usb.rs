//! Sticks that go in and out while the machine runs.
//!
//! Invariant: after [`Machine::unplug`] QEMU has the image file closed, so the test may read or change it.

use super::arguments::{limit_name, stick_device, stick_drive, stick_name, stick_node, throttle};
use super::{ANSWER, Machine, Stick};
use crate::qmp::QmpError;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

impl Machine {
    /// Puts a stick in.
    ///
    /// # Errors
    /// When the machine is off, a stick with this id is in, or QEMU refuses the image.
    pub fn plug(&mut self, stick: Stick) -> Result<()> {
        if self.config.sticks.iter().any(|s| s.id == stick.id) {
            bail!(
                "the stick `{}` is in the machine `{}` already",
                stick.id,
                self.config.name
            );
        }
        if let Some(limit) = throttle(&stick) {
            self.execute("object-add", limit)?;
        }
        self.execute("blockdev-add", stick_drive(&stick))?;
        self.execute("device_add", stick_device(&stick))?;
        self.config.sticks.push(stick);
        Ok(())
    }

    /// Pulls a stick out, whatever the machine is doing with it, and returns it.
    ///
    /// # Errors
    /// When there is no such stick, or QEMU does not let go of it.
    pub fn unplug(&mut self, id: &str) -> Result<Stick> {
        let position = self.position(id)?;
        let qmp = self.qmp()?;
        let since = qmp.next_event();
        let name = stick_name(id);
        qmp.execute("device_del", json!({ "id": name }), ANSWER)
            .with_context(|| format!("failed to pull the stick `{id}`"))?;
        qmp.wait_event(
            since,
            "DEVICE_DELETED",
            |data| data["device"] == json!(name),
            ANSWER,
        )
        .with_context(|| format!("the stick `{id}` did not come out"))?;
        // The device is gone before its last request has been given up.
        let deadline = Instant::now() + ANSWER;
        loop {
            match qmp.execute("blockdev-del", json!({ "node-name": stick_node(id) }), ANSWER) {
                Ok(_) => break,
                Err(QmpError::Refused { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(e) => return Err(e).with_context(|| format!("qemu keeps the image of the stick `{id}`")),
            }
        }
        let stick = self.config.sticks.remove(position);
        if stick.bytes_per_second.is_some() {
            self.execute("object-del", json!({ "id": limit_name(&stick) }))?;
        }
        Ok(stick)
    }

    /// How many bytes the machine has read from a stick since it was put in.
    ///
    /// # Errors
    /// When the machine is off or there is no such stick.
    pub fn stick_reads(&self, id: &str) -> Result<u64> {
        self.position(id)?;
        let node = stick_node(id);
        let answer = self.execute("query-blockstats", json!({}))?;
        let devices = answer.as_array().map_or(&[][..], Vec::as_slice);
        let device = devices.iter().find(|d| d["node-name"] == json!(node));
        device
            .and_then(|d| d.pointer("/stats/rd_bytes"))
            .and_then(Value::as_u64)
            .with_context(|| format!("qemu tells nothing about the stick `{id}`"))
    }

    /// Waits until the machine has read at least this much from a stick; returns how much it was.
    ///
    /// # Errors
    /// When it has not after `timeout`.
    pub fn wait_stick_read(&self, id: &str, bytes: u64, timeout: Duration) -> Result<u64> {
        let deadline = Instant::now() + timeout;
        loop {
            let read = self.stick_reads(id)?;
            if read >= bytes {
                return Ok(read);
            }
            if Instant::now() > deadline {
                bail!(
                    "the machine `{}` read {read} bytes of `{id}` in {timeout:?}, not {bytes}",
                    self.config.name
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn position(&self, id: &str) -> Result<usize> {
        self.config
            .sticks
            .iter()
            .position(|s| s.id == id)
            .with_context(|| format!("there is no stick `{id}` in the machine `{}`", self.config.name))
    }
}
