//! Strings: verbatim, expandable, and over several lines.

use super::{
    ast::{Expr, ExprKind, Part},
    expression::from_parts,
    parser::{Parser, Read, is_double_quote, is_name, is_single_quote},
};

impl Parser<'_> {
    /// A string in quotes of either kind.
    pub(super) fn string(&mut self) -> Read<Expr> {
        let start = self.at;
        let kind = match self.peek() {
            Some(c) if is_single_quote(c) => ExprKind::Text(self.verbatim()?),
            _ => from_parts(self.expandable()?),
        };
        Ok(Expr {
            kind,
            span: self.span_from(start),
        })
    }

    /// `'…'`: a doubled quote stands for one.
    pub(super) fn verbatim(&mut self) -> Read<String> {
        let start = self.at;
        self.next();
        let mut text = String::new();
        while let Some(c) = self.next() {
            if !is_single_quote(c) {
                text.push(c);
                continue;
            }
            if !self.peek().is_some_and(is_single_quote) {
                return Ok(text);
            }
            self.next();
            text.push('\'');
        }
        Err(self.unended(start))
    }

    /// `"…"`.
    pub(super) fn expandable(&mut self) -> Read<Vec<Part>> {
        let start = self.at;
        self.next();
        let mut parts = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.unended(start)),
                Some(c) if is_double_quote(c) => {
                    self.next();
                    if !self.peek().is_some_and(is_double_quote) {
                        return Ok(parts);
                    }
                    self.next();
                    parts.push(Part::Text("\"".to_owned()));
                }
                Some(_) => parts.push(self.piece()?),
            }
        }
    }

    /// One piece of expandable text: an escape, a variable, `$(…)`, or a character.
    pub(super) fn piece(&mut self) -> Read<Part> {
        let start = self.at;
        let text = match self.next() {
            Some('`') => self.escaped(),
            Some('$') => match self.peek() {
                Some('(') => return Ok(Part::Sub(self.inside_parentheses()?)),
                Some(c) if is_name(c) || matches!(c, '{' | '$' | '?' | '^') => {
                    self.at = start;
                    let variable = self.variable()?;
                    if self.rest().starts_with(':')
                        && !self.rest().starts_with("::")
                        && !self.source[start..].starts_with("${")
                    {
                        return Err(self.wrong_from(
                            start,
                            "Variable reference is not valid. ':' was not followed by a valid variable name character. \
                             Consider using ${} to delimit the name.",
                        ));
                    }
                    return Ok(Part::Variable(variable));
                }
                _ => "$".to_owned(),
            },
            Some(c) => c.to_string(),
            None => String::new(),
        };
        Ok(Part::Text(text))
    }

    /// What the character after a backtick stands for.
    fn escaped(&mut self) -> String {
        let text = match self.next() {
            Some('n') => "\n",
            Some('r') => "\r",
            Some('t') => "\t",
            Some('0') => "\0",
            Some('a') => "\u{7}",
            Some('b') => "\u{8}",
            Some('f') => "\u{c}",
            Some('v') => "\u{b}",
            // The end of a line: text goes on in the next one.
            Some('\r') if self.take("\n") => "",
            Some('\n') | None => "",
            Some(c) => return c.to_string(),
        };
        text.to_owned()
    }

    /// `@'…'@` and `@"…"@`, whose quotes stand at the end and the beginning of lines.
    pub(super) fn here_string(&mut self) -> Read<Expr> {
        let start = self.at;
        self.next();
        let expandable = self.next().is_some_and(is_double_quote);
        self.take_while(|c| c == ' ' || c == '\t');
        if !(self.take("\r\n") || self.take("\n")) {
            let mut error =
                self.wrong_here("No characters are allowed after a here-string header but before the end of the line.");
            error.incomplete = self.rest().is_empty();
            return Err(error);
        }
        let mut parts = Vec::new();
        let mut line_begins = true;
        loop {
            let footer = self.peek().is_some_and(match expandable {
                true => is_double_quote as fn(char) -> bool,
                false => is_single_quote,
            }) && self.peek_second() == Some('@');
            if line_begins && footer {
                self.next();
                self.next();
                break;
            }
            match self.peek() {
                None => return Err(self.unended(start)),
                Some('\n') => {
                    self.next();
                    parts.push(Part::Text("\n".to_owned()));
                    line_begins = true;
                    continue;
                }
                Some(c) if !expandable => {
                    self.next();
                    parts.push(Part::Text(c.to_string()));
                }
                Some(_) => parts.push(self.piece()?),
            }
            line_begins = false;
        }
        // The end of the last line belongs to the footer.
        let mut kind = from_parts(parts);
        let last = match &mut kind {
            ExprKind::Text(text) => Some(text),
            ExprKind::Expandable(parts) => match parts.last_mut() {
                Some(Part::Text(text)) => Some(text),
                _ => None,
            },
            _ => None,
        };
        if let Some(text) = last {
            let shorter = text.strip_suffix('\n').unwrap_or(text);
            let shorter = shorter.strip_suffix('\r').unwrap_or(shorter).len();
            text.truncate(shorter);
        }
        if let ExprKind::Expandable(parts) = &mut kind {
            parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
        }
        Ok(Expr {
            kind,
            span: self.span_from(start),
        })
    }

    fn unended(&self, start: usize) -> super::SyntaxError {
        let mut error = self.wrong_from(start, "The string is missing the terminator.");
        error.span.end = start + 1;
        error.incomplete = true;
        error
    }
}
