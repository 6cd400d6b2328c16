//! What came of a group's calls: each ends as exactly one of right, error, wrong, missing or lost with its connection.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::content::Failure;
use super::speech::Speech;
use super::times::Times;

/// The counts of one group of clients.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    pub group: &'static str,
    pub connects: u64,
    /// Connects that the service refused or never answered.
    pub refused: u64,
    pub right: u64,
    pub errors: BTreeMap<Failure, u64>,
    /// How many messages had at least one failed call.
    pub failed_messages: BTreeMap<Speech, u64>,
    /// How many messages were answered of each speech that there is a client for.
    pub spoken: BTreeMap<Speech, u64>,
    /// Answers that said that the connection ends with them, which is for a service that stops.
    pub goodbyes: u64,
    /// Answers that belong to no call, or are not that call's.
    pub wrong: u64,
    pub first_wrong: Option<String>,
    /// What nobody takes for an answer: no JSON or no message at all, or an error that says of no call that it is its own where
    /// the order doesn't say so either. Such a connection is given up.
    pub anonymous: u64,
    pub first_anonymous: Option<String>,
    /// Calls without an answer when time was up, on a connection that is still there.
    pub missing: u64,
    pub first_missing: Option<String>,
    /// Connections that the service ended while the client still wanted them, older than `keep_after`.
    pub closed: u64,
    pub first_closed: Option<String>,
    /// The same of younger ones.
    pub closed_young: u64,
    /// Calls on connections that were closed.
    pub lost: u64,
    /// From a call's sending to its answer.
    pub latencies: Times,
    /// The same for calls that were answered by an error.
    pub error_latencies: Times,
    /// How long a connection with calls on their way brought nothing.
    pub silences: Times,
}

impl Tally {
    /// Errors with this code.
    pub fn errors_of(&self, code: i64) -> u64 {
        self.errors.iter().filter(|(failure, _)| failure.code == code).map(|(_, count)| count).sum()
    }

    pub fn all_errors(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Everything that no fault excuses.
    pub fn harm(&self) -> u64 {
        self.refused + self.wrong + self.missing + self.closed + self.goodbyes + self.anonymous
    }

    /// What is not right, for a person.
    pub fn complaints(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut say = |count: u64, what: &str, example: Option<&String>| {
            if count > 0 {
                let example = example.map(|text| format!(" ({text})")).unwrap_or_default();
                all.push(format!("{}: {count} {what}{example}", self.group));
            }
        };
        say(self.refused, "connects refused", None);
        say(self.wrong, "wrong answers", self.first_wrong.as_ref());
        say(self.missing, "answers missing", self.first_missing.as_ref());
        say(self.closed, "connections closed", self.first_closed.as_ref());
        say(self.anonymous, "answers that name no call", self.first_anonymous.as_ref());
        say(self.goodbyes, "goodbyes of a service that goes on", None);
        all
    }

    /// What was never answered at all, by its name: a load that says nothing shows nothing.
    pub fn silent(&self) -> Vec<String> {
        let silent = self.spoken.iter().filter(|(_, count)| **count == 0);
        silent
            .map(|(speech, _)| format!("{}: nobody was answered who speaks {}", self.group, speech.name()))
            .collect()
    }

    /// `-32002 sleep SIGKILL ×3, …`
    pub fn errors_as_text(&self) -> String {
        let mut text = String::new();
        for (Failure { code, method, cause }, count) in &self.errors {
            let before = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, "{before}{code} {method} {cause} ×{count}");
        }
        text
    }

    pub fn p99(&self, windows: &[(Duration, Duration)]) -> Duration {
        self.latencies.percentile(99.0, windows)
    }

    /// Adds another group's counts to this one's.
    pub fn add(&mut self, other: &Self) {
        self.connects += other.connects;
        self.refused += other.refused;
        self.right += other.right;
        for (failure, count) in &other.errors {
            *self.errors.entry(failure.clone()).or_default() += count;
        }
        let add = |own: &mut BTreeMap<Speech, u64>, other: &BTreeMap<Speech, u64>| {
            for (speech, count) in other {
                *own.entry(*speech).or_default() += count;
            }
        };
        add(&mut self.failed_messages, &other.failed_messages);
        add(&mut self.spoken, &other.spoken);
        self.goodbyes += other.goodbyes;
        self.anonymous += other.anonymous;
        self.wrong += other.wrong;
        self.missing += other.missing;
        self.closed += other.closed;
        self.closed_young += other.closed_young;
        self.lost += other.lost;
        let first = |own: &mut Option<String>, other: &Option<String>| {
            if own.is_none() {
                own.clone_from(other);
            }
        };
        first(&mut self.first_wrong, &other.first_wrong);
        first(&mut self.first_anonymous, &other.first_anonymous);
        first(&mut self.first_missing, &other.first_missing);
        first(&mut self.first_closed, &other.first_closed);
    }
}
