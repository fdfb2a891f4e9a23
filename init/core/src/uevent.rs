//! Kernel uevents: the netlink message and sysfs' `uevent` file as one type. Bounded; unknown keys are ignored.
//!
//! Source: linux `lib/kobject_uevent.c` (`action@devpath\0KEY=VALUE\0...`, buffer of 2048 bytes).

/// The longest message that is read, in bytes. The kernel's own buffer holds 2048.
pub const MESSAGE_LIMIT: usize = 8192;

/// What happened to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is there (or was there already, when we looked).
    Add,
    /// It is gone.
    Remove,
    /// Something about it changed, a medium perhaps.
    Change,
    /// `bind`, `move`, `online` and others that nobody here acts on.
    Other,
}

/// One device event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// The device's path below `/sys`; empty for a device that was found by its class.
    pub devpath: String,
    /// `SUBSYSTEM`, e.g. `block`; empty where the kernel gives none.
    pub subsystem: String,
    /// `DEVNAME` without `/dev/`, e.g. `sda1` or `input/event0`.
    pub devname: Option<String>,
    /// `MODALIAS`.
    pub modalias: Option<String>,
    /// `PARTNAME`: the name in the GPT.
    pub partname: Option<String>,
    /// `DISK_MEDIA_CHANGE=1`.
    pub medium_changed: bool,
}

/// Why a message is not a uevent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUevent {
    /// Longer than [`MESSAGE_LIMIT`].
    #[error("uevent of {0} bytes: at most {MESSAGE_LIMIT} are read")]
    TooLong(usize),
    /// The first line is not `action@devpath` (udev's own messages begin with `libudev`).
    #[error("uevent does not begin with `action@devpath`")]
    NoHeader,
}

impl Uevent {
    /// The device hangs on USB.
    #[must_use]
    pub fn on_usb(&self) -> bool {
        self.devpath.split('/').any(|part| part.starts_with("usb"))
    }
}

/// Reads one netlink message.
///
/// # Errors
/// [`InvalidUevent`].
pub fn parse_message(message: &[u8]) -> Result<Uevent, InvalidUevent> {
    if message.len() > MESSAGE_LIMIT {
        return Err(InvalidUevent::TooLong(message.len()));
    }
    let mut fields = message.split(|b| *b == 0);
    let header = fields
        .next()
        .and_then(|h| std::str::from_utf8(h).ok())
        .ok_or(InvalidUevent::NoHeader)?;
    let (action, devpath) = header.split_once('@').ok_or(InvalidUevent::NoHeader)?;
    if !devpath.starts_with('/') {
        return Err(InvalidUevent::NoHeader);
    }
    let action = match action {
        "add" => Action::Add,
        "remove" => Action::Remove,
        "change" => Action::Change,
        _ => Action::Other,
    };
    Ok(collect(
        action,
        devpath,
        "",
        fields.filter_map(|f| std::str::from_utf8(f).ok()),
    ))
}

/// A device that was found in sysfs: its subsystem and the text of its `uevent` file, as an [`Action::Add`].
#[must_use]
pub fn parse_sysfs(subsystem: &str, text: &str) -> Uevent {
    collect(Action::Add, "", subsystem, text.lines())
}

fn collect<'a>(
    action: Action,
    devpath: &str,
    subsystem: &str,
    pairs: impl Iterator<Item = &'a str>,
) -> Uevent {
    let mut event = Uevent {
        action,
        devpath: devpath.to_owned(),
        subsystem: subsystem.to_owned(),
        devname: None,
        modalias: None,
        partname: None,
        medium_changed: false,
    };
    for (key, value) in pairs.filter_map(|pair| pair.split_once('=')) {
        match key {
            "SUBSYSTEM" => event.subsystem = value.to_owned(),
            "DEVNAME" if is_plain(value) => event.devname = Some(value.to_owned()),
            "MODALIAS" => event.modalias = Some(value.to_owned()),
            "PARTNAME" => event.partname = Some(value.to_owned()),
            "DISK_MEDIA_CHANGE" => event.medium_changed = value == "1",
            _ => {}
        }
    }
    event
}

/// A name that stays under `/dev` and needs no quoting.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('/')
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && name.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn partition_add_is_read_from_the_kernels_message() {
        let message = b"add@/devices/pci/usb1/sdb/sdb2\0ACTION=add\0SUBSYSTEM=block\0DEVNAME=sdb2\0\
            DEVTYPE=partition\0PARTNAME=BEEMESHJOIN\0SEQNUM=7\0";
        let event = parse_message(message).unwrap();
        assert_eq!(event.action, Action::Add);
        assert_eq!(event.subsystem, "block");
        assert_eq!(event.devname.as_deref(), Some("sdb2"));
        assert_eq!(event.partname.as_deref(), Some("BEEMESHJOIN"));
    }

    #[test]
    fn udevs_own_messages_are_refused() {
        assert_eq!(
            parse_message(b"libudev\0\xfe\xed\xca\xfe"),
            Err(InvalidUevent::NoHeader)
        );
    }

    #[test]
    fn message_past_the_limit_is_refused() {
        let long = vec![b'a'; MESSAGE_LIMIT + 1];
        assert_eq!(
            parse_message(&long),
            Err(InvalidUevent::TooLong(MESSAGE_LIMIT + 1))
        );
    }

    #[test]
    fn device_name_that_climbs_out_of_dev_is_ignored() {
        for name in ["../etc/shadow", "/etc/shadow", "a//b", "a b", ""] {
            let message = format!("add@/devices/x\0SUBSYSTEM=block\0DEVNAME={name}\0");
            assert_eq!(parse_message(message.as_bytes()).unwrap().devname, None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            if let Ok(event) = parse_message(&bytes) {
                prop_assert!(event.devname.is_none_or(|name| is_plain(&name)));
            }
        }
    }
}
