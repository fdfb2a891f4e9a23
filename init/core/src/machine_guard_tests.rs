//! Claims about who asks the machine for something and who watches it: the control service, the watchdog, the last fault.

use super::*;
use crate::watchdog::SOFTWARE_AFTER_MS;

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
    assert!((59..=60).contains(&pets), "{pets}");
}

#[test]
fn machine_without_a_watchdog_chip_gets_the_kernels_timer_when_all_drivers_are_loaded() {
    let mut init = running();
    init.step(20, Event::JobEnded(Job::ColdPlugRest, Outcome::Done));
    let softdog = Job::LoadModules(vec!["softdog".into()]);
    let early = init.step(19 + SOFTWARE_AFTER_MS, Event::Tick);
    assert!(!early.contains(&Command::Run(softdog.clone())), "{early:?}");
    let commands = init.step(20 + SOFTWARE_AFTER_MS, Event::Tick);
    assert!(commands.contains(&Command::Run(softdog)), "{commands:?}");
    let mut init = watched();
    init.step(20, Event::JobEnded(Job::ColdPlugRest, Outcome::Done));
    let commands = init.step(20 + SOFTWARE_AFTER_MS, Event::Tick);
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
