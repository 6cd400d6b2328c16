//! What an error without an id is about.
//!
//! A server names the id wherever it can read one. It can't where the message is an array, which has no id of its own; where the
//! message is too large to be read; and where its params are none that a server reads. So a call that can be named is none
//! of an unnamed error's business, and only what is left may have to be guessed: never so that a call that may have run is told
//! that it was not.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::error::{ClientError, RemoteError};
use super::super::request::Place;
use super::{Call, Group, Settled, Waiting};

/// The code of an error about a message that is no JSON to the server.
const NOT_READABLE: i32 = -32700;

/// The code of an error about a message that the server has not read, since it is longer than `data.limit`. It hangs up then.
const TOO_LARGE: i32 = -32003;

/// The messages that an error may be about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspects {
    Unreadable,
    Arrays,
    /// Nothing else is there that would explain it.
    All,
}

/// An error, until it is known what it is about.
#[derive(Debug)]
pub(super) struct Held {
    about: Suspects,
    error: RemoteError,
}

/// What was sent and may be answered by an error that nobody waits for.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// Something was sent at all that nobody waits for, or not any longer.
    are_there: bool,
    /// Groups that were given up and not answered since, by their first ids, where an error can't name their calls.
    groups: BTreeMap<u64, Stray>,
    /// Notifications that the server can't read, and has not complained about.
    unreadable_told: usize,
}

#[derive(Debug)]
struct Stray {
    last: u64,
    is_array: bool,
    is_readable: bool,
}

impl Strays {
    pub(super) fn told(&mut self, place: Place) {
        self.are_there = true;
        self.unreadable_told = self.unreadable_told.saturating_add(usize::from(!place.is_readable));
    }

    pub(super) fn left(&mut self, first: u64, group: &Group) {
        self.are_there = true;
        let is_readable = group.calls.iter().all(|call| call.place.is_readable || call.outcome.is_some());
        if group.is_array || !is_readable {
            let count = u64::try_from(group.calls.len()).unwrap_or(u64::MAX);
            let last = first.saturating_add(count).saturating_sub(1);
            self.groups.insert(first, Stray { last, is_array: group.is_array, is_readable });
        }
    }

    /// One of their calls was answered after all. An array is answered as a whole.
    pub(super) fn answered(&mut self, id: u64) {
        let answered =
            self.groups.range(..=id).next_back().filter(|(_, stray)| stray.is_array && id <= stray.last);
        if let Some(first) = answered.map(|(first, _)| *first) {
            self.groups.remove(&first);
        }
    }

    fn include(&self, about: Suspects) -> bool {
        match about {
            Suspects::Unreadable => self.unreadable_told > 0 || self.first(about).is_some(),
            Suspects::Arrays => self.first(about).is_some(),
            Suspects::All => self.are_there,
        }
    }

    /// One of them has had its error.
    fn forget_one(&mut self, about: Suspects) {
        if let Some(first) = self.first(about) {
            self.groups.remove(&first);
        } else if about == Suspects::Unreadable {
            self.unreadable_told = self.unreadable_told.saturating_sub(1);
        }
    }

    fn first(&self, about: Suspects) -> Option<u64> {
        let is_meant = |stray: &Stray| match about {
            Suspects::Unreadable => !stray.is_readable,
            Suspects::Arrays => stray.is_array,
            Suspects::All => false,
        };
        self.groups.iter().find(|(_, stray)| is_meant(stray)).map(|(first, _)| *first)
    }
}

impl Suspects {
    fn include(self, is_array: bool, call: &Call) -> bool {
        call.outcome.is_none()
            && match self {
                Suspects::Unreadable => !call.place.is_readable,
                Suspects::Arrays => is_array,
                Suspects::All => true,
            }
    }

    /// The messages of a group among them.
    fn count_in(self, group: &Group) -> usize {
        let calls = group.calls.iter().filter(|call| self.include(group.is_array, call));
        if group.is_array { calls.take(1).count() } else { calls.count() }
    }
}

impl Waiting {
    /// Whether an error waits to be told apart, which can be decided by a caller who leaves as well as by what arrives.
    pub(in super::super) fn is_in_doubt(&self) -> bool {
        !self.held.is_empty()
    }

