//! From the text of params to a handler's own type, and a message that helps where that fails.

use serde::de::DeserializeOwned;

use super::error::Error;
use super::json::RawJson;

/// Decodes params that were given.
pub(super) fn decode<P: DeserializeOwned>(params: RawJson<'_>) -> Result<P, Error> {
    serde_json::from_str(params.get()).or_else(|_| decode_tracking(params.get()))
}

/// Decodes the params of a call, which may have none.
///
/// Without params `P` is made from `null`, so that `()` and `Option` work; if that is no `P`, from an object without
/// members, so that a struct whose members all have defaults works too.
pub(super) fn decode_optional<P: DeserializeOwned>(params: Option<RawJson<'_>>) -> Result<P, Error> {
    if let Some(params) = params {
        return decode(params);
    }
    serde_json::from_str("null").or_else(|from_null: serde_json::Error| {
        serde_json::from_str("{}").map_err(|from_object: serde_json::Error| {
            let from_object = reason(&from_object);
            if from_object.starts_with("missing field") {
                Error::invalid_params(format!("no params given: {from_object}"))
            } else {
                Error::invalid_params(format!("no params given: {}", reason(&from_null)))
            }
        })
    })
}

/// Decodes again, slower, to know the way to the fault.
#[cold]
fn decode_tracking<P: DeserializeOwned>(params: &str) -> Result<P, Error> {
    let mut deserializer = serde_json::Deserializer::from_str(params);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let reason = reason(error.inner());
        // The path of the value itself, rather than one inside it, is `.`.
        match error.path().to_string().as_str() {
            "." => Error::invalid_params(format!("invalid params: {reason}")),
            path => Error::invalid_params(format!("invalid params: `{path}`: {reason}")),
        }
    })
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
            (r#"{"ms":"10"}"#, r#"invalid params: `ms`: invalid type: string "10", expected u64"#),
            (r#"{"ms":-1}"#, "invalid params: `ms`: invalid value: integer `-1`, expected u64"),
            ("{}", "invalid params: missing field `ms`"),
            ("7", "invalid params: invalid type: integer `7`, expected struct Nap"),
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
        assert!(fails::<u64>("18446744073709551616").contains("expected u64"));
    }

    #[test]
    fn params_that_are_not_there_are_null_or_nothing() {
        assert_eq!(decode_optional::<()>(None), Ok(()));
        assert_eq!(decode_optional::<Option<u8>>(None), Ok(None));
        assert_eq!(decode_optional::<AllOptional>(None), Ok(AllOptional { limit: 0 }));
        assert_eq!(decode_optional::<HashMap<String, u8>>(None), Ok(HashMap::new()));
    }

    #[test]
    fn params_that_are_missed_are_named() {
        let missed = decode_optional::<Nap>(None).unwrap_err();
        assert_eq!(missed.message(), "no params given: missing field `ms`");
        let missed = decode_optional::<u64>(None).unwrap_err();
        assert_eq!(missed.message(), "no params given: invalid type: null, expected u64");
    }
}
