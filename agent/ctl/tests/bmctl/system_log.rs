//! `logs --unit/--kernel/--system` and `dmesg`.

use crate::node::{Answer, Node};
use crate::run::{Ran, bmctl};
use beemesh_agent_api::view::{RecordSource, RecordView};
use std::collections::BTreeMap;

fn record(source: RecordSource, unit: &str, message: &str) -> RecordView {
    RecordView {
        realtime_us: 1_767_323_045_678_000,
        monotonic_us: 5_140_900,
        boot: "30313233343536373839616263646566".into(),
        source,
        seq: 7,
        unit: unit.into(),
        priority: 6,
        continues: false,
        cut: false,
        fields: BTreeMap::new(),
        message: message.into(),
        message_base64: None,
    }
}

fn ran(code: i32, stdout: &str, stderr: &str) -> Ran {
    Ran {
        code,
        stdout: stdout.into(),
        stderr: stderr.into(),
    }
}

fn agent(message: &str) -> RecordView {
    record(RecordSource::Services, "agent", message)
}

#[test]
fn every_wish_reaches_the_node_and_lines_carry_time_and_unit() {
    let node = Node::start(|_| Answer::lines(&[agent("ready")]));
    let wishes = ["--since", "10m", "--boot", "-1", "--tail", "5", "--on", "till-2"];
    let shown = bmctl(
        &[
            &["--socket", node.socket(), "logs", "--unit", "agent"],
            &wishes[..],
        ]
        .concat(),
    );
    assert_eq!(shown, ran(0, "2026-01-02T03:04:05.678Z agent: ready\n", ""));
    let dmesg = bmctl(&["--socket", node.socket(), "dmesg"]);
    assert_eq!(dmesg, ran(0, "[    5.140900] ready\n", ""));
    bmctl(&["--socket", node.socket(), "logs", "--system", "--boot", "all"]);
    assert_eq!(
        node.lines(),
        [
            "GET /v1/logs?follow=false&unit=agent&since_ms=600000&boot=-1&tail=5&node=till-2",
            "GET /v1/logs?follow=false&kernel=true",
            "GET /v1/logs?follow=false&boot=all",
        ]
    );
}

#[test]
fn control_characters_are_shown_not_obeyed_and_losses_are_said() {
    let mut odd = agent("\u{1b}[2Jx\ty\r");
    odd.fields.insert("LOST".into(), "3".into());
    let node = Node::start(move |_| Answer::lines(std::slice::from_ref(&odd)));
    let shown = bmctl(&["--socket", node.socket(), "dmesg"]).stdout;
    assert_eq!(
        shown,
        "[    5.140900] (3 records before this one were lost) \\u{1b}[2Jx\ty\\r\n"
    );
    let json = bmctl(&["--socket", node.socket(), "dmesg", "-o", "json"]).stdout;
    assert!(
        json.contains("\\u001b[2Jx") && json.lines().count() == 1,
        "{json}"
    );
}

#[test]
fn the_export_format_carries_any_bytes() {
    let mut binary = agent("a\u{fffd}");
    binary.message_base64 = Some("Yf8=".into());
    let node = Node::start(move |_| {
        Answer::lines(&[
            agent("plain"),
            record(RecordSource::Kernel, "kernel", "two\nlines"),
        ])
    });
    let shown = bmctl(&["--socket", node.socket(), "logs", "--system", "-o", "export"]).stdout;
    let entries: Vec<&str> = shown.split_terminator("\n\n").collect();
    assert_eq!(entries.len(), 2, "{shown}");
    assert!(
        entries[0].contains("\n_SYSTEMD_UNIT=agent.service\n") && entries[0].ends_with("\nMESSAGE=plain")
    );
    assert!(
        entries[1].ends_with("\nMESSAGE\n\u{9}\0\0\0\0\0\0\0two\nlines"),
        "{shown:?}"
    );
    let node = Node::start(move |_| Answer::lines(std::slice::from_ref(&binary)));
    let mut command = crate::run::command(&["--socket", node.socket(), "logs", "--system", "-o", "export"]);
    let out = command.output().unwrap().stdout;
    assert!(out.ends_with(b"\nMESSAGE\n\x02\0\0\0\0\0\0\0a\xff\n\n"));
}

#[test]
fn export_is_for_a_nodes_log_alone_and_a_broken_boot_id_is_refused() {
    let node = Node::start(|_| {
        Answer::lines(&[RecordView {
            boot: "x\nMESSAGE=y".into(),
            ..agent("z")
        }])
    });
    let shown = bmctl(&["--socket", node.socket(), "nodes", "-o", "export"]);
    assert_eq!((shown.code, shown.stdout.as_str()), (2, ""));
    assert!(node.lines().is_empty());
    let shown = bmctl(&["--socket", node.socket(), "dmesg", "-o", "export"]);
    assert_eq!((shown.code, shown.stdout.as_str()), (1, ""));
}

#[test]
fn a_followed_log_that_ends_is_a_failure_and_a_refusal_is_told() {
    let node = Node::start(|_| Answer::lines(&[agent("last")]));
    let shown = bmctl(&["--socket", node.socket(), "logs", "--unit", "agent", "-f"]);
    assert_eq!((shown.code, shown.stdout.ends_with("agent: last\n")), (1, true));
    let node = Node::start(|_| Answer::error(404, "the log has no such boot"));
    let shown = bmctl(&["--socket", node.socket(), "dmesg", "--boot", "-9"]);
    assert!(
        shown.code == 1 && shown.stderr.contains("the log has no such boot"),
        "{shown:?}"
    );
    let shown = bmctl(&["--socket", node.socket(), "logs", "--unit", "a&follow=true"]);
    assert_eq!(shown.code, 2);
}
