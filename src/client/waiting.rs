//! Who waits for which answers on a connection, and whose an answer is.
//!
//! Values in, decisions out: no socket, no clock, no lock. `connection` keeps one of these under its lock, and wakes whom it
//! is told to. Callers ask for a group of calls with ids in a row; a single call is a group of one.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Condvar;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::answer::{Answer, Arrived};
use super::error::{ClientError, RemoteError};

/// The code of an error about a message that the server has not read, since it is longer than `data.limit`.
const TOO_LARGE: i32 = -32003;

pub(super) type Outcome = Result<Box<RawValue>, ClientError>;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// By the first id of each.
    groups: BTreeMap<u64, Group>,
    /// Answers to ids above this one were never asked for.
    highest: u64,
    /// Something was sent whose answer, or whose error, nobody waits for.
    has_strays: bool,
}

#[derive(Debug)]
struct Group {
    calls: Vec<Call>,
    /// All are members of one message.
    is_array: bool,
    wake: Arc<Condvar>,
    is_asleep: bool,
}

#[derive(Debug)]
struct Call {
    /// Bytes of its message.
    length: usize,
    outcome: Option<Outcome>,
}

/// What follows from a message that could be assigned.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Whose last answer this was, if they sleep.
    pub(super) wake: Vec<Arc<Condvar>>,
    /// There was an error without an id: the server may be about to hang up.
    pub(super) is_leaving: bool,
}

impl Waiting {
    /// A group that is about to be sent: its first id and the length of each call's message.
    pub(super) fn join(
        &mut self,
        first: u64,
        lengths: impl Iterator<Item = usize>,
        is_array: bool,
        wake: Arc<Condvar>,
    ) {
        let calls: Vec<Call> = lengths.map(|length| Call { length, outcome: None }).collect();
        let count = u64::try_from(calls.len()).unwrap_or(u64::MAX);
        self.highest = self.highest.max(first.saturating_add(count).saturating_sub(1));
        self.groups.insert(first, Group { calls, is_array, wake, is_asleep: false });
    }

    /// The group's outcomes so far, in the order of its ids. Answers that come later reach nobody.
    pub(super) fn leave(&mut self, first: u64) -> Vec<Option<Outcome>> {
        let group = self.groups.remove(&first);
        group.map(|group| group.calls.into_iter().map(|call| call.outcome).collect()).unwrap_or_default()
    }

    /// From now on an error without an id may be about something that nobody waits for.
    pub(super) fn strays(&mut self) {
        self.has_strays = true;
    }

    pub(super) fn is_complete(&self, first: u64) -> bool {
        self.groups.get(&first).is_none_or(Group::is_complete)
    }

    pub(super) fn sleeps(&mut self, first: u64, is_asleep: bool) {
        if let Some(group) = self.groups.get_mut(&first) {
            group.is_asleep = is_asleep;
        }
    }

    /// Somebody who sleeps, the longest waiting first.
    pub(super) fn a_sleeper(&self) -> Option<&Condvar> {
        self.groups.values().find(|group| group.is_asleep).map(|group| group.wake.as_ref())
    }

    pub(super) fn sleepers(&self) -> impl Iterator<Item = &Condvar> {
        self.groups.values().filter(|group| group.is_asleep).map(|group| group.wake.as_ref())
    }

    /// Gives each answer to who waits for it. In words what is wrong when the server answers what nobody asked.
    pub(super) fn settle(&mut self, arrived: Arrived) -> Result<Settled, String> {
        let mut settled = Settled::default();
        let mut without_id = None;
        let mut array_of = None;
        for Answer { id, outcome } in arrived.answers {
            match (id, outcome) {
                (Some(id), outcome) => {
                    let first = self.assign(id, outcome.map_err(ClientError::Remote), &mut settled)?;
                    array_of = array_of.or(first);
                }
                (None, Err(error)) => without_id = Some(error),
                (None, Ok(_)) => return Err("expected an answer with an id".to_owned()),
            }
        }
        // One array answers all members of another: what it lacks never comes.
        if let Some(first) = array_of.filter(|_| arrived.is_array) {
            self.close_array(first, without_id, &mut settled);
        } else if let Some(error) = without_id {
            self.assign_by_guess(error, &mut settled)?;
        }
        Ok(settled)
    }

    /// The group that this was an answer to, if there still is one.
    fn assign(&mut self, id: u64, outcome: Outcome, settled: &mut Settled) -> Result<Option<u64>, String> {
        if id == 0 || id > self.highest {
            return Err(format!(
                "expected the answer to one of the calls up to {}, found one with id {id}",
                self.highest
            ));
        }
        let Some((first, group)) = self.groups.range_mut(..=id).next_back() else { return Ok(None) };
        let place = usize::try_from(id.saturating_sub(*first)).unwrap_or(usize::MAX);
        let Some(call) = group.calls.get_mut(place) else { return Ok(None) };
        if call.outcome.is_some() {
            return Err(format!("expected one answer to call {id}, found a second one"));
        }
        call.outcome = Some(outcome);
        group.tell(settled);
        Ok(Some(*first))
    }

