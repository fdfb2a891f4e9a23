//! An error and its causes in one line, for consoles and logs.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// `a: b: c`.
pub fn words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A step of PID 1 that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action} `{path}`")]
pub struct StepError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Says what was attempted on which path.
pub trait Attempt<T> {
    /// Wraps the error.
    fn attempt(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, StepError>;
}

impl<T, E: Into<io::Error>> Attempt<T> for Result<T, E> {
    fn attempt(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, StepError> {
        self.map_err(|source| StepError {
            action,
            path: path.as_ref().to_owned(),
            source: source.into(),
        })
    }
}
