//! How an operator proves itself to a node and believes it: the TLS configuration of `beemesh_agent_identity`.

use crate::context::Operator;
use crate::failure::{Class, Failure};

/// TLS that shows the operator's key, and accepts only members of the operator's fabric.
pub(crate) fn client_config(operator: &Operator) -> Result<rustls::ClientConfig, Failure> {
    let fabric = operator.fabric();
    Err(Failure::new(
        Class::Failed,
        format!("prove membership of fabric {}", fabric.short()),
    )
    .because("this build has no operator certificates yet")
    .hint("run bmctl on the node itself, with --socket"))
}
