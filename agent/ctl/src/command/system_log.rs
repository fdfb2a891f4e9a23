//! A node's own log: what its kernel said, what PID 1 and its services printed.
//!
//! Invariant: no text of a record reaches the terminal with control characters, but for `-o export`, which is for files.

use super::path_name;
use crate::args::{Format, SystemLogArgs, WhoseArgs};
use crate::client::{LogOptions, SystemLogOptions};
use crate::failure::{Class, Failure};
use crate::output::{print, render_item};
use crate::session::Session;
use crate::table;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_agent_api::view::{RecordSource, RecordView};
use beemesh_init_log::{Flags, Record, Stream, export};

pub(super) async fn logs(
    session: &Session,
    whose: &WhoseArgs,
    which: &SystemLogArgs,
    lines: LogOptions,
) -> Result<(), Failure> {
    let unit = whose.unit.as_deref().map(|unit| path_name("service", unit));
    let wanted = SystemLogOptions {
        unit: unit.transpose()?.map(str::to_owned),
        kernel: whose.kernel,
        ..options(which, lines)?
    };
    show(session, &wanted, table::record_line).await
}

pub(super) async fn dmesg(
    session: &Session,
    which: &SystemLogArgs,
    lines: LogOptions,
) -> Result<(), Failure> {
    let wanted = SystemLogOptions {
        kernel: true,
        ..options(which, lines)?
    };
    show(session, &wanted, table::kernel_line).await
}

fn options(which: &SystemLogArgs, lines: LogOptions) -> Result<SystemLogOptions, Failure> {
    let node = which.on.as_deref().map(|node| path_name("node", node));
    Ok(SystemLogOptions {
        lines,
        since: which.since,
        boot: which.boot.clone(),
        node: node.transpose()?.map(str::to_owned),
        ..SystemLogOptions::default()
    })
}

async fn show(
    session: &Session,
    wanted: &SystemLogOptions,
    line: fn(&RecordView) -> String,
) -> Result<(), Failure> {
    let what = "show the node's log";
    let client = session.client()?;
    let mut records = client
        .system_log(wanted)
        .await
        .map_err(|error| error.into_failure(what))?;
    while let Some(record) = records.next().await.map_err(|error| error.into_failure(what))? {
        match session.global.output {
            Format::Export => print(export::entry(&boot(&record, what)?, &as_record(&record, what)?))?,
            format => print(render_item(format, &record, line)?)?,
        }
    }
    if wanted.lines.follow {
        return Err(Failure::new(Class::Failed, what)
            .because(format!("`{}` ended the stream", client.endpoint()))
            .hint("the agent there has stopped or restarts: run the command again"));
    }
    Ok(())
}

/// The boot id, which becomes a line of the export format: what is no id could become several.
fn boot(record: &RecordView, what: &str) -> Result<String, Failure> {
    let well = record.boot.len() == 32 && record.boot.bytes().all(|b| b.is_ascii_hexdigit());
    well.then(|| record.boot.clone())
        .ok_or_else(|| Failure::new(Class::Failed, what).because("the node sent a boot id that is none"))
}

fn as_record(view: &RecordView, what: &str) -> Result<Record, Failure> {
    let message = match &view.message_base64 {
        None => view.message.clone().into_bytes(),
        Some(text) => STANDARD
            .decode(text)
            .map_err(|error| Failure::new(Class::Failed, what).because(error))?,
    };
    Ok(Record {
        stream: match view.source {
            RecordSource::Services => Stream::Services,
            RecordSource::Kernel => Stream::Kernel,
        },
        seq: view.seq,
        realtime_us: view.realtime_us,
        monotonic_us: view.monotonic_us,
        priority: view.priority.min(7),
        flags: Flags {
            continues: view.continues,
            cut: view.cut,
        },
        unit: view.unit.clone(),
        fields: view.fields.clone().into_iter().collect(),
        message,
    })
}
