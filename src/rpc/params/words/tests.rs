use std::collections::{BTreeMap, HashMap};
use std::num::{NonZeroI8, NonZeroU32};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::rpc::json::RawJson;
use crate::rpc::params::decode_optional;

fn told<P: DeserializeOwned>(params: &str) -> String {
    let params = RawJson::parse(params).expect("JSON");
    let Err(error) = decode_optional::<P>(Some(params)) else { panic!("{params} was taken") };
    error.message().strip_prefix("invalid params: ").expect("what is wrong").to_owned()
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only what does not fit is looked at")]
enum Shape {
    Point,
    Circle(f64),
    Line(u8, u8),
    Box { width: u16 },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind")]
#[expect(dead_code, reason = "only what does not fit is looked at")]
enum Inside {
    A { n: i8 },
    B,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", content = "of")]
#[expect(dead_code, reason = "only what does not fit is looked at")]
enum Beside {
    A(i16),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only what does not fit is looked at")]
enum Either {
    Number(u8),
    Text(String),
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only what does not fit is looked at")]
struct Flat {
    a: bool,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only what does not fit is looked at")]
struct Rest {
    n: i32,
    more: Option<HashMap<String, u8>>,
    nothing: Option<()>,
}

#[derive(Debug, Deserialize)]
struct Nothing;

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only what does not fit is looked at")]
struct Metres(u32);

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only what does not fit is looked at")]
struct Pair(u32, i64);

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only what does not fit is looked at")]
struct Three {
    a: u8,
    b: u8,
    #[serde(default)]
    c: u8,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only what does not fit is looked at")]
struct Deep {
    big: i128,
    huge: Option<u128>,
    list: Option<Vec<Shape>>,
}

#[test]
fn whole_numbers_are_told_by_their_range() {
    for (told, least, most) in [
        (told::<u8>("256"), "0", "255"),
        (told::<u8>("-1"), "0", "255"),
        (told::<u16>("65536"), "0", "65535"),
        (told::<u32>("4294967296"), "0", "4294967295"),
        (told::<u64>("-1"), "0", "18446744073709551615"),
        (told::<usize>("-1"), "0", "18446744073709551615"),
        (told::<i8>("128"), "-128", "127"),
        (told::<i16>("-32769"), "-32768", "32767"),
        (told::<i32>("2147483648"), "-2147483648", "2147483647"),
        (told::<i64>("9223372036854775808"), "-9223372036854775808", "9223372036854775807"),
        (told::<isize>("9223372036854775808"), "-9223372036854775808", "9223372036854775807"),
        (told::<NonZeroU32>("0"), "1", "4294967295"),
        (told::<Metres>("-1"), "0", "4294967295"),
    ] {
        let expected = format!(", expected a whole number from {least} to {most}");
        assert!(told.starts_with("invalid value: integer `") && told.ends_with(&expected), "{told}");
    }
    for (told, expected) in [
        (
            told::<NonZeroI8>("0"),
            "invalid value: integer `0`, expected a whole number from -128 to 127 other than 0",
        ),
        (told::<u32>("1.5"), "invalid type: number `1.5`, expected a whole number from 0 to 4294967295"),
        (told::<u32>("\"1\""), "invalid type: string \"1\", expected a whole number from 0 to 4294967295"),
        (
            told::<u64>("18446744073709551616"),
            "invalid type: number `1.8446744073709552e+19`, expected a whole number from 0 to 18446744073709551615",
        ),
        (told::<u128>("-1"), "number out of range"),
        (told::<i128>("1.5"), "expected a whole number"),
        (told::<i128>("1e2"), "expected a whole number"),
        (told::<i128>("[1.5]"), "expected a whole number"),
        (told::<Deep>(r#"{"big":1.5}"#), "expected a whole number"),
        (told::<Deep>(r#"{"big":1,"huge":1e1,"list":[]}"#), "expected a whole number"),
    ] {
        assert!(told.ends_with(expected), "{told}");
    }
}

#[test]
fn every_kind_of_value_is_told_in_words_of_json() {
    for (told, expected) in [
        (told::<bool>("1"), "invalid type: integer `1`, expected a boolean"),
        (told::<f32>("\"1\""), "invalid type: string \"1\", expected a number"),
        (told::<char>("\"ab\""), "invalid value: string \"ab\", expected a string of one character"),
        (told::<char>("7"), "invalid type: integer `7`, expected a string of one character"),
        (told::<String>("null"), "invalid type: null, expected a string"),
        (told::<String>("{\"a\":1}"), "invalid type: object, expected a string"),
        (told::<String>("[1, 2]"), "invalid type: array, expected a string"),
        (told::<std::path::PathBuf>("1"), "invalid type: integer `1`, expected a string"),
        (told::<()>("{\"a\":1}"), "invalid type: object, expected null"),
        (told::<Nothing>("7"), "invalid type: integer `7`, expected null"),
        (told::<Option<bool>>("1.0"), "invalid type: number `1.0`, expected a boolean"),
        (told::<Vec<u8>>("7"), "invalid type: integer `7`, expected an array"),
        (told::<HashMap<String, u8>>("7"), "invalid type: integer `7`, expected an object"),
        (
            told::<HashMap<String, u8>>("{\"a\":-1}"),
            "`a`: invalid value: integer `-1`, expected a whole number from 0 to 255",
        ),
        (told::<BTreeMap<u8, u8>>("{\"a\":1}"), "expected a member's name that is a whole number"),
        (told::<BTreeMap<u8, u8>>("{\"1a\":1}"), "expected a member's name that is a whole number"),
        (
            told::<BTreeMap<u8, u8>>("{\"300\":1}"),
            "invalid value: integer `300`, expected a whole number from 0 to 255",
        ),
        (told::<BTreeMap<bool, u8>>("{\"a\":1}"), "expected a boolean"),
        (told::<(u8, u8)>("7"), "invalid type: integer `7`, expected an array of 2 elements"),
        (told::<(u8, u8)>("[1]"), "invalid length 1, expected an array of 2 elements"),
        (told::<[u8; 3]>("[1, 2]"), "invalid length 2, expected an array of 3 elements"),
        (told::<(u8, u8)>("[1, 2, 3]"), "the array has more elements than are expected"),
        (told::<Pair>("[1]"), "invalid length 1, expected an array of 2 elements"),
        (told::<Pair>("7"), "invalid type: integer `7`, expected an array"),
        (told::<Flat>("7"), "invalid type: integer `7`, expected an object"),
        (told::<Flat>("{\"a\":true}"), "missing field `n`"),
        (
            told::<Flat>("{\"a\":true,\"n\":2147483648}"),
            "invalid value: integer `2147483648`, expected a whole number from -2147483648 to 2147483647",
        ),
        (told::<Flat>("{\"a\":true,\"n\":1,\"more\":[]}"), "invalid type: array, expected an object"),
        (told::<Flat>("{\"a\":true,\"n\":1,\"nothing\":7}"), "invalid type: integer `7`, expected null"),
    ] {
        assert!(told.ends_with(expected), "{told}");
    }
}

#[test]
fn enums_are_told_by_what_they_are_in_json() {
    let named = "expected a string, or an object with one member";
    for (told, expected) in [
        (told::<Shape>("7"), named),
        (told::<Shape>("[7, 8]"), named),
        (
            told::<Shape>("\"Cube\""),
            "unknown variant `Cube`, expected one of `Point`, `Circle`, `Line`, `Box`",
        ),
        (
            told::<Shape>("{\"Cube\":1}"),
            "unknown variant `Cube`, expected one of `Point`, `Circle`, `Line`, `Box`",
        ),
        (told::<Shape>("{\"Circle\":1,\"Line\":2}"), named),
        (told::<Shape>("{\"Point\":1}"), "invalid type: integer `1`, expected null"),
        (told::<Shape>("\"Circle\""), "invalid type: a name alone, expected an object with one member"),
        (told::<Shape>("\"Line\""), "invalid type: a name alone, expected an object with one member"),
        (told::<Shape>("\"Box\""), "invalid type: a name alone, expected an object with one member"),
        (told::<Shape>("{\"Circle\":\"x\"}"), "invalid type: string \"x\", expected a number"),
        (told::<Shape>("{\"Line\":[1]}"), "invalid length 1, expected an array of 2 elements"),
        (told::<Shape>("{\"Line\":7}"), "invalid type: integer `7`, expected an array"),
        (told::<Shape>("{\"Box\":7}"), "invalid type: integer `7`, expected an object"),
        (told::<Shape>("{\"Box\":{\"width\":65536}}"), "expected a whole number from 0 to 65535"),
        (told::<Deep>("{\"big\":1,\"list\":[7]}"), named),
        (told::<Inside>("7"), "invalid type: integer `7`, expected an object"),
        (told::<Inside>("{\"n\":1}"), "missing field `kind`"),
        (told::<Inside>("{\"kind\":\"C\"}"), "unknown variant `C`, expected `A` or `B`"),
        (
            told::<Inside>("{\"kind\":\"A\",\"n\":200}"),
            "invalid value: integer `200`, expected a whole number from -128 to 127",
        ),
        (told::<Beside>("7"), "invalid type: integer `7`, expected an object"),
        (told::<Beside>("{\"kind\":\"A\",\"of\":\"x\"}"), "expected a whole number from -32768 to 32767"),
        (told::<Either>("-1"), "the value has none of the forms that are taken here"),
    ] {
        assert!(told.ends_with(expected), "{told}");
    }
}

// It said that three elements were expected, and two would have done.
#[test]
fn a_short_array_is_told_how_many_elements_it_needs() {
    assert_eq!(
        told::<Three>("[1]"),
        "invalid length 1, expected an array of at least 2 and at most 3 elements"
    );
    assert_eq!(
        told::<Vec<Three>>("[[], []]"),
        "`[0]`: invalid length 0, expected an array of at least 1 and at most 3 elements"
    );
}

#[test]
fn no_name_of_a_type_is_told_and_no_text_of_the_callers_is_changed() {
    for (told, expected) in [
        (
            told::<u8>("\"map, expected u32\""),
            "invalid type: string \"map, expected u32\", expected a whole number from 0 to 255",
        ),
        (
            told::<Vec<u8>>("\"floating point `1`\""),
            "invalid type: string \"floating point `1`\", expected an array",
        ),
    ] {
        assert!(told.ends_with(expected), "{told}");
    }
    for text in
        ["a colour has three numbers", "expected u32", "invalid colour: x, expected y", "invalid type: x", ""]
    {
        assert_eq!(super::in_words(text), text);
    }
}
