//! Runs the binary, with no environment but what the test gives; and makes operator contexts.

use beemesh_agent_identity::NodeKey;
use beemesh_firmware_tpm::FakeTpm;
use beemesh_joinpack_format::{
    Admission, Assurance, Envelope, Membership, OperatorContext, PublicKey, Role, RoleSpec, Root, RootChain,
    SecretKey, Timestamp, Voucher,
};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
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

/// A fabric, and an operator's context file in a folder of its own. One key has all roles.
pub struct Fabric {
    pub folder: tempfile::TempDir,
    pub key: SecretKey,
    pub roots: Vec<Envelope>,
}

impl Fabric {
    pub fn new() -> Self {
        Self::of_seed(7)
    }

    /// Another seed makes another fabric.
    pub fn of_seed(seed: u8) -> Self {
        let key = SecretKey::from_bytes([seed; 32]);
        let roots = vec![root(&key, key.public(), 1)];
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

    /// The chain after the role `operator` went to another key.
    pub fn chain_with_operator(&self, operator: &SecretKey) -> RootChain {
        self.chain()
            .extend(&[root(&self.key, operator.public(), 2)])
            .unwrap()
    }

    /// From now on the role `operator` is another key's.
    pub fn hand_over_to(&mut self, operator: PublicKey) {
        self.roots.push(root(&self.key, operator, 2));
    }

    /// The key and the credential of a member.
    pub fn member(&self) -> (NodeKey, Membership) {
        let folder = tempfile::tempdir().unwrap();
        let key = NodeKey::load_or_create(folder.path(), &FakeTpm::new(1)).unwrap();
        let one_time = SecretKey::from_bytes([42; 32]);
        let voucher = Voucher {
            fabric: self.chain().fabric_id().clone(),
            id: "01J00000000000000000000000".into(),
            node: "node-1".parse().unwrap(),
            cell: "shop".into(),
            issued: NOW,
            expires: Timestamp(NOW.0 + 3600),
            key: one_time.public(),
            admission: Admission::Policy,
            ek: None,
        };
        let voucher = voucher.sign(&[&self.key]).unwrap();
        let membership =
            Membership::redeem(&voucher, &one_time, &key.peer_id(), Assurance::Tpm, NOW).unwrap();
        (key, membership)
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
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

const NOW: Timestamp = Timestamp(1_767_323_045);

fn root(key: &SecretKey, operator: PublicKey, version: u32) -> Envelope {
    let role = |role| {
        let key = if role == Role::Operator {
            operator
        } else {
            key.public()
        };
        (
            role,
            RoleSpec {
                keyids: vec![key.key_id()],
                threshold: 1,
                ..RoleSpec::default()
            },
        )
    };
    let root = Root {
        fabric_name: "shop".into(),
        version,
        issued: NOW,
        keys: [key.public(), operator].map(|key| (key.key_id(), key)).into(),
        roles: Role::ALL.map(role).into(),
        nonce: "00112233445566778899aabbccddeeff".into(),
    };
    root.sign(&[key]).unwrap()
}
