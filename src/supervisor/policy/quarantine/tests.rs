//! Courses of events, each as a table: what happens at which second, and what workers are told then.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// One thing that happens. Workers are numbers, methods letters.
enum QuarantineStep {
    /// A worker's thread crashed in a call of this method, and those ran.
    Crash(WorkerId, &'static str, &'static str),
    /// A worker was killed while these ran, each with the calls of it answered so far. It had been there from the beginning.
    Kill(WorkerId, RanMethods),
    /// One was killed that was forked just now.
    KillNew(WorkerId, RanMethods),
    /// One ended by itself and left no trace.
    Quit(WorkerId, RanMethods),
    /// A worker that was to end did, while these ran.
    End(WorkerId, &'static str),
    Ask(WorkerId, &'static str),
    /// The trial's call came back.
    Back(WorkerId, &'static str),
    /// The trial was not used.
    Unused(WorkerId, &'static str),
    /// Only time has passed.
    Wait,
}

use QuarantineStep::*;

type RanMethods = &'static [(&'static str, u64)];

/// Written short: `shut a`, `try a 2`, `take back a 2`, `release a`.
fn told(order: &QuarantineOrder) -> String {
    match order {
        QuarantineOrder::Shut { method, .. } => format!("shut {method}"),
        QuarantineOrder::Try { method, worker } => format!("try {method} {worker}"),
        QuarantineOrder::TakeBack { method, worker } => format!("take back {method} {worker}"),
        QuarantineOrder::Release { method, .. } => format!("release {method}"),
        QuarantineOrder::Remind { method, worker } => format!("remind {worker} of {method}"),
    }
}

fn ran(methods: &str) -> Vec<Suspect> {
    let one = |method: &str| Suspect { method: method.to_owned(), answered: 0 };
    methods.split_whitespace().map(one).collect()
}

/// 3 crashes in 60 s are too many, cool-down is 30 s; the course is checked step by step.
fn course(name: &str, steps: &[(u64, QuarantineStep, &str)]) {
    course_of(3, name, steps);
}

fn course_of(crashes: u32, name: &str, steps: &[(u64, QuarantineStep, &str)]) {
    let limits = QuarantineLimits { crashes, window: 60 * SECOND, cool_down: 30 * SECOND };
    let mut quarantine = QuarantinePolicy::new(limits);
    let born = Instant::now();
    let start = born + 3_600 * SECOND;
    let dies = |quarantine: &mut QuarantinePolicy, worker, blame, methods: RanMethods, (born, now)| {
        let one =
            |(method, answered): &(&str, u64)| Suspect { method: (*method).to_owned(), answered: *answered };
        quarantine.ended(worker, &blame, methods.iter().map(one).collect(), born, now)
    };
    for (number, (second, step, expected)) in steps.iter().enumerate() {
        let now = start + u32::try_from(*second).unwrap() * SECOND;
        let mut orders = match *step {
            Crash(worker, method, beside) => {
                let suspects = [ran(method), ran(beside)].concat();
                quarantine.ended(worker, &Blame::On(method.to_owned()), suspects, born, now)
            }
            Kill(worker, methods) => dies(&mut quarantine, worker, Blame::Killed, methods, (born, now)),
            KillNew(worker, methods) => dies(&mut quarantine, worker, Blame::Killed, methods, (now, now)),
            Quit(worker, methods) => dies(&mut quarantine, worker, Blame::Unclear, methods, (born, now)),
            End(worker, methods) => quarantine.ended(worker, &Blame::Nobody, ran(methods), born, now),
            Ask(worker, method) => quarantine.asked(worker, method),
            Back(worker, method) => quarantine.trial_ended(worker, method, true),
            Unused(worker, method) => quarantine.trial_ended(worker, method, false),
            Wait => Vec::new(),
        };
        orders.extend(quarantine.due(now, ()));
        let found: Vec<String> = orders.iter().map(told).collect();
        assert_eq!(found.join(", "), *expected, "{name}: step {number}, second {second}");
        let next = quarantine.next_due();
        assert!(next.is_none_or(|next| next > now), "{name}: step {number} would be due for ever");
    }
}

#[test]
fn what_is_shut_stays_shut_for_another_supervisor_and_can_be_tried() {
    let now = Instant::now();
    let limits =
        QuarantineLimits { crashes: 3, window: Duration::from_secs(60), cool_down: Duration::from_secs(30) };
    let wait = Duration::from_secs(5);
    let left = vec![SavedQuarantine { method: "bad".to_owned(), wait, trying: None }];
    let (mut quarantine, orders) = QuarantinePolicy::restored(limits, left.clone(), now);
    assert_eq!(orders, [QuarantineOrder::Shut { method: "bad".into(), wait }]);
    assert_eq!(quarantine.leave(now), left);
    quarantine.asked(4, "bad");
    assert_eq!(quarantine.due(now + wait, ()), [QuarantineOrder::Try { method: "bad".into(), worker: 4 }]);
    assert_eq!(quarantine.leave(now)[0].trying, Some(4));
}

#[test]
fn a_trial_that_runs_is_the_only_one_for_another_supervisor_too() {
    let now = Instant::now();
    let limits =
        QuarantineLimits { crashes: 3, window: Duration::from_secs(60), cool_down: Duration::from_secs(30) };
    let left = || vec![SavedQuarantine { method: "bad".to_owned(), wait: Duration::ZERO, trying: Some(4) }];
    let asked = || {
        let (mut quarantine, orders) = QuarantinePolicy::restored(limits, left(), now);
        assert_eq!(orders.len(), 1, "all are told, so that an unused trial comes back");
        quarantine.asked(5, "bad");
        assert_eq!(quarantine.due(now + 10 * LEASE, ()), []);
        assert_eq!(quarantine.leave(now), left());
        quarantine
    };
    let tried = [QuarantineOrder::Try { method: "bad".into(), worker: 5 }];
    let mut unused = asked();
    assert_eq!(unused.trial_ended(4, "bad", false), []);
    assert_eq!(unused.due(now, ()), tried);
    let mut came_back = asked();
    assert_eq!(
        came_back.trial_ended(4, "bad", true),
        [QuarantineOrder::Release { method: "bad".into(), why: Released::CameBack }]
    );
    let mut gone = asked();
    assert_eq!(gone.ended(4, &Blame::Nobody, Vec::new(), now, now), []);
    assert_eq!(gone.due(now, ()), tried);
}

#[test]
fn the_third_crash_within_the_window_is_one_too_many() {
    course(
        "at once",
        &[(0, Crash(1, "a", ""), ""), (0, Crash(2, "a", ""), ""), (0, Crash(3, "a", ""), "shut a")],
    );
    course(
        "at its end",
        &[(0, Crash(1, "a", ""), ""), (1, Crash(2, "a", ""), ""), (60, Crash(3, "a", ""), "shut a")],
    );
    course(
        "outside",
        &[
            (0, Crash(1, "a", ""), ""),
            (1, Crash(2, "a", ""), ""),
            (61, Crash(3, "a", ""), ""),
            (62, Crash(4, "a", ""), ""),
            (63, Crash(5, "a", ""), "shut a"),
        ],
    );
}

#[test]
fn only_the_culprit_counts_whatever_ran_beside_it() {
    course(
        "two methods crash by turns, a third is always there",
        &[
            (0, Crash(1, "a", "c"), ""),
            (1, Crash(2, "b", "a c"), ""),
            (2, Crash(3, "a", "b c"), ""),
            (3, Crash(4, "b", "c"), ""),
            (4, Crash(5, "a", "c"), "shut a"),
            (5, Crash(6, "b", "c"), "shut b"),
        ],
    );
    course("ends that were wanted", &[(0, End(1, "a"), ""), (0, End(2, "a"), ""), (0, End(3, "a"), "")]);
}

#[test]
fn no_quarantine_with_0_crashes_and_at_once_with_1() {
    let steps: Vec<_> = (0..100).map(|second| (second, Crash(1, "a", ""), "")).collect();
    course_of(0, "off", &steps);
    let steps: Vec<_> = (0..100).map(|second| (second, Kill(1, &[("a", 0)]), "")).collect();
    course_of(0, "off, killed", &steps);
    course_of(1, "one", &[(0, Crash(1, "a", ""), "shut a")]);
    course_of(
        1,
        "one kill is no evidence",
        &[(0, Kill(1, &[("a", 0)]), ""), (1, Kill(2, &[("a", 0)]), "shut a")],
    );
}

/// What puts `a` in quarantine at second 0.
fn shut(rest: Vec<(u64, QuarantineStep, &'static str)>) -> Vec<(u64, QuarantineStep, &'static str)> {
    let crashes = (0..3).map(|crash| (0, Crash(90 + crash, "a", ""), if crash == 2 { "shut a" } else { "" }));
    crashes.chain(rest).collect()
}

#[test]
fn after_the_cool_down_one_worker_tries_it_and_a_call_that_comes_back_releases_it() {
    course(
        "asked in time",
        &shut(vec![
            (1, Ask(2, "a"), ""),
            (2, Ask(3, "a"), ""),
            (3, Ask(2, "a"), ""),
            (29, Wait, ""),
            (30, Wait, "try a 2"),
            (30, Ask(4, "a"), ""),
            (30, Back(2, "a"), "release a"),
            (99, Wait, ""),
        ]),
    );
    course("asked later", &shut(vec![(30, Wait, ""), (50, Wait, ""), (51, Ask(7, "a"), "try a 7")]));
    course(
        "released, it has a clean record",
        &shut(vec![
            (30, Ask(2, "a"), "try a 2"),
            (31, Back(2, "a"), "release a"),
            (32, Crash(3, "a", ""), ""),
            (33, Crash(4, "a", ""), ""),
            (34, Crash(5, "a", ""), "shut a"),
        ]),
    );
}

#[test]
fn a_trial_that_crashes_puts_the_method_in_quarantine_for_as_long_again() {
    for how in [Crash(2, "a", "b"), Kill(2, &[("a", 5), ("b", 5)]), End(2, "b a")] {
        course(
            "crashed",
            &shut(vec![
                (31, Ask(2, "a"), "try a 2"),
                (40, how, "shut a"),
                (41, Ask(3, "a"), ""),
                (69, Wait, ""),
                (70, Wait, "try a 3"),
                (71, Back(3, "a"), "release a"),
            ]),
        );
    }
}

#[test]
fn a_trial_whose_worker_ends_without_it_is_for_the_next_that_asks() {
    for (why, how) in [
        ("killed, not running it", Kill(2, &[("b", 0)])),
        ("another method's fault", Crash(2, "b", "a")),
        ("was to end", End(2, "")),
    ] {
        course(
            why,
            &shut(vec![
                (31, Ask(2, "a"), "try a 2"),
                (31, Ask(3, "a"), ""),
                (31, how, "try a 3"),
                (31, Back(2, "a"), ""),
                (31, Back(3, "a"), "release a"),
            ]),
        );
    }
    course(
        "nobody has asked yet",
        &shut(vec![
            (31, Ask(2, "a"), "try a 2"),
            (31, End(2, ""), ""),
            (99, Wait, ""),
            (99, Ask(5, "a"), "try a 5"),
        ]),
    );
    course(
        "a worker that asked and ended gets nothing",
        &shut(vec![(1, Ask(2, "a"), ""), (1, Ask(3, "a"), ""), (2, End(2, ""), ""), (30, Wait, "try a 3")]),
    );
}

#[test]
fn a_trial_that_no_caller_comes_for_moves_to_a_worker_that_has_callers() {
    course(
        "given back",
        &shut(vec![
            (30, Ask(2, "a"), "try a 2"),
            (40, Wait, ""),
            (41, Ask(3, "a"), "take back a 2"),
            (42, Ask(4, "a"), ""),
            (43, Unused(2, "a"), "try a 4"),
            (43, Wait, ""),
            (44, Wait, "take back a 4"),
            (44, Back(4, "a"), "release a"),
        ]),
    );
    course(
        "used at that moment",
        &shut(vec![
            (30, Ask(2, "a"), "try a 2"),
            (30, Ask(3, "a"), ""),
            (31, Wait, "take back a 2"),
            (99, Wait, ""),
            (99, Crash(2, "a", ""), "shut a"),
        ]),
    );
    course(
        "words of workers that have no trial",
        &shut(vec![(30, Ask(2, "a"), "try a 2"), (30, Back(3, "a"), ""), (30, Unused(3, "a"), "")]),
    );
}

#[test]
fn calls_that_had_begun_before_change_nothing_when_they_crash() {
    course(
        "stragglers",
        &shut(vec![
            (1, Crash(5, "a", ""), ""),
            (29, Crash(6, "a", ""), ""),
            (30, Ask(2, "a"), "try a 2"),
            (31, Crash(7, "a", ""), ""),
            (32, Back(2, "a"), "release a"),
        ]),
    );
}

#[test]
fn a_method_that_ran_in_every_one_of_the_last_unclear_deaths_is_taken_for_their_cause() {
    course(
        "each of three",
        &[
            (0, Kill(1, &[("a", 0), ("b", 0)]), ""),
            (1, Kill(2, &[("a", 0)]), ""),
            (2, Kill(3, &[("b", 0), ("a", 0)]), "shut a"),
            (3, Kill(4, &[("b", 0)]), ""),
        ],
    );
    course(
        "two of three",
        &[
            (0, Kill(1, &[("a", 0)]), ""),
            (1, Kill(2, &[("b", 0)]), ""),
            (2, Kill(3, &[("a", 0)]), ""),
            (3, Kill(4, &[("a", 0)]), ""),
            (4, Kill(5, &[("a", 0)]), "shut a"),
        ],
    );
    course(
        "too long ago",
        &[(0, Kill(1, &[("a", 0)]), ""), (1, Kill(2, &[("a", 0)]), ""), (61, Kill(3, &[("a", 0)]), "")],
    );
    course(
        "nothing ran",
        &[(0, Kill(1, &[]), ""), (0, Kill(1, &[]), ""), (0, Kill(1, &[]), ""), (0, Kill(1, &[]), "")],
    );
    course(
        "one answers less than the others",
        &[
            (0, Kill(1, &[("a", 5), ("b", 0), ("c", 0)]), ""),
            (1, Kill(2, &[("a", 6), ("b", 0), ("c", 1)]), ""),
            (2, Kill(3, &[("a", 6), ("b", 0), ("c", 9)]), "shut b"),
        ],
    );
    // An operator who kills workers by hand kills them at their work, which goes on well in between.
    course(
        "a method that answers more than it is seen to die",
        &[
            (0, Kill(1, &[("a", 1_000), ("b", 10)]), ""),
            (1, Kill(2, &[("a", 1_004), ("b", 13)]), ""),
            (2, Kill(3, &[("a", 1_007), ("b", 16)]), "shut b"),
        ],
    );
}

#[test]
fn workers_that_are_killed_at_once_are_one_event() {
    course(
        "a group",
        &[
            (5, Kill(1, &[("a", 9)]), ""),
            (5, Kill(2, &[("a", 9)]), ""),
            (5, Kill(3, &[("a", 9)]), ""),
            (5, Kill(4, &[("a", 9)]), ""),
            (9, Kill(5, &[("a", 9_000)]), ""),
            (9, Kill(6, &[("a", 9_000)]), ""),
            (20, Kill(7, &[("a", 20_000)]), ""),
            (20, Kill(8, &[("a", 20_000)]), ""),
        ],
    );
    course(
        "three groups without an answer in between",
        &[
            (0, Kill(1, &[("a", 9)]), ""),
            (0, Kill(2, &[("a", 9)]), ""),
            (1, Kill(3, &[("a", 9)]), ""),
            (1, Kill(4, &[("a", 9)]), ""),
            (2, Kill(5, &[("a", 9)]), "shut a"),
        ],
    );
    course(
        "one of each group has what the whole is killed for, beside a busy method",
        &[
            (0, Kill(1, &[("b", 100)]), ""),
            (0, Kill(2, &[("a", 0), ("b", 100)]), ""),
            (1, Kill(3, &[("a", 0)]), ""),
            (1, Kill(4, &[("b", 300)]), ""),
            (2, Kill(5, &[("b", 500)]), ""),
            (2, Kill(6, &[("b", 500), ("a", 0)]), "shut a"),
        ],
    );
    course(
        "a method that kills each worker that takes its place",
        &[
            (0, Kill(1, &[("a", 0)]), ""),
            (0, Kill(2, &[("a", 0)]), ""),
            (0, KillNew(3, &[("a", 0)]), ""),
            (0, KillNew(4, &[("a", 0)]), "shut a"),
        ],
    );
    course(
        "workers that end by themselves at once",
        &[(0, Quit(1, &[("a", 0)]), ""), (0, Quit(2, &[("a", 0)]), ""), (0, Quit(3, &[("a", 0)]), "shut a")],
    );
}

#[test]
fn a_reload_that_changes_what_a_method_is_clears_it_and_what_was_seen_of_it() {
    let limits = QuarantineLimits { crashes: 2, window: 60 * SECOND, cool_down: 30 * SECOND };
    let now = Instant::now();
    let blame = |method: &str| Blame::On(method.to_owned());
    let seen = || {
        let mut quarantine = QuarantinePolicy::new(limits);
        for worker in 0..2 {
            quarantine.ended(worker, &blame("shut"), ran("shut"), now, now);
        }
        quarantine.ended(3, &blame("watched"), ran("watched"), now, now);
        quarantine.ended(4, &Blame::Unclear, ran("unclear"), now, now);
        quarantine
    };
    for why in [Released::NewProgram, Released::NewTable] {
        let mut quarantine = seen();
        assert_eq!(
            quarantine.forgive(|_| Some(why)),
            [QuarantineOrder::Release { method: "shut".into(), why }]
        );
        assert_eq!(quarantine.in_force(now), []);
        for worker in 5..7 {
            let shut = usize::from(worker == 6);
            assert_eq!(quarantine.ended(worker, &blame("watched"), ran("watched"), now, now).len(), shut);
            assert_eq!(quarantine.ended(worker, &Blame::Unclear, ran("unclear"), now, now).len(), shut);
        }
    }
    let mut quarantine = seen();
    let only = |which: &'static str| move |method: &str| (method == which).then_some(Released::NewTable);
    assert_eq!(quarantine.forgive(only("other")), []);
    assert_eq!(quarantine.forgive(only("watched")), []);
    assert_eq!(quarantine.in_force(now).len(), 1, "`shut` is as it was");
    assert_eq!(quarantine.ended(5, &blame("watched"), ran("watched"), now, now).len(), 0);
    assert_eq!(quarantine.ended(6, &Blame::Unclear, ran("unclear"), now, now).len(), 1);

    // A trial that runs when the method is cleared is nothing any more.
    let mut quarantine = seen();
    quarantine.asked(7, "shut");
    assert_eq!(quarantine.due(now + 30 * SECOND, ()).len(), 1);
    assert_eq!(quarantine.forgive(only("shut")).len(), 1);
    assert_eq!(quarantine.trial_ended(7, "shut", true), []);
}

#[test]
fn a_worker_that_refuses_what_is_not_in_quarantine_is_told_so() {
    course(
        "unknown",
        &[(0, Ask(1, "a"), "remind 1 of a"), (1, Crash(1, "b", ""), ""), (2, Ask(1, "b"), "remind 1 of b")],
    );
}

#[test]
fn a_new_worker_is_told_what_it_must_refuse() {
    let limits = QuarantineLimits { crashes: 1, window: SECOND, cool_down: 30 * SECOND };
    let mut quarantine = QuarantinePolicy::new(limits);
    let start = Instant::now();
    let blame = |method: &str| Blame::On(method.to_owned());
    assert_eq!(quarantine.in_force(start), []);
    quarantine.ended(1, &blame("a"), ran("a"), start, start);
    quarantine.ended(2, &blame("b"), ran("b"), start, start + 5 * SECOND);
    let now = start + 10 * SECOND;
    assert_eq!(quarantine.in_force(now), [("a".to_owned(), 20 * SECOND), ("b".to_owned(), 25 * SECOND)]);
    let now = start + 31 * SECOND;
    quarantine.asked(3, "a");
    assert_eq!(quarantine.due(now, ()), [QuarantineOrder::Try { method: "a".into(), worker: 3 }]);
    assert_eq!(quarantine.in_force(now), [("a".to_owned(), Duration::ZERO), ("b".to_owned(), 4 * SECOND)]);
    quarantine.trial_ended(3, "a", true);
    assert_eq!(quarantine.in_force(now), [("b".to_owned(), 4 * SECOND)]);
}

#[test]
fn limits_that_change_hold_for_what_comes_and_0_releases_everything() {
    let limits = |crashes| QuarantineLimits { crashes, window: SECOND, cool_down: SECOND };
    let mut quarantine = QuarantinePolicy::new(limits(1));
    let now = Instant::now();
    let crash = |quarantine: &mut QuarantinePolicy, method: &str| {
        quarantine.ended(1, &Blame::On(method.to_owned()), ran(method), now, now).len()
    };
    assert_eq!(crash(&mut quarantine, "a"), 1);
    assert_eq!(quarantine.change(limits(2)), []);
    assert_eq!(crash(&mut quarantine, "b"), 0);
    let released = QuarantineOrder::Release { method: "a".into(), why: Released::TurnedOff };
    assert_eq!(quarantine.change(limits(0)), [released]);
    assert_eq!((crash(&mut quarantine, "b"), quarantine.next_due()), (0, None));
}