    fn close_array(&mut self, first: u64, without_id: Option<RemoteError>, settled: &mut Settled) {
        let Some(group) = self.groups.get_mut(&first).filter(|group| group.is_array) else { return };
        if group.is_complete() {
            return;
        }
        group.fill(
            |_| true,
            || match &without_id {
                Some(error) => ClientError::Remote(error.clone()),
                None => ClientError::Protocol(
                    "expected an answer to each call of a batch in one array, found none to this one"
                        .to_owned(),
                ),
            },
        );
        group.tell(settled);
    }

    /// An error without an id: the server names no call. With a limit it is about the first message that exceeds it, else it
    /// can only be told when nothing but one message is on its way.
    fn assign_by_guess(&mut self, error: RemoteError, settled: &mut Settled) -> Result<(), String> {
        settled.is_leaving = true;
        let limit = (error.code == TOO_LARGE).then(|| limit_of(&error)).flatten();
        let is_meant = |call: &Call| limit.is_none_or(|limit| call.length > limit);
        let is_only = self.groups.len() == 1 && !self.has_strays;
        let meant = self.groups.values_mut().find(|group| {
            let mut open = group.calls.iter().filter(|call| call.outcome.is_none() && is_meant(call));
            open.next().is_some()
                && (limit.is_some() || (is_only && (group.is_array || open.next().is_none())))
        });
        let Some(group) = meant else {
            return Err(format!(
                "expected errors with the id of their call, found one that could be about several: {error}"
            ));
        };
        group.fill(is_meant, || ClientError::Remote(error.clone()));
        group.tell(settled);
        Ok(())
    }
}

impl Group {
    fn is_complete(&self) -> bool {
        self.calls.iter().all(|call| call.outcome.is_some())
    }

    /// Ends open calls with an error: the first that is meant, or all of them if they are one message.
    fn fill(&mut self, is_meant: impl Fn(&Call) -> bool, error: impl Fn() -> ClientError) {
        let count = if self.is_array { self.calls.len() } else { 1 };
        for call in self.calls.iter_mut().filter(|call| call.outcome.is_none() && is_meant(call)).take(count)
        {
            call.outcome = Some(Err(error()));
        }
    }

    fn tell(&self, settled: &mut Settled) {
        if self.is_asleep && self.is_complete() {
            settled.wake.push(Arc::clone(&self.wake));
        }
    }
}

fn limit_of(error: &RemoteError) -> Option<usize> {
    #[derive(Deserialize)]
    struct Data {
        limit: usize,
    }
    let data: Data = serde_json::from_str(error.data.as_ref()?.get()).ok()?;
    Some(data.limit)
}

#[cfg(test)]
mod tests {
    use super::super::answer;
    use super::*;

    fn waiting(groups: &[(u64, &[usize], bool)]) -> Waiting {
        let mut waiting = Waiting::default();
        for (first, lengths, is_array) in groups {
            waiting.join(*first, lengths.iter().copied(), *is_array, Arc::default());
        }
        waiting
    }

    fn settle(waiting: &mut Waiting, message: &str) -> Result<Settled, String> {
        waiting.settle(answer::read(message.as_bytes()).expect("an answer"))
    }

    /// What each call of a group came to: its result, its error's code, or nothing yet.
    fn outcomes(waiting: &mut Waiting, first: u64) -> Vec<String> {
        let told = |outcome: Option<Outcome>| match outcome {
            None => "open".to_owned(),
            Some(Ok(result)) => result.get().to_owned(),
            Some(Err(ClientError::Remote(error))) => error.code.to_string(),
            Some(Err(ClientError::Protocol(_))) => "protocol".to_owned(),
            Some(Err(other)) => panic!("{other}"),
        };
        waiting.leave(first).into_iter().map(told).collect()
    }

