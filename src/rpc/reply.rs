//! Where a raw handler writes its result.

use serde::Serialize;
use serde_json::value::RawValue;

use super::error::Error;
use super::json::RawJson;

/// The result of a [raw handler](crate::Server::raw_method), written straight into the answer.
///
/// Whatever is written is JSON, so a handler can't break the message around it. Writing again replaces what
/// was written before; a handler that writes nothing answers `null`.
///
/// ```
/// use tine::{Call, Error, RawJson, Reply};
///
/// // Sends its params back, digits and escapes as they came.
/// fn mirror(_call: &Call<'_>, params: RawJson<'_>, reply: &mut Reply<'_>) -> Result<(), Error> {
///     reply.raw(params);
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Reply<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> Reply<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        Reply { out, start }
    }

    /// Answers with JSON as it is, byte for byte: a [`RawJson`] or a `&RawValue`.
    pub fn raw<'j>(&mut self, json: impl Into<RawJson<'j>>) {
        self.out.truncate(self.start);
        self.out.extend_from_slice(json.into().get().as_bytes());
    }

    /// Answers with a value.
    ///
    /// # Errors
    ///
    /// [`Error::INTERNAL`] if the value can't be written as JSON.
    pub fn value(&mut self, value: &impl Serialize) -> Result<(), Error> {
        self.out.truncate(self.start);
        write_value(value, self.out)
    }

    pub(super) fn finish(self) {
        if self.out.len() == self.start {
            self.out.extend_from_slice(b"null");
        }
    }
}

impl<'a> From<&'a Box<RawValue>> for RawJson<'a> {
    fn from(value: &'a Box<RawValue>) -> Self {
        RawJson::from(&**value)
    }
}

/// Appends `value` to `out`; after an error `out` is as it was.
pub(super) fn write_value(value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), Error> {
    let start = out.len();
    serde_json::to_writer(&mut *out, value).map_err(|error| {
        out.truncate(start);
        Error::internal(format!("the result can't be written as JSON: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn written(write: impl FnOnce(&mut Reply<'_>)) -> String {
        let mut out = b"head:".to_vec();
        let mut reply = Reply::new(&mut out);
        write(&mut reply);
        reply.finish();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_last_thing_written_is_the_result() {
        assert_eq!(written(|_| ()), "head:null");
        assert_eq!(
            written(|reply| {
                reply.value(&[1, 2]).unwrap();
                reply.raw(RawJson::parse("1e1").unwrap());
            }),
            "head:1e1"
        );
        let value = serde_json::value::to_raw_value("x").unwrap();
        assert_eq!(written(|reply| reply.raw(&value)), r#"head:"x""#);
    }

    #[test]
    fn a_value_that_fails_half_way_leaves_nothing() {
        let half = (1, HashMap::from([((1, 2), 3)]));
        assert_eq!(written(|reply| assert!(reply.value(&half).is_err())), "head:null");
    }
}
