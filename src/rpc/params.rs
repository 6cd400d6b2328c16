//! From the text of params to a handler's own type, and a message that helps where that fails.

use serde::de::DeserializeOwned;

mod members;
mod words;

use super::error::Error;
use super::json::{RawJson, Span};
use super::scan::Scanner;

/// Decodes a value as it is.
pub(super) fn decode<P: DeserializeOwned>(params: RawJson<'_>) -> Result<P, Error> {
    serde_json::from_str(params.get()).or_else(|_| decode_tracking(params.get(), ""))
}

/// Decodes the params of a call, which may have none.
///
/// Without params `P` is made from `null`, so that `()` and `Option` work; if that is no `P`, from an object without
/// members, so that a struct whose members all have defaults works too.
pub(super) fn decode_optional<P: DeserializeOwned>(params: Option<RawJson<'_>>) -> Result<P, Error> {
    let Some(params) = params else {
        return decode_nothing();
    };
    if let Some(members) = only_struct::<P>(params.get())
        && let Ok(params) = serde_json::from_str(members)
    {
        return Ok(params);
    }
    serde_json::from_str(params.get()).or_else(|as_it_is| decode_otherwise(params, &as_it_is))
}

/// The object in an array of one, where `P` is a struct with members of these names. Taken by position the object as a whole would
/// be the first of them, which may well be a type that takes it.
fn only_struct<P: DeserializeOwned>(params: &str) -> Option<&str> {
    let inside = params.strip_prefix('[')?.trim_start();
    if !inside.starts_with('{') {
        return None;
    }
    let Elements::One(place) = only_element(&mut Scanner::new(params)) else { return None };
    let known = members::of::<P>()?;
    let object = place.of(params);
    let mut scan = Scanner::new(object);
    // What has no members is no reason to take it out of its array.
    let mut more = scan.first_member().ok().filter(|more| *more)?;
    while more {
        if !known.contains(&&*scan.name().ok()?.decoded(object)) {
            return None;
        }
        scan.value().ok()?;
        more = scan.next_member().ok()?;
    }
    Some(object)
}

/// Params that are no `P` as they are: clients that only know arrays send one for what a handler takes as a whole, and an
/// empty one, or an empty object, for nothing.
///
/// Which of the two errors the caller reads: the one of the value inside, unless the handler takes no such value at
/// all and the array was nearer.
#[cold]
fn decode_otherwise<P: DeserializeOwned>(
    params: RawJson<'_>,
    as_it_is: &serde_json::Error,
) -> Result<P, Error> {
    let mut scan = Scanner::new(params.get());
    match only_element(&mut scan) {
        Elements::None => decode_nothing().or_else(|_: Error| decode_tracking(params.get(), "")),
        Elements::One(span) => {
            let element = span.of(params.get());
            serde_json::from_str(element).or_else(|inside: serde_json::Error| {
                if let Some(nothing) = decode_no_members(element, &inside) {
                    return Ok(nothing);
                }
                let takes_no_array = reason(as_it_is).starts_with("invalid type: sequence");
                if takes_no_array || !reason(&inside).starts_with("invalid type: ") || is_deep::<P>(element) {
                    decode_tracking(element, "[0]")
                } else {
                    decode_tracking(params.get(), "")
                }
            })
        }
        Elements::Others => match decode_no_members(params.get(), as_it_is) {
            Some(nothing) => Ok(nothing),
            None => decode_tracking(params.get(), ""),
        },
    }
}

/// What takes nothing, from an object with nothing in it.
fn decode_no_members<P: DeserializeOwned>(value: &str, as_it_is: &serde_json::Error) -> Option<P> {
    // A type that takes objects has found something missing, and that is what its caller should read.
    let takes_no_object = reason(as_it_is).starts_with("invalid type: map");
    let is_empty = || matches!(Scanner::new(value).first_member(), Ok(false));
    if takes_no_object && is_empty() { serde_json::from_str("null").ok() } else { None }
}

/// What params hold.
enum Elements {
    /// An empty array.
    None,
    /// An array of one.
    One(Span),
    Others,
}

