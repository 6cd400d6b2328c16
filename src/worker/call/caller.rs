//! Who is to be answered, and how: the framing and the form of the answer, the id that it carries, and what becomes of the
//! connection then.
//!
//! [`Protocol::read`] says of a message what it asks for and who asks. Whoever answers, with a result or an error, now or after
//! another worker's death, goes by the [`ReplyFormat`] that came of it.

use crate::rpc::web::answer::Answering;
use crate::rpc::web::pages::Allowed;
use crate::rpc::web::{self, Wanted};
use crate::rpc::{self, Batch, Error, Form, Message, RawJson, Rejected, Request, Span, envelope};
use crate::sys::process;
use crate::wire::http::{self, Head, Opened, Version};
use crate::wire::length::{AnswerTooLong, Mark};
use crate::wire::{Dialect, Framing, Kind, WireError};
use crate::worker::context::{self, WorkerContext};

/// What an answer's head says of a connection that goes on although its client is of HTTP/1.0.
const KEEP_ALIVE: &[u8] = b"\r\nConnection: keep-alive";

/// What a connection speaks.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Protocol {
    dialect: Dialect,
    context: &'static WorkerContext,
}

/// How an answer goes back.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct ReplyFormat {
    protocol: Protocol,
    form: Form,
    /// Nobody waits for it, so none is written.
    is_silent: bool,
    /// It is one of a batch's, which is framed when all of them are there.
    is_member: bool,
    /// The connection ends with it.
    ends: bool,
    http: Http,
}

/// What an answer's head depends on, with HTTP.
#[derive(Debug, Clone, Copy, Default)]
struct Http {
    is_old: bool,
    head_only: bool,
    /// Which of the listed origins it comes from.
    origin: Option<u16>,
    /// In place of the one that goes with the answer.
    status: Option<u16>,
}

/// Who made a call that is known: the message may be looked at again for the id.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Known {
    pub(in crate::worker) reply: ReplyFormat,
    /// Where in the message the text begins in which params and id have their places.
    pub(in crate::worker) text_at: usize,
    pub(in crate::worker) id: Option<Span>,
}

/// Who made a call.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) enum Whom {
    Known(Known),
    /// Its message has not been parsed.
    NotParsed(Protocol),
}

/// Whom to answer.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Caller<'a> {
    pub(in crate::worker) reply: ReplyFormat,
    pub(in crate::worker) id: Option<RawJson<'a>>,
}

/// Whether it is still to be decided that a message may be run at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    Asked,
    Granted,
}

/// What a message asks for.
#[derive(Debug)]
pub(in crate::worker) enum Asked<'a> {
    Call {
        request: Request<'a>,
        reply: ReplyFormat,
        text_at: usize,
    },
    /// Of calls that may take so long at most.
    Batch {
        batch: Batch<'a>,
        reply: ReplyFormat,
        text_at: usize,
        timeout_ms: Option<u64>,
    },
    /// Nothing that can be done.
    Nothing {
        caller: Caller<'a>,
        error: Error,
    },
    /// An answer that needs no method, with HTTP.
    Page {
        page: Wanted<'a>,
        reply: ReplyFormat,
    },
}

/// Where in the output an answer begins.
#[derive(Debug)]
pub(in crate::worker) struct Begun {
    start: usize,
    /// None where no framing is written.
    mark: Option<Mark>,
}

impl Protocol {
    pub(in crate::worker) fn new(framing: Framing, context: &'static WorkerContext) -> Self {
        Self { dialect: framing.dialect(), context }
    }

