//! Courses of events: how failing, stopping and scaling go, from the first event to the last.

use std::time::Duration;

use super::super::generation::Phase;
use super::super::succession::Stage;
use super::super::template::Template;
use super::super::{Action, Event, Request, Settings, Timer, WorkerEvent, WorkerId};
use super::{
    Brain, CALLED, DRAIN, PRE_STOP, UNCALLED, failed, fork, kill_template, leave, refused, settings,
};

#[test]
fn a_first_template_that_says_why_it_fails_ends_the_service_and_one_that_dies_is_tried_again() {
    let mut brain = Brain::new(settings(2));
    let actions = brain.on(failed(1));
    assert!(actions.contains(&kill_template(1)), "its exit may hang: {actions:?}");
    assert_eq!(brain.template_ended(1), [Action::Finish { code: 1 }]);

    let mut brain = Brain::new(settings(2));
    brain.template_ended(1);
    assert_eq!(brain.state.serving.template, Template::Waiting);
}

#[test]
fn a_template_that_dies_with_a_request_is_asked_again_without_a_wait_for_the_lost_worker() {
    let mut brain = Brain::serving(2);
    brain.worker(1, CALLED);
    assert_eq!(brain.phases(), [Phase::Ready(0), Phase::Requested(2)]);
    let actions = brain.template_ended(1);
    assert_eq!(actions[..2], [Action::Abandon(2), Action::Disarm(Timer::Boot(2))]);
    assert_eq!(brain.worker(2, WorkerEvent::Born), [], "too late");
    assert_eq!(brain.template_ready(1)[1..], fork(3, 1));
}

#[test]
fn a_worker_that_is_never_born_is_not_waited_for_again_once_its_template_is_replaced() {
    let mut brain = Brain::serving(1);
    brain.worker(0, CALLED);
    brain.template_ended(1);
    brain.template_ready(1);
    assert_eq!(brain.due(Timer::Boot(1)), [], "the new template has nothing to do with it");
}

#[test]
fn more_boot_failures_than_max_restarts_drain_the_service_and_end_it_with_1() {
    let mut brain = Brain::serving(2);
    brain.worker(1, CALLED);
    for worker in 2..5 {
        brain.worker(worker, WorkerEvent::Born);
        brain.worker(worker, UNCALLED);
        brain.now += Duration::from_secs(61);
        brain.due(Timer::Refill(1));
    }
    brain.worker(5, WorkerEvent::Born);
    let actions = brain.worker(5, UNCALLED);
    let drained =
        [Action::CloseListeners, Action::Arm(Timer::DrainAll, DRAIN), Action::Drain(0), kill_template(1)];
    assert_eq!(actions[1..], drained);
    assert_eq!(brain.asked(Request::Stop), [], "it drains already");
    assert_eq!(brain.worker(0, CALLED), []);
    assert_eq!(brain.template_ended(1), [Action::Finish { code: 1 }]);
}

#[test]
fn refused_forks_never_end_the_service() {
    let mut brain = Brain::serving(1);
    brain.worker(0, CALLED);
    for worker in 1..50 {
        brain.worker(worker, WorkerEvent::ForkRefused);
        assert_eq!(brain.phases(), [Phase::BackingOff]);
        brain.due(Timer::Refill(0));
    }
    assert!(brain.state.is_serving());
}

#[test]
fn a_stop_drains_what_serves_kills_what_boots_and_waits_for_what_was_requested() {
    let mut brain = Brain::serving(4);
    for worker in [1, 2, 3] {
        brain.worker(worker, CALLED);
    }
    // Slot 0 is ready, 1 boots, 2 is requested, 3 backs off.
    brain.worker(4, WorkerEvent::Born);
    brain.worker(6, WorkerEvent::ForkRefused);
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
    assert_eq!(brain.asked(Request::Stop), stopped);
    assert_eq!(brain.worker(5, WorkerEvent::Born), [Action::Kill(5)]);
    assert_eq!(brain.template_ended(1), []);
    assert_eq!(brain.worker(5, UNCALLED), []);
    assert_eq!(brain.worker(4, UNCALLED), []);
    assert_eq!(brain.worker(0, CALLED), [Action::Finish { code: 0 }]);
    assert_eq!(brain.asked(Request::End), [], "nothing follows the end");
}

#[test]
fn what_has_not_drained_in_time_is_killed() {
    let mut brain = Brain::serving(1);
    brain.asked(Request::Stop);
    brain.template_ended(1);
    assert_eq!(brain.due(Timer::DrainAll), [Action::Kill(0)]);
    assert_eq!(brain.worker(0, UNCALLED), [Action::Finish { code: 0 }]);
}

#[test]
fn a_second_interrupt_ends_at_once_a_second_stop_does_not() {
    let mut brain = Brain::serving(1);
    brain.asked(Request::StopOrEnd);
    assert_eq!(brain.asked(Request::Stop), []);
    assert_eq!(brain.asked(Request::StopOrEnd), [Action::Disarm(Timer::DrainAll), Action::Kill(0)]);
}

#[test]
fn an_end_while_the_template_boots_waits_for_it_alone() {
    let mut brain = Brain::new(settings(2));
    let ended = [
        Action::CloseListeners,
        Action::Disarm(Timer::NeverReady),
        Action::Disarm(Timer::TemplateBoot(1)),
        kill_template(1),
    ];
    assert_eq!(brain.asked(Request::End), ended);
    assert_eq!(brain.template_ready(1), [], "it crossed with the kill");
    assert_eq!(brain.template_ended(1), [Action::Finish { code: 0 }]);
}

