//! Answers in the form of their requests: native, JSON-RPC 2.0 and 1.0, and bare for HTTP's `POST /METHOD`.
//!
//! The worker answers with [`answer`] or [`answer_error`], which write into the connection's output. What a message asks
//! for is `message`'s business, and how it is framed `wire`'s.

use super::context::Call;
use super::error::Error;
use super::json::RawJson;
use super::message::Form;
use super::registry::Method;
use super::reply::write_value;

/// The name every error answer of the native envelope has.
pub(super) const ERROR_NAME: &str = "error";

/// Appends the answer of a call to `out`: the result that the method gives, or its error.
///
/// The error is returned too, to be counted and logged. If the handler panics this unwinds and leaves part of an
/// answer in `out`. A notification is answered nothing; its caller throws away what this writes.
pub(crate) fn answer(
    out: &mut Vec<u8>,
    form: Form,
    method: &Method,
    call: &Call<'_>,
    params: Option<RawJson<'_>>,
) -> Result<(), Error> {
    let start = out.len();
    out.extend_from_slice(match form {
        Form::Native => method.native_head(),
        Form::V2 => br#"{"jsonrpc":"2.0","result":"#,
        Form::V1 => br#"{"result":"#,
        Form::Bare => b"",
    });
    match method.invoke(call, params, out) {
        Ok(()) => {
            if form == Form::V1 {
                out.extend_from_slice(br#","error":null"#);
            }
            end_answer(out, form, call.id());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            answer_error(out, form, &error, call.id());
            Err(error)
        }
    }
}

/// Appends an error answer to `out`.
pub(crate) fn answer_error(out: &mut Vec<u8>, form: Form, error: &Error, id: Option<RawJson<'_>>) {
    out.extend_from_slice(match form {
        Form::Native => br#"{"out":"error","result":"#,
        Form::V2 => br#"{"jsonrpc":"2.0","error":"#,
        Form::V1 => br#"{"result":null,"error":"#,
        Form::Bare => b"",
    });
    let written = match form {
        // That version has no codes, so the text says which it is.
        Form::V1 => write_value(&error.to_string(), out),
        Form::Native | Form::V2 | Form::Bare => write_value(error, out),
    };
    if written.is_err() {
        // An error is two texts, a number and checked JSON; it can always be written.
        out.extend_from_slice(br#"{"code":-32603,"message":"internal error"}"#);
    }
    end_answer(out, form, id);
}

/// An answer of the native envelope up to its result.
pub(super) fn native_head(reply: &str) -> Vec<u8> {
    format!(r#"{{"out":{},"result":"#, serde_json::Value::from(reply)).into_bytes()
}

fn end_answer(out: &mut Vec<u8>, form: Form, id: Option<RawJson<'_>>) {
    let id = match form {
        Form::Bare => return,
        Form::Native => id,
        // An error that belongs to no request that could be read has one too.
        Form::V2 | Form::V1 => Some(id.unwrap_or(RawJson::NULL)),
    };
    if let Some(id) = id {
        out.extend_from_slice(br#","id":"#);
        out.extend_from_slice(id.get().as_bytes());
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests;