    /// Reads a message.
    pub(in crate::worker) fn read(self, message: &[u8]) -> Asked<'_> {
        self.read_opened(message, None)
    }

    /// Reads a message that another worker has begun. What it was allowed then it has had, whatever the configuration has become:
    /// its caller must not be told that it was refused.
    pub(in crate::worker) fn read_begun(self, message: &[u8]) -> Asked<'_> {
        self.read_as(message, None, Admission::Granted)
    }

    /// Reads a message whose head may have been read before.
    #[inline]
    pub(in crate::worker) fn read_opened<'a>(
        self,
        message: &'a [u8],
        opened: Option<&Opened<'a>>,
    ) -> Asked<'a> {
        self.read_as(message, opened, Admission::Asked)
    }

    #[inline]
    fn read_as<'a>(self, message: &'a [u8], opened: Option<&Opened<'a>>, admission: Admission) -> Asked<'a> {
        if self.dialect.kind == Kind::Http {
            return self.read_http(message, opened, admission);
        }
        let reply = ReplyFormat::new(self, self.fallback());
        match rpc::parse(message, self.fallback()) {
            Ok(Message::Single(request)) => Asked::call(request, reply, 0),
            Ok(Message::Batch(batch)) => self.batch(batch, (reply, 0, None), admission),
            Err(rejected) => {
                // Where a bad value of a stream ends nobody knows.
                let ends = self.dialect.kind == Kind::Stream && rejected.error.code() == Error::PARSE;
                Asked::nothing(ReplyFormat { ends, ..reply }, rejected)
            }
        }
    }

    fn read_http<'a>(
        self,
        message: &'a [u8],
        opened: Option<&Opened<'a>>,
        admission: Admission,
    ) -> Asked<'a> {
        let opened_here;
        let Opened { head, body_at } = match opened {
            Some(opened) => opened,
            None => match http::open(message) {
                Ok(opened) => {
                    opened_here = opened;
                    &opened_here
                }
                // It was whole when it arrived; what the arena of a dead worker says may be anything.
                Err(error) => {
                    let caller = Caller { reply: ReplyFormat::of_error(self, error, message), id: None };
                    return Asked::Nothing { caller, error: error.into() };
                }
            },
        };
        let text_at = *body_at;
        let body = message.get(text_at..).unwrap_or_default();
        let asked = web::Asked {
            method: head.method,
            target: head.target,
            content_type: head.content_type,
            content_encoding: head.content_encoding,
            origin: if admission == Admission::Asked { head.origin } else { None },
            host: head.host,
            timeout_ms: head.timeout_ms,
        };
        let reply = ReplyFormat::of_head(self, head);
        match web::read(&asked, body, &self.context.pages, self.context.service.registry()) {
            Wanted::Call(request) => Asked::call(request, reply, text_at),
            Wanted::Batch { batch, timeout_ms } => self.batch(batch, (reply, text_at, timeout_ms), admission),
            Wanted::Rejected(rejected) => Asked::nothing(reply, rejected),
            page => Asked::Page { page, reply },
        }
    }

    fn batch(
        self,
        batch: Batch<'_>,
        (reply, text_at, timeout_ms): (ReplyFormat, usize, Option<u64>),
        admission: Admission,
    ) -> Asked<'_> {
        let reply = ReplyFormat { form: Form::V2, ..reply };
        let (len, most) = (batch.len(), self.context.most_in_batch);
        if len <= most || admission == Admission::Granted {
            return Asked::Batch { batch, reply, text_at, timeout_ms };
        }
        let error = Error::invalid_request(&format_args!(
            "the batch has {len} requests; this server takes at most {most} at once (`limits.queue`)"
        ));
        Asked::Nothing { caller: Caller { reply, id: None }, error }
    }

    /// The form of an error for a message that shows none of its own.
    fn fallback(self) -> Form {
        match self.dialect.kind {
            Kind::Length => Form::Native,
            Kind::Stream | Kind::Header => Form::V2,
            Kind::Http => Form::Bare,
        }
    }
}

impl<'a> Asked<'a> {
    fn call(request: Request<'a>, reply: ReplyFormat, text_at: usize) -> Self {
        let reply = ReplyFormat { form: request.form, is_silent: request.is_notification(), ..reply };
        Self::Call { request, reply, text_at }
    }

    fn nothing(reply: ReplyFormat, Rejected { form, error, id, is_silent }: Rejected<'a>) -> Self {
        Self::Nothing { caller: Caller { reply: ReplyFormat { form, is_silent, ..reply }, id }, error }
    }
}

impl ReplyFormat {
    fn new(protocol: Protocol, form: Form) -> Self {
        let http = Http::default();
        Self { protocol, form, is_silent: false, is_member: false, ends: false, http }
    }

