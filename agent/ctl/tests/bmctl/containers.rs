//! Logs and exec: streams as they happen, bounds, ends, and the command's exit code.

use crate::node::{Answer, Node, Seen, line};
use crate::run::{Ran, bmctl, bmctl_with_stdin, command};
use crate::views;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beemesh_agent_api::view::{ExecReply, ExecRequest, LogLine};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::time::{Duration, Instant};

/// A node with the pod `web-0` of two containers; `rest` answers all else.
fn web(mut rest: impl FnMut(&Seen) -> Answer + Send + 'static) -> Node {
    Node::start(move |seen| match seen.target.as_str() {
        "/v1/pods" => Answer::json(
            200,
            &[
                views::pod("default", "web", 0, &["nginx", "side"]),
                views::pod("default", "one", 0, &["only"]),
                views::unplaced("default", "new", 0),
            ],
        ),
        _ => rest(seen),
    })
}

fn ran(code: i32, stdout: &str, stderr: &str) -> Ran {
    Ran {
        code,
        stdout: stdout.into(),
        stderr: stderr.into(),
    }
}

fn torn() -> io::Result<bytes::Bytes> {
    Err(io::Error::other("the agent was killed"))
}

#[test]
fn logs_come_from_the_only_container_and_end_with_the_stream() {
    let node = web(|_| Answer::lines(&[views::log("one"), views::log("two")]));
    let one = bmctl(&["--socket", node.socket(), "logs", "one-0"]);
    assert_eq!(one, ran(0, "one\ntwo\n", ""));
    assert_eq!(
        node.lines(),
        ["GET /v1/pods", "GET /v1/logs/default/one-0/only?follow=false"]
    );
}

#[test]
fn the_first_of_several_containers_is_taken_and_that_is_said() {
    let node = web(|_| Answer::lines(&[views::log("x")]));
    let note = "container `nginx` of nginx, side; choose another with -c\n";
    assert_eq!(
        bmctl(&["--socket", node.socket(), "logs", "pod/web-0"]),
        ran(0, "x\n", note)
    );
}

#[test]
fn a_given_container_tail_and_namespace_are_asked_for() {
    let node = web(|_| Answer::lines(&[views::log("x")]));
    let args = ["logs", "--tail", "5", "-t", "-n", "shop", "web-0", "-c", "side"];
    let ran_ = bmctl(&[&["--socket", node.socket()], &args[..]].concat());
    assert_eq!(ran_, ran(0, "2026-01-02T03:04:05.000000001Z x\n", ""));
    assert_eq!(node.lines(), ["GET /v1/logs/shop/web-0/side?follow=false&tail=5"]);
}

#[test]
fn logs_as_json_are_one_document_a_line_and_as_yaml_separate_documents() {
    let node = web(|_| Answer::lines(&[views::log("a: \"b\""), views::log("")]));
    let logs = |format| bmctl(&["--socket", node.socket(), "logs", "one-0", "-o", format]).stdout;
    let json: Vec<LogLine> = logs("json")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(json, [views::log("a: \"b\""), views::log("")]);
    let yaml = logs("yaml");
    assert!(yaml.starts_with("---\ntime: "), "{yaml}");
    assert_eq!(serde_saphyr::from_multiple::<LogLine>(&yaml).unwrap(), json);
}

#[test]
fn followed_lines_are_shown_before_the_stream_ends() {
    let (sender, answer) = Answer::live();
    let mut answer = Some(answer);
    let node = web(move |_| answer.take().unwrap());
    // Far longer than the time-out: silence of a followed stream is no time-out.
    let mut child = command(&[
        "--socket",
        node.socket(),
        "logs",
        "-f",
        "one-0",
        "--timeout",
        "300ms",
    ])
    .spawn()
    .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut shown = String::new();
    sender.send(Ok(line(&views::log("first")))).unwrap();
    out.read_line(&mut shown).unwrap();
    assert_eq!(shown, "first\n");
    std::thread::sleep(Duration::from_millis(600));
    // A line in two pieces is one line.
    let second = line(&views::log("second"));
    sender.send(Ok(second.slice(..7))).unwrap();
    sender.send(Ok(second.slice(7..))).unwrap();
    shown.clear();
    out.read_line(&mut shown).unwrap();
    assert_eq!(shown, "second\n");
    drop(sender);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(node.lines()[1], "GET /v1/logs/default/one-0/only?follow=true");
}