    fn result(id: u64) -> String {
        format!(r#"{{"out":"echo","result":{},"id":{id}}}"#, id.saturating_mul(10))
    }

    fn error(code: i32, data: &str) -> String {
        format!(r#"{{"out":"error","result":{{"code":{code},"message":"no","data":{data}}}}}"#)
    }

    #[test]
    fn each_answer_reaches_who_asked_in_whatever_order_they_come() {
        let mut waiting = waiting(&[(1, &[9], false), (2, &[9, 9, 9], false), (5, &[9], false)]);
        for id in [4, 5, 2, 1] {
            assert!(settle(&mut waiting, &result(id)).is_ok());
        }
        assert!(waiting.is_complete(1) && waiting.is_complete(5) && !waiting.is_complete(2));
        assert_eq!(outcomes(&mut waiting, 2), ["20", "open", "40"]);
        assert_eq!(outcomes(&mut waiting, 5), ["50"]);
        assert_eq!(outcomes(&mut waiting, 1), ["10"]);
    }

    #[test]
    fn a_late_answer_reaches_nobody_and_harms_nobody() {
        let mut waiting = waiting(&[(1, &[9], false), (2, &[9, 9], false), (4, &[9], false)]);
        assert_eq!(outcomes(&mut waiting, 2), ["open", "open"]);
        for id in [2, 3, 4] {
            assert!(settle(&mut waiting, &result(id)).is_ok());
        }
        assert_eq!(outcomes(&mut waiting, 1), ["open"]);
        assert_eq!(outcomes(&mut waiting, 4), ["40"]);
    }

    #[test]
    fn an_answer_to_what_was_never_asked_and_a_second_one_are_refused() {
        for id in [0, 3, u64::MAX] {
            let mut waiting = waiting(&[(1, &[9, 9], false)]);
            let why = settle(&mut waiting, &result(id)).expect_err("refused");
            assert!(why.contains(&format!("id {id}")), "{why}");
        }
        let mut waiting = waiting(&[(1, &[9, 9], false)]);
        assert!(settle(&mut waiting, &result(1)).is_ok());
        assert!(settle(&mut waiting, &result(1)).expect_err("refused").contains("second"));
    }

    #[test]
    fn only_sleepers_whose_last_answer_came_are_woken() {
        let mut waiting = waiting(&[(1, &[9, 9], false), (3, &[9], false)]);
        waiting.sleeps(1, true);
        for (id, woken) in [(1, 0), (3, 0), (2, 1)] {
            assert_eq!(settle(&mut waiting, &result(id)).expect("assigned").wake.len(), woken, "{id}");
        }
        assert_eq!(waiting.sleepers().count(), 1);
        waiting.sleeps(1, false);
        assert!(waiting.a_sleeper().is_none());
    }

    #[test]
    fn an_error_without_an_id_is_about_the_only_message() {
        let mut alone = waiting(&[(1, &[9], false)]);
        assert!(settle(&mut alone, &error(-32600, "null")).expect("assigned").is_leaving);
        assert_eq!(outcomes(&mut alone, 1), ["-32600"]);
        let mut array = waiting(&[(1, &[9, 9], true)]);
        assert!(settle(&mut array, &error(-32600, "null")).is_ok());
        assert_eq!(outcomes(&mut array, 1), ["-32600", "-32600"]);
    }

    #[test]
    fn an_error_without_an_id_that_could_be_about_several_is_refused() {
        let two: [&[(u64, &[usize], bool)]; 2] =
            [&[(1, &[9], false), (2, &[9], false)], &[(1, &[9, 9], false)]];
        for groups in two {
            assert!(settle(&mut waiting(groups), &error(-32600, "null")).is_err(), "{groups:?}");
        }
        let mut strayed = waiting(&[(1, &[9], false)]);
        strayed.strays();
        assert!(settle(&mut strayed, &error(-32600, "null")).is_err());
        assert!(settle(&mut waiting(&[]), &error(-32600, "null")).is_err());
    }

    #[test]
    fn too_large_is_the_first_message_over_the_limit() {
        let groups: [(u64, &[usize], bool); 3] =
            [(1, &[10], false), (2, &[10, 11, 12], false), (5, &[99], false)];
        let mut rows = waiting(&groups);
        assert!(settle(&mut rows, &error(-32003, r#"{"limit":10}"#)).is_ok());
        assert_eq!(outcomes(&mut rows, 2), ["open", "-32003", "open"]);
        assert_eq!(outcomes(&mut rows, 5), ["open"]);
        let mut array = waiting(&[(1, &[9], false), (2, &[11, 11], true)]);
        assert!(settle(&mut array, &error(-32003, r#"{"limit":10}"#)).is_ok());
        assert_eq!(outcomes(&mut array, 2), ["-32003", "-32003"]);
        assert!(settle(&mut waiting(&groups), &error(-32003, r#"{"limit":99}"#)).is_err());
    }

    #[test]
    fn what_an_array_of_answers_lacks_never_comes() {
        let member = |id: u64| format!(r#"{{"jsonrpc":"2.0","result":{id}0,"id":{id}}}"#);
        let mut lacking = waiting(&[(1, &[9, 9, 9], true)]);
        assert!(settle(&mut lacking, &format!("[{},{}]", member(3), member(1))).is_ok());
        assert_eq!(outcomes(&mut lacking, 1), ["10", "protocol", "30"]);
        let mut refused = waiting(&[(1, &[9, 9], true)]);
        let nameless = r#"{"jsonrpc":"2.0","error":{"code":-32600,"message":"no"},"id":null}"#;
        assert!(settle(&mut refused, &format!("[{nameless},{}]", member(2))).is_ok());
        assert_eq!(outcomes(&mut refused, 1), ["-32600", "20"]);
    }
}
