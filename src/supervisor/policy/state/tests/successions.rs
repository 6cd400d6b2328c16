//! How workers are replaced: who goes on until when, who is killed, who has to wait for its turn.

use super::super::generation::Phase;
use super::super::succession::Stage;
use super::super::{Action, Event, Request, Timer, WorkerEvent};
use super::{Brain, CALLED, UNCALLED, all, fork, kill_template, leave};

use WorkerEvent::{Leaving, OnlyStuckLeft, Retiring, Wedged};

#[test]
fn who_is_replaced_leaves_when_its_successor_is_ready() {
    for why in [Leaving, Wedged, Retiring] {
        let mut brain = Brain::serving(2);
        assert_eq!(brain.worker(1, why.clone()), fork(2, 1), "{why:?}");
        assert_eq!(brain.predecessors(), [None, Some(1)]);
        assert_eq!(brain.worker(2, WorkerEvent::Born), []);
        let left = brain.worker(2, WorkerEvent::Ready);
        assert_eq!(left[1..], leave(1), "{why:?}");
        assert_eq!(brain.phases(), [Phase::Ready(0), Phase::Ready(2)]);
        assert_eq!(brain.worker(1, CALLED), [Action::Disarm(Timer::Depart(1))]);
    }
}

#[test]
fn a_successor_that_does_not_get_ready_is_tried_again_while_the_other_goes_on() {
    let mut brain = Brain::serving(1);
    brain.worker(0, Wedged);
    for successor in 1..4 {
        brain.worker(successor, WorkerEvent::Born);
        brain.worker(successor, UNCALLED);
        assert_eq!((brain.phases(), brain.predecessors()), (vec![Phase::BackingOff], vec![Some(0)]));
        assert_eq!(brain.due(Timer::Refill(0)), fork(successor + 1, 0));
    }
    assert_eq!(brain.boots(4)[1..], leave(0));
}

/// It may be wedged, and would give them away again as soon as its successor is ready.
#[test]
fn who_is_about_to_be_replaced_is_given_connections_where_there_is_nobody_else() {
    let mut brain = Brain::serving(2);
    assert_eq!(brain.state.adopters(), [0, 1]);
    brain.worker(0, Wedged);
    assert_eq!(brain.state.adopters(), [1]);
    brain.worker(1, Leaving);
    assert_eq!(brain.state.adopters(), [0, 1]);
    brain.boots(3);
    assert_eq!(brain.state.adopters(), [3]);
    brain.asked(Request::Stop);
    assert_eq!(brain.state.adopters(), [0, 1, 3], "all of them drain");
}

#[test]
fn a_worker_that_dies_while_its_successor_boots_leaves_it_the_slot() {
    let mut brain = Brain::serving(1);
    brain.worker(0, Wedged);
    assert_eq!(brain.worker(0, UNCALLED), []);
    assert_eq!(brain.predecessors(), [None]);
    assert_eq!(brain.boots(1), [Action::Disarm(Timer::Boot(1))]);
    assert_eq!(brain.phases(), [Phase::Ready(1)]);
}

#[test]
fn whatever_a_predecessor_says_it_is_told_to_leave_once() {
    for event in all() {
        let mut brain = Brain::serving(1);
        brain.worker(0, Leaving);
        let ends = matches!(event, Event::Worker(_, WorkerEvent::Ended { .. }));
        assert_eq!(brain.on(event.clone()), [], "{event:?}");
        assert_eq!(brain.predecessors(), [(!ends).then_some(0)], "{event:?}");
    }
}

#[test]
fn a_wedged_worker_is_killed_when_only_stuck_calls_are_left_or_its_time_is_up() {
    for end in [Event::Worker(0, OnlyStuckLeft), Event::Due(Timer::Depart(0))] {
        let mut brain = Brain::serving(1);
        brain.worker(0, Wedged);
        assert_eq!(brain.worker(0, OnlyStuckLeft), [], "its connections have nowhere to go yet");
        brain.boots(1);
        assert_eq!(brain.on(end).last(), Some(&Action::Kill(0)));
    }
}

#[test]
fn no_more_workers_are_wedged_than_there_are_slots() {
    let mut brain = Brain::serving(2);
    brain.worker(1, Wedged);
    brain.worker(0, Wedged);
    brain.boots(2);
    brain.boots(3);
    assert_eq!(brain.departing(), [(0, Stage::Leaving), (1, Stage::Leaving)]);
    let actions = brain.worker(2, Wedged);
    assert_eq!(actions[..2], [Action::Disarm(Timer::Depart(1)), Action::Kill(1)], "it was the first");
    assert_eq!(actions[2..], fork(4, 1));
    brain.worker(3, Wedged);
    assert_eq!(brain.departing(), [(0, Stage::Killed), (1, Stage::Killed)]);
    assert_eq!(brain.predecessors(), [Some(3), Some(2)], "they serve as well as they can");
}

#[test]
fn workers_retire_one_after_the_other() {
    let mut brain = Brain::serving(3);
    assert_eq!(brain.worker(1, Retiring), fork(3, 1));
    assert_eq!(brain.worker(0, Retiring), []);
    assert_eq!(brain.worker(2, Retiring), []);
    brain.boots(3);
    assert_eq!(brain.phases(), [Phase::Ready(0), Phase::Ready(3), Phase::Ready(2)], "one leaves");
    assert_eq!(brain.worker(1, CALLED)[1..], fork(4, 0));
    brain.boots(4);
    assert_eq!(brain.worker(0, CALLED)[1..], fork(5, 2));
}

#[test]
fn one_that_waits_to_retire_and_is_wedged_or_signalled_does_not_wait() {
    for why in [Leaving, Wedged] {
        let mut brain = Brain::serving(2);
        brain.worker(0, Retiring);
        brain.worker(1, Retiring);
        assert_eq!(brain.worker(1, why), fork(3, 1));
    }
}

#[test]
fn one_that_waits_to_retire_and_dies_leaves_no_wish_behind() {
    let mut brain = Brain::serving(2);
    brain.worker(0, Retiring);
    brain.worker(1, Retiring);
    assert_eq!(brain.worker(1, CALLED), fork(3, 1));
    brain.boots(3);
    brain.boots(2);
    assert_eq!(brain.worker(0, CALLED), [Action::Disarm(Timer::Depart(0))]);
    assert_eq!(brain.phases(), [Phase::Ready(2), Phase::Ready(3)]);
}

#[test]
fn a_stop_drains_those_who_leave_and_those_who_were_to_follow_are_killed() {
    let mut brain = Brain::serving(2);
    brain.worker(0, Leaving);
    brain.boots(2);
    brain.worker(1, Wedged);
    brain.worker(3, WorkerEvent::Born);
    let actions = brain.asked(Request::Stop);
    let rest = [
        Action::Disarm(Timer::Depart(0)),
        Action::Drain(0),
        Action::Drain(2),
        Action::Disarm(Timer::Boot(3)),
        Action::Drain(1),
        Action::Kill(3),
        kill_template(1),
    ];
    assert_eq!(actions[2..], rest);
}
