//! `beemesh-agent`: the node's part in the fabric.

use anyhow::Result;
use beemesh_agent_node::{Options, run};
use clap::Parser;
use std::process::ExitCode;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

fn main() -> ExitCode {
    let options = Options::parse();
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(Prioritised {
            prefixed: std::env::var_os("NOTIFY_SOCKET").is_some(),
            format: tracing_subscriber::fmt::format().with_ansi(false),
        });
    tracing_subscriber::registry()
        .with(layer)
        .with(options.log.clone())
        .init();
    match start(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Under a supervisor each event begins with its priority, `<N>` (sd-daemon(3)).
struct Prioritised<F> {
    prefixed: bool,
    format: F,
}

impl<S, N, F> FormatEvent<S, N> for Prioritised<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        if self.prefixed {
            let priority = match *event.metadata().level() {
                tracing::Level::ERROR => 3,
                tracing::Level::WARN => 4,
                tracing::Level::INFO => 6,
                _ => 7,
            };
            write!(writer, "<{priority}>")?;
        }
        self.format.format_event(context, writer, event)
    }
}

fn start(options: Options) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run(options))
}
