//! What a part of a row measured, and whether that is what the row asks for.

use std::fmt::Display;
use std::time::Duration;

use crate::support::load::tally::Tally;
use crate::support::service::Service;

/// How a part ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Pass,
    NotPossible,
    Fail,
}

impl Display for Outcome {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(match self {
            Self::Pass => "PASS",
            Self::NotPossible => "NOT POSSIBLE HERE",
            Self::Fail => "FAIL",
        })
    }
}

/// Figures and what is wrong with them.
#[derive(Debug, Default)]
pub struct Judge {
    pub figures: Vec<String>,
    pub failures: Vec<String>,
    /// What took longer than it may. The full run fails with it; in a short one, where a busy machine has no time to make up
    /// for a bad moment, it is only told.
    pub late: Vec<String>,
    pub impossible: Option<String>,
    /// For a person who looks for the cause; only shown with a failure.
    pub evidence: String,
}

impl Judge {
    pub fn outcome(&self) -> Outcome {
        match (self.failures.is_empty(), &self.impossible) {
            (false, _) => Outcome::Fail,
            (true, Some(_)) => Outcome::NotPossible,
            (true, None) => Outcome::Pass,
        }
    }

    /// This machine can't show it.
    pub fn impossible(why: impl Into<String>) -> Self {
        Self { impossible: Some(why.into()), ..Self::default() }
    }

    pub fn tell(&mut self, figure: impl Into<String>) {
        self.figures.push(figure.into());
    }

    pub fn holds(&mut self, what: &str, holds: bool) {
        if !holds {
            self.failures.push(format!("expected: {what}"));
        }
    }

    pub fn at_most<T: PartialOrd + Display>(&mut self, what: &str, found: T, most: T) {
        if found > most {
            self.failures.push(format!("{what}: expected at most {most}, found {found}"));
        }
        self.tell(format!("{what} {found}"));
    }

    pub fn at_least<T: PartialOrd + Display>(&mut self, what: &str, found: T, least: T) {
        if found < least {
            self.failures.push(format!("{what}: expected at least {least}, found {found}"));
        }
        self.tell(format!("{what} {found}"));
    }

    /// A duration, compared in milliseconds.
    pub fn within(&mut self, what: &str, found: Duration, most: Duration) {
        if found > most {
            self.late.push(format!("{what}: expected at most {most:.1?}, found {found:.1?}"));
        }
        self.tell(format!("{what} {found:.1?}"));
    }

    /// Calls a second.
    pub fn rate_at_least(&mut self, what: &str, found: f64, least: f64) {
        if found < least {
            self.late.push(format!("{what}: expected at least {least:.0}, found {found:.0}"));
        }
        self.tell(format!("{what} {found:.0}"));
    }

    /// Time was measured for long enough to judge by it.
    pub fn judge_times(&mut self) {
        self.failures.append(&mut self.late);
    }

    /// No harm was done to these clients: nothing refused, wrong, missing or closed, and everybody was answered.
    pub fn unharmed(&mut self, tallies: &[Tally]) {
        self.failures.extend(tallies.iter().flat_map(Tally::complaints));
        self.failures.extend(tallies.iter().flat_map(Tally::silent));
        let right: u64 = tallies.iter().map(|tally| tally.right).sum();
        let closed: u64 = tallies.iter().map(|tally| tally.closed).sum();
        self.tell(format!("{right} right answers"));
        self.tell(format!("{closed} closed connections"));
    }

    /// No call failed at all.
    pub fn without_errors(&mut self, tallies: &[Tally]) {
        self.only_errors(tallies, |_| false);
    }

    /// Every call that failed did so in a way that `is_expected` knows.
    pub fn only_errors(
        &mut self,
        tallies: &[Tally],
        is_expected: impl Fn(&crate::support::load::content::Failure) -> bool,
    ) {
        let all: u64 = tallies.iter().map(Tally::all_errors).sum();
        for tally in tallies {
            for (failure, count) in tally.errors.iter().filter(|(failure, _)| !is_expected(failure)) {
                let (code, method, cause) = (failure.code, &failure.method, &failure.cause);
                self.failures.push(format!(
                    "{}: {count} calls answered {code}, data.method {method:?}, data.cause {cause:?}",
                    tally.group
                ));
            }
        }
        self.tell(format!("{all} failed calls"));
    }

    /// Keeps what the service said, for the case of a failure, and judges what it must never say.
    pub fn heard(&mut self, service: &Service) {
        self.holds("no process of the service panics", !service.has_panicked());
        self.evidence = service.complaints(6);
    }
}
