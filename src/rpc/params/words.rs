//! What serde says of params that don't fit, in words of JSON: a caller has not seen the handler's types.
//!
//! Text in, text out. `params` calls it last; whatever it decides by serde's text it decides before.

/// The text of an error, without a place.
///
/// What is no complaint of serde's or `serde_json`'s own, such as a message of a handler's type, stays as it is.
pub(super) fn in_words(text: &str) -> String {
    match text {
        // Params are JSON when they are decoded, so serde_json's complaints about syntax mean something else here.
        "trailing characters" | "trailing comma" => {
            "the array has more elements than are expected".to_owned()
        }
        "expected value" => format!("expected {NAMED}"),
        "expected `,` or `}`" | "expected `,` or `]`" => "expected a whole number".to_owned(),
        "expected `\"`" | "invalid value: expected key to be a number in quotes" => {
            "expected a member's name that is a whole number".to_owned()
        }
        _ => mismatch(text).or_else(|| no_form(text)).unwrap_or_else(|| text.to_owned()),
    }
}

/// How a value of one of several named kinds is written.
const NAMED: &str = "a string, or an object with one member";

/// "invalid type: …, expected …" and its kin.
fn mismatch(text: &str) -> Option<String> {
    let (kind, rest) = text.split_once(' ').filter(|(first, _)| *first == "invalid")?.1.split_once(' ')?;
    // What was found may be the caller's text and hold anything; what was expected never does.
    let (found, expected) = rest.rsplit_once(", expected ")?;
    let expected = match kind {
        "length" => elements(found, expected).unwrap_or_else(|| expected_in_words(expected)),
        "type:" | "value:" => expected_in_words(expected),
        _ => return None,
    };
    Some(format!("invalid {kind} {}, expected {expected}", found_in_words(found)))
}

/// A struct's array that is too short. Elements behind the one that is missing may be left out too.
fn elements(found: &str, expected: &str) -> Option<String> {
    let (_, most) = elements_of_struct(expected)?;
    let least = found.parse::<usize>().ok()?.checked_add(1)?;
    if least >= most {
        return Some(array_of(most));
    }
    Some(format!("an array of at least {least} and at most {most} elements"))
}

fn found_in_words(found: &str) -> String {
    match found {
        "sequence" => "array".to_owned(),
        "map" => "object".to_owned(),
        "unit value" | "Option value" => "null".to_owned(),
        "unit variant" => "a name alone".to_owned(),
        "newtype variant" | "tuple variant" | "struct variant" => "a name with a value".to_owned(),
        _ => match found.strip_prefix("floating point ") {
            Some(number) => format!("number {number}"),
            None => found.to_owned(),
        },
    }
}

fn expected_in_words(expected: &str) -> String {
    if let Some(range) = range(expected) {
        return range;
    }
    let words = match expected {
        "f32" | "f64" => "a number",
        "bool" => "a boolean",
        "a character" => "a string of one character",
        "str" | "a borrowed string" | "path string" | "os string" => "a string",
        "variant identifier" | "field identifier" | "identifier" => "a string",
        "unit" => "null",
        "option" => "a value or null",
        "a sequence" => "an array",
        "a map" => "an object",
        "map with a single key" => "an object with one member",
        "string or map" => NAMED,
        "byte array" | "a byte array" | "a borrowed byte array" => {
            "a string, or an array of whole numbers from 0 to 255"
        }
        "newtype variant" | "tuple variant" | "struct variant" => "an object with one member",
        "unit variant" => "a name alone",
        "integer with support for saturating semantics" => "a whole number",
        "any valid JSON value" | "anything at all" => "any value",
        _ => return of_shape(expected).unwrap_or_else(|| expected.to_owned()),
    };
    words.to_owned()
}

/// A whole number of Rust's, by its range.
fn range(expected: &str) -> Option<String> {
    let (name, is_nonzero) = match expected.strip_prefix("a nonzero ") {
        Some(name) => (name, true),
        None => (expected, false),
    };
    let (least, most) = match name {
        "u8" => bounds(u8::MIN, u8::MAX),
        "u16" => bounds(u16::MIN, u16::MAX),
        "u32" => bounds(u32::MIN, u32::MAX),
        "u64" => bounds(u64::MIN, u64::MAX),
        "usize" => bounds(usize::MIN, usize::MAX),
        "u128" => bounds(u128::MIN, u128::MAX),
        "i8" => bounds(i8::MIN, i8::MAX),
        "i16" => bounds(i16::MIN, i16::MAX),
        "i32" => bounds(i32::MIN, i32::MAX),
        "i64" => bounds(i64::MIN, i64::MAX),
        "isize" => bounds(isize::MIN, isize::MAX),
        "i128" => bounds(i128::MIN, i128::MAX),
        _ => return None,
    };
    Some(match (is_nonzero, least.as_str()) {
        (true, "0") => format!("a whole number from 1 to {most}"),
        (true, _) => format!("a whole number from {least} to {most} other than 0"),
        (false, _) => format!("a whole number from {least} to {most}"),
    })
}

fn bounds<N: ToString>(least: N, most: N) -> (String, String) {
    (least.to_string(), most.to_string())
}

/// Structs, tuples and enums, without the names that they have in the handler.
fn of_shape(expected: &str) -> Option<String> {
    for counted in ["a tuple of size ", "an array of length "] {
        if let Some(count) = expected.strip_prefix(counted) {
            return count.parse().ok().map(array_of);
        }
    }
    if let Some((_, count)) = elements_of_struct(expected) {
        return Some(array_of(count));
    }
    let kinds = [
        ("struct ", "an object"),
        ("struct variant ", "an object"),
        ("tuple struct ", "an array"),
        ("tuple variant ", "an array"),
        ("unit struct ", "null"),
        ("unit variant ", "null"),
        ("internally tagged enum ", "an object"),
        ("adjacently tagged enum ", "an object"),
        ("enum ", NAMED),
    ];
    let is_name = |name: &str| !name.is_empty() && !name.contains(' ');
    let found = kinds.iter().find(|(kind, _)| expected.strip_prefix(kind).is_some_and(is_name));
    found.map(|(_, words)| (*words).to_owned())
}

/// "struct Nap with 2 elements", and its kin: what it is, and how many.
fn elements_of_struct(expected: &str) -> Option<(&str, usize)> {
    let (what, count) = expected.rsplit_once(" with ")?;
    let count = count.strip_suffix(" elements").or_else(|| count.strip_suffix(" element"))?;
    let is_struct = ["struct ", "struct variant ", "tuple struct ", "tuple variant "]
        .iter()
        .any(|kind| what.starts_with(kind));
    if is_struct { Some((what, count.parse().ok()?)) } else { None }
}

fn array_of(count: usize) -> String {
    format!("an array of {count} element{}", if count == 1 { "" } else { "s" })
}

/// An untagged enum tries each of its forms and forgets what was wrong with them.
fn no_form(text: &str) -> Option<String> {
    let name = text.strip_prefix("data did not match any variant of untagged enum ")?;
    (!name.contains(' ')).then(|| "the value has none of the forms that are taken here".to_owned())
}

#[cfg(test)]
mod tests;
