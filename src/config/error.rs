//! What is wrong with a config, in words for the person who wrote it.
//!
//! The other files of `config` gather every problem they find with the place where it stands; here the
//! places become line numbers and the problems sentences.

use std::fmt;

use super::Source;

/// Beyond these a person starts afresh anyway, and a hostile file should not cost a long answer.
const SHOWN: usize = 20;
/// Longest piece of the user's own text in a message, in characters.
const QUOTED: usize = 60;

/// What others have a key for, and who does it here: the section, the key, the advice.
const DONE_ELSEWHERE: [(&str, &str, &str); 2] = [
    (
        "log",
        "file",
        "the log goes to standard error; the service manager or a redirection writes it to a file",
    ),
    ("listener", "tls", "TLS ends at a proxy in front of this; connections here are plain"),
];

/// Why a config can't be used: one line for each problem, in the order of the file. Each names the file,
/// the line and the key, or the command line's flag, and says what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigError {
    lines: Vec<String>,
    more: usize,
}

impl ConfigError {
    /// An error about the file as a whole.
    pub(super) fn about_file(name: &str, text: &str) -> Self {
        Self { lines: vec![format!("{name}: {text}")], more: 0 }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))?;
        if self.more > 0 {
            write!(f, "\n… and {} more", self.more)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// All that was found wrong so far.
#[derive(Debug, Default)]
pub(super) struct Problems {
    found: Vec<Problem>,
    /// Full names of every key that somebody asked for: what a misspelt key may have meant.
    known: Vec<String>,
}

#[derive(Debug)]
struct Problem {
    /// Byte offset into the text; `None`: a flag of the command line.
    at: Option<usize>,
    /// "limits.queue", or "--threads"; empty where the text is no TOML.
    key: String,
    what: What,
}

#[derive(Debug)]
enum What {
    Wrong(String),
    UnknownKey { section: String, name: String },
}

impl Problems {
    pub(super) fn wrong(&mut self, at: usize, key: impl Into<String>, text: impl Into<String>) {
        self.found.push(Problem { at: Some(at), key: key.into(), what: What::Wrong(text.into()) });
    }

    pub(super) fn wrong_flag(&mut self, flag: &str, text: impl Into<String>) {
        self.found.push(Problem { at: None, key: flag.to_owned(), what: What::Wrong(text.into()) });
    }

    /// `section` is "" at the top of the file.
    pub(super) fn unknown_key(&mut self, at: usize, section: &str, name: &str) {
        let what = What::UnknownKey { section: section.to_owned(), name: name.to_owned() };
        self.found.push(Problem { at: Some(at), key: join(section, &bare(name)), what });
    }

    pub(super) fn known_key(&mut self, section: &str, name: &str) {
        self.known.push(join(section, name));
    }

    pub(super) fn count(&self) -> usize {
        self.found.len()
    }

    /// The same for what is no reason to refuse anything.
    pub(super) fn into_lines(self, source: &Source) -> Vec<String> {
        match self.into_result(source, ()) {
            Ok(()) => Vec::new(),
            Err(error) => error.lines,
        }
    }

    pub(super) fn into_result<T>(mut self, source: &Source, value: T) -> Result<T, ConfigError> {
        if self.found.is_empty() {
            return Ok(value);
        }
        self.known.sort();
        self.known.dedup();
        // Flags (None) first: they were typed last, by someone who still looks at them.
        self.found.sort_by_key(|problem| problem.at);
        let shown = self.found.iter().take(SHOWN);
        let lines = shown.map(|problem| self.line(problem, source)).collect();
        Err(ConfigError { lines, more: self.found.len().saturating_sub(SHOWN) })
    }

    fn line(&self, problem: &Problem, source: &Source) -> String {
        let text = match &problem.what {
            What::Wrong(text) => text.clone(),
            What::UnknownKey { section, name } => self.advise(section, name),
        };
        let Some(at) = problem.at else { return format!("{}: {text}", problem.key) };
        let place = format!("{}:{}", source.name, line_number(&source.text, at));
        if problem.key.is_empty() {
            format!("{place}: {text}")
        } else {
            format!("{place}: {}: {text}", problem.key)
        }
    }

    fn advise(&self, section: &str, name: &str) -> String {
        let elsewhere = DONE_ELSEWHERE.iter().find(|(whose, key, _)| (*whose, *key) == (section, name));
        if let Some((.., advice)) = elsewhere {
            return format!("unknown key; {advice}");
        }
        let here: Vec<&str> = self.known.iter().filter_map(|key| name_in(section, key)).collect();
        let allowed = (name.chars().count() / 3).max(1);
        let near = here.iter().map(|key| (distance(name, key, allowed), *key));
        let nearest = near.filter(|(steps, _)| *steps <= allowed).min();
        let elsewhere = || self.known.iter().find(|key| key.rsplit('.').next() == Some(name));
        if let Some((_, key)) = nearest {
            format!("unknown key; did you mean `{key}`?")
        } else if let Some(key) = elsewhere() {
            format!("unknown key; did you mean `{key}`?")
        } else {
            format!("unknown key; the keys here are {}", here.join(", "))
        }
    }
}

/// "limits.queue" of "limits" and "queue".
pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// A key as TOML writes it: quoted when it is more than letters, digits, `_` and `-`.
pub(super) fn bare(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if plain && !name.is_empty() && name.len() <= QUOTED { name.to_owned() } else { quoted(name) }
}

/// The user's own text in a message: in quotes, without control characters, cut when it is long.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((cut, _)) => format!("{:?}…", text.get(..cut).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// `key` without its section, when it is a key of exactly that section.
fn name_in<'k>(section: &str, key: &'k str) -> Option<&'k str> {
    let name = if section.is_empty() { key } else { key.strip_prefix(section)?.strip_prefix('.')? };
    (!name.contains('.')).then_some(name)
}

