//! What a single value may be: each function makes the reader of one kind of value, and each reader's
//! error is the sentence "expected …, found …".
//!
//! `checked` picks a reader and its bounds for every key; which key it is, a reader does not know.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::de::{DeInteger, DeValue};

use super::error::quoted;
use super::size::{format_size, parse_size};
use super::span;

const MIB: u64 = 1 << 20;

/// A value as an error shows it.
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) => cut(&number.to_string()),
        DeValue::Float(number) => cut(&number.to_string()),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(moment) => cut(&moment.to_string()),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// A number, or a complaint that repeats the user's text, can be as long as the file has room.
fn cut(text: &str) -> String {
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// A whole number.
pub(super) fn count(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<u64, String> {
    move |value| {
        let number = match value {
            DeValue::Integer(number) => whole(number),
            _ => None,
        };
        let refused = || format!("expected {}, found {}", count_words(&range), found(value));
        number.filter(|number| range.contains(number)).ok_or_else(refused)
    }
}

/// The same for what may index memory or count things in it.
pub(super) fn count_usize(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<usize, String> {
    let read = count(range);
    move |value| read(value).and_then(fit)
}

/// The same for what the kernel takes as 32 bits.
pub(super) fn count_u32(range: RangeInclusive<u32>) -> impl Fn(&DeValue<'_>) -> Result<u32, String> {
    let read = count(u64::from(*range.start())..=u64::from(*range.end()));
    move |value| read(value).and_then(fit)
}

/// "a whole number from 1 to 4096".
pub(super) fn count_words(range: &RangeInclusive<u64>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// Bytes, written with a unit.
pub(super) fn size(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<usize, String> {
    move |value| {
        let kind = "expected a size such as \"1MiB\"";
        let text = match value {
            DeValue::String(text) => text,
            DeValue::Integer(_) => {
                return Err(format!("{kind}, found {} (a number needs a unit)", found(value)));
            }
            _ => return Err(format!("{kind}, found {}", found(value))),
        };
        let bytes = parse_size(text).map_err(|why| format!("{kind}, found {} ({why})", found(value)))?;
        if range.contains(&bytes) {
            return fit(bytes);
        }
        Err(format!("expected a size {}, found {}", size_words(&range), found(value)))
    }
}

/// The same, or "0" for none.
pub(super) fn size_or_none(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<usize, String> {
    let read = size(range);
    move |value| match value.as_str().map(parse_size) {
        Some(Ok(0)) => Ok(0),
        _ => read(value).map_err(|why| format!("{why}; \"0\" is no limit")),
    }
}

/// Yes or no.
pub(super) fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    let refused = || format!("expected true or false, found {}", found(value));
    value.as_bool().ok_or_else(refused)
}

/// A part of a whole.
pub(super) fn share() -> impl Fn(&DeValue<'_>) -> Result<f64, String> {
    |value| {
        let number = match value {
            DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
            DeValue::Integer(number) => {
                whole(number).and_then(|whole| u32::try_from(whole).ok()).map(f64::from)
            }
            _ => None,
        };
        let refused = || format!("expected a number from 0.0 to 1.0, found {}", found(value));
        number.filter(|number| (0.0..=1.0).contains(number)).ok_or_else(refused)
    }
}

fn size_words(range: &RangeInclusive<u64>) -> String {
    let (start, end) = (format_size(*range.start()), *range.end());
    // A bound such as 16 MiB - 1 reads better as what it stays below.
    match end.checked_add(1).filter(|above| above.is_multiple_of(MIB)) {
        Some(above) => format!("of at least {start} and below {}", format_size(above)),
        None => format!("from {start} to {}", format_size(end)),
    }
}

/// A span of time, written with a unit.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Result<Duration, String> {
    move |value| {
        let kind = "expected a duration such as \"30s\"";
        let text = match value {
            DeValue::String(text) => text,
            DeValue::Integer(_) => {
                return Err(format!("{kind}, found {} (a number needs a unit)", found(value)));
            }
            _ => return Err(format!("{kind}, found {}", found(value))),
        };
        let time = span::parse(text).map_err(|why| format!("{kind}, found {} ({why})", found(value)))?;
        if range.contains(&time) {
            return Ok(time);
        }
        let (shortest, longest) = (span::show(*range.start()), span::show(*range.end()));
        Err(format!("expected a duration from {shortest} to {longest}, found {}", found(value)))
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(words: &[(&str, T)]) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| {
        let chosen = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        chosen.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            format!("expected one of {}, found {}", all.join(", "), found(value))
        })
    }
}

/// Text that a parser understands; its error is the whole sentence.
pub(super) fn text<T>(
    expected: &str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&DeValue<'_>) -> Result<T, String> {
    move |value| match value {
        DeValue::String(text) => parse(text),
        _ => Err(format!("expected {expected}, found {}", found(value))),
    }
}

fn whole(number: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

/// Every range in use fits its type; should one not, that is an error and no wrong number.
fn fit<T: TryFrom<u64>>(number: u64) -> Result<T, String> {
    T::try_from(number).map_err(|_| format!("{number} is too large for this machine"))
}
