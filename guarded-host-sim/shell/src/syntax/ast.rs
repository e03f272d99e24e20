//! What a script is once it has been read. Every part knows where it stands, so that whatever is
//! wrong with it can be shown there.

use super::Span;

/// A script or the inside of a script block.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// `param(…)`, if it has one.
    pub parameters: Vec<Parameter>,
    /// In the order of writing.
    pub statements: Vec<Statement>,
    /// From the first to the last character.
    pub span: Span,
}

/// One variable of a `param` block.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Without the dollar sign.
    pub name: String,
    /// The type in brackets before it.
    pub type_name: Option<String>,
    /// Whether `[Parameter(Mandatory)]` stands before it.
    pub mandatory: bool,
    /// What it is unless given.
    pub default: Option<Expr>,
    /// Where it stands.
    pub span: Span,
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    /// What it does.
    pub kind: StatementKind,
    /// Where it stands.
    pub span: Span,
}

/// The statements that there are.
#[derive(Clone, Debug, PartialEq)]
pub enum StatementKind {
    /// Commands and expressions joined by `|`.
    Pipeline(Pipeline),
    /// `target = value`, also `+=` and its kin.
    Assign {
        /// A variable, a property, an element, or several of them.
        target: Expr,
        /// The arithmetic that stands before the equals sign.
        operator: Option<BinaryOp>,
        /// What is assigned: the output of a statement.
        value: Box<Statement>,
    },
    /// `if`, `elseif`, `else`.
    If {
        /// Conditions with what they lead to.
        clauses: Vec<(Statement, Script)>,
        /// `else`.
        otherwise: Option<Script>,
    },
    /// `foreach (variable in items) body`.
    Foreach {
        /// Without the dollar sign.
        variable: String,
        /// What is gone through.
        items: Box<Statement>,
        /// What is done with each.
        body: Script,
    },
    /// `while`, and `do … while` or `do … until`.
    While {
        /// When to go on.
        condition: Box<Statement>,
        /// What is repeated.
        body: Script,
        /// Whether the body comes first.
        body_first: bool,
        /// `until`: the condition ends the loop.
        until: bool,
    },
    /// `for (start; condition; step) body`.
    For {
        /// Done once before.
        start: Option<Box<Statement>>,
        /// When to go on.
        condition: Option<Box<Statement>>,
        /// Done after each round.
        step: Option<Box<Statement>>,
        /// What is repeated.
        body: Script,
    },
    /// `try`, `catch`, `finally`.
    Try {
        /// What may fail.
        body: Script,
        /// What is done then.
        catches: Vec<Catch>,
        /// What is done in any case.
        finally: Option<Script>,
    },
    /// `return`, with what it gives.
    Return(Option<Box<Statement>>),
    /// `throw`, with what it throws.
    Throw(Option<Box<Statement>>),
    /// `exit`, with its code.
    Exit(Option<Box<Statement>>),
    /// `function name { … }`.
    Function {
        /// As written.
        name: String,
        /// What it does.
        body: Script,
    },
    /// `break`.
    Break,
    /// `continue`.
    Continue,
    /// Proper PowerShell which this shell does not carry out.
    Outside(&'static str),
}

/// One `catch`.
#[derive(Clone, Debug, PartialEq)]
pub struct Catch {
    /// Types of errors that it takes; all, if none is named.
    pub types: Vec<String>,
    /// What it does.
    pub body: Script,
}

/// Commands and expressions, each fed by the one before it.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// At least one; only the first may be an expression.
    pub elements: Vec<Element>,
    /// Where it stands.
    pub span: Span,
}

/// One part of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub enum Element {
    /// A value.
    Expression {
        /// The value.
        expr: Expr,
        /// Where its output goes instead.
        redirections: Vec<Redirection>,
    },
    /// A command with its arguments.
    Command(Command),
}

/// A command as it is written, before anything is bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// `&` or `.` before it.
    pub invocation: Option<Invocation>,
    /// The name, or what gives it.
    pub name: Expr,
    /// Parameters and arguments in the order of writing.
    pub arguments: Vec<Argument>,
    /// Where its output goes instead.
    pub redirections: Vec<Redirection>,
    /// Where it stands.
    pub span: Span,
}

