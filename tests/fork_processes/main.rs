//! `tine::fork_processes` keeps its contract: each test runs one small program of `scenario.rs` and looks at
//! what that program's processes said and how its parent ended.
//!
//! The programs are this very binary, started again with `--scenario NAME`: forking needs a process with one
//! thread, which no test of the usual harness has. A run is over when its output has reached its end, that is
//! when **every** process that could write to it is gone; an orphan would show as a test that does not end.

mod scenario;

use std::collections::BTreeSet;
use std::env;
use std::process::{Command, ExitCode, Output, Stdio};

use libtest_mimic::{Arguments, Trial};

const SCENARIO: &str = "--scenario";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if let Some((SCENARIO, rest)) = args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        scenario::play(rest);
        return ExitCode::SUCCESS;
    }
    macro_rules! trials {
        ($($test:ident),* $(,)?) => {
            vec![$(Trial::test(stringify!($test), || { $test(); Ok(()) })),*]
        };
    }
    let trials = trials![
        each_child_gets_its_own_task_id_and_the_parent_exits_0_without_returning,
        what_was_buffered_before_the_fork_is_printed_once,
        a_count_of_0_or_below_means_one_child_for_each_cpu_this_process_may_use,
        a_child_that_exits_non_zero_or_by_a_signal_is_restarted_with_its_id,
        as_many_restarts_as_allowed_are_not_too_many,
        one_restart_too_many_ends_it_with_tornados_words,
        restarts_are_counted_over_all_children_together,
        giving_up_ends_the_children_left_by_term_and_waits_for_them,
        giving_up_kills_a_child_that_ignores_term_after_the_grace,
        a_process_with_more_than_one_thread_is_refused_and_told_why,
        a_thread_that_was_joined_does_not_count,
        a_child_cannot_fork_processes_again,
        a_fork_that_fails_midway_ends_the_children_already_started,
        an_interrupted_wait_goes_on,
        a_child_of_other_origin_is_reaped_and_ignored,
        exit_statuses_are_seen_though_sigchld_was_ignored,
        the_hook_runs_in_every_child_before_anything_else,
        random_states_differ_between_children_though_the_parent_had_made_some,
        rands_thread_generator_differs_between_children_once_the_hook_reseeds_it,
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn each_child_gets_its_own_task_id_and_the_parent_exits_0_without_returning() {
    let run = Run::of(&["report", "3"]);
    run.ended_with(0);
    // In the parent, the task id before the fork; in each child, what was returned and what `task_id()`
    // knows.
    run.said(&["before: None", "child 0 knows Some(0)", "child 1 knows Some(1)", "child 2 knows Some(2)"]);
}

fn what_was_buffered_before_the_fork_is_printed_once() {
    let run = Run::of(&["unfinished-line"]);
    run.ended_with(0);
    assert_eq!(run.output.matches("unfinished").count(), 1, "{run}");
}

fn a_count_of_0_or_below_means_one_child_for_each_cpu_this_process_may_use() {
    for n in ["0", "-1", "-2147483648"] {
        let run = Run::of(&["report-on-one-cpu", n]);
        run.ended_with(0);
        run.said(&["before: None", "child 0 knows Some(0)"]);
    }
}

fn a_child_that_exits_non_zero_or_by_a_signal_is_restarted_with_its_id() {
    for how in ["exit", "abort", "kill", "real-time"] {
        let run = Run::of(&["crash-twice", how, "100"]);
        run.ended_with(0);
        run.said(&["child 0 started", "child 1 started", "child 1 started", "child 1 started"]);
    }
}

fn as_many_restarts_as_allowed_are_not_too_many() {
    Run::of(&["crash-twice", "exit", "2"]).ended_with(0);
}

fn one_restart_too_many_ends_it_with_tornados_words() {
    let run = Run::of(&["crash-always", "2"]);
    run.ended_with(1);
    let child = "child 0 started";
    run.said(&[child, child, child, "error: too many child restarts, giving up", "left: none"]);
}

fn restarts_are_counted_over_all_children_together() {
    let run = Run::of(&["crash-once-each", "1"]);
    run.ended_with(1);
    run.said(&["error: too many child restarts, giving up", "left: none"]);
    Run::of(&["crash-once-each", "2"]).ended_with(0);
}

fn giving_up_ends_the_children_left_by_term_and_waits_for_them() {
    let run = Run::of(&["leave-children", "that obey"]);
    run.ended_with(1);
    run.said(&[
        "child 0 got SIGTERM",
        "child 1 got SIGTERM",
        "error: too many child restarts, giving up",
        "left: none",
    ]);
}

fn giving_up_kills_a_child_that_ignores_term_after_the_grace() {
    let run = Run::of(&["leave-children", "that ignore"]);
    run.ended_with(1);
    run.said(&["error: too many child restarts, giving up", "left: none"]);
}

fn a_process_with_more_than_one_thread_is_refused_and_told_why() {
    let run = Run::of(&["second-thread"]);
    run.ended_with(1);
    assert!(run.output.contains("error: this process has 2 threads and must have one to fork"), "{run}");
    assert!(!run.output.contains("started"), "{run}");
}

/// The kernel lists a joined thread for a moment longer, so counting the list refused now and then.
fn a_thread_that_was_joined_does_not_count() {
    Run::of(&["joined-threads"]).ended_with(0);
}

fn a_child_cannot_fork_processes_again() {
    let run = Run::of(&["nested"]);
    run.ended_with(0);
    run.said(&["this process is already child 0 of fork_processes; only the parent may fork"]);
}

fn a_fork_that_fails_midway_ends_the_children_already_started() {
    let run = Run::of(&["too-few-processes"]);
    run.ended_with(1);
    assert!(run.output.contains("error: cannot fork child "), "{run}");
    assert!(run.output.contains("Resource temporarily unavailable"), "{run}");
    assert!(run.output.contains("left: none"), "{run}");
}

fn an_interrupted_wait_goes_on() {
    let run = Run::of(&["interrupt"]);
    run.ended_with(0);
    run.said(&["the parent has a handler", "the parent has run its handler"]);
}

fn a_child_of_other_origin_is_reaped_and_ignored() {
    let run = Run::of(&["stranger"]);
    run.ended_with(0);
    run.said(&["the stranger has gone"]);
}

fn exit_statuses_are_seen_though_sigchld_was_ignored() {
    let mut with_sigchld_ignored = Command::new("env");
    with_sigchld_ignored.arg("--ignore-signal=CHLD").arg(env::current_exe().expect("own path"));
    let run = Run::by(with_sigchld_ignored, &["crash-twice", "exit", "1"]);
    run.ended_with(1);
    assert!(run.output.contains("error: too many child restarts, giving up"), "{run}");
    assert!(run.output.contains("SIGCHLD is ignored"), "{run}");
}

fn the_hook_runs_in_every_child_before_anything_else() {
    let run = Run::of(&["hooks"]);
    run.ended_with(0);
    // Child 0 crashes once.
    let child_0 = ["first hook 0", "second hook 0", "child 0"];
    let child_1 = ["first hook 1", "second hook 1", "child 1"];
    run.said(&[child_0, child_0, child_1].concat());
    let of_child_0: Vec<_> = run.output.lines().filter(|line| line.ends_with('0')).collect();
    assert_eq!(of_child_0, [child_0, child_0].concat(), "{run}");
}

fn random_states_differ_between_children_though_the_parent_had_made_some() {
    let run = Run::of(&["random-states"]);
    run.ended_with(0);
    // Four children, one of which crashes once, draw three values each.
    assert_eq!(run.distinct_lines(), 15, "{run}");
}

fn rands_thread_generator_differs_between_children_once_the_hook_reseeds_it() {
    let run = Run::of(&["rand", "reseed"]);
    run.ended_with(0);
    assert_eq!(run.distinct_lines(), 4, "{run}");

    // What the documentation warns of. If this fails, `rand` reseeds by itself again, and it can say so.
    let run = Run::of(&["rand", "keep"]);
    run.ended_with(0);
    assert_eq!(run.distinct_lines(), 1, "{run}");
}

/// A scenario that has been played to its end.
struct Run {
    output: String,
    ended: Output,
}

impl Run {
    fn of(scenario: &[&str]) -> Run {
        Run::by(Command::new(env::current_exe().expect("own path")), scenario)
    }

    fn by(mut command: Command, scenario: &[&str]) -> Run {
        let ended =
            command.arg(SCENARIO).args(scenario).stdin(Stdio::null()).output().expect("start a scenario");
        Run { output: String::from_utf8_lossy(&ended.stdout).into_owned(), ended }
    }

    #[track_caller]
    fn ended_with(&self, code: i32) {
        assert_eq!(self.ended.status.code(), Some(code), "{self}");
    }

    /// These lines and no others, in any order, as processes side by side have none.
    #[track_caller]
    fn said(&self, expected: &[&str]) {
        let mut expected = expected.to_vec();
        let mut said: Vec<_> = self.output.lines().collect();
        expected.sort_unstable();
        said.sort_unstable();
        assert_eq!(said, expected, "{self}");
    }

    fn distinct_lines(&self) -> usize {
        self.output.lines().collect::<BTreeSet<_>>().len()
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let errors = String::from_utf8_lossy(&self.ended.stderr);
        write!(out, "{}\n--- stdout\n{}\n--- stderr\n{errors}", self.ended.status, self.output)
    }
}
