//! What goes wrong while a script runs, as PowerShell keeps and prints it.

use std::{
    fmt::Write as _,
    ops::{Deref, DerefMut},
    rc::Rc,
};

use crate::{
    bind::BindError,
    syntax::{Span, SyntaxError},
    value::{Object, Value, convert},
};

/// What a cmdlet or a piece of script gives: nothing, or why what follows is not carried out.
pub type Outcome<T = ()> = Result<T, Stop>;

/// Why the rest of a script is not carried out.
pub enum Stop {
    /// An error that ends the statement, until something catches it.
    Error(ErrorRecord),
    /// `break`.
    Break,
    /// `continue`.
    Continue,
    /// `return`; its value has been written.
    Return,
    /// `exit`.
    Exit(i32),
    /// A later part of the pipeline with this number has enough.
    Enough(usize),
}

/// The kind of an error, by PowerShell's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is PowerShell's category of its name")]
pub enum Category {
    NotSpecified,
    OpenError,
    DeviceError,
    InvalidArgument,
    InvalidData,
    InvalidOperation,
    InvalidResult,
    InvalidType,
    MetadataError,
    NotImplemented,
    NotInstalled,
    ObjectNotFound,
    OperationStopped,
    OperationTimeout,
    ParserError,
    PermissionDenied,
    ReadError,
    ResourceBusy,
    ResourceExists,
    ResourceUnavailable,
    SecurityError,
    WriteError,
    ConnectionError,
    AuthenticationError,
    LimitsExceeded,
    NotEnabled,
}

/// An error with what PowerShell shows of it: its [`Details`].
#[derive(Clone)]
pub struct ErrorRecord(Box<Details>);

/// What is known of an error.
#[derive(Clone)]
pub struct Details {
    /// In the field's terms, with what to do next.
    pub message: String,
    /// The first part of its FullyQualifiedErrorId.
    pub id: String,
    /// Its kind.
    pub category: Category,
    /// The .NET type of its exception, the last part: `ItemNotFoundException`.
    pub exception: String,
    /// What it is about.
    pub target: Option<Value>,
    /// The cmdlet that failed, as the rest of the identifier and before the message.
    pub activity: String,
    /// What follows the comma of the identifier.
    pub source: String,
    /// Where in the script.
    pub place: Option<Place>,
    /// Whether it ends the whole script, not its statement alone.
    pub ends_script: bool,
    /// What `throw` threw, if no text.
    pub thrown: Option<Value>,
}

/// A place in a script.
#[derive(Clone)]
pub struct Place {
    /// The whole text.
    pub text: Rc<str>,
    /// The part of it.
    pub span: Span,
    /// The file's name, if it came from one.
    pub file: Option<Rc<str>>,
}

impl Deref for ErrorRecord {
    type Target = Details;

    fn deref(&self) -> &Details {
        &self.0
    }
}

impl DerefMut for ErrorRecord {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.0
    }
}

impl ErrorRecord {
    /// An error of this kind; `id` is what stands first in the FullyQualifiedErrorId.
    pub fn new(category: Category, id: &str, message: impl Into<String>) -> ErrorRecord {
        ErrorRecord(Box::new(Details {
            message: message.into(),
            id: id.to_owned(),
            category,
            exception: match category {
                Category::ObjectNotFound => "ItemNotFoundException",
                Category::InvalidArgument => "ArgumentException",
                Category::PermissionDenied => "UnauthorizedAccessException",
                Category::NotImplemented => "NotSupportedException",
                Category::InvalidOperation => "InvalidOperationException",
                Category::ReadError | Category::WriteError | Category::ResourceExists => "IOException",
                Category::ParserError => "ParentContainsErrorRecordException",
                _ => "Exception",
            }
            .to_owned(),
            target: None,
            activity: String::new(),
            source: String::new(),
            place: None,
            ends_script: false,
            thrown: None,
        }))
    }

    /// With what it is about.
    pub fn about(mut self, target: Value) -> ErrorRecord {
        self.target = Some(target);
        self
    }

    /// With the .NET type of its exception.
    pub fn exception(mut self, name: &str) -> ErrorRecord {
        self.exception = name.to_owned();
        self
    }

    /// Something of PowerShell that this shell does not carry out.
    pub fn outside(what: impl std::fmt::Display) -> ErrorRecord {
        ErrorRecord::new(
            Category::NotImplemented,
            "OutsideOfThisShell",
            format!("{what} is PowerShell, but outside of what this shell carries out."),
        )
    }

    /// What does not parse.
    pub fn syntax(error: &SyntaxError, text: Rc<str>, file: Option<Rc<str>>) -> ErrorRecord {
        let mut record = ErrorRecord::new(Category::ParserError, "ParserError", error.message.clone());
        let span = error.span;
        record.place = Some(Place { text, span, file });
        record
    }

    /// What does not bind.
    pub fn binding(error: &BindError) -> ErrorRecord {
        let mut record = ErrorRecord::new(Category::InvalidArgument, error.id, error.message.clone());
        record.exception = match error.id {
            "ParameterArgumentValidationError" => "ParameterBindingValidationException",
            _ => "ParameterBindingException",
        }
        .to_owned();
        if error.id.starts_with("CannotConvert") || error.id.starts_with("ParameterArgument") {
            record.category = Category::InvalidData;
        }
        record
    }

