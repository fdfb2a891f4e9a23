//! `bmctl`: parses the command line, runs it, prints the one line of a failure and leaves with its exit code.

use beemesh_agent_ctl::args::Bmctl;
use clap::Parser as _;
use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match beemesh_agent_ctl::run(Bmctl::parse()).await {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            // Nobody is left to tell when standard error is closed too.
            let _ = failure.write(&mut std::io::stderr().lock());
            ExitCode::from(failure.class().exit_code())
        }
    }
}
