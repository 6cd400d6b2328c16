//! Reloads: the way to the switch, every way to fail before it, and what is as it was after that.

use super::super::generation::SlotPhase;
use super::super::known::DepartureStage;
use super::super::{Action, Event, OperatorRequest, Settings, Timer, WorkerEvent, WorkerId};
use super::{
    BOOT, CALLED, DRAIN, Harness, UNCALLED, ended, failed, fork, kill_template, leave, refused, settings,
};

use WorkerEvent::{Born, ForkRefused, Leaving, Ready, Retiring, Vanished, Wedged};

fn fork_shut(worker: WorkerId, slot: usize) -> [Action; 2] {
    let fork = Action::Fork { generation: 2, worker, slot, doors_shut: true };
    [fork, Action::Arm(Timer::Boot(worker), BOOT)]
}

fn start(generation: u32) -> [Action; 2] {
    [Action::StartTemplate { generation }, Action::Arm(Timer::TemplateBoot(generation), BOOT)]
}

fn next_ready(processes: usize) -> Event {
    Event::TemplateReady { generation: 2, settings: settings(processes) }
}

/// One worker serves, number 0; a reload to two is on its way.
fn reloading() -> Harness {
    let mut policy = Harness::serving(1);
    assert_eq!(policy.asked(OperatorRequest::Reload), start(2));
    policy
}

/// Both workers of the next generation, 1 and 2, are on probation.
fn on_probation() -> Harness {
    let mut policy = reloading();
    policy.on(next_ready(2));
    policy.boots(1);
    policy.boots(2);
    assert!(policy.armed.contains(&Timer::Probation));
    policy
}

fn why_it_failed(actions: &[Action]) -> &str {
    let failed = actions.iter().find_map(|action| match action {
        Action::ReloadFailed { generation: 2, why } => Some(why),
        _ => None,
    });
    failed.unwrap_or_else(|| panic!("no failure in {actions:?}"))
}

#[test]
fn a_reload_from_its_first_event_to_the_last() {
    let mut policy = reloading();
    let forked = policy.on(next_ready(2));
    assert_eq!(forked[0], Action::Disarm(Timer::TemplateBoot(2)));
    assert_eq!(forked[1..], [fork_shut(1, 0), fork_shut(2, 1)].concat());
    assert_eq!(policy.boots(1), [Action::Disarm(Timer::Boot(1))]);
    assert_eq!(policy.phases(), [SlotPhase::Ready(0)], "the other one serves");
    policy.boots(2);
    let switched = [
        vec![Action::Switch { generation: 2 }, Action::Open(1), Action::Open(2)],
        leave(0).to_vec(),
        vec![kill_template(1)],
    ];
    assert_eq!(policy.due(Timer::Probation), switched.concat());
    assert_eq!(policy.phases(), [SlotPhase::Ready(1), SlotPhase::Ready(2)]);
    assert_eq!(policy.departing(), [(0, DepartureStage::Leaving)]);
    assert_eq!(policy.template_ended(1), []);
    assert_eq!(policy.worker(0, CALLED), [Action::Disarm(Timer::Depart(0))]);
    assert!(policy.state.ending.is_empty() && policy.armed.is_empty());
}

#[test]
fn each_way_to_fail_kills_the_next_generation_and_leaves_the_other_as_it_was() {
    type FailedReload = (&'static str, fn() -> Harness, Event, &'static str, Vec<WorkerId>, bool);
    let booting = || {
        let mut policy = reloading();
        policy.on(next_ready(2));
        policy.worker(1, Born);
        policy
    };
    let of = Event::Worker;
    let failures: [FailedReload; 12] = [
        ("config or preload", reloading, failed(2), "why", vec![], true),
        ("no program", reloading, refused(2), "why", vec![], false),
        (
            "template dies",
            reloading,
            ended(2),
            "the template ended before it was ready (exit 1)",
            vec![],
            false,
        ),
        (
            "preload hangs",
            reloading,
            Event::Due(Timer::TemplateBoot(2)),
            "the template was not ready",
            vec![],
            true,
        ),
        ("fork refused", booting, of(2, ForkRefused), "the worker of slot 1 can't be forked", vec![1], true),
        ("lost fork", booting, of(2, Vanished), "the worker of slot 1 can't be forked", vec![1], true),
        ("dies at boot", booting, of(1, UNCALLED), "slot 0 ended before it was ready", vec![], true),
        ("hangs at boot", booting, Event::Due(Timer::Boot(1)), "a worker was not ready", vec![1], true),
        ("not born", booting, Event::Due(Timer::Boot(2)), "a worker was not ready", vec![1], true),
        ("template dies late", booting, ended(2), "the template ended (exit 1)", vec![1], false),
        ("dies on probation", on_probation, of(2, UNCALLED), "slot 1 ended within 1s", vec![1], true),
        ("template fails late", on_probation, failed(2), "why", vec![1, 2], true),
    ];
    for (name, way, event, why, killed, has_template) in failures {
        let mut policy = way();
        let actions = policy.on(event);
        assert!(why_it_failed(&actions).contains(why), "{name}: {actions:?}");
        let kills: Vec<WorkerId> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Kill(worker) => Some(*worker),
                _ => None,
            })
            .collect();
        assert_eq!(kills, killed, "{name}: {actions:?}");
        assert_eq!(actions.contains(&kill_template(2)), has_template, "{name}: {actions:?}");
        assert!(policy.armed.is_empty(), "{name}: {:?}", policy.armed);
        assert_eq!(policy.phases(), [SlotPhase::Ready(0)], "{name}");
        policy.template_ended(2);
        for worker in killed {
            policy.worker(worker, UNCALLED);
        }
        assert!(policy.state.ending.is_empty() && policy.departing().is_empty(), "{name}");
        assert_eq!(policy.worker(0, CALLED), fork(3, 0).map(renumber_if_no_worker_was(name)), "{name}");
    }
}

