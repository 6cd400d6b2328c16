//! From what another worker left of a connection to a connection of this one.
//!
//! Made first, with a record of its own, and touched only later: until the supervisor has been told, the other worker's
//! record is the one that counts, and should this process die then, a third worker starts from that again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::epoll::EpollEvent;

use crate::arena::{Core, Flags, KeptConnection, Key, Ran, Waited};
use crate::fail_points::{self, Kind};
use crate::rpc::{Error, Peer};
use crate::sys::peer::PeerAddress;
use crate::sys::socket::Socket;
use crate::worker::call::Job;
use crate::worker::call::admission::RefusedCall;
use crate::worker::call::caller::{Asked, Caller, Protocol, Whom};
use crate::worker::call::concurrency::Who;
use crate::worker::call::ticket::Ticket;
use crate::worker::call::write_unfinished;
use crate::worker::connection::chunk::Chunk;
use crate::worker::connection::{self, Answered, Batch, Connection, InFlight, Locked, Member, Parts, Phase};
use crate::worker::handover::leave::Going;
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::token_of;

/// A connection that is this worker's as soon as the supervisor knows; nobody else here has it yet.
#[derive(Debug)]
pub(in crate::worker) struct Prepared {
    connection: Arc<Connection>,
    /// Its calls that waited for a thread and wait again.
    jobs: Vec<Job>,
}

impl Prepared {
    pub(in crate::worker) fn key(&self) -> Key {
        self.connection.key
    }

    pub(in crate::worker) fn has_place(&self) -> bool {
        self.connection.lock().has_place()
    }
}

impl WorkerThread {
    /// Makes a connection of what is left of it. None where this worker has no room for it.
    ///
    /// `cause` is for the callers of calls that ran: what their worker died of.
    pub(in crate::worker) fn prepare(
        &mut self,
        socket: Socket,
        peer: PeerAddress,
        kept: KeptConnection,
        cause: &str,
    ) -> Option<Prepared> {
        let accepts = connection::accepts_of(kept.flags, self.shared.max_message);
        let pool = self.shared.pool;
        let moved = self.moment().earlier(kept.moved_ns);
        let core = Core {
            begun: kept.taken.saturating_sub(kept.input.len() as u64),
            out_from: kept.sent,
            taken: kept.taken,
            sent: kept.sent,
            moved_ns: moved.ns,
            flags: kept.flags,
            ..Core::default()
        };
        let key = self.shared.table.lock().reserve();
        let Some(record) = self.shared.records.open(key, &core) else {
            self.shared.table.lock().give_back(key);
            return None;
        };
        let who = Who::new(peer.key(), |address| self.shared.queue.open(address));
        let peer = Peer::from(peer);
        let parts = Parts { key, socket, peer, who, accepts, pool, record, core };
        let connection = Arc::new(Connection::new(parts, moved.instant));
        connection.kept.store(true, Ordering::Relaxed);
        // Before the supervisor hears of it, which forgets then what its worker before has counted.
        self.shared.address_came(&connection.peer);
        let mut state = connection.lock();
        let jobs = self.fill(&mut state, kept, cause);
        drop(state);
        let prepared = Prepared { connection, jobs: Vec::new() };
        match jobs {
            Some(jobs) => Some(Prepared { jobs, ..prepared }),
            None => {
                self.drop_prepared(prepared);
                None
            }
        }
    }

    /// Brings all that was left into a new connection. None where there is no memory for it.
    fn fill(&mut self, state: &mut Locked<'_>, kept: KeptConnection, cause: &str) -> Option<Vec<Job>> {
        if kept.flags.contains(Flags::LINGERING) {
            // It begins to where it is taken in.
            state.phase = Phase::Lingering { until: self.now };
        } else if kept.flags.contains(Flags::FINISHING) {
            state.phase = Phase::Finishing;
        }
        if kept.message_ns != 0 && !kept.input.is_empty() {
            state.message_arrives(Some(self.moment().earlier(kept.message_ns)));
        }
        if !state.adopt_input(&kept.input) {
            return None;
        }
        self.answer.clear();
        self.answer.extend_from_slice(&kept.output);
        for ran in &kept.ran {
            self.answer_for_the_dead(state, ran, cause);
        }
        if !self.answer.is_empty() && !state.publish(&self.answer, Answered::Message, &mut self.spare) {
            return None;
        }
        self.answer = Vec::new();
        let mut jobs = Vec::new();
        for waited in &kept.waited {
            fail_points::step(Kind::Adopt);
            if !self.wait_again(state, waited, &mut jobs) {
                return None;
            }
        }
        Some(jobs)
    }

    /// Adds to `self.answer` what the caller of a call is told that began and can't be answered by who ran it.
    fn answer_for_the_dead(&mut self, state: &mut Locked<'_>, ran: &Ran, cause: &str) {
        let Some(framing) = state.framing else { return };
        let protocol = Protocol::new(framing, self.shared.context);
        let gathered = ran.gathered.iter().map(|(index, answer)| (*index, answer.as_slice()));
        let crashed = |method: &str| Error::crashed(method, cause);
        let reply = write_unfinished(&mut self.answer, protocol.read_begun(&ran.message), gathered, crashed);
        if reply.ends_connection() {
            state.phase = Phase::Finishing;
        }
    }

