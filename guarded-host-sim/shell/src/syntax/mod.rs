//! Reads PowerShell: the grammar of the language specification 3.0 with its two ways of reading,
//! expressions and command arguments. What the shell does not carry out is read all the same, so that
//! it can be named and shown; what no PowerShell reads is an error with its place.

pub mod ast;
mod command;
mod expression;
mod parser;
mod statement;
mod text;

use std::fmt;

pub use parser::parse;

/// A stretch of the source: offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// Of the first byte.
    pub start: usize,
    /// Behind the last one.
    pub end: usize,
}

impl Span {
    /// From the beginning of one to the end of another.
    pub fn to(self, other: Span) -> Span {
        Span {
            start: self.start,
            end: other.end,
        }
    }

    /// The text that stands there.
    pub fn text(self, source: &str) -> &str {
        source.get(self.start..self.end).unwrap_or_default()
    }

    /// Line and character of its beginning.
    pub fn position(self, source: &str) -> Position {
        let before = source.get(..self.start).unwrap_or(source);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Position {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
        }
    }
}

/// A place as editors count: both numbers begin at one, columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Character in the line.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, character {}", self.line, self.column)
    }
}

/// A whole number as the language writes it: `81`, `0x1F`, `5GB`.
pub fn number(text: &str) -> Option<i64> {
    match expression::number(text)? {
        ast::ExprKind::Integer(value, _) => Some(value),
        _ => None,
    }
}

/// Why a script cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// What is wrong.
    pub message: String,
    /// Where.
    pub span: Span,
    /// Whether more text could mend it: somebody who types is asked for the next line.
    pub incomplete: bool,
}

#[cfg(test)]
mod tests;
