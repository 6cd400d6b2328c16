//! Courses of events: how failing, stopping and scaling go, from the first event to the last.

use std::time::Duration;

use super::super::generation::SlotPhase;
use super::super::generation::TemplatePhase;
use super::super::known::DepartureStage;
use super::super::{Action, Event, OperatorRequest, Settings, Timer, WorkerEvent, WorkerId};
use super::{
    CALLED, DRAIN, Harness, PRE_STOP, UNCALLED, failed, fork, kill_template, leave, refused, settings,
};

#[test]
fn a_first_template_that_says_why_it_fails_ends_the_service_and_one_that_dies_is_tried_again() {
    let mut policy = Harness::new(settings(2));
    let actions = policy.on(failed(1));
    assert!(actions.contains(&kill_template(1)), "its exit may hang: {actions:?}");
    assert_eq!(policy.template_ended(1), [Action::Finish { code: 1 }]);

    let mut policy = Harness::new(settings(2));
    policy.template_ended(1);
    assert_eq!(policy.state.serving.template, TemplatePhase::Waiting);
}

#[test]
fn a_template_that_dies_with_a_request_is_asked_again_without_a_wait_for_the_lost_worker() {
    let mut policy = Harness::serving(2);
    policy.worker(1, CALLED);
    assert_eq!(policy.phases(), [SlotPhase::Ready(0), SlotPhase::Requested(2)]);
    let actions = policy.template_ended(1);
    assert_eq!(actions[..2], [Action::Abandon(2), Action::Disarm(Timer::Boot(2))]);
    assert_eq!(policy.worker(2, WorkerEvent::Born), [], "too late");
    assert_eq!(policy.template_ready(1)[1..], fork(3, 1));
}

#[test]
fn a_worker_that_is_never_born_is_not_waited_for_again_once_its_template_is_replaced() {
    let mut policy = Harness::serving(1);
    policy.worker(0, CALLED);
    policy.template_ended(1);
    policy.template_ready(1);
    assert_eq!(policy.due(Timer::Boot(1)), [], "the new template has nothing to do with it");
}

#[test]
fn more_boot_failures_than_max_restarts_drain_the_service_and_end_it_with_1() {
    let mut policy = Harness::serving(2);
    policy.worker(1, CALLED);
    for worker in 2..5 {
        policy.worker(worker, WorkerEvent::Born);
        policy.worker(worker, UNCALLED);
        policy.now += Duration::from_secs(61);
        policy.due(Timer::Refill(1));
    }
    policy.worker(5, WorkerEvent::Born);
    let actions = policy.worker(5, UNCALLED);
    let drained =
        [Action::CloseListeners, Action::Arm(Timer::DrainAll, DRAIN), Action::Drain(0), kill_template(1)];
    assert_eq!(actions[1..], drained);
    assert_eq!(policy.asked(OperatorRequest::Stop), [], "it drains already");
    assert_eq!(policy.worker(0, CALLED), []);
    assert_eq!(policy.template_ended(1), [Action::Finish { code: 1 }]);
}

#[test]
fn refused_forks_never_end_the_service() {
    let mut policy = Harness::serving(1);
    policy.worker(0, CALLED);
    for worker in 1..50 {
        policy.worker(worker, WorkerEvent::ForkRefused);
        assert_eq!(policy.phases(), [SlotPhase::BackingOff]);
        policy.due(Timer::Refill(0));
    }
    assert!(policy.state.is_serving());
}