#[test]
fn a_stop_between_two_templates_is_over_at_once() {
    let mut brain = Brain::new(settings(2));
    brain.on(refused(1));
    let actions = brain.asked(Request::Stop);
    let last = [Action::Disarm(Timer::TemplateRetry), Action::Finish { code: 0 }];
    assert_eq!(actions[actions.len() - 2..], last);
}

#[test]
fn pre_stop_keeps_serving_until_its_time_is_over() {
    let mut brain = Brain::new(Settings { pre_stop: PRE_STOP, ..settings(1) });
    brain.template_ready(1);
    brain.boots(0);
    assert_eq!(brain.asked(Request::Stop), [Action::Arm(Timer::PreStop, PRE_STOP), Action::TurnRed(0)]);
    assert_eq!(brain.asked(Request::Stop), []);
    assert_eq!(brain.worker(0, CALLED), fork(1, 0), "it still serves");
    brain.worker(1, WorkerEvent::Born);
    assert!(
        brain.worker(1, WorkerEvent::Ready).contains(&Action::TurnRed(1)),
        "and who comes later knows too"
    );
    let actions = brain.due(Timer::PreStop);
    assert_eq!(actions[..2], [Action::CloseListeners, Action::Arm(Timer::DrainAll, DRAIN)]);
}

#[test]
fn one_worker_fewer_takes_the_last_slot_and_the_last_worker_stays() {
    let mut brain = Brain::serving(2);
    assert_eq!(brain.asked(Request::OneFewer), leave(1));
    assert_eq!(brain.phases(), [Phase::Ready(0)], "the slot is gone");
    assert_eq!(brain.asked(Request::OneFewer), []);
    assert_eq!(brain.worker(1, CALLED), [Action::Disarm(Timer::Depart(1))]);
}

#[test]
fn one_fewer_while_a_slot_backs_off_takes_its_timer_with_it() {
    let mut brain = Brain::serving(2);
    brain.worker(1, CALLED);
    brain.worker(2, WorkerEvent::ForkRefused);
    assert_eq!(brain.asked(Request::OneFewer), [Action::Disarm(Timer::Refill(1))]);
    assert_eq!(brain.phases(), [Phase::Ready(0)]);
    assert_eq!(brain.due(Timer::Refill(1)), []);
}

#[test]
fn one_more_while_the_worker_of_the_slot_leaves_fills_it_at_once() {
    let mut brain = Brain::serving(2);
    brain.asked(Request::OneFewer);
    assert_eq!(brain.asked(Request::OneMore), fork(2, 1));
    assert_eq!(brain.departing(), [(1, Stage::Leaving)]);
}

#[test]
fn one_fewer_before_the_process_is_born_kills_it_at_birth() {
    let mut brain = Brain::serving(1);
    assert_eq!(brain.asked(Request::OneMore), fork(1, 1));
    assert_eq!(brain.asked(Request::OneFewer), [Action::Disarm(Timer::Boot(1))]);
    assert_eq!(brain.worker(1, WorkerEvent::Born), [Action::Kill(1)]);
    assert_eq!(brain.worker(1, UNCALLED), []);
    assert_eq!(brain.phases(), [Phase::Ready(0)]);
}

#[test]
fn the_only_worker_that_is_ready_stays_until_another_one_is_when_its_slot_is_taken_away() {
    let mut brain = Brain::serving(2);
    brain.worker(0, CALLED);
    assert_eq!(brain.asked(Request::OneFewer), []);
    assert_eq!((brain.phases(), brain.predecessors()), (vec![Phase::Requested(2)], vec![Some(1)]));
    brain.worker(2, WorkerEvent::Born);
    let left = brain.worker(2, WorkerEvent::Ready);
    assert_eq!(left[1..], leave(1));
}

#[test]
fn a_worker_that_stands_in_for_another_slot_comes_home_when_its_own_is_back() {
    let mut brain = Brain::serving(2);
    brain.worker(0, CALLED);
    brain.asked(Request::OneFewer);
    assert_eq!(brain.asked(Request::OneMore), [], "two open workers in slot 1 must never be");
    assert_eq!(brain.phases(), [Phase::Requested(2), Phase::Ready(1)]);
    assert_eq!(brain.predecessors(), [None, None]);
}

#[test]
fn operators_can_ask_for_1024_workers_and_no_more() {
    let mut brain = Brain::new(settings(1_023));
    brain.asked(Request::OneMore);
    assert_eq!(brain.state.serving.slots.len(), 1_024);
    assert!(matches!(&brain.state.on(Event::Asked(Request::OneMore), brain.now)[..], [Action::Warn(_)]));
    assert_eq!(brain.state.serving.slots.len(), 1_024);
}

#[test]
fn numbers_that_come_round_again_never_meet_a_living_worker() {
    let mut brain = Brain::serving(2);
    brain.state.next_worker = WorkerId::MAX;
    assert_eq!(brain.worker(1, CALLED), fork(WorkerId::MAX, 1));
    assert_eq!(brain.worker(WorkerId::MAX, WorkerEvent::ForkRefused).len(), 2);
    assert_eq!(brain.due(Timer::Refill(1)), fork(1, 1), "0 still lives");
}
