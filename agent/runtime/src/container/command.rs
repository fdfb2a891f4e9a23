//! A command in a running container, through `beemesh-shim exec`.
//!
//! Invariants: standard input is at most [`INPUT_MOST`], each output at most [`OUTPUT_MOST`] (the rest is read and dropped, so
//! that the command does not hang); the command ends after [`TIMEOUT`].

use crate::pod::{PodError, chain};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use beemesh_agent_api::view::{ExecReply, ExecRequest};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Most bytes of standard input.
pub const INPUT_MOST: usize = 1 << 20;
/// Most bytes kept of standard output and of standard error.
pub const OUTPUT_MOST: usize = 8 << 20;
/// Longest run of a command.
pub const TIMEOUT: Duration = Duration::from_secs(600);
/// What the shim needs on top of the command's time.
const MARGIN: Duration = Duration::from_secs(30);
const ARGUMENTS_MOST: usize = 128 * 1024;

/// The bytes of standard input, or what is wrong with the request.
pub(crate) fn check(request: &ExecRequest) -> Result<Vec<u8>, PodError> {
    let invalid = |reason: &str| PodError::Invalid(reason.to_owned());
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(invalid("the command is empty"));
    }
    if request.argv.iter().map(String::len).sum::<usize>() > ARGUMENTS_MOST {
        return Err(invalid("the command is longer than 128 KiB"));
    }
    if request.argv.iter().any(|word| word.contains('\0')) {
        return Err(invalid("the command holds a zero byte"));
    }
    // Four characters for three bytes: what is longer need not be decoded to be refused.
    if request.stdin.len() > INPUT_MOST.div_ceil(3) * 4 {
        return Err(invalid("standard input is longer than 1 MiB"));
    }
    let input = BASE64
        .decode(&request.stdin)
        .map_err(|_| invalid("standard input is not base64"))?;
    if input.len() > INPUT_MOST {
        Err(invalid("standard input is longer than 1 MiB"))
    } else {
        Ok(input)
    }
}

pub(crate) fn reply(code: i32, stdout: (Vec<u8>, bool), stderr: (Vec<u8>, bool)) -> ExecReply {
    ExecReply {
        code,
        stdout: BASE64.encode(stdout.0),
        stderr: BASE64.encode(stderr.0),
        truncated: stdout.1 || stderr.1,
    }
}

pub(super) async fn run(
    shim: &Path,
    pod: &Path,
    container: &str,
    request: &ExecRequest,
) -> Result<ExecReply, PodError> {
    let input = check(request)?;
    let failed = |err: std::io::Error| PodError::Failed {
        what: "run the command",
        reason: chain(&err),
    };
    let mut child = Command::new(shim)
        .arg("exec")
        .arg("--pod")
        .arg(pod)
        .args([
            "--container",
            container,
            "--timeout",
            &TIMEOUT.as_secs().to_string(),
            "--",
        ])
        .args(&request.argv)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A command that does not read its input is no failure.
            let _ = stdin.write_all(&input).await;
        }
    };
    let work = async { tokio::join!(feed, bounded(stdout), bounded(stderr), child.wait()) };
    match tokio::time::timeout(TIMEOUT + MARGIN, work).await {
        Ok(((), stdout, stderr, status)) => Ok(reply(
            status.map_err(failed)?.code().unwrap_or(137),
            stdout,
            stderr,
        )),
        Err(_) => Err(PodError::Failed {
            what: "run the command",
            reason: "it did not end in time".into(),
        }),
    }
}

/// Reads to the end, keeps [`OUTPUT_MOST`], and says whether that was less than all.
async fn bounded(input: Option<impl AsyncRead + Unpin>) -> (Vec<u8>, bool) {
    let (mut kept, mut cut) = (Vec::new(), false);
    let Some(mut input) = input else {
        return (kept, cut);
    };
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = input.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        let room = OUTPUT_MOST - kept.len();
        kept.extend_from_slice(&buffer[..count.min(room)]);
        cut |= count > room;
    }
    (kept, cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_beyond_the_bound_is_dropped_and_said() {
        let (kept, cut) = bounded(Some(tokio::io::repeat(b'z').take(OUTPUT_MOST as u64 + 1))).await;
        assert_eq!((kept.len(), cut), (OUTPUT_MOST, true));
        let (kept, cut) = bounded(Some(&b"all"[..])).await;
        assert_eq!((kept.as_slice(), cut), (&b"all"[..], false));
    }

    #[test]
    fn bad_requests_are_refused() {
        let request = |argv: &[&str], stdin: String| ExecRequest {
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            stdin,
        };
        assert!(check(&request(&[], String::new())).is_err());
        assert!(check(&request(&["a\0b"], String::new())).is_err());
        assert!(check(&request(&["cat"], "%%".into())).is_err());
        assert!(check(&request(&["cat"], BASE64.encode(vec![0; INPUT_MOST + 1]))).is_err());
        assert_eq!(
            check(&request(&["cat"], BASE64.encode(vec![1; INPUT_MOST])))
                .unwrap()
                .len(),
            INPUT_MOST
        );
    }
}