/// How a command that is no plain name is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// `&`.
    Call,
    /// `.`: in the caller's scope.
    Dot,
}

/// One thing after a command's name.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// `-Name`, or `-Name:value`.
    Parameter {
        /// As written, without the dash.
        name: String,
        /// What follows the colon.
        value: Option<Expr>,
        /// Where the name stands.
        span: Span,
    },
    /// A value.
    Value(Expr),
    /// `@variable`.
    Splat {
        /// Without the at sign.
        variable: String,
        /// Where it stands.
        span: Span,
    },
}

/// Where a stream goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirection {
    /// 1 output, 2 errors, 3 warnings, 4 verbose, 5 debug, 6 information; none: all.
    pub stream: Option<u8>,
    /// `>>`.
    pub append: bool,
    /// A file, or `$null`; none: `&1`, the output.
    pub target: Option<Expr>,
    /// Where it stands.
    pub span: Span,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it computes.
    pub kind: ExprKind,
    /// Where it stands.
    pub span: Span,
}

/// The expressions that there are.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// A whole number, with its text: a string parameter gets the text.
    Integer(i64, String),
    /// Another number, with its text.
    Real(f64, String),
    /// Text without anything to expand.
    Text(String),
    /// Text with variables and `$(…)` in it.
    Expandable(Vec<Part>),
    /// A variable.
    Variable(Variable),
    /// `a, b`.
    List(Vec<Expr>),
    /// `$(…)`.
    Sub(Script),
    /// `@(…)`.
    Array(Script),
    /// `@{…}`.
    Hashtable(Vec<(Expr, Statement)>),
    /// `{…}`.
    Block(Box<Script>),
    /// `(…)`.
    Paren(Box<Statement>),
    /// `object.name`, or `type::name`.
    Member {
        /// Whose.
        object: Box<Expr>,
        /// Which.
        name: Box<Expr>,
        /// `::`.
        is_static: bool,
    },
    /// `object.name(arguments)`, or `type::name(arguments)`.
    Call {
        /// Whose.
        object: Box<Expr>,
        /// Which.
        name: Box<Expr>,
        /// With what.
        arguments: Vec<Expr>,
        /// `::`.
        is_static: bool,
    },
    /// `object[index]`.
    Index {
        /// Of what.
        object: Box<Expr>,
        /// Which, one or several.
        index: Box<Expr>,
    },
    /// `-not` and its kin.
    Unary(UnaryOp, Box<Expr>),
    /// `$x++` and its kin.
    Step {
        /// What changes.
        target: Box<Expr>,
        /// By which amount.
        by: i64,
        /// Whether the new value is the result.
        before: bool,
    },
    /// Two operands; `case` tells `-ceq` from `-eq`.
    Binary {
        /// Which.
        op: BinaryOp,
        /// Whether case matters.
        case: bool,
        /// The first operand.
        left: Box<Expr>,
        /// The second.
        right: Box<Expr>,
    },
    /// `[type]operand`.
    Cast(String, Box<Expr>),
    /// `[type]`.
    Type(String),
    /// `<what to fill in>`, as guides print it.
    Placeholder(String),
}

/// A piece of expandable text.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// As it stands.
    Text(String),
    /// A variable's value.
    Variable(Variable),
    /// The output of `$(…)`.
    Sub(Script),
    /// `<what to fill in>`.
    Placeholder(String),
}

/// The name of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// `env`, `using`, `script` and so on, in small letters.
    pub scope: Option<String>,
    /// As written.
    pub name: String,
    /// Where it stands.
    pub span: Span,
}

/// Operators with one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    /// `-not`, `!`.
    Not,
    /// `-bnot`.
    BitNot,
    /// `-`.
    Minus,
    /// `+`.
    Plus,
    /// `,`: a list of one.
    Comma,
    /// `-join`.
    Join,
    /// `-split`.
    Split,
}

/// Operators with two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the operator of its name")]
pub enum BinaryOp {
    And,
    Or,
    Xor,
    BitAnd,
    BitOr,
    BitXor,
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Like,
    NotLike,
    Match,
    NotMatch,
    Contains,
    NotContains,
    In,
    NotIn,
    Replace,
    Split,
    Join,
    Is,
    IsNot,
    As,
    ShiftLeft,
    ShiftRight,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Format,
    Range,
}
