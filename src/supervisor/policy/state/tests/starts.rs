//! How the service fails to start, when it gives that up, and what slows down slots whose workers die as soon as they are
//! ready.

use std::time::Duration;

use super::super::generation::SlotPhase;
use super::super::{Action, Event, OperatorRequest, Settings, Timer, WorkerEvent, WorkerId};
use super::{BACKOFF, BOOT, CALLED, Harness, UNCALLED, ended, failed, fork, leave, refused, settings};
use crate::supervisor::policy::restart::RestartLimits;

const SECOND: Duration = Duration::from_secs(1);

fn end_with(cause: &str) -> WorkerEvent {
    WorkerEvent::Ended { called: false, cause: cause.into() }
}

/// What the service says last if `event` makes it give up.
fn last_word(policy: &mut Harness, event: Event) -> Option<String> {
    let actions = policy.state.on(event, policy.now);
    actions.into_iter().find_map(|action| match action {
        Action::LastWord(text) => Some(text),
        _ => None,
    })
}

/// The first worker, by the first template.
fn is_born(policy: &mut Harness) {
    policy.template_ready(1);
    policy.worker(0, WorkerEvent::Born);
}

#[test]
fn a_service_of_which_no_worker_was_ever_ready_gives_up_in_time_and_says_what_failed_last() {
    type WayThere = (&'static str, fn(&mut Harness), &'static str);
    let ways: [WayThere; 9] = [
        ("nothing happened", |_| {}, "no worker was ready in time"),
        (
            "preload dies",
            |policy| drop(policy.on(ended(1))),
            "the template ended before it was ready (exit 1)",
        ),
        (
            "preload hangs",
            |policy| {
                policy.due(Timer::TemplateBoot(1));
                policy.on(ended(1));
            },
            "the template was not ready within timeouts.boot (10s)",
        ),
        ("no template", |policy| drop(policy.on(refused(1))), "a template can't be started: why"),
        (
            "a worker dies",
            |policy| {
                is_born(policy);
                policy.worker(0, end_with("no database"));
            },
            "a worker ended before it was ready (no database)",
        ),
        (
            "a worker hangs",
            |policy| {
                is_born(policy);
                policy.due(Timer::Boot(0));
                policy.worker(0, end_with("SIGKILL"));
            },
            "a worker was not ready within timeouts.boot (10s)",
        ),
        (
            "a fork is refused",
            |policy| {
                policy.template_ready(1);
                policy.worker(0, WorkerEvent::ForkRefused);
            },
            "a worker can't be forked",
        ),
        (
            "a worker says nothing",
            |policy| {
                policy.template_ready(1);
                policy.worker(0, WorkerEvent::Vanished);
            },
            "a worker ended before its first word",
        ),
        (
            "the template does not fork",
            |policy| {
                policy.template_ready(1);
                policy.due(Timer::Boot(0));
            },
            "the template does not fork",
        ),
    ];
    for (name, way, why) in ways {
        let mut policy = Harness::new(settings(1));
        way(&mut policy);
        assert!(policy.state.is_serving() && policy.armed.contains(&Timer::NeverReady), "{name}");
        let said = last_word(&mut policy, Event::Due(Timer::NeverReady));
        assert_eq!(said, Some(format!("the service can't start: {why}")), "{name}");
        assert!(policy.state.is_ending(), "{name}");
    }
}

#[test]
fn the_time_to_start_is_over_with_the_first_ready_worker_and_begins_anew_with_a_reload() {
    let armed = Action::Arm(Timer::NeverReady, 30 * SECOND);
    let mut policy = Harness::new(settings(2));
    assert!(policy.asked(OperatorRequest::Reload).contains(&armed), "it may mend what could not start");
    policy.template_ready(1);
    policy.boots(0);
    assert!(!policy.armed.contains(&Timer::NeverReady));
    assert_eq!(last_word(&mut policy, Event::Due(Timer::NeverReady)), None, "it crossed with the word");
    policy.on(failed(2));
    assert!(!policy.asked(OperatorRequest::Reload).contains(&armed));

    let never = RestartLimits { max_restarts: 0, ..settings(2).restart };
    let mut policy = Harness::new(Settings { restart: never, ..settings(2) });
    for _ in 0..9 {
        let turned_away = [Action::TurnAway, Action::Arm(Timer::NeverReady, SECOND)];
        assert_eq!(policy.due(Timer::NeverReady), turned_away, "0 is never");
    }
    policy.template_ready(1);
    policy.boots(0);
    assert_eq!(policy.due(Timer::NeverReady), []);

    // A worker of the generation that is to follow shows as well that the program can boot.
    let mut policy = Harness::new(settings(1));
    policy.asked(OperatorRequest::Reload);
    policy.on(Event::TemplateReady { generation: 2, settings: settings(1) });
    policy.boots(0);
    assert!(!policy.armed.contains(&Timer::NeverReady));
}

#[test]
fn a_template_that_can_not_be_started_again_ends_a_service_that_has_served_too() {
    let mut policy = Harness::serving(1);
    policy.template_ended(1);
    for _ in 0..3 {
        policy.template_ended(1);
        policy.now += 3_600 * SECOND;
        policy.due(Timer::TemplateRetry);
    }
    let said = last_word(&mut policy, ended(1));
    let why = "the service has given up: the template ended before it was ready (exit 1)";
    assert_eq!(said.as_deref(), Some(why));
}

