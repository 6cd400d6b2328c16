//! Signs of life: which workers are asked whether they live, and when silence has lasted too long.
//!
//! A worker is watched from the moment that it says that somebody has connected, or that it is handed connections. It is watched for as long as
//! it has connections or calls, or some are on their way to it. It is asked one question at a time, and silence counts from that
//! question. If the supervisor itself was not running (stopped, starved, a machine that slept), silence counts from anew, because perhaps
//! nobody was running. While nobody is watched there is no next check.
//!
//! The loop reads what workers have said before it asks for a verdict.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Policy;

/// The workers that are watched. `W` names one.
#[derive(Debug)]
pub(crate) struct SignsOfLife<W> {
    /// How often in `stuck` a worker is checked.
    checks: u32,
    next: Option<Instant>,
    /// From the last check, or the notice that began it all, to the next check.
    interval: Duration,
    watched: BTreeMap<W, Watched>,
}

#[derive(Debug)]
struct Watched {
    /// As its generation has it.
    stuck: Duration,
    /// It is checked until then, whatever it has: somebody may have connected since its last notice.
    until: Instant,
    /// While a question is open, for how long it has been.
    silent: Option<Duration>,
}

/// What a check of a worker finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It has connections or calls, or is sent some.
    Busy,
    Idle,
    /// There is no such worker any more.
    Gone,
}

/// What follows for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LifeVerdict<W> {
    Ask(W),
    /// It has been silent for `stuck`.
    Kill(W),
}

impl<W: Ord + Copy> SignsOfLife<W> {
    /// `checks` is how often in its `stuck` a worker is checked.
    pub(crate) fn new(checks: u32) -> Self {
        let interval = Duration::ZERO;
        Self { checks: checks.max(1), next: None, interval, watched: BTreeMap::new() }
    }

    /// A worker has said that it is there.
    pub(crate) fn heard(&mut self, worker: W, stuck: Duration, now: Instant) {
        self.watched.remove(&worker);
        self.watch(worker, stuck, now);
    }

    /// A worker is about to have something to do, which is not its own word: a question that is open stays open.
    pub(crate) fn watch(&mut self, worker: W, stuck: Duration, now: Instant) {
        let every = stuck / self.checks;
        let watched = self.watched.entry(worker).or_insert(Watched { stuck, until: now, silent: None });
        watched.until = watched.until.max(now + every);
        if self.next.is_none() {
            (self.next, self.interval) = (Some(now + every), every);
        }
    }

    /// Those whose answer is due: what they have said is to be heard before a look.
    pub(crate) fn asked(&self) -> Vec<W> {
        let open = self.watched.iter().filter(|(_, watched)| watched.silent.is_some());
        open.map(|(worker, _)| *worker).collect()
    }
}

