//! Claims about the pod's life, by example and over random event orders.

use super::*;
use beemesh_agent_api::shim::ContainerPlan;
use proptest::prelude::*;

fn plan(policy: RestartPolicy, containers: usize) -> PodPlan {
    PodPlan {
        pod_id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
        hostname: "pod".into(),
        cgroup: "beemesh/pods/x".into(),
        containers: (0..containers)
            .map(|n| ContainerPlan {
                name: format!("c{n}"),
                bundle: format!("/pods/x/c{n}"),
                cpu_quota_us: None,
            })
            .collect(),
        restart_policy: policy,
        grace_seconds: 30,
        log_dir: "/pods/x/logs".into(),
        log_limit: 1 << 20,
    }
}

fn at(seconds: u64) -> Now {
    Now {
        mono: Duration::from_secs(seconds),
        wall_ms: 1_000_000 + seconds * 1000,
    }
}

fn exited(code: i32) -> Event {
    Event::Exited {
        index: 0,
        code,
        signal: None,
        oom: false,
    }
}

fn started(policy: RestartPolicy) -> Lifecycle {
    let mut pod = Lifecycle::new(&plan(policy, 1));
    assert_eq!(pod.step(at(0), Event::Start), [Command::Launch(0)]);
    assert!(pod.step(at(0), Event::Launched { index: 0, pid: 7 }).is_empty());
    pod
}

#[test]
fn back_off_doubles_and_stops_at_five_minutes() {
    let mut pod = started(RestartPolicy::Always);
    let mut now = 1;
    for expected in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
        pod.step(at(now), exited(1));
        assert_eq!(pod.next_deadline(), Some(Duration::from_secs(now + expected)));
        assert!(pod.step(at(now + expected - 1), Event::Tick).is_empty());
        now += expected;
        assert_eq!(pod.step(at(now), Event::Tick), [Command::Launch(0)]);
        pod.step(at(now), Event::Launched { index: 0, pid: 8 });
        now += 1;
    }
    assert_eq!(pod.containers()[0].restarts, 11);
}

#[test]
fn a_long_run_forgets_the_back_off() {
    let mut pod = started(RestartPolicy::Always);
    pod.step(at(1), exited(1));
    pod.step(at(2), Event::Tick);
    pod.step(at(2), Event::Launched { index: 0, pid: 8 });
    pod.step(at(2 + 600), exited(1));
    assert_eq!(pod.next_deadline(), Some(Duration::from_secs(603)));
}

#[test]
fn on_failure_restarts_a_failure_and_not_a_success() {
    let mut pod = started(RestartPolicy::OnFailure);
    pod.step(at(1), exited(3));
    assert_eq!(pod.phase(), Phase::Running);
    pod.step(at(2), Event::Tick);
    pod.step(at(2), Event::Launched { index: 0, pid: 8 });
    pod.step(at(3), exited(0));
    assert_eq!(pod.phase(), Phase::Succeeded);
    assert_eq!(pod.next_deadline(), None);
}

#[test]
fn never_leaves_the_failure_standing() {
    let mut pod = started(RestartPolicy::Never);
    pod.step(
        at(1),
        Event::Exited {
            index: 0,
            code: 137,
            signal: Some(9),
            oom: true,
        },
    );
    assert_eq!(pod.phase(), Phase::Failed);
    let exit = pod.containers()[0].exit.clone().unwrap();
    assert_eq!(
        (exit.code, exit.signal, exit.oom, exit.at_ms),
        (137, Some(9), true, 1_001_000)
    );
}

#[test]
fn a_container_that_cannot_start_keeps_the_pod_pending_and_says_why() {
    let mut pod = Lifecycle::new(&plan(RestartPolicy::Always, 1));
    pod.step(at(0), Event::Start);
    pod.step(
        at(0),
        Event::LaunchFailed {
            index: 0,
            reason: "no such program".into(),
        },
    );
    assert_eq!(pod.phase(), Phase::Pending);
    assert_eq!(pod.containers()[0].error.as_deref(), Some("no such program"));
    assert_eq!(pod.step(at(1), Event::Tick), [Command::Launch(0)]);
}

