//! A call on its way to a thread of the pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::{BeforeQueue, RefusedCall};
use super::decide::{RejectReason, decide};
use super::message::Parsed;
use crate::worker::call::caller::Whom;
use crate::worker::call::ticket::Ticket;
use crate::worker::connection::chunk::Chunk;
use crate::worker::connection::{Answered, Connection, InFlight, Locked, Member};
use crate::worker::threads::worker_thread::WorkerThread;

/// A call on its way to a pool thread.
#[derive(Debug, Clone)]
pub(in crate::worker) struct Job {
    pub(in crate::worker) connection: Arc<Connection>,
    /// Which of the connection's calls it is.
    pub(in crate::worker) number: u64,
    pub(in crate::worker) message: Chunk,
    /// Its time counts from here.
    pub(in crate::worker) arrived: Instant,
    /// None where the message is left to the pool thread to parse. Where it is known in the queue, the call counts among
    /// those of its method that run.
    pub(in crate::worker) call: Option<Parsed>,
    /// Of a batch, which has the whole message.
    pub(in crate::worker) member: Option<Member>,
    pub(in crate::worker) ticket: Arc<Ticket>,
}

impl Job {
    /// A thread has it from now on. False where it was given up, and its places given back.
    pub(in crate::worker) fn is_taken(&self) -> bool {
        self.ticket.take()
    }
}

impl WorkerThread {
    /// Puts a call into the queue, or refuses it. `call` is None where a thread of the pool is to parse the message.
    pub(in crate::worker) fn enqueue(
        &mut self,
        state: &mut Locked<'_>,
        message: &[u8],
        whom: Whom,
        (call, allowed): (Option<Parsed>, Duration),
    ) {
        let (who, method) = (state.connection.who, call.map(|call| call.method));
        let about = RefusedCall { who, method, allowed };
        let mut checks = BeforeQueue { shared: self.shared, who, method, allowed, has_memory: true };
        let decided = decide(self.now + allowed, &mut checks, self.now);
        let copied = decided.and_then(|place| match Chunk::copy_of(message, 0, self.shared.pool) {
            Some(copy) => Ok((place, copy)),
            None => {
                self.shared.not_admitted(who, place, method);
                Err(RejectReason::NoMemory)
            }
        });
        let (place, copy) = match copied {
            Ok(copied) => copied,
            Err(refusal) => return self.refuse(state, refusal, (whom, message), about, Answered::Message),
        };
        let number = state.next_call_number();
        let ticket = Arc::new(Ticket::new(place, method));
        let in_flight = InFlight::queued(number, copy.clone(), whom, allowed, self.now).with(&ticket);
        // It may be taken from the queue at once, but not looked at before the lock is released.
        state.enqueue(in_flight, self.now_ns);
        let connection = Arc::clone(state.connection);
        let job = Job { connection, number, message: copy, arrived: self.now, call, member: None, ticket };
        // The gate admits no more than fit.
        if !self.shared.dispatch(place, Box::new(job))
            && let Some(call) = state.take_call(number)
        {
            let refusal = RejectReason::Crowded(self.shared.refused(who, method));
            self.refuse(state, refusal, (call.caller, &call.message), about, Answered::Call(&call));
        }
    }
}