impl<W: Ord + Copy + 'static> Policy for SignsOfLife<W> {
    /// What each worker has. The loop has read before what those have said that owe an answer.
    type Seen<'a> = &'a dyn Fn(W) -> Activity;
    type Decision = Vec<LifeVerdict<W>>;

    fn next_due(&self) -> Option<Instant> {
        self.next
    }

    /// One check of all that are watched.
    fn due(&mut self, now: Instant, see: &dyn Fn(W) -> Activity) -> Vec<LifeVerdict<W>> {
        let Some(planned) = self.next.filter(|next| *next <= now) else { return Vec::new() };
        let interval = self.interval;
        let overslept = now.saturating_duration_since(planned) >= interval;
        let mut verdicts = Vec::new();
        self.watched.retain(|worker, watched| {
            let seen = see(*worker);
            match (seen, watched.silent) {
                (Activity::Gone, _) => return false,
                (Activity::Busy | Activity::Idle, Some(_)) if overslept => {
                    watched.silent = Some(Duration::ZERO);
                }
                (Activity::Busy | Activity::Idle, Some(silent)) => {
                    let silent = silent + interval;
                    watched.silent = Some(silent);
                    if silent >= watched.stuck {
                        verdicts.push(LifeVerdict::Kill(*worker));
                        return false;
                    }
                }
                (Activity::Busy, None) => {
                    watched.silent = Some(Duration::ZERO);
                    verdicts.push(LifeVerdict::Ask(*worker));
                }
                (Activity::Idle, None) => return now < watched.until,
            }
            true
        });
        let every = self.watched.values().map(|watched| watched.stuck / self.checks).min();
        self.interval = every.unwrap_or_default();
        self.next = every.map(|every| now + every);
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LifeVerdict::{Ask, Kill};

    const STUCK: Duration = Duration::from_secs(4);

    /// One step of a course: at so many seconds, what is heard of worker 7 or seen of it, and what follows.
    enum LifeStep {
        Heard(u64),
        Watch(u64),
        Look(u64, Activity, &'static [LifeVerdict<u32>]),
    }
    use Activity::{Busy, Gone, Idle};
    use LifeStep::{Heard, Look, Watch};

    /// With `stuck` of 4 s a look each second. What the next look is after the course, in seconds.
    fn course(steps: &[LifeStep]) -> Option<u64> {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut signs = SignsOfLife::new(4);
        for (number, step) in steps.iter().enumerate() {
            match step {
                Heard(seconds) => signs.heard(7, STUCK, at(*seconds)),
                Watch(seconds) => signs.watch(7, STUCK, at(*seconds)),
                Look(seconds, seen, expected) => {
                    let verdicts = signs.due(at(*seconds), &|_| *seen);
                    assert_eq!(verdicts, *expected, "step {number}");
                }
            }
        }
        signs.next_due().map(|next| next.duration_since(start).as_secs())
    }

    #[test]
    fn nobody_is_asked_and_nothing_is_waited_for_while_nobody_has_connected() {
        assert_eq!(course(&[]), None);
        assert_eq!(course(&[Look(5, Busy, &[])]), None);
    }

    #[test]
    fn a_worker_is_asked_for_as_long_as_it_has_connections() {
        let asked: &[LifeVerdict<u32>] = &[Ask(7)];
        let steps =
            [Heard(0), Look(1, Busy, asked), Heard(1), Look(2, Busy, asked), Heard(2), Look(3, Idle, &[])];
        assert_eq!(course(&steps[..5]), Some(3));
        assert_eq!(course(&steps), None, "nobody is there any more, and nothing is waited for");
    }

    #[test]
    fn after_a_word_there_is_one_look_at_least_that_comes_later_than_any_connection_it_stands_for() {
        // Heard between two checks, with the next one too soon to tell.
        let steps =
            [Heard(0), Look(1, Busy, &[Ask(7)]), Heard(2), Look(2, Idle, &[]), Look(3, Busy, &[Ask(7)])];
        assert_eq!(course(&steps), Some(4));
    }

    #[test]
    fn a_worker_that_does_not_answer_is_killed_after_stuck() {
        let steps = [
            Heard(0),
            Look(1, Busy, &[Ask(7)]),
            Look(2, Busy, &[]),
            Look(3, Busy, &[]),
            Look(4, Busy, &[]),
            Look(5, Busy, &[Kill(7)]),
        ];
        assert_eq!(course(&steps), None);
    }

    #[test]
    fn silence_counts_also_when_its_connections_are_gone_meanwhile() {
        let steps = [
            Heard(0),
            Look(1, Busy, &[Ask(7)]),
            Look(2, Idle, &[]),
            Look(3, Idle, &[]),
            Look(4, Idle, &[]),
            Look(5, Idle, &[Kill(7)]),
        ];
        assert_eq!(course(&steps), None);
    }

    #[test]
    fn an_answer_ends_the_silence() {
        let steps = [
            Heard(0),
            Look(1, Busy, &[Ask(7)]),
            Look(2, Busy, &[]),
            Look(3, Busy, &[]),
            Look(4, Busy, &[]),
            Heard(5),
            Look(5, Busy, &[Ask(7)]),
        ];
        assert_eq!(course(&steps), Some(6));
    }

    #[test]
    fn what_it_is_handed_has_a_worker_watched_and_answers_nothing() {
        let steps = [
            Watch(0),
            Look(1, Busy, &[Ask(7)]),
            Watch(2),
            Look(2, Busy, &[]),
            Look(3, Busy, &[]),
            Look(4, Busy, &[]),
            Watch(5),
            Look(5, Busy, &[Kill(7)]),
        ];
        assert_eq!(course(&steps), None);
        assert_eq!(course(&[Heard(0), Watch(1), Look(1, Idle, &[])]), Some(2), "not before it has arrived");
    }

    #[test]
    fn a_supervisor_that_was_not_running_itself_counts_from_anew() {
        let steps = [
            Heard(0),
            Look(1, Busy, &[Ask(7)]),
            Look(2, Busy, &[]),
            Look(3, Busy, &[]),
            Look(4, Busy, &[]),
            // All of it was stopped for an hour.
            Look(3_600, Busy, &[]),
            Look(3_601, Busy, &[]),
            Look(3_602, Busy, &[]),
            Look(3_603, Busy, &[]),
            Look(3_604, Busy, &[Kill(7)]),
        ];
        assert_eq!(course(&steps), None);
    }

    #[test]
    fn a_worker_that_is_gone_is_forgotten() {
        assert_eq!(course(&[Heard(0), Look(1, Gone, &[])]), None);
        assert_eq!(course(&[Heard(0), Look(1, Busy, &[Ask(7)]), Look(2, Gone, &[])]), None);
    }

    #[test]
    fn each_worker_is_judged_for_itself_and_those_who_owe_an_answer_are_known() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut signs = SignsOfLife::new(4);
        signs.heard(1, STUCK, at(0));
        signs.heard(2, STUCK, at(0));
        assert_eq!(signs.due(at(1), &|_| Busy), [Ask(1), Ask(2)]);
        signs.heard(2, STUCK, at(1));
        assert_eq!(signs.asked(), [1]);
        for second in 2..5 {
            assert_eq!(signs.due(at(second), &|_| Busy), if second == 2 { vec![Ask(2)] } else { vec![] });
        }
        signs.heard(2, STUCK, at(4));
        assert_eq!(signs.due(at(5), &|_| Busy), [Kill(1), Ask(2)]);
    }

    #[test]
    fn workers_of_two_generations_are_judged_each_by_its_own() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut signs = SignsOfLife::new(4);
        signs.heard(1, STUCK * 2, at(0));
        signs.heard(2, STUCK, at(0));
        assert_eq!(signs.due(at(2), &|_| Busy), [Ask(1), Ask(2)]);
        let dead = |second, signs: &mut SignsOfLife<u32>| signs.due(at(second), &|_| Busy);
        assert!((3..6).all(|second| dead(second, &mut signs).is_empty()));
        assert_eq!(dead(6, &mut signs), [Kill(2)]);
        // From here on every two seconds, and a look before its time is none.
        assert_eq!(signs.next_due(), Some(at(8)));
        assert_eq!(dead(7, &mut signs), []);
        assert_eq!(dead(8, &mut signs), []);
        assert_eq!(dead(10, &mut signs), [Kill(1)]);
    }
}