fn only_element(scan: &mut Scanner<'_>) -> Elements {
    // The text has been walked before: a fault is as good as anything else that is not looked for.
    match scan.next_byte() {
        Some(b'[') => match scan.first_element() {
            Ok(false) => Elements::None,
            Ok(true) => match (scan.value(), scan.next_element()) {
                (Ok(element), Ok(false)) => Elements::One(element),
                _ => Elements::Others,
            },
            Err(_) => Elements::Others,
        },
        _ => Elements::Others,
    }
}

/// Whether what is wrong with the value lies inside it, so that the value itself is of the right kind.
fn is_deep<P: DeserializeOwned>(value: &str) -> bool {
    let mut deserializer = serde_json::Deserializer::from_str(value);
    serde_path_to_error::deserialize::<_, P>(&mut deserializer)
        .is_err_and(|error| error.path().iter().next().is_some())
}

fn decode_nothing<P: DeserializeOwned>() -> Result<P, Error> {
    serde_json::from_str("null").or_else(|from_null: serde_json::Error| {
        serde_json::from_str("{}").map_err(|from_object: serde_json::Error| {
            let from_object = reason(&from_object);
            let reason =
                if from_object.starts_with("missing field") { from_object } else { reason(&from_null) };
            Error::invalid_params(format!("no params given: {}", words::in_words(&reason)))
        })
    })
}

/// Decodes again, slower, to know the way to the fault. `place` is where the text stands in the params.
#[cold]
fn decode_tracking<P: DeserializeOwned>(params: &str, place: &str) -> Result<P, Error> {
    let mut deserializer = serde_json::Deserializer::from_str(params);
    let tracked = serde_path_to_error::deserialize(&mut deserializer);
    // Of the value itself, so that what is behind it is its own fault.
    let (path, error) = match tracked {
        Ok(value) => match deserializer.end() {
            Ok(()) => return Ok(value),
            Err(error) => (".".to_owned(), error),
        },
        Err(error) => (error.path().to_string(), error.into_inner()),
    };
    Err(told(params, place, &path, &error))
}

fn told(params: &str, place: &str, path: &str, error: &serde_json::Error) -> Error {
    let reason = if is_cut_number(params, error) {
        "expected a whole number".to_owned()
    } else {
        words::in_words(&reason(error))
    };
    // The path of the value itself, rather than one inside it, is `.`, and a name that could not be read is `?`.
    let path = match path.strip_suffix('?').unwrap_or(path).trim_end_matches('.') {
        "" => place.to_owned(),
        path if place.is_empty() || path.starts_with('[') => format!("{place}{path}"),
        path => format!("{place}.{path}"),
    };
    if path.is_empty() {
        Error::invalid_params(format!("invalid params: {reason}"))
    } else {
        Error::invalid_params(format!("invalid params: `{path}`: {reason}"))
    }
}

/// What serde says, without a line and column: they'd count from the params, which the caller hasn't counted.
fn reason(error: &serde_json::Error) -> String {
    let mut text = error.to_string();
    if error.line() > 0
        && let Some(end) = text.rfind(" at line ")
    {
        text.truncate(end);
    }
    text
}

