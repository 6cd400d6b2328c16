//! How workers are replaced: who goes on until when, who is killed, who has to wait for its turn.

use super::super::generation::SlotPhase;
use super::super::known::DepartureStage;
use super::super::{Action, Event, OperatorRequest, Timer, WorkerEvent};
use super::{CALLED, Harness, UNCALLED, all, fork, kill_template, leave};

use WorkerEvent::{Leaving, OnlyStuckThreadsLeft, Retiring, Wedged};

#[test]
fn who_is_replaced_leaves_when_its_successor_is_ready() {
    for why in [Leaving, Wedged, Retiring] {
        let mut policy = Harness::serving(2);
        assert_eq!(policy.worker(1, why.clone()), fork(2, 1), "{why:?}");
        assert_eq!(policy.predecessors(), [None, Some(1)]);
        assert_eq!(policy.worker(2, WorkerEvent::Born), []);
        let left = policy.worker(2, WorkerEvent::Ready);
        assert_eq!(left[1..], leave(1), "{why:?}");
        assert_eq!(policy.phases(), [SlotPhase::Ready(0), SlotPhase::Ready(2)]);
        assert_eq!(policy.worker(1, CALLED), [Action::Disarm(Timer::Depart(1))]);
    }
}

#[test]
fn a_successor_that_does_not_get_ready_is_tried_again_while_the_other_goes_on() {
    let mut policy = Harness::serving(1);
    policy.worker(0, Wedged);
    for successor in 1..4 {
        policy.worker(successor, WorkerEvent::Born);
        policy.worker(successor, UNCALLED);
        assert_eq!((policy.phases(), policy.predecessors()), (vec![SlotPhase::BackingOff], vec![Some(0)]));
        assert_eq!(policy.due(Timer::Refill(0)), fork(successor + 1, 0));
    }
    assert_eq!(policy.boots(4)[1..], leave(0));
}

/// It may be wedged, and would give them away again as soon as its successor is ready.
#[test]
fn who_is_about_to_be_replaced_is_given_connections_where_there_is_nobody_else() {
    let mut policy = Harness::serving(2);
    assert_eq!(policy.state.adopters(), [0, 1]);
    policy.worker(0, Wedged);
    assert_eq!(policy.state.adopters(), [1]);
    policy.worker(1, Leaving);
    assert_eq!(policy.state.adopters(), [0, 1]);
    policy.boots(3);
    assert_eq!(policy.state.adopters(), [3]);
    policy.asked(OperatorRequest::Stop);
    assert_eq!(policy.state.adopters(), [0, 1, 3], "all of them drain");
}

#[test]
fn a_worker_that_dies_while_its_successor_boots_leaves_it_the_slot() {
    let mut policy = Harness::serving(1);
    policy.worker(0, Wedged);
    assert_eq!(policy.worker(0, UNCALLED), []);
    assert_eq!(policy.predecessors(), [None]);
    assert_eq!(policy.boots(1), [Action::Disarm(Timer::Boot(1))]);
    assert_eq!(policy.phases(), [SlotPhase::Ready(1)]);
}

#[test]
fn whatever_a_predecessor_says_it_is_told_to_leave_once() {
    for event in all() {
        let mut policy = Harness::serving(1);
        policy.worker(0, Leaving);
        let ends = matches!(event, Event::Worker(_, WorkerEvent::Ended { .. }));
        assert_eq!(policy.on(event.clone()), [], "{event:?}");
        assert_eq!(policy.predecessors(), [(!ends).then_some(0)], "{event:?}");
    }
}

#[test]
fn a_wedged_worker_is_killed_when_only_stuck_calls_are_left_or_its_time_is_up() {
    for end in [Event::Worker(0, OnlyStuckThreadsLeft), Event::Due(Timer::Depart(0))] {
        let mut policy = Harness::serving(1);
        policy.worker(0, Wedged);
        assert_eq!(policy.worker(0, OnlyStuckThreadsLeft), [], "its connections have nowhere to go yet");
        policy.boots(1);
        assert_eq!(policy.on(end).last(), Some(&Action::Kill(0)));
    }
}

#[test]
fn no_more_workers_are_wedged_than_there_are_slots() {
    let mut policy = Harness::serving(2);
    policy.worker(1, Wedged);
    policy.worker(0, Wedged);
    policy.boots(2);
    policy.boots(3);
    assert_eq!(policy.departing(), [(0, DepartureStage::Leaving), (1, DepartureStage::Leaving)]);
    let actions = policy.worker(2, Wedged);
    assert_eq!(actions[..2], [Action::Disarm(Timer::Depart(1)), Action::Kill(1)], "it was the first");
    assert_eq!(actions[2..], fork(4, 1));
    policy.worker(3, Wedged);
    assert_eq!(policy.departing(), [(0, DepartureStage::Killed), (1, DepartureStage::Killed)]);
    assert_eq!(policy.predecessors(), [Some(3), Some(2)], "they serve as well as they can");
}

#[test]
fn workers_retire_one_after_the_other() {
    let mut policy = Harness::serving(3);
    assert_eq!(policy.worker(1, Retiring), fork(3, 1));
    assert_eq!(policy.worker(0, Retiring), []);
    assert_eq!(policy.worker(2, Retiring), []);
    policy.boots(3);
    assert_eq!(
        policy.phases(),
        [SlotPhase::Ready(0), SlotPhase::Ready(3), SlotPhase::Ready(2)],
        "one leaves"
    );
    assert_eq!(policy.worker(1, CALLED)[1..], fork(4, 0));
    policy.boots(4);
    assert_eq!(policy.worker(0, CALLED)[1..], fork(5, 2));
}

#[test]
fn one_that_waits_to_retire_and_is_wedged_or_signalled_does_not_wait() {
    for why in [Leaving, Wedged] {
        let mut policy = Harness::serving(2);
        policy.worker(0, Retiring);
        policy.worker(1, Retiring);
        assert_eq!(policy.worker(1, why), fork(3, 1));
    }
}

#[test]
fn one_that_waits_to_retire_and_dies_leaves_no_wish_behind() {
    let mut policy = Harness::serving(2);
    policy.worker(0, Retiring);
    policy.worker(1, Retiring);
    assert_eq!(policy.worker(1, CALLED), fork(3, 1));
    policy.boots(3);
    policy.boots(2);
    assert_eq!(policy.worker(0, CALLED), [Action::Disarm(Timer::Depart(0))]);
    assert_eq!(policy.phases(), [SlotPhase::Ready(2), SlotPhase::Ready(3)]);
}

#[test]
fn a_stop_drains_those_who_leave_and_those_who_were_to_follow_are_killed() {
    let mut policy = Harness::serving(2);
    policy.worker(0, Leaving);
    policy.boots(2);
    policy.worker(1, Wedged);
    policy.worker(3, WorkerEvent::Born);
    let actions = policy.asked(OperatorRequest::Stop);
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
