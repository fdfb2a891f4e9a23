//! The agent's end of a shim: start its process, connect, ask, listen.
//!
//! It keeps no pod. Invariant: every wait is bounded; a reply longer than [`LINE_MOST`] ends the connection.

use crate::pod::chain;
use beemesh_agent_api::shim::{PodState, Reply, Request};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;

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

/// Starts the shim of the pod in `dir`; it listens when this returns, and outlives this process.
pub async fn spawn(program: &Path, dir: &Path) -> Result<(), ShimError> {
    let failed = |what: String| move |err: io::Error| ShimError::Start(format!("{what}: {}", chain(&err)));
    let path = dir.join("shim.log");
    let log = std::fs::File::create(&path).map_err(failed(format!("`{}`", path.display())))?;
    let mut child = Command::new(program)
        .arg("run")
        .arg("--pod")
        .arg(dir)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(failed(format!("`{}`", program.display())))?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output.take(LINE_MOST));
        match tokio::time::timeout(START_TIMEOUT, output.read_line(&mut said)).await {
            Ok(read) => drop(read.map_err(failed("its answer".into()))?),
            Err(_) => {
                let _ = child.kill().await;
                return Err(ShimError::Start("it took too long".into()));
            }
        }
    }
    // Its parent as long as this process lives: someone has to collect the exit.
    let waiting = tokio::spawn(async move { child.wait().await });
    if said.trim() == "ready" {
        return Ok(());
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), waiting).await;
    let log = std::fs::read_to_string(&path).unwrap_or_default();
    let last = log
        .lines()
        .last()
        .unwrap_or("it said nothing")
        .trim_start_matches("beemesh-shim: ");
    Err(ShimError::Start(last.chars().take(2000).collect()))
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
