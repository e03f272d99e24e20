//! Commands: a name, parameters and arguments, read as words rather than expressions.

use super::{
    Span,
    ast::{Argument, Command, Expr, ExprKind, Invocation, Part, Redirection},
    expression::{from_parts, number},
    parser::{Parser, Read, is_blank, is_dash, is_double_quote, is_name, is_single_quote},
};

impl Parser<'_> {
    /// A command up to the end of its part of the pipeline.
    pub(super) fn command(&mut self) -> Read<Command> {
        let start = self.at;
        let invocation = match self.peek() {
            Some('&') => Some(Invocation::Call),
            Some('.') if self.peek_second().is_none_or(|c| is_blank(c) || "$\"'(".contains(c)) => Some(Invocation::Dot),
            _ => None,
        };
        if invocation.is_some() {
            self.next();
            self.skip_blanks();
        }
        let name = match self.peek() {
            None | Some('\n' | '\r' | ';' | '|' | ')' | '}') => {
                return Err(self.wrong_here("The name of a command is expected here."));
            }
            Some(_) if invocation.is_some() && self.starts_expression() => {
                let primary = self.primary()?;
                self.postfix(primary, false)?
            }
            Some(_) => self.word()?,
        };
        let mut arguments = Vec::new();
        let mut redirections = Vec::new();
        let mut only_values = false;
        loop {
            self.skip_blanks();
            if self.ends_command() {
                break;
            }
            if let Some(redirection) = self.redirection()? {
                redirections.push(redirection);
                continue;
            }
            if self.rest().starts_with("--%") {
                return Err(self.wrong_here("The stop-parsing token '--%' is not available in this shell."));
            }
            let here = self.at;
            let dashes = self.take_while(is_dash).chars().count();
            let next = self.peek();
            self.at = here;
            match (dashes, next) {
                (1, Some(c)) if !only_values && (c.is_alphabetic() || c == '_' || c == '?') => {
                    arguments.push(self.parameter_of_command()?);
                }
                (2, None) => {
                    self.take_while(is_dash);
                }
                (2, Some(c)) if c.is_whitespace() => {
                    self.take_while(is_dash);
                    only_values = true;
                }
                _ if self.peek() == Some('@') && self.peek_second().is_some_and(is_name) => {
                    self.next();
                    let variable = self.take_while(is_name).to_owned();
                    arguments.push(Argument::Splat {
                        variable,
                        span: self.span_from(here),
                    });
                }
                _ => arguments.push(Argument::Value(self.argument_list()?)),
            }
        }
        Ok(Command {
            invocation,
            name,
            arguments,
            redirections,
            span: Span {
                start,
                end: start + self.source.get(start..self.at).unwrap_or_default().trim_end().len(),
            },
        })
    }

    fn ends_command(&self) -> bool {
        match self.peek() {
            None | Some('\n' | '\r' | ';' | '|' | ')' | '}') => true,
            Some('&') => self.rest().starts_with("&&"),
            Some(_) => false,
        }
    }

    fn parameter_of_command(&mut self) -> Read<Argument> {
        let start = self.at;
        self.next();
        let name = self
            .take_while(|c| !c.is_whitespace() && !":.[{}();,|&'\"`$<>=".contains(c))
            .to_owned();
        let span = self.span_from(start);
        let value = match self.take(":") {
            true => {
                self.skip_blanks();
                if self.ends_command() {
                    return Err(self.wrong_from(start, format!("Parameter '-{name}:' requires an argument.")));
                }
                Some(self.argument_list()?)
            }
            false => None,
        };
        Ok(Argument::Parameter { name, value, span })
    }

    /// An argument, or several with commas between them.
    fn argument_list(&mut self) -> Read<Expr> {
        let start = self.at;
        let mut items = vec![self.argument()?];
        loop {
            let before = self.at;
            self.skip_blanks();
            if !self.take(",") {
                self.at = before;
                break;
            }
            self.skip_lines();
            if self.ends_command() {
                return Err(self.wrong_here("Missing argument after ',' in the list of arguments."));
            }
            items.push(self.argument()?);
        }
        match items.len() {
            1 => Ok(items.remove(0)),
            _ => Ok(Expr {
                kind: ExprKind::List(items),
                span: self.span_from(start),
            }),
        }
    }

    fn argument(&mut self) -> Read<Expr> {
        self.nested(Self::argument_here)
    }

    fn argument_here(&mut self) -> Read<Expr> {
        let start = self.at;
        match self.peek() {
            Some('$') => {
                if !self.rest().starts_with("$(")
                    && !self.peek_second().is_some_and(|c| is_name(c) || "{$?^".contains(c))
                {
                    return self.word();
                }
                let primary = self.primary()?;
                let value = self.postfix(primary, false)?;
                // `$path\file`: the whole word is text with a variable in it.
                match self.peek() {
                    Some(c) if goes_on(c) => {
                        self.at = start;
                        self.word()
                    }
                    _ => Ok(value),
                }
            }
            Some('(' | '{') => {
                let primary = self.primary()?;
                self.postfix(primary, false)
            }
            Some('@') if self.peek_second().is_some_and(|c| "({'\"".contains(c)) => {
                let primary = self.primary()?;
                self.postfix(primary, false)
            }
            Some(c) if is_single_quote(c) || is_double_quote(c) => {
                let text = self.string()?;
                self.postfix(text, false)
            }
            Some('&') => Err(self.wrong_here(
                "The ampersand (&) character is not allowed. The & operator is reserved for future use; \
                 wrap an ampersand in double quotation marks (\"&\") to pass it as part of a string.",
            )),
            Some(',') => Err(self.wrong_here("Missing argument in parameter list.")),
            _ => self.word(),
        }
    }

    /// A bare word, with what expands in it; a number, if it is one.
    pub(super) fn word(&mut self) -> Read<Expr> {
        let start = self.at;
        let mut parts = Vec::new();
        let mut plain = true;
        loop {
            match self.peek() {
                None => break,
                Some('<') => {
                    match self.placeholder() {
                        Some(text) => parts.push(Part::Placeholder(text)),
                        None if self.at == start => {
                            return Err(self.wrong_here("The '<' operator is reserved for future use."));
                        }
                        None => break,
                    }
                    plain = false;
                }
                Some(c) if ends_word(c) => break,
                Some(c) if is_single_quote(c) => {
                    plain = false;
                    parts.push(Part::Text(self.verbatim()?));
                }
                Some(c) if is_double_quote(c) => {
                    plain = false;
                    parts.extend(self.expandable()?);
                }
                Some(c) => {
                    plain &= c != '`' && c != '$';
                    parts.push(self.piece()?);
                }
            }
        }
        if self.at == start {
            return Err(self.unexpected());
        }
        let kind = match from_parts(parts) {
            ExprKind::Text(text) if plain => number(&text).unwrap_or(ExprKind::Text(text)),
            ExprKind::Expandable(mut parts) => match parts.as_mut_slice() {
                [Part::Placeholder(text)] => ExprKind::Placeholder(std::mem::take(text)),
                _ => ExprKind::Expandable(parts),
            },
            kind => kind,
        };
        Ok(Expr {
            kind,
            span: self.span_from(start),
        })
    }

    /// `<what to fill in>`: a guide's words for something that its reader knows.
    fn placeholder(&mut self) -> Option<String> {
        let rest = self.rest();
        let end = rest.find('>')?;
        let inside = rest.get(1..end)?;
        let starts = inside.starts_with(|c: char| c.is_alphabetic());
        let proper = inside.chars().all(|c| is_name(c) || " -'/.,".contains(c));
        if !starts || !proper {
            return None;
        }
        self.at += end + 1;
        Some(inside.to_owned())
    }

    /// Redirections after an expression.
    pub(super) fn redirections(&mut self) -> Read<Vec<Redirection>> {
        let mut found = Vec::new();
        loop {
            self.skip_blanks();
            match self.redirection()? {
                Some(redirection) => found.push(redirection),
                None => return Ok(found),
            }
        }
    }

    /// `> file`, `2>&1`, `*>> file`, if that stands here.
    fn redirection(&mut self) -> Read<Option<Redirection>> {
        let start = self.at;
        let stream = match self.peek() {
            Some('>') => Some(1),
            Some(c @ '1'..='6') if self.peek_second() == Some('>') => c.to_digit(10).and_then(|d| u8::try_from(d).ok()),
            Some('*') if self.peek_second() == Some('>') => None,
            _ => return Ok(None),
        };
        if self.peek() != Some('>') {
            self.next();
        }
        self.next();
        let append = self.take(">");
        let target = match self.take("&1") {
            true => None,
            false => {
                self.skip_blanks();
                if self.ends_command() {
                    return Err(self.wrong_from(start, "Missing file specification after redirection operator."));
                }
                Some(self.argument()?)
            }
        };
        Ok(Some(Redirection {
            stream,
            append,
            target,
            span: self.span_from(start),
        }))
    }
}

/// What ends a bare word.
fn ends_word(c: char) -> bool {
    c.is_whitespace() || ";|,(){}&>".contains(c)
}

/// Whether a word goes on after a variable.
fn goes_on(c: char) -> bool {
    !ends_word(c)
}
