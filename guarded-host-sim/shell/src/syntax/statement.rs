//! Statements: what a script is a list of.

use super::{
    Span,
    ast::{BinaryOp, Catch, Element, ExprKind, Parameter, Pipeline, Script, Statement, StatementKind},
    parser::{Parser, Read, is_name},
};

impl Parser<'_> {
    /// Reads statements up to `closing` (not taken) or the end of the text.
    pub(super) fn script(&mut self, closing: Option<char>) -> Read<Script> {
        let start = self.at;
        self.skip_separators();
        self.skip_attributes()?;
        let parameters = match self.keyword().as_deref() {
            Some("param") => self.parameters()?,
            _ => Vec::new(),
        };
        let mut statements = Vec::new();
        loop {
            self.skip_separators();
            match self.peek() {
                None => break,
                Some(c) if Some(c) == closing => break,
                Some(c @ (')' | '}')) => {
                    return Err(self.wrong_here(format!("Unexpected token '{c}' in expression or statement.")));
                }
                Some(_) => {}
            }
            let statement = self.statement()?;
            let ends_itself = ends_with_block(&statement.kind);
            statements.push(statement);
            self.skip_blanks();
            match self.peek() {
                None | Some(';' | '\n' | '\r' | ')' | '}') => {}
                Some(_) if ends_itself => {}
                Some(_) => return Err(self.unexpected()),
            }
        }
        Ok(Script {
            parameters,
            statements,
            span: self.span_from(start),
        })
    }

    /// `[CmdletBinding()]` and `[OutputType(…)]` before a `param` block say nothing that counts here.
    fn skip_attributes(&mut self) -> Read<()> {
        loop {
            let small = self.rest().get(..16).unwrap_or(self.rest()).to_ascii_lowercase();
            if !small.starts_with("[cmdletbinding") && !small.starts_with("[outputtype") {
                return Ok(());
            }
            self.type_name()?;
            self.skip_lines();
        }
    }

    /// `function Name { … }`, `function Name($a, $b) { … }`.
    fn function_statement(&mut self) -> Read<StatementKind> {
        self.skip_word();
        self.skip_blanks();
        let start = self.at;
        let name = self
            .take_while(|c| !c.is_whitespace() && !matches!(c, '(' | '{' | ';'))
            .to_owned();
        if name.is_empty() {
            return Err(self.wrong_from(start, "Missing function name after 'function'."));
        }
        self.skip_lines();
        let parameters = match self.peek() {
            Some('(') => Some(self.parameter_list()?),
            _ => None,
        };
        self.skip_lines();
        let mut body = self.block()?;
        if let Some(parameters) = parameters {
            body.parameters = parameters;
        }
        Ok(StatementKind::Function { name, body })
    }

    /// A statement.
    pub(super) fn statement(&mut self) -> Read<Statement> {
        self.nested(Self::statement_here)
    }

    fn statement_here(&mut self) -> Read<Statement> {
        let start = self.at;
        let kind = match self.keyword().as_deref() {
            Some("if") => self.if_statement()?,
            Some("foreach") => self.foreach_statement()?,
            Some("while") => {
                self.skip_word();
                let condition = self.condition()?;
                self.loop_of(condition, false)?
            }
            Some("do") => self.do_statement()?,
            Some("for") => self.for_statement()?,
            Some("try") => self.try_statement()?,
            Some("return") => StatementKind::Return(self.operand_statement()?),
            Some("throw") => StatementKind::Throw(self.operand_statement()?),
            Some("exit") => StatementKind::Exit(self.operand_statement()?),
            Some("break") => {
                self.skip_word();
                StatementKind::Break
            }
            Some("continue") => {
                self.skip_word();
                StatementKind::Continue
            }
            Some("switch") => self.outside("switch")?,
            Some("function") => self.function_statement()?,
            Some("filter") => self.outside("filter")?,
            Some("workflow") => self.outside("workflow")?,
            Some("configuration") => self.outside("configuration")?,
            Some("class") => self.outside("class")?,
            Some("enum") => self.outside("enum")?,
            Some("trap") => self.outside("trap")?,
            Some("data") => self.outside("data")?,
            Some("dynamicparam") => self.outside("dynamicparam")?,
            Some("begin") => self.outside("begin")?,
            Some("process") => self.outside("process")?,
            Some("end") => self.outside("end")?,
            Some("using") => {
                self.take_while(|c| c != '\n' && c != ';');
                StatementKind::Outside("using")
            }
            Some(word @ ("else" | "elseif" | "catch" | "finally" | "until" | "in" | "param")) => {
                let message = format!("Unexpected token '{word}' in expression or statement.");
                return Err(self.wrong_here(message));
            }
            _ => return self.pipeline_or_assignment(),
        };
        Ok(Statement {
            kind,
            span: self.span_from(start),
        })
    }

    /// The keyword that stands here, in small letters, if one does. Nothing is taken.
    fn keyword(&self) -> Option<String> {
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let word = rest.get(..end)?.to_ascii_lowercase();
        let follows = rest.get(end..)?.chars().next();
        // `if-it` and `for.exe` are commands.
        let ends = follows.is_none_or(|c| !is_name(c) && !matches!(c, '-' | '.' | '\\' | '/' | ':'));
        (ends && KEYWORDS.contains(&word.as_str()) && !self.is_data_command(&word, end)).then_some(word)
    }

    /// Words that begin a statement only before a block: anything else called so is a command.
    fn is_data_command(&self, word: &str, end: usize) -> bool {
        let rest = self.rest().get(end..).unwrap_or_default().trim_start();
        match word {
            "begin" | "process" | "end" | "dynamicparam" => !rest.starts_with('{'),
            "data" | "configuration" => !rest
                .split(['\n', ';', '|'])
                .next()
                .is_some_and(|line| line.contains('{')),
            _ => false,
        }
    }

    fn skip_word(&mut self) {
        self.take_while(|c| c.is_ascii_alphabetic());
    }

    /// `( … )` after a keyword.
    fn condition(&mut self) -> Read<Statement> {
        self.skip_lines();
        let opened = self.at;
        if !self.take("(") {
            return Err(self.wrong_here("Missing '(' after the keyword."));
        }
        self.skip_lines();
        if self.peek() == Some(')') {
            return Err(self.wrong_here("Missing condition between '(' and ')'."));
        }
        let condition = self.statement()?;
        self.close(")", opened)?;
        Ok(condition)
    }

    /// `{ … }` after a keyword.
    fn block(&mut self) -> Read<Script> {
        self.skip_lines();
        let opened = self.at;
        if !self.take("{") {
            return Err(self.wrong_here("Missing statement block: '{' is expected here."));
        }
        let body = self.nested(|p| p.script(Some('}')))?;
        self.close("}", opened)?;
        Ok(body)
    }

    fn if_statement(&mut self) -> Read<StatementKind> {
        self.skip_word();
        let mut clauses = vec![(self.condition()?, self.block()?)];
        let mut otherwise = None;
        loop {
            let before = self.at;
            self.skip_lines();
            match self.keyword().as_deref() {
                Some("elseif") => {
                    self.skip_word();
                    clauses.push((self.condition()?, self.block()?));
                }
                Some("else") => {
                    self.skip_word();
                    otherwise = Some(self.block()?);
                    break;
                }
                _ => {
                    self.at = before;
                    break;
                }
            }
        }
        Ok(StatementKind::If { clauses, otherwise })
    }

    fn foreach_statement(&mut self) -> Read<StatementKind> {
        self.skip_word();
        self.skip_lines();
        let opened = self.at;
        if !self.take("(") {
            return Err(self.wrong_here("Missing '(' after 'foreach'."));
        }
        self.skip_lines();
        if self.peek() != Some('$') {
            return Err(self.wrong_here("Missing variable after 'foreach ('."));
        }
        let variable = self.variable()?.name;
        self.skip_lines();
        if self.keyword().as_deref() != Some("in") {
            return Err(self.wrong_here("Missing 'in' after the variable of the foreach loop."));
        }
        self.skip_word();
        self.skip_lines();
        let items = Box::new(self.statement()?);
        self.close(")", opened)?;
        let body = self.block()?;
        Ok(StatementKind::Foreach { variable, items, body })
    }

    fn loop_of(&mut self, condition: Statement, until: bool) -> Read<StatementKind> {
        Ok(StatementKind::While {
            condition: Box::new(condition),
            body: self.block()?,
            body_first: false,
            until,
        })
    }

    fn do_statement(&mut self) -> Read<StatementKind> {
        self.skip_word();
        let body = self.block()?;
        self.skip_lines();
        let until = match self.keyword().as_deref() {
            Some("while") => false,
            Some("until") => true,
            _ => return Err(self.wrong_here("Missing 'while' or 'until' after the block of 'do'.")),
        };
        self.skip_word();
        Ok(StatementKind::While {
            condition: Box::new(self.condition()?),
            body,
            body_first: true,
            until,
        })
    }

    fn for_statement(&mut self) -> Read<StatementKind> {
        self.skip_word();
        self.skip_lines();
        let opened = self.at;
        if !self.take("(") {
            return Err(self.wrong_here("Missing '(' after 'for'."));
        }
        let mut parts = [None, None, None];
        for (number, part) in parts.iter_mut().enumerate() {
            self.skip_lines();
            if !matches!(self.peek(), Some(';' | ')') | None) {
                *part = Some(Box::new(self.statement()?));
            }
            self.skip_lines();
            if number < 2 {
                self.take(";");
            }
        }
        self.close(")", opened)?;
        let [start, condition, step] = parts;
        Ok(StatementKind::For {
            start,
            condition,
            step,
            body: self.block()?,
        })
    }

    fn try_statement(&mut self) -> Read<StatementKind> {
        let start = self.at;
        self.skip_word();
        let body = self.block()?;
        let (mut catches, mut finally) = (Vec::new(), None);
        loop {
            let before = self.at;
            self.skip_lines();
            match self.keyword().as_deref() {
                Some("catch") => {
                    self.skip_word();
                    let mut types = Vec::new();
                    self.skip_lines();
                    while self.peek() == Some('[') {
                        types.push(self.type_name()?);
                        self.skip_lines();
                        self.take(",");
                        self.skip_lines();
                    }
                    catches.push(Catch {
                        types,
                        body: self.block()?,
                    });
                }
                Some("finally") => {
                    self.skip_word();
                    finally = Some(self.block()?);
                    break;
                }
                _ => {
                    self.at = before;
                    break;
                }
            }
        }
        if catches.is_empty() && finally.is_none() {
            let mut error = self.wrong_from(start, "The Try statement is missing its Catch or Finally block.");
            error.incomplete = self.rest().trim().is_empty();
            return Err(error);
        }
        Ok(StatementKind::Try { body, catches, finally })
    }

    /// What stands after `return` and its kin.
    fn operand_statement(&mut self) -> Read<Option<Box<Statement>>> {
        self.skip_word();
        self.skip_blanks();
        match self.peek() {
            None | Some(';' | '\n' | '\r' | '}' | ')') => Ok(None),
            Some(_) => Ok(Some(Box::new(self.statement()?))),
        }
    }

    /// Reads over a construct that ends with a block, and names it.
    fn outside(&mut self, construct: &'static str) -> Read<StatementKind> {
        self.skip_word();
        loop {
            self.skip_lines();
            match self.peek() {
                Some('{') => break,
                None => return Err(self.wrong_here(format!("Missing '{{' after '{construct}'."))),
                Some('(') => {
                    let opened = self.at;
                    self.next();
                    self.balanced('(', ')', opened)?;
                }
                Some(c) if c == '"' || c == '\'' => {
                    self.string()?;
                }
                Some(_) => {
                    self.next();
                }
            }
        }
        let opened = self.at;
        self.next();
        self.balanced('{', '}', opened)?;
        Ok(StatementKind::Outside(construct))
    }

    /// Reads over text up to the bracket that closes; strings and comments are read as such.
    fn balanced(&mut self, open: char, close: char, opened: usize) -> Read<()> {
        let mut level = 1;
        loop {
            self.skip_lines();
            match self.peek() {
                Some('"' | '\'') => {
                    self.string()?;
                    continue;
                }
                Some(c) if c == open => level += 1,
                Some(c) if c == close => level -= 1,
                Some(_) => {}
                None => return self.close(&close.to_string(), opened),
            }
            self.next();
            if level == 0 {
                return Ok(());
            }
        }
    }

    fn parameters(&mut self) -> Read<Vec<Parameter>> {
        self.skip_word();
        self.skip_lines();
        self.parameter_list()
    }

    fn parameter_list(&mut self) -> Read<Vec<Parameter>> {
        let opened = self.at;
        if !self.take("(") {
            return Err(self.wrong_here("Missing '(' after 'param'."));
        }
        let mut parameters = Vec::new();
        loop {
            self.skip_lines();
            if self.peek() == Some(')') || self.peek().is_none() {
                break;
            }
            parameters.push(self.parameter()?);
            self.skip_lines();
            if !self.take(",") {
                break;
            }
        }
        self.close(")", opened)?;
        Ok(parameters)
    }

    fn parameter(&mut self) -> Read<Parameter> {
        let start = self.at;
        let (mut mandatory, mut type_name) = (false, None);
        while self.peek() == Some('[') {
            let text = self.type_name()?;
            let small = text.to_ascii_lowercase();
            if small.starts_with("parameter(") {
                let plain: String = small.split_whitespace().collect();
                mandatory = plain.contains("mandatory") && !plain.contains("mandatory=$false");
            } else if !small.contains('(') {
                type_name = Some(text);
            }
            self.skip_lines();
        }
        if self.peek() != Some('$') {
            return Err(self.wrong_here("Missing variable in the param block."));
        }
        let name = self.variable()?.name;
        self.skip_lines();
        let default = match self.take("=") {
            true => {
                self.skip_lines();
                Some(self.expression_without_list()?)
            }
            false => None,
        };
        Ok(Parameter {
            name,
            type_name,
            mandatory,
            default,
            span: self.span_from(start),
        })
    }

    /// A pipeline, or an assignment whose value is a statement.
    pub(super) fn pipeline_or_assignment(&mut self) -> Read<Statement> {
        let start = self.at;
        let mut elements = Vec::new();
        if self.starts_expression() {
            let expr = self.expression()?;
            self.skip_blanks();
            if let Some(operator) = self.assignment_operator() {
                if !is_assignable(&expr.kind) {
                    return Err(self.wrong_from(
                        expr.span.start,
                        "The assignment expression is not valid: only a variable, a property or an element can be assigned to.",
                    ));
                }
                self.skip_lines();
                if self.peek().is_none() {
                    return Err(self.wrong_here("Missing value after the assignment operator."));
                }
                let value = Box::new(self.statement()?);
                return Ok(Statement {
                    kind: StatementKind::Assign {
                        target: expr,
                        operator,
                        value,
                    },
                    span: self.span_from(start),
                });
            }
            elements.push(Element::Expression {
                expr,
                redirections: self.redirections()?,
            });
        } else {
            elements.push(Element::Command(self.command()?));
        }
        loop {
            self.skip_blanks();
            let bar = self.at;
            if self.rest().starts_with("||") || self.rest().starts_with("&&") {
                let token = self.rest().get(..2).unwrap_or_default();
                let message = format!("The token '{token}' is not a valid statement separator in this version.");
                return Err(self.wrong_here(message));
            }
            if !self.take("|") {
                break;
            }
            self.skip_lines();
            match self.peek() {
                None => {
                    let mut error = self.wrong_here("An empty pipe element is not allowed.");
                    error.span = Span {
                        start: bar,
                        end: bar + 1,
                    };
                    return Err(error);
                }
                Some('|' | ';' | ')' | '}') => {
                    return Err(self.wrong_here("An empty pipe element is not allowed."));
                }
                Some(_) if self.starts_expression() => {
                    return Err(self.wrong_here("Expressions are only allowed as the first element of a pipeline."));
                }
                Some(_) => elements.push(Element::Command(self.command()?)),
            }
        }
        let span = self.span_from(start);
        Ok(Statement {
            kind: StatementKind::Pipeline(Pipeline { elements, span }),
            span,
        })
    }

    /// `=`, `+=` and so on; the inner operator, where there is one.
    fn assignment_operator(&mut self) -> Option<Option<BinaryOp>> {
        if self.rest().starts_with("==") {
            return None;
        }
        ASSIGNMENTS
            .iter()
            .find(|(text, _)| self.take(text))
            .map(|(_, operator)| *operator)
    }

    pub(super) fn unexpected(&self) -> super::SyntaxError {
        let token: String = self
            .rest()
            .chars()
            .take_while(|c| !c.is_whitespace())
            .take(40)
            .collect();
        self.wrong_here(format!("Unexpected token '{token}' in expression or statement."))
    }
}

