//! What a run knows about where it asks and who it is: flags, then environment, then the agent's socket on this machine.
//! It opens nothing before it is needed, so a dry run needs no node and a list over the socket no key.

use crate::args::{CONTEXT_VARIABLE, DEFAULT_SOCKET, Global, KEY_VARIABLE, NODE_VARIABLE};
use crate::client::{Client, DEFAULT_TIMEOUT, Endpoint, check_address};
use crate::context::Operator;
use crate::failure::{Class, Failure};
use crate::output::note;
use beemesh_joinpack_format::RootChain;
use std::path::{Path, PathBuf};
use std::{env, sync::OnceLock, time::Duration};

pub(crate) struct Session {
    pub(crate) global: Global,
    /// Once it was asked for: a token asks for its PIN once.
    operator: OnceLock<Operator>,
}

impl Session {
    pub(crate) fn new(global: Global) -> Self {
        Self {
            global,
            operator: OnceLock::new(),
        }
    }

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
        if let Some(operator) = self.operator.get() {
            return Ok(operator.clone());
        }
        let path = self.context_path()?;
        let token = self.global.key.clone().or_else(|| from_environment(KEY_VARIABLE));
        let operator = Operator::load(&path, token.as_deref());
        let operator = operator.map_err(|error| error.into_failure(&path))?;
        Ok(self.operator.get_or_init(|| operator).clone())
    }

    fn context_path(&self) -> Result<PathBuf, Failure> {
        let path = self.global.context.clone();
        let path = path.or_else(|| from_environment(CONTEXT_VARIABLE).map(PathBuf::from));
        path.ok_or_else(|| {
            Failure::new(Class::Invalid, "no operator context is given")
                .hint("give the file that `joinpack fabric init` wrote with --context or BMCTL_CONTEXT")
        })
    }

    /// A client of the chosen node that needs no operator: to a node it shows no key, and knows it by `roots`.
    pub(crate) fn client_of(&self, roots: &RootChain) -> Result<Client, Failure> {
        let patience = self.global.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let client = self.choose(|address| {
            Client::for_anybody(address, roots.clone())
                .map_err(|error| Failure::new(Class::Failed, "prepare TLS").because(error))
        })?;
        Ok(client.with_timeout(patience))
    }

    /// Puts a longer chain into the operator's context.
    pub(crate) fn save_roots(&self, roots: &RootChain) -> Result<(), Failure> {
        let path = self.context_path()?;
        let operator = self.operator()?;
        let known = operator.roots().version();
        let saved = operator
            .save_roots(&path, roots)
            .map_err(|error| error.into_failure(&path))?;
        match saved > known {
            true => note(&format!("`{}` follows root document {saved} now", path.display())),
            false => note(&format!(
                "`{}` knows root document {saved} already",
                path.display()
            )),
        }
        Ok(())
    }

    fn node(&self) -> Result<Client, Failure> {
        self.choose(|address| {
            Client::for_operator(address, &self.operator()?)
                .map_err(|error| Failure::new(Class::Failed, "prepare TLS").because(error))
        })
    }

    fn choose(&self, connect: impl FnOnce(&str) -> Result<Client, Failure>) -> Result<Client, Failure> {
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
            return connect(&address);
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
