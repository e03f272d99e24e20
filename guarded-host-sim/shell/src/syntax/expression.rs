//! Expressions: operators by precedence, and what hangs on a value.

use super::{
    ast::{BinaryOp, Expr, ExprKind, Part, UnaryOp, Variable},
    parser::{Parser, Read, is_dash, is_double_quote, is_name, is_single_quote},
};

impl Parser<'_> {
    /// Whether what stands here is an expression rather than a command.
    pub(super) fn starts_expression(&self) -> bool {
        let Some(c) = self.peek() else { return false };
        match c {
            '$' | '(' | '@' | '[' | '{' | '!' | ',' | '+' => true,
            _ if is_single_quote(c) || is_double_quote(c) => true,
            _ if is_dash(c) => true,
            '0'..='9' => self.number_here().is_some(),
            '.' => self.peek_second().is_some_and(|c| c.is_ascii_digit()) && self.number_here().is_some(),
            _ => false,
        }
    }

    /// An expression, commas included.
    pub(super) fn expression(&mut self) -> Read<Expr> {
        self.nested(|p| p.binary(0, true))
    }

    /// An expression in a place where a comma separates.
    pub(super) fn expression_without_list(&mut self) -> Read<Expr> {
        self.nested(|p| p.binary(0, false))
    }

    fn binary(&mut self, lowest: u8, list: bool) -> Read<Expr> {
        let mut left = self.operand(list)?;
        loop {
            let before = self.at;
            self.skip_blanks();
            let at = self.at;
            let Some((op, case, level)) = self.binary_operator()? else {
                self.at = before;
                return Ok(left);
            };
            if level < lowest {
                self.at = before;
                return Ok(left);
            }
            self.skip_lines();
            if matches!(self.peek(), None | Some(')' | '}' | ']' | ';' | '|')) {
                let token = self.source.get(at..self.at).unwrap_or_default().trim().to_owned();
                return Err(self.wrong_here(format!(
                    "You must provide a value expression following the '{token}' operator."
                )));
            }
            let right = self.nested(|p| p.binary(level + 1, list))?;
            let span = left.span.to(right.span);
            left = Expr {
                kind: ExprKind::Binary {
                    op,
                    case,
                    left: Box::new(left),
                    right: Box::new(right),
                },
                span,
            };
        }
    }

    /// The operator that stands here, whether case matters to it, and its precedence.
    fn binary_operator(&mut self) -> Read<Option<(BinaryOp, bool, u8)>> {
        let rest = self.rest();
        for (text, op, level) in SIGNS {
            if rest.starts_with(text) && !rest[text.len()..].starts_with('=') {
                self.at += text.len();
                return Ok(Some((op, false, level)));
            }
        }
        if !self.at_dash() {
            return Ok(None);
        }
        let start = self.at;
        self.next();
        let word = self.take_while(|c| c.is_ascii_alphabetic()).to_ascii_lowercase();
        if word.is_empty() {
            return match self.peek() {
                // `-=` and `--` are not operators between two values.
                Some(c) if c == '=' || is_dash(c) => {
                    self.at = start;
                    Ok(None)
                }
                _ => Ok(Some((BinaryOp::Subtract, false, 5))),
            };
        }
        let find = |name: &str| WORDS.iter().find(|(word, ..)| *word == name).copied();
        if let Some((_, op, level)) = find(&word) {
            return Ok(Some((op, false, level)));
        }
        let with_case = word.strip_prefix('c').or_else(|| word.strip_prefix('i')).and_then(find);
        match with_case {
            Some((_, op, level)) if level == COMPARISON => Ok(Some((op, word.starts_with('c'), level))),
            _ => {
                let message = format!("Unexpected token '-{word}' in expression or statement.");
                Err(self.wrong_from(start, message))
            }
        }
    }

    /// An operand, or several with commas between them.
    fn operand(&mut self, list: bool) -> Read<Expr> {
        let first = self.unary()?;
        if !list {
            return Ok(first);
        }
        let mut items = vec![first];
        loop {
            let before = self.at;
            self.skip_blanks();
            if !self.take(",") {
                self.at = before;
                break;
            }
            self.skip_lines();
            items.push(self.unary()?);
        }
        let span = items[0].span.to(self.span_from(self.at));
        match items.len() {
            1 => Ok(items.remove(0)),
            _ => Ok(Expr {
                kind: ExprKind::List(items),
                span,
            }),
        }
    }

    fn unary(&mut self) -> Read<Expr> {
        self.nested(Self::unary_here)
    }

    fn unary_here(&mut self) -> Read<Expr> {
        let start = self.at;
        let operator = match self.peek() {
            Some('!') => {
                self.next();
                Some(UnaryOp::Not)
            }
            Some(',') => {
                self.next();
                Some(UnaryOp::Comma)
            }
            Some('+') if self.take("++") => return self.step_before(start, 1),
            Some('+') => {
                self.next();
                Some(UnaryOp::Plus)
            }
            Some(c) if is_dash(c) => {
                if self.peek_second().is_some_and(is_dash) {
                    self.next();
                    self.next();
                    return self.step_before(start, -1);
                }
                Some(self.dash_operator()?)
            }
            _ => None,
        };
        if let Some(operator) = operator {
            self.skip_lines();
            let operand = match operator {
                // A list binds tighter than these two.
                UnaryOp::Join | UnaryOp::Split => self.operand(true)?,
                _ => self.unary()?,
            };
            let kind = match (operator, operand.kind) {
                (UnaryOp::Minus, ExprKind::Integer(value, text)) => {
                    ExprKind::Integer(value.wrapping_neg(), format!("-{text}"))
                }
                (UnaryOp::Minus, ExprKind::Real(value, text)) => ExprKind::Real(-value, format!("-{text}")),
                (operator, kind) => ExprKind::Unary(
                    operator,
                    Box::new(Expr {
                        kind,
                        span: operand.span,
                    }),
                ),
            };
            return Ok(Expr {
                kind,
                span: self.span_from(start),
            });
        }
        if self.peek() == Some('[') {
            let name = self.type_name()?;
            let kind = match self.starts_cast_operand() {
                true => {
                    self.skip_blanks();
                    ExprKind::Cast(name, Box::new(self.unary()?))
                }
                false => ExprKind::Type(name),
            };
            let expr = Expr {
                kind,
                span: self.span_from(start),
            };
            return self.postfix(expr, true);
        }
        let primary = self.primary()?;
        self.postfix(primary, true)
    }

    fn starts_cast_operand(&self) -> bool {
        let rest = self.rest().trim_start_matches([' ', '\t']);
        let mut chars = rest.chars();
        match chars.next() {
            Some('$' | '(' | '@' | '[' | '{' | '0'..='9') => true,
            Some(c) if is_single_quote(c) || is_double_quote(c) => true,
            Some(c) if is_dash(c) => chars.next().is_some_and(|c| c.is_ascii_digit()),
            _ => false,
        }
    }

    fn step_before(&mut self, start: usize, by: i64) -> Read<Expr> {
        let target = Box::new(self.unary()?);
        Ok(Expr {
            kind: ExprKind::Step {
                target,
                by,
                before: true,
            },
            span: self.span_from(start),
        })
    }

    /// A dash with what follows it, in front of an operand.
    fn dash_operator(&mut self) -> Read<UnaryOp> {
        let start = self.at;
        self.next();
        let word = self.take_while(|c| c.is_ascii_alphabetic()).to_ascii_lowercase();
        match word.as_str() {
            "" => Ok(UnaryOp::Minus),
            "not" => Ok(UnaryOp::Not),
            "bnot" => Ok(UnaryOp::BitNot),
            "join" => Ok(UnaryOp::Join),
            "split" | "isplit" | "csplit" => Ok(UnaryOp::Split),
            _ => Err(self.wrong_from(
                start,
                format!("Missing expression: '-{word}' is no operator that stands before a value."),
            )),
        }
    }

    /// A value without operators.
    pub(super) fn primary(&mut self) -> Read<Expr> {
        let start = self.at;
        let kind = match self.peek() {
            Some('$') if self.rest().starts_with("$(") => {
                self.next();
                ExprKind::Sub(self.inside_parentheses()?)
            }
            Some('$') => ExprKind::Variable(self.variable()?),
            Some('(') => {
                let opened = self.at;
                self.next();
                self.skip_lines();
                if self.peek() == Some(')') {
                    return Err(self.wrong_here("An expression was expected after '('."));
                }
                let inside = self.statement()?;
                self.close(")", opened)?;
                ExprKind::Paren(Box::new(inside))
            }
            Some('{') => {
                let opened = self.at;
                self.next();
                let body = self.nested(|p| p.script(Some('}')))?;
                self.close("}", opened)?;
                ExprKind::Block(Box::new(body))
            }
            Some('@') => self.at_sign()?,
            Some(c) if is_single_quote(c) || is_double_quote(c) => return self.string(),
            Some('0'..='9' | '.') => match self.number_here() {
                Some((kind, length)) => {
                    self.at += length;
                    kind
                }
                None => return Err(self.unexpected()),
            },
            _ => return Err(self.unexpected()),
        };
        Ok(Expr {
            kind,
            span: self.span_from(start),
        })
    }

    fn at_sign(&mut self) -> Read<ExprKind> {
        match self.peek_second() {
            Some('(') => {
                self.next();
                Ok(ExprKind::Array(self.inside_parentheses()?))
            }
            Some('{') => {
                self.next();
                self.hashtable()
            }
            Some(c) if is_single_quote(c) || is_double_quote(c) => Ok(self.here_string()?.kind),
            Some(c) if is_name(c) => Err(self.wrong_here(
                "The splatting operator '@' can only be used with a variable among the arguments of a command.",
            )),
            _ => Err(self.wrong_here("Unrecognized token '@'.")),
        }
    }

    /// `( statements )`, after the sign before the bracket.
    pub(super) fn inside_parentheses(&mut self) -> Read<super::ast::Script> {
        let opened = self.at;
        self.next();
        let script = self.nested(|p| p.script(Some(')')))?;
        self.close(")", opened)?;
        Ok(script)
    }

    fn hashtable(&mut self) -> Read<ExprKind> {
        let opened = self.at;
        self.next();
        let mut entries = Vec::new();
        loop {
            self.skip_separators();
            if matches!(self.peek(), None | Some('}')) {
                break;
            }
            let start = self.at;
            let key = match self.peek() {
                Some(c) if is_name(c) && self.number_here().is_none() => {
                    let name = self.take_while(|c| is_name(c) || c == '-').to_owned();
                    Expr {
                        kind: ExprKind::Text(name),
                        span: self.span_from(start),
                    }
                }
                _ => self.nested(|p| p.binary(0, false))?,
            };
            self.skip_blanks();
            if !self.take("=") {
                return Err(self.wrong_here("Missing '=' operator after key in hash literal."));
            }
            self.skip_lines();
            if matches!(self.peek(), None | Some('}' | ';')) {
                return Err(self.wrong_here("Missing value after '=' in hash literal."));
            }
            entries.push((key, self.statement()?));
            self.skip_blanks();
            if !matches!(self.peek(), None | Some('}' | ';' | '\n' | '\r')) {
                return Err(self.unexpected());
            }
        }
        self.close("}", opened)?;
        Ok(ExprKind::Hashtable(entries))
    }

    /// Members, calls and indices that follow without a blank.
    pub(super) fn postfix(&mut self, mut expr: Expr, steps: bool) -> Read<Expr> {
        loop {
            let rest = self.rest();
            let kind = if rest.starts_with("::") {
                self.at += 2;
                self.member(expr.clone(), true)?
            } else if rest.starts_with('.') && self.peek_second().is_some_and(starts_member) {
                self.at += 1;
                self.member(expr.clone(), false)?
            } else if rest.starts_with('[') {
                let opened = self.at;
                self.next();
                self.skip_lines();
                let index = self.expression()?;
                self.close("]", opened)?;
                ExprKind::Index {
                    object: Box::new(expr.clone()),
                    index: Box::new(index),
                }
            } else if steps && (rest.starts_with("++") || rest.starts_with("--")) {
                let by = if self.take("++") { 1 } else { -1 };
                self.take("--");
                ExprKind::Step {
                    target: Box::new(expr.clone()),
                    by,
                    before: false,
                }
            } else {
                return Ok(expr);
            };
            expr = Expr {
                kind,
                span: self.span_from(expr.span.start),
            };
        }
    }

    fn member(&mut self, object: Expr, is_static: bool) -> Read<ExprKind> {
        let start = self.at;
        let name = match self.peek() {
            Some(c) if is_name(c) => {
                let text = self.take_while(is_name).to_owned();
                Expr {
                    kind: ExprKind::Text(text),
                    span: self.span_from(start),
                }
            }
            Some('$') => {
                let variable = self.variable()?;
                Expr {
                    span: variable.span,
                    kind: ExprKind::Variable(variable),
                }
            }
            Some('(') => self.primary()?,
            Some(c) if is_single_quote(c) || is_double_quote(c) => self.string()?,
            _ => return Err(self.wrong_here("Missing property name after reference operator.")),
        };
        let (object, name) = (Box::new(object), Box::new(name));
        if self.peek() != Some('(') {
            return Ok(ExprKind::Member {
                object,
                name,
                is_static,
            });
        }
        let opened = self.at;
        self.next();
        let mut arguments = Vec::new();
        loop {
            self.skip_lines();
            if matches!(self.peek(), None | Some(')')) {
                break;
            }
            arguments.push(self.expression_without_list()?);
            self.skip_lines();
            if !self.take(",") {
                break;
            }
        }
        self.close(")", opened)?;
        Ok(ExprKind::Call {
            object,
            name,
            arguments,
            is_static,
        })
    }

    /// `$name`, `${any name}`, `$scope:name`.
    pub(super) fn variable(&mut self) -> Read<Variable> {
        let start = self.at;
        self.next();
        let text = match self.peek() {
            Some('{') => {
                let rest = self.rest();
                let Some(end) = rest.find('}') else {
                    self.at = self.source.len();
                    return Err(self.wrong_here("The braced variable name is missing its closing brace."));
                };
                self.at += end + 1;
                rest.get(1..end).unwrap_or_default()
            }
            Some('$' | '?' | '^') => {
                self.next();
                self.source.get(start + 1..self.at).unwrap_or_default()
            }
            Some(c) if is_name(c) => {
                let name_start = self.at;
                self.take_while(is_name);
                // A colon belongs to the name only before a name; `::` never does.
                let rest = self.rest();
                if rest.starts_with(':') && rest[1..].chars().next().is_some_and(is_name) {
                    self.at += 1;
                    self.take_while(is_name);
                }
                self.source.get(name_start..self.at).unwrap_or_default()
            }
            _ => return Err(self.wrong_here("A variable's name is expected after '$'.")),
        };
        let (scope, name) = match text.split_once(':') {
            Some((scope, name)) => (Some(scope.to_ascii_lowercase()), name),
            None => (None, text),
        };
        if name.is_empty() {
            return Err(self.wrong_from(start, "The name of the variable is empty."));
        }
        Ok(Variable {
            scope,
            name: name.to_owned(),
            span: self.span_from(start),
        })
    }

    /// `[name]`, brackets inside included; the text between the outer ones.
    pub(super) fn type_name(&mut self) -> Read<String> {
        let start = self.at;
        let mut level = 0_usize;
        while let Some(c) = self.next() {
            match c {
                '[' => level += 1,
                ']' => level -= 1,
                '\n' | ';' => break,
                _ => {}
            }
            if level == 0 {
                let inner = self.source.get(start + 1..self.at - 1).unwrap_or_default().trim();
                if inner.is_empty() {
                    break;
                }
                return Ok(inner.to_owned());
            }
        }
        let mut error = self.wrong_from(start, "Missing type name after '[', or missing ']'.");
        error.incomplete = self.at >= self.source.len();
        Err(error)
    }

    /// The number that stands here, with its length; none where a name goes on.
    pub(super) fn number_here(&self) -> Option<(ExprKind, usize)> {
        let rest = self.rest();
        // `1..3` is a range, `1.5` is not; a dot that no digit follows is not part of the number.
        let mut end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        if !rest.to_ascii_lowercase().starts_with("0x") {
            let after = rest.get(end..)?;
            if after.starts_with('.') && after[1..].starts_with(|c: char| c.is_ascii_digit()) {
                let fraction = &after[1..];
                end += 1 + fraction
                    .find(|c: char| !c.is_ascii_alphanumeric())
                    .unwrap_or(fraction.len());
            }
            let text = rest.get(..end)?;
            let after = rest.get(end..)?;
            if text.ends_with(['e', 'E']) && after.starts_with(['+', '-']) {
                let digits = &after[1..];
                end += 1 + digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
            }
        }
        let text = rest.get(..end)?;
        if rest.get(end..)?.starts_with(is_name) {
            return None;
        }
        number(text).map(|kind| (kind, end))
    }
}

