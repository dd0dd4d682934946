//! What is wrong with a file, and where: one [`Problem`] each, collected in a [`Report`].

use serde::Serialize;
use std::fmt;
use std::ops::Range;

/// Whether the file can be used all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is used; somebody should look.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Whether the file is refused.
    pub severity: Severity,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Path of the key, such as `peer[0].subnets`; empty for a syntax error.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Characters to underline, for people.
    #[serde(skip)]
    underline_len: usize,
}

/// Everything that is wrong with one file. Displays as a person wants to read it, with the lines in question.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file's name.
    pub file: String,
    /// In order of appearance once [`Report::sort`] ran.
    pub problems: Vec<Problem>,
    #[serde(skip)]
    text: String,
}

impl Report {
    /// An empty report about `text`, which stands in `file`.
    pub fn new(file: &str, text: &str) -> Report {
        Report { file: file.to_owned(), problems: Vec::new(), text: text.to_owned() }
    }

    /// Adds an error about the bytes `span` of the text.
    pub fn error(&mut self, span: Range<usize>, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Error, span, key, message.into(), hint.into());
    }

    /// Adds a warning about the bytes `span` of the text.
    pub fn warning(&mut self, span: Range<usize>, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.add(Severity::Warning, span, key, message.into(), hint.into());
    }

    /// Whether the file is refused.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// The text that the report is about.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line, from 1, on which the byte `offset` of the text stands.
    pub fn line_of(&self, offset: usize) -> usize {
        self.position(offset).0
    }

    /// Puts the problems in the order in which a reader of the file meets them.
    pub fn sort(&mut self) {
        self.problems.sort_by_key(|problem| (problem.line, problem.column, problem.severity));
    }

    fn add(&mut self, severity: Severity, span: Range<usize>, key: &str, message: String, hint: String) {
        let (line, column) = self.position(span.start);
        let marked = self.text.get(span).unwrap_or_default();
        let underline_len = marked.lines().next().unwrap_or_default().chars().count().max(1);
        let hint = (!hint.is_empty()).then_some(hint);
        self.problems.push(Problem { severity, line, column, key: key.to_owned(), message, hint, underline_len });
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &self.text[..offset];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            let Problem { line, column, key, message, .. } = problem;
            let severity = match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            write!(out, "{}:{line}:{column}: {severity}: ", self.file)?;
            if !key.is_empty() {
                write!(out, "{key}: ")?;
            }
            writeln!(out, "{message}")?;
            // A tab moves the text by an unknown width, so tabs are shown as one space above the underline.
            let source = self.text.lines().nth(line - 1).unwrap_or_default().replace('\t', " ");
            writeln!(out, "{line:5} | {source}")?;
            write!(out, "      | {:1$}{2}", "", column - 1, "^".repeat(problem.underline_len))?;
            if let Some(hint) = &problem.hint {
                write!(out, "\n      = hint: {hint}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_counts_characters_not_bytes() {
        let mut report = Report::new("t.toml", "a = 1\nü = \"ö\" x\n");
        let offset = report.text.find('x').unwrap();
        report.error(offset..offset + 1, "", "stray", "");
        assert_eq!((report.problems[0].line, report.problems[0].column), (2, 9));
    }

    #[test]
    fn an_offset_beyond_the_end_is_the_end() {
        let mut report = Report::new("t.toml", "a = 1\n");
        report.error(99..100, "", "unexpected end", "");
        assert_eq!((report.problems[0].line, report.problems[0].column), (2, 1));
        assert!(report.to_string().contains("t.toml:2:1: error: unexpected end"));
    }

    #[test]
    fn a_problem_shows_its_line_underlined_and_its_remedy() {
        let mut report = Report::new("t.toml", "name = 7\n");
        report.error(7..8, "name", "is a number; a string was expected", "write \"7\"");
        let expected = "t.toml:1:8: error: name: is a number; a string was expected\n    1 | name = 7\n      |        ^\n      = hint: write \"7\"";
        assert_eq!(report.to_string(), expected);
    }
}
