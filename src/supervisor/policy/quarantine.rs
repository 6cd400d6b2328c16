//! Quarantine: which methods are refused because they take workers down, and who tries them again. See docs/design/quarantine.md.
//!
//! `children/blame.rs` reports deaths and what workers say, and carries the orders out. A method is known by its name, which means the same in
//! every worker and generation.
//!
//! ```text
//!            `crashes` within `window`         cool_down           a worker asks
//!   Watched ───────────────────────────→ Cooling ───────→ Due ───────────────────→ Trying
//!                                           ↑              ↑  given back, or lost    │ │
//!   released ←───── the call came back ─────│──────────────└─────────────────────────┘ │
//!                                           └──────────────── the call crashed ────────┘
//! ```
//!
//! Workers refuse the method from the first order on until [`QuarantineOrder::Release`], whatever the time is. Only
//! [`QuarantineOrder::Try`] lets one of them run it, once. So at most one trial runs in the whole service.

mod unclear;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Policy;
use super::state::WorkerId;
pub(crate) use unclear::Suspect;
use unclear::{Death, UnclearDeaths};

/// A trial that no caller comes for is given to another worker whose callers ask, after this.
const LEASE: Duration = Duration::from_secs(1);

/// The numbers of the `[quarantine]` section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuarantineLimits {
    /// 0 puts nothing in quarantine.
    pub(crate) crashes: u32,
    pub(crate) window: Duration,
    pub(crate) cool_down: Duration,
}

/// Whose fault a death is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The thread that ran this method crashed, or called `exit`.
    On(String),
    /// Nobody knows: a signal ended it that no thread of it had caused, as when memory runs out.
    Killed,
    /// Nobody knows: it ended by itself, in a way that leaves no trace.
    Unclear,
    /// It was to end.
    Nobody,
}

/// What workers are to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum QuarantineOrder {
    /// All: refuse the method; whoever asks later than this may get the trial.
    Shut { method: String, wait: Duration },
    /// One: a single call of it may run.
    Try { method: String, worker: WorkerId },
    /// One: give the trial back if no call has used it.
    TakeBack { method: String, worker: WorkerId },
    /// All: it is a method like any other again.
    Release { method: String, why: Released },
    /// One: it has missed that.
    Remind { method: String, worker: WorkerId },
}

/// Why a method is refused no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Released {
    /// The call that was tried has come back.
    CameBack,
    /// A reload has turned quarantine off.
    TurnedOff,
    /// A reload brought another program.
    NewProgram,
    /// A reload changed the method's table, `[methods.NAME]`.
    NewTable,
}

impl fmt::Display for Released {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::CameBack => "the call that was tried came back",
            Self::TurnedOff => "a reload turned quarantine off",
            Self::NewProgram => "a reload brought a new program",
            Self::NewTable => "a reload changed its [methods] table",
        })
    }
}

/// All methods that are not beyond doubt.
#[derive(Debug)]
pub(crate) struct QuarantinePolicy {
    limits: QuarantineLimits,
    methods: BTreeMap<String, MethodState>,
    unclear: UnclearDeaths,
}

/// A method in quarantine as it is left to the supervisor that takes this one's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedQuarantine {
    pub(crate) method: String,
    /// Before it may be tried.
    pub(crate) wait: Duration,
    /// Who has the trial, used or not.
    pub(crate) trying: Option<WorkerId>,
}

#[derive(Debug)]
enum MethodState {
    Watched { crashes: VecDeque<Instant> },
    Cooling { until: Instant, asking: Asking },
    Due { asking: Asking },
    Trying { worker: WorkerId, since: Instant, taking_back: bool, asking: Asking },
}

/// Workers whose callers want the method, each once, the last that asked at the end.
type Asking = Vec<WorkerId>;

impl QuarantinePolicy {
    pub(crate) fn new(limits: QuarantineLimits) -> Self {
        Self { limits, methods: BTreeMap::new(), unclear: UnclearDeaths::default() }
    }

    /// What another supervisor can go on with.
    pub(crate) fn leave(&self, now: Instant) -> Vec<SavedQuarantine> {
        let trying = |method: &str| match self.methods.get(method) {
            Some(MethodState::Trying { worker, .. }) => Some(*worker),
            Some(MethodState::Watched { .. } | MethodState::Cooling { .. } | MethodState::Due { .. })
            | None => None,
        };
        let in_force = self.in_force(now).into_iter();
        in_force.map(|(method, wait)| SavedQuarantine { trying: trying(&method), method, wait }).collect()
    }

