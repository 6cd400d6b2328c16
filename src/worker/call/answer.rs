//! Answers that no handler gives, and how every answer is put out.

use std::io;

use crate::log::More;
use crate::rpc::Error;
use crate::rpc::web::Wanted;
use crate::worker::call::caller::{Caller, ReplyFormat};
use crate::worker::connection::{Answered, Locked, Phase, SPARE};
use crate::worker::counted::PAGES;
use crate::worker::threads::worker_thread::WorkerThread;

impl WorkerThread {
    /// Writes an error answer for a message or call that no handler answers.
    pub(in crate::worker) fn answer_error(
        &mut self,
        state: &mut Locked<'_>,
        error: &Error,
        caller: Caller<'_>,
        answered: Answered<'_>,
    ) {
        self.answer.clear();
        caller.write_error(&mut self.answer, error);
        self.put_out(state, caller.reply, answered);
    }

    /// Answers what needs no method.
    pub(in crate::worker) fn answer_page(
        &mut self,
        state: &mut Locked<'_>,
        page: &Wanted<'_>,
        reply: ReplyFormat,
        answered: Answered<'_>,
    ) {
        if let Wanted::Refused(refusal) = page
            && refusal.is_page
        {
            let peer = &state.connection.peer;
            if let Some(More { count, from }) = PAGES.admit(peer.address().key()) {
                tracing::warn!(%peer, more = count, from, "a page's call is refused: {}", refusal.error.message());
            }
        }
        self.answer.clear();
        // That others take this worker's place is no reason to send no calls.
        let is_ready = !self.shared.context.is_red() && !self.shared.context.is_closing();
        reply.write_page(&mut self.answer, page, is_ready);
        self.put_out(state, reply, answered);
    }

    /// Adds `self.answer` to what is to be sent.
    pub(in crate::worker) fn put_out(
        &mut self,
        state: &mut Locked<'_>,
        reply: ReplyFormat,
        answered: Answered<'_>,
    ) {
        // With the answer, or a worker that goes on with the connection would begin what is behind it.
        let is_last = self.shared.context.is_closing()
            && state.input_ended
            && !matches!(answered, Answered::Message)
            && (state.phase == Phase::Finishing || !state.has_more_input());
        // A refused one makes room for a health check.
        let makes_room = !state.has_place() && state.refuses_unkept;
        let says_so = (is_last || makes_room) && reply.say_goodbye(&mut self.answer);
        let ends = reply.ends_connection() || says_so || makes_room;
        if ends && state.phase == Phase::Open {
            state.phase = Phase::Finishing;
        }
        state.progressed(self.moment());
        if !state.publish(&self.answer, answered, &mut self.spare) {
            self.fail(state, &io::ErrorKind::OutOfMemory.into());
        }
        if self.answer.capacity() > SPARE {
            self.answer = Vec::new();
        }
    }
}
