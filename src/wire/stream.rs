//! The JSON stream: complete JSON values one after another, with nothing or white space between them.
//!
//! Finds where a value ends, by its brackets and quotes; whether it is JSON is for `rpc` to say. What no end can make JSON any
//! more ends there, so that its caller hears of it at once and does not wait for a bracket. Each answer ends with a line break.

use super::detect::BYTE_ORDER_MARK;
use super::{Decode, Known, Progress, Step, WireError};

/// The framing as one listener has it configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamFraming {
    /// The most bytes a request may have.
    pub(crate) max_message: usize,
}

/// How far into a value the bytes have been looked at, and what they are in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scan {
    at: usize,
    inside: Inside,
    nest: Nest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// A number, or a word such as `true`.
    Scalar,
    Brackets,
    Text,
    /// Behind a backslash.
    Escape,
}

/// The brackets that are open, one bit each, set for a brace, the innermost lowest; a bit above them shows where they end.
/// 129 fit: the 127 that `rpc` reads of a value, in a request, in a batch. The one that is too many is handed on with them, as it
/// is what `rpc` complains of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Nest {
    /// What `inner` has no room for.
    outer: u8,
    inner: u128,
}

impl Nest {
    const NONE: Nest = Nest { outer: 0, inner: 1 };

    /// False where no more fit.
    fn enter(&mut self, bracket: u8) -> bool {
        let fits = self.outer <= 1;
        self.outer = self.outer << 1 | u8::from(self.inner >> 127 == 1);
        self.inner = self.inner << 1 | u128::from(bracket == b'{');
        fits
    }

    /// False where another kind is open.
    fn leave(&mut self, bracket: u8) -> bool {
        let is_brace = self.inner & 1 == 1;
        self.inner = self.inner >> 1 | u128::from(self.outer & 1) << 127;
        self.outer >>= 1;
        is_brace == (bracket == b'}')
    }
}

impl Decode for StreamFraming {
    fn decode(&self, arrived: &[u8], progress: &mut Progress) -> Step {
        let scan = match progress.0 {
            Known::Stream(scan) => scan,
            _ => match begin(arrived) {
                Ok(scan) => scan,
                Err(step) => return step,
            },
        };
        *progress = Progress::default();
        // One byte more than a message may have shows that it is too long.
        let within = arrived.get(..self.max_message.saturating_add(1)).unwrap_or(arrived);
        match scan.go_on(within) {
            Ok(end) if end <= self.max_message => {
                let behind = arrived.get(end..).unwrap_or_default();
                Step::Message { body: 0..end, consumed: end + white_space(behind) }
            }
            Err(scan) if arrived.len() <= self.max_message => {
                *progress = Progress(Known::Stream(scan));
                Step::NeedMore { at_least: arrived.len() + 1 }
            }
            Ok(_) | Err(_) => Step::Wrong(WireError::Endless { limit: self.max_message }),
        }
    }
}

/// Ends an answer, which is the last thing in `out`.
pub(super) fn end_message(out: &mut Vec<u8>) {
    out.push(b'\n');
}

/// What the first byte begins, or the step that it is where it begins nothing.
fn begin(arrived: &[u8]) -> Result<Scan, Step> {
    let mut nest = Nest::NONE;
    let inside = match arrived.first() {
        None => return Err(Step::NeedMore { at_least: 1 }),
        Some(b' ' | b'\t' | b'\n' | b'\r') => return Err(Step::Skip { consumed: white_space(arrived) }),
        Some(&bracket @ (b'{' | b'[')) => {
            nest.enter(bracket);
            Inside::Brackets
        }
        Some(b'"') => Inside::Text,
        Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => Inside::Scalar,
        Some(_) if arrived.starts_with(BYTE_ORDER_MARK) => {
            return Err(Step::Skip { consumed: BYTE_ORDER_MARK.len() });
        }
        Some(_) if BYTE_ORDER_MARK.starts_with(arrived) => {
            return Err(Step::NeedMore { at_least: arrived.len() + 1 });
        }
        Some(&found) => return Err(Step::Wrong(WireError::Stray { found })),
    };
    Ok(Scan { at: 1, inside, nest })
}

