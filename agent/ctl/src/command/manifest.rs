//! Reads manifest files, bounded, and says in a failure which file and field is wrong and what to do.

use crate::failure::{Class, Failure};
use beemesh_agent_api::manifest::MAX_SIZE;
use beemesh_agent_api::{WorkloadSpec, parse_manifests};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The workloads of all files; all or nothing. A workload that two files name is refused.
pub(super) fn read_manifests(files: &[PathBuf]) -> Result<Vec<WorkloadSpec>, Failure> {
    let mut specs: Vec<WorkloadSpec> = Vec::new();
    for path in files {
        for spec in read_one(path)? {
            if specs.iter().any(|other| other.id == spec.id) {
                return Err(invalid(path)
                    .because(format!("`{}` is in another of the files too", spec.id))
                    .hint("remove one of the two"));
            }
            specs.push(spec);
        }
    }
    Ok(specs)
}

fn invalid(path: &Path) -> Failure {
    let shown = if path == Path::new("-") {
        "standard input".to_owned()
    } else {
        format!("`{}`", path.display())
    };
    Failure::new(Class::Invalid, format!("manifest in {shown}"))
}

fn read_one(path: &Path) -> Result<Vec<WorkloadSpec>, Failure> {
    let text = read_text(path).map_err(|error| {
        invalid(path)
            .because(error)
            .hint("give a file with Kubernetes manifests, or `-` for standard input")
    })?;
    parse_manifests(&text).map_err(|mut error| {
        let hint = std::mem::take(&mut error.hint);
        // Its text says all that its source does.
        let failure = invalid(path).because(error.to_string());
        if hint.is_empty() {
            failure
        } else {
            failure.hint(hint)
        }
    })
}

/// One byte more than the parser takes is enough to let it refuse the size.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let reader: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path)?),
    };
    let mut bytes = Vec::new();
    reader.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    // The cut may have split a character: the size is what is wrong then, and the parser says so.
    if bytes.len() > MAX_SIZE {
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}