    /// Goes on for another supervisor with what that has [left](Self::leave), and what all are to be told so that they ask
    /// anew: who had asked is not known any more. A trial that was not used is taken back by that; one that runs is known, so
    /// that none runs beside it.
    pub(crate) fn restored(
        limits: QuarantineLimits,
        left: Vec<SavedQuarantine>,
        now: Instant,
    ) -> (Self, Vec<QuarantineOrder>) {
        let shut =
            |left: &SavedQuarantine| QuarantineOrder::Shut { method: left.method.clone(), wait: left.wait };
        let orders = left.iter().map(shut).collect();
        let standing = |left: SavedQuarantine| {
            let asking = Asking::new();
            let standing = match left.trying {
                Some(worker) => MethodState::Trying { worker, since: now, taking_back: true, asking },
                None => MethodState::Cooling { until: now.checked_add(left.wait).unwrap_or(now), asking },
            };
            (left.method, standing)
        };
        let methods = left.into_iter().map(standing).collect();
        (Self { methods, ..Self::new(limits) }, orders)
    }

    /// Other limits hold for what comes. Where they turn quarantine off, everything is released.
    pub(crate) fn change(&mut self, limits: QuarantineLimits) -> Vec<QuarantineOrder> {
        self.limits = limits;
        if limits.crashes > 0 {
            return Vec::new();
        }
        self.unclear.clear();
        let methods = std::mem::take(&mut self.methods).into_iter();
        let shut = methods.filter(|(_, standing)| !matches!(standing, MethodState::Watched { .. }));
        shut.map(|(method, _)| QuarantineOrder::Release { method, why: Released::TurnedOff }).collect()
    }

    /// What was seen of some methods says nothing of them any more, by what a reload has changed: `why` says of which.
    pub(crate) fn forgive(&mut self, why: impl Fn(&str) -> Option<Released>) -> Vec<QuarantineOrder> {
        self.unclear.forget(|method| why(method).is_some());
        let mut orders = Vec::new();
        self.methods.retain(|method, standing| {
            let Some(why) = why(method) else { return true };
            if !matches!(standing, MethodState::Watched { .. }) {
                orders.push(QuarantineOrder::Release { method: method.clone(), why });
            }
            false
        });
        orders
    }

    /// A worker has died that was `born` then and was running the calls of `suspects`.
    pub(crate) fn ended(
        &mut self,
        worker: WorkerId,
        blame: &Blame,
        suspects: Vec<Suspect>,
        born: Instant,
        now: Instant,
    ) -> Vec<QuarantineOrder> {
        let mut orders = Vec::new();
        let tried = self.lose(worker, blame, &suspects);
        match blame {
            Blame::On(method) => {
                if self.is_one_too_many(method, now) {
                    orders.extend(self.shut(method, now));
                }
            }
            Blame::Killed | Blame::Unclear if tried.is_none() && self.limits.crashes > 0 => {
                let QuarantineLimits { crashes, window, .. } = self.limits;
                let death = Death { was_killed: *blame == Blame::Killed, born, at: now, suspects };
                // One alone tells nothing: whatever ran beside it would be refused too.
                for method in self.unclear.died(death, crashes.max(2) as usize, window) {
                    orders.extend(self.shut(&method, now));
                }
            }
            Blame::Killed | Blame::Unclear | Blame::Nobody => {}
        }
        if let Some(method) = tried {
            orders.extend(self.shut(&method, now));
        }
        orders
    }

    /// The worker that had a trial says that the call has come back (`ok`), or that it gives the trial back.
    pub(crate) fn trial_ended(&mut self, worker: WorkerId, method: &str, ok: bool) -> Vec<QuarantineOrder> {
        match self.methods.get_mut(method) {
            Some(MethodState::Trying { worker: trying, asking, .. }) if *trying == worker => {
                if ok {
                    self.methods.remove(method);
                    return vec![QuarantineOrder::Release {
                        method: method.to_owned(),
                        why: Released::CameBack,
                    }];
                }
                let asking = std::mem::take(asking);
                self.methods.insert(method.to_owned(), MethodState::Due { asking });
            }
            Some(
                MethodState::Watched { .. }
                | MethodState::Cooling { .. }
                | MethodState::Due { .. }
                | MethodState::Trying { .. },
            )
            | None => {}
        }
        Vec::new()
    }

    /// A worker has refused a call and could try the next.
    pub(crate) fn asked(&mut self, worker: WorkerId, method: &str) -> Vec<QuarantineOrder> {
        match self.methods.get_mut(method) {
            Some(
                MethodState::Cooling { asking, .. }
                | MethodState::Due { asking }
                | MethodState::Trying { asking, .. },
            ) => {
                asking.retain(|asking| *asking != worker);
                asking.push(worker);
                Vec::new()
            }
            // It has not read yet that the method was released, or nobody knows any more that it was ever shut.
            Some(MethodState::Watched { .. }) | None => {
                vec![QuarantineOrder::Remind { method: method.to_owned(), worker }]
            }
        }
    }

