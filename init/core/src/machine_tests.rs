//! Claims about the machine: examples first, then invariants over random events.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::backoff::CEILING_MS;
use crate::ending::Ending;
use crate::service::{
    Actual, EXTENSION_LIMIT_MS, Kind, ONESHOT_ATTEMPTS, Readiness, ServiceSpec, UNREADY_LIMIT,
    product_services,
};

fn booted() -> (Init, Vec<Command>) {
    let mut init = Init::new(product_services(), 7);
    let commands = init.step(0, Event::Booted);
    (init, commands)
}

fn block(action: Action, name: &str) -> Event {
    let devname = Some(name.to_owned());
    let subsystem = "block".to_owned();
    Event::Uevent(Uevent {
        devpath: String::new(),
        action,
        subsystem,
        devname,
        modalias: None,
        partname: None,
        medium_changed: false,
    })
}

fn modalias(text: &str) -> Event {
    let modalias = Some(text.to_owned());
    let subsystem = "pci".to_owned();
    let action = Action::Add;
    Event::Uevent(Uevent {
        devpath: String::new(),
        action,
        subsystem,
        devname: None,
        modalias,
        partname: None,
        medium_changed: false,
    })
}

fn says(commands: &[Command], part: &str) -> bool {
    commands
        .iter()
        .any(|c| matches!(c, Command::Say(line) if line.contains(part)))
}

/// Without those that concern the links below `/dev/disk`.
fn without_links(mut commands: Vec<Command>) -> Vec<Command> {
    commands.retain(|c| !matches!(c, Command::Run(Job::LinkDevices { .. })));
    commands
}

fn notice(name: &'static str, text: &str) -> Event {
    Event::Notified(name, Notice::parse(text.as_bytes()))
}

/// Two daemons, of which the second needs the first to be ready.
fn pair() -> Init {
    let first = ServiceSpec {
        readiness: Readiness::Notified,
        start_limit_ms: 10_000,
        watchdog_ms: Some(5_000),
        ..ServiceSpec::new("first", "/first", Kind::Daemon)
    };
    let second = ServiceSpec {
        needs: vec![Need::Service("first")],
        ..ServiceSpec::new("second", "/second", Kind::Daemon)
    };
    let mut init = Init::new(vec![first, second], 7);
    init.step(0, Event::Booted);
    init.step(0, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done));
    init.step(0, Event::JobEnded(Job::ColdPlug, Outcome::Done));
    init.step(0, Event::Started("first"));
    init.cold_plug.rest = Rest::Begun;
    init
}

#[test]
fn daemon_that_must_say_ready_gates_its_dependants() {
    let mut init = pair();
    assert!(init.step(10, Event::Tick).is_empty());
    let commands = init.step(20, notice("first", "READY=1"));
    assert!(says(&commands, "`first` is ready") && commands.contains(&Command::Start("second")));
    assert!(init.step(21, notice("first", "READY=1")).is_empty(), "said once");
}

#[test]
fn daemon_that_is_not_ready_in_time_is_ended_and_started_again() {
    let mut init = pair();
    assert_eq!(init.deadline_ms(), Some(10_000));
    assert_eq!(init.step(10_000, Event::Tick), [Command::Kill("first")]);
    let commands = init.step(10_001, Event::Ended("first", Ending::Signalled(9)));
    assert!(
        says(&commands, "was not ready after 10 s; it is started again"),
        "{commands:?}"
    );
    let due = init.deadline_ms().unwrap();
    assert_eq!(init.step(due, Event::Tick), [Command::Start("first")]);
}

#[test]
fn time_that_a_service_asks_for_is_given_up_to_a_bound() {
    let mut init = pair();
    init.step(9_000, notice("first", "EXTEND_TIMEOUT_USEC=20000000"));
    assert_eq!(init.deadline_ms(), Some(29_000));
    init.step(9_001, notice("first", "EXTEND_TIMEOUT_USEC=1"));
    assert_eq!(init.deadline_ms(), Some(29_000), "a start is never shortened");
    init.step(9_002, notice("first", "EXTEND_TIMEOUT_USEC=18446744073709551615"));
    assert_eq!(init.deadline_ms(), Some(10_000 + EXTENSION_LIMIT_MS));
}

#[test]
fn watchdog_that_runs_out_leads_to_a_kill_and_a_restart_and_signs_of_life_prevent_it() {
    let mut init = pair();
    init.step(100, notice("first", "READY=1\nSTATUS=counting sheep"));
    init.step(100, Event::Started("second"));
    init.step(4_000, notice("first", "WATCHDOG=1"));
    assert_eq!(init.deadline_ms(), Some(9_000));
    assert_eq!(init.step(9_000, Event::Tick), [Command::Kill("first")]);
    assert!(
        init.step(9_001, notice("first", "WATCHDOG=1")).is_empty(),
        "too late"
    );
    let commands = init.step(9_002, Event::Ended("first", Ending::Signalled(9)));
    assert!(
        says(
            &commands,
            "did not answer for 5 s (its watchdog) (its last words: counting sheep)"
        ),
        "{commands:?}"
    );
    let due = init.deadline_ms().unwrap();
    assert_eq!(init.step(due, Event::Tick), [Command::Start("first")]);
}

#[test]
fn service_may_pull_its_own_watchdog_and_choose_its_time_but_not_switch_it_off() {
    let mut init = pair();
    init.step(0, notice("first", "READY=1"));
    init.step(0, notice("first", "WATCHDOG_USEC=60000000"));
    assert_eq!(init.deadline_ms(), Some(60_000));
    init.step(1, notice("first", "WATCHDOG_USEC=0"));
    assert_eq!(init.deadline_ms(), Some(60_000));
    let commands = init.step(2, notice("first", "WATCHDOG=trigger"));
    assert!(commands.contains(&Command::Kill("first")));
}

