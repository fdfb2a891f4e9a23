//! The command line: every command, flag and help text. It parses; it does nothing.

use crate::duration::parse_duration;
use crate::root_args::{ROOTS_HELP, RootsCommand};
use beemesh_ids::{Digest, NodeName};
use beemesh_joinpack_format::{ApprovalCode, NotACode};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{path::PathBuf, time::Duration};

/// The agent's unix socket where nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/beemesh/agent.sock";
/// Environment variable that stands for `--node`.
pub const NODE_VARIABLE: &str = "BMCTL_NODE";
/// Environment variable that stands for `--context`.
pub const CONTEXT_VARIABLE: &str = "BMCTL_CONTEXT";

/// Environment variable that stands for `--key`.
pub const KEY_VARIABLE: &str = "BMCTL_KEY";

/// Heading of the flags that every command has, below those of its own.
const EVERYWHERE: &str = "Options of every command";

const ROOT_HELP: &str = "\
Which node is asked:
  --socket PATH, else --node IP:PORT, else $BMCTL_NODE, else /run/beemesh/agent.sock if it is there.
  Any node of the fabric will do: each knows all nodes and pods, and passes on what concerns another.

Who is asking:
  --context FILE, else $BMCTL_CONTEXT. The file is written by `joinpack fabric init`, holds the operator's
  secret key and must be readable by you alone (chmod 600). It is needed for --node and for every change.
  --key pkcs11:token=LABEL;object=LABEL?module-path=LIBRARY&pin-source=file:PATH, else $BMCTL_KEY: a key that never
  leaves its token. --context is the fabric's root.json then. The PIN is asked for, or from $BEEMESH_PKCS11_PIN.

Examples:
  bmctl --node 192.168.1.21:7443 --context operator.json nodes
  export BMCTL_NODE=192.168.1.21:7443 BMCTL_CONTEXT=~/fabric/operator.json
  bmctl apply -f web.yaml --wait
  bmctl pods -o json

Exit codes: 0 done, 1 failed, 2 invalid input, 3 not authorised, 4 timed out.";

const APPLY_HELP: &str = "\
The file holds Kubernetes manifests: `v1` Pod and `apps/v1` Deployment, several with `---` between them.
All of them are checked before anything is sent. Each becomes a change that you sign; the nodes check the signature.

Examples:
  bmctl apply -f web.yaml
  bmctl apply -f web.yaml --dry-run -o yaml     show the signed changes, send nothing
  bmctl apply -f web.yaml --wait --timeout 2m   stay until all pods are ready, exit code 4 if they are not
  sed s/1.22/1.24/ web.yaml | bmctl apply -f -";

const DELETE_HELP: &str = "\
Examples:
  bmctl delete deployment/web
  bmctl delete -n shop pod/till pod/printer
  bmctl delete -f web.yaml --wait";

const PODS_HELP: &str = "\
Examples:
  bmctl pods               pods of the namespace `default`
  bmctl pods -n shop
  bmctl pods -A -o json";

const LOGS_HELP: &str = "\
Examples:
  bmctl logs web-0
  bmctl logs -f --tail 20 web-0 -c nginx
  bmctl logs -t web-0 -o json     one JSON document a line, with time and stream

A node's own log, of the node that is asked or of --on NODE:
  bmctl logs --unit agent --since 10m -f
  bmctl logs --kernel --boot -1 --on till-2            the kernel's last words before the restart
  bmctl logs --system --boot all -o export > till.export
                                                       for systemd-journal-remote -o DIR till.export";

const DMESG_HELP: &str = "\
The same as `bmctl logs --kernel`, with the time since the node's start.

Examples:
  bmctl dmesg
  bmctl dmesg --boot -1 --tail 50     what the kernel said last before the restart";

const EXEC_HELP: &str = "\
The command runs to its end, then its output is shown (at most 8 MiB each of standard output and error), and bmctl
leaves with the exit code of the command; 128 + N where signal N ended it. There is no terminal.

Examples:
  bmctl exec web-0 -- nginx -t
  echo 'select 1' | bmctl exec -i db-0 -c postgres -- psql";

