//! The command line of `bmctl keys roots`. It parses; it does nothing.

use clap::Subcommand;
use std::path::PathBuf;

/// Help of the command.
pub(crate) const ROOTS_HELP: &str = "\
Root documents say which key may do what in the fabric, and until when. `joinpack fabric role` makes the next one, offline;
each proves itself by the signatures of root keys, so whoever has the file may bring it, and one node is enough: the others
get it from there, and nodes that are switched off when they return.

Examples:
  bmctl keys roots show
  bmctl keys roots push fabric/root.json
  bmctl --node 192.168.1.21:7443 keys roots push root.json    without a context: the last operator's key may be lost";

/// What can be done with root documents.
#[derive(Debug, Subcommand)]
pub enum RootsCommand {
    /// Shows which keys the node that is asked trusts for what, and until when
    Show {
        /// Add root documents that are new to the operator context, so that this machine trusts the same keys
        #[arg(long)]
        save: bool,
    },
    /// Brings root documents to the fabric
    Push {
        /// The chain, as `joinpack fabric role` writes it
        #[arg(value_name = "ROOT.JSON")]
        file: PathBuf,
        /// Check the file and say what would be sent, and send nothing
        #[arg(long)]
        dry_run: bool,
    },
}