#[test]
fn a_stop_drains_what_serves_kills_what_boots_and_waits_for_what_was_requested() {
    let mut policy = Harness::serving(4);
    for worker in [1, 2, 3] {
        policy.worker(worker, CALLED);
    }
    // Slot 0 is ready, 1 boots, 2 is requested, 3 backs off.
    policy.worker(4, WorkerEvent::Born);
    policy.worker(6, WorkerEvent::ForkRefused);
    let stopped = [
        Action::CloseListeners,
        Action::Arm(Timer::DrainAll, DRAIN),
        Action::Drain(0),
        Action::Disarm(Timer::Boot(4)),
        Action::Kill(4),
        Action::Disarm(Timer::Boot(5)),
        Action::Disarm(Timer::Refill(3)),
        kill_template(1),
    ];
    assert_eq!(policy.asked(OperatorRequest::Stop), stopped);
    assert_eq!(policy.worker(5, WorkerEvent::Born), [Action::Kill(5)]);
    assert_eq!(policy.template_ended(1), []);
    assert_eq!(policy.worker(5, UNCALLED), []);
    assert_eq!(policy.worker(4, UNCALLED), []);
    assert_eq!(policy.worker(0, CALLED), [Action::Finish { code: 0 }]);
    assert_eq!(policy.asked(OperatorRequest::End), [], "nothing follows the end");
}

#[test]
fn what_has_not_drained_in_time_is_killed() {
    let mut policy = Harness::serving(1);
    policy.asked(OperatorRequest::Stop);
    policy.template_ended(1);
    assert_eq!(policy.due(Timer::DrainAll), [Action::Kill(0)]);
    assert_eq!(policy.worker(0, UNCALLED), [Action::Finish { code: 0 }]);
}

#[test]
fn a_second_interrupt_ends_at_once_a_second_stop_does_not() {
    let mut policy = Harness::serving(1);
    policy.asked(OperatorRequest::StopOrEnd);
    assert_eq!(policy.asked(OperatorRequest::Stop), []);
    assert_eq!(policy.asked(OperatorRequest::StopOrEnd), [Action::Disarm(Timer::DrainAll), Action::Kill(0)]);
}

#[test]
fn an_end_while_the_template_boots_waits_for_it_alone() {
    let mut policy = Harness::new(settings(2));
    let ended = [
        Action::CloseListeners,
        Action::Disarm(Timer::NeverReady),
        Action::Disarm(Timer::TemplateBoot(1)),
        kill_template(1),
    ];
    assert_eq!(policy.asked(OperatorRequest::End), ended);
    assert_eq!(policy.template_ready(1), [], "it crossed with the kill");
    assert_eq!(policy.template_ended(1), [Action::Finish { code: 0 }]);
}

#[test]
fn a_stop_between_two_templates_is_over_at_once() {
    let mut policy = Harness::new(settings(2));
    policy.on(refused(1));
    let actions = policy.asked(OperatorRequest::Stop);
    let last = [Action::Disarm(Timer::TemplateRetry), Action::Finish { code: 0 }];
    assert_eq!(actions[actions.len() - 2..], last);
}

#[test]
fn pre_stop_keeps_serving_until_its_time_is_over() {
    let mut policy = Harness::new(Settings { pre_stop: PRE_STOP, ..settings(1) });
    policy.template_ready(1);
    policy.boots(0);
    assert_eq!(
        policy.asked(OperatorRequest::Stop),
        [Action::Arm(Timer::PreStop, PRE_STOP), Action::MarkNotReady(0)]
    );
    assert_eq!(policy.asked(OperatorRequest::Stop), []);
    assert_eq!(policy.worker(0, CALLED), fork(1, 0), "it still serves");
    policy.worker(1, WorkerEvent::Born);
    assert!(
        policy.worker(1, WorkerEvent::Ready).contains(&Action::MarkNotReady(1)),
        "and who comes later knows too"
    );
    let actions = policy.due(Timer::PreStop);
    assert_eq!(actions[..2], [Action::CloseListeners, Action::Arm(Timer::DrainAll, DRAIN)]);
}

