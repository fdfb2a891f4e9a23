//! What a run knows about where it asks and who it is: flags, then environment, then the agent's socket on this machine.
//! It opens nothing before it is needed, so a dry run needs no node and a list over the socket no key.

use crate::args::{CONTEXT_VARIABLE, DEFAULT_SOCKET, Global, NODE_VARIABLE};
use crate::client::{Client, DEFAULT_TIMEOUT, Endpoint, check_address};
use crate::context::Operator;
use crate::failure::{Class, Failure};
use std::path::{Path, PathBuf};
use std::{env, time::Duration};

pub(crate) struct Session {
    pub(crate) global: Global,
}

impl Session {
    /// A client of the chosen node; `patience` is the time-out where `--timeout` gives none.
    pub(crate) fn client_with(&self, patience: Duration) -> Result<Client, Failure> {
        let client = self.node()?;
        Ok(client.with_timeout(self.global.timeout.unwrap_or(patience)))
    }

    pub(crate) fn client(&self) -> Result<Client, Failure> {
        self.client_with(DEFAULT_TIMEOUT)
    }

    /// The operator, from `--context` or the environment.
    pub(crate) fn operator(&self) -> Result<Operator, Failure> {
        let path = self
            .global
            .context
            .clone()
            .or_else(|| from_environment(CONTEXT_VARIABLE).map(PathBuf::from));
        let Some(path) = path else {
            return Err(Failure::new(Class::Invalid, "no operator context is given")
                .hint("give the file that `joinpack fabric init` wrote with --context or BMCTL_CONTEXT"));
        };
        Operator::load(&path).map_err(|error| error.into_failure(&path))
    }

    fn node(&self) -> Result<Client, Failure> {
        if let Some(path) = &self.global.socket {
            return Ok(Client::new(Endpoint::Socket(path.clone())));
        }
        if let Some(address) = self
            .global
            .node
            .clone()
            .or_else(|| from_environment(NODE_VARIABLE))
        {
            check_address(&address).map_err(|error| error.into_failure("choose the node"))?;
            return Client::for_operator(&address, &self.operator()?)
                .map_err(|error| Failure::new(Class::Failed, "prepare TLS").because(error));
        }
        if Path::new(DEFAULT_SOCKET).exists() {
            return Ok(Client::new(Endpoint::Socket(DEFAULT_SOCKET.into())));
        }
        Err(Failure::new(Class::Invalid, "no node is given").hint(format!(
            "name one with --node IP:PORT or BMCTL_NODE; this machine has no agent at {DEFAULT_SOCKET}"
        )))
    }
}

fn from_environment(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
