//! The TOML text as a tree that knows where everything stands, read section by section.
//!
//! This mirrors the file, not the config: `checked` asks a [`Section`] for each key it knows, with a
//! function from `values` that says what is allowed there. A key that nobody asked for is unknown, and
//! that is an error. No serde in between, because serde stops at the first mistake and forgets the
//! lines; this way one run finds them all.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Problems, bare, join};
use super::values::found;

/// The document, or `None` when it is no TOML; the parser's complaint is then among the problems.
pub(super) fn parse<'t>(text: &'t str, problems: &mut Problems) -> Option<DeTable<'t>> {
    match DeTable::parse(text) {
        Ok(document) => Some(document.into_inner()),
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            let at = span.start;
            let words = text.get(span).filter(|words| !words.trim().is_empty());
            let near = words.map(|words| format!(" at {}", super::error::quoted(words))).unwrap_or_default();
            problems.wrong(at, "", format!("this is not TOML: {}{near}", error.message()));
            None
        }
    }
}

/// Where the value stands that these names lead to, from table to table.
pub(super) fn place(document: &DeTable<'_>, path: &[String]) -> Option<usize> {
    let (last, tables) = path.split_last()?;
    let table =
        tables.iter().try_fold(document, |table, name| match table.get(name.as_str())?.get_ref() {
            DeValue::Table(inner) => Some(inner),
            _ => None,
        })?;
    table.get(last.as_str()).map(|value| value.span().start)
}

/// One table of the file, or the absence of one. Every key is asked for once; [`Section::finish`] then
/// reports the others.
pub(super) struct Section<'t, 'p> {
    path: String,
    at: usize,
    table: Option<&'t DeTable<'t>>,
    known: Vec<&'static str>,
    problems: &'p mut Problems,
}

impl<'t, 'p> Section<'t, 'p> {
    /// The top of the file.
    pub(super) fn root(table: &'t DeTable<'t>, problems: &'p mut Problems) -> Self {
        Self { path: String::new(), at: 0, table: Some(table), known: Vec::new(), problems }
    }

    /// What `read` makes of the key's value; `None` when the key is absent or `read` refused it.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&'t DeValue<'t>) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take(key)?;
        match read(value.get_ref()) {
            Ok(value) => Some(value),
            Err(text) => {
                self.problems.wrong(value.span().start, join(&self.path, key), text);
                None
            }
        }
    }

    /// The same with a default for both cases; a refused value is reported, so its default goes nowhere.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&'t DeValue<'t>) -> Result<T, String>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// Each element of an array with the function's complaint at the element's own line.
    pub(super) fn each<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        mut read: impl FnMut(&'t DeValue<'t>) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let elements = self.elements(key, expected)?;
        let mut values = Vec::new();
        for element in elements {
            match read(element.get_ref()) {
                Ok(value) => values.push(value),
                Err(text) => self.problems.wrong(element.span().start, join(&self.path, key), text),
            }
        }
        Some(values)
    }

    /// The section `[key]`, empty where the file has none.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'t, '_> {
        let path = join(&self.path, key);
        let value = self.take(key);
        let table = value.and_then(|value| self.expect_table(value, &path));
        let at = value.map_or(0, |value| value.span().start);
        Section { path, at, table, known: Vec::new(), problems: self.problems }
    }

    /// Each `[key.NAME]`, with its name.
    pub(super) fn each_named(&mut self, key: &'static str, mut read: impl FnMut(&'t str, Section<'t, '_>)) {
        let path = join(&self.path, key);
        let table = self.take(key).and_then(|value| self.expect_table(value, &path));
        for (name, value) in table.into_iter().flatten() {
            let path = join(&path, &bare(name.get_ref()));
            let Some(table) = self.expect_table(value, &path) else { continue };
            let at = value.span().start;
            let problems = &mut *self.problems;
            read(name.get_ref(), Section { path, at, table: Some(table), known: Vec::new(), problems });
        }
    }

    /// Each `[[key]]`.
    pub(super) fn each_table(&mut self, key: &'static str, mut read: impl FnMut(Section<'t, '_>)) {
        let path = join(&self.path, key);
        let expected = format!("tables, each under a line [[{path}]]");
        for element in self.elements(key, &expected).into_iter().flatten() {
            let path = path.clone();
            let Some(table) = self.expect_table(element, &path) else { continue };
            let at = element.span().start;
            let problems = &mut *self.problems;
            read(Section { path, at, table: Some(table), known: Vec::new(), problems });
        }
    }

    /// Reports something about this key's value, or about the section when the file does not have the key.
    pub(super) fn wrong(&mut self, key: &str, text: impl Into<String>) {
        let at = self.get(key).map_or(self.at, |value| value.span().start);
        self.problems.wrong(at, join(&self.path, key), text);
    }

    /// Reports something about the section itself.
    pub(super) fn wrong_itself(self, text: impl Into<String>) {
        self.problems.wrong(self.at, self.path, text);
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(super) fn is_empty_array(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.get_ref().as_array().is_some_and(|list| list.is_empty()))
    }

    /// Problems in the whole file so far, to learn whether a rule between keys still makes sense.
    pub(super) fn problem_count(&self) -> usize {
        self.problems.count()
    }

    /// Whatever stands here and was not asked for is a mistake.
    pub(super) fn finish(self) {
        for (key, _) in self.table.into_iter().flatten() {
            let name = key.get_ref().as_ref();
            if !self.known.contains(&name) {
                self.problems.unknown_key(key.span().start, &self.path, name);
            }
        }
    }

    fn get(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.and_then(|table| table.get(key))
    }

    fn take(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.problems.known_key(&self.path, key);
        self.get(key)
    }

    fn elements(&mut self, key: &'static str, expected: &str) -> Option<&'t [Spanned<DeValue<'t>>]> {
        let value = self.take(key)?;
        if let DeValue::Array(elements) = value.get_ref() {
            return Some(elements);
        }
        let text = format!("expected {expected}, found {}", found(value.get_ref()));
        self.problems.wrong(value.span().start, join(&self.path, key), text);
        None
    }

    fn expect_table(&mut self, value: &'t Spanned<DeValue<'t>>, path: &str) -> Option<&'t DeTable<'t>> {
        if let DeValue::Table(table) = value.get_ref() {
            return Some(table);
        }
        let text = format!("expected a table, found {}", found(value.get_ref()));
        self.problems.wrong(value.span().start, path, text);
        None
    }
}
