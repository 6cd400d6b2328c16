//! The brain by cases: what was, what happens, what must follow.

use super::*;

const NOW: fn() -> Instant = Instant::now;
const BACKOFF: Duration = Duration::from_millis(100);

pub(super) fn settings(processes: usize, max_restarts: u32) -> Settings {
    Settings {
        processes,
        restart: Limits {
            max_restarts,
            window: Duration::from_secs(60),
            backoff: BACKOFF,
            backoff_max: Duration::from_secs(30),
        },
        boot: Duration::from_secs(5),
        drain: Duration::from_secs(10),
        pre_stop: Duration::ZERO,
    }
}

/// A state with a ready template, whose first forks have been asked for: worker `n` in slot `n`.
fn requested(processes: usize, max_restarts: u32) -> State {
    let (mut state, actions) = State::start(settings(processes, max_restarts));
    assert_eq!(actions[0], Action::StartTemplate);
    let actions = state.on(Event::TemplateReady, NOW());
    assert_eq!(forks(&actions), (0..processes).map(|slot| (id(slot), slot)).collect::<Vec<_>>());
    state
}

/// A state in which every slot has a ready worker.
fn ready(processes: usize, max_restarts: u32) -> State {
    let mut state = requested(processes, max_restarts);
    for worker in (0..processes).map(id) {
        tell(&mut state, worker, WorkerEvent::Born);
        let actions = tell(&mut state, worker, WorkerEvent::Ready);
        assert_eq!(actions, [Action::Disarm(Timer::Boot(worker))]);
    }
    state
}

fn id(number: usize) -> WorkerId {
    WorkerId::try_from(number).unwrap()
}

fn tell(state: &mut State, worker: WorkerId, event: WorkerEvent) -> Vec<Action> {
    state.on(Event::Worker(worker, event), NOW())
}

fn ask(state: &mut State, request: Request) -> Vec<Action> {
    state.on(Event::Asked(request), NOW())
}

fn forks(actions: &[Action]) -> Vec<(WorkerId, usize)> {
    let fork = |action: &Action| match action {
        Action::Fork { worker, slot } => Some((*worker, *slot)),
        _ => None,
    };
    actions.iter().filter_map(fork).collect()
}

#[test]
fn a_death_after_an_answer_is_refilled_at_once_without_limit() {
    let mut state = ready(2, 1);
    let mut worker = 1;
    for next in 2..100 {
        let actions = tell(&mut state, worker, WorkerEvent::Ended { answered: true });
        assert_eq!(forks(&actions), [(next, 1)]);
        tell(&mut state, next, WorkerEvent::Born);
        tell(&mut state, next, WorkerEvent::Ready);
        worker = next;
    }
}

#[test]
fn a_death_before_the_first_answer_backs_off() {
    let mut state = ready(1, 5);
    let actions = tell(&mut state, 0, WorkerEvent::Ended { answered: false });
    assert!(forks(&actions).is_empty());
    assert!(actions.contains(&Action::Arm(Timer::Refill(0), BACKOFF)), "{actions:?}");
    assert_eq!(forks(&state.on(Event::Due(Timer::Refill(0)), NOW())), [(1, 0)]);
}

#[test]
fn too_many_boot_failures_drain_the_rest_and_end_with_1() {
    let mut state = ready(2, 1);
    tell(&mut state, 0, WorkerEvent::Ended { answered: false });
    let actions = state.on(Event::Due(Timer::Refill(0)), NOW());
    let (again, _) = forks(&actions)[0];
    let actions = tell(&mut state, again, WorkerEvent::Ended { answered: false });
    assert!(actions.contains(&Action::CloseListeners) && actions.contains(&Action::Drain(1)), "{actions:?}");
    assert!(actions.contains(&Action::KillTemplate));
    state.on(Event::TemplateEnded, NOW());
    let actions = tell(&mut state, 1, WorkerEvent::Ended { answered: true });
    assert!(actions.contains(&Action::Finish { code: 1 }), "{actions:?}");
}

