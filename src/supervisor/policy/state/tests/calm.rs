//! When nothing is under way, and that a brain which goes on from there is the one that was left.

use super::super::generation::Phase;
use super::super::{Action, Event, Request, Settings, State, Timer, WorkerEvent};
use super::{Brain, CALLED, UNCALLED, failed, fork, leave, settings};

use WorkerEvent::{Born, Leaving, Retiring, Wedged};

/// Slot 1 waits until its time has come; the numbers up to 9 are given.
fn wait(brain: &mut Brain) {
    brain.worker(1, CALLED);
    brain.state.next_worker = 9;
    let Phase::Requested(next) = brain.phases()[1] else { panic!("{:?}", brain.phases()) };
    brain.worker(next, Born);
    brain.worker(next, UNCALLED);
}

type Row = (&'static str, fn(&mut Brain), bool);

#[test]
fn it_is_calm_when_nobody_comes_or_leaves() {
    let rows: [Row; 12] = [
        ("all serve", |_| {}, true),
        ("one is requested", |brain| drop(brain.worker(1, CALLED)), false),
        (
            "one boots",
            |brain| {
                brain.worker(1, CALLED);
                brain.worker(2, Born);
            },
            false,
        ),
        ("one waits for its time", wait, true),
        ("one is signalled", |brain| drop(brain.worker(1, Leaving)), false),
        ("one is wedged", |brain| drop(brain.worker(1, Wedged)), false),
        ("one retires", |brain| drop(brain.worker(1, Retiring)), false),
        ("one leaves", |brain| drop(brain.asked(Request::OneFewer)), false),
        ("a reload", |brain| drop(brain.asked(Request::Reload)), false),
        (
            "a failed reload whose template has not ended",
            |brain| {
                brain.asked(Request::Reload);
                brain.on(failed(2));
            },
            false,
        ),
        ("no template", |brain| drop(brain.template_ended(1)), false),
        ("a stop", |brain| drop(brain.asked(Request::Stop)), false),
    ];
    for (name, way, calm) in rows {
        let mut brain = Brain::serving(2);
        way(&mut brain);
        assert_eq!(brain.state.calm().is_some(), calm, "{name}");
    }
}

#[test]
fn a_brain_that_goes_on_fills_what_waited_and_does_what_the_other_would_have_done() {
    let mut before = Brain::serving(3);
    wait(&mut before);
    let calm = before.state.calm().expect("calm");
    let text = serde_json::to_string(&calm).expect("JSON");
    let calm = serde_json::from_str(&text).expect("the same");
    let slower = Settings { pre_stop: std::time::Duration::ZERO, ..settings(7) };
    let (state, actions) = State::go_on(calm, slower);
    let mut brain = Brain { state, now: before.now, armed: std::collections::BTreeSet::new() };
    assert_eq!(brain.follow(actions), fork(9, 1));
    assert_eq!(brain.phases(), [Phase::Ready(0), Phase::Requested(9), Phase::Ready(2)], "not seven");
    assert!(!brain.armed.contains(&Timer::NeverReady), "it has served");
    assert_eq!(brain.worker(2, UNCALLED), fork(10, 2), "how long it was ready is not known");
    brain.boots(10);
    brain.boots(9);
    assert_eq!(brain.asked(Request::OneFewer), leave(10));
    assert_eq!(brain.asked(Request::Reload)[0], Action::StartTemplate { generation: 2 });
    assert_eq!(brain.on(Event::Due(Timer::TemplateRetry)), [], "its template lives");
}
