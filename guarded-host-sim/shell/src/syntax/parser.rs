//! The reader's place in the text, and what it skips: blanks, comments, ends of lines.

use super::{Span, SyntaxError, ast::Script};

/// Reads a whole script.
///
/// # Errors
/// The first place that is no PowerShell, or at which the text ends too soon.
pub fn parse(source: &str) -> Result<Script, SyntaxError> {
    let mut parser = Parser::new(source);
    let script = parser.script(None)?;
    match parser.peek() {
        None => Ok(script),
        Some(c) => Err(parser.wrong_here(format!("Unexpected token '{c}' in expression or statement."))),
    }
}

pub(super) type Read<T> = Result<T, SyntaxError>;

/// Reads forward through `source`.
pub(super) struct Parser<'s> {
    pub(super) source: &'s str,
    pub(super) at: usize,
    depth: usize,
}

impl<'s> Parser<'s> {
    pub(super) fn new(source: &'s str) -> Parser<'s> {
        Parser {
            source,
            at: 0,
            depth: 0,
        }
    }

    pub(super) fn rest(&self) -> &'s str {
        self.source.get(self.at..).unwrap_or_default()
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn peek_second(&self) -> Option<char> {
        self.rest().chars().nth(1)
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    /// Takes `text`, if it stands here.
    pub(super) fn take(&mut self, text: &str) -> bool {
        let here = self.rest().starts_with(text);
        if here {
            self.at += text.len();
        }
        here
    }

    /// Takes characters as long as they are wanted.
    pub(super) fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'s str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    pub(super) fn span_from(&self, start: usize) -> Span {
        Span { start, end: self.at }
    }

    /// An error at the next character.
    pub(super) fn wrong_here(&self, message: impl Into<String>) -> SyntaxError {
        let width = self.peek().map_or(0, char::len_utf8);
        SyntaxError {
            message: message.into(),
            span: Span {
                start: self.at,
                end: self.at + width,
            },
            incomplete: self.at >= self.source.len(),
        }
    }

    /// An error about what stands from `start` to here.
    pub(super) fn wrong_from(&self, start: usize, message: impl Into<String>) -> SyntaxError {
        SyntaxError {
            message: message.into(),
            span: self.span_from(start),
            incomplete: false,
        }
    }

    /// Takes `closing`, which must be next after blanks and ends of lines.
    pub(super) fn close(&mut self, closing: &str, opened: usize) -> Read<()> {
        self.skip_lines();
        if self.take(closing) {
            return Ok(());
        }
        let mut error = self.wrong_here(format!("Missing closing '{closing}'."));
        if error.incomplete {
            error.span = Span {
                start: opened,
                end: opened + 1,
            };
        }
        Err(error)
    }

    /// Guards against text that nests without end.
    pub(super) fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        if self.depth >= DEEPEST {
            return Err(self.wrong_from(self.at, format!("Nested more than {DEEPEST} levels deep.")));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Skips blanks, comments and lines continued by a backtick, within one line.
    pub(super) fn skip_blanks(&mut self) {
        loop {
            match self.peek() {
                Some(c) if is_blank(c) => {
                    self.next();
                }
                Some('`') if self.rest().starts_with("`\n") || self.rest().starts_with("`\r\n") => {
                    self.next();
                    self.take("\r");
                    self.next();
                }
                Some('<') if self.rest().starts_with("<#") => {
                    let end = self.rest().find("#>").map_or(self.rest().len(), |at| at + 2);
                    self.at += end;
                }
                Some('#') => {
                    self.take_while(|c| c != '\n' && c != '\r');
                }
                _ => return,
            }
        }
    }

    /// Skips blanks, comments and ends of lines.
    pub(super) fn skip_lines(&mut self) {
        self.skip_blanks();
        while matches!(self.peek(), Some('\n' | '\r')) {
            self.next();
            self.skip_blanks();
        }
    }

    /// Skips what may stand between statements.
    pub(super) fn skip_separators(&mut self) {
        self.skip_lines();
        while self.take(";") {
            self.skip_lines();
        }
    }

    /// Whether a dash is next: the plain one, or one that a word processor made of it.
    pub(super) fn at_dash(&self) -> bool {
        self.peek().is_some_and(is_dash)
    }
}

pub(super) fn is_blank(c: char) -> bool {
    c != '\n' && c != '\r' && c.is_whitespace() || c == '\u{feff}'
}

pub(super) fn is_dash(c: char) -> bool {
    matches!(c, '-' | '\u{2013}' | '\u{2014}' | '\u{2015}')
}

pub(super) fn is_single_quote(c: char) -> bool {
    matches!(c, '\'' | '\u{2018}'..='\u{201b}')
}

pub(super) fn is_double_quote(c: char) -> bool {
    matches!(c, '"' | '\u{201c}'..='\u{201e}')
}

/// What may stand in a plain name.
pub(super) fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// A script of a person does not come near; the reader calls itself once for each level.
const DEEPEST: usize = 64;
