//! Runs the binary, with no environment but what the test gives; and makes operator contexts.

use beemesh_joinpack_format::{
    Envelope, OperatorContext, Role, RoleSpec, Root, RootChain, SecretKey, Timestamp,
};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a run left.
#[derive(Debug, PartialEq, Eq)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bmctl"));
    command
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

pub fn run(mut command: Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().expect("bmctl was ended by a signal"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn bmctl(args: &[&str]) -> Ran {
    run(command(args))
}

pub fn bmctl_with_stdin(args: &[&str], stdin: &[u8]) -> Ran {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A child that refuses does not read it all.
    let _ = pipe.write_all(stdin);
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A fabric with one key for all roles, and an operator's context file in a folder of its own.
pub struct Fabric {
    pub folder: tempfile::TempDir,
    pub key: SecretKey,
    pub roots: Vec<Envelope>,
}

impl Fabric {
    pub fn new() -> Self {
        let key = SecretKey::from_bytes([7; 32]);
        let roots = vec![root(&key)];
        let fabric = Self {
            folder: tempfile::tempdir().unwrap(),
            key,
            roots,
        };
        fabric.write_context("operator.json", &fabric.key, 0o600);
        fabric
    }

    pub fn chain(&self) -> RootChain {
        RootChain::bootstrap(&self.roots).unwrap()
    }

    pub fn context(&self) -> String {
        self.path("operator.json")
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn write_context(&self, name: &str, key: &SecretKey, mode: u32) -> String {
        let context = OperatorContext {
            version: 1,
            roots: self.roots.clone(),
            key: key.clone(),
        };
        let path = self.write(name, &serde_json::to_vec(&context).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path: &Path = self.folder.path();
        std::fs::write(path.join(name), content).unwrap();
        path.join(name)
    }
}

fn root(key: &SecretKey) -> Envelope {
    let id = key.public().key_id();
    let roles = Role::ALL.map(|role| {
        (
            role,
            RoleSpec {
                keyids: vec![id.clone()],
                threshold: 1,
            },
        )
    });
    let root = Root {
        fabric_name: "shop".into(),
        version: 1,
        issued: Timestamp(1_767_323_045),
        keys: [(id, key.public())].into(),
        roles: roles.into(),
        nonce: "00112233445566778899aabbccddeeff".into(),
    };
    root.sign(&[key]).unwrap()
}
