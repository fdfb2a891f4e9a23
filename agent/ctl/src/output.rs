//! Prints values as a table, JSON or YAML. Values are serialised as the node sent them: nothing is renamed or dropped.

use crate::args::Format;
use crate::failure::{Class, Failure};
use serde::Serialize;
use std::io::{self, Write as _};

/// A finished list in `format`; `table` draws it for people.
///
/// # Errors
/// A value that cannot be serialised.
pub fn render_list<T: Serialize>(
    format: Format,
    items: &[T],
    table: impl FnOnce(&[T]) -> String,
) -> Result<String, Failure> {
    match format {
        Format::Table => Ok(table(items)),
        Format::Json => {
            let text = serde_json::to_string_pretty(items).map_err(|error| unprintable().because(error))?;
            Ok(text + "\n")
        }
        Format::Yaml => yaml(items),
        Format::Export => Err(no_record()),
    }
}

/// One finished document in `format`; `text` writes it for people, with its end.
///
/// # Errors
/// A value that cannot be serialised.
pub fn render_document<T: Serialize>(
    format: Format,
    document: &T,
    text: impl FnOnce(&T) -> String,
) -> Result<String, Failure> {
    match format {
        Format::Table => Ok(text(document)),
        Format::Json => {
            let text =
                serde_json::to_string_pretty(document).map_err(|error| unprintable().because(error))?;
            Ok(text + "\n")
        }
        Format::Yaml => yaml(document),
        Format::Export => Err(no_record()),
    }
}

/// One item of a stream in `format`; `line` writes it for people, with its end.
///
/// # Errors
/// A value that cannot be serialised.
pub fn render_item<T: Serialize>(
    format: Format,
    item: &T,
    line: impl FnOnce(&T) -> String,
) -> Result<String, Failure> {
    match format {
        Format::Table => Ok(line(item)),
        Format::Json => {
            let text = serde_json::to_string(item).map_err(|error| unprintable().because(error))?;
            Ok(text + "\n")
        }
        Format::Yaml => Ok(format!("---\n{}", yaml(item)?)),
        Format::Export => Err(no_record()),
    }
}

fn yaml<T: Serialize + ?Sized>(value: &T) -> Result<String, Failure> {
    let mut text = serde_saphyr::to_string(&value).map_err(|error| unprintable().because(error))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

fn no_record() -> Failure {
    Failure::new(Class::Invalid, "`-o export` is for a node's own log")
}

fn unprintable() -> Failure {
    Failure::new(Class::Failed, "print the result")
}

/// Writes to standard output, at once.
///
/// # Errors
/// [`Class::ReaderGone`] where the reader closed the pipe; otherwise a failure.
pub fn print(bytes: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes.as_ref())
        .and_then(|()| out.flush())
        .map_err(write_failure)
}

/// Writes to standard error, at once: notes and progress, never results.
pub fn note(text: &str) {
    // A note that nobody can read is not worth a failure.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn write_failure(error: io::Error) -> Failure {
    let class = if error.kind() == io::ErrorKind::BrokenPipe {
        Class::ReaderGone
    } else {
        Class::Failed
    };
    Failure::new(class, "write to standard output").because(error)
}
