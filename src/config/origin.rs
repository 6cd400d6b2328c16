//! Origins of pages and what goes with them: what `http.allow_origins`, `allow_headers` and `hosts` list. Called by `checked`; what an origin may do is not known here.

use toml::de::DeValue;

use super::values::found;

/// An origin as browsers write it, because it is compared as text: scheme, host in lower case, a port only where it isn't
/// the scheme's own, and nothing behind it.
pub(super) fn origin(value: &DeValue<'_>) -> Result<String, String> {
    let expected = "an origin as browsers send it, such as \"https://app.example.com\" or \"http://localhost:3000\", or \"*\" for all, \"self\" for the API's own";
    let wrong = |why: &str| format!("expected {expected}, found {}{why}", found(value));
    let DeValue::String(text) = value else {
        return Err(wrong(""));
    };
    if text == "*" || text == "self" {
        return Ok(text.to_string());
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong(" (it has no `://`)"))?;
    if scheme.is_empty() || rest.is_empty() {
        return Err(wrong(""));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.bytes().any(|byte| byte.is_ascii_uppercase())
    {
        return Err(wrong(" (lower case only, and no spaces)"));
    }
    if rest.contains(['/', '?', '#', '@', '*', ',']) {
        return Err(wrong(" (nothing may stand behind the host and its port)"));
    }
    if matches!((scheme, rest.rsplit_once(':')), ("http", Some((_, "80"))) | ("https", Some((_, "443")))) {
        return Err(wrong(" (browsers leave this port out)"));
    }
    Ok(text.to_string())
}

/// The name of a header field.
pub(super) fn header(value: &DeValue<'_>) -> Result<String, String> {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match value {
        DeValue::String(text) if !text.is_empty() && text.bytes().all(is_letter) => Ok(text.to_string()),
        _ => Err(format!(
            "expected the name of a header field such as \"Authorization\", found {}",
            found(value)
        )),
    }
}

/// The name of a host, as it is compared.
pub(super) fn host(value: &DeValue<'_>) -> Result<String, String> {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match value {
        DeValue::String(text) if !text.is_empty() && text.bytes().all(is_letter) => {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err(format!(
            "expected a host's name without scheme and port such as \"api.example.com\", found {}",
            found(value)
        )),
    }
}
