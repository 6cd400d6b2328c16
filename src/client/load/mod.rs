//! Load for a server, and what came of it: the engine under `tine bench`, for programs that measure.
//!
//! A [`Load`] is so many connections, each with so many calls in flight, for so long. Two ways to drive it:
//!
//! - **Closed loop** (`rate: None`): each connection sends the next call when one is answered. This finds out what a
//!   server can do; but a server that stalls is asked less meanwhile, and the stall shows in few latencies.
//! - **Open loop** (`rate: Some(…)`): calls are due at even distances, whatever the server does, and a latency counts from
//!   the moment when its call was *due*. A stall then shows in every call that had to wait for it. To count from the
//!   moment of sending instead is what Gil Tene calls *coordinated omission* ("How NOT to Measure Latency", Strange
//!   Loop 2015; his `wrk2` was the first tool to count this way).
//!
//! It runs on the caller's thread: non-blocking sockets, one epoll, no allocation for each call. What the answers of one
//! read make room for goes out in one write. Several loads at once (sixty connections that ping beside four that
//! sleep) are several [`Load::run`] on threads of their own, each with its report.
//!
//! What an answer must be is the business of an [`Exchange`]: [`Native`] for tine's own protocol, [`Fixed`] for bytes that
//! never change.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::sync::atomic::AtomicBool;
//! use std::time::Duration;
//!
//! use tine::load::{Fixed, Load};
//!
//! // A server for one connection, which sends back what it gets.
//! let server = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let to = server.local_addr()?.to_string();
//! std::thread::spawn(move || -> std::io::Result<()> {
//!     let (mut caller, _) = server.accept()?;
//!     let mut bytes = [0; 4096];
//!     loop {
//!         let count = caller.read(&mut bytes)?;
//!         caller.write_all(&bytes[..count])?;
//!     }
//! });
//!
//! let load = Load {
//!     to,
//!     connections: 1,
//!     pipeline: 8,
//!     warm_up: Duration::from_millis(5),
//!     duration: Duration::from_millis(50),
//!     ..Load::default()
//! };
//! let echo = Fixed::new(b"hello".to_vec(), b"hello".to_vec());
//! let report = load.run(&echo, &AtomicBool::new(false), &mut |_| {})?;
//! assert!(report.is_clean() && report.calls > 0);
//! println!("{:.0} calls/s, p99 {:?}", report.rate(), report.percentile(99.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod connection;
mod engine;
mod error;
mod exchange;
mod flight;
mod native;
mod report;
mod schedule;
mod socket;
mod tally;
mod targets;
#[cfg(test)]
mod tests;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::config::{AddressError, Endpoint};
use crate::sys::limits;

pub use error::LoadError;
pub use exchange::{Answer, Exchange, Fixed};
pub use native::Native;
pub use report::{Phase, Progress, Report};

use engine::Engine;

/// Calls a second beyond which a rate is a slip of the finger.
const HIGHEST_RATE: f64 = 100e6;

/// What all connections together may have in flight.
const MOST_IN_FLIGHT: usize = 64 << 20;

/// Descriptors for what is open beside the connections: standard streams, epoll, the timer, a caller's files.
const OTHER_DESCRIPTORS: u64 = 32;

/// Calls to be made: how many at once, how fast, how long.
#[derive(Debug, Clone)]
pub struct Load {
    /// `HOST:PORT` (IPv6 in brackets) or `unix:PATH`.
    pub to: String,
    /// At least 1.
    pub connections: usize,
    /// Calls in flight on each connection, at least 1.
    pub pipeline: usize,
    /// Calls a second over all connections, above 0 and up to 100 million; without it, as many as the server answers.
    pub rate: Option<f64>,
    /// Time under load before anything is counted.
    pub warm_up: Duration,
    /// The measured time, above 0.
    pub duration: Duration,
}

impl Default for Load {
    /// What `tine bench` does without options: `127.0.0.1:8080`, 64 connections with one call each, as fast as the
    /// server answers, one second of warm-up and ten that count.
    fn default() -> Self {
        Self {
            to: "127.0.0.1:8080".to_owned(),
            connections: 64,
            pipeline: 1,
            rate: None,
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(10),
        }
    }
}

impl Load {
    /// Makes the calls, on this thread, and reports.
    ///
    /// `on_progress` is called about ten times a second, and when the measured time begins and ends. Setting `stop` ends the load within some milliseconds with what
    /// was measured so far; calls still on their way are then not counted.
    ///
    /// A connection that the server closes, or that brings a wrong answer, is made anew after a pause of 10 ms (50 ms when
    /// it could not be made), for as long as the load runs. After the measured time no call is begun; up to 5 seconds
    /// are given to those on their way. In an open loop calls that were due and not sent yet are still sent
    /// for a second, so that a stall at the very end is seen as well.
    ///
    /// The descriptor limit of this process is raised as far as it may be when the connections need it.
    ///
    /// # Errors
    ///
    /// [`LoadError::Address`] and [`LoadError::Setting`] for what can't be, [`LoadError::Descriptors`] when this process
    /// may not open that many connections, [`LoadError::NoServer`] when none can be made at the beginning (for 400 ms
    /// when refused, 10 s when not answered), [`LoadError::Connections`] when only some can, [`LoadError::Io`]
    /// when the system refuses the rest. What happens to connections and calls later is in the report.
    pub fn run<E: Exchange>(
        &self,
        exchange: &E,
        stop: &AtomicBool,
        on_progress: &mut dyn FnMut(&Progress),
    ) -> Result<Report, LoadError> {
        let target = self.check()?;
        Engine::new(self, target, exchange)?.run(stop, on_progress)
    }

    fn check(&self) -> Result<Endpoint, LoadError> {
        let target = self.to.parse().map_err(|error: AddressError| LoadError::Address(error.to_string()))?;
        let refuse = |words: String| Err(LoadError::Setting(words));
        if self.connections == 0 {
            return refuse("connections: expected at least 1, found 0".to_owned());
        }
        if self.pipeline == 0 {
            return refuse(
                "pipeline: expected at least 1 call in flight on a connection, found 0".to_owned(),
            );
        }
        if self.connections.saturating_mul(self.pipeline) > MOST_IN_FLIGHT {
            return refuse(format!(
                "connections × pipeline: expected at most {MOST_IN_FLIGHT} calls in flight, found {} × {}",
                self.connections, self.pipeline
            ));
        }
        if let Some(rate) = self.rate
            && !(rate > 0.0 && rate <= HIGHEST_RATE)
        {
            return refuse(format!(
                "rate: expected more than 0 and up to {HIGHEST_RATE:.0} calls a second, found {rate}"
            ));
        }
        if self.duration.is_zero() {
            return refuse("duration: expected some time, found 0s".to_owned());
        }
        self.check_descriptors()?;
        Ok(target)
    }

    fn check_descriptors(&self) -> Result<(), LoadError> {
        let needed = (self.connections as u64).saturating_add(OTHER_DESCRIPTORS);
        if needed <= limits::descriptors() {
            return Ok(());
        }
        let most = limits::raise_descriptors()?;
        if needed > most {
            return Err(LoadError::Descriptors { connections: self.connections, most });
        }
        Ok(())
    }
}
