//! Network settings and time of one node, as an operator sees and changes them.
//!
//! A change is signed like that of a workload, but it is meant for one node and done at once; it travels no further.

use beemesh_ids::{FabricId, NodeName};
use beemesh_init_api::{NetworkConfig, NetworkStatus, TimeStatus};
use beemesh_joinpack_format::{Act, Deed, Refusal, Role, Timestamp};
use serde::{Deserialize, Serialize};

/// DSSE payload type of a signed [`NetworkChange`].
pub const NETWORK_PAYLOAD_TYPE: &str = "application/vnd.beemesh.network.v1+json";

/// One change of a node's network that an operator signs: the payload of a DSSE envelope of type
/// [`NETWORK_PAYLOAD_TYPE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkChange {
    /// ULID of the change. A node takes only rising ones: an old change that is sent again does nothing.
    pub id: String,
    /// The fabric that it is meant for.
    pub fabric: FabricId,
    /// The node that it is meant for.
    pub node: NodeName,
    /// What to do.
    pub action: NetworkAction,
}

impl Deed for NetworkChange {
    const PAYLOAD_TYPE: &'static str = NETWORK_PAYLOAD_TYPE;
    const WHAT: &'static str = "network change";
    const ROLES: &'static [Role] = &[Role::Operator];

    fn read(payload: &[u8]) -> Result<Self, Refusal> {
        serde_json::from_slice(payload).map_err(|error| Refusal::malformed(Self::WHAT, error))
    }

    fn act(&self) -> Act<'_> {
        Act::Network
    }

    fn at(&self) -> Timestamp {
        crate::record::time_of(&self.id)
    }

    fn fabric(&self) -> &FabricId {
        &self.fabric
    }
}

/// What a [`NetworkChange`] asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum NetworkAction {
    /// Use a config now, and take it back after a time unless it is confirmed. The trial's id is the change's.
    Try {
        /// The config.
        config: NetworkConfig,
        /// For how long, in milliseconds; 5 s to 1 h.
        for_ms: u64,
    },
    /// Keep the config of a trial that runs.
    Confirm {
        /// Id of the trial.
        trial: String,
    },
}

/// The network of the answering node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The node; `None` while it is no member.
    pub node: Option<NodeName>,
    /// What is there now.
    pub status: NetworkStatus,
    /// The confirmed settings.
    pub confirmed: NetworkConfig,
    /// Settings that are tried.
    pub trial: Option<TrialView>,
}

/// Settings that are tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialView {
    /// Id of the trial.
    pub id: String,
    /// Milliseconds until it is taken back.
    pub remaining_ms: u64,
    /// The settings.
    pub config: NetworkConfig,
}

/// The time of the answering node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeView {
    /// Milliseconds since the Unix epoch by its system clock.
    pub now_ms: u64,
    /// Milliseconds since it started.
    pub up_ms: u64,
    /// Where that time is from; `None` where nothing looks after the clock.
    pub status: Option<TimeStatus>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_has_this_form_and_an_unknown_field_is_refused() {
        let json = r#"{"id":"01J00000000000000000000000","fabric":"FABRIC","node":"till","action":{"confirm":{"trial":"01H"}}}"#;
        let fabric = "ab".repeat(32);
        let json = json.replace("FABRIC", &fabric);
        let change: NetworkChange = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&change).unwrap(), json);
        assert!(
            serde_json::from_str::<NetworkChange>(&json.replace("\"id\"", "\"force\":true,\"id\"")).is_err()
        );
    }
}