#[test]
fn service_that_says_it_stops_has_its_grace_and_comes_back() {
    let mut init = pair();
    init.step(0, notice("first", "READY=1"));
    init.step(10, notice("first", "STOPPING=1"));
    assert_eq!(init.deadline_ms(), Some(2_010));
    assert_eq!(init.step(2_010, Event::Tick), [Command::Kill("first")]);
    let commands = init.step(2_011, Event::Ended("first", Ending::Signalled(9)));
    assert!(says(&commands, "did not stop in time"));
    assert!(matches!(init.services()[0].actual, Actual::Paused { .. }));
}

#[test]
fn want_of_memory_is_said_with_the_limit_and_signal_9_alone_is_not_taken_for_it() {
    let mut init = pair();
    let commands = init.step(1, Event::Ended("first", Ending::OutOfMemory(Some(64))));
    assert!(
        says(&commands, "was ended because it used more than 64 MiB"),
        "{commands:?}"
    );
    let mut init = pair();
    let commands = init.step(1, Event::Ended("first", Ending::Signalled(9)));
    assert!(says(&commands, "was killed (signal 9)") && !says(&commands, "MiB"));
}

#[test]
fn descriptors_are_given_up_when_the_service_never_becomes_ready_with_them() {
    let mut init = pair();
    let mut forgotten = 0;
    let mut now = 1;
    for failure in 1..=UNREADY_LIMIT + 2 {
        let commands = init.step(now, Event::Ended("first", Ending::Exited(1)));
        if commands.contains(&Command::ForgetDescriptors("first")) {
            forgotten += 1;
            assert_eq!(failure, UNREADY_LIMIT);
        }
        now = init.deadline_ms().unwrap();
        init.step(now, Event::Tick);
        init.step(now, Event::Started("first"));
    }
    assert_eq!(forgotten, 1);
}

#[test]
fn failures_are_forgotten_after_a_good_run() {
    let mut init = pair();
    let mut now = 0;
    for _ in 0..10 {
        init.step(now, Event::Ended("first", Ending::Exited(1)));
        now = init.deadline_ms().unwrap();
        init.step(now, Event::Tick);
        init.step(now, Event::Started("first"));
    }
    init.step(now, notice("first", "READY=1\nWATCHDOG_USEC=600000000"));
    now += crate::backoff::WELL_AFTER_MS;
    init.step(now, Event::Ended("first", Ending::Exited(1)));
    assert!(init.deadline_ms().unwrap() <= now + crate::backoff::FIRST_MS);
}

/// A machine whose services all run.
fn running() -> Init {
    let (mut init, _) = booted();
    init.step(1, Event::Started("logd"));
    init.step(1, Event::Started("net"));
    init.step(2, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done));
    init.step(2, Event::JobEnded(Job::ColdPlug, Outcome::Done));
    init.step(3, Event::Started("unlock"));
    init.step(4, Event::Ended("unlock", Ending::Exited(0)));
    init.step(5, Event::Started("agent"));
    init.cold_plug.rest = Rest::Begun;
    init
}

#[test]
fn network_unlock_and_the_agent_start_at_once_beside_the_drivers() {
    let (mut init, commands) = booted();
    for command in [
        Command::Start("net"),
        Command::Start("unlock"),
        Command::Start("agent"),
        Command::Run(Job::ColdPlugDisks),
        Command::Run(Job::ColdPlug),
    ] {
        assert!(commands.contains(&command), "{commands:?}");
    }
    assert!(init.step(301, Event::Started("unlock")).is_empty());
    assert!(init.step(302, Event::Started("agent")).is_empty());
    let commands = init.step(900, Event::Ended("unlock", Ending::Exited(0)));
    assert!(
        !commands.iter().any(|c| matches!(c, Command::Start(_))),
        "{commands:?}"
    );
}

#[test]
fn disks_are_settled_when_those_that_the_cold_plug_uncovered_have_their_modules_too() {
    let (mut init, _) = booted();
    let commands = init.step(10, modalias("virtio:d00000002v00001AF4"));
    let Some(Command::Run(job)) = commands.first().cloned() else {
        panic!("{commands:?}")
    };
    let ended = init.step(20, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done));
    assert!(ended.is_empty(), "{ended:?}");
    assert_eq!(
        init.step(30, Event::JobEnded(job, Outcome::Done)),
        [Command::AnnounceSettled]
    );
    assert!(
        init.step(35, Event::JobEnded(Job::ColdPlug, Outcome::Done))
            .is_empty()
    );
    let commands = init.step(40, Event::JobEnded(Job::ColdPlugRest, Outcome::Done));
    assert!(!commands.contains(&Command::AnnounceSettled), "said once");
}

#[test]
fn what_nobody_waits_for_comes_when_the_agent_has_had_time_to_join() {
    let (mut init, _) = booted();
    let keyboard = || modalias("input:b0011v0001p0001");
    assert!(init.step(1, keyboard()).is_empty(), "not now");
    init.step(2, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done));
    init.step(3, Event::JobEnded(Job::ColdPlug, Outcome::Done));
    init.step(4, Event::Started("agent"));
    init.step(100, notice("agent", "READY=1"));
    assert_eq!(init.deadline_ms(), Some(100 + REST_AFTER_MS));
    assert!(init.step(99 + REST_AFTER_MS, Event::Tick).is_empty());
    assert_eq!(
        init.step(100 + REST_AFTER_MS, Event::Tick),
        [Command::Run(Job::ColdPlugRest)]
    );
    let commands = init.step(101 + REST_AFTER_MS, keyboard());
    assert!(matches!(commands.as_slice(), [Command::Run(Job::LoadModules(_))]));
}

