//! What a user gets: the table, the recommendation with its reason, the lines to paste, and the files of `--out`.
//!
//! `mod` hands over what was measured. Nothing is measured or decided here.

use std::fs;
use std::io;
use std::path::Path;

use textwrap::Options;

use super::cells::Cells;
use super::csv::csv;
use super::grid::{Grid, Setting};
use super::judge::Verdict;
use super::plot::{Figure, heat_map};
use super::reason::{Alone, reason};
use super::table::{self, table};
use crate::cli::{page, units};

/// Everything there is to say.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    /// The method, its params and the load.
    pub(super) title: &'a str,
    pub(super) grid: Grid,
    pub(super) alone: Alone,
    pub(super) cells: &'a Cells,
    pub(super) verdict: Option<&'a Verdict>,
    /// The plan was not carried out to its end.
    pub(super) is_cut_short: bool,
}

impl Findings<'_> {
    /// For the terminal; ends with a line break.
    pub(super) fn text(&self) -> String {
        let mut text = table(self.cells, self.recommended());
        if let Some(verdict) = self.verdict
            && let Some(cell) = self.cells.get(verdict.recommended)
        {
            // What can't be told from something smaller is not called recommended.
            let words = match verdict.doubt {
                _ if self.is_cut_short => "best guess so far",
                Some(_) => "best guess",
                None => "recommended",
            };
            let (rate, p99) = (table::rate(cell.rate()), units::duration(cell.p99()));
            text.push_str(&format!(
                "\n{words}: {} (processes × threads), {rate} calls/s, p99 {p99}\n{}\n\n{}",
                cell.setting,
                page::paragraph(&self.reason(verdict)),
                lines_to_paste(cell.setting)
            ));
        }
        text
    }

    /// Writes the files into `folder`, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// A sentence about the file that can't be written.
    pub(super) fn write_to(&self, folder: &Path) -> Result<(), String> {
        let recommended = self.recommended();
        let mut files = vec![("tune.csv", csv(self.cells))];
        for (name, figure) in [("throughput.svg", Figure::Throughput), ("p99.svg", Figure::P99)] {
            files.push((name, heat_map(figure, self.title, self.cells, recommended)?));
        }
        if let Some(verdict) = self.verdict {
            files.push(("tune.toml", self.commented_lines(verdict)));
        }
        for (name, text) in files {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|error| unwritable(&path, &error))?;
        }
        Ok(())
    }

    fn recommended(&self) -> Option<Setting> {
        self.verdict.map(|verdict| verdict.recommended)
    }

    fn reason(&self, verdict: &Verdict) -> String {
        reason(self.alone, verdict, self.cells, self.grid)
    }

    fn commented_lines(&self, verdict: &Verdict) -> String {
        let cut_short = if self.is_cut_short { " (cut short)" } else { "" };
        let words = format!("Measured{cut_short} with {}: {}", self.title, self.reason(verdict));
        format!("{}{}", comment(&words), lines_to_paste(verdict.recommended))
    }
}

/// Makes the folder for the files, before anything is measured for it.
///
/// # Errors
///
/// A sentence about why it can't be made.
pub(super) fn prepare(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> String {
    format!("--out: expected that {} can be written, found: {error}", path.display())
}

fn lines_to_paste(setting: Setting) -> String {
    format!("processes = {}\nthreads = {}\n", setting.processes, setting.threads)
}

/// As lines of a TOML comment, of which none is too long to read.
fn comment(words: &str) -> String {
    textwrap::fill(words, Options::new(page::WIDTH).initial_indent("# ").subsequent_indent("# ")) + "\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::cells::samples::cells;
    use super::super::judge::judge;
    use super::*;

    fn told(is_cut_short: bool, say: impl Fn(&Findings<'_>) -> String) -> String {
        let cells = cells(&[((1, 1), &[100; 5]), ((1, 2), &[190; 5])]);
        let verdict = judge(&cells);
        say(&Findings {
            title: "spin, 64 connections",
            grid: Grid { cpus: 2, connections: 64 },
            alone: Alone { time: Duration::from_millis(10), cpu: Duration::from_micros(9800) },
            cells: &cells,
            verdict: verdict.as_ref(),
            is_cut_short,
        })
    }

    fn as_text(findings: &Findings<'_>) -> String {
        findings.text()
    }

    #[test]
    fn the_recommendation_has_figures_a_reason_and_lines_to_paste() {
        let text = told(false, as_text);
        let expected = "
recommended: 1 × 2 (processes × threads), 190 calls/s, p99 20.0ms
handlers burn CPU 98 % of their time: more threads help up to 2, one for each
CPU, more processes don't.

processes = 1
threads = 2
";
        assert!(text.ends_with(expected), "{text}");
        assert!(told(true, as_text).contains("best guess so far: 1 × 2"));
    }

    #[test]
    fn what_is_in_doubt_is_a_guess() {
        let cells = cells(&[((1, 1), &[70, 80, 110]), ((1, 2), &[99, 100, 101])]);
        let verdict = judge(&cells);
        let text = Findings {
            title: "spin",
            grid: Grid { cpus: 2, connections: 64 },
            alone: Alone { time: Duration::from_millis(10), cpu: Duration::ZERO },
            cells: &cells,
            verdict: verdict.as_ref(),
            is_cut_short: false,
        }
        .text();
        assert!(text.contains("\nbest guess: 1 × 2 ") && text.contains("tell it from 1 × 1"), "{text}");
    }

    #[test]
    fn the_lines_in_the_file_are_a_config() {
        let lines = told(false, |findings| findings.commented_lines(findings.verdict.expect("a verdict")));
        assert!(lines.starts_with("# Measured with spin, 64 connections: handlers burn CPU"), "{lines}");
        assert!(lines.lines().all(|line| line.chars().count() <= page::WIDTH), "{lines}");
        let config: toml::Table = lines.parse().expect("TOML");
        assert_eq!(config["threads"].as_integer(), Some(2));
        assert_eq!(config["processes"].as_integer(), Some(1));
    }

    #[test]
    fn without_a_verdict_the_table_is_there() {
        let cells = cells(&[((1, 1), &[0])]);
        let findings = Findings {
            title: "spin",
            grid: Grid { cpus: 2, connections: 64 },
            alone: Alone { time: Duration::ZERO, cpu: Duration::ZERO },
            cells: &cells,
            verdict: None,
            is_cut_short: false,
        };
        assert!(findings.text().contains("no answers") && !findings.text().contains("recommended"));
    }
}
