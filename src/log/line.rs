//! What a record looks like as a line: one line, nothing in it that a terminal or an editor obeys, and not too long.
//!
//! Methods' names, ids, errors, panics and the reasons that workers give are other people's texts, so this is done to the
//! whole line, after it was formatted and whatever part they are in.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde_json::Value;

use crate::config::LogFormat;

/// The longest line: what a pipe takes whole or not at all (`PIPE_BUF`).
pub(super) const LONGEST_LINE: usize = 4096;

/// The longest text of somebody else's that is put into a record, so that the record's other parts have room beside it.
pub(crate) const LONGEST_TEXT: usize = 2048;

/// Ends what was cut.
const CUT: &str = "… (cut)";

/// A record as the line that is written. `formatted` ends with a line break.
pub(super) fn line_of(formatted: &[u8], format: LogFormat) -> Cow<'_, [u8]> {
    let record = formatted.strip_suffix(b"\n").unwrap_or(formatted);
    let escaped = match escaped(record, format) {
        None if formatted.len() <= LONGEST_LINE => return Cow::Borrowed(formatted),
        None => String::from_utf8_lossy(record),
        Some(escaped) => Cow::Owned(escaped),
    };
    if escaped.len() < LONGEST_LINE {
        return Cow::Owned(format!("{escaped}\n").into_bytes());
    }
    Cow::Owned(shortened(&escaped, format))
}

/// A line of text for a person's terminal, in which nothing is obeyed.
pub(crate) fn spelled_out(line: &str) -> Cow<'_, str> {
    escaped(line.as_bytes(), LogFormat::Text).map_or(Cow::Borrowed(line), Cow::Owned)
}

/// The text with every character spelled out that has an effect and no shape; None where it has none of them.
fn escaped(record: &[u8], format: LogFormat) -> Option<String> {
    // Nearly all lines are ASCII without any.
    if record.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return None;
    }
    let record = String::from_utf8_lossy(record);
    if !record.contains(is_obeyed) {
        return None;
    }
    let mut text = String::with_capacity(record.len() + 16);
    for character in record.chars() {
        match (character, format) {
            ('\n', _) => text.push_str("\\n"),
            ('\r', _) => text.push_str("\\r"),
            ('\t', _) => text.push_str("\\t"),
            // In JSON such characters can stand in texts alone, where this means them.
            (obeyed, LogFormat::Json) if is_obeyed(obeyed) => {
                let _ = write!(text, "\\u{:04x}", u32::from(obeyed));
            }
            (obeyed, LogFormat::Text) if is_obeyed(obeyed) => {
                let _ = write!(text, "\\u{{{:x}}}", u32::from(obeyed));
            }
            (shown, _) => text.push(shown),
        }
    }
    Some(text)
}

/// Controls (C0, DEL, C1), which may begin a terminal's escapes or a new line; the separators of lines and paragraphs; and
/// the marks, overrides and isolates that change the order in which characters are shown. All have four hexadecimal digits.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}')
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A line of at most `LONGEST_LINE` bytes that says what fits.
fn shortened(line: &str, format: LogFormat) -> Vec<u8> {
    let object = match format {
        LogFormat::Text => None,
        LogFormat::Json => serde_json::from_str(line).ok().and_then(shortened_object),
    };
    object.unwrap_or_else(|| format!("{}{CUT}\n", beginning(line, LONGEST_LINE - CUT.len() - 1)).into_bytes())
}

/// Cuts the longest texts of an object until it fits; `None` where it is not texts that make it long.
fn shortened_object(mut object: serde_json::Map<String, Value>) -> Option<Vec<u8>> {
    loop {
        let line = serde_json::to_string(&object).ok()?;
        let mut line = escaped(line.as_bytes(), LogFormat::Json).unwrap_or(line);
        line.push('\n');
        if line.len() <= LONGEST_LINE {
            return Some(line.into_bytes());
        }
        let texts = object.values_mut().filter_map(|value| match value {
            Value::String(text) => Some(text),
            _ => None,
        });
        let longest = texts.max_by_key(|text| text.len()).filter(|text| text.len() > 4 * CUT.len())?;
        *longest = format!("{}{CUT}", beginning(longest, longest.len() / 2));
    }
}

/// At most `most` bytes of `text`, in whole characters.
fn beginning(text: &str, most: usize) -> &str {
    (0..=most).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

/// Somebody else's text for a record: cut where it is longer than [`LONGEST_TEXT`].
pub(crate) fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= LONGEST_TEXT {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}{CUT}", beginning(text, LONGEST_TEXT)))
}