/// Whether another statement may follow on the same line.
fn ends_with_block(kind: &StatementKind) -> bool {
    matches!(
        kind,
        StatementKind::If { .. }
            | StatementKind::Foreach { .. }
            | StatementKind::For { .. }
            | StatementKind::Try { .. }
            | StatementKind::Function { .. }
            | StatementKind::Outside(_)
            | StatementKind::While { body_first: false, .. }
    )
}

fn is_assignable(kind: &ExprKind) -> bool {
    match kind {
        ExprKind::Variable(_) | ExprKind::Member { .. } | ExprKind::Index { .. } => true,
        ExprKind::Cast(_, inner) => is_assignable(&inner.kind),
        ExprKind::List(items) => items.iter().all(|item| is_assignable(&item.kind)),
        _ => false,
    }
}

const ASSIGNMENTS: [(&str, Option<BinaryOp>); 6] = [
    ("=", None),
    ("+=", Some(BinaryOp::Add)),
    ("-=", Some(BinaryOp::Subtract)),
    ("*=", Some(BinaryOp::Multiply)),
    ("/=", Some(BinaryOp::Divide)),
    ("%=", Some(BinaryOp::Remainder)),
];

const KEYWORDS: [&str; 32] = [
    "if",
    "elseif",
    "else",
    "foreach",
    "while",
    "do",
    "until",
    "for",
    "try",
    "catch",
    "finally",
    "return",
    "throw",
    "exit",
    "break",
    "continue",
    "switch",
    "function",
    "filter",
    "workflow",
    "configuration",
    "class",
    "enum",
    "trap",
    "data",
    "begin",
    "process",
    "end",
    "using",
    "in",
    "param",
    "dynamicparam",
];
