//! Who is to be answered, and how: the framing and the form of the answer, the id that it carries, and what becomes of the
//! connection then.
//!
//! [`read`] says of a message what it asks for and who asks. Whoever answers, with a result or an error, now or after
//! another worker's death, goes by the [`Route`] that came of it.

use crate::rpc::{self, Batch, Error, Form, Message, RawJson, Rejected, Request, Span, envelope};
use crate::wire::length::{AnswerTooLong, Mark};
use crate::wire::{Framing, Kind};

/// How an answer goes back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    framing: Framing,
    form: Form,
    /// Nobody waits for it, so none is written.
    is_silent: bool,
    /// It is one of a batch's, which is framed when all of them are there.
    is_member: bool,
    /// The connection ends with it.
    ends: bool,
}

/// Who made a call that is known: the message may be looked at again for the id.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) route: Route,
    /// Where in the message the text begins in which the id has its place.
    pub(super) text_at: usize,
    pub(super) id: Option<Span>,
}

/// Who made a call.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whom {
    Known(Known),
    /// Its message, on a connection of this framing, has not been parsed.
    NotParsed(Framing),
}

/// Whom to answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller<'a> {
    pub(super) route: Route,
    pub(super) id: Option<RawJson<'a>>,
}

/// What a message asks for.
#[derive(Debug)]
pub(super) enum Asked<'a> {
    Call { request: Request<'a>, route: Route, text_at: usize },
    Batch { batch: Batch<'a>, route: Route, text_at: usize },
    /// Nothing that can be done.
    Nothing { caller: Caller<'a>, error: Error },
}

/// Where in the output an answer begins.
#[derive(Debug)]
pub(super) struct Begun {
    start: usize,
    /// None where no framing is written.
    mark: Option<Mark>,
}

/// Reads a message of a connection that speaks this framing.
#[inline]
pub(super) fn read(framing: Framing, message: &[u8]) -> Asked<'_> {
    match rpc::parse(message, fallback(framing)) {
        Ok(Message::Single(request)) => {
            let route = Route::of(framing, &request);
            Asked::Call { request, route, text_at: 0 }
        }
        Ok(Message::Batch(batch)) => Asked::Batch { batch, route: Route::new(framing, Form::V2), text_at: 0 },
        Err(rejected) => Asked::nothing(Route::new(framing, rejected.form), rejected),
    }
}

/// Reads a member of a batch, which was made on this route.
pub(super) fn read_member(route: Route, member: &[u8]) -> Asked<'_> {
    let route = Route { is_member: true, ends: false, form: Form::V2, ..route };
    match rpc::parse_member(member) {
        Ok(request) => {
            let is_silent = request.is_notification();
            Asked::Call { request, route: Route { is_silent, ..route }, text_at: 0 }
        }
        Err(rejected) => Asked::nothing(route, rejected),
    }
}

/// The form of an error for a message that shows none of its own.
fn fallback(framing: Framing) -> Form {
    match framing.kind() {
        Kind::Length => Form::Native,
        Kind::Stream | Kind::Header | Kind::Http => Form::V2,
    }
}

impl<'a> Asked<'a> {
    fn nothing(route: Route, Rejected { error, id, .. }: Rejected<'a>) -> Self {
        // Where a bad value of a stream ends nobody knows.
        let ends = route.framing.kind() == Kind::Stream && !route.is_member && error.code() == Error::PARSE;
        Self::Nothing { caller: Caller { route: Route { ends: route.ends || ends, ..route }, id }, error }
    }

    /// Who asks.
    fn caller(&self) -> Caller<'a> {
        match self {
            Self::Call { request, route, .. } => Caller { route: *route, id: request.id() },
            Self::Batch { route, .. } => Caller { route: *route, id: None },
            Self::Nothing { caller, .. } => *caller,
        }
    }
}

impl Route {
    fn new(framing: Framing, form: Form) -> Self {
        Self { framing, form, is_silent: false, is_member: false, ends: false }
    }

    fn of(framing: Framing, request: &Request<'_>) -> Self {
        Self { is_silent: request.is_notification(), ..Self::new(framing, request.form) }
    }

    /// For a message of which only this is known.
    pub(super) fn unread(framing: Framing, ends: bool) -> Self {
        Self { ends, ..Self::new(framing, fallback(framing)) }
    }

    pub(super) fn form(self) -> Form {
        self.form
    }

    pub(super) fn is_silent(self) -> bool {
        self.is_silent
    }

    pub(super) fn ends_connection(self) -> bool {
        self.ends
    }

    /// True where answers have to come in the order of their requests, of which this is one that has or has not an id.
    pub(super) fn is_ordered(self, has_id: bool) -> bool {
        match self.framing.kind() {
            Kind::Http => true,
            Kind::Length | Kind::Stream | Kind::Header => !has_id && !self.is_silent && self.form == Form::Native,
        }
    }

    /// Begins an answer: its text is what is appended to `out` from here on.
    #[inline]
    pub(super) fn begin(self, out: &mut Vec<u8>) -> Begun {
        let start = out.len();
        let is_framed = !self.is_member && !self.is_silent;
        Begun { start, mark: is_framed.then(|| self.framing.begin_message(out)) }
    }

    /// Ends an answer that was begun. Nobody's is taken back.
    ///
    /// # Errors
    ///
    /// It is longer than its framing carries, and was taken back.
    #[inline]
    pub(super) fn end(self, out: &mut Vec<u8>, begun: Begun) -> Result<(), AnswerTooLong> {
        if self.is_silent {
            out.truncate(begun.start);
        }
        begun.mark.map_or(Ok(()), |mark| self.framing.end_message(out, mark))
    }
}

impl Caller<'_> {
    /// Appends an error answer.
    pub(super) fn write_error(self, out: &mut Vec<u8>, error: &Error) {
        if self.route.is_silent {
            return;
        }
        let Self { route, id } = self;
        let begun = route.begin(out);
        envelope::answer_error(out, route.form, error, id);
        if route.end(out, begun).is_err() {
            // Only an id of nearly 16 MiB, or data of that size, makes an error too long to send.
            let begun = route.begin(out);
            let too_long = Error::answer_too_long(&"an error with its id and data");
            envelope::answer_error(out, route.form, &too_long, None);
            let _ = route.end(out, begun);
        }
    }
}

impl Known {
    /// The text in which params and id have their places.
    pub(super) fn text(self, message: &[u8]) -> &[u8] {
        message.get(self.text_at..).unwrap_or_default()
    }

    pub(super) fn caller(self, message: &[u8]) -> Caller<'_> {
        Caller { route: self.route, id: self.id.map(|id| id.in_message(self.text(message))) }
    }

    pub(super) fn is_ordered(self) -> bool {
        self.route.is_ordered(self.id.is_some())
    }
}

impl Whom {
    /// To find who it is in a message that nobody has parsed takes as long as to parse that.
    pub(super) fn caller(self, message: &[u8]) -> Caller<'_> {
        match self {
            Self::Known(known) => known.caller(message),
            Self::NotParsed(framing) => read(framing, message).caller(),
        }
    }

    /// Nothing may begin beside it: answers have to keep their order, or nobody knows yet whether they have.
    pub(super) fn is_ordered(self) -> bool {
        match self {
            Self::Known(known) => known.is_ordered(),
            Self::NotParsed(_) => true,
        }
    }
}