#[test]
fn a_refused_fork_backs_off_and_never_ends_the_service() {
    let mut state = requested(1, 1);
    for round in 0..20 {
        let actions = tell(&mut state, round, WorkerEvent::ForkRefused);
        assert!(
            actions.iter().any(|action| matches!(action, Action::Arm(Timer::Refill(0), _))),
            "{actions:?}"
        );
        assert_eq!(forks(&state.on(Event::Due(Timer::Refill(0)), NOW())), [(round + 1, 0)]);
    }
}

#[test]
fn a_worker_that_boots_too_long_is_killed_and_its_end_is_a_boot_failure() {
    let mut state = requested(1, 5);
    tell(&mut state, 0, WorkerEvent::Born);
    let actions = state.on(Event::Due(Timer::Boot(0)), NOW());
    assert!(actions.contains(&Action::Kill(0)));
    assert!(forks(&actions).is_empty(), "its slot is not free before it is reaped");
    let actions = tell(&mut state, 0, WorkerEvent::Ended { answered: false });
    assert!(actions.contains(&Action::Arm(Timer::Refill(0), BACKOFF)), "{actions:?}");
}

#[test]
fn a_worker_that_was_told_to_end_while_it_boots_is_no_boot_failure() {
    let mut state = requested(2, 1);
    tell(&mut state, 0, WorkerEvent::Born);
    tell(&mut state, 1, WorkerEvent::Born);
    assert!(ask(&mut state, Request::OneFewer).contains(&Action::Kill(1)));
    assert_eq!(
        tell(&mut state, 1, WorkerEvent::Ended { answered: false }),
        [Action::Disarm(Timer::Drain(1))]
    );
}

#[test]
fn a_template_that_does_not_fork_is_killed_and_the_slot_filled_by_the_next() {
    let mut state = requested(1, 5);
    let actions = state.on(Event::Due(Timer::Boot(0)), NOW());
    assert!(actions.contains(&Action::KillTemplate) && actions.contains(&Action::Abandon(0)), "{actions:?}");
    assert!(state.on(Event::TemplateEnded, NOW()).contains(&Action::StartTemplate));
    state.on(Event::Due(Timer::Refill(0)), NOW());
    assert_eq!(forks(&state.on(Event::TemplateReady, NOW())), [(1, 0)]);
}

#[test]
fn a_template_that_ends_after_it_was_ready_is_replaced_at_once_and_workers_stay() {
    let mut state = ready(2, 1);
    for _ in 0..5 {
        let actions = state.on(Event::TemplateEnded, NOW());
        assert!(actions.contains(&Action::StartTemplate));
        assert!(!actions.iter().any(|action| matches!(action, Action::Kill(_) | Action::Drain(_))));
        state.on(Event::TemplateReady, NOW());
    }
}

#[test]
fn a_slot_that_empties_without_a_template_is_filled_by_the_next_one() {
    let mut state = ready(1, 5);
    state.on(Event::TemplateEnded, NOW());
    assert!(forks(&tell(&mut state, 0, WorkerEvent::Ended { answered: true })).is_empty());
    assert_eq!(forks(&state.on(Event::TemplateReady, NOW())), [(1, 0)]);
}

#[test]
fn a_first_template_that_says_why_it_can_not_serve_ends_the_service_with_1() {
    let (mut state, _) = State::start(settings(2, 0));
    state.on(Event::TemplateFailed, NOW());
    assert!(state.on(Event::TemplateEnded, NOW()).contains(&Action::Finish { code: 1 }));
}

#[test]
fn a_later_template_that_says_so_is_tried_again() {
    let mut state = ready(1, 5);
    state.on(Event::TemplateEnded, NOW());
    state.on(Event::TemplateFailed, NOW());
    let actions = state.on(Event::TemplateEnded, NOW());
    assert!(actions.contains(&Action::Arm(Timer::TemplateRetry, BACKOFF)), "{actions:?}");
    assert!(state.on(Event::Due(Timer::TemplateRetry), NOW()).contains(&Action::StartTemplate));
}

