//! Bytes between a connection and its socket.

use std::io;
use std::time::Duration;

use super::{Flags, Input, Locked, Phase, Place};
use crate::fail_points::{self, Kind};
use crate::rpc::Peer;
use crate::sys::blocks::Block;
use crate::sys::clock::Moment;
use crate::worker::connection::chunk::{Chunk, NoBlock, Scratch};

/// How long input is still read and thrown away after our FIN, so that the last answer is not lost to a reset.
pub(super) const LINGER: Duration = Duration::from_secs(2);

impl Locked<'_> {
    /// Receives at most so many bytes: behind what waits of a message, or into `scratch`. All that waits now, which is the
    /// input no longer; None for the peer's FIN.
    ///
    /// # Errors
    ///
    /// Nothing is there now (`WouldBlock`), there is no memory to receive into, or the connection is broken.
    pub(in crate::worker) fn receive(
        &mut self,
        scratch: &mut Scratch,
        most: usize,
    ) -> io::Result<Option<Chunk>> {
        if self.input.is_empty() {
            let block = scratch.block().ok_or(io::ErrorKind::OutOfMemory)?;
            self.expect_input_at(Place { at: block.place(), length: block.len() as u64 });
            let most = most.min(block.len());
            let room = block.get_mut(..most).unwrap_or_default();
            self.begin_io();
            let received = self.connection.socket.receive(room);
            let count = self.received(received)?;
            return Ok(if count == 0 { None } else { scratch.filled(count) });
        }
        let pool = self.pool;
        if let Some(moved) = self.input.moved(pool).map_err(|NoBlock| io::ErrorKind::OutOfMemory)? {
            let needs = self.input.needs();
            self.expect_input_at(moved.place_behind(0));
            self.input.put(moved, needs);
        }
        self.begin_io();
        let room = self.state.input.room();
        let most = most.min(room.len());
        let received = self.connection.socket.receive(room.get_mut(..most).unwrap_or_default());
        let count = self.received(received)?;
        self.input.grow(count);
        Ok(if count == 0 { None } else { self.input.take() })
    }

    fn received(&mut self, received: io::Result<usize>) -> io::Result<usize> {
        self.core.taken += received.as_ref().map_or(0, |count| *count as u64);
        self.end_io();
        received
    }

    /// A client that writes a message in pieces (a head, then the body) without `TCP_NODELAY` keeps each back until the one
    /// before it is acknowledged: then each of its calls would take the 40 ms by which acknowledgements are put off.
    pub(in crate::worker) fn ask_for_the_rest(&self) {
        if self.phase == Phase::Open && self.message_since.is_some() && !self.is_uncounted() {
            self.connection.socket.acknowledge();
        }
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub(in crate::worker) fn flush(&mut self, now: Moment, spare: &mut Option<Block>) -> io::Result<()> {
        self.commit_what_was_put_off();
        while !self.output.is_empty() {
            self.begin_io();
            let sent = self.connection.socket.send(self.output.waiting());
            if let Ok(sent) = sent {
                self.output.sent(sent);
                self.progressed(now);
            }
            self.end_io();
            match sent {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.output.give_back(spare);
        Ok(())
    }

    /// Sends our FIN and from then on only throws input away. It began to linger at `since`, here or in another worker.
    pub(in crate::worker) fn linger(&mut self, since: Moment) {
        self.phase = Phase::Lingering { until: since.instant + LINGER };
        self.progressed(since);
        self.commit();
        fail_points::step(Kind::Path);
        self.connection.socket.shut_down_sending();
        fail_points::step(Kind::Path);
        self.input = Input::default();
    }

    /// The kernel counts what is received and sent by TCP. For a Unix socket the record has to say when it is not sure.
    fn begin_io(&mut self) {
        if self.is_uncounted() {
            self.core.flags.set(Flags::IN_IO, true);
            self.commit();
        }
        fail_points::step(Kind::Path);
    }

    fn end_io(&mut self) {
        fail_points::step(Kind::Path);
        if self.is_uncounted() {
            self.core.flags.set(Flags::IN_IO, false);
            self.commit();
        }
    }

    fn is_uncounted(&self) -> bool {
        matches!(self.connection.peer, Peer::Unix { .. })
    }
}