#[test]
fn a_node_that_dies_in_the_middle_of_a_stream_is_a_failure_after_what_came() {
    let (sender, answer) = Answer::live();
    let mut answer = Some(answer);
    let node = web(move |_| answer.take().unwrap());
    let mut child = command(&["--socket", node.socket(), "logs", "-f", "one-0"])
        .spawn()
        .unwrap();
    sender.send(Ok(line(&views::log("last words")))).unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut shown = String::new();
    out.read_line(&mut shown).unwrap();
    assert_eq!(shown, "last words\n");
    sender.send(torn()).unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let expected = format!(
        "bmctl: show the logs of `one-0`: connection to `{}` broke: ",
        node.socket()
    );
    assert!(said.starts_with(&expected), "{said}");
}

#[test]
fn half_a_line_of_a_dying_node_is_not_shown_as_a_line() {
    let half = line(&views::log("half")).slice(..20);
    let node = web(move |_| Answer::pieces(200, [Ok(half.clone()), torn()]));
    let out = bmctl(&["--socket", node.socket(), "logs", "one-0"]);
    assert_eq!((out.code, out.stdout.as_str()), (1, ""));
}

#[test]
fn silence_of_a_stream_that_is_not_followed_is_a_time_out() {
    let (sender, answer) = Answer::live();
    sender.send(Ok(line(&views::log("x")))).unwrap();
    let mut answer = Some(answer);
    let node = web(move |_| answer.take().unwrap());
    let out = bmctl(&["--socket", node.socket(), "logs", "one-0", "--timeout", "200ms"]);
    assert_eq!((out.code, out.stdout.as_str()), (4, "x\n"));
    assert!(
        out.stderr.contains("did not answer within 200ms"),
        "{}",
        out.stderr
    );
}

#[test]
fn a_line_beyond_the_bound_is_refused_and_one_at_the_bound_is_shown() {
    let frame = line(&views::log("")).len() - 1;
    let fits = views::log(&"x".repeat((1 << 20) - frame));
    let text = fits.line.clone();
    let node = web(move |_| Answer::lines(std::slice::from_ref(&fits)));
    let out = bmctl(&["--socket", node.socket(), "logs", "one-0"]);
    assert_eq!((out.code, out.stdout.len()), (0, text.len() + 1));
    let long = views::log(&(text + "x"));
    let node = web(move |_| Answer::lines(std::slice::from_ref(&long)));
    let out = bmctl(&["--socket", node.socket(), "logs", "one-0"]);
    assert_eq!((out.code, out.stdout.as_str()), (1, ""));
    assert!(
        out.stderr.contains("is longer than 1048576 bytes"),
        "{}",
        out.stderr
    );
}