const EVENTS_HELP: &str = "\
Examples:
  bmctl events
  bmctl events -f -o json     one JSON document a line, as they happen";

const IMAGES_HELP: &str = "\
Examples:
  bmctl images
  bmctl images import nginx.tar     an OCI archive, as `skopeo copy docker://nginx oci-archive:nginx.tar` writes it";

const NETWORK_HELP: &str = "\
Settings are tried first: they are in use at once, and the node takes them back by itself unless you confirm them
in time. So a mistake that cuts the node off heals itself; so does a reboot.

Examples:
  bmctl network show
  bmctl network show -o yaml                    with the settings as `try` takes them
  bmctl network try -f lan.yaml --for 60s && bmctl network confirm

A file with a static card, a VLAN on it, and a bridge of two other cards:
  links:
  - {mac: '52:54:00:00:00:01', addresses: [10.0.0.5/24], gateway: 10.0.0.1, dns: [10.0.0.2], mtu: 1500}
  - {name: lan7, vlan: {on: '52:54:00:00:00:01', id: 7}, dhcp: true}
  - {name: br0, bridge: {members: ['52:54:00:00:00:02', '52:54:00:00:00:03']}, dhcp: true, dhcp6: true}
  dhcp_others: false
  ntp: [10.0.0.3]";

const NODES_HELP: &str = "\
Examples:
  bmctl nodes
  bmctl node show till-3   what it booted, and what changed in that
  bmctl node pending       machines that show a code on their console and wait
  bmctl node approve 7KQ2M-X9D4T --name till-9
  bmctl --node 10.0.0.11:7443 node ek -o json > till-1.ek
                           then `joinpack create --node till-1,ek=till-1.ek …` makes a stick that only this machine can use";

const ACCEPT_HELP: &str = "\
The values that the node shows are signed, and no others: whatever it boots later is judged by them, and what it booted before is
`changed` then. All members hear of it. An image (PCR 11) is not accepted here but named as a release in a join pack.

Examples:
  bmctl node show till-3
  bmctl node accept till-3 --digest sha256:… --reason 'firmware 2.1'";

const REVOKE_HELP: &str = "\
A revoked node is cut off by every member that hears of it, at once; its pods are placed anew. Nothing takes this back:
the machine comes in again only with a new identity and a new voucher. Keys of roles are revoked with `joinpack revoke`.

Examples:
  bmctl revoke node/till-3
  bmctl revoke voucher/01KDVKFD000000000000000009
  bmctl revoke --file my-fabric/revocations.json";

const KEYS_HELP: &str = "\
A node keeps its node id for good; its key changes with each rotation, and the peer id that it is connected by with the key.
No connection is cut and no pod is started anew. An order stands: a node that is off obeys it when it comes back, and one
that missed several rotates once. KEY counts the keys that a node had before, at most 32.

Examples:
  bmctl keys status
  bmctl keys rotate till-3
  bmctl keys rotate --all --wait --timeout 2m     stay until all have, exit code 4 and their names if some have not";

const TIME_HELP: &str = "\
SOURCE is `ntp` (a server of the network settings or of DHCP), `peers` (no server answers: the median of the fabric's
members, two of them at least), `rtc` (the machine's own clock, which is plausible) or `floor` (the newest time that a
signature vouches for, counted on). FLOOR is the time that is certainly past.

Examples:
  bmctl time
  bmctl time -o json";

