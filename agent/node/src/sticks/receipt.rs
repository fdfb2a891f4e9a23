//! What a box leaves on a stick: who it is, what it did with the pack, and by what clock.

use super::Sticks;
use crate::{clock, network, stick};
use beemesh_ids::Digest;
use beemesh_init_api::{TimeStatus, path};
use beemesh_joinpack_format::{
    EndorsementFile, Outcome, Part, Receipt, ReceiptMachine, TimeSource, Timestamp,
};

impl Sticks {
    /// Writes a receipt to the stick that is mounted, and says when that fails.
    pub(super) fn leave_receipt(
        &self,
        serial: Option<String>,
        pack: Option<Digest>,
        outcome: Outcome,
        parts: Vec<Part>,
    ) {
        let mount = self.options.run_path(path::STICK);
        let key = self.key.now();
        let secret = key.secret_key();
        let written = tokio::task::block_in_place(|| {
            let receipt = self.receipt(serial, pack, outcome, parts);
            stick::write_receipt(&mount, &receipt, Some(secret))
        });
        if let Err(error) = written {
            self.journal.announce(
                "ReceiptFailed",
                "pack",
                &format!("no receipt was written to the stick: {error}"),
            );
        }
    }

    /// What this machine's TPM shows itself by. One that has none to show is a machine that no endorsement key names.
    pub(super) fn endorsement(&self) -> Option<&EndorsementFile> {
        if self.endorsement.get().is_none() {
            match beemesh_firmware_tpm::open().endorsement() {
                Ok(found) => {
                    let file = EndorsementFile::new(found.key.public(), found.certificate.as_deref());
                    // Set before by nobody: one task watches the sticks.
                    let _ = self.endorsement.set(file);
                }
                Err(error) => tracing::warn!(error = crate::words(&error), "no endorsement key"),
            }
        }
        self.endorsement.get()
    }

    /// Blocks on the TPM the first time.
    fn receipt(
        &self,
        serial: Option<String>,
        pack: Option<Digest>,
        outcome: Outcome,
        parts: Vec<Part>,
    ) -> Receipt {
        let kept = self.as_it_stands();
        let joined = kept.as_ref();
        let member = joined.map(|joined| &joined.member);
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let status = std::fs::read(self.options.run_path(path::TIME_STATUS)).ok();
        let status = status.and_then(|bytes| serde_json::from_slice::<TimeStatus>(&bytes).ok());
        let system = clock::system_now();
        Receipt {
            node: member.map(|member| member.name.clone()),
            peer_id: Some(self.key.now().peer_id()),
            fabric: member.map(|member| member.fabric.clone()),
            membership: joined.map(|joined| joined.document.membership.clone()),
            machine: ReceiptMachine {
                macs: network::own_macs("/sys/class/net".as_ref()),
                serial: network::own_serial("/sys/class/dmi/id".as_ref()),
                ek: self.endorsement().cloned(),
            },
            boot_id: boot_id.trim().to_owned(),
            at: system.max(self.floor.0),
            time_source: time_source(status.as_ref(), system, self.floor.0),
            serial,
            pack,
            outcome,
            parts,
        }
    }
}

/// What the time in a receipt is from: the floor where the clock is behind it, and else what `beemesh-net` set the clock
/// by; before it has said anything, the clock is the battery-backed one.
fn time_source(status: Option<&TimeStatus>, system: Timestamp, floor: Timestamp) -> TimeSource {
    use beemesh_init_api::time::TimeSource as Clock;
    match status.map(|status| status.source) {
        _ if system < floor => TimeSource::Floor,
        Some(Clock::Floor) => TimeSource::Floor,
        Some(Clock::Peers) => TimeSource::Peers,
        Some(Clock::Ntp) => TimeSource::Ntp,
        Some(Clock::Rtc) | None => TimeSource::Rtc,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beemesh_init_api::time::{RtcState, TimeSource as Clock};

    #[test]
    fn time_is_said_to_be_from_what_the_clock_goes_by_and_from_the_floor_where_it_is_behind() {
        let status = |source| TimeStatus {
            source,
            reason: String::new(),
            server: None,
            offset_us: None,
            heard_ms: None,
            peers: None,
            floor: 0,
            rtc: RtcState::Plausible,
        };
        let from = |source: Option<Clock>, system| {
            time_source(source.map(status).as_ref(), Timestamp(system), Timestamp(100))
        };
        assert_eq!(from(Some(Clock::Ntp), 200), TimeSource::Ntp);
        assert_eq!(from(Some(Clock::Ntp), 50), TimeSource::Floor);
        assert_eq!(from(Some(Clock::Peers), 200), TimeSource::Peers);
        assert_eq!(from(Some(Clock::Rtc), 200), TimeSource::Rtc);
        assert_eq!(from(Some(Clock::Floor), 200), TimeSource::Floor);
        assert_eq!(from(None, 200), TimeSource::Rtc);
    }
}