#[test]
fn what_nobody_waits_for_comes_on_a_machine_whose_agent_never_gets_ready_too() {
    let (mut init, _) = booted();
    init.step(2, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done));
    init.step(3, Event::JobEnded(Job::ColdPlug, Outcome::Done));
    let limit_ms = COLD_PLUG_LIMIT_MS + REST_LIMIT_MS;
    assert!(
        !init
            .step(limit_ms - 1, Event::Tick)
            .contains(&Command::Run(Job::ColdPlugRest))
    );
    assert!(
        init.step(limit_ms, Event::Tick)
            .contains(&Command::Run(Job::ColdPlugRest))
    );
}

#[test]
fn drivers_of_other_devices_do_not_hold_up_the_disks() {
    let (mut init, _) = booted();
    let commands = init.step(10, modalias("usb:v1D6Bp0002"));
    assert!(matches!(
        commands.first(),
        Some(Command::Run(Job::LoadModules(_)))
    ));
    assert_eq!(
        init.step(20, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done)),
        [Command::AnnounceSettled]
    );
}

#[test]
fn stick_that_is_found_meanwhile_does_not_hold_up_the_disks() {
    let (mut init, _) = booted();
    let Event::Uevent(mut stick) = modalias("scsi:t-0x00") else {
        panic!()
    };
    stick.devpath = "/devices/pci0000:00/0000:00:02.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0".to_owned();
    let commands = init.step(10, Event::Uevent(stick));
    assert!(matches!(
        commands.first(),
        Some(Command::Run(Job::LoadModules(_)))
    ));
    assert_eq!(
        init.step(20, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done)),
        [Command::AnnounceSettled]
    );
}

#[test]
fn drivers_that_hang_hold_up_the_boot_for_a_bounded_time() {
    let (mut init, _) = booted();
    assert_eq!(init.deadline_ms(), Some(COLD_PLUG_LIMIT_MS));
    assert_eq!(
        init.step(COLD_PLUG_LIMIT_MS, Event::Tick),
        [Command::AnnounceSettled]
    );
    assert!(init.step(COLD_PLUG_LIMIT_MS + 1, Event::Tick).is_empty());
}

#[test]
fn unlock_that_fails_twice_is_said_and_not_tried_again() {
    let (mut init, _) = booted();
    init.step(1, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done));
    init.step(2, Event::Started("unlock"));
    init.step(3, Event::Ended("unlock", Ending::Exited(1)));
    let due = init.deadline_ms().unwrap();
    assert_eq!(init.step(due, Event::Tick), [Command::Start("unlock")]);
    let commands = init.step(due + 1, Event::Ended("unlock", Ending::Signalled(11)));
    assert!(says(&commands, "going on without it"));
    let unlock = init.services().iter().find(|s| s.spec.name == "unlock").unwrap();
    assert_eq!(
        unlock.actual.word(),
        "ended",
        "the agent waits for this word or for the volume"
    );
}

#[test]
fn unlock_that_hangs_is_killed() {
    let (mut init, _) = booted();
    init.step(1, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done));
    init.step(2, Event::Started("unlock"));
    let commands = init.step(2 + 60_000, Event::Tick);
    assert_eq!(commands, [Command::Kill("unlock")]);
}

#[test]
fn agent_that_dies_comes_back_and_its_cgroup_is_cleared_first() {
    let mut init = running();
    let commands = init.step(100, Event::Ended("agent", Ending::Signalled(9)));
    assert_eq!(commands.first(), Some(&Command::KillCgroup("agent")));
    assert!(says(&commands, "was killed"));
    let due = init.deadline_ms().unwrap();
    assert!(due <= 100 + 100);
    assert_eq!(init.step(due, Event::Tick), [Command::Start("agent")]);
}

#[test]
fn hundred_failures_in_a_row_never_pause_longer_than_the_ceiling_and_say_few_lines() {
    let mut init = running();
    let (mut now, mut lines) = (100, 0);
    for _ in 0..100 {
        let commands = init.step(now, Event::Ended("agent", Ending::Exited(1)));
        lines += commands.iter().filter(|c| matches!(c, Command::Say(_))).count();
        let due = init.deadline_ms().unwrap();
        assert!(due - now <= CEILING_MS);
        now = due;
        assert_eq!(init.step(now, Event::Tick), [Command::Start("agent")]);
        init.step(now, Event::Started("agent"));
        now += 10;
    }
    assert_eq!(lines, 8, "the failures 1, 2, 4, ... 64, and once what to do");
}

#[test]
fn stick_that_comes_late_is_mounted_and_its_removal_is_a_new_generation() {
    let mut init = running();
    assert_eq!(
        without_links(init.step(10, block(Action::Add, "sdb1"))),
        [Command::Run(Job::MountStick("sdb1".into()))]
    );
    let commands = init.step(20, Event::JobEnded(Job::MountStick("sdb1".into()), Outcome::Done));
    assert!(commands.contains(&Command::WriteStick {
        generation: 1,
        device: Some("/dev/sdb1".into())
    }));
    let commands = init.step(30, block(Action::Remove, "sdb1"));
    assert_eq!(commands.first(), Some(&Command::Run(Job::UnmountStick)));
    assert!(commands.contains(&Command::WriteStick {
        generation: 2,
        device: None
    }));
}