#[test]
fn one_worker_fewer_takes_the_last_slot_and_the_last_worker_stays() {
    let mut policy = Harness::serving(2);
    assert_eq!(policy.asked(OperatorRequest::OneFewer), leave(1));
    assert_eq!(policy.phases(), [SlotPhase::Ready(0)], "the slot is gone");
    assert_eq!(policy.asked(OperatorRequest::OneFewer), []);
    assert_eq!(policy.worker(1, CALLED), [Action::Disarm(Timer::Depart(1))]);
}

#[test]
fn one_fewer_while_a_slot_backs_off_takes_its_timer_with_it() {
    let mut policy = Harness::serving(2);
    policy.worker(1, CALLED);
    policy.worker(2, WorkerEvent::ForkRefused);
    assert_eq!(policy.asked(OperatorRequest::OneFewer), [Action::Disarm(Timer::Refill(1))]);
    assert_eq!(policy.phases(), [SlotPhase::Ready(0)]);
    assert_eq!(policy.due(Timer::Refill(1)), []);
}

#[test]
fn one_more_while_the_worker_of_the_slot_leaves_fills_it_at_once() {
    let mut policy = Harness::serving(2);
    policy.asked(OperatorRequest::OneFewer);
    assert_eq!(policy.asked(OperatorRequest::OneMore), fork(2, 1));
    assert_eq!(policy.departing(), [(1, DepartureStage::Leaving)]);
}

#[test]
fn one_fewer_before_the_process_is_born_kills_it_at_birth() {
    let mut policy = Harness::serving(1);
    assert_eq!(policy.asked(OperatorRequest::OneMore), fork(1, 1));
    assert_eq!(policy.asked(OperatorRequest::OneFewer), [Action::Disarm(Timer::Boot(1))]);
    assert_eq!(policy.worker(1, WorkerEvent::Born), [Action::Kill(1)]);
    assert_eq!(policy.worker(1, UNCALLED), []);
    assert_eq!(policy.phases(), [SlotPhase::Ready(0)]);
}

#[test]
fn the_only_worker_that_is_ready_stays_until_another_one_is_when_its_slot_is_taken_away() {
    let mut policy = Harness::serving(2);
    policy.worker(0, CALLED);
    assert_eq!(policy.asked(OperatorRequest::OneFewer), []);
    assert_eq!((policy.phases(), policy.predecessors()), (vec![SlotPhase::Requested(2)], vec![Some(1)]));
    policy.worker(2, WorkerEvent::Born);
    let left = policy.worker(2, WorkerEvent::Ready);
    assert_eq!(left[1..], leave(1));
}

#[test]
fn a_worker_that_stands_in_for_another_slot_comes_home_when_its_own_is_back() {
    let mut policy = Harness::serving(2);
    policy.worker(0, CALLED);
    policy.asked(OperatorRequest::OneFewer);
    assert_eq!(policy.asked(OperatorRequest::OneMore), [], "two open workers in slot 1 must never be");
    assert_eq!(policy.phases(), [SlotPhase::Requested(2), SlotPhase::Ready(1)]);
    assert_eq!(policy.predecessors(), [None, None]);
}

#[test]
fn operators_can_ask_for_1024_workers_and_no_more() {
    let mut policy = Harness::new(settings(1_023));
    policy.asked(OperatorRequest::OneMore);
    assert_eq!(policy.state.serving.slots.len(), 1_024);
    assert!(matches!(
        &policy.state.on(Event::Asked(OperatorRequest::OneMore), policy.now)[..],
        [Action::Warn(_)]
    ));
    assert_eq!(policy.state.serving.slots.len(), 1_024);
}

#[test]
fn numbers_that_come_round_again_never_meet_a_living_worker() {
    let mut policy = Harness::serving(2);
    policy.state.next_worker = WorkerId::MAX;
    assert_eq!(policy.worker(1, CALLED), fork(WorkerId::MAX, 1));
    assert_eq!(policy.worker(WorkerId::MAX, WorkerEvent::ForkRefused).len(), 2);
    assert_eq!(policy.due(Timer::Refill(1)), fork(1, 1), "0 still lives");
}
