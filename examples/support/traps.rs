//! Values of a handler's whose own code panics: where params are read, results and errors written, and all of them dropped; and
//! the panic hooks of a program.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::{panic_any, set_hook, take_hook};
use std::thread;

use serde::de::Deserializer;
use serde::ser::{SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};
use tine::{Call, Error};

/// Where the trap is: `params`, `params_drop`, `payload`, `result`, `result_drop`, `result_both`, `error`, `error_drop` or
/// `error_both`.
pub(crate) struct At(String);

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let at = At(String::deserialize(from)?);
        assert!(at.0 != "params", "while params are read");
        Ok(at)
    }
}

impl Drop for At {
    fn drop(&mut self) {
        assert!(self.0 != "params_drop" || thread::panicking(), "while params are dropped");
    }
}

/// Panics when it is written, dropped, or made to text.
#[derive(Debug)]
pub(crate) struct Value {
    written: bool,
    dropped: bool,
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut list = to.serialize_seq(None)?;
        list.serialize_element("the first half")?;
        assert!(!self.written, "half-way through a result");
        list.end()
    }
}

impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the first half")?;
        assert!(!self.written, "half-way through an error's text");
        Ok(())
    }
}

impl std::error::Error for Value {}

impl Drop for Value {
    fn drop(&mut self) {
        assert!(!self.dropped, "while a value is dropped");
    }
}

/// Panics with a value that panics when it is dropped, and so on.
struct Payload;

impl Drop for Payload {
    fn drop(&mut self) {
        if !thread::panicking() {
            panic_any(Payload);
        }
    }
}

pub(crate) fn trap(_call: &Call<'_>, at: At) -> Result<Value, Error> {
    let value = |written, dropped| Value { written, dropped };
    match at.0.as_str() {
        "payload" => panic_any(Payload),
        "result" => Ok(value(true, false)),
        "result_drop" => Ok(value(false, true)),
        "result_both" => Ok(value(true, true)),
        "error" => Err(Error::internal(value(true, false))),
        "error_drop" => Err(Error::internal(value(false, true))),
        "error_both" => Err(Error::internal(value(true, true))),
        _ => Ok(value(false, false)),
    }
}

/// Sets a panic hook that adds to a file, if `RIG_HOOK` is `WHEN:FILE` with this `when`. It calls the hook that was set before, but
/// for that of `alone`.
pub(crate) fn set_panic_hook(when: &str) {
    let wanted = std::env::var("RIG_HOOK").unwrap_or_default();
    let Some((_, file)) = wanted.split_once(':').filter(|(wanted, _)| *wanted == when) else { return };
    let (file, before) = (file.to_owned(), take_hook());
    let is_alone = when == "alone";
    set_hook(Box::new(move |panic| {
        if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(&file) {
            let _ = writeln!(file, "reported: {panic}");
        }
        if !is_alone {
            before(panic);
        }
    }));
}
