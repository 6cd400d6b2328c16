use proptest::prelude::*;
use serde_json::value::RawValue;

use super::super::RawJson;
use super::*;

fn scan(text: &str) -> Result<Span, Fault> {
    let mut scanner = Scanner::new(text);
    let span = scanner.value()?;
    scanner.end()?;
    Ok(span)
}

#[test]
fn what_json_allows_passes_whole() {
    for text in [
        "null",
        "true",
        "false",
        "0",
        "-0",
        "-0.5e-7",
        "1e400",
        "1152921504606846976",
        "1E+2",
        r#""""#,
        "[]",
        "{}",
        "[[[]],{}]",
        r#"{"a":[1,{"b":null}],"a":2}"#,
        r#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00""#,
        "[ 1 ,\t2\r\n]",
        r#"{ "a" : 1 , "b" : [ ] }"#,
        "\"\u{7f}\u{80}\u{10ffff}\"",
    ] {
        let span = scan(text).unwrap_or_else(|fault| panic!("{text}: {fault}"));
        assert_eq!(span.of(text), text);
        let padded = format!(" \n{text}\t ");
        assert_eq!(scan(&padded).unwrap().of(&padded), text);
    }
}

#[test]
fn what_json_forbids_is_placed() {
    for (text, at) in [
        ("", 0),
        (" ", 1),
        ("nul", 0),
        ("truE", 0),
        ("+1", 0),
        ("-", 1),
        ("01", 1),
        ("1.", 2),
        (".5", 0),
        ("1e", 2),
        ("1e+", 3),
        ("0x10", 1),
        ("NaN", 0),
        ("[", 1),
        ("[1", 2),
        ("[1,]", 3),
        ("[1 2]", 3),
        ("[}", 1),
        ("]", 0),
        ("{", 1),
        ("{1:2}", 1),
        (r#"{"a"}"#, 4),
        (r#"{"a":}"#, 5),
        (r#"{"a":1,}"#, 7),
        (r#"{"a":1]"#, 6),
        ("{]", 1),
        ("[1]]", 3),
        ("1 2", 2),
        ("\u{feff}1", 0),
        ("'a'", 0),
        (r#""a"#, 2),
        ("\"a\nb\"", 2),
        ("\"\0\"", 1),
        (r#""\x""#, 2),
        (r#""\u12g4""#, 5),
        (r#""\ud800\u""#, 9),
        (r#""\ud800\x""#, 8),
        ("\"\\", 2),
        (r#""\u"#, 3),
        ("[1,,2]", 3),
        ("// no", 0),
    ] {
        let fault = scan(text).expect_err(text);
        assert_eq!(fault.0.at, at, "{text}: {fault}");
    }
}

#[test]
fn the_first_half_of_a_pair_that_is_alone_is_told() {
    for (text, at) in [
        (r#""\ud83d\ude00\uD834\udd1e""#, None),
        (r#""\ud800""#, Some(1)),
        (r#""a\ud800\n""#, Some(2)),
        (r#""\ud800\ud83d\ude00""#, Some(1)),
        (r#""\ud83d\ude00\ude00""#, Some(13)),
        (r#"[{"\udc00":"\ud800"}]"#, Some(3)),
        (r#""\ud7ff\ue000""#, None),
    ] {
        let mut scan = Scanner::new(text);
        scan.value().expect(text);
        scan.end().expect(text);
        assert_eq!(scan.take_half().map(|half| half.at), at, "{text}");
        let json = RawJson::parse(text);
        assert_eq!(json.map_err(|error| error.code()).err(), at.map(|_| Error::PARSE), "{text}");
    }
}

#[test]
fn a_fault_says_what_was_expected_and_found() {
    assert_eq!(scan("[1 2]").unwrap_err().to_string(), "byte 3: expected `,` or `]`, found `2`");
    assert_eq!(
        scan("[1").unwrap_err().to_string(),
        "byte 2: expected `,` or `]`, found the end of the message"
    );
}

#[test]
fn nesting_ends_at_its_limit_and_not_in_the_stack() {
    let depth = MAX_DEPTH as usize;
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(scan(&nested(depth)).is_ok());
    assert!(serde_json::from_str::<serde_json::Value>(&nested(depth)).is_ok());
    for text in [nested(depth + 1), nested(100_000), "[".repeat(100_000), r#"{"a":"#.repeat(100_000)] {
        let fault = scan(&text).unwrap_err();
        assert!(fault.to_string().contains("127 levels"), "{fault}");
    }
}

#[test]
fn a_text_is_borrowed_unless_it_has_escapes() {
    for (text, meant, borrowed) in [(r#""ping""#, "ping", true), (r#""p\u0069ng""#, "ping", false)] {
        let decoded = Scanner::new(text).text().unwrap().decoded(text);
        assert_eq!(decoded, meant);
        assert_eq!(matches!(decoded, Cow::Borrowed(_)), borrowed);
    }
}

#[test]
fn the_end_of_a_plain_run_is_found_at_every_place_in_a_word() {
    for special in ["\"", "\\", "\n", "\u{1f}", "\0"] {
        for before in 0..40 {
            let text =
                format!("{}{special}{special}rest that is long", "é!".repeat(20).split_at(before / 3 * 3).0);
            let expected = text.bytes().position(|byte| byte < 0x20 || byte == b'"' || byte == b'\\');
            assert_eq!(Some(runs::plain(text.as_bytes())), expected, "{text:?}");
        }
    }
}

proptest! {
    // Surrogates are the one difference: serde_json looks at them only when it decodes.
    #[test]
    fn the_verdict_on_nearly_json_is_serde_jsons(text in r#"([\[\]{},:"0-9eE.\\ nu+-]|"a"|null|true|1|\{"a":|\\u00e9){0,12}"#) {
        let ours = scan(&text).is_ok();
        prop_assert_eq!(ours, serde_json::from_str::<&RawValue>(text.trim()).is_ok(), "{}", text);
    }
}