    fn of_head(protocol: Protocol, head: &Head<'_>) -> Self {
        let origin = head.origin.and_then(|origin| match protocol.context.pages.allowed(origin, head.host) {
            Some(Allowed::Listed(place)) => Some(place),
            Some(Allowed::Own) | None => None,
        });
        let http = Http {
            is_old: head.version == Version::Http10,
            head_only: head.method == "HEAD",
            origin,
            status: None,
        };
        Self { ends: !head.keeps_open, http, ..Self::new(protocol, Form::Bare) }
    }

    /// For what is no message. `arrived` begins with it.
    #[cold]
    pub(in crate::worker) fn of_error(protocol: Protocol, error: WireError, arrived: &[u8]) -> Self {
        let ends = error.consumed().is_none();
        Self { ends, ..Self::of_refused(protocol, error.http_status(), arrived) }
    }

    /// For a message that has not arrived in time, which ends the connection. `arrived` is what there is of it.
    pub(in crate::worker) fn of_late(protocol: Protocol, arrived: &[u8]) -> Self {
        Self { ends: true, ..Self::of_refused(protocol, 408, arrived) }
    }

    /// Where a request's head is whole and right it says how to answer: a page learns only what its origin may read.
    fn of_refused(protocol: Protocol, status: u16, arrived: &[u8]) -> Self {
        // An empty line before a head may be what is wrong.
        let has_head = protocol.dialect.kind == Kind::Http && !matches!(arrived, [b'\r' | b'\n', ..]);
        let opened = if has_head { http::open(arrived).ok() } else { None };
        let reply = match opened {
            Some(Opened { head, .. }) => Self::of_head(protocol, &head),
            None => Self::new(protocol, protocol.fallback()),
        };
        Self { http: Http { status: Some(status), ..reply.http }, ..reply }
    }

    /// The most bytes that an answer may have.
    pub(in crate::worker) fn most(self) -> usize {
        self.protocol.dialect.most_answer()
    }

    /// For a member of a batch whose replies have this format.
    pub(in crate::worker) fn of_member(self) -> Self {
        Self { is_member: true, ends: false, form: Form::V2, ..self }
    }

    /// Reads a member of a batch whose replies have this format.
    pub(in crate::worker) fn read_member(
        self,
        member: &[u8],
    ) -> Result<(Request<'_>, Self), (Caller<'_>, Error)> {
        let reply = self.of_member();
        match rpc::parse_member(member) {
            Ok(request) => {
                let is_silent = request.is_notification();
                Ok((request, Self { is_silent, ..reply }))
            }
            Err(Rejected { error, id, is_silent, .. }) => {
                Err((Caller { reply: Self { is_silent, ..reply }, id }, error))
            }
        }
    }

    pub(in crate::worker) fn form(self) -> Form {
        self.form
    }

    /// True where nobody waits for an answer.
    pub(in crate::worker) fn is_silent(self) -> bool {
        self.is_silent
    }

    /// True where nothing comes behind the answer.
    pub(in crate::worker) fn ends_connection(self) -> bool {
        self.ends
    }

    /// Has an answer say that nothing comes behind it, which it was not known to be the last of when it was written. False
    /// where there is no way to say that.
    pub(in crate::worker) fn say_goodbye(self, answer: &mut Vec<u8>) -> bool {
        if !self.is_http() || self.ends {
            return false;
        }
        // An older client was told that it may go on.
        let (before, replaced): (&[u8], usize) =
            if self.http.is_old { (KEEP_ALIVE, KEEP_ALIVE.len()) } else { (b"\r\n", 0) };
        let Some(place) = answer.windows(before.len()).position(|there| there == before) else {
            return false;
        };
        answer.splice(place..place + replaced, *b"\r\nConnection: close");
        true
    }

    /// True where answers have to come in the order of their requests, of which this is one that has or has not an id.
    pub(in crate::worker) fn is_ordered(self, has_id: bool) -> bool {
        self.is_http() || (!has_id && self.form == Form::Native)
    }

    fn is_http(self) -> bool {
        self.protocol.dialect.kind == Kind::Http && !self.is_member
    }

    /// Begins an answer: its text is what is appended to `out` from here on.
    #[inline]
    pub(in crate::worker) fn begin(self, out: &mut Vec<u8>) -> Begun {
        let start = out.len();
        let is_framed = !self.is_member && !self.is_silent;
        Begun { start, mark: is_framed.then(|| self.protocol.dialect.begin_message(out)) }
    }

