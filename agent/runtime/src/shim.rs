//! The agent's end of a shim: start its process, connect, ask, listen.
//!
//! It keeps no pod. Invariant: every wait is bounded; a reply longer than [`LINE_MOST`] ends the connection.

use crate::pod::chain;
use beemesh_agent_api::shim::{PodState, Reply, Request};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Longest reply in bytes: a state has at most 16 containers, but each may tell a long error.
pub const LINE_MOST: u64 = 1 << 20;
/// The shim listens within milliseconds; a loaded machine may take longer.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a shim could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It did not start.
    #[error("the pod's shim did not start: {0}")]
    Start(String),
    /// The connection failed.
    #[error("failed to {what} the shim at `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is gone.
    #[error("the shim at `{0}` has ended")]
    Gone(PathBuf),
    /// It refused.
    #[error("the shim refused: {0}")]
    Refused(String),
}

/// A shim that has no pod yet; it ends with this process, or when this is dropped.
pub struct Waiting {
    child: Child,
    input: ChildStdin,
    output: BufReader<Take<ChildStdout>>,
}

/// A shim whose namespaces are made.
pub struct Prepared {
    shim: Waiting,
    /// Its process, whose namespaces are the pod's.
    pub pid: i32,
}

impl Waiting {
    /// Starts one.
    pub fn start(program: &Path) -> Result<Self, ShimError> {
        let failed = |reason: String| ShimError::Start(format!("`{}`: {reason}", program.display()));
        let mut child = Command::new(program)
            .arg("run")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|err| failed(chain(&err)))?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(input), Some(output)) => Ok(Self {
                child,
                input,
                output: BufReader::new(output.take(LINE_MOST)),
            }),
            _ => Err(failed("it has no pipes".into())),
        }
    }

    /// Whether it still waits.
    pub fn is_there(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it has made its namespaces.
    pub async fn prepared(mut self) -> Result<Prepared, ShimError> {
        let said = self.hear().await?;
        match self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) if said == "waiting" => Ok(Prepared { shim: self, pid }),
            _ if said.is_empty() => Err(ShimError::Start("it said nothing".into())),
            _ => Err(ShimError::Start(said)),
        }
    }

    /// The next line that it says, at most 2000 characters; empty where it has ended.
    async fn hear(&mut self) -> Result<String, ShimError> {
        let mut said = String::new();
        match tokio::time::timeout(START_TIMEOUT, self.output.read_line(&mut said)).await {
            Ok(Ok(_)) => Ok(said.trim().chars().take(2000).collect()),
            Ok(Err(err)) => Err(ShimError::Start(chain(&err))),
            Err(_) => {
                let _ = self.child.kill().await;
                Err(ShimError::Start("it took too long".into()))
            }
        }
    }
}

impl Prepared {
    /// Gives it the pod in `dir`; it listens when this returns, and outlives this process.
    pub async fn hold(self, dir: &Path) -> Result<(), ShimError> {
        let mut shim = self.shim;
        let line = [dir.as_os_str().as_bytes(), b"\n"].concat();
        let told = shim.input.write_all(&line).await;
        told.map_err(|err| ShimError::Start(chain(&err)))?;
        let said = shim.hear().await?;
        // Its parent as long as this process lives: someone has to collect the exit.
        let mut child = shim.child;
        let waiting = tokio::spawn(async move { child.wait().await });
        if said == "ready" {
            return Ok(());
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), waiting).await;
        let log = std::fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
        let last = log
            .lines()
            .last()
            .unwrap_or("it said nothing")
            .trim_start_matches("beemesh-shim: ");
        Err(ShimError::Start(last.chars().take(2000).collect()))
    }
}

/// A connection.
pub struct ShimLink {
    path: PathBuf,
    input: BufReader<OwnedReadHalf>,
    output: OwnedWriteHalf,
}

impl ShimLink {
    /// Connects to the shim of the pod in `dir`.
    pub async fn connect(dir: &Path) -> Result<Self, ShimError> {
        let path = dir.join("shim.sock");
        match UnixStream::connect(&path).await {
            Ok(stream) => {
                let (input, output) = stream.into_split();
                Ok(Self {
                    path,
                    input: BufReader::new(input),
                    output,
                })
            }
            Err(source) => Err(ShimError::Io {
                what: "connect to",
                path,
                source,
            }),
        }
    }

    /// Sends a request; the answer comes through [`Self::next`].
    pub async fn send(&mut self, request: &Request) -> Result<(), ShimError> {
        let failed = |source| ShimError::Io {
            what: "write to",
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(request).map_err(|err| failed(err.into()))?;
        line.push(b'\n');
        self.output.write_all(&line).await.map_err(failed)
    }

    /// The next state that the shim tells.
    pub async fn next(&mut self) -> Result<PodState, ShimError> {
        let mut line = Vec::new();
        let failed = |source| ShimError::Io {
            what: "read from",
            path: self.path.clone(),
            source,
        };
        let count = (&mut self.input)
            .take(LINE_MOST)
            .read_until(b'\n', &mut line)
            .await
            .map_err(failed)?;
        if count == 0 {
            return Err(ShimError::Gone(self.path.clone()));
        }
        let reply = serde_json::from_slice(&line).map_err(|err| ShimError::Io {
            what: "understand",
            path: self.path.clone(),
            source: err.into(),
        })?;
        match reply {
            Reply::State(state) => Ok(state),
            Reply::Failed { reason } => Err(ShimError::Refused(reason)),
        }
    }

    /// Sends a request and waits for the state after it.
    pub async fn ask(&mut self, request: &Request, within: Duration) -> Result<PodState, ShimError> {
        self.send(request).await?;
        match tokio::time::timeout(within, self.next()).await {
            Ok(answer) => answer,
            Err(_) => Err(ShimError::Io {
                what: "get an answer from",
                path: self.path.clone(),
                source: io::ErrorKind::TimedOut.into(),
            }),
        }
    }
}
