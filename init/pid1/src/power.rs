//! The power button: input devices that can say KEY_POWER. Reads and forgets every other key.
//!
//! Source: linux `include/uapi/linux/input.h` (`struct input_event`: 16 bytes of time, type, code, value).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
const EVENT_BYTES: usize = 24;
/// Devices that are listened to; more are ignored.
const DEVICES_LIMIT: usize = 16;

/// The devices that have a power key.
#[derive(Default)]
pub struct PowerButtons {
    devices: BTreeMap<String, File>,
}

impl PowerButtons {
    /// Listens to `name` (e.g. `input/event0`) if it has a power key; `true`: it is new.
    pub fn watch(&mut self, name: &str) -> bool {
        if self.devices.len() >= DEVICES_LIMIT || self.devices.contains_key(name) || !has_power_key(name) {
            return false;
        }
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(format!("/dev/{name}"));
        file.is_ok_and(|file| self.devices.insert(name.to_owned(), file).is_none())
    }

    /// Listens to all that are there.
    pub fn watch_all(&mut self) {
        for entry in std::fs::read_dir("/sys/class/input")
            .into_iter()
            .flatten()
            .flatten()
        {
            if let Some(name) = entry
                .file_name()
                .to_str()
                .filter(|name| name.starts_with("event"))
            {
                self.watch(&format!("input/{name}"));
            }
        }
    }

    /// What to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.devices
            .iter()
            .map(|(name, file)| (name.as_str(), file.as_fd()))
    }

    /// Reads what is there; `true`: the button was pressed. A device that is gone is dropped.
    pub fn read_all(&mut self) -> bool {
        let mut pressed = false;
        self.devices.retain(|_, device| {
            let mut buffer = [0; 64 * EVENT_BYTES];
            match device.read(&mut buffer) {
                Ok(count) => {
                    pressed |= buffer
                        .get(..count)
                        .unwrap_or_default()
                        .chunks_exact(EVENT_BYTES)
                        .any(is_power_press);
                    count > 0
                }
                Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
            }
        });
        pressed
    }
}

fn is_power_press(event: &[u8]) -> bool {
    let mut expected = [0; 8];
    let (kind, rest) = expected.split_at_mut(2);
    kind.copy_from_slice(&EV_KEY.to_le_bytes());
    let (code, value) = rest.split_at_mut(2);
    code.copy_from_slice(&KEY_POWER.to_le_bytes());
    value.copy_from_slice(&1i32.to_le_bytes());
    event.get(16..24) == Some(&expected)
}

fn has_power_key(name: &str) -> bool {
    let Some(event) = name.strip_prefix("input/") else {
        return false;
    };
    let keys = std::fs::read_to_string(format!("/sys/class/input/{event}/device/capabilities/key"));
    keys.is_ok_and(|text| lists_key(&text, KEY_POWER))
}

/// The kernel prints the bitmap as words of 64 bits in hexadecimal, the highest first.
fn lists_key(text: &str, key: u16) -> bool {
    let word = text.split_whitespace().rev().nth(usize::from(key / 64));
    word.and_then(|word| u64::from_str_radix(word, 16).ok())
        .is_some_and(|bits| bits >> (key % 64) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acpi_button_has_a_power_key_and_a_mouse_has_none() {
        assert!(lists_key("10000000000000 0\n", KEY_POWER));
        assert!(!lists_key("1f0000 0 0 0 0\n", KEY_POWER));
    }

    #[test]
    fn press_counts_and_release_does_not() {
        let mut event = [0; 24];
        event[16] = 1;
        event[18] = 116;
        assert!(!is_power_press(&event));
        event[20] = 1;
        assert!(is_power_press(&event));
    }
}