#[test]
fn the_newest_stick_counts_and_an_old_one_is_not_announced_again() {
    let mut init = running();
    init.step(10, block(Action::Add, "sdb1"));
    init.step(20, Event::JobEnded(Job::MountStick("sdb1".into()), Outcome::Done));
    let commands = without_links(init.step(25, block(Action::Add, "sdc1")));
    assert_eq!(commands, [Command::Run(Job::MountStick("sdc1".into()))]);
    let commands = init.step(30, Event::JobEnded(Job::MountStick("sdc1".into()), Outcome::Done));
    assert!(commands.contains(&Command::WriteStick {
        generation: 2,
        device: Some("/dev/sdc1".into())
    }));
    init.step(40, block(Action::Remove, "sdc1"));
    let commands = init.step(50, Event::JobEnded(Job::UnmountStick, Outcome::Done));
    assert!(commands.is_empty(), "{commands:?}");
}

#[test]
fn a_disk_that_is_no_join_stick_leaves_the_announced_one() {
    let mut init = running();
    init.step(10, block(Action::Add, "sdb1"));
    init.step(20, Event::JobEnded(Job::MountStick("sdb1".into()), Outcome::Done));
    init.step(25, block(Action::Add, "sdc1"));
    let commands = init.step(
        30,
        Event::JobEnded(Job::MountStick("sdc1".into()), Outcome::Nothing),
    );
    assert!(commands.is_empty(), "{commands:?}");
}

#[test]
fn stick_pulled_while_it_is_mounted_is_never_announced() {
    let mut init = running();
    init.step(10, block(Action::Add, "sdb1"));
    init.step(15, block(Action::Remove, "sdb1"));
    let commands = init.step(20, Event::JobEnded(Job::MountStick("sdb1".into()), Outcome::Done));
    assert_eq!(commands, [Command::Run(Job::UnmountStick)]);
}

#[test]
fn lost_events_are_made_good_by_a_scan() {
    let mut init = running();
    init.step(10, block(Action::Add, "sdb1"));
    init.step(20, Event::JobEnded(Job::MountStick("sdb1".into()), Outcome::Done));
    let commands = init.step(30, Event::UeventsLost);
    assert_eq!(commands, [Command::Scan, Command::Run(Job::ColdPlug)]);
    let commands = init.step(31, Event::Scanned(Vec::new()));
    assert!(commands.contains(&Command::WriteStick {
        generation: 2,
        device: None
    }));
}

#[test]
fn links_of_the_boots_devices_wait_until_their_drivers_are_there_and_lost_events_are_made_good() {
    let links = |there: &[&str], gone: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Command::Run(Job::LinkDevices {
            there: owned(there),
            gone: owned(gone),
        })
    };
    let found = |name: &str| match block(Action::Add, name) {
        Event::Uevent(uevent) => uevent,
        other => panic!("{other:?}"),
    };
    let (mut init, _) = booted();
    let commands = init.step(
        1,
        Event::Scanned(vec![found("vda"), found("vda1"), found("loop0")]),
    );
    assert_eq!(without_links(commands.clone()), commands);
    init.step(2, Event::JobEnded(Job::ColdPlugDisks, Outcome::Done));
    let commands = init.step(2, Event::JobEnded(Job::ColdPlug, Outcome::Done));
    assert_eq!(without_links(commands.clone()), commands);
    let now = COLD_PLUG_LIMIT_MS + REST_LIMIT_MS;
    let commands = init.step(now, Event::Tick);
    let rest = commands
        .iter()
        .position(|c| *c == Command::Run(Job::ColdPlugRest));
    let linked = commands.iter().position(|c| *c == links(&["vda", "vda1"], &[]));
    assert!(rest.is_some() && linked > rest, "{commands:?}");
    let Some(Command::Run(job)) = linked.map(|at| commands[at].clone()) else {
        panic!("{commands:?}");
    };
    init.step(now + 3, Event::JobEnded(job, Outcome::Done));
    // The disk went and another came, and the events about it were lost.
    init.step(now + 4, Event::UeventsLost);
    let commands = init.step(now + 5, Event::Scanned(vec![found("vdb")]));
    assert!(commands.contains(&links(&[], &["vda", "vda1"])), "{commands:?}");
    assert!(init.step(now + 6, Event::Tick).contains(&links(&["vdb"], &[])));
}

#[test]
fn system_disks_of_the_kernel_are_not_probed() {
    let mut init = running();
    for device in ["loop0", "dm-0", "ram1", "zram0"] {
        let commands = without_links(init.step(10, block(Action::Add, device)));
        assert!(commands.is_empty(), "{device}");
    }
}

#[test]
fn probes_at_the_same_time_are_bounded() {
    let mut init = running();
    let started = (0..600)
        .flat_map(|n| without_links(init.step(10, block(Action::Add, &format!("sd{n}")))))
        .count();
    assert_eq!(started, crate::stick::PROBES_LIMIT);
    let present = (0..600).map(|n| match block(Action::Add, &format!("sd{n}")) {
        Event::Uevent(u) => u,
        other => panic!("{other:?}"),
    });
    assert!(init.step(11, Event::Scanned(present.collect())).is_empty());
}

#[test]
fn storm_of_modaliases_is_bounded_and_ends_in_a_cold_plug() {
    let mut init = running();
    let mut jobs = Vec::new();
    for n in 0..PENDING_LIMIT + 10 {
        jobs.extend(init.step(10, modalias(&format!("usb:v{n}"))));
    }
    let loaders = jobs
        .iter()
        .filter(|c| matches!(c, Command::Run(Job::LoadModules(_))))
        .count();
    assert_eq!(loaders, LOADERS_LIMIT as usize);
    assert_eq!(
        jobs.iter().filter(|c| **c == Command::Run(Job::ColdPlug)).count(),
        1
    );
    assert!(init.pending.len() <= PENDING_LIMIT);
}

#[test]
fn same_modalias_is_loaded_once() {
    let mut init = running();
    assert_eq!(init.step(1, modalias("usb:v1")).len(), 1);
    assert!(init.step(2, modalias("usb:v1")).is_empty());
}