/// Of the numbers that have more than 64 bits `serde_json` reads the digits alone, and then misses what is to follow.
fn is_cut_number(params: &str, error: &serde_json::Error) -> bool {
    let Some(line) = error.line().checked_sub(1).and_then(|line| params.split('\n').nth(line)) else {
        return false;
    };
    let bytes = line.as_bytes();
    let is_behind_a_digit = |at: usize| {
        matches!(bytes.get(at), Some(b'.' | b'e' | b'E'))
            && at.checked_sub(1).and_then(|before| bytes.get(before)).is_some_and(u8::is_ascii_digit)
    };
    error.is_syntax()
        && (is_behind_a_digit(error.column()) || error.column().checked_sub(1).is_some_and(is_behind_a_digit))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Nap {
        ms: u64,
        #[serde(default)]
        tags: Vec<Tag>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Tag {
        name: String,
    }

    #[derive(Debug, PartialEq, Default, Deserialize)]
    #[serde(default)]
    struct AllOptional {
        limit: u32,
    }

    fn fails<P: DeserializeOwned>(params: &str) -> String {
        let Err(error) = decode_optional::<P>(Some(RawJson::parse(params).unwrap())) else {
            panic!("{params} was taken")
        };
        assert_eq!(error.code(), Error::INVALID_PARAMS);
        error.message().to_owned()
    }

    #[test]
    fn wrong_params_name_the_field_and_what_was_expected() {
        for (params, message) in [
            (
                r#"{"ms":"10"}"#,
                r#"invalid params: `ms`: invalid type: string "10", expected a whole number from 0 to 18446744073709551615"#,
            ),
            (
                r#"{"ms":-1}"#,
                "invalid params: `ms`: invalid value: integer `-1`, expected a whole number from 0 to 18446744073709551615",
            ),
            ("{}", "invalid params: missing field `ms`"),
            ("7", "invalid params: invalid type: integer `7`, expected an object"),
            (
                r#"{"ms":1,"tags":[7]}"#,
                "invalid params: `tags[0]`: invalid type: integer `7`, expected an object",
            ),
            (
                r#""expected struct Nap""#,
                r#"invalid params: invalid type: string "expected struct Nap", expected an object"#,
            ),
            (
                r#"{"ms":1,"tags":[{"name":"a"},{"name":5}]}"#,
                "invalid params: `tags[1].name`: invalid type: integer `5`, expected a string",
            ),
            (r#"{"ms":1,"ms":2}"#, "invalid params: duplicate field `ms`"),
        ] {
            assert_eq!(fails::<Nap>(params), message);
        }
    }

    #[test]
    fn a_number_beyond_every_type_is_the_params_fault() {
        assert!(fails::<f64>("1e400").contains("number out of range"));
        assert!(
            fails::<u64>("18446744073709551616")
                .contains("expected a whole number from 0 to 18446744073709551615")
        );
    }

    #[test]
    fn params_that_are_not_there_are_null_or_nothing() {
        assert_eq!(decode_optional::<()>(None), Ok(()));
        assert_eq!(decode_optional::<Option<u8>>(None), Ok(None));
        assert_eq!(decode_optional::<AllOptional>(None), Ok(AllOptional { limit: 0 }));
        assert_eq!(decode_optional::<HashMap<String, u8>>(None), Ok(HashMap::new()));
    }

    fn taken<P: DeserializeOwned>(params: &str) -> P {
        decode_optional(Some(RawJson::parse(params).unwrap()))
            .unwrap_or_else(|error| panic!("{params}: {error}"))
    }

    #[test]
    fn one_value_may_come_in_an_array() {
        assert_eq!((taken::<u64>("7"), taken::<u64>("[7]"), taken::<u64>(" [ 7 ] ")), (7, 7, 7));
        assert_eq!(taken::<String>(r#"["a"]"#), "a");
        assert_eq!(taken::<Option<u64>>("[null]"), None);
        assert_eq!(taken::<HashMap<String, u8>>(r#"[{"a":1}]"#), HashMap::from([("a".to_owned(), 1)]));
        // What is an array itself is taken as it is.
        assert_eq!(taken::<Vec<u64>>("[7]"), [7]);
        assert_eq!(taken::<Vec<u64>>("[[7, 8]]"), [7, 8]);
        assert_eq!(taken::<(u8, u8)>("[1, 2]"), (1, 2));
        assert_eq!(taken::<(u8, u8)>("[[1, 2]]"), (1, 2));
        assert_eq!(taken::<serde_json::Value>("[7]"), serde_json::json!([7]));
    }

    #[test]
    fn a_struct_is_taken_by_name_by_position_and_in_an_array() {
        let nap = || Nap { ms: 5, tags: Vec::new() };
        for params in [r#"{"ms":5}"#, r#"[{"ms":5}]"#, "[5]", "[5, []]"] {
            assert_eq!(taken::<Nap>(params), nap(), "{params}");
        }
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Search {
        filter: serde_json::Value,
        #[serde(default, alias = "most")]
        limit: u32,
    }

    // Of the two ways to read it the first one won: `filter` was the whole object.
    #[test]
    fn a_struct_in_an_array_is_known_by_the_names_of_its_members() {
        let search = |filter, limit| Search { filter, limit };
        for (params, found) in [
            (r#"[{"filter":1}]"#, search(1.into(), 0)),
            (r#"[ {"limit":2, "f\u0069lter":{"limit":3}} ]"#, search(serde_json::json!({"limit": 3}), 2)),
            (r#"[{"most":2,"filter":null}]"#, search(serde_json::Value::Null, 2)),
            // By position, as nothing in it is named so, or too much is missing.
            (r#"[{"a":1}]"#, search(serde_json::json!({"a": 1}), 0)),
            (r#"[{"filter":1,"a":1}]"#, search(serde_json::json!({"filter": 1, "a": 1}), 0)),
            (r#"[{"limit":1}]"#, search(serde_json::json!({"limit": 1}), 0)),
            (r"[{}]", search(serde_json::json!({}), 0)),
            (r#"[{"filter":1},7]"#, search(serde_json::json!({"filter": 1}), 7)),
        ] {
            assert_eq!(taken::<Search>(params), found, "{params}");
            assert_eq!(taken::<Option<Search>>(params), Some(found), "{params}");
        }
    }

    #[test]
    fn nothing_may_be_written_in_any_way() {
        for params in ["null", "[]", "{}", "[ ]", "{ }", "[null]", "[{}]", " [ { } ] "] {
            taken::<()>(params);
        }
        assert_eq!(taken::<Option<u64>>("[]"), None);
        assert_eq!(taken::<AllOptional>("[]"), AllOptional { limit: 0 });
        assert_eq!(taken::<HashMap<String, u8>>("[]"), HashMap::new());
        assert_eq!(fails::<()>("[1]"), "invalid params: `[0]`: invalid type: integer `1`, expected null");
        assert_eq!(fails::<()>(r#"{"a":1}"#), "invalid params: invalid type: object, expected null");
        assert_eq!(fails::<Option<Nap>>("{}"), "invalid params: missing field `ms`");
    }

    #[test]
    fn of_two_ways_to_read_an_array_the_nearer_one_is_told() {
        for (message, found) in [
            (
                "invalid params: `[0]`: invalid type: string \"x\", expected a whole number from 0 to 18446744073709551615",
                fails::<u64>(r#"["x"]"#),
            ),
            (
                "invalid params: `[0].ms`: invalid type: string \"x\", expected a whole number from 0 to 18446744073709551615",
                fails::<Nap>(r#"[{"ms":"x"}]"#),
            ),
            ("invalid params: `[0]`: missing field `ms`", fails::<Nap>("[{}]")),
            (
                "invalid params: `[0]`: invalid type: string \"x\", expected a whole number from 0 to 18446744073709551615",
                fails::<Vec<u64>>(r#"["x"]"#),
            ),
            (
                "invalid params: `[0].name`: invalid type: integer `5`, expected a string",
                fails::<Vec<Tag>>(r#"[{"name":5}]"#),
            ),
            (
                "invalid params: invalid type: array, expected a whole number from 0 to 18446744073709551615",
                fails::<u64>("[1, 2]"),
            ),
        ] {
            assert_eq!(found, message);
        }
    }

    #[test]
    fn too_few_or_too_many_params_by_position_are_told_by_their_number() {
        for (params, message) in [
            ("[1, 2]", "invalid params: `[1]`: invalid type: integer `2`, expected an array"),
            ("[1, [], 3]", "invalid params: the array has more elements than are expected"),
            (
                r#"[1, [["a", "b"]]]"#,
                "invalid params: `[1][0]`: the array has more elements than are expected",
            ),
            ("[1, [[]]]", "invalid params: `[1][0]`: invalid length 0, expected an array of 1 element"),
        ] {
            assert_eq!(fails::<Nap>(params), message);
        }
        assert_eq!(
            fails::<(u8, u8)>("[1]"),
            "invalid params: invalid length 1, expected an array of 2 elements"
        );
        assert_eq!(
            fails::<(u8, u8)>("[1, 2, 3]"),
            "invalid params: the array has more elements than are expected"
        );
    }

    #[test]
    fn params_that_are_missed_are_named() {
        let missed = decode_optional::<Nap>(None).unwrap_err();
        assert_eq!(missed.message(), "no params given: missing field `ms`");
        let missed = decode_optional::<u64>(None).unwrap_err();
        assert_eq!(
            missed.message(),
            "no params given: invalid type: null, expected a whole number from 0 to 18446744073709551615"
        );
    }
}