/// A number with the suffixes of the language: `5GB`, `0x1F`, `1.5`, `3L`.
pub(super) fn number(text: &str) -> Option<ExprKind> {
    let small = text.to_ascii_lowercase();
    if !small
        .trim_start_matches('-')
        .starts_with(|c: char| c.is_ascii_digit() || c == '.')
    {
        return None;
    }
    let multiple = [
        ("kb", 1_i64 << 10),
        ("mb", 1 << 20),
        ("gb", 1 << 30),
        ("tb", 1 << 40),
        ("pb", 1 << 50),
    ];
    let (body, factor) = multiple
        .iter()
        .find_map(|(suffix, factor)| Some((small.strip_suffix(suffix)?, *factor)))
        .unwrap_or((&small, 1));
    if let Some(hex) = body.strip_prefix("0x") {
        let value = i64::from_str_radix(hex, 16).ok()?.checked_mul(factor)?;
        return Some(ExprKind::Integer(value, text.to_owned()));
    }
    let body = body.strip_suffix(['l', 'd']).unwrap_or(body);
    if !body.chars().all(|c| c.is_ascii_digit() || "+-.e".contains(c)) {
        return None;
    }
    if let Ok(value) = body.parse::<i64>() {
        return Some(ExprKind::Integer(value.checked_mul(factor)?, text.to_owned()));
    }
    #[expect(clippy::cast_precision_loss, reason = "a factor is a power of two")]
    let value = body.parse::<f64>().ok().filter(|value| value.is_finite())? * factor as f64;
    Some(ExprKind::Real(value, text.to_owned()))
}