#[test]
fn services_go_down_in_reverse_order_then_pods_then_the_machine() {
    let mut init = running();
    let commands = init.step(100, Event::ShutdownAsked(Shutdown::PowerOff));
    assert!(
        commands.contains(&Command::Terminate("agent")) && !commands.contains(&Command::Terminate("net"))
    );
    let commands = init.step(200, Event::Ended("agent", Ending::Exited(0)));
    assert!(commands.contains(&Command::Terminate("net")));
    let commands = init.step(250, Event::Ended("net", Ending::Exited(0)));
    assert!(
        commands.contains(&Command::Terminate("logd")),
        "it keeps what the others said"
    );
    let commands = init.step(300, Event::Ended("logd", Ending::Exited(0)));
    assert!(commands.contains(&Command::TerminateEveryone));
    assert_eq!(
        init.step(350, Event::NoChildren),
        [Command::Finish {
            how: Shutdown::PowerOff,
            // Asked for at 100, and the programs took 250.
            disks_ms: DISKS_UNTIL_MS - 250
        }]
    );
    assert!(init.step(360, Event::Started("net")).is_empty());
}

#[test]
fn shutdown_during_a_start_stops_what_was_being_started() {
    let (mut init, _) = booted();
    init.step(1, Event::ShutdownAsked(Shutdown::Reboot));
    assert_eq!(init.step(2, Event::Started("net")), [Command::Terminate("net")]);
}

#[test]
fn last_grace_that_reaches_past_the_limit_does_not_spin_the_clock() {
    let mut init = running();
    init.step(0, Event::ShutdownAsked(Shutdown::Reboot));
    init.step(100, Event::Ended("agent", Ending::Exited(0)));
    init.step(200, Event::Ended("net", Ending::Exited(0)));
    init.step(
        LIMIT_MS - OTHERS_GRACE_MS - 100,
        Event::Ended("logd", Ending::Exited(0)),
    );
    let mut now = LIMIT_MS - 100;
    assert_eq!(init.step(now, Event::Tick), [Command::KillEveryone]);
    for _ in 0..4 {
        let Some(due) = init.deadline_ms() else { return };
        assert!(due > now, "due {due} at {now}");
        now = due;
        init.step(now, Event::Tick);
    }
    panic!("still not down");
}

fn asks(text: &str) -> Event {
    notice("control", &format!("X_BEEMESH_ASK={text}"))
}

/// All is up, and somebody has connected to the control service.
fn controlled() -> Init {
    let mut init = running();
    init.step(10_000, notice("agent", "READY=1"));
    assert_eq!(
        init.step(10_000, Event::Demanded("control")),
        [Command::Start("control")]
    );
    init.step(10_001, Event::Started("control"));
    init
}

fn watchdog(name: &str) -> Event {
    let Event::Uevent(uevent) = block(Action::Add, name) else {
        unreachable!()
    };
    let subsystem = "watchdog".to_owned();
    Event::Uevent(Uevent { subsystem, ..uevent })
}

fn opened(fired: bool) -> Event {
    let (timeout_ms, name) = (60_000, "a timer".to_owned());
    Event::WatchdogOpened {
        timeout_ms,
        name,
        fired,
    }
}

const VITAL_MS: u64 = 600_000;

/// A machine whose agent is ready and whose watchdog is held, at 10 ms.
fn watched() -> Init {
    let mut init = running();
    init.step(6, notice("agent", "READY=1\nWATCHDOG_USEC=600000000"));
    let commands = init.step(7, watchdog("watchdog0"));
    assert!(commands.contains(&Command::OpenWatchdog("watchdog0".into())));
    init.step(10, opened(false));
    init
}

#[test]
fn service_with_a_socket_runs_when_somebody_connects_and_until_it_has_nothing_to_do() {
    let mut init = controlled();
    assert_eq!(init.word(), "running");
    let commands = init.step(20_000, Event::Ended("control", Ending::Exited(0)));
    assert!(commands.contains(&Command::Listen("control")), "{commands:?}");
    assert!(!says(&commands, "control"), "no failure: {commands:?}");
    assert!(init.step(30_000, Event::Tick).is_empty());
    assert_eq!(
        init.step(30_001, Event::Demanded("control")),
        [Command::Start("control")]
    );
}

#[test]
fn service_with_a_socket_that_fails_comes_back_by_itself_since_somebody_waits() {
    let mut init = controlled();
    let commands = init.step(10_100, Event::Ended("control", Ending::Signalled(11)));
    assert!(says(
        &commands,
        "`control` was ended by signal 11; it is started again"
    ));
    let due = init.deadline_ms().unwrap();
    assert_eq!(init.step(due, Event::Tick), [Command::Start("control")]);
}

#[test]
fn service_with_a_socket_that_ends_without_serving_is_slowed_down() {
    let mut init = controlled();
    let commands = init.step(10_100, Event::Ended("control", Ending::Exited(0)));
    assert!(!commands.contains(&Command::Listen("control")), "{commands:?}");
    assert!(says(&commands, "it is started again"));
}

#[test]
fn daemon_is_stopped_and_started_as_asked_and_stays_down_in_between() {
    let mut init = controlled();
    let commands = init.step(11_000, asks("stop net"));
    assert!(commands.contains(&Command::Terminate("net")) && says(&commands, "`net` is stopped"));
    let commands = init.step(11_100, Event::Ended("net", Ending::Exited(0)));
    assert!(commands.contains(&Command::ForgetDescriptors("net")) && !says(&commands, "started again"));
    assert!(init.step(39_000, Event::Tick).is_empty(), "it stays down");
    assert_eq!(init.word(), "running", "as asked is as it should be");
    let commands = init.step(39_001, asks("start net"));
    assert!(commands.contains(&Command::Start("net")), "{commands:?}");
    let net = init.services().iter().find(|s| s.spec.name == "net").unwrap();
    assert_eq!((net.restarts, net.actual.word()), (1, "starting"));
}