#[test]
fn events_are_followed_until_the_node_ends() {
    let node = Node::start(|_| Answer::lines(&views::events()));
    let out = bmctl(&["--socket", node.socket(), "events", "-f"]);
    let table = "\
TIME                       NODE               REASON               OBJECT                     MESSAGE
2026-01-02T03:04:05.679Z   node-1             Joined               node/node-1                joined fabric shop with assurance tpm
2026-01-02T03:04:05.680Z   node-1             PodStarted           pod/web-0                  started in 212 ms
";
    assert_eq!((out.code, out.stdout.as_str()), (1, table));
    assert!(
        out.stderr.starts_with("bmctl: follow the events: `"),
        "{}",
        out.stderr
    );
    assert_eq!(node.lines(), ["GET /v1/events?follow=true"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (sender, answer) = Answer::live();
    let mut answer = Some(answer);
    let node = web(move |_| answer.take().unwrap());
    let mut child = command(&["--socket", node.socket(), "logs", "-f", "one-0"])
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let until = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() && Instant::now() < until {
        // Fails once the client has left: that is what is waited for.
        let _ = sender.send(Ok(line(&views::log("x"))));
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
}

#[test]
fn pods_that_are_not_there_or_not_started_have_no_logs() {
    let node = web(|_| Answer::error(500, "must not be asked"));
    let missing = bmctl(&["--socket", node.socket(), "logs", "gone-0"]);
    let said = "bmctl: show the logs of `gone-0`: no such pod in the namespace `default`\n\
                hint: see what is there: bmctl pods -A\n";
    assert_eq!(missing, ran(1, "", said));
    let said =
        "bmctl: show the logs of `new-0`: the pod has no container yet: no node has the image `nginx:1.22`\n";
    assert_eq!(
        bmctl(&["--socket", node.socket(), "logs", "new-0"]),
        ran(1, "", said)
    );
}

#[test]
fn names_that_would_change_the_request_are_invalid_input() {
    let node = web(|_| Answer::error(500, "must not be asked"));
    for args in [
        &["logs", "../../nodes", "-c", "a"][..],
        &["logs", "web-0", "-c", "a?follow=true"],
        &["logs", "web-0", "-n", "a/b"],
        &["pods", "-n", "A"],
    ] {
        let out = bmctl(&[&["--socket", node.socket()], args].concat());
        assert_eq!(out.code, 2, "{args:?}: {out:?}");
        assert!(out.stderr.contains("is not the name of a "), "{out:?}");
    }
    assert!(node.seen().is_empty());
}

fn reply(code: i32) -> ExecReply {
    let (stdout, stderr) = (STANDARD.encode(b"out\n"), STANDARD.encode(b"err\n"));
    ExecReply {
        code,
        stdout,
        stderr,
        truncated: false,
    }
}

#[test]
fn exec_passes_output_and_exit_code_on() {
    for code in [0, 7, 137] {
        let node = web(move |_| Answer::json(200, &reply(code)));
        let out = bmctl(&[
            "--socket",
            node.socket(),
            "exec",
            "one-0",
            "--",
            "ls",
            "-l",
            "--",
            "a b",
        ]);
        assert_eq!(out, ran(code, "out\n", "err\n"));
        let seen = node.seen().remove(1);
        assert_eq!(seen.line(), "POST /v1/exec/default/one-0/only");
        let asked: ExecRequest = serde_json::from_slice(&seen.body).unwrap();
        let argv = ["ls", "-l", "--", "a b"].map(String::from).to_vec();
        assert_eq!(
            asked,
            ExecRequest {
                argv,
                stdin: String::new()
            }
        );
    }
}

#[test]
fn exec_passes_standard_input_on_only_when_asked_and_only_to_the_bound() {
    let node = web(|_| Answer::json(200, &reply(0)));
    let asked =
        |node: &Node| -> ExecRequest { serde_json::from_slice(&node.seen().last().unwrap().body).unwrap() };
    let args = [
        "--socket",
        node.socket(),
        "exec",
        "-i",
        "one-0",
        "-c",
        "only",
        "--",
        "cat",
    ];
    let full = vec![0xff; 1 << 20];
    assert_eq!(bmctl_with_stdin(&args, &full).code, 0);
    assert!(STANDARD.decode(asked(&node).stdin).unwrap() == full);
    let out = bmctl_with_stdin(&args, &vec![0; (1 << 20) + 1]);
    assert_eq!((out.code, node.seen().len()), (2, 1), "{out:?}");
    let without = [
        "--socket",
        node.socket(),
        "exec",
        "one-0",
        "-c",
        "only",
        "--",
        "cat",
    ];
    bmctl_with_stdin(&without, b"unasked");
    assert_eq!(asked(&node).stdin, "");
}

#[test]
fn exec_as_json_is_the_reply_and_still_has_the_exit_code() {
    let node = web(|_| Answer::json(200, &reply(3)));
    let out = bmctl(&[
        "--socket",
        node.socket(),
        "-o",
        "json",
        "exec",
        "one-0",
        "--",
        "x",
    ]);
    assert_eq!(out.code, 3);
    assert_eq!(
        serde_json::from_str::<Vec<ExecReply>>(&out.stdout).unwrap(),
        [reply(3)]
    );
}

#[test]
fn cut_output_is_said_and_output_that_is_not_base64_is_a_failure() {
    let node = web(|_| {
        Answer::json(
            200,
            &ExecReply {
                truncated: true,
                ..reply(0)
            },
        )
    });
    let out = bmctl(&["--socket", node.socket(), "exec", "one-0", "--", "x"]);
    assert_eq!(
        out,
        ran(
            0,
            "out\n",
            "err\nbmctl: the output was longer than 8 MiB and is cut\n"
        )
    );
    let node = web(|_| {
        Answer::json(
            200,
            &ExecReply {
                stdout: "?".into(),
                ..reply(0)
            },
        )
    });
    let out = bmctl(&["--socket", node.socket(), "exec", "one-0", "--", "x"]);
    assert_eq!(out.code, 1);
    assert!(out.stderr.contains("field `stdout` of the answer"), "{out:?}");
}
