//! Holds the check of configurations to its contract: any text gives a configuration within its limits, or says where it is wrong.
//!
//! Fuzz targets come here through `internals`, and the corpus in `cargo test`; so a breach is an error and no panic.

use super::{Config, Overrides, Source, check};

/// Checks a text. 1 where it is a configuration.
///
/// # Errors
///
/// What it says of itself is read back as another one, or a complaint names a line that the text doesn't have.
pub(crate) fn hold(bytes: &[u8]) -> Result<usize, String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(0) };
    let source = Source { name: "config.toml".to_owned(), text: text.to_owned() };
    match check(&source, &Overrides::default()) {
        Ok(config) => {
            // As a template tells its supervisor, and a supervisor the program that follows.
            let told = serde_json::to_value(&config).map_err(|error| error.to_string())?;
            let understood: Config = serde_json::from_value(told)
                .map_err(|error| format!("what it says of itself can't be read: {error}"))?;
            if understood == config { Ok(1) } else { Err(format!("{config:?}\nbecame {understood:?}")) }
        }
        Err(error) => {
            let lines = text.lines().count().max(1);
            for complaint in error.to_string().lines() {
                let Some(rest) = complaint.strip_prefix("config.toml:") else {
                    continue;
                };
                let line: usize = rest.split(':').next().and_then(|line| line.parse().ok()).unwrap_or(1);
                if line == 0 || line > lines + 1 {
                    return Err(format!("line {line} of {lines}: {complaint}"));
                }
            }
            Ok(0)
        }
    }
}