fn starts_member(c: char) -> bool {
    is_name(c) || c == '$' || c == '(' || is_single_quote(c) || is_double_quote(c)
}

/// Joins neighbouring texts of an expandable string, and makes it plain text where nothing expands.
pub(super) fn from_parts(parts: Vec<Part>) -> ExprKind {
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Text(before)), Part::Text(text)) => before.push_str(&text),
            (_, Part::Text(text)) if text.is_empty() => {}
            (_, part) => joined.push(part),
        }
    }
    match joined.as_mut_slice() {
        [] => ExprKind::Text(String::new()),
        [Part::Text(text)] => ExprKind::Text(std::mem::take(text)),
        _ => ExprKind::Expandable(joined),
    }
}

const COMPARISON: u8 = 3;

const SIGNS: [(&str, BinaryOp, u8); 5] = [
    ("..", BinaryOp::Range, 8),
    ("+", BinaryOp::Add, 5),
    ("*", BinaryOp::Multiply, 6),
    ("/", BinaryOp::Divide, 6),
    ("%", BinaryOp::Remainder, 6),
];

const WORDS: [(&str, BinaryOp, u8); 29] = [
    ("and", BinaryOp::And, 1),
    ("or", BinaryOp::Or, 1),
    ("xor", BinaryOp::Xor, 1),
    ("band", BinaryOp::BitAnd, 2),
    ("bor", BinaryOp::BitOr, 2),
    ("bxor", BinaryOp::BitXor, 2),
    ("eq", BinaryOp::Equal, COMPARISON),
    ("ne", BinaryOp::NotEqual, COMPARISON),
    ("gt", BinaryOp::Greater, COMPARISON),
    ("ge", BinaryOp::GreaterOrEqual, COMPARISON),
    ("lt", BinaryOp::Less, COMPARISON),
    ("le", BinaryOp::LessOrEqual, COMPARISON),
    ("like", BinaryOp::Like, COMPARISON),
    ("notlike", BinaryOp::NotLike, COMPARISON),
    ("match", BinaryOp::Match, COMPARISON),
    ("notmatch", BinaryOp::NotMatch, COMPARISON),
    ("contains", BinaryOp::Contains, COMPARISON),
    ("notcontains", BinaryOp::NotContains, COMPARISON),
    ("in", BinaryOp::In, COMPARISON),
    ("notin", BinaryOp::NotIn, COMPARISON),
    ("replace", BinaryOp::Replace, COMPARISON),
    ("split", BinaryOp::Split, COMPARISON),
    ("join", BinaryOp::Join, COMPARISON),
    ("is", BinaryOp::Is, COMPARISON),
    ("isnot", BinaryOp::IsNot, COMPARISON),
    ("as", BinaryOp::As, COMPARISON),
    ("shl", BinaryOp::ShiftLeft, COMPARISON),
    ("shr", BinaryOp::ShiftRight, COMPARISON),
    ("f", BinaryOp::Format, 7),
];