#[test]
fn stop_terminates_then_kills_then_leaves() {
    let mut pod = started(RestartPolicy::Always);
    let grace = Some(Duration::from_secs(5));
    assert_eq!(pod.step(at(10), Event::Stop { grace }), [Command::Terminate(0)]);
    assert!(pod.step(at(14), Event::Tick).is_empty());
    assert_eq!(pod.step(at(15), Event::Tick), [Command::Kill(0)]);
    let last = Event::Exited {
        index: 0,
        code: 137,
        signal: Some(9),
        oom: false,
    };
    assert_eq!(pod.step(at(15), last), [Command::Exit]);
}

#[test]
fn stop_without_grace_kills_at_once_and_a_second_stop_only_shortens() {
    let mut pod = started(RestartPolicy::Always);
    pod.step(
        at(1),
        Event::Stop {
            grace: Some(Duration::from_secs(100)),
        },
    );
    assert_eq!(
        pod.step(
            at(2),
            Event::Stop {
                grace: Some(Duration::from_secs(200))
            }
        ),
        []
    );
    assert_eq!(pod.next_deadline(), Some(Duration::from_secs(101)));
    assert_eq!(
        pod.step(
            at(3),
            Event::Stop {
                grace: Some(Duration::ZERO)
            }
        ),
        [Command::Kill(0)]
    );
}

#[test]
fn a_kill_that_the_kernel_does_not_deliver_does_not_hold_the_shim() {
    let mut pod = started(RestartPolicy::Always);
    assert_eq!(
        pod.step(
            at(0),
            Event::Stop {
                grace: Some(Duration::ZERO)
            }
        ),
        [Command::Terminate(0), Command::Kill(0)]
    );
    assert_eq!(pod.step(at(10), Event::Tick), [Command::Exit]);
}

#[test]
fn stop_before_start_leaves_at_once_and_start_is_then_ignored() {
    let mut pod = Lifecycle::new(&plan(RestartPolicy::Always, 2));
    assert_eq!(pod.step(at(0), Event::Stop { grace: None }), [Command::Exit]);
    assert_eq!(pod.step(at(1), Event::Start), []);
}

fn any_event() -> impl Strategy<Value = Event> {
    let index = 0usize..3;
    prop_oneof![
        Just(Event::Start),
        (index.clone(), 1i32..50).prop_map(|(index, pid)| Event::Launched { index, pid }),
        index.clone().prop_map(|index| Event::LaunchFailed {
            index,
            reason: "no".into()
        }),
        (index, 0i32..3).prop_map(|(index, code)| Event::Exited {
            index,
            code,
            signal: None,
            oom: false
        }),
        (0u64..40).prop_map(|s| Event::Stop {
            grace: Some(Duration::from_secs(s))
        }),
        Just(Event::Tick),
    ]
}

proptest! {
    #[test]
    fn invariant_nothing_is_launched_twice_at_once_nor_after_a_stop(
        events in prop::collection::vec((0u64..20, any_event()), 0..80),
    ) {
        let mut pod = Lifecycle::new(&plan(RestartPolicy::Always, 3));
        let (mut now, mut stopped, mut exits) = (0, false, 0);
        let mut open = [false; 3];
        for (wait, event) in events {
            now += wait;
            match &event {
                Event::LaunchFailed { index, .. } if pod.pid(*index).is_none() => open[*index] = false,
                Event::Exited { index, .. } if pod.pid(*index).is_some() => open[*index] = false,
                Event::Stop { .. } => stopped = true,
                _ => {}
            }
            for command in pod.step(at(now), event) {
                match command {
                    Command::Launch(index) => {
                        prop_assert!(!stopped, "launch after stop");
                        prop_assert!(!open[index], "second launch of {index}");
                        open[index] = true;
                    }
                    Command::Exit => exits += 1,
                    Command::Terminate(_) | Command::Kill(_) => prop_assert!(stopped),
                }
            }
        }
        prop_assert!(exits <= 1);
        if stopped {
            for command in pod.step(at(now + 1000), Event::Tick) {
                exits += u32::from(command == Command::Exit);
            }
            let after = pod.step(at(now + 2000), Event::Tick);
            exits += u32::from(after.contains(&Command::Exit));
            prop_assert_eq!(exits, 1, "a stop ends in one exit");
        }
    }
}
