//! Who waits for which answers on a connection, and whose an answer is.
//!
//! Values in, decisions out: no socket, no clock, no lock. `connection` keeps one of these under its lock, and wakes whom it
//! is told to. Callers ask for a group of calls with ids in a row; a single call is a group of one. Errors that name no call are
//! the business of `unnamed`.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Condvar;
use serde_json::value::RawValue;

use super::answer::{Answer, Arrived};
use super::error::{ClientError, RemoteError};
use super::request::Place;
use unnamed::{Held, Strays};

mod unnamed;

pub(super) type Outcome = Result<Box<RawValue>, ClientError>;

#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// By the first id of each.
    groups: BTreeMap<u64, Group>,
    /// Answers to ids above this one were never asked for.
    highest: u64,
    strays: Strays,
    /// Errors without an id that could be about several messages so far.
    held: Vec<Held>,
}

#[derive(Debug)]
struct Group {
    calls: Vec<Call>,
    /// All are members of one message.
    is_array: bool,
    /// The server may have some of it.
    is_on_its_way: bool,
    /// An error without an id was taken to be about it. An answer that names its calls is believed nevertheless.
    is_guessed: bool,
    wake: Arc<Condvar>,
    is_asleep: bool,
}

#[derive(Debug)]
struct Call {
    place: Place,
    outcome: Option<Outcome>,
}

/// What follows from a message that could be assigned.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Whose last answer this was, if they sleep.
    pub(super) wake: Vec<Arc<Condvar>>,
    /// The server is about to hang up, or there is a doubt about a message that another connection would not have.
    pub(super) is_leaving: bool,
}

impl Waiting {
    /// A group that waits for its turn to be sent, by its first id.
    pub(super) fn join(&mut self, first: u64, places: &[Place], is_array: bool, wake: Arc<Condvar>) {
        let calls: Vec<Call> = places.iter().map(|place| Call { place: *place, outcome: None }).collect();
        let count = u64::try_from(calls.len()).unwrap_or(u64::MAX);
        self.highest = self.highest.max(first.saturating_add(count).saturating_sub(1));
        let (is_on_its_way, is_guessed, is_asleep) = (false, false, false);
        self.groups.insert(first, Group { calls, is_array, is_on_its_way, is_guessed, wake, is_asleep });
    }

    /// It is the group's turn: the next byte that is sent is its first.
    pub(super) fn goes(&mut self, first: u64) {
        if let Some(group) = self.groups.get_mut(&first) {
            group.is_on_its_way = true;
        }
    }

    /// A message is about to be sent that nobody waits for.
    pub(super) fn tells(&mut self, place: Place) {
        self.strays.told(place);
    }

    /// The group's outcomes so far, in the order of its ids. Answers that come later reach nobody. A group of which nothing was
    /// sent has none.
    pub(super) fn leave(&mut self, first: u64, was_sent: bool) -> Vec<Option<Outcome>> {
        let Some(group) = self.groups.remove(&first) else { return Vec::new() };
        if was_sent && !group.is_complete() {
            self.strays.left(first, &group);
        }
        group.calls.into_iter().map(|call| call.outcome).collect()
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
        let mut names_calls = false;
        for Answer { id, outcome } in arrived.answers {
            match (id, outcome) {
                (Some(id), outcome) => {
                    names_calls = true;
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
        } else if let Some(error) = without_id.filter(|_| !names_calls) {
            self.suspect(error, &mut settled)?;
        }
        self.decide(&mut settled);
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
        let group = self.groups.range_mut(..=id).next_back().and_then(|(first, group)| {
            let place = usize::try_from(id.saturating_sub(*first)).ok()?;
            (place < group.calls.len()).then_some((*first, place, group))
        });
        let Some((first, place, group)) = group else {
            self.strays.answered(id);
            return Ok(None);
        };
        let Some(call) = group.calls.get_mut(place) else { return Ok(None) };
        if call.outcome.is_some() && !group.is_guessed {
            return Err(format!("expected one answer to call {id}, found a second one"));
        }
        call.outcome = Some(outcome);
        group.tell(settled);
        Ok(Some(first))
    }

    fn close_array(&mut self, first: u64, without_id: Option<RemoteError>, settled: &mut Settled) {
        let Some(group) = self.groups.get_mut(&first).filter(|group| group.is_array) else { return };
        if group.is_complete() {
            return;
        }
        for call in group.calls.iter_mut().filter(|call| call.outcome.is_none()) {
            call.outcome = Some(Err(match &without_id {
                Some(error) => ClientError::Remote(error.clone()),
                None => ClientError::Protocol(
                    "expected an answer to each call of a batch in one array, found none to this one"
                        .to_owned(),
                ),
            }));
        }
        group.tell(settled);
    }
}

impl Group {
    fn is_complete(&self) -> bool {
        self.calls.iter().all(|call| call.outcome.is_some())
    }

    fn tell(&self, settled: &mut Settled) {
        if self.is_asleep && self.is_complete() {
            settled.wake.push(Arc::clone(&self.wake));
        }
    }
}

#[cfg(test)]
mod tests;