    /// Ends an answer that was begun, to what came of it. Nobody's is taken back.
    ///
    /// # Errors
    ///
    /// It is longer than its framing carries, and was taken back.
    #[inline]
    pub(in crate::worker) fn end(
        self,
        out: &mut Vec<u8>,
        begun: Begun,
        error: Option<&Error>,
    ) -> Result<(), AnswerTooLong> {
        if self.is_silent {
            out.truncate(begun.start);
        }
        if self.is_http() {
            self.end_http(out, begun.start, error);
            return Ok(());
        }
        begun.mark.map_or(Ok(()), |mark| self.protocol.dialect.end_message(out, mark))
    }

    fn end_http(self, out: &mut Vec<u8>, start: usize, error: Option<&Error>) {
        self.with_answering(|answering| {
            if self.is_silent {
                answering.nothing(out);
            } else {
                answering.end(out, start, self.form, error, self.http.status);
            }
        });
    }

    /// Ends a batch that has no answers.
    pub(in crate::worker) fn write_nothing(self, out: &mut Vec<u8>) {
        if self.is_http() {
            self.with_answering(|answering| answering.nothing(out));
        }
    }

    /// Appends the answer to what needs no method. `is_ready`: this worker takes calls.
    pub(in crate::worker) fn write_page(self, out: &mut Vec<u8>, page: &Wanted<'_>, is_ready: bool) {
        self.with_answering(|answering| answering.page(out, page, is_ready));
    }

    fn with_answering<T>(self, write: impl FnOnce(&Answering<'_>) -> T) -> T {
        let Http { is_old, head_only, origin, .. } = self.http;
        let pages = &self.protocol.context.pages;
        let allowed_origin = origin.and_then(|place| pages.listed(place));
        let keeps_open = !self.ends;
        context::with_date(|date| {
            write(&Answering { date, is_old, keeps_open, head_only, allowed_origin, pages })
        })
    }
}

impl Caller<'_> {
    /// Appends an error answer.
    pub(in crate::worker) fn write_error(self, out: &mut Vec<u8>, error: &Error) {
        let Self { reply, id } = self;
        let begun = reply.begin(out);
        envelope::answer_error(out, reply.form, error, id);
        if reply.end(out, begun, Some(error)).is_err() {
            // Only an id of nearly 16 MiB, or data of that size, makes an error too long to send.
            let begun = reply.begin(out);
            let too_long =
                Error::answer_too_long(&"an error with its id and data is longer than the framing carries");
            envelope::answer_error(out, reply.form, &too_long, None);
            let _ = reply.end(out, begun, Some(&too_long));
        }
    }
}

impl Known {
    /// The text in which params and id have their places.
    fn text(self, message: &[u8]) -> &[u8] {
        message.get(self.text_at..).unwrap_or_default()
    }

    pub(in crate::worker) fn caller(self, message: &[u8]) -> Caller<'_> {
        Caller { reply: self.reply, id: self.value(self.id, message) }
    }

    /// The id's text, unchecked: for what is only told.
    pub(in crate::worker) fn id_text(self, message: &[u8]) -> Option<&[u8]> {
        Some(self.id?.bytes_in(self.text(message)))
    }

    /// A value of the message. It was a text when it was read. If it is none now some handler writes where it must not, and what this
    /// process would go on to say is noise that somebody may take for an answer: it ends instead, and another one answers.
    pub(in crate::worker) fn value(self, span: Option<Span>, message: &[u8]) -> Option<RawJson<'_>> {
        let span = span?;
        let value = span.in_message(self.text(message));
        if value.is_none() {
            tracing::error!(
                "a message has been overwritten since it was read, by some handler: this worker ends"
            );
            process::exit_now(1);
        }
        value
    }

    pub(in crate::worker) fn is_ordered(self) -> bool {
        self.reply.is_ordered(self.id.is_some())
    }
}

impl Whom {
    /// Nothing may begin beside it: answers have to keep their order, or nobody knows yet whether they have.
    pub(in crate::worker) fn is_ordered(self) -> bool {
        match self {
            Self::Known(known) => known.is_ordered(),
            Self::NotParsed(_) => true,
        }
    }
}
