//! What a client may hear: for each framing, that answers are whole and well formed, and how many of them there may be.

use serde::de::IgnoredAny;

use crate::rpc::{Error, Form, Message, Request, parse};
use crate::wire::{ByteOrder, Framing, Kind, http, pieces};

/// A message up to this long is read by the poller, before anything that is behind it.
const LARGE: usize = 16 * 1024;

/// Lines in the head of an answer, at most.
const MOST_FIELDS: usize = 32;

/// What was asked for, as far as that shows how many answers there must be.
pub(super) struct Asked {
    kind: Kind,
    /// Of HTTP, for each request: whether it is answered without a body.
    heads_only: Vec<bool>,
    /// The same of what is no whole request, or a wrong one, behind them.
    rest_is_head: bool,
    pub(super) least: usize,
    pub(super) most: usize,
}

impl Asked {
    /// Decodes what was said, in one piece.
    pub(super) fn of(framing: Framing, said: &[u8]) -> Result<Self, String> {
        let outcome = pieces::decode(framing, said, said.len().max(1))?;
        let kind = framing.kind();
        let (mut least, mut most) = (0, 0);
        let mut heads_only = Vec::new();
        let rest = said.get(outcome.consumed..).unwrap_or_default();
        let rest_is_head = rest.starts_with(b"HEAD ") && http::open(rest).is_ok();
        if kind == Kind::Http {
            heads_only = outcome.messages.iter().map(|message| message.starts_with(b"HEAD ")).collect();
            // Any of them may close the connection. What is wrong with a head may show before all of it has come, or not.
            least = outcome.messages.len().min(1);
            most = outcome.messages.len() + outcome.errors.len();
        } else {
            let form = if kind == Kind::Length { Form::Native } else { Form::V2 };
            let mut goes_on = true;
            for message in &outcome.messages {
                let wanted = wanted(message, form);
                least += usize::from(goes_on && matches!(wanted, Wanted::Answer | Wanted::End));
                most += usize::from(!matches!(wanted, Wanted::Nobody));
                if matches!(wanted, Wanted::End) && kind == Kind::Stream {
                    goes_on = false;
                    // While a long message waits to be read what is behind it begins.
                    if message.len() <= LARGE {
                        break;
                    }
                }
            }
            if goes_on {
                (least, most) = (least + outcome.errors.len(), most + outcome.errors.len());
            }
        }
        Ok(Self { kind, heads_only, rest_is_head, least, most })
    }

    /// How many answers this is.
    pub(super) fn answers_in(&self, heard: &[u8], order: ByteOrder) -> Result<usize, String> {
        match self.kind {
            Kind::Length => of_length(heard, order),
            Kind::Stream => of_stream(heard),
            Kind::Header => of_header(heard),
            Kind::Http => self.of_http(heard),
        }
    }

    fn of_http(&self, heard: &[u8]) -> Result<usize, String> {
        let (mut rest, mut count, mut closes) = (heard, 0, false);
        while !rest.is_empty() {
            if closes {
                return Err("an answer behind one that closes".to_owned());
            }
            let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
            let mut head = httparse::Response::new(&mut fields);
            let httparse::Status::Complete(length) = head.parse(rest).map_err(|error| error.to_string())?
            else {
                return Err("a part of a head".to_owned());
            };
            let status = head.code.unwrap_or_default();
            let field = |name: &str| {
                let mut fields = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
                (fields.next().map(|field| field.value), fields.next().is_some())
            };
            let (announced, is_doubled) = field("content-length");
            let announced =
                announced.and_then(|value| std::str::from_utf8(value).ok()?.parse::<usize>().ok());
            rest = rest.get(length..).unwrap_or_default();
            if status == 100 {
                continue;
            }
            let head_only = self.heads_only.get(count).copied().unwrap_or(self.rest_is_head);
            let has_none = status == 204 || status == 304;
            let length = match announced {
                _ if is_doubled => return Err("two lengths".to_owned()),
                Some(_) if head_only => 0,
                Some(length) if !has_none || length == 0 => length,
                None if has_none || head_only => 0,
                _ => return Err(format!("status {status} with a length of {announced:?}")),
            };
            let (body, behind) = rest.split_at_checked(length).ok_or("a part of a body")?;
            if !body.is_empty()
                && field("content-type").0.is_some_and(|value| value.starts_with(b"application/json"))
            {
                is_json(body)?;
            }
            closes = field("connection").0.is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
            rest = behind;
            count += 1;
        }
        let expected = self.heads_only.len();
        if !closes && count < expected {
            return Err(format!("expected {expected} answers or one that closes, found {count}"));
        }
        Ok(count)
    }
}