/// Looks after a Beemesh fabric: its nodes, and the pods that run on them.
#[derive(Debug, Parser)]
#[command(name = "bmctl", version, after_help = ROOT_HELP, max_term_width = 110)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Bmctl {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Unix socket of the agent on this machine
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "PATH", conflicts_with = "node")]
    pub socket: Option<PathBuf>,
    /// A node's address, over mutual TLS [env: BMCTL_NODE]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "IP:PORT")]
    pub node: Option<String>,
    /// Operator context: the fabric's root documents and your key [env: BMCTL_CONTEXT]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "FILE")]
    pub context: Option<PathBuf>,
    /// Your key on a token, as a PKCS#11 URI (RFC 7512) [env: BMCTL_KEY]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "URI")]
    pub key: Option<String>,
    /// How to print
    #[arg(short, long, global = true, help_heading = EVERYWHERE, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Longest time to wait, such as 500ms, 60s, 2m [default: 30s; 60s with --wait; 10m for exec and import]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "DURATION", value_parser = parse_duration)]
    pub timeout: Option<Duration>,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people
    #[value(alias = "short")]
    Table,
    /// JSON; streams as one document a line
    Json,
    /// YAML; streams with `---` before each document
    Yaml,
    /// systemd's journal export format; of a node's log alone
    Export,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists the members of the fabric, shows what one of them is, or lets machines in that ask
    #[command(visible_alias = "node", after_help = NODES_HELP)]
    Nodes {
        /// What to show instead of the list
        #[command(subcommand)]
        command: Option<NodesCommand>,
    },
    /// Lists pods: where they run and how they are
    #[command(visible_alias = "pod", after_help = PODS_HELP)]
    Pods {
        /// Namespace
        #[arg(short, long, value_name = "NS", default_value = "default")]
        namespace: String,
        /// All namespaces
        #[arg(short = 'A', long, conflicts_with = "namespace")]
        all_namespaces: bool,
    },
    /// Makes the fabric run what manifests say
    #[command(after_help = APPLY_HELP)]
    Apply {
        /// Manifest file, `-` for standard input; may be given several times
        #[arg(short, long = "filename", value_name = "FILE", required = true)]
        file: Vec<PathBuf>,
        /// How to send it
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Ends workloads and forgets them
    #[command(after_help = DELETE_HELP)]
    Delete {
        /// What to delete: `pod/NAME` or `deployment/NAME`
        #[arg(
            value_name = "KIND/NAME",
            required_unless_present = "file",
            conflicts_with = "file"
        )]
        targets: Vec<String>,
        /// Delete what this manifest file names; `-` for standard input
        #[arg(short, long = "filename", value_name = "FILE", conflicts_with = "namespace")]
        file: Vec<PathBuf>,
        /// Namespace of the targets
        #[arg(short, long, value_name = "NS", default_value = "default")]
        namespace: String,
        /// How to send it
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Shows what a container wrote, or a node's own log
    #[command(after_help = LOGS_HELP)]
    Logs {
        /// Stay and show what comes
        #[arg(short, long)]
        follow: bool,
        /// Only the newest N lines of what is there
        #[arg(long, value_name = "N")]
        tail: Option<u64>,
        /// Put the time before each line
        #[arg(short, long)]
        timestamps: bool,
        /// Namespace of the pod
        #[arg(short, long, value_name = "NS", default_value = "default")]
        namespace: String,
        /// Container; the pod's first one where it is not given
        #[arg(short, long, value_name = "NAME")]
        container: Option<String>,
        /// Name of the pod
        #[arg(
            value_name = "POD",
            required_unless_present = "whose",
            conflicts_with = "which"
        )]
        pod: Option<String>,
        /// Whose lines, instead of a pod's
        #[command(flatten)]
        whose: WhoseArgs,
        /// Which of them
        #[command(flatten)]
        which: SystemLogArgs,
    },
    /// Shows what a node's kernel said
    #[command(after_help = DMESG_HELP)]
    Dmesg {
        /// Stay and show what comes
        #[arg(short, long)]
        follow: bool,
        /// Only the newest N lines of what is there
        #[arg(long, value_name = "N")]
        tail: Option<u64>,
        /// Which of them
        #[command(flatten)]
        which: SystemLogArgs,
    },
    /// Runs a command in a container
    #[command(after_help = EXEC_HELP)]
    Exec {
        /// Pass standard input on to the command (at most 1 MiB)
        #[arg(short = 'i', long)]
        stdin: bool,
        /// Which container of which pod
        #[command(flatten)]
        target: ContainerArgs,
        /// The command and its arguments, after `--`
        #[arg(last = true, required = true, value_name = "COMMAND")]
        argv: Vec<String>,
    },
    /// Shows what happened in the fabric
    #[command(after_help = EVENTS_HELP)]
    Events {
        /// Stay and show what comes
        #[arg(short, long)]
        follow: bool,
    },
    /// Shows or changes the network settings of the node that is asked
    #[command(after_help = NETWORK_HELP)]
    Network {
        /// What to do
        #[command(subcommand)]
        command: NetworkCommand,
    },
    /// Shows the nodes' keys and makes nodes take new ones; shows and changes the fabric's root documents
    #[command(after_help = KEYS_HELP)]
    Keys {
        /// Which keys
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Shows what is revoked, and how old the node's knowledge of it is
    Revocations,
    /// Ends what nodes and vouchers may do, for good
    #[command(after_help = REVOKE_HELP)]
    Revoke {
        /// What to revoke: `node/NAME`, `node/PEER-ID` or `voucher/ID`
        #[arg(
            value_name = "KIND/NAME",
            required_unless_present = "file",
            conflicts_with = "file"
        )]
        targets: Vec<String>,
        /// Send the snapshots that `joinpack revoke` wrote
        #[arg(short, long = "file", value_name = "FILE")]
        file: Option<PathBuf>,
        /// Print what would be sent, signed as it would be, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Shows the time of the node that is asked, and where it is from
    #[command(after_help = TIME_HELP)]
    Time,
    /// Lists a node's images, or brings one to it
    #[command(after_help = IMAGES_HELP)]
    Images {
        /// What to do instead of listing
        #[command(subcommand)]
        command: Option<ImagesCommand>,
    },
}

