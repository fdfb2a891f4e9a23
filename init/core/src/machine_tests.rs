//! Claims about the machine, by example; its invariants over random events are beside this file.

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

/// What a loader does for `event` does not hold up the disks.
fn settles_beside(event: Event) {
    let (mut init, _) = booted();
    let commands = init.step(10, event);
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
fn drivers_of_other_devices_do_not_hold_up_the_disks() {
    settles_beside(modalias("usb:v1D6Bp0002"));
}

#[test]
fn stick_that_is_found_meanwhile_does_not_hold_up_the_disks() {
    let Event::Uevent(mut stick) = modalias("scsi:t-0x00") else {
        panic!()
    };
    stick.devpath = "/devices/pci0000:00/0000:00:02.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0".to_owned();
    settles_beside(Event::Uevent(stick));
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
    let commands = init.step(2 + 150_000, Event::Tick);
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

const VITAL_MS: u64 = 900_000;

#[path = "machine_guard_tests.rs"]
mod guard;
#[path = "machine_properties.rs"]
mod properties;
