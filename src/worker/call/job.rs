//! A call on its way to a thread of the pool.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
    pub(in crate::worker) fn enqueue_call(&mut self, state: &mut Locked<'_>, message: &[u8], call: Parsed) {
        match self.shared.quarantine.admits(call.method) {
            Ok(()) => self.enqueue(state, message, Whom::Known(call.caller), (Some(call), call.allowed)),
            Err(shut) => {
                let error = self.shared.quarantined(call.method, shut);
                self.answer_error(state, &error, call.caller.caller(message), Answered::Message);
            }
        }
    }

    pub(in crate::worker) fn enqueue(
        &mut self,
        state: &mut Locked<'_>,
        message: &[u8],
        whom: Whom,
        (call, allowed): (Option<Parsed>, Duration),
    ) {
        let (who, method) = (state.connection.who, call.map(|call| call.method));
        let place = match self.shared.admit(who, method, allowed) {
            Ok(place) => place,
            Err(refused) => return self.refuse(state, refused, (whom, message), Answered::Message),
        };
        let Some(copy) = Chunk::copy_of(message, 0, self.shared.pool) else {
            self.shared.not_admitted(who, place, method);
            let refused = self.shared.refused_memory(who, method);
            return self.refuse(state, refused, (whom, message), Answered::Message);
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
            let refused = self.shared.refused(who, method);
            self.refuse(state, refused, (call.caller, &call.message), Answered::Call(&call));
        }
    }
}
