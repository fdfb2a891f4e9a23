//! What a box leaves on a stick: who it is, what it did with the pack, and by what clock; beside it its log, for its operator.

use super::Sticks;
use super::log::{LogReader, newest};
use crate::{clock, network, stick};
use beemesh_agent_sched::attestation::QUOTED;
use beemesh_firmware_tpm::TpmError;
use beemesh_ids::Digest;
use beemesh_init_api::{TimeStatus, path};
use beemesh_joinpack_format::{
    BootQuote, EndorsementFile, Outcome, Part, QuoteParts, Receipt, ReceiptMachine, Registers, SecretKey,
    TimeSource, Timestamp,
};
use std::io;
use std::path::Path;

/// What became of a stick.
pub(super) struct Visit {
    /// Serial of its pack, where the box follows it.
    pub(super) serial: Option<String>,
    /// Digest of its pack.
    pub(super) pack: Option<Digest>,
    /// What happened.
    pub(super) outcome: Outcome,
    /// What the pack brought.
    pub(super) parts: Vec<Part>,
    /// Who may read the box's log, as the pack says, where it was verified.
    pub(super) reader: Option<LogReader>,
}

impl Sticks {
    /// Writes a receipt and the box's log to the stick that is mounted, and says when that fails.
    pub(super) fn leave_receipt(&self, visit: Visit) {
        let mount = self.options.run_path(path::STICK);
        let key = self.key.now();
        let secret = Some(key.secret_key());
        let written = tokio::task::block_in_place(|| {
            let reader = visit.reader.clone().or_else(|| self.own_reader());
            let mut receipt = self.receipt(visit);
            if let Some(reader) = reader
                && let Err(error) = self.leave_log(&mount, &mut receipt, &reader)
            {
                // The receipt is worth more than the log beside it.
                receipt.log = None;
                let message = format!("no log was written to the stick: {error}");
                self.journal.emit("ReceiptLogFailed", "pack", &message);
            }
            let written = write_attested(&mount, &mut receipt, secret);
            if written.is_ok() || receipt.log.is_none() {
                return written;
            }
            // The log may have taken the last room on the stick.
            let _ = stick::remove_log(&mount, &receipt);
            receipt.log = None;
            write_attested(&mount, &mut receipt, secret)
        });
        if let Err(error) = written {
            self.journal.announce(
                "ReceiptFailed",
                "pack",
                &format!("no receipt was written to the stick: {error}"),
            );
        }
    }

    /// Whom the newest pack that was applied names.
    fn own_reader(&self) -> Option<LogReader> {
        let joined = self.joined.as_ref()?;
        Some(LogReader {
            fabric: joined.member.fabric.clone(),
            key: joined.document.log_key?,
        })
    }

    /// Writes the log, encrypted, and names it in the receipt.
    fn leave_log(&self, mount: &Path, receipt: &mut Receipt, reader: &LogReader) -> io::Result<()> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(io::Error::other)?;
        let log = newest(&self.system_log);
        let file = receipt.attach_log(&log, &reader.fabric, &reader.key, seed);
        stick::write_log(mount, receipt, &file.map_err(io::Error::other)?)
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
    fn receipt(&self, visit: Visit) -> Receipt {
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
            serial: visit.serial,
            pack: visit.pack,
            outcome: visit.outcome,
            parts: visit.parts,
            log: None,
            attestation: None,
        }
    }
}

/// Lets the TPM sign what was booted for this receipt, and writes it. Blocks on the TPM.
fn write_attested(mount: &Path, receipt: &mut Receipt, key: Option<&SecretKey>) -> io::Result<()> {
    let nonce = receipt.settle().map_err(io::Error::other)?;
    receipt.attestation = quote(&nonce);
    stick::write_receipt(mount, receipt, key)
}

/// What this machine's TPM says of its boot, over `nonce`; `None` where there is no TPM, or it does not say it.
pub(super) fn quote(nonce: &Digest) -> Option<BootQuote> {
    match beemesh_firmware_tpm::open().attest(nonce.as_bytes(), QUOTED) {
        Ok(attested) => {
            let parts = QuoteParts {
                ak: attested.key.public().to_vec(),
                attest: attested.quote.attest,
                signature: attested.quote.signature,
            };
            Some(BootQuote::new(&parts, Registers(attested.quote.pcrs)))
        }
        Err(TpmError::NoEndorsement) => None,
        Err(error) => {
            tracing::warn!(error = crate::words(&error), "no quote for the stick");
            None
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
