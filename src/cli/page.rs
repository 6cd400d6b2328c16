//! What is printed for a person: no line is wider than 80 columns, and a terminal obeys none of it, whoever wrote the words.
//!
//! Every command prints its reports, errors and warnings through this. JSON, which programs read, and the log don't pass here.

use std::io::{self, Write};

use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm, core::display_width};

use crate::log;

/// Columns of a line, on every terminal and in a pipe: what is piped is looked at later.
pub(super) const WIDTH: usize = 80;

/// How far what continues a line is indented beyond it.
const HANGING: usize = 2;

/// `text`, in which the lines that are too wide are broken between words, and a word that is wider than a line within.
pub(super) fn fit(text: &str) -> String {
    hanging(text, HANGING)
}

/// Like [`fit`], but what continues a line begins where that began.
pub(super) fn paragraph(text: &str) -> String {
    hanging(text, 0)
}

/// Like [`fit`], for a table of two columns, of which the second is `beyond` columns from the left.
pub(super) fn hanging(text: &str, beyond: usize) -> String {
    each_line(text, |line| fit_line(&log::spelled_out(line), beyond))
}

fn each_line(text: &str, change: impl Fn(&str) -> String) -> String {
    let changed = text.split_inclusive('\n').map(|line| match line.strip_suffix('\n') {
        Some(content) => change(content) + "\n",
        None => change(line),
    });
    changed.collect()
}

fn fit_line(content: &str, beyond: usize) -> String {
    if display_width(content) <= WIDTH {
        return content.to_owned();
    }
    let words = content.trim_start_matches(' ');
    // Deeply indented text would have no room left.
    let indent = (content.len() - words.len()).min(WIDTH / 2);
    let options = Options::new(WIDTH)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    let (first, others) = (" ".repeat(indent), " ".repeat(indent + beyond));
    textwrap::fill(words, options.initial_indent(&first).subsequent_indent(&others))
}

/// Prints to standard error. Whoever closed that does not want to know.
pub(super) fn complain(words: &str) {
    let _ = writeln!(io::stderr(), "{}", fit(words));
}

/// Prints what clap has to say: help that was asked for, or what is wrong with a command line.
pub(super) fn show_clap(said: &clap::Error) {
    let text = each_line(&said.render().ansi().to_string(), |line| fit_line(line, HANGING));
    // Colours are for terminals.
    let _ = if said.use_stderr() {
        anstream::stderr().write_all(text.as_bytes())
    } else {
        anstream::stdout().write_all(text.as_bytes())
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_left_as_it_is() {
        let line = format!("{}  {}", "a".repeat(40), "b".repeat(38));
        for text in ["", "\n", "a\n\n  b", &line, &format!("{line}\n  {}\n", "ö".repeat(78))] {
            assert_eq!(fit(text), text);
        }
    }

    #[test]
    fn what_is_too_wide_goes_on_below_and_loses_nothing() {
        let words = "word ".repeat(40);
        let text = format!("  first {words}\nsecond {}\nthird {words}\n", "字".repeat(100));
        for beyond in [0, HANGING, 33] {
            let fitted = hanging(&text, beyond);
            assert!(fitted.lines().all(|line| display_width(line) <= WIDTH), "{fitted}");
            let bare = |text: &str| text.split_whitespace().collect::<String>();
            assert_eq!(bare(&fitted), bare(&text));
            let second = fitted.lines().nth(1).expect("several lines");
            assert!(second.starts_with(&format!("{}word", " ".repeat(2 + beyond))), "{fitted}");
        }
    }

    #[test]
    fn nothing_that_a_server_says_is_obeyed_by_a_terminal() {
        let said = "found \x1b]0;owned\x07\x1b[2J\u{9b}1m\r\u{202e}it\nand a\ttab";
        let shown = "found \\u{1b}]0;owned\\u{7}\\u{1b}[2J\\u{9b}1m\\r\\u{202e}it\nand a\\ttab";
        assert_eq!(fit(said), shown);
    }

    #[test]
    fn a_line_of_spaces_or_deep_in_them_has_room() {
        for text in [" ".repeat(500), format!("{}end", " ".repeat(500))] {
            assert!(fit(&text).lines().all(|line| display_width(line) <= WIDTH), "{text:?}");
        }
    }
}