    /// Says what errors are about that could be about several messages until one of these left.
    pub(in super::super) fn look_again(&mut self) -> Settled {
        let mut settled = Settled::default();
        self.decide(&mut settled);
        settled
    }

    /// Takes in an error without an id. In words what is wrong when there is nothing that it could be about.
    pub(super) fn suspect(&mut self, error: RemoteError, settled: &mut Settled) -> Result<(), String> {
        if error.code == TOO_LARGE {
            settled.is_leaving = true;
            if let Some(limit) = limit_of(&error) {
                return self.too_large(&error, limit, settled);
            }
        }
        let may_be: &[Suspects] = match error.code {
            NOT_READABLE => &[Suspects::Unreadable, Suspects::Arrays, Suspects::All],
            TOO_LARGE => &[Suspects::All],
            _ => &[Suspects::Arrays, Suspects::All],
        };
        let found = may_be.iter().find(|about| self.open(**about) > 0 || self.strays.include(**about));
        let Some(&about) = found else {
            return Err(format!("expected errors with the id of their call, found one about none: {error}"));
        };
        // Calls that can be named wait for their own answers, whoever else this is about.
        let spares_open = about == Suspects::All && self.strays.include(about);
        if self.open(about) == 0 || spares_open {
            self.strays.forget_one(about);
        } else {
            self.held.push(Held { about, error });
        }
        Ok(())
    }

    /// Gives errors to the messages that they must be about, as soon as no more of these are open than there are errors.
    pub(super) fn decide(&mut self, settled: &mut Settled) {
        for about in [Suspects::Unreadable, Suspects::Arrays, Suspects::All] {
            let mut errors = self.held.iter().filter(|held| held.about == about).map(|held| &held.error);
            let Some(error) = errors.next().cloned() else { continue };
            let is_the_same = errors.all(|other| other.code == error.code);
            let count = self.held.iter().filter(|held| held.about == about).count();
            let is_certain = is_the_same && !self.strays.include(about);
            if !is_certain || self.open(about) > count {
                // What comes from here on is asked where there is no doubt.
                settled.is_leaving = true;
            }
            if self.open(about) > count {
                continue;
            }
            self.held.retain(|held| held.about != about);
            for group in self.on_their_way() {
                group.end(|is_array, call| about.include(is_array, call), || {
                    if is_certain {
                        return ClientError::Remote(error.clone());
                    }
                    ClientError::Protocol(format!(
                        "expected errors with the id of their call, found one that could be about this call or another, \
                         so it is not known whether this one was run: {error}"
                    ))
                }, settled);
            }
        }
    }

    /// The first message over the limit is the one: nothing behind it is read.
    fn too_large(&mut self, error: &RemoteError, limit: usize, settled: &mut Settled) -> Result<(), String> {
        let is_meant = |call: &Call| call.outcome.is_none() && call.place.length > limit;
        let group = self.on_their_way().find(|group| group.calls.iter().any(is_meant));
        let Some(group) = group else {
            if self.strays.are_there {
                return Ok(());
            }
            return Err(format!(
                "expected an error about a call that was sent, found one about none: {error}"
            ));
        };
        let mut left = if group.is_array { group.calls.len() } else { 1 };
        group.end(
            |_, call| {
                let is_meant = left > 0 && is_meant(call);
                left = left.saturating_sub(usize::from(is_meant));
                is_meant
            },
            || ClientError::Remote(error.clone()),
            settled,
        );
        Ok(())
    }

    /// Messages that such an error may be about and that wait for an answer.
    fn open(&self, about: Suspects) -> usize {
        self.groups.values().filter(|group| group.is_on_its_way).map(|group| about.count_in(group)).sum()
    }

    fn on_their_way(&mut self) -> impl Iterator<Item = &mut Group> {
        self.groups.values_mut().filter(|group| group.is_on_its_way)
    }
}

impl Group {
    /// Ends those of its calls that are meant with an error that names none.
    fn end(
        &mut self,
        mut is_meant: impl FnMut(bool, &Call) -> bool,
        error: impl Fn() -> ClientError,
        settled: &mut Settled,
    ) {
        let is_array = self.is_array;
        let mut are_any = false;
        for call in self.calls.iter_mut().filter(|call| is_meant(is_array, call)) {
            call.outcome = Some(Err(error()));
            are_any = true;
        }
        if are_any {
            self.is_guessed = true;
            self.tell(settled);
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