/// What there is to be heard of a message.
enum Wanted {
    Answer,
    /// Nothing, or an error: a batch that is not taken is answered once, even if its calls would not have been.
    Maybe,
    /// Nothing.
    Nobody,
    /// An error, and where a bad value of a stream ends nobody knows.
    End,
}

fn wanted(message: &[u8], form: Form) -> Wanted {
    let is_answered = |request: &Request<'_>| !request.is_notification();
    match parse(message, form) {
        Ok(Message::Single(request)) if is_answered(&request) => Wanted::Answer,
        Ok(Message::Single(_)) => Wanted::Nobody,
        Ok(Message::Batch(batch)) => {
            let mut members = batch.members();
            let any = members.any(|member| {
                member.request.as_ref().map_or_else(|rejected| !rejected.is_silent, is_answered)
            });
            if any { Wanted::Answer } else { Wanted::Maybe }
        }
        Err(rejected) if rejected.error.code() == Error::PARSE => Wanted::End,
        Err(rejected) if rejected.is_silent => Wanted::Nobody,
        Err(_) => Wanted::Answer,
    }
}

pub(super) fn of_length(heard: &[u8], order: ByteOrder) -> Result<usize, String> {
    let (mut rest, mut count) = (heard, 0);
    while !rest.is_empty() {
        let (prefix, behind) = rest.split_first_chunk().ok_or("a part of a prefix")?;
        let length = match order {
            ByteOrder::Little => u32::from_le_bytes(*prefix),
            ByteOrder::Big => u32::from_be_bytes(*prefix),
        };
        let (answer, behind) = behind.split_at_checked(length as usize).ok_or("a part of an answer")?;
        is_json(answer)?;
        (rest, count) = (behind, count + 1);
    }
    Ok(count)
}

fn of_stream(heard: &[u8]) -> Result<usize, String> {
    let text = std::str::from_utf8(heard).map_err(|error| error.to_string())?;
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let mut count = 0;
    while let Some(value) = values.next() {
        value.map_err(|error| format!("answer {count}: {error}"))?;
        if heard.get(values.byte_offset()) != Some(&b'\n') {
            return Err(format!("answer {count} does not end with a newline"));
        }
        count += 1;
    }
    Ok(count)
}

fn of_header(heard: &[u8]) -> Result<usize, String> {
    let mut rest = std::str::from_utf8(heard).map_err(|error| error.to_string())?;
    let mut count = 0;
    while !rest.is_empty() {
        let length = rest.strip_prefix("Content-Length: ").and_then(|rest| rest.split_once("\r\n\r\n"));
        let (length, behind) = length.ok_or("not a header")?;
        let length = length.parse::<usize>().map_err(|error| error.to_string())?;
        let (answer, behind) = behind.split_at_checked(length).ok_or("a part of an answer")?;
        is_json(answer.as_bytes())?;
        (rest, count) = (behind, count + 1);
    }
    Ok(count)
}

fn is_json(answer: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(answer).map_err(|error| error.to_string())?;
    serde_json::from_str::<IgnoredAny>(text).map(|_| ()).map_err(|error| format!("{text:?}: {error}"))
}
