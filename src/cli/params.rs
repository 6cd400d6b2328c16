//! Params as they are typed on a command line: JSON, or `-` for standard input.

use std::io::Read;

use serde_json::value::RawValue;

/// The JSON that `typed` means; `name` is what the command calls it. Words for the person when it is none.
pub(super) fn read(
    name: &str,
    typed: Option<&str>,
    mut stdin: impl Read,
) -> Result<Option<Box<RawValue>>, String> {
    match typed {
        None => Ok(None),
        Some("-") => {
            let mut text = String::new();
            stdin.read_to_string(&mut text).map_err(|error| {
                format!("{name} can't be read from standard input ({error}): expected JSON in UTF-8")
            })?;
            let params = serde_json::from_str(&text)
                .map_err(|error| format!("{name} from standard input is not JSON: {error}"))?;
            Ok(Some(params))
        }
        Some(text) => {
            let params = serde_json::from_str(text)
                .map_err(|error| format!("{name} is not JSON: found {text}: {error}\n{}", quoting(text)))?;
            Ok(Some(params))
        }
    }
}

/// How `text` is typed if it was meant as a JSON string: the usual slip, as the shell takes the quotes away.
fn quoting(text: &str) -> String {
    if text.trim_start().starts_with(['{', '[']) {
        return "  put single quotes around the JSON, double quotes around names and text in it: '{\"ms\": 5}'"
            .to_owned();
    }
    let json = serde_json::Value::from(text).to_string();
    format!("  text is written with both kinds of quotes: '{}'", json.replace('\'', r"'\''"))
}