    /// Links a call that waited, or answers it where it can't be run. False where there is no memory for it.
    fn wait_again(&mut self, state: &mut Locked<'_>, waited: &Waited, jobs: &mut Vec<Job>) -> bool {
        let Some(framing) = state.framing else { return true };
        let protocol = Protocol::new(framing, self.shared.context);
        let age = Duration::from_nanos(self.now_ns.saturating_sub(waited.arrived_ns));
        let arrived = self.now.checked_sub(age).unwrap_or(self.now);
        let mut batch_so_far = None;
        let (whom, allowed) = match protocol.read(&waited.message) {
            Asked::Call { request, reply, text_at } => {
                match self.shared.understand(&request, reply, text_at, self.now) {
                    Ok(call) => (Whom::Known(call.caller), call.allowed),
                    Err(error) => {
                        let caller = Caller { reply, id: request.id() };
                        return self.answer_instead(state, &error, caller);
                    }
                }
            }
            Asked::Batch { reply, text_at, timeout_ms, .. } => {
                if !waited.gathered.is_empty() {
                    batch_so_far = Some(Box::new(Batch::new(reply, text_at, None, arrived, Vec::new())));
                }
                (Whom::NotParsed(protocol), self.shared.allowed_unread(timeout_ms))
            }
            Asked::Page { .. } => (Whom::NotParsed(protocol), self.shared.allowed_unread(None)),
            Asked::Nothing { caller, error } => return self.answer_instead(state, &error, caller),
        };
        let Some(message) = Chunk::copy_of(&waited.message, 0, self.shared.pool) else {
            return false;
        };
        let number = state.next_call_number();
        let ticket = Arc::new(Ticket::default());
        let mut in_flight = InFlight::queued(number, message.clone(), whom, allowed, self.now).with(&ticket);
        in_flight.deadline = arrived + allowed;
        in_flight.batch = batch_so_far;
        state.enqueue(in_flight, waited.arrived_ns);
        let gathered =
            waited.gathered.iter().map(|(index, answer)| (Member { batch: number, index: *index }, answer));
        for (member, answer) in gathered {
            if !state.gather(member, answer) {
                return false;
            }
        }
        if !state.tell_what_has_run() {
            return false;
        }
        let connection = Arc::clone(state.connection);
        // Its thread parses it once more, and asks then whether its method may run: it is late enough for that.
        jobs.push(Job { connection, number, message, arrived, call: None, member: None, ticket });
        true
    }

    /// Answers a call that waited and can't be run. False where there is no memory for it.
    fn answer_instead(&mut self, state: &mut Locked<'_>, error: &Error, caller: Caller<'_>) -> bool {
        self.answer.clear();
        caller.write_error(&mut self.answer, error);
        if caller.reply.ends_connection() {
            state.phase = Phase::Finishing;
        }
        state.publish(&self.answer, Answered::Message, &mut self.spare)
    }

    /// The supervisor knows that this worker has the connection: it is served from now on. What follows is the poller's
    /// next thing to do with it; no handler runs here.
    pub(in crate::worker) fn take_in(&mut self, prepared: Prepared) -> Key {
        let Prepared { connection, jobs } = prepared;
        let key = connection.key;
        self.shared.table.lock().fill(key, Arc::clone(&connection));
        self.row.connection_opened();
        let mut state = connection.lock();
        let event = EpollEvent::new(state.armed.flags(), token_of(key));
        if let Err(error) = self.shared.epoll.add(&connection.socket, event) {
            connection.can_not_be_watched(error);
            // They have no place at the gate yet that could be given back.
            state.calls.clear();
            self.close(&mut state);
            return key;
        }
        if matches!(state.phase, Phase::Lingering { .. }) {
            let since = state.last_moved();
            state.linger(since);
        }
        if self.shared.lets_go() {
            state.going = Going::Asked;
        }
        for job in jobs {
            self.queue_again(&mut state, job);
        }
        key
    }

    /// It was admitted once, by the worker that it waited in, so it is not refused for the wait.
    fn queue_again(&mut self, state: &mut Locked<'_>, job: Job) {
        let (number, who) = (job.number, job.connection.who);
        self.shared.gate.began_unasked();
        if !self.shared.enqueue(Box::new(job))
            && let Some(call) = state.take_call(number)
        {
            let about = RefusedCall { who, method: None, allowed: call.allowed };
            let error = self.error_of(self.shared.late_or_crowded(false, about), about);
            self.answer_waiting(state, &call, &error);
        }
    }

    /// Has everything wait for a thread again that was let go with its connection, which nobody else can have.
    pub(in crate::worker) fn wait_here_again(&mut self, state: &mut Locked<'_>) {
        let connection = Arc::clone(state.connection);
        let mut jobs = Vec::new();
        state.all_wait(self.now);
        for call in &mut state.calls {
            // Whoever still has the job of before finds its ticket given up.
            call.ticket = Arc::default();
            jobs.push(Job {
                connection: Arc::clone(&connection),
                number: call.number,
                message: call.message.clone(),
                arrived: call.deadline.checked_sub(call.allowed).unwrap_or(self.now),
                call: None,
                member: None,
                ticket: Arc::clone(&call.ticket),
            });
        }
        for job in jobs {
            self.queue_again(state, job);
        }
    }

    /// Nobody will ever know of it here: its record goes, and its socket is closed without a word.
    pub(in crate::worker) fn drop_prepared(&mut self, prepared: Prepared) {
        let mut state = prepared.connection.lock();
        state.leave_record();
        state.phase = Phase::Closed;
        state.calls.clear();
        self.shared.table.lock().give_back(prepared.connection.key);
        self.shared.queue.close(prepared.connection.who.lane);
        self.shared.address_left(&prepared.connection.peer);
    }

    /// Moves a connection on that was taken in.
    pub(in crate::worker) fn take_up(&mut self, key: Key) {
        fail_points::step(Kind::Adopt);
        let Some(connection) = self.shared.find(key) else {
            return;
        };
        let mut state = connection.lock();
        self.go_on(&mut state);
        drop(state);
        if self.term.is_some() && self.shared.context.is_closing() {
            self.drain(&connection);
        }
    }
}