#[test]
fn stop_drains_the_ready_kills_the_booting_and_finishes_with_the_last() {
    let mut state = requested(3, 5);
    tell(&mut state, 0, WorkerEvent::Born);
    tell(&mut state, 0, WorkerEvent::Ready);
    tell(&mut state, 1, WorkerEvent::Born);
    let actions = ask(&mut state, Request::Stop);
    for expected in [Action::CloseListeners, Action::Drain(0), Action::Kill(1), Action::KillTemplate] {
        assert!(actions.contains(&expected), "{expected:?} in {actions:?}");
    }
    assert!(tell(&mut state, 2, WorkerEvent::Born).contains(&Action::Kill(2)), "born too late");
    state.on(Event::TemplateEnded, NOW());
    tell(&mut state, 1, WorkerEvent::Ended { answered: false });
    tell(&mut state, 2, WorkerEvent::Ended { answered: false });
    let actions = tell(&mut state, 0, WorkerEvent::Ended { answered: true });
    assert!(actions.contains(&Action::Finish { code: 0 }), "{actions:?}");
}

#[test]
fn a_second_int_and_quit_kill_but_a_second_term_changes_nothing() {
    let table = [(Request::Stop, false), (Request::StopOrEnd, true), (Request::End, true)];
    for (second, kills) in table {
        let mut state = ready(1, 5);
        ask(&mut state, Request::Stop);
        assert_eq!(ask(&mut state, second).contains(&Action::Kill(0)), kills, "{second:?}");
    }
}

#[test]
fn what_outlives_drain_is_killed() {
    let mut state = ready(2, 5);
    assert!(ask(&mut state, Request::Stop).contains(&Action::Arm(Timer::DrainAll, Duration::from_secs(10))));
    tell(&mut state, 0, WorkerEvent::Ended { answered: true });
    assert!(state.on(Event::Due(Timer::DrainAll), NOW()).contains(&Action::Kill(1)));
}

#[test]
fn pre_stop_goes_on_serving_and_refilling() {
    let (mut state, _) = State::start(Settings { pre_stop: Duration::from_secs(1), ..settings(1, 5) });
    state.on(Event::TemplateReady, NOW());
    tell(&mut state, 0, WorkerEvent::Born);
    tell(&mut state, 0, WorkerEvent::Ready);
    let actions = ask(&mut state, Request::Stop);
    assert!(actions.contains(&Action::Arm(Timer::PreStop, Duration::from_secs(1))));
    assert!(!actions.contains(&Action::CloseListeners));
    assert_eq!(forks(&tell(&mut state, 0, WorkerEvent::Ended { answered: true })), [(1, 0)]);
    assert!(state.on(Event::Due(Timer::PreStop), NOW()).contains(&Action::CloseListeners));
}

#[test]
fn one_fewer_drains_the_highest_slot_and_one_more_brings_it_back() {
    let mut state = ready(2, 5);
    assert!(ask(&mut state, Request::OneFewer).contains(&Action::Drain(1)));
    assert!(ask(&mut state, Request::OneFewer).iter().any(|action| matches!(action, Action::Warn(_))));
    ask(&mut state, Request::OneMore);
    assert_eq!(forks(&tell(&mut state, 1, WorkerEvent::Ended { answered: true })), [(2, 1)]);
    assert_eq!(forks(&ask(&mut state, Request::OneMore)), [(3, 2)]);
}

#[test]
fn a_worker_that_leaves_by_itself_is_replaced_without_a_back_off() {
    let mut state = ready(1, 1);
    let actions = tell(&mut state, 0, WorkerEvent::Leaving);
    assert!(actions.contains(&Action::Arm(Timer::Drain(0), Duration::from_secs(10))));
    assert_eq!(forks(&tell(&mut state, 0, WorkerEvent::Ended { answered: false })), [(1, 0)]);
}

#[test]
fn news_of_a_process_that_is_gone_changes_nothing() {
    let mut state = ready(1, 5);
    tell(&mut state, 0, WorkerEvent::Ended { answered: true });
    for event in [WorkerEvent::Ready, WorkerEvent::Leaving, WorkerEvent::Ended { answered: false }] {
        assert_eq!(tell(&mut state, 0, event), [], "{event:?}");
    }
    for timer in [Timer::Boot(0), Timer::Drain(0), Timer::Refill(7), Timer::PreStop, Timer::DrainAll] {
        assert_eq!(state.on(Event::Due(timer), NOW()), [], "{timer:?}");
    }
}