    /// Ends the statement with it.
    pub fn stop(self) -> Stop {
        Stop::Error(self)
    }

    /// `ArgumentNullException,Get-Item`.
    pub fn full_id(&self) -> String {
        match self.source.is_empty() {
            true => self.id.clone(),
            false => format!("{},{}", self.id, self.source),
        }
    }

    /// `ObjectNotFound: (C:\x:String) [Get-Item], ItemNotFoundException`.
    pub fn category_info(&self) -> String {
        let target = match &self.target {
            None => ":".to_owned(),
            Some(value) => format!("{}:{}", shortened(&convert::to_text(value)), value.type_name()),
        };
        format!(
            "{:?}: ({target}) [{}], {}",
            self.category, self.activity, self.exception
        )
    }

    /// As PowerShell 5.1 prints it.
    pub fn display(&self) -> String {
        let mut text = String::new();
        let parser = self.category == Category::ParserError;
        let head = match self.activity.is_empty() {
            true => self.message.clone(),
            false => format!("{} : {}", self.activity, self.message),
        };
        if !parser {
            let _ = writeln!(text, "{head}");
        }
        if let Some(place) = &self.place {
            let _ = writeln!(text, "{place}");
        }
        if parser {
            let _ = writeln!(text, "{head}");
        }
        let _ = writeln!(text, "    + CategoryInfo          : {}", self.category_info());
        let _ = write!(text, "    + FullyQualifiedErrorId : {}", self.full_id());
        text
    }

    /// As scripts see it in `$Error`, `$_` and `-ErrorVariable`.
    pub fn to_value(&self) -> Value {
        let exception = Object::new(&self.exception, [("Message", Value::text(&self.message))]);
        exception.hidden.borrow_mut().set(
            "ToString",
            Value::text(format!("{}: {}", qualified(&self.exception), self.message)),
        );
        let category = Object::new(
            "ErrorCategoryInfo",
            [
                ("Category", Value::text(format!("{:?}", self.category))),
                ("Activity", Value::text(&self.activity)),
                ("Reason", Value::text(&self.exception)),
            ],
        );
        category
            .hidden
            .borrow_mut()
            .set("ToString", Value::text(self.category_info()));
        let record = Object::new(
            "ErrorRecord",
            [
                ("Exception", Value::Object(Rc::new(exception))),
                (
                    "TargetObject",
                    self.thrown.clone().or(self.target.clone()).unwrap_or(Value::Null),
                ),
                ("CategoryInfo", Value::Object(Rc::new(category))),
                ("FullyQualifiedErrorId", Value::text(self.full_id())),
                ("InvocationInfo", self.invocation()),
            ],
        );
        let mut hidden = record.hidden.borrow_mut();
        hidden.set("ToString", Value::text(&self.message));
        hidden.set("Display", Value::text(self.display()));
        hidden.set("Exception", Value::text(&self.exception));
        drop(hidden);
        Value::Object(Rc::new(record))
    }

    fn invocation(&self) -> Value {
        let Some(place) = &self.place else { return Value::Null };
        let position = place.span.position(&place.text);
        let number = |n: usize| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
        Value::object(
            "InvocationInfo",
            [
                ("MyCommand", Value::text(&self.activity)),
                ("ScriptLineNumber", number(position.line)),
                ("OffsetInLine", number(position.column)),
                ("Line", Value::text(place.line())),
                ("ScriptName", Value::text(place.file.as_deref().unwrap_or_default())),
                ("PositionMessage", Value::text(place.to_string())),
            ],
        )
    }
}

impl Place {
    fn line(&self) -> &str {
        let start = self
            .text
            .get(..self.span.start)
            .and_then(|b| b.rfind('\n'))
            .map_or(0, |at| at + 1);
        let rest = self.text.get(start..).unwrap_or_default();
        rest.split('\n').next().unwrap_or_default().trim_end_matches('\r')
    }
}

/// `At line:1 char:5` with the line and what of it is meant.
impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let position = self.span.position(&self.text);
        match &self.file {
            Some(file) => writeln!(f, "At {file}:{} char:{}", position.line, position.column)?,
            None => writeln!(f, "At line:{} char:{}", position.line, position.column)?,
        }
        let line = self.line();
        writeln!(f, "+ {line}")?;
        let width = self
            .span
            .text(&self.text)
            .split('\n')
            .next()
            .unwrap_or_default()
            .trim_end()
            .chars()
            .count();
        write!(f, "+ {}{}", " ".repeat(position.column - 1), "~".repeat(width.max(1)))
    }
}

/// What stands for a long text.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= 40 {
        return text.to_owned();
    }
    let head: String = text.chars().take(18).collect();
    let tail: String = text.chars().skip(count - 18).collect();
    format!("{head}...{tail}")
}

/// With its name space, for those that scripts are likely to print.
fn qualified(exception: &str) -> String {
    match exception {
        "ItemNotFoundException" | "CommandNotFoundException" | "ParameterBindingException" | "RuntimeException" => {
            format!("System.Management.Automation.{exception}")
        }
        "IOException" => "System.IO.IOException".to_owned(),
        other => format!("System.{other}"),
    }
}
