//! Groups of clients that behave alike. What is not said is what a plain client does.

use std::time::Duration;

use super::content::Work;
use super::speech::Speech;

/// Clients that behave alike. They never connect again: a connection that the service ends is counted, and stays gone.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub name: &'static str,
    pub clients: usize,
    pub work: Work,
    /// What they speak: each client one of these, in turn.
    pub speeches: &'static [Speech],
    /// Messages on their way at once on one connection.
    pub depth: usize,
    /// A call is due this long after the one before it was; zero: as soon as there is room.
    pub pace: Duration,
    /// How old a connection is at its first call.
    pub after: Duration,
    /// The clients make their first calls one after another, in this time behind that.
    pub first_calls_over: Duration,
    /// The clients come one after another, in this time: those who do something each second don't all do it at once.
    pub over: Duration,
    pub sending: Sending,
    pub reading: Reading,
    pub life: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sending {
    /// As much as the socket takes.
    Whole,
    /// In pieces of odd sizes, each by itself.
    Odd,
    /// As `Whole`, now and then with one byte sent as urgent data, which is part of the stream all the same.
    Urgent,
    /// So many bytes each time this has passed.
    Paced { bytes: usize, every: Duration },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// As soon as there is something.
    Eager,
    /// So many bytes each time this has passed, with little room in the kernel.
    Paced {
        bytes: usize,
        every: Duration,
    },
    Never,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It stays for as long as the load runs.
    Long,
    /// So many calls, then FIN; all answers are read up to the service's own FIN; then another client comes.
    HalfClosing { calls: u64 },
    /// So many calls and answers, then it leaves; then another client comes, when its first call is due.
    Visit { calls: u64 },
    /// A nuisance: when the service ends the connection, which it may, another client comes.
    Nuisance,
}

impl Group {
    /// One call of some bytes at a time, without a pause.
    pub const fn new(name: &'static str, clients: usize) -> Self {
        Self {
            name,
            clients,
            work: Work::Echo { bytes: 40 },
            speeches: Speech::PLAIN,
            depth: 1,
            pace: Duration::ZERO,
            after: Duration::ZERO,
            first_calls_over: Duration::ZERO,
            over: Duration::ZERO,
            sending: Sending::Whole,
            reading: Reading::Eager,
            life: Life::Long,
        }
    }

    /// They speak everything that the service understands: each one thing, in turn.
    pub const fn in_any_framing(self) -> Self {
        self.speaking(Speech::ALL)
    }

    /// They speak these.
    pub const fn speaking(mut self, speeches: &'static [Speech]) -> Self {
        self.speeches = speeches;
        self
    }

    /// So many messages on their way at once.
    pub const fn pipelined(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// So many at once, with ids; now and then one waits a little, so that answers come out of order. Not more of them than
    /// the threads can bear: where all sleep, what a fault adds to a call's time can't be told from the wait for a thread.
    pub const fn out_of_order(mut self, depth: usize) -> Self {
        self.depth = depth;
        self.speeches = Speech::PLAIN_WITH_IDS;
        self.work = Work::Mixed { bytes: 40, every: 256, ms: 2 };
        self
    }

    pub const fn work(mut self, work: Work) -> Self {
        self.work = work;
        self
    }

    pub const fn pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    pub const fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    pub const fn calling_over(mut self, over: Duration) -> Self {
        self.first_calls_over = over;
        self
    }

    pub const fn coming_over(mut self, over: Duration) -> Self {
        self.over = over;
        self
    }

    pub const fn sending(mut self, sending: Sending) -> Self {
        self.sending = sending;
        self
    }

    pub const fn reading(mut self, reading: Reading) -> Self {
        self.reading = reading;
        self
    }

    pub const fn life(mut self, life: Life) -> Self {
        self.life = life;
        self
    }
}
