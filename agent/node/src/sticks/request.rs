//! The request that a box without a place leaves on the stick: who it is, and what its TPM shows, for the stick's maker.

use super::Sticks;
use super::receipt::quote;
use crate::stick::{self, StickError};
use crate::{clock, network};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_init_api::path;
use beemesh_joinpack_format::{ApprovalCode, Manifest, Outcome, ReceiptMachine, Request, limits};

/// What became of a request.
pub(super) struct Asked {
    written: bool,
    /// What the person in front of the box does next.
    pub(super) message: String,
}

impl Asked {
    /// The word of its event.
    pub(super) fn event(&self) -> &'static str {
        match self.written {
            true => "WaitsForAnswer",
            false => "RequestFailed",
        }
    }

    /// For the receipt.
    pub(super) fn outcome(&self) -> Outcome {
        let code = match self.written {
            true => "waits-for-answer",
            false => "request-failed",
        };
        Outcome::Refused {
            code: code.to_owned(),
            message: self.message.clone(),
        }
    }
}

impl Sticks {
    /// A request to the maker of this pack. Blocks on the TPM.
    pub(super) fn request(&self, manifest: &Manifest) -> Result<Request, StickError> {
        // Without one there is nothing that an answer could be encrypted to.
        let ek = self.endorsement().cloned().ok_or(StickError::Unprovable)?;
        let chain = beemesh_firmware_tpm::open().endorsement_chain();
        let chain = chain.unwrap_or_else(|error| {
            tracing::warn!(error = crate::words(&error), "no certificates above the key's");
            Vec::new()
        });
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut request = Request {
            fabric: manifest.fabric.clone(),
            serial: manifest.serial.clone(),
            peer_id: self.key.now().peer_id(),
            machine: ReceiptMachine {
                macs: network::own_macs("/sys/class/net".as_ref()),
                serial: network::own_serial("/sys/class/dmi/id".as_ref()),
                ek: Some(ek),
            },
            chain: (!chain.is_empty() && chain.len() <= limits::CHAIN).then(|| STANDARD.encode(&chain)),
            boot_id: boot_id.trim().to_owned(),
            at: clock::system_now().max(self.floor.0),
            attestation: None,
        };
        let nonce = request.settle()?;
        request.attestation = quote(&nonce);
        Ok(request)
    }

    /// Writes the request to the stick that is mounted.
    pub(super) fn leave_request(&self, request: &Request) -> Asked {
        let mount = self.options.run_path(path::STICK);
        let key = self.key.now();
        let secret = key.secret_key();
        let (code, written) = tokio::task::block_in_place(|| {
            let code = ApprovalCode::of(&request.fabric, &request.peer_id);
            (code, stick::write_request(&mount, request, secret))
        });
        let message = match &written {
            Ok(()) => format!(
                "the join stick has no place for this box, which wrote a request to it. Its code is {code}. Take the stick back to \
                 the person who made it, tell the code, and insert the stick here again once it was answered; this box waits"
            ),
            Err(error) => format!(
                "the join stick has no place for this box, and no request could be written to it ({error}): insert it again, or use \
                 another stick"
            ),
        };
        Asked {
            written: written.is_ok(),
            message,
        }
    }
}