    /// The methods that a worker which is new must refuse, and for how long before it may ask.
    pub(crate) fn in_force(&self, now: Instant) -> Vec<(String, Duration)> {
        let wait = |standing: &MethodState| match standing {
            MethodState::Watched { .. } => None,
            MethodState::Cooling { until, .. } => Some(until.saturating_duration_since(now)),
            MethodState::Due { .. } | MethodState::Trying { .. } => Some(Duration::ZERO),
        };
        let methods = self.methods.iter();
        methods.filter_map(|(method, standing)| Some((method.clone(), wait(standing)?))).collect()
    }

    /// Forgets a worker. The method that it was trying, if that is to be taken for the cause of its end; a trial that
    /// was not used, or not at fault, is for the next that asks.
    fn lose(&mut self, worker: WorkerId, blame: &Blame, suspects: &[Suspect]) -> Option<String> {
        let mut tried = None;
        for (method, standing) in &mut self.methods {
            match standing {
                MethodState::Watched { .. } => {}
                MethodState::Cooling { asking, .. } | MethodState::Due { asking } => {
                    asking.retain(|asking| *asking != worker);
                }
                MethodState::Trying { worker: trying, asking, .. } => {
                    asking.retain(|asking| *asking != worker);
                    if *trying != worker {
                        continue;
                    }
                    let is_at_fault = match blame {
                        Blame::On(culprit) => culprit == method,
                        // No other call of it was to run there.
                        Blame::Killed | Blame::Unclear | Blame::Nobody => {
                            suspects.iter().any(|suspect| suspect.method == *method)
                        }
                    };
                    if is_at_fault {
                        tried = Some(method.clone());
                    } else {
                        *standing = MethodState::Due { asking: std::mem::take(asking) };
                    }
                }
            }
        }
        tried
    }

    /// Counts a crash of a method that is not in quarantine.
    fn is_one_too_many(&mut self, method: &str, now: Instant) -> bool {
        let QuarantineLimits { crashes: most, window, .. } = self.limits;
        if most == 0 {
            return false;
        }
        let watched = || MethodState::Watched { crashes: VecDeque::new() };
        match self.methods.entry(method.to_owned()).or_insert_with(watched) {
            MethodState::Watched { crashes } => {
                crashes.retain(|crash| now.saturating_duration_since(*crash) <= window);
                crashes.push_back(now);
                crashes.len() >= most as usize
            }
            // A call that had begun before.
            MethodState::Cooling { .. } | MethodState::Due { .. } | MethodState::Trying { .. } => false,
        }
    }

    fn shut(&mut self, method: &str, now: Instant) -> Option<QuarantineOrder> {
        let wait = self.limits.cool_down;
        let until = now.checked_add(wait)?;
        let asking = match self.methods.remove(method) {
            Some(MethodState::Trying { asking, .. }) => asking,
            Some(MethodState::Watched { .. }) | None => Asking::new(),
            Some(kept @ (MethodState::Cooling { .. } | MethodState::Due { .. })) => {
                self.methods.insert(method.to_owned(), kept);
                return None;
            }
        };
        self.methods.insert(method.to_owned(), MethodState::Cooling { until, asking });
        Some(QuarantineOrder::Shut { method: method.to_owned(), wait })
    }
}

impl Policy for QuarantinePolicy {
    type Seen<'a> = ();
    type Decision = Vec<QuarantineOrder>;

    fn next_due(&self) -> Option<Instant> {
        let of = |standing: &MethodState| match standing {
            MethodState::Cooling { until, .. } => Some(*until),
            MethodState::Trying { since, taking_back: false, asking, .. } if !asking.is_empty() => {
                Some(*since + LEASE)
            }
            MethodState::Watched { .. } | MethodState::Due { .. } | MethodState::Trying { .. } => None,
        };
        self.methods.values().filter_map(of).min()
    }

    /// What time alone, or the last event, makes due.
    fn due(&mut self, now: Instant, (): ()) -> Vec<QuarantineOrder> {
        let mut orders = Vec::new();
        for (method, standing) in &mut self.methods {
            if let MethodState::Cooling { until, asking } = standing
                && *until <= now
            {
                *standing = MethodState::Due { asking: std::mem::take(asking) };
            }
            match standing {
                MethodState::Due { asking } => {
                    // The last that asked: callers' connections move, and who asked early may have none of them any more.
                    if let Some(worker) = asking.pop() {
                        let asking = std::mem::take(asking);
                        *standing = MethodState::Trying { worker, since: now, taking_back: false, asking };
                        orders.push(QuarantineOrder::Try { method: method.clone(), worker });
                    }
                }
                MethodState::Trying { worker, since, taking_back, asking } => {
                    if !asking.is_empty() && !*taking_back && *since + LEASE <= now {
                        *taking_back = true;
                        orders.push(QuarantineOrder::TakeBack { method: method.clone(), worker: *worker });
                    }
                }
                MethodState::Watched { .. } | MethodState::Cooling { .. } => {}
            }
        }
        orders
    }
}

#[cfg(test)]
mod tests;
