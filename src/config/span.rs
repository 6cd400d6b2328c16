//! Spans of time as they are written and shown: a number with its unit, "500ms", "1m 30s".
//!
//! One form wherever a setting is read or told: the config, its errors, `check`, the command line, the log.

use std::time::Duration;

/// A span of time from what somebody typed.
///
/// # Errors
///
/// Why it is none, in a few words that can stand in brackets.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    if trimmed.starts_with('-') {
        return Err("it can't be negative".to_owned());
    }
    if !trimmed.starts_with(|first: char| first.is_ascii_digit()) {
        return Err("it starts with a number".to_owned());
    }
    if trimmed.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && trimmed != "0" {
        return Err("a number needs a unit, such as ms, s, m or h".to_owned());
    }
    humantime::parse_duration(trimmed).map_err(|error| match error {
        humantime::DurationError::NumberOverflow => "that is too long".to_owned(),
        _ => "the units are ms, s, m, h and d, as in 1m 30s".to_owned(),
    })
}

/// A span of time as it would be written.
pub(crate) fn show(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// A span of time that was measured, without digits that tell a reader nothing.
pub(crate) fn show_measured(time: Duration) -> String {
    let exact = match time {
        time if time >= Duration::from_secs(60) => Duration::from_secs(1),
        time if time >= Duration::from_secs(1) => Duration::from_millis(100),
        time if time >= Duration::from_millis(1) => Duration::from_micros(100),
        _ => Duration::from_nanos(100),
    };
    let beyond = u64::try_from(time.as_nanos() % exact.as_nanos()).unwrap_or_default();
    show(time.saturating_sub(Duration::from_nanos(beyond)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_span_says_why() {
        for (text, why) in [
            ("-5s", "it can't be negative"),
            ("", "it starts with a number"),
            ("soon", "it starts with a number"),
            ("+5s", "it starts with a number"),
            ("30", "a number needs a unit, such as ms, s, m or h"),
            ("1.5", "a number needs a unit, such as ms, s, m or h"),
            ("5 parsecs", "the units are ms, s, m, h and d, as in 1m 30s"),
            ("99999999999999999999999s", "that is too long"),
        ] {
            assert_eq!(parse(text), Err(why.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for ms in [0, 1, 999, 1_000, 90_000, 3_600_000, 86_400_000, 2_592_000_000] {
            let time = Duration::from_millis(ms);
            assert_eq!(parse(&show(time)), Ok(time));
        }
        assert_eq!(show(Duration::from_millis(90_500)), "1m 30s 500ms");
    }

    #[test]
    fn what_was_measured_is_shown_in_the_same_form_without_its_last_digits() {
        for (ns, shown) in [
            (0, "0s"),
            (99, "0s"),
            (3_149, "3us 100ns"),
            (1_234_567, "1ms 200us"),
            (12_000_001, "12ms"),
            (1_150_999_999, "1s 100ms"),
            (59_999_999_999, "59s 900ms"),
            (71_000_000_001, "1m 11s"),
            (93_784_999_999_999, "1day 2h 3m 4s"),
        ] {
            assert_eq!(show_measured(Duration::from_nanos(ns)), shown);
            assert!(parse(shown).is_ok(), "{shown}");
        }
        assert!(!show_measured(Duration::MAX).is_empty());
    }
}