#[test]
fn daemon_that_is_asked_to_stop_and_does_not_is_killed_after_its_grace() {
    let mut init = controlled();
    init.step(11_000, asks("stop net"));
    assert_eq!(init.step(13_000, Event::Tick), [Command::Kill("net")]);
    init.step(13_001, Event::Ended("net", Ending::Signalled(9)));
    let net = init.services().iter().find(|s| s.spec.name == "net").unwrap();
    assert_eq!(net.actual, Actual::Stopped);
}

#[test]
fn restart_as_asked_waits_for_no_back_off_and_is_no_failure() {
    let mut init = controlled();
    init.step(11_000, asks("restart net"));
    let commands = init.step(11_100, Event::Ended("net", Ending::Signalled(15)));
    assert!(commands.contains(&Command::Start("net")), "at once: {commands:?}");
    assert!(!says(&commands, "signal 15"));
    // One that waits after a failure is started at once, too.
    init.step(11_200, Event::Ended("net", Ending::Exited(1)));
    let commands = init.step(11_201, asks("restart net"));
    assert!(commands.contains(&Command::Start("net")), "{commands:?}");
}

#[test]
fn start_while_it_is_being_stopped_brings_it_back() {
    let mut init = controlled();
    init.step(11_000, asks("stop net"));
    init.step(11_001, asks("start net"));
    let commands = init.step(11_100, Event::Ended("net", Ending::Exited(0)));
    assert!(commands.contains(&Command::Start("net")), "{commands:?}");
}

#[test]
fn oneshots_on_demand_services_and_strangers_cannot_be_asked_for_anything() {
    let mut init = controlled();
    for text in ["restart unlock", "stop control", "restart control", "stop nobody"] {
        assert!(init.step(11_000, asks(text)).is_empty(), "{text}");
    }
    // Only the spec of `control` allows it to ask.
    assert!(
        init.step(11_000, notice("net", "X_BEEMESH_ASK=poweroff"))
            .is_empty()
    );
    let commands = init.step(11_001, asks("halt"));
    assert!(says(&commands, "stopping for good") && init.word() == "stopping");
    assert!(init.step(11_002, asks("start net")).is_empty(), "too late");
}

#[test]
fn watchdog_is_petted_in_time_and_for_the_last_time_when_the_way_down_begins() {
    let mut init = watched();
    assert_eq!(init.deadline_ms(), Some(15_010));
    assert_eq!(init.step(15_010, Event::Tick), [Command::PetWatchdog]);
    let commands = init.step(16_000, Event::ShutdownAsked(Shutdown::Reboot));
    assert!(commands.contains(&Command::PetWatchdog));
    while let Some(due) = init.deadline_ms() {
        let commands = init.step(due, Event::Tick);
        assert!(!commands.contains(&Command::PetWatchdog), "{commands:?}");
        assert!(due <= 16_000 + LIMIT_MS + AFTER_KILL_MS);
    }
}

#[test]
fn machine_starts_again_in_order_when_the_agent_does_not_come_back() {
    let mut init = watched();
    let mut now = 20;
    init.step(now, Event::Ended("agent", Ending::Exited(1)));
    let mut pets = 0;
    loop {
        now = init.deadline_ms().unwrap();
        let commands = init.step(now, Event::Tick);
        if commands.contains(&Command::Start("agent")) {
            init.step(now, Event::Started("agent"));
            init.step(now, Event::Ended("agent", Ending::Exited(1)));
        }
        if says(
            &commands,
            "the service `agent` does not come back: this machine starts again",
        ) {
            assert!(
                commands.contains(&Command::Terminate("net"))
                    || commands.contains(&Command::Terminate("logd"))
            );
            break;
        }
        pets += commands.iter().filter(|c| **c == Command::PetWatchdog).count();
    }
    assert_eq!(now, 20 + VITAL_MS);
    assert!((39..=40).contains(&pets), "{pets}");
}

#[test]
fn machine_without_a_watchdog_chip_gets_the_kernels_timer_when_all_drivers_are_loaded() {
    let mut init = running();
    let commands = init.step(20, Event::JobEnded(Job::ColdPlugRest, Outcome::Done));
    let softdog = Job::LoadModules(vec!["softdog".into()]);
    assert!(commands.contains(&Command::Run(softdog)), "{commands:?}");
    let mut init = watched();
    let commands = init.step(20, Event::JobEnded(Job::ColdPlugRest, Outcome::Done));
    assert!(
        !commands
            .iter()
            .any(|c| matches!(c, Command::Run(Job::LoadModules(_)))),
        "{commands:?}"
    );
}

#[test]
fn reset_by_the_watchdog_is_said() {
    let mut init = running();
    init.step(7, watchdog("watchdog0"));
    assert!(says(
        &init.step(8, opened(true)),
        "was started again by its watchdog (a timer)"
    ));
}

#[test]
fn last_fault_is_looked_for_once_when_the_state_volume_and_the_drivers_are_there() {
    let recover = Command::Run(Job::RecoverCrash);
    let (mut init, _) = booted();
    init.step(1, Event::Started("unlock"));
    init.step(2, Event::JobEnded(Job::ColdPlug, Outcome::Done));
    let commands = init.step(3, Event::JobEnded(Job::ColdPlugRest, Outcome::Done));
    assert!(!commands.contains(&recover));
    let commands = init.step(4, Event::Ended("unlock", Ending::Exited(0)));
    assert!(commands.contains(&recover));
    let commands = init.step(5, Event::JobEnded(Job::RecoverCrash, Outcome::Nothing));
    assert!(!commands.contains(&recover));
    let mut init = running();
    let commands = init.step(20, Event::JobEnded(Job::ColdPlugRest, Outcome::Done));
    assert!(commands.contains(&recover));
}

