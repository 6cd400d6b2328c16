//! Which workers are asked whether they live, and when silence has lasted too long.
//!
//! A worker is watched from its word that somebody has connected, for as long as it has connections or calls. It is asked
//! one question at a time, and silence counts from that question, which its line has. A supervisor that was not running
//! itself (stopped, starved, a machine that slept) counts from anew: perhaps nobody was. Without anybody to watch there is
//! no next look.
//!
//! Pure: the loop brings the time, and what it has heard before it asks for a judgement.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The workers that are watched. `W` names one.
#[derive(Debug)]
pub(crate) struct SignsOfLife<W> {
    stuck: Duration,
    every: Duration,
    next: Option<Instant>,
    watched: BTreeMap<W, Watched>,
}

#[derive(Debug)]
struct Watched {
    /// It is looked at until then, whatever it has: somebody may have connected since its last word.
    until: Instant,
    /// While a question is open, for how long it has been.
    silent: Option<Duration>,
}

/// What a look at a worker finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// It has connections or calls.
    Busy,
    Idle,
    /// There is no such worker any more.
    Gone,
}

/// What follows for a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict<W> {
    Ask(W),
    /// It has been silent for `stuck`.
    Kill(W),
}

impl<W: Ord + Copy> SignsOfLife<W> {
    /// `looks` is how often in `stuck`.
    pub(crate) fn new(stuck: Duration, looks: u32) -> Self {
        Self { stuck, every: stuck / looks.max(1), next: None, watched: BTreeMap::new() }
    }

    /// A worker has said that it is there.
    pub(crate) fn heard(&mut self, worker: W, now: Instant) {
        let until = now + self.every;
        self.watched.insert(worker, Watched { until, silent: None });
        self.next.get_or_insert(until);
    }

    /// When to look next; None while nobody is watched.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next
    }

    /// Those whose answer is due: what they have said is to be heard before a look.
    pub(crate) fn asked(&self) -> Vec<W> {
        let open = self.watched.iter().filter(|(_, watched)| watched.silent.is_some());
        open.map(|(worker, _)| *worker).collect()
    }

    /// One look at all that are watched.
    pub(crate) fn look(&mut self, now: Instant, see: impl Fn(W) -> Seen) -> Vec<Verdict<W>> {
        let Some(planned) = self.next else { return Vec::new() };
        let overslept = now.saturating_duration_since(planned) >= self.every;
        let (stuck, every) = (self.stuck, self.every);
        let mut verdicts = Vec::new();
        self.watched.retain(|worker, watched| {
            let seen = see(*worker);
            match (seen, watched.silent) {
                (Seen::Gone, _) => return false,
                (Seen::Busy | Seen::Idle, Some(_)) if overslept => watched.silent = Some(Duration::ZERO),
                (Seen::Busy | Seen::Idle, Some(silent)) => {
                    let silent = silent + every;
                    watched.silent = Some(silent);
                    if silent >= stuck {
                        verdicts.push(Verdict::Kill(*worker));
                        return false;
                    }
                }
                (Seen::Busy, None) => {
                    watched.silent = Some(Duration::ZERO);
                    verdicts.push(Verdict::Ask(*worker));
                }
                (Seen::Idle, None) => return now < watched.until,
            }
            true
        });
        self.next = (!self.watched.is_empty()).then(|| now + every);
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Verdict::{Ask, Kill};

    /// One step of a course: at so many seconds, what is heard of worker 7 or seen of it, and what follows.
    enum Step {
        Heard(u64),
        Look(u64, Seen, &'static [Verdict<u32>]),
    }
    use Seen::{Busy, Gone, Idle};
    use Step::{Heard, Look};

    /// With `stuck` of 4 s a look each second. What the next look is after the course, in seconds.
    fn course(steps: &[Step]) -> Option<u64> {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut signs = SignsOfLife::new(Duration::from_secs(4), 4);
        for (number, step) in steps.iter().enumerate() {
            match step {
                Heard(seconds) => signs.heard(7, at(*seconds)),
                Look(seconds, seen, expected) => {
                    let verdicts = signs.look(at(*seconds), |_| *seen);
                    assert_eq!(verdicts, *expected, "step {number}");
                }
            }
        }
        signs.next_look().map(|next| next.duration_since(start).as_secs())
    }

    #[test]
    fn nobody_is_asked_and_nothing_is_waited_for_while_nobody_has_connected() {
        assert_eq!(course(&[]), None);
        assert_eq!(course(&[Look(5, Busy, &[])]), None);
    }

    #[test]
    fn a_worker_is_asked_for_as_long_as_it_has_connections() {
        let asked: &[Verdict<u32>] = &[Ask(7)];
        let steps =
            [Heard(0), Look(1, Busy, asked), Heard(1), Look(2, Busy, asked), Heard(2), Look(3, Idle, &[])];
        assert_eq!(course(&steps[..5]), Some(3));
        assert_eq!(course(&steps), None, "nobody is there any more, and nothing is waited for");
    }

    #[test]
    fn after_a_word_there_is_one_look_at_least_that_comes_later_than_any_connection_it_stands_for() {
        // Heard between two looks, with the next one too soon to tell.
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
        let mut signs = SignsOfLife::new(Duration::from_secs(4), 4);
        signs.heard(1, at(0));
        signs.heard(2, at(0));
        assert_eq!(signs.look(at(1), |_| Busy), [Ask(1), Ask(2)]);
        signs.heard(2, at(1));
        assert_eq!(signs.asked(), [1]);
        for second in 2..5 {
            assert_eq!(signs.look(at(second), |_| Busy), if second == 2 { vec![Ask(2)] } else { vec![] });
        }
        signs.heard(2, at(4));
        assert_eq!(signs.look(at(5), |_| Busy), [Kill(1), Ask(2)]);
    }
}
