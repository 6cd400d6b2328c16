//! Gets calls through: finds or makes the connection, sends, and sends again what was certainly not run.
//!
//! `Client` and `Batch` ask for calls here. How bytes move is `connection`'s business, what may be tried again `retry`'s.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connect;
use super::connection::{Connection, NotSent, Times};
use super::error::ClientError;
use super::request::{self, Asked, Envelope};
use super::retry;
use super::stream::{Broken, Deadline};
use super::waiting::Outcome;
use crate::config::Endpoint;

/// How long connecting may take where no timeout is set.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What an answer may come late. The server answers a call whose time is up at that moment; a client that gave up
/// in the same moment would sometimes see that answer and sometimes not.
pub(super) const GRACE: Duration = Duration::from_millis(500);

/// Connections that a call is written to before it is said that the server takes none: those of other callers may break too.
const CONNECTIONS: usize = 3;

/// What all clones of a client share.
#[derive(Debug)]
pub(super) struct Shared {
    target: Endpoint,
    pub(super) max_answer: Arc<AtomicUsize>,
    last_id: AtomicU64,
    place: Mutex<Place>,
}

/// Where the connection is kept.
#[derive(Debug, Default)]
struct Place {
    connection: Option<Arc<Connection>>,
    /// When connecting last failed, and how: who waited for that need not try again.
    failed: Option<(Instant, io::Error)>,
}

/// How one client's calls are made.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Manner {
    pub(super) envelope: Envelope,
    pub(super) timeout: Option<Duration>,
    pub(super) retries: u32,
}

impl Manner {
    fn times(&self) -> Times {
        Times {
            sending: Deadline::after(self.timeout),
            waiting: Deadline::after(self.timeout.map(|timeout| timeout.saturating_add(GRACE))),
            asked: self.timeout.unwrap_or(CONNECT_LIMIT),
        }
    }
}

impl Shared {
    pub(super) fn new(target: Endpoint, max_answer: usize) -> Self {
        let max_answer = Arc::new(AtomicUsize::new(max_answer));
        Self { target, max_answer, last_id: AtomicU64::new(0), place: Mutex::default() }
    }

    /// Makes the connection, if there is none.
    pub(super) fn connect(&self, manner: Manner) -> Result<(), ClientError> {
        self.connection(manner.times()).map(|_| ())
    }

    /// Makes the calls as one message, or one row of messages, and again those that were refused. Outcomes come in the order of
    /// the calls.
    pub(super) fn run(&self, manner: Manner, calls: &[Asked<'_>]) -> Vec<Outcome> {
        let times = manner.times();
        let mut outcomes = self.once(manner.envelope, calls, times);
        for failures in 0..manner.retries {
            let Ok(left) = times.sending.left() else { break };
            let again = |outcome: &Outcome| {
                outcome.as_ref().err().and_then(|error| retry::pause(error, failures, left))
            };
            let pauses: Vec<Option<Duration>> = outcomes.iter().map(again).collect();
            let Some(pause) = pauses.iter().flatten().max() else { break };
            thread::sleep(*pause);
            let chosen = calls.iter().zip(&pauses).filter(|(_, pause)| pause.is_some());
            let chosen: Vec<Asked<'_>> = chosen.map(|(call, _)| *call).collect();
            let places = outcomes.iter_mut().zip(&pauses).filter(|(_, pause)| pause.is_some());
            for ((place, _), outcome) in places.zip(self.once(manner.envelope, &chosen, times)) {
                *place = outcome;
            }
        }
        outcomes
    }

    /// Sends a call that is not answered.
    pub(super) fn notify(&self, manner: Manner, asked: &Asked<'_>) -> Result<(), ClientError> {
        let times = manner.times();
        let mut failures = 0;
        loop {
            let told = self.through(times, |connection| {
                let notification = request::notification(asked, left(times)?)?;
                Ok(connection.tell(&notification, times))
            });
            let error = match told.and_then(|told| told) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let pause = times.sending.left().ok().and_then(|left| retry::pause(&error, failures, left));
            match pause.filter(|_| failures < manner.retries) {
                Some(pause) => thread::sleep(pause),
                None => return Err(error),
            }
            failures = failures.saturating_add(1);
        }
    }

    fn once(&self, envelope: Envelope, calls: &[Asked<'_>], times: Times) -> Vec<Outcome> {
        let count = u64::try_from(calls.len()).unwrap_or(u64::MAX);
        let outcomes = self.through(times, |connection| {
            let first = self.last_id.fetch_add(count, Ordering::Relaxed).saturating_add(1);
            let outgoing = request::calls(envelope, first, calls, left(times)?)?;
            Ok(connection.exchange(&outgoing, times))
        });
        outcomes.unwrap_or_else(|error| calls.iter().map(|_| Err(error.again())).collect())
    }

    /// Does something on a connection, and again on another if that ended before the server had any of it whole: the server has been
    /// restarted, or another caller left a message half written.
    fn through<T>(
        &self,
        times: Times,
        send: impl Fn(&Connection) -> Result<Result<T, NotSent>, ClientError>,
    ) -> Result<T, ClientError> {
        for _ in 0..CONNECTIONS {
            if let Ok(done) = send(&*self.connection(times)?)? {
                return Ok(done);
            }
        }
        Err(self.no_server(io::ErrorKind::ConnectionReset.into()))
    }

    /// The connection that is open, or a new one. Only one caller at a time connects.
    fn connection(&self, times: Times) -> Result<Arc<Connection>, ClientError> {
        let since = Instant::now();
        let mut gone: Option<Arc<Connection>> = None;
        loop {
            let mut place = match times.sending.moment() {
                None => self.place.lock(),
                Some(moment) => {
                    self.place.try_lock_until(moment).ok_or(ClientError::Timeout { after: times.asked })?
                }
            };
            // Another caller may have made the next one already.
            let is_gone = |kept: &Arc<Connection>| gone.as_ref().is_some_and(|gone| Arc::ptr_eq(kept, gone));
            if let Some(kept) = place.connection.as_ref().filter(|kept| !is_gone(kept)).cloned() {
                drop(place);
                if kept.is_open() {
                    return Ok(kept);
                }
                gone = Some(kept);
                continue;
            }
            if let Some((_, error)) = place.failed.as_ref().filter(|(moment, _)| *moment > since) {
                return Err(self.no_server(ClientError::like(error)));
            }
            let limit = left(times)?.unwrap_or(CONNECT_LIMIT);
            let deadline = Deadline::after(Some(limit));
            match connect::connect(&self.target, deadline, thread::sleep) {
                Ok(stream) => {
                    let max_answer = Arc::clone(&self.max_answer);
                    let made = Arc::new(Connection::new(stream, self.target.to_string(), max_answer));
                    place.connection = Some(Arc::clone(&made));
                    return Ok(made);
                }
                Err(error) => {
                    // This caller's time is not another's.
                    let is_shared = error.kind() != io::ErrorKind::TimedOut;
                    place.failed = is_shared.then(|| (Instant::now(), ClientError::like(&error)));
                    return Err(self.no_server(error));
                }
            }
        }
    }

    fn no_server(&self, source: io::Error) -> ClientError {
        ClientError::NoServer { addr: self.target.to_string(), source }
    }
}

/// What is left to the server.
fn left(times: Times) -> Result<Option<Duration>, ClientError> {
    times.sending.left().map_err(|broken| match broken {
        Broken::Io(error) => ClientError::Io(error),
        Broken::TimedOut | Broken::Closed => ClientError::Timeout { after: times.asked },
    })
}