#[derive(Debug, Clone)]
enum Act {
    Wait(u64),
    Device(u8, u8),
    Alias(u8),
    Lost,
    JobDone(u8, bool),
    /// The oldest start is answered; `true`: the program runs.
    Answer(bool),
    Die(u8, i32),
    Notice(u8, u8),
    Down(bool),
    Nobody,
    Demand,
    /// The control service passes on a wish, if it runs.
    Ask(u8, u8),
    Watchdog(u8),
    /// The opening of a watchdog is answered; `true`: it works.
    WatchdogAnswer(bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop_oneof![9 => 0u64..3_000, 1 => 0u64..200_000].prop_map(Act::Wait),
        4 => (0u8..3, 0u8..6).prop_map(|(a, d)| Act::Device(a, d)),
        2 => (0u8..20).prop_map(Act::Alias),
        1 => Just(Act::Lost),
        6 => (any::<u8>(), any::<bool>()).prop_map(|(n, ok)| Act::JobDone(n, ok)),
        8 => prop_oneof![9 => Just(true), 1 => Just(false)].prop_map(Act::Answer),
        4 => (0u8..5, -2i32..2).prop_map(|(s, c)| Act::Die(s, c)),
        4 => (0u8..5, 0u8..9).prop_map(|(s, n)| Act::Notice(s, n)),
        1 => any::<bool>().prop_map(Act::Down),
        1 => Just(Act::Nobody),
        1 => Just(Act::Demand),
        4 => (0u8..5, 0u8..3).prop_map(|(s, w)| Act::Ask(s, w)),
        1 => (0u8..4).prop_map(Act::Watchdog),
        2 => any::<bool>().prop_map(Act::WatchdogAnswer),
    ]
}

const NOTICES: [&str; 9] = [
    "READY=1",
    "READY=1\nSTATUS=up",
    "WATCHDOG=1",
    "WATCHDOG=1",
    "WATCHDOG=trigger",
    "STOPPING=1",
    "EXTEND_TIMEOUT_USEC=9000000",
    "EXTEND_TIMEOUT_USEC=18446744073709551615\nWATCHDOG_USEC=18446744073709551615",
    "WATCHDOG_USEC=1000000",
];

/// A driver that does what it is told and checks what must always hold.
struct World {
    init: Init,
    now: u64,
    starting: Vec<&'static str>,
    alive: BTreeMap<&'static str, bool>,
    jobs: Vec<Job>,
    generation: u64,
    shutdown_at: Option<u64>,
    finished: u32,
    disks_ms: u64,
    disks_until: u64,
    /// Was asked to be stopped, and has stopped, and not been asked for since.
    stopped: BTreeSet<&'static str>,
    opening: bool,
    held: bool,
    /// Since when the agent has been neither ready nor waiting.
    unwell_since: Option<u64>,
}

impl World {
    fn feed(&mut self, event: Event) {
        let before_down = self.shutdown_at.is_some();
        let lost = self
            .unwell_since
            .is_some_and(|since| self.now - since >= VITAL_MS);
        if matches!(event, Event::ShutdownAsked(_)) && self.shutdown_at.is_none() {
            self.shutdown_at = Some(self.now);
        }
        let commands = self.init.step(self.now, event);
        for command in commands {
            assert_eq!(self.finished, 0, "{command:?} after the end");
            match command {
                Command::Start(name) => {
                    assert!(!before_down, "`{name}` started on the way down");
                    assert!(!self.stopped.contains(name), "`{name}` started against a wish");
                    assert!(
                        !self.starting.contains(&name) && !self.alive.contains_key(name),
                        "`{name}` runs twice"
                    );
                    self.starting.push(name);
                }
                Command::Run(job) => {
                    assert!(!before_down, "{job:?} on the way down");
                    self.jobs.push(job);
                    let mounts = self
                        .jobs
                        .iter()
                        .filter(|j| matches!(j, Job::MountStick(_)))
                        .count();
                    assert!(mounts <= 2 * crate::stick::PROBES_LIMIT);
                }
                Command::WriteStick { generation, .. } => {
                    assert_eq!(generation, self.generation + 1);
                    self.generation = generation;
                }
                Command::Terminate(name) | Command::Kill(name) => {
                    assert!(
                        self.alive.contains_key(name),
                        "signal for `{name}`, which does not run"
                    );
                    if matches!(command, Command::Kill(_)) {
                        self.alive.insert(name, true);
                    }
                }
                Command::Finish { disks_ms, .. } => {
                    self.finished += 1;
                    self.disks_ms = disks_ms;
                    self.disks_until = self.now + disks_ms;
                }
                Command::Say(line) if line.contains("this machine starts again") => {
                    assert!(lost && !before_down, "{line}");
                    self.shutdown_at = Some(self.now);
                }
                Command::OpenWatchdog(_) => {
                    assert!(!self.held && !std::mem::replace(&mut self.opening, true));
                }
                // The last one begins the way down.
                Command::PetWatchdog => {
                    assert!(self.held && !before_down);
                    assert!(!lost || self.shutdown_at == Some(self.now));
                }
                _ => {}
            }
        }
        let agent = &self.init.services()[3];
        match agent.actual {
            Actual::Waiting | Actual::Running { ready: true, .. } => self.unwell_since = None,
            _ => drop(self.unwell_since.get_or_insert(self.now)),
        }
        self.invariant_deadlines_hold();
        if self.held && self.shutdown_at.is_none() {
            let next = self.init.watchdog.deadline_ms().unwrap();
            assert!(next > self.now && next <= self.now + 15_000, "no sign of life");
        }
    }

