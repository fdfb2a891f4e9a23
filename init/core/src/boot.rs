//! The boot as a list that can be read: what happens in which order before the event loop, and what is said when a
//! step fails. Carries nothing out.

/// A step of the boot. `init/pid1` carries them out in the order of [`INITRAMFS`], then [`ROOT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `/proc`, `/sys`, `/dev`.
    MountApi,
    /// The modules that the root image needs, from the initramfs.
    LoadRootModules,
    /// `/root.img` becomes a block device.
    AttachRoot,
    /// The root image is mounted.
    MountRoot,
    /// The root image becomes `/`, and the same program runs again from there.
    SwitchRoot,
    /// The memory file systems and cgroups.
    MountSystem,
    /// Cgroup controllers are handed down.
    DelegateCgroups,
    /// Links in `/dev`, host name, first files, the console FIFO.
    PrepareSystem,
    /// Uevents are listened to, so that nothing that appears from now on is missed.
    OpenDevices,
}

/// From the kernel's hand-over to the switch of the root.
pub const INITRAMFS: [Phase; 5] = [
    Phase::MountApi,
    Phase::LoadRootModules,
    Phase::AttachRoot,
    Phase::MountRoot,
    Phase::SwitchRoot,
];
/// From the switch of the root to the event loop.
pub const ROOT: [Phase; 4] = [
    Phase::MountSystem,
    Phase::DelegateCgroups,
    Phase::PrepareSystem,
    Phase::OpenDevices,
];

impl Phase {
    /// What the machine was doing, to follow "This machine could not start: it failed to".
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::MountApi => "prepare the kernel's file systems",
            Self::LoadRootModules => "load the drivers for its system image",
            Self::AttachRoot => "open its system image",
            Self::MountRoot => "read its system image",
            Self::SwitchRoot => "change over to its system image",
            Self::MountSystem => "prepare its memory file systems",
            Self::DelegateCgroups => "prepare resource control",
            Self::PrepareSystem => "prepare its system directories",
            Self::OpenDevices => "listen for devices",
        }
    }

    /// What a person in front of the machine can do.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::LoadRootModules | Self::AttachRoot | Self::MountRoot | Self::SwitchRoot => {
                "The boot medium may be damaged. Switch the machine off and on once; \
                 if this text comes again, write the system to the USB stick again or use another stick."
            }
            _ => {
                "Switch the machine off and on once; if this text comes again, the machine may have too little \
                 memory or a fault: please read this text to your support."
            }
        }
    }
}

/// The sentences that `emergency` shows on every console. `detail` is the error chain, for the support.
#[must_use]
pub fn emergency_text(what: &str, detail: &str, remedy: &str, seconds: u32) -> Vec<String> {
    vec![
        String::new(),
        format!("beemesh: This machine could not start: it failed to {what}."),
        format!("beemesh: What you can do: {remedy}"),
        format!("beemesh: For your support: {detail}"),
        format!("beemesh: It starts again by itself in {seconds} seconds; the power button switches it off."),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_architecture_lists_the_same_phases_in_the_same_order() {
        let text = include_str!("../../../ARCHITECTURE.md");
        let (_, after) = text.split_once("## The boot, phase by phase").unwrap();
        let (section, _) = after.split_once("\n## ").unwrap();
        let listed: Vec<&str> = section
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
            .filter_map(|line| line.split('`').nth(1))
            .collect();
        let phases = INITRAMFS.iter().chain(&ROOT);
        assert_eq!(
            listed,
            phases.map(|phase| format!("{phase:?}")).collect::<Vec<_>>()
        );
    }

    #[test]
    fn every_phase_says_what_and_what_to_do_in_plain_words() {
        for phase in INITRAMFS.iter().chain(&ROOT) {
            let text = emergency_text(phase.what(), "detail", phase.remedy(), 60).join(" ");
            assert!(text.contains("What you can do: ") && text.contains("Switch the machine off"));
            assert!(!text.contains("  "), "{text}");
        }
    }
}
