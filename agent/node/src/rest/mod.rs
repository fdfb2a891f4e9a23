//! The REST interface: one router, three ways in.
//!
//! - the unix socket (mode 0600): whoever opens it is root on the box;
//! - TCP with mutual TLS: the client must hold an operator's key, or it sees nothing;
//! - a stream from another member, which has checked its own client: requests that only this node can answer.
//!
//! Changes are signed documents, so that no way in can make one up. Policy is elsewhere: a handler turns a request
//! into a question for the driver or the runtime, and the answer into JSON.

mod answer;
mod forward;
mod routes;
mod serve;
mod system_log;

pub use answer::Refused;
pub use routes::Context;
pub use serve::{Access, listen_unix, serve_connection, serve_tls, serve_unix};
pub use system_log::record_view;

/// Where the REST interface listens for operators, TCP.
pub const REST_PORT: u16 = 7443;
