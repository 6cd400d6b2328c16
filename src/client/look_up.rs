//! Looks a server's name up without waiting longer than there is time.
//!
//! The system's resolver knows no deadline, so it is asked on a thread of its own. Where there is no name there is no thread.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, panic};

use crate::config::{Address, Endpoint};

type Found = io::Result<Vec<Address>>;

/// A name that is being looked up. Dropped, the thread ends when the resolver has answered, and nobody hears of it.
#[derive(Debug)]
pub(super) struct LookUp {
    found: Receiver<Found>,
    thread: JoinHandle<()>,
}

impl LookUp {
    pub(super) fn begin(endpoint: &Endpoint) -> io::Result<Self> {
        let (tell, found) = channel();
        let endpoint = endpoint.clone();
        let thread = thread::Builder::new().name("look-up".to_owned()).spawn(move || {
            // Whoever asked may have given up.
            let _ = tell.send(endpoint.addresses());
        })?;
        Ok(Self { found, thread })
    }

    /// What was found; gives itself back while nothing is.
    pub(super) fn finished(self) -> Result<Found, Self> {
        match self.found.try_recv() {
            Ok(found) => Ok(self.end(found)),
            Err(TryRecvError::Empty) => Err(self),
            Err(TryRecvError::Disconnected) => Ok(self.end(Err(io::ErrorKind::Other.into()))),
        }
    }

    fn wait(self, limit: Duration) -> Found {
        match self.found.recv_timeout(limit) {
            Ok(found) => self.end(found),
            Err(RecvTimeoutError::Timeout) => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the name could not be looked up in time"))
            }
            Err(RecvTimeoutError::Disconnected) => self.end(Err(io::ErrorKind::Other.into())),
        }
    }

    /// Joined, because a process that has connected may count its threads before it forks.
    fn end(self, found: Found) -> Found {
        if let Err(payload) = self.thread.join() {
            panic::resume_unwind(payload);
        }
        found
    }
}

/// The addresses of a server, looked up now if it was given by name.
pub(super) fn addresses(endpoint: &Endpoint, limit: Duration) -> Found {
    if endpoint.is_name() { LookUp::begin(endpoint)?.wait(limit) } else { endpoint.addresses() }
}
