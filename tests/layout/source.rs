//! A Rust file as text and as code alone.
//!
//! The checks look for words; this keeps them from finding the words in comments and strings. It is no parser: it knows
//! where comments, strings and characters begin and end, which is all that takes.

use std::fs;
use std::path::Path;

pub(crate) struct Source {
    /// From the project's root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with a blank for everything in comments and strings, so that lines and columns stay.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: code_only(text) }
    }

    /// A finding in the line with this index.
    pub(crate) fn at(&self, index: usize, finding: &str) -> String {
        format!("{}:{}: {finding}", self.path, index + 1)
    }
}

/// Every Rust file under a directory of the project, in order of path.
pub(crate) fn rust_files(directory: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    let mut directories = vec![root.join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of the project") {
            let path = entry.expect("an entry of a directory").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).expect("a path in the project").to_string_lossy();
                files.push(Source::new(&name, &fs::read_to_string(&path).expect("a text")));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

pub(crate) fn has_word(code: &str, word: &str) -> bool {
    words(code).any(|(_, found)| found == word)
}

/// The identifiers and keywords, each with the byte where it begins.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    code.split_inclusive(|c: char| !is_word(c)).filter_map(move |piece| {
        let start = at;
        at += piece.len();
        let word = piece.trim_end_matches(|c: char| !is_word(c));
        (!word.is_empty()).then_some((start, word))
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn code_only(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let blank = blank_length(&chars, at);
        if blank == 0 {
            code.push(chars[at]);
            at += 1;
            continue;
        }
        let blanked = chars[at..chars.len().min(at + blank)].iter();
        code.extend(blanked.map(|&c| if c == '\n' { '\n' } else { ' ' }));
        at += blank;
    }
    code
}

/// How many characters from `at` on are a comment, a string or a character; 0 if code stands there.
fn blank_length(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let starts_word = at == 0 || !is_word(chars[at - 1]);
    match rest {
        ['/', '/', ..] => rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()),
        ['/', '*', ..] => block_comment(rest),
        ['"', ..] => quoted(rest, '"'),
        ['\'', '\\', ..] | ['\'', _, '\'', ..] => quoted(rest, '\''),
        ['r', '"' | '#', ..] if starts_word => raw_string(rest, 1),
        ['b' | 'c', 'r', '"' | '#', ..] if starts_word => raw_string(rest, 2),
        _ => 0,
    }
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted(rest: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// 0 if the `r` begins a raw identifier instead.
fn raw_string(rest: &[char], prefix: usize) -> usize {
    let hashes = rest[prefix..].iter().take_while(|&&c| c == '#').count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&'"') {
        return 0;
    }
    let closes = |at: usize| {
        rest[at] == '"' && rest[at + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
    };
    (open + 1..rest.len()).find(|&at| closes(at)).map_or(rest.len(), |at| at + 1 + hashes)
}

#[test]
fn comments_strings_and_characters_are_no_code() {
    for text in [
        "// x",
        "/// x \" x",
        "/* x /* x */ x */",
        r#""x \" x""#,
        r##"r#"x " x"#"##,
        "b\"x\"",
        "br\"x\\\"",
        "'x'",
        r"'\x41'",
        r"'\''; 'x'",
        "\"x\nx\"",
    ] {
        let code = code_only(text);
        assert!(!code.contains(['x', '"']), "{text}: {code}");
        assert_eq!(code.chars().count(), text.chars().count(), "{text}: {code}");
        assert_eq!(code.lines().count(), text.lines().count(), "{text}: {code}");
    }
}

#[test]
fn code_beside_them_stays() {
    for text in [
        "'a'; x",
        "\"a\" x",
        "/* a */ x",
        "// a\nx",
        r##"r#"a"# x"##,
        "fn f<'x>(a: &'x str, b: &'_ str)",
        "r#x",
        "for\"\" x",
        r"b'\\' x",
        "'\"' x '\"'",
    ] {
        assert!(code_only(text).contains('x'), "{text}: {}", code_only(text));
    }
}

#[test]
fn words_are_whole_and_know_their_place() {
    let found: Vec<(usize, &str)> = words("use crate::a_b; x1").collect();
    assert_eq!(found, [(0, "use"), (4, "crate"), (11, "a_b"), (16, "x1")]);
    assert!(!has_word("unsafely not_unsafe", "unsafe"));
}