#[test]
fn a_preload_that_says_why_it_fails_has_the_last_word_at_the_first_start() {
    let mut policy = Harness::new(settings(1));
    assert_eq!(last_word(&mut policy, failed(1)).as_deref(), Some("the service can't start: why"));
}

/// The worker of `slot` is ready and dies at once, without a call.
fn dies_early(policy: &mut Harness, slot: usize) -> Vec<Action> {
    let actions = dies_early_aloud(policy, slot);
    policy.follow(actions)
}

/// The same, with what is said.
fn dies_early_aloud(policy: &mut Harness, slot: usize) -> Vec<Action> {
    let SlotPhase::Requested(worker) = policy.phases()[slot] else { panic!("{:?}", policy.phases()) };
    policy.boots(worker);
    policy.state.on(Event::Worker(worker, UNCALLED), policy.now)
}

#[test]
fn a_slot_whose_workers_die_as_soon_as_they_are_ready_slows_down_and_no_boot_failure_is_counted() {
    let mut policy = Harness::serving(2);
    policy.worker(1, UNCALLED);
    dies_early(&mut policy, 1);
    for doublings in 0..20 {
        let wait = (BACKOFF * 2_u32.pow(doublings.min(9))).min(SECOND);
        assert_eq!(dies_early(&mut policy, 1), [Action::Arm(Timer::Refill(1), wait)], "{doublings}");
        policy.due(Timer::Refill(1));
    }
    assert_eq!(policy.state.serving.restarts.counted(), 0);
    let SlotPhase::Requested(worker) = policy.phases()[1] else { panic!("{:?}", policy.phases()) };
    policy.boots(worker);
    assert!(matches!(policy.worker(worker, CALLED)[0], Action::Fork { slot: 1, .. }), "one with a call");
}

#[test]
fn slots_that_slow_down_never_wait_all_at_once() {
    for processes in [1, 2, 3] {
        let mut policy = Harness::serving(processes);
        for worker in 0..WorkerId::try_from(processes).unwrap() {
            policy.worker(worker, UNCALLED);
        }
        for turn in 0..100 {
            let booting = |phase: &SlotPhase| matches!(phase, SlotPhase::Requested(_));
            let slot = policy.phases().iter().position(booting).unwrap_or_else(|| panic!("turn {turn}"));
            let actions = dies_early_aloud(&mut policy, slot);
            let warned = actions.iter().any(|action| matches!(action, Action::Warn(_)));
            policy.follow(actions);
            let waits = policy.phases()[slot] == SlotPhase::BackingOff;
            assert_eq!(warned, waits, "turn {turn}: a wait is told of, and only one that is one");
        }
        let waiting = policy.phases().iter().filter(|phase| **phase == SlotPhase::BackingOff).count();
        assert_eq!(waiting, processes - 1, "one goes on");
    }
}

#[test]
fn the_last_slot_that_serves_takes_the_wait_of_another_with_it_when_it_can_not_boot() {
    let mut policy = Harness::serving(2);
    policy.worker(1, UNCALLED);
    for _ in 0..2 {
        dies_early(&mut policy, 1);
    }
    assert_eq!(policy.phases(), [SlotPhase::Ready(0), SlotPhase::BackingOff]);
    policy.worker(0, CALLED);
    let SlotPhase::Requested(worker) = policy.phases()[0] else { panic!("{:?}", policy.phases()) };
    policy.worker(worker, WorkerEvent::Born);
    let actions = policy.worker(worker, UNCALLED);
    assert_eq!(actions[1], Action::Arm(Timer::Refill(0), BACKOFF), "a boot failure");
    assert!(matches!(policy.phases()[..], [SlotPhase::BackingOff, SlotPhase::Requested(_)]), "{actions:?}");
}

#[test]
fn a_predecessor_that_dies_while_its_slot_waits_is_replaced_at_once() {
    let mut policy = Harness::serving(1);
    policy.worker(0, WorkerEvent::Wedged);
    policy.worker(1, WorkerEvent::Born);
    policy.worker(1, UNCALLED);
    assert_eq!(policy.phases(), [SlotPhase::BackingOff]);
    let replaced = [vec![Action::Disarm(Timer::Refill(0))], fork(2, 0).to_vec()].concat();
    assert_eq!(policy.worker(0, CALLED), replaced);
}

#[test]
fn workers_that_served_behind_the_switch_of_a_reload_are_replaced_at_once() {
    let mut policy = Harness::serving(1);
    policy.asked(OperatorRequest::Reload);
    policy.on(Event::TemplateReady { generation: 2, settings: settings(1) });
    policy.boots(1);
    policy.now += SECOND;
    let switched = policy.due(Timer::Probation);
    assert!(switched.ends_with(&[&leave(0)[..], &[Action::KillTemplate { generation: 1 }]].concat()));
    let forked = policy.worker(1, UNCALLED);
    let fork = Action::Fork { generation: 2, worker: 2, slot: 0, doors_shut: false };
    assert_eq!(forked, [fork, Action::Arm(Timer::Boot(2), BOOT)]);
}