fn white_space(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

impl Scan {
    /// Where the value ends, or how far it is known now.
    fn go_on(mut self, bytes: &[u8]) -> Result<usize, Scan> {
        let mut rest = bytes.get(self.at..).unwrap_or_default().iter();
        let end_at = |rest: &std::slice::Iter<'_, u8>| bytes.len() - rest.as_slice().len();
        while let Some(&byte) = rest.next() {
            match (self.inside, byte) {
                (Inside::Scalar, b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => {}
                // The byte belongs to what follows.
                (Inside::Scalar, _) => return Ok(end_at(&rest) - 1),
                (Inside::Brackets, b'"') => self.inside = Inside::Text,
                (Inside::Brackets, b'{' | b'[') => {
                    if !self.nest.enter(byte) {
                        return Ok(end_at(&rest));
                    }
                }
                (Inside::Brackets, b'}' | b']') => {
                    if !self.nest.leave(byte) || self.nest == Nest::NONE {
                        return Ok(end_at(&rest));
                    }
                }
                (Inside::Brackets, _) => {}
                (Inside::Text, b'"') if self.nest == Nest::NONE => return Ok(end_at(&rest)),
                (Inside::Text, b'"') => self.inside = Inside::Brackets,
                (Inside::Text, b'\\') => self.inside = Inside::Escape,
                // No text has them, least of all one whose second quote is missing: the next line's is another's.
                (Inside::Text | Inside::Escape, 0..=0x1f) => return Ok(end_at(&rest)),
                (Inside::Text, _) => {}
                (Inside::Escape, _) => self.inside = Inside::Text,
            }
        }
        Err(Scan { at: bytes.len(), ..self })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::wire::Framing;
    use crate::wire::pieces::{Outcome, check};

    const SMALL: StreamFraming = StreamFraming { max_message: 64 };

    fn decoded(bytes: &[u8]) -> Outcome {
        check(Framing::Stream(SMALL), bytes, 5).unwrap()
    }

    fn messages(bytes: &[u8]) -> Vec<String> {
        let outcome = decoded(bytes);
        outcome.messages.into_iter().map(|message| String::from_utf8(message).unwrap()).collect()
    }

    #[test]
    fn values_follow_each_other_with_or_without_space_between() {
        for (stream, expected) in [
            (r#"{"a":1}{"b":2}"#, &[r#"{"a":1}"#, r#"{"b":2}"#][..]),
            ("{}\n[]\r\n\t {} ", &["{}", "[]", "{}"]),
            (" \n {}", &["{}"]),
            (r#"{"a":"}"}[1]"#, &[r#"{"a":"}"}"#, "[1]"]),
            (r#"{"a":"\"}"}[]"#, &[r#"{"a":"\"}"}"#, "[]"]),
            (r#"["\\"]["]"]"#, &[r#"["\\"]"#, r#"["]"]"#]),
            (r#"[{"a":[[]]}][]"#, &[r#"[{"a":[[]]}]"#, "[]"]),
            (r#""a b""c\"d"{}"#, &[r#""a b""#, r#""c\"d""#, "{}"]),
            ("1 true null -1.5e+3 ", &["1", "true", "null", "-1.5e+3"]),
            (r#"1{}2[]3"x"4 "#, &["1", "{}", "2", "[]", "3", r#""x""#, "4"]),
            // As .NET's `Encoding.UTF8` begins a stream.
            ("\u{feff}{}\u{feff} []\n", &["{}", "[]"]),
            // Whether it is JSON is not asked here.
            ("{]nonsense ", &["{]", "nonsense"]),
            ("", &[]),
            ("   ", &[]),
        ] {
            assert_eq!(messages(stream.as_bytes()), expected, "{stream}");
        }
    }

    #[test]
    fn what_has_no_end_yet_is_waited_for() {
        for stream in ["{", r#"{"a":"}"#, r#"["\"]"#, r#"""#, "12", "tru", "[[]", r#"["\"#] {
            assert_eq!(decoded(stream.as_bytes()), Outcome::default(), "{stream}");
        }
    }

    #[test]
    fn what_begins_no_value_is_wrong_and_ends_the_connection() {
        for (stream, found) in [
            ("{}]", b']'),
            ("[] ,", b','),
            ("1:", b':'),
            ("hello", b'h'),
            ("{}\0", 0),
            ("{}\u{fefe}", 0xef),
            ("'a'", b'\''),
        ] {
            let outcome = decoded(stream.as_bytes());
            let error = outcome.errors.last().expect(stream).1;
            assert_eq!(error, WireError::Stray { found }, "{stream}");
            assert!(outcome.is_closed);
        }
    }

    #[test]
    fn a_value_may_have_max_message_bytes_and_no_more() {
        let of = |bytes: usize| format!("[\"{}\"]", "x".repeat(bytes - 4));
        assert_eq!(messages(of(64).as_bytes()).len(), 1);
        for too_long in [of(65), of(66).trim_end_matches(']').to_owned(), "1".repeat(65), "[".repeat(65)] {
            let outcome = decoded(too_long.as_bytes());
            assert_eq!(outcome.errors, [(0, WireError::Endless { limit: 64 })], "{too_long}");
        }
        assert_eq!(decoded("1".repeat(64).as_bytes()), Outcome::default());
    }

    /// What went wrong once: such a value was waited for until `timeouts.message`, and half-closed it was not answered at all.
    #[test]
    fn what_no_end_makes_json_any_more_ends_there() {
        for (stream, end) in [
            ("[}", 2),
            (r#"[{"a":1},{"b" ], 5]"#, 15),
            (r#"{"a":"b"]}"#, 9),
            ("[\"no second quote]\n[]", 19),
            ("[\"\\\n\"]", 4),
            ("{\"\0\"}", 3),
        ] {
            let step = SMALL.decode(stream.as_bytes(), &mut Progress::default());
            let Step::Message { body, .. } = step else { panic!("{stream}: {step:?}") };
            assert_eq!(body, 0..end, "{stream}");
            assert!(serde_json::from_str::<Value>(&stream[body]).is_err(), "{stream}");
        }
    }

    #[test]
    fn brackets_are_counted_as_deep_as_anybody_reads() {
        let framing = StreamFraming { max_message: 1 << 20 };
        for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
            let depth = 129 / open.matches(['[', '{']).count();
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let step = framing.decode(deep.as_bytes(), &mut Progress::default());
            assert_eq!(step, Step::Message { body: 0..deep.len(), consumed: deep.len() }, "{open}");
        }
        for open in ["[", "{\"a\":"] {
            let deep = open.repeat(100_000);
            let step = framing.decode(deep.as_bytes(), &mut Progress::default());
            let end = 129 * open.len() + 1;
            assert_eq!(step, Step::Message { body: 0..end, consumed: end }, "{open}");
        }
    }

    #[test]
    fn answers_end_with_a_line_break() {
        let framing = Framing::Stream(SMALL);
        let mut out = b"{}\n".to_vec();
        let mark = framing.dialect().begin_message(&mut out);
        out.extend_from_slice(b"[]");
        framing.dialect().end_message(&mut out, mark).unwrap();
        assert_eq!(out, b"{}\n[]\n");
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_value_is_found_again(values in prop::collection::vec((json(), "[ \t\r\n]{0,3}"), 0..6)) {
            let mut stream = String::new();
            for (value, space) in &values {
                stream.push_str(&value.to_string());
                stream.push_str(if space.is_empty() && !value.is_object() { " " } else { space });
            }
            let framing = Framing::Stream(StreamFraming { max_message: 1 << 20 });
            let outcome = check(framing, stream.as_bytes(), 7).unwrap();
            let sent: Vec<Vec<u8>> = values.iter().map(|(value, _)| value.to_string().into_bytes()).collect();
            prop_assert_eq!(outcome.messages, sent);
            prop_assert_eq!(outcome.consumed, stream.len());
        }

        #[test]
        fn garbage_never_panics_and_never_points_outside(bytes in r#"[\[\]{}",:\\ 1ae\PC]{0,80}"#) {
            decoded(bytes.as_bytes());
        }
    }
}
