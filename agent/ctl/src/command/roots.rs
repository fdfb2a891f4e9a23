//! Root documents: shows the chain that a node follows, and brings a longer one.
//!
//! Signs nothing. Invariant: what is shown of a chain, saved or sent was verified here, from root 1 on; the operator's context is
//! replaced whole, and by a longer chain of the same fabric alone.

use crate::failure::{Class, Failure};
use crate::output::{note, print, render_document};
use crate::root_args::RootsCommand;
use crate::session::Session;
use crate::table;
use beemesh_agent_api::roots::{KeyState, RoleKeyView, RootsView};
use beemesh_ids::FabricId;
use beemesh_joinpack_format::{Envelope, RootChain, limits, scope_in_words};
use serde::Serialize;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// What became of it.
#[derive(Serialize)]
struct Outcome {
    result: &'static str,
    fabric: FabricId,
    version: u32,
}

pub(super) async fn run(session: &Session, command: RootsCommand) -> Result<(), Failure> {
    match command {
        RootsCommand::Show { save } => show(session, save).await,
        RootsCommand::Push { file, dry_run } => push(session, &file, dry_run).await,
    }
}

async fn show(session: &Session, save: bool) -> Result<(), Failure> {
    const WHAT: &str = "show the root documents";
    let view = session.client()?.roots().await;
    let view = view.map_err(|error| error.into_failure(WHAT))?;
    // A node may say what it likes; what it cannot do is sign.
    let chain = RootChain::bootstrap(&view.documents).map_err(|refusal| {
        Failure::new(Class::NotAuthorised, WHAT)
            .because(format!("the node's chain is not genuine: {refusal}"))
    })?;
    if save {
        session.save_roots(&chain)?;
    }
    print(render_document(session.global.output, &view, in_words)?)
}

fn in_words(view: &RootsView) -> String {
    let summary = [
        view.fabric.to_string(),
        view.version.to_string(),
        view.issued.to_string(),
        view.past.to_string(),
    ];
    let head = table::draw(&["FABRIC", "ROOT", "ISSUED", "JUDGED-AS-OF"], [summary.to_vec()]);
    let row = |key: &RoleKeyView| {
        let scope = scope_in_words(key.role, key.scope.as_ref());
        let role = serde_json::to_value(key.role).ok();
        let role = role
            .and_then(|role| role.as_str().map(str::to_owned))
            .unwrap_or_default();
        vec![
            role,
            key.threshold.to_string(),
            key.key.as_str().to_owned(),
            match key.state {
                KeyState::Valid => "valid",
                KeyState::Expired => "expired",
                KeyState::Revoked => "revoked",
            }
            .to_owned(),
            key.expires
                .map_or_else(String::new, |expires| expires.to_string()),
            scope,
        ]
    };
    let keys = table::draw(
        &["ROLE", "MUST-SIGN", "KEY", "STATE", "EXPIRES", "SCOPE"],
        view.keys.iter().map(row),
    );
    format!("{head}\n{keys}")
}

async fn push(session: &Session, path: &Path, dry_run: bool) -> Result<(), Failure> {
    let what = format!("send `{}`", path.display());
    let invalid = |why: String| Failure::new(Class::Invalid, what.clone()).because(why);
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| {
            file.take(limits::OPERATOR_LIMIT as u64 + 1)
                .read_to_end(&mut text)
        })
        .map_err(|error| invalid(error.to_string()))?;
    if text.len() > limits::OPERATOR_LIMIT {
        return Err(invalid(format!(
            "it is larger than {} bytes",
            limits::OPERATOR_LIMIT
        )));
    }
    let documents: Vec<Envelope> =
        serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    let chain = RootChain::bootstrap(&documents).map_err(|refusal| invalid(refusal.to_string()))?;
    let mut outcome = Outcome {
        result: "would-send",
        fabric: chain.fabric_id().clone(),
        version: chain.version(),
    };
    if !dry_run {
        let client = session.client_of(&chain)?;
        let taken = client.submit_roots(&documents).await;
        let taken = taken.map_err(|error| error.into_failure(&what))?;
        (outcome.result, outcome.version) = match taken.news {
            true => ("taken", taken.version),
            false => ("known-already", taken.version),
        };
    }
    print(render_document(session.global.output, &outcome, |outcome| {
        format!(
            "{}: fabric {} follows root document {}\n",
            outcome.result, outcome.fabric, outcome.version
        )
    })?)?;
    if dry_run {
        note("dry run: nothing was sent");
    }
    Ok(())
}
