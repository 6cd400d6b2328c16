//! What a handler is told about its call, and the worker it runs in.
//!
//! The worker puts a [`Call`] together from things it has anyway; that is a few words copied, and nothing is allocated.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::json::RawJson;
use crate::sys::peer::PeerAddress;

/// One call, as its handler sees it.
///
/// ```
/// use tine::{Call, Error};
///
/// fn count_to_a_million(call: &Call<'_>, _params: ()) -> Result<u32, Error> {
///     let mut n = 0;
///     while n < 1_000_000 {
///         if call.is_cancelled() {
///             return Err(Error::new(1, format!("got to {n} only")));
///         }
///         n += 1;
///     }
///     Ok(n)
/// }
/// ```
pub struct Call<'a> {
    parts: CallParts<'a>,
}

/// What a [`Call`] is made of.
#[derive(Clone, Copy)]
pub(crate) struct CallParts<'a> {
    pub(crate) method: &'a str,
    pub(crate) id: Option<RawJson<'a>>,
    pub(crate) peer: &'a Peer,
    pub(crate) worker: &'a WorkerInfo,
    pub(crate) states: &'a States,
    /// Set by whoever learns that nobody waits for the answer any more.
    pub(crate) gone: &'a AtomicBool,
    pub(crate) deadline: Instant,
    pub(crate) thread: usize,
}

impl<'a> Call<'a> {
    pub(crate) fn new(parts: CallParts<'a>) -> Self {
        Call { parts }
    }

    /// The name of the method, as it was registered.
    pub fn method(&self) -> &'a str {
        self.parts.method
    }

    /// Who calls.
    pub fn peer(&self) -> &'a Peer {
        self.parts.peer
    }

    /// The id the caller gave this call, as written; `None` if it gave none.
    pub fn id(&self) -> Option<RawJson<'a>> {
        self.parts.id
    }

    /// The slot of the worker that runs this call: a number from 0, which a restarted worker keeps.
    pub fn slot(&self) -> usize {
        self.parts.worker.slot
    }

    /// The worker that runs this call.
    pub fn worker(&self) -> &'a WorkerInfo {
        self.parts.worker
    }

    /// The number of the thread that runs this call, from 0, within its worker.
    pub fn thread(&self) -> usize {
        self.parts.thread
    }

    /// When the caller is told that time is up, whether the handler is done or not.
    pub fn deadline(&self) -> Instant {
        self.parts.deadline
    }

    /// The time left until the [deadline](Call::deadline); zero when it has passed. What a handler waits for should be given
    /// no more than this:
    ///
    /// ```
    /// use std::io::{self, Read};
    /// use std::net::TcpStream;
    /// use tine::{Call, Error};
    ///
    /// fn ask_back_end(call: &Call<'_>, address: String) -> Result<String, Error> {
    ///     let read = || -> io::Result<String> {
    ///         let mut stream = TcpStream::connect(address)?;
    ///         stream.set_read_timeout(Some(call.remaining().max(std::time::Duration::from_millis(1))))?;
    ///         let mut answer = String::new();
    ///         stream.read_to_string(&mut answer)?;
    ///         Ok(answer)
    ///     };
    ///     read().map_err(Error::internal)
    /// }
    /// # tine::Server::new().method("ask", ask_back_end);
    /// ```
    pub fn remaining(&self) -> Duration {
        self.parts.deadline.saturating_duration_since(Instant::now())
    }

    /// True when nobody waits for the answer any more: the caller is gone, or the deadline has passed. A handler that
    /// takes long should look now and then, and return whatever it likes: its thread is free then. One that does not
    /// return within `timeouts.stuck` of its deadline has its worker replaced.
    ///
    /// ```
    /// use tine::{Call, Error};
    ///
    /// fn primes(call: &Call<'_>, below: u64) -> Result<Vec<u64>, Error> {
    ///     let mut primes: Vec<u64> = Vec::new();
    ///     for n in 2..below {
    ///         if n % 1024 == 0 && call.is_cancelled() {
    ///             return Err(Error::new(1, "nobody waits"));
    ///         }
    ///         if primes.iter().all(|prime| n % prime != 0) {
    ///             primes.push(n);
    ///         }
    ///     }
    ///     Ok(primes)
    /// }
    /// # tine::Server::new().method("primes", primes);
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.parts.gone.load(Ordering::Relaxed) || self.remaining().is_zero()
    }

    /// This worker's own `S`, made by the closure given to [`Server::state`](crate::Server::state).
    ///
    /// # Panics
    ///
    /// If the server has no state of this type, which is a mistake in its program; the caller is answered
    /// [`Error::INTERNAL`](crate::Error::INTERNAL). [`Call::try_state`] doesn't panic.
    #[track_caller]
    pub fn state<S: Send + Sync + 'static>(&self) -> &'a S {
        match self.try_state() {
            Some(state) => state,
            None => panic!(
                "no state of type `{}` was registered; add `.state(|worker| ...)` to the server",
                type_name::<S>()
            ),
        }
    }

    /// This worker's own `S`, or `None` if the server has no state of this type.
    pub fn try_state<S: Send + Sync + 'static>(&self) -> Option<&'a S> {
        self.parts.states.get()
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("method", &self.parts.method)
            .field("id", &self.parts.id)
            .field("peer", &self.parts.peer)
            .field("worker", &self.parts.worker)
            .field("thread", &self.parts.thread)
            .finish_non_exhaustive()
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// A TCP client's address.
    Tcp(SocketAddr),
    /// A client of a Unix socket, as it was when it connected.
    Unix {
        /// Its user.
        uid: u32,
        /// Its process; 0 if that's not visible from here.
        pid: i32,
    },
}

