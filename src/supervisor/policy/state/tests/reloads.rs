//! Reloads: the way to the switch, every way to fail before it, and what is as it was after that.

use super::super::generation::Phase;
use super::super::succession::Stage;
use super::super::{Action, Event, Request, Settings, Timer, WorkerEvent, WorkerId};
use super::{
    BOOT, Brain, CALLED, DRAIN, UNCALLED, ended, failed, fork, kill_template, leave, refused, settings,
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
fn reloading() -> Brain {
    let mut brain = Brain::serving(1);
    assert_eq!(brain.asked(Request::Reload), start(2));
    brain
}

/// Both workers of the next generation, 1 and 2, are on probation.
fn on_probation() -> Brain {
    let mut brain = reloading();
    brain.on(next_ready(2));
    brain.boots(1);
    brain.boots(2);
    assert!(brain.armed.contains(&Timer::Probation));
    brain
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
    let mut brain = reloading();
    let forked = brain.on(next_ready(2));
    assert_eq!(forked[0], Action::Disarm(Timer::TemplateBoot(2)));
    assert_eq!(forked[1..], [fork_shut(1, 0), fork_shut(2, 1)].concat());
    assert_eq!(brain.boots(1), [Action::Disarm(Timer::Boot(1))]);
    assert_eq!(brain.phases(), [Phase::Ready(0)], "the other one serves");
    brain.boots(2);
    let switched = [
        vec![Action::Switch { generation: 2 }, Action::Open(1), Action::Open(2)],
        leave(0).to_vec(),
        vec![kill_template(1)],
    ];
    assert_eq!(brain.due(Timer::Probation), switched.concat());
    assert_eq!(brain.phases(), [Phase::Ready(1), Phase::Ready(2)]);
    assert_eq!(brain.departing(), [(0, Stage::Leaving)]);
    assert_eq!(brain.template_ended(1), []);
    assert_eq!(brain.worker(0, CALLED), [Action::Disarm(Timer::Depart(0))]);
    assert!(brain.state.ending.is_empty() && brain.armed.is_empty());
}

#[test]
fn each_way_to_fail_kills_the_next_generation_and_leaves_the_other_as_it_was() {
    type Failure = (&'static str, fn() -> Brain, Event, &'static str, Vec<WorkerId>, bool);
    let booting = || {
        let mut brain = reloading();
        brain.on(next_ready(2));
        brain.worker(1, Born);
        brain
    };
    let of = Event::Worker;
    let failures: [Failure; 12] = [
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
        let mut brain = way();
        let actions = brain.on(event);
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
        assert!(brain.armed.is_empty(), "{name}: {:?}", brain.armed);
        assert_eq!(brain.phases(), [Phase::Ready(0)], "{name}");
        brain.template_ended(2);
        for worker in killed {
            brain.worker(worker, UNCALLED);
        }
        assert!(brain.state.ending.is_empty() && brain.departing().is_empty(), "{name}");
        assert_eq!(brain.worker(0, CALLED), fork(3, 0).map(renumber_if_no_worker_was(name)), "{name}");
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
    let mut brain = reloading();
    for _ in 0..3 {
        assert_eq!(brain.asked(Request::Reload), []);
    }
    let actions = brain.on(failed(2));
    assert_eq!(actions[actions.len() - 2..], start(3));
    let actions = brain.on(failed(3));
    assert!(!actions.contains(&start(4)[0]), "{actions:?}");

    let mut brain = on_probation();
    brain.asked(Request::Reload);
    let actions = brain.due(Timer::Probation);
    assert_eq!(actions[actions.len() - 2..], start(3));
}

#[test]
fn what_the_other_generation_is_in_the_middle_of_ends_at_the_switch() {
    let mut brain = Brain::serving(5);
    for worker in [1, 2, 3] {
        brain.worker(worker, CALLED);
    }
    // Slot 0 is ready, 1 boots, 2 is requested, 3 backs off, 4 has a predecessor and a successor that boots.
    brain.worker(5, Born);
    brain.worker(7, ForkRefused);
    brain.worker(4, Leaving);
    brain.asked(Request::Reload);
    brain.on(next_ready(1));
    brain.boots(9);
    let switched = [
        vec![Action::Switch { generation: 2 }, Action::Open(9)],
        leave(0).to_vec(),
        vec![Action::Disarm(Timer::Boot(5)), Action::Kill(5), Action::Disarm(Timer::Boot(6))],
        vec![Action::Disarm(Timer::Refill(3)), Action::Disarm(Timer::Boot(8))],
        leave(4).to_vec(),
        vec![kill_template(1)],
    ];
    assert_eq!(brain.due(Timer::Probation), switched.concat());
    assert_eq!(brain.worker(6, Born), [Action::Kill(6)]);
    assert_eq!(brain.template_ended(1), [Action::Abandon(8)]);
    for worker in [0, 4, 5, 6] {
        brain.worker(worker, UNCALLED);
    }
    assert!(brain.departing().is_empty());
}

#[test]
fn what_workers_on_probation_wish_is_granted_when_they_serve() {
    for wish in [Leaving, Wedged, Retiring] {
        let mut brain = on_probation();
        assert_eq!(brain.worker(1, wish), []);
        brain.due(Timer::Probation);
        assert_eq!(brain.phases(), [Phase::Requested(3), Phase::Ready(2)]);
        assert_eq!(brain.predecessors(), [Some(1), None]);
    }
}

#[test]
fn the_new_settings_hold_from_the_switch_on() {
    let mut brain = Brain::serving(1);
    brain.asked(Request::OneMore);
    brain.boots(1);
    brain.asked(Request::Reload);
    let slower = Settings { drain: DRAIN * 2, ..settings(1) };
    brain.on(Event::TemplateReady { generation: 2, settings: slower });
    brain.boots(2);
    let actions = brain.due(Timer::Probation);
    assert!(actions.contains(&leave(0)[1]), "what drains has the time it was started with: {actions:?}");
    assert_eq!(brain.phases(), [Phase::Ready(2)], "the one more is gone");
    assert!(brain.asked(Request::Stop).contains(&Action::Arm(Timer::DrainAll, DRAIN * 2)));
}

#[test]
fn a_stop_gives_a_reload_up() {
    for request in [Request::Stop, Request::StopOrEnd, Request::End] {
        let mut brain = on_probation();
        brain.asked(Request::Reload);
        let actions = brain.asked(request);
        assert!(why_it_failed(&actions).contains("the service"), "{actions:?}");
        for worker in 0..3 {
            brain.worker(worker, UNCALLED);
        }
        brain.template_ended(2);
        assert_eq!(brain.template_ended(1), [Action::Finish { code: 0 }]);
        assert_eq!(brain.asked(Request::Reload), []);
    }
}

#[test]
fn a_template_of_the_serving_generation_that_dies_meanwhile_is_started_again() {
    let mut brain = reloading();
    brain.on(next_ready(1));
    assert_eq!(brain.template_ended(1), start(1));
    brain.boots(1);
    let actions = brain.due(Timer::Probation);
    assert_eq!(actions[actions.len() - 2..], [Action::Disarm(Timer::TemplateBoot(1)), kill_template(1)]);
    assert_eq!(brain.worker(1, Ready), []);
    assert_eq!(brain.template_ready(1), [], "it crossed with the kill");
    assert_eq!(brain.template_ended(1), []);
}
