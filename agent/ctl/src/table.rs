//! Tables for people: nodes, pods, events, images, changes. Columns and their order are stable, scripts should still
//! prefer `-o json`. Invariant: a cell never holds a control character, whatever the node sent.

use beemesh_agent_api::network::{NetworkView, TimeView};
use beemesh_agent_api::shim::Phase;
use beemesh_agent_api::view::{EventView, ImageView, LogLine, NodeStatus, NodeView, PodView, RecordView};
use beemesh_init_api::time::{RtcState, TimeSource};
use comfy_table::{ContentArrangement, Table, presets};
use time::format_description::BorrowedFormatItem;
use time::{OffsetDateTime, macros::format_description};

/// What stands where there is nothing.
const NOTHING: &str = "-";
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

pub(crate) fn draw(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for row in rows {
        table.add_row(row.into_iter().map(|cell| visible(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `text` with control characters as visible escapes, `-` where it is empty.
pub(crate) fn visible(text: &str) -> String {
    if text.is_empty() {
        return NOTHING.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

fn or_nothing<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

fn millis(value: Option<u64>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |ms| format!("{ms}ms"))
}

pub(crate) fn nodes(nodes: &[NodeView]) -> String {
    let header = [
        "NAME",
        "STATUS",
        "ASSURANCE",
        "PODS",
        "ADDRESS",
        "VERSION",
        "JOINED",
        "PEER-ID",
    ];
    let row = |node: &NodeView| {
        let status = match node.status {
            NodeStatus::Ready => "Ready",
            NodeStatus::Suspect => "Suspect",
            NodeStatus::Down => "Down",
        };
        vec![
            node.name.to_string(),
            status.to_owned(),
            node.assurance.to_string(),
            node.pods.to_string(),
            or_nothing(node.addresses.first()),
            node.version.clone(),
            millis(node.joined_after_ms),
            node.peer_id.to_string(),
        ]
    };
    draw(&header, nodes.iter().map(row))
}

/// The name that people know a phase by.
pub(crate) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
    }
}

pub(crate) fn pods(pods: &[PodView], with_namespace: bool) -> String {
    let mut header = vec![
        "NAME", "READY", "STATUS", "RESTARTS", "NODE", "IP", "PORTS", "START", "REASON",
    ];
    if with_namespace {
        header.insert(0, "NAMESPACE");
    }
    let row = |pod: &PodView| {
        let running = pod
            .containers
            .iter()
            .filter(|container| container.pid.is_some())
            .count();
        let restarts: u64 = pod
            .containers
            .iter()
            .map(|container| u64::from(container.restarts))
            .sum();
        let ports: Vec<String> = pod
            .ports
            .iter()
            .map(|(node, pod)| format!("{node}->{pod}"))
            .collect();
        let mut row = vec![
            pod.name.clone(),
            format!("{running}/{}", pod.containers.len()),
            phase(pod.phase).to_owned(),
            restarts.to_string(),
            or_nothing(pod.node.as_ref()),
            or_nothing(pod.ip.as_ref()),
            ports.join(","),
            millis(pod.start_ms),
            or_nothing(pod.reason.as_ref()),
        ];
        if with_namespace {
            row.insert(0, pod.workload.namespace.clone());
        }
        row
    };
    draw(&header, pods.iter().map(row))
}

/// Links, servers, and the trial that runs.
pub(crate) fn network(view: &NetworkView) -> String {
    let row = |link: &beemesh_init_api::LinkStatus| {
        vec![
            link.name.clone(),
            link.kind.clone(),
            link.mac.clone(),
            link.addresses.join(","),
            link.source.clone(),
            if link.mtu == 0 {
                String::new()
            } else {
                link.mtu.to_string()
            },
            link.error.clone().unwrap_or_else(|| "ok".to_owned()),
        ]
    };
    let header = ["LINK", "KIND", "MAC", "ADDRESSES", "SOURCE", "MTU", "STATE"];
    let mut text = draw(&header, view.status.links.iter().map(row));
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name}: {}\n", visible(value)));
    line("dns", &view.status.dns.join(" "));
    line("search", &view.status.search.join(" "));
    line("ntp", &view.status.ntp.join(" "));
    if let Some(trial) = &view.trial {
        let left = trial.remaining_ms.div_ceil(1000);
        line(
            "trial",
            &format!("{}, taken back in {left}s unless it is confirmed", trial.id),
        );
    }
    if let Some(refused) = &view.status.refused {
        line("refused", refused);
    }
    text
}

/// The time of a node and why it is that.
pub(crate) fn clock(view: &TimeView) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<8}{}\n", visible(value)));
    line("time", &time(view.now_ms));
    let Some(status) = &view.status else {
        line("source", "unknown: nothing on this machine looks after its clock");
        return text;
    };
    let source = match status.source {
        TimeSource::Floor => "floor",
        TimeSource::Rtc => "rtc",
        TimeSource::Peers => "peers",
        TimeSource::Ntp => "ntp",
    };
    line("source", &format!("{source}: {}", status.reason));
    let offset = |us: i64| {
        format!(
            ", offset {}{}.{:03}ms",
            if us < 0 { "-" } else { "+" },
            us.unsigned_abs() / 1000,
            us.unsigned_abs() % 1000
        )
    };
    let heard = |ms: u64| format!(", heard {}s ago", view.up_ms.saturating_sub(ms) / 1000);
    if let Some(peers) = &status.peers {
        let (offset, heard) = (offset(peers.offset_us), heard(peers.heard_ms));
        line("peers", &format!("{} members{offset}{heard}", peers.members));
    }
    if let Some(server) = &status.server {
        let offset = status.offset_us.map_or_else(String::new, offset);
        let heard = status.heard_ms.map_or_else(String::new, heard);
        line("server", &format!("{server}{offset}{heard}"));
    }
    line(
        "floor",
        &time(u64::try_from(status.floor).unwrap_or(0).saturating_mul(1000)),
    );
    line(
        "rtc",
        match status.rtc {
            RtcState::Absent => "absent",
            RtcState::Plausible => "plausible",
            RtcState::Behind => "behind the floor",
            RtcState::Ahead => "absurdly ahead",
            RtcState::Written => "written",
        },
    );
    text
}

pub(crate) fn images(images: &[ImageView]) -> String {
    let row = |image: &ImageView| vec![image.name.clone(), image.digest.to_string(), size(image.size)];
    draw(&["NAME", "DIGEST", "SIZE"], images.iter().map(row))
}

/// A size in bytes for people, in powers of 1024 with one decimal.
fn size(bytes: u64) -> String {
    let mut unit = 1u64;
    for name in ["B", "KiB", "MiB", "GiB"] {
        let next = unit.saturating_mul(1024);
        if bytes < next || name == "GiB" {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            return if unit == 1 {
                format!("{bytes}{name}")
            } else {
                format!("{}.{}{name}", tenths / 10, tenths % 10)
            };
        }
        unit = next;
    }
    bytes.to_string()
}

fn time(ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .ok()
        .and_then(|at| at.format(TIME).ok())
        .unwrap_or_else(|| format!("{ms}ms"))
}

pub(crate) const EVENT_HEADER: [&str; 5] = ["TIME", "NODE", "REASON", "OBJECT", "MESSAGE"];

fn event_row(event: &EventView) -> Vec<String> {
    vec![
        time(event.at_ms),
        event.node.to_string(),
        event.reason.clone(),
        event.object.clone(),
        event.message.clone(),
    ]
}

pub(crate) fn events(events: &[EventView]) -> String {
    draw(&EVENT_HEADER, events.iter().map(event_row))
}

/// A row of a table that is still growing: columns of a fixed width that longer cells overrun.
pub(crate) fn event_line(event: &EventView) -> String {
    fixed(event_row(event).iter().map(String::as_str))
}

/// The header above [`event_line`].
pub(crate) fn event_line_header() -> String {
    fixed(EVENT_HEADER.into_iter())
}

fn fixed<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    let mut line = String::new();
    for (cell, width) in cells.zip([24, 16, 18, 24, 0]) {
        line.push_str(&format!("{:<width$}   ", visible(cell)));
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// A line of a container's output. The line itself is left as it is: programs colour their output.
pub(crate) fn log_line(line: &LogLine, timestamps: bool) -> String {
    if timestamps {
        format!("{} {}\n", visible(&line.time), line.line)
    } else {
        format!("{}\n", line.line)
    }
}

/// A line of a node's own log: `2026-01-02T03:04:05.678Z agent: text`. Control characters of the text are shown, not obeyed.
pub(crate) fn record_line(record: &RecordView) -> String {
    let nanos = i128::from(record.realtime_us).saturating_mul(1000);
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok();
    let time = time.and_then(|time| time.format(TIME).ok());
    format!(
        "{} {}: {}\n",
        or_nothing(time),
        visible(&record.unit),
        record_text(record)
    )
}

/// A line of the kernel: `[    5.140900] text`.
pub(crate) fn kernel_line(record: &RecordView) -> String {
    let (seconds, micros) = (record.monotonic_us / 1_000_000, record.monotonic_us % 1_000_000);
    format!("[{seconds:5}.{micros:06}] {}\n", record_text(record))
}

fn record_text(record: &RecordView) -> String {
    let lost = record.fields.get("LOST").map_or_else(String::new, |count| {
        format!("({} records before this one were lost) ", visible(count))
    });
    // Tabulators align what people read and do no harm.
    let pieces: Vec<String> = record
        .message
        .split('\t')
        .map(|piece| match piece {
            "" => String::new(),
            piece => visible(piece),
        })
        .collect();
    lost + &pieces.join("\t")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_do_not_end_with_blanks() {
        let rows = [
            vec!["a".to_owned(), String::new()],
            vec!["long-name".to_owned(), "x".to_owned()],
        ];
        assert_eq!(
            draw(&["NAME", "B"], rows),
            "NAME        B\na           -\nlong-name   x\n"
        );
    }

    #[test]
    fn control_characters_of_the_node_are_shown_not_obeyed() {
        let rows = [vec!["a\u{1b}[2J\nb".to_owned()]];
        assert_eq!(draw(&["NAME"], rows), "NAME\na\\u{1b}[2J\\nb\n");
    }

    #[test]
    fn sizes_have_binary_units() {
        let shown = [0, 1023, 1024, 1536, 5 << 20, 3 << 30, u64::MAX].map(size);
        let expected = [
            "0B",
            "1023B",
            "1.0KiB",
            "1.5KiB",
            "5.0MiB",
            "3.0GiB",
            "17179869183.9GiB",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(time(1_767_323_045_678), "2026-01-02T03:04:05.678Z");
        assert_eq!(time(u64::MAX), format!("{}ms", u64::MAX));
    }
}