impl Peer {
    pub(crate) fn address(&self) -> PeerAddress {
        match *self {
            Peer::Tcp(address) => PeerAddress::Tcp(address),
            Peer::Unix { uid, pid } => PeerAddress::Unix { uid, pid },
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(f)
    }
}

/// A worker process, as its own code sees it.
#[derive(Debug, Clone)]
pub struct WorkerInfo {
    slot: usize,
    pid: u32,
    generation: u64,
    started: Instant,
}

impl WorkerInfo {
    pub(crate) fn new(slot: usize, pid: u32, generation: u64, started: Instant) -> Self {
        WorkerInfo { slot, pid, generation, started }
    }

    /// The worker's stable number, from 0 to one less than the number of processes; a restarted worker keeps it.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Which generation it belongs to; a reload starts the next one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When it was forked.
    pub fn started(&self) -> Instant {
        self.started
    }
}

/// One worker's states, one of a type.
///
/// A list, not a map: a server has a handful, and looking at a handful of type ids is quicker than hashing one.
#[derive(Default)]
pub(crate) struct States {
    states: Vec<(TypeId, Box<dyn Any + Send + Sync>)>,
}

impl States {
    pub(super) fn insert(&mut self, state: Box<dyn Any + Send + Sync>) {
        self.states.push(((*state).type_id(), state));
    }

    fn get<S: Send + Sync + 'static>(&self) -> Option<&S> {
        let wanted = TypeId::of::<S>();
        let (_, state) = self.states.iter().find(|(id, _)| *id == wanted)?;
        state.downcast_ref()
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "States({})", self.states.len())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs `test` with a call of `method` in slot 2, on thread 3, by a caller who waits for an hour.
    pub(in crate::rpc) fn with_call<T>(
        method: &str,
        id: Option<RawJson<'_>>,
        states: &States,
        test: impl FnOnce(&Call<'_>) -> T,
    ) -> T {
        let now = Instant::now();
        test(&Call::new(CallParts {
            method,
            id,
            peer: &Peer::Unix { uid: 0, pid: 1 },
            worker: &WorkerInfo::new(2, 4711, 5, now),
            states,
            gone: &AtomicBool::new(false),
            deadline: now + Duration::from_secs(3600),
            thread: 3,
        }))
    }

    #[test]
    fn a_call_tells_what_it_was_made_of() {
        with_call("frob", RawJson::parse("7").ok(), &States::default(), |call| {
            assert_eq!((call.method(), call.slot(), call.thread()), ("frob", 2, 3));
            assert_eq!(call.id().unwrap().get(), "7");
            assert!(call.remaining() > Duration::from_secs(1800));
            assert!(!call.is_cancelled());
        });
    }

    #[test]
    fn a_call_is_cancelled_when_its_caller_is_gone() {
        with_call("frob", None, &States::default(), |call| {
            let gone = AtomicBool::new(true);
            let call = Call::new(CallParts { gone: &gone, ..call.parts });
            assert!(call.is_cancelled() && !call.remaining().is_zero());
        });
    }

    #[test]
    fn a_call_is_cancelled_when_its_deadline_has_passed() {
        with_call("frob", None, &States::default(), |call| {
            let call = Call::new(CallParts { deadline: Instant::now(), ..call.parts });
            assert!(call.remaining().is_zero() && call.is_cancelled());
        });
    }

    #[test]
    fn a_state_is_found_by_its_type() {
        let mut states = States::default();
        states.insert(Box::new(5_u32));
        states.insert(Box::new(String::from("five")));
        with_call("frob", None, &states, |call| {
            assert_eq!(call.state::<u32>(), &5);
            assert_eq!(call.state::<String>(), "five");
            assert_eq!(call.try_state::<u64>(), None);
        });
    }

    #[test]
    #[should_panic(expected = "no state of type `u64` was registered")]
    fn a_state_nobody_registered_is_named() {
        with_call("frob", None, &States::default(), |call| *call.state::<u64>());
    }

    #[test]
    fn peers_are_told_apart_in_the_log() {
        assert_eq!(Peer::Tcp("[::1]:80".parse().unwrap()).to_string(), "[::1]:80");
        assert_eq!(Peer::Unix { uid: 1000, pid: 7 }.to_string(), "unix:uid=1000,pid=7");
    }
}