/// What can be shown of a node, or done with one that is none yet.
#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// Shows the endorsement key of the TPM of the node that is asked: `-o json` is what `joinpack create --node …,ek=FILE` reads
    Ek,
    /// Shows what a node booted, register by register, and what it is compared with
    Show {
        /// Name or node id
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Accepts that a node which is `changed: PCR …` boots like this from now on, as after an update of its firmware
    #[command(after_help = ACCEPT_HELP)]
    Accept {
        /// Name or node id
        #[arg(value_name = "NODE")]
        node: String,
        /// Why, for those who read the log: at most 256 characters
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        /// Accept only if its registers have this digest, as `bmctl node show` printed it
        #[arg(long, value_name = "DIGEST")]
        digest: Option<Digest>,
        /// Print what would be sent, signed as it would be, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Lists the machines that ask the node to be let in: by a join pack made with `joinpack create --approval`
    Pending,
    /// Lets in the machine whose console shows this code; it joins within seconds
    Approve {
        /// The code that the machine's console shows, not one that somebody sent you
        #[arg(value_name = "CODE", value_parser = parse_code)]
        code: ApprovalCode,
        /// Name of the new node [default: that of its place in the join pack, or `node-` and five characters of the code]
        #[arg(long, value_name = "NAME")]
        name: Option<NodeName>,
        /// Print what would be sent, signed as it would be, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Sends the machine that shows this code away, until it is started or gets its stick again
    Deny {
        /// The code as `bmctl node pending` shows it
        #[arg(value_name = "CODE", value_parser = parse_code)]
        code: ApprovalCode,
        /// Print what would be sent, signed as it would be, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// What can be done with keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Shows every node's ids, its key, since when it has it, and whether an order is outstanding
    Status,
    /// Orders nodes to take a new key
    Rotate {
        /// Which nodes: name, node id or peer id
        #[arg(value_name = "NODE", required_unless_present = "all", conflicts_with = "all")]
        nodes: Vec<String>,
        /// All nodes, those that are off too
        #[arg(long)]
        all: bool,
        /// Stay until all of them have, at most --timeout (60s)
        #[arg(long, conflicts_with = "dry_run")]
        wait: bool,
        /// Print what would be sent, signed as it would be, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Root documents: which key may do what, and until when
    #[command(after_help = ROOTS_HELP)]
    Roots {
        /// What to do
        #[command(subcommand)]
        command: RootsCommand,
    },
}

fn parse_code(text: &str) -> Result<ApprovalCode, NotACode> {
    text.parse()
}

/// What can be done with a node's network.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Shows links, addresses and servers
    Show,
    /// Uses settings at once, and takes them back unless they are confirmed
    Try {
        /// File with the settings, YAML or JSON; `-` for standard input
        #[arg(short, long = "filename", value_name = "FILE")]
        file: PathBuf,
        /// For how long, 5s to 1h
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, default_value = "60s")]
        duration: Duration,
        /// Print what would be sent, signed as it would be, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Keeps the settings that are tried
    Confirm {
        /// Print what would be sent, signed as it would be, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
}

/// What can be done with images.
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// Sends an OCI archive to the node's store
    Import {
        /// OCI archive (tar), `-` for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// Whose lines of a node's own log.
#[derive(Debug, Clone, Args)]
#[group(id = "whose", multiple = false, conflicts_with_all = ["pod", "container", "namespace", "timestamps"])]
pub struct WhoseArgs {
    /// What this service of the node printed; `init` for PID 1
    #[arg(short, long, value_name = "NAME")]
    pub unit: Option<String>,
    /// What the node's kernel said
    #[arg(short, long)]
    pub kernel: bool,
    /// All of the node's own log
    #[arg(long)]
    pub system: bool,
}

/// Which lines of a node's own log.
#[derive(Debug, Clone, Default, Args)]
#[group(id = "which", multiple = true)]
pub struct SystemLogArgs {
    /// Only what is not older, such as 60s, 10m, 2h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub since: Option<Duration>,
    /// Of this start of the node: 0 the one that runs, -1 the one before, …, or `all` [default: 0]
    #[arg(long, value_name = "N", value_parser = parse_boot, allow_hyphen_values = true)]
    pub boot: Option<String>,
    /// Of this member of the fabric
    #[arg(long, value_name = "NODE")]
    pub on: Option<String>,
}

/// `all`, or a number that is not above 0.
fn parse_boot(text: &str) -> Result<String, String> {
    let known = text == "all" || text.parse::<i32>().is_ok_and(|number| number <= 0);
    known
        .then(|| text.to_owned())
        .ok_or_else(|| "write 0, -1, -2, … or `all`".to_owned())
}

/// How a change is sent.
#[derive(Debug, Clone, Copy, Args)]
pub struct ChangeArgs {
    /// Print what would be sent, signed as it would be, and send nothing
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Stay until it is done on the nodes, at most --timeout (60s)
    #[arg(long)]
    pub wait: bool,
}

/// Which container of which pod.
#[derive(Debug, Clone, Args)]
pub struct ContainerArgs {
    /// Namespace of the pod
    #[arg(short, long, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// Container; the pod's first one where it is not given
    #[arg(short, long, value_name = "NAME")]
    pub container: Option<String>,
    /// Name of the pod
    #[arg(value_name = "POD")]
    pub pod: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Bmctl::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        let before = Bmctl::try_parse_from(["bmctl", "-o", "json", "pods"]).unwrap();
        let after = Bmctl::try_parse_from(["bmctl", "pods", "-o", "json"]).unwrap();
        assert_eq!(
            (before.global.output, after.global.output),
            (Format::Json, Format::Json)
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "bmctl --socket a --node b:1 nodes",
            "bmctl pods -A -n x",
            "bmctl delete",
            "bmctl delete pod/a -f b",
            "bmctl apply",
            "bmctl apply -f a --dry-run --wait",
            "bmctl exec pod",
            "bmctl nodes --timeout 5",
            "bmctl nodes -o xml",
            "bmctl network",
            "bmctl network try",
            "bmctl network try -f a --for 60",
            "bmctl logs",
            "bmctl logs web-0 --unit agent",
            "bmctl logs --unit agent --kernel",
            "bmctl logs --unit agent -n shop",
            "bmctl logs web-0 --since 5m",
            "bmctl logs --kernel --boot 1",
            "bmctl dmesg --since soon",
            "bmctl keys",
            "bmctl keys rotate",
            "bmctl keys rotate till --all",
            "bmctl keys rotate --all --wait --dry-run",
            "bmctl revoke",
            "bmctl revoke node/a --file b",
            "bmctl node ek till",
            "bmctl node approve",
            "bmctl node approve 7KQ2M",
            "bmctl node approve 7KQ2M-X9D4T --name No",
            "bmctl node deny 7KQ2M-X9D4T --name x",
        ] {
            assert!(Bmctl::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
