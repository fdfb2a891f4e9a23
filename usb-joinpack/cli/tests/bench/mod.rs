//! What the tests of the binary share: running it, and a folder with a fabric, an image and a pack.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

pub const BINARY: &str = env!("CARGO_BIN_EXE_joinpack");

/// What a run left.
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("no JSON: {}{}", self.out, self.err))
    }
}

pub fn joinpack(dir: &Path, args: &[&str]) -> Run {
    let run = Command::new(BINARY)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Run {
        code: run.status.code().unwrap(),
        out: String::from_utf8(run.stdout).unwrap(),
        err: String::from_utf8(run.stderr).unwrap(),
    }
}

pub fn done(dir: &Path, args: &[&str]) -> Run {
    let run = joinpack(dir, args);
    assert_eq!(run.code, 0, "{args:?}: {}{}", run.out, run.err);
    run
}

pub fn ends(dir: &Path, args: &[&str], code: i32, word: &str) {
    let run = joinpack(dir, args);
    assert_eq!(run.code, code, "{args:?}: {}{}", run.out, run.err);
    assert!(
        run.err.contains(word),
        "{args:?} does not say `{word}`: {}",
        run.err
    );
}

/// An OCI archive in form: `layer` is its only blob.
pub fn write_archive(path: &Path, layer: &[u8]) {
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    for (name, content) in [
        ("oci-layout", &b"{\"imageLayoutVersion\":\"1.0.0\"}"[..]),
        ("index.json", b"{}"),
        ("blobs/sha256/00", layer),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).unwrap();
    }
    tar.finish().unwrap();
}

/// A folder with a fabric `fab`, an image `web.tar` and a pack `pack`.
pub fn bench() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    done(dir.path(), &["fabric", "init", "fab", "--name", "shop"]);
    write_archive(&dir.path().join("web.tar"), &[7; 3 << 20]);
    done(
        dir.path(),
        &[
            "create",
            "--fabric",
            "fab",
            "--out",
            "pack",
            "--node",
            "till-1,mac=52:54:00:AA:00:01,address=10.0.0.5/24,gateway=10.0.0.1,dns=10.0.0.1",
            "--node",
            "till-2",
            "--peer",
            "10.0.0.5:7946",
            "--image",
            "web=web.tar",
            "--found",
            "--blank-disk",
            "--cell",
            "floor",
        ],
    );
    dir
}