    /// Nothing that should have been killed or started by now was passed over, and a oneshot is not tried for ever.
    fn invariant_deadlines_hold(&self) {
        if self.finished > 0 {
            return;
        }
        for service in self.init.services() {
            let overdue = service.deadline_ms().is_some_and(|at| at <= self.now);
            assert!(!overdue, "{:?} at {}", service.actual, self.now);
            assert!(
                service.spec.kind == Kind::Daemon || service.restarts < u64::from(ONESHOT_ATTEMPTS),
                "{service:?}"
            );
            if let Actual::Running {
                ready: true,
                kill_at_ms,
                ..
            } = service.actual
            {
                assert_eq!(kill_at_ms.is_some(), service.spec.watchdog_ms.is_some());
            }
        }
    }

    fn apply(&mut self, act: Act) {
        let names = ["net", "unlock", "agent", "logd", "control"];
        match act {
            Act::Wait(ms) => {
                self.now += ms;
                self.feed(Event::Tick);
            }
            Act::Device(action, device) => {
                let action = [Action::Add, Action::Remove, Action::Change][usize::from(action)];
                self.feed(block(action, &format!("sd{device}")));
            }
            Act::Alias(n) => self.feed(modalias(&format!("usb:v{n}"))),
            Act::Lost => self.feed(Event::UeventsLost),
            Act::JobDone(n, ok) if !self.jobs.is_empty() => {
                let job = self.jobs.remove(usize::from(n) % self.jobs.len());
                self.feed(Event::JobEnded(
                    job,
                    if ok { Outcome::Done } else { Outcome::Nothing },
                ));
            }
            Act::Answer(runs) if !self.starting.is_empty() => {
                let name = self.starting.remove(0);
                if runs {
                    self.alive.insert(name, false);
                    self.feed(Event::Started(name));
                } else {
                    let ending = [Ending::NotStarted(2), Ending::StillPopulated];
                    let which = usize::from(self.now.is_multiple_of(2));
                    self.feed(Event::Ended(name, ending[which]));
                }
            }
            Act::Die(service, code) => {
                let name = names[usize::from(service)];
                if self.alive.remove(name).is_some() {
                    let ending = match code {
                        -2 => Ending::OutOfMemory(None),
                        -1 => Ending::Signalled(9),
                        code => Ending::Exited(code),
                    };
                    self.feed(Event::Ended(name, ending));
                }
            }
            Act::Notice(service, which) => {
                let name = names[usize::from(service)];
                // The driver passes on nothing that comes from elsewhere than the service's processes.
                if self.alive.contains_key(name) {
                    self.feed(notice(name, NOTICES[usize::from(which)]));
                }
            }
            Act::Down(reboot) => {
                self.feed(Event::ShutdownAsked(if reboot {
                    Shutdown::Reboot
                } else {
                    Shutdown::PowerOff
                }));
            }
            Act::Demand => self.feed(Event::Demanded("control")),
            Act::Ask(service, wish) if self.alive.contains_key("control") => {
                let name = names[usize::from(service)];
                let word = ["start", "stop", "restart"][usize::from(wish)];
                if ["net", "agent", "logd"].contains(&name) && self.shutdown_at.is_none() {
                    if word == "stop" {
                        self.stopped.insert(name);
                    } else {
                        self.stopped.remove(name);
                    }
                }
                self.feed(asks(&format!("{word} {name}")));
            }
            Act::Nobody if self.alive.is_empty() && self.starting.is_empty() => self.feed(Event::NoChildren),
            Act::Watchdog(number) => self.feed(watchdog(&format!("watchdog{number}"))),
            Act::WatchdogAnswer(works) if std::mem::take(&mut self.opening) => {
                self.held = works;
                self.feed(if works {
                    opened(false)
                } else {
                    Event::WatchdogRefused
                });
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn invariant_no_order_of_events_breaks_the_machine(acts in proptest::collection::vec(act(), 0..120)) {
        let mut world = World {
            init: Init::new(product_services(), 3),
            now: 0,
            starting: Vec::new(),
            alive: BTreeMap::new(),
            jobs: Vec::new(),
            generation: 0,
            shutdown_at: None,
            finished: 0,
            disks_ms: 0,
            disks_until: 0,
            stopped: BTreeSet::new(),
            opening: false,
            held: false,
            unwell_since: None,
        };
        world.feed(Event::Booted);
        for act in acts {
            world.apply(act);
        }
        // Whatever state that left, and though nothing answers any more: a shutdown ends, once, within its bound.
        world.feed(Event::ShutdownAsked(Shutdown::PowerOff));
        let asked = world.shutdown_at.unwrap();
        let left_alone_at = world.now;
        let mut ticks = 0;
        while let Some(due) = world.init.deadline_ms() {
            world.now = world.now.max(due);
            world.feed(Event::Tick);
            ticks += 1;
            prop_assert!(ticks < 100, "the clock spins at {}", world.now);
        }
        prop_assert_eq!(world.finished, 1);
        prop_assert!((LEAST_DISKS_MS..=DISKS_UNTIL_MS).contains(&world.disks_ms));
        // The bound that is promised, where the clock was not left alone for long.
        if left_alone_at <= asked + LIMIT_MS {
            prop_assert!(world.disks_until <= asked + 30_000);
        }
        prop_assert!(world.now <= left_alone_at.max(asked + LIMIT_MS) + AFTER_KILL_MS);
    }
}