fn line_number(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or(text.as_bytes());
    1 + before.split(|&byte| byte == b'\n').count().saturating_sub(1)
}

/// Letters to insert, remove, replace or swap with their neighbour until `a` is `b`; anything above
/// `limit` when it is more than that. Bytes stand for letters: known keys are ASCII.
fn distance(a: &str, b: &str, limit: usize) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > limit {
        return limit + 1;
    }
    // Three rows of the usual table: the row before the last is what a swap looks back to.
    let mut two_up: Vec<usize> = Vec::new();
    let mut up: Vec<usize> = (0..=b.len()).collect();
    for (row, &x) in a.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, &y) in b.iter().enumerate() {
            let mut steps =
                (up[column] + usize::from(x != y)).min(up[column + 1] + 1).min(current[column] + 1);
            if row > 0 && column > 0 && x == b[column - 1] && a[row - 1] == y {
                steps = steps.min(two_up[column - 1] + 1);
            }
            current.push(steps);
        }
        two_up = std::mem::replace(&mut up, current);
    }
    up[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_slips() {
        let table = [
            ("queue", "queue", 0),
            ("quue", "queue", 1),
            ("qeuue", "queue", 1),
            ("cue", "queue", 3),
            ("", "abc", 3),
        ];
        for (a, b, steps) in table {
            assert_eq!(distance(a, b, 9), steps, "{a} {b}");
            assert_eq!(distance(b, a, 9), steps, "{b} {a}");
        }
        assert_eq!(distance("a", "abcdef", 2), 3);
    }

    #[test]
    fn lines_are_counted_from_one_and_never_beyond_the_text() {
        assert_eq!(line_number("", 0), 1);
        assert_eq!(line_number("a\nb\n", 2), 2);
        assert_eq!(line_number("a\nb\n", 4), 3);
        assert_eq!(line_number("a\nb\n", 99), 3);
    }

    // Only the keys there are were listed.
    #[test]
    fn a_key_for_what_is_done_elsewhere_says_where() {
        let mut problems = Problems::default();
        for key in ["slow", "format"] {
            problems.known_key("log", key);
        }
        for (section, key, says) in [
            (
                "log",
                "file",
                "unknown key; the log goes to standard error; the service manager or a redirection",
            ),
            ("listener", "tls", "unknown key; TLS ends at a proxy in front"),
            ("log", "tls", "unknown key; the keys here are "),
        ] {
            let advice = problems.advise(section, key);
            assert!(advice.starts_with(says), "{section}.{key}: {advice}");
        }
    }

    #[test]
    fn a_file_full_of_mistakes_is_answered_in_bounded_space() {
        let mut problems = Problems::default();
        for at in 0..1000 {
            problems.unknown_key(at, "", &"x".repeat(1000));
        }
        let source = Source { name: "f".to_owned(), text: String::new() };
        let text = problems.into_result(&source, ()).expect_err("1000 problems").to_string();
        assert!(text.ends_with("\n… and 980 more"), "{text}");
        assert!(text.len() < 10_000);
    }

    #[test]
    fn long_and_unprintable_text_is_quoted_safely() {
        assert_eq!(quoted("a\u{1b}[31m\n"), "\"a\\u{1b}[31m\\n\"");
        assert_eq!(quoted(&"é".repeat(61)), format!("\"{}\"…", "é".repeat(60)));
        assert_eq!(bare("a-b_c"), "a-b_c");
        assert_eq!(bare("a.b"), "\"a.b\"");
    }
}