/// What a value is as text, cut like any other. Of a longer one no more is made than is kept.
pub(crate) fn text_of(value: &dyn fmt::Display) -> String {
    let mut bounded = Bounded { text: String::new(), is_cut: false };
    // An error is that there is enough, or the value's own, whose beginning may still help.
    let _ = write!(bounded, "{value}");
    if bounded.is_cut {
        bounded.text.push_str(CUT);
    }
    bounded.text
}

struct Bounded {
    text: String,
    is_cut: bool,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = LONGEST_TEXT - self.text.len();
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        self.text.push_str(beginning(more, room));
        self.is_cut = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(record: &str, format: LogFormat) -> String {
        String::from_utf8(line_of(format!("{record}\n").as_bytes(), format).into_owned()).unwrap()
    }

    #[test]
    fn every_character_that_something_obeys_is_spelled_out() {
        let obeyed = ('\0'..'\u{20}')
            .chain('\u{7f}'..='\u{9f}')
            .chain("\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}".chars())
            .chain('\u{202a}'..='\u{202e}')
            .chain('\u{2066}'..='\u{2069}');
        for character in obeyed {
            let line = written(&format!("before{character}after"), LogFormat::Text);
            assert!(!line.trim_end_matches('\n').contains(is_obeyed), "{line:?}");
            assert!(line.starts_with("before\\") && line.ends_with("after\n"), "{line:?}");

            // As the formatter leaves it: C0 is escaped, and nothing else.
            let record = serde_json::json!({ "message": format!("before{character}after") });
            let line = written(&record.to_string(), LogFormat::Json);
            assert!(!line.trim_end_matches('\n').contains(is_obeyed), "{line:?}");
            assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), record);
        }
    }

    #[test]
    fn texts_of_all_languages_stay_as_they_are() {
        for text in ["plain", "grün €", "日本語", "עברית", "👩‍🚀 e\u{301}", "back\\slash"] {
            assert_eq!(written(text, LogFormat::Text), format!("{text}\n"));
        }
    }

    #[test]
    fn what_is_no_text_is_one_line_all_the_same() {
        assert_eq!(&*line_of(b"a\xff\nb\n", LogFormat::Text), "a\u{fffd}\\nb\n".as_bytes());
        assert_eq!(&*line_of(b"no end", LogFormat::Text), b"no end");
    }

    #[test]
    fn a_long_line_of_text_is_cut_between_characters() {
        for ascii in 0..4 {
            let short = written(&format!("{}{}", "x".repeat(ascii), "ä€".repeat(3_000)), LogFormat::Text);
            assert!(short.len() <= LONGEST_LINE && short.len() > LONGEST_LINE - 8, "{} bytes", short.len());
            assert!(short.ends_with("€… (cut)\n") || short.ends_with("ä… (cut)\n"), "{short}");
        }
    }

    #[test]
    fn a_long_line_of_json_stays_json_and_keeps_its_other_members() {
        let message = "\u{1}\"\\ä\u{202e}".repeat(5_000);
        let line = serde_json::json!({ "level": "ERROR", "message": message, "slot": 3 }).to_string();
        let short = written(&line, LogFormat::Json);
        assert!(short.len() <= LONGEST_LINE && short.ends_with('\n') && !short.contains('\u{202e}'));
        let short: Value = serde_json::from_str(&short).unwrap();
        assert_eq!((&short["level"], &short["slot"]), (&"ERROR".into(), &3.into()));
        assert!(short["message"].as_str().unwrap().ends_with(CUT));
    }

    #[test]
    fn json_that_is_long_without_long_texts_is_cut_as_text() {
        let line = serde_json::json!({ "numbers": vec![1; 5_000] }).to_string();
        let short = written(&line, LogFormat::Json);
        assert!(short.len() <= LONGEST_LINE && short.ends_with("… (cut)\n"));
    }

    #[test]
    fn a_text_of_any_length_is_made_no_longer_than_it_is_kept() {
        struct Endless;
        impl fmt::Display for Endless {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                loop {
                    f.write_str("ä€")?;
                }
            }
        }
        let text = text_of(&Endless);
        assert!(text.len() <= LONGEST_TEXT + CUT.len() && text.ends_with(CUT), "{} bytes", text.len());
        assert_eq!(text_of(&"short"), "short");
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"x".repeat(LONGEST_TEXT + 1)).len(), LONGEST_TEXT + CUT.len());
    }
}