/// Without workers of the next generation the next number is 1.
fn renumber_if_no_worker_was(name: &str) -> impl Fn(Action) -> Action {
    let was = !["config or preload", "no program", "template dies", "preload hangs"].contains(&name);
    move |action| match action {
        Action::Fork { generation, slot, doors_shut, .. } if !was => {
            Action::Fork { generation, worker: 1, slot, doors_shut }
        }
        Action::Arm(Timer::Boot(_), wait) if !was => Action::Arm(Timer::Boot(1), wait),
        other => other,
    }
}

#[test]
fn reloads_during_a_reload_are_one_more() {
    let mut policy = reloading();
    for _ in 0..3 {
        assert_eq!(policy.asked(OperatorRequest::Reload), []);
    }
    let actions = policy.on(failed(2));
    assert_eq!(actions[actions.len() - 2..], start(3));
    let actions = policy.on(failed(3));
    assert!(!actions.contains(&start(4)[0]), "{actions:?}");

    let mut policy = on_probation();
    policy.asked(OperatorRequest::Reload);
    let actions = policy.due(Timer::Probation);
    assert_eq!(actions[actions.len() - 2..], start(3));
}

#[test]
fn what_the_other_generation_is_in_the_middle_of_ends_at_the_switch() {
    let mut policy = Harness::serving(5);
    for worker in [1, 2, 3] {
        policy.worker(worker, CALLED);
    }
    // Slot 0 is ready, 1 boots, 2 is requested, 3 backs off, 4 has a predecessor and a successor that boots.
    policy.worker(5, Born);
    policy.worker(7, ForkRefused);
    policy.worker(4, Leaving);
    policy.asked(OperatorRequest::Reload);
    policy.on(next_ready(1));
    policy.boots(9);
    let switched = [
        vec![Action::Switch { generation: 2 }, Action::Open(9)],
        leave(0).to_vec(),
        vec![Action::Disarm(Timer::Boot(5)), Action::Kill(5), Action::Disarm(Timer::Boot(6))],
        vec![Action::Disarm(Timer::Refill(3)), Action::Disarm(Timer::Boot(8))],
        leave(4).to_vec(),
        vec![kill_template(1)],
    ];
    assert_eq!(policy.due(Timer::Probation), switched.concat());
    assert_eq!(policy.worker(6, Born), [Action::Kill(6)]);
    assert_eq!(policy.template_ended(1), [Action::Abandon(8)]);
    for worker in [0, 4, 5, 6] {
        policy.worker(worker, UNCALLED);
    }
    assert!(policy.departing().is_empty());
}

#[test]
fn what_workers_on_probation_wish_is_granted_when_they_serve() {
    for wish in [Leaving, Wedged, Retiring] {
        let mut policy = on_probation();
        assert_eq!(policy.worker(1, wish), []);
        policy.due(Timer::Probation);
        assert_eq!(policy.phases(), [SlotPhase::Requested(3), SlotPhase::Ready(2)]);
        assert_eq!(policy.predecessors(), [Some(1), None]);
    }
}

#[test]
fn the_new_settings_hold_from_the_switch_on() {
    let mut policy = Harness::serving(1);
    policy.asked(OperatorRequest::OneMore);
    policy.boots(1);
    policy.asked(OperatorRequest::Reload);
    let slower = Settings { drain: DRAIN * 2, ..settings(1) };
    policy.on(Event::TemplateReady { generation: 2, settings: slower });
    policy.boots(2);
    let actions = policy.due(Timer::Probation);
    assert!(actions.contains(&leave(0)[1]), "what drains has the time it was started with: {actions:?}");
    assert_eq!(policy.phases(), [SlotPhase::Ready(2)], "the one more is gone");
    assert!(policy.asked(OperatorRequest::Stop).contains(&Action::Arm(Timer::DrainAll, DRAIN * 2)));
}

#[test]
fn a_stop_gives_a_reload_up() {
    for request in [OperatorRequest::Stop, OperatorRequest::StopOrEnd, OperatorRequest::End] {
        let mut policy = on_probation();
        policy.asked(OperatorRequest::Reload);
        let actions = policy.asked(request);
        assert!(why_it_failed(&actions).contains("the service"), "{actions:?}");
        for worker in 0..3 {
            policy.worker(worker, UNCALLED);
        }
        policy.template_ended(2);
        assert_eq!(policy.template_ended(1), [Action::Finish { code: 0 }]);
        assert_eq!(policy.asked(OperatorRequest::Reload), []);
    }
}

#[test]
fn a_template_of_the_serving_generation_that_dies_meanwhile_is_started_again() {
    let mut policy = reloading();
    policy.on(next_ready(1));
    assert_eq!(policy.template_ended(1), start(1));
    policy.boots(1);
    let actions = policy.due(Timer::Probation);
    assert_eq!(actions[actions.len() - 2..], [Action::Disarm(Timer::TemplateBoot(1)), kill_template(1)]);
    assert_eq!(policy.worker(1, Ready), []);
    assert_eq!(policy.template_ready(1), [], "it crossed with the kill");
    assert_eq!(policy.template_ended(1), []);
}
