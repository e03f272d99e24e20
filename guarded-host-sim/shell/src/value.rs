//! What variables hold, and what becomes of it where a parameter or a cast wants something else.

pub mod convert;
mod date;
mod secret;

use std::{cell::RefCell, rc::Rc};

pub use date::Date;
pub use secret::Secret;

use crate::syntax::ast::Script;

/// A value. Lists, hashtables and objects are shared: what changes one is seen by all who hold it.
#[derive(Clone)]
pub enum Value {
    /// `$null`.
    Null,
    /// `$true`, `$false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Real(f64),
    /// Text.
    Text(Rc<str>),
    /// Bytes.
    Bytes(Rc<[u8]>),
    /// A point in time.
    Date(Date),
    /// Several values.
    List(Rc<RefCell<Vec<Value>>>),
    /// Names with values.
    Table(Rc<RefCell<Entries>>),
    /// An object.
    Object(Rc<Object>),
    /// Text that is not shown.
    Secret(Rc<Secret>),
    /// A block of script.
    Block(Rc<Block>),
    /// A type.
    Type(Rc<str>),
}

/// Names with values in the order in which they were added; case does not matter.
#[derive(Clone, Default)]
pub struct Entries(Vec<(String, Value)>);

/// An object: what it is called, and its properties.
pub struct Object {
    /// The last part of its type's name, `HgsServerConfiguration` say; the most special first.
    pub types: Vec<Rc<str>>,
    /// Its properties.
    pub properties: RefCell<Entries>,
    /// What only cmdlets and methods see: the text of a document, the bytes of a key protector.
    pub hidden: RefCell<Entries>,
}

/// A block of script with the text that it stands in.
pub struct Block {
    /// What it does.
    pub script: Script,
    /// The whole text.
    pub source: Rc<str>,
    /// The name of the file that it came from.
    pub file: Option<Rc<str>>,
}

impl Entries {
    /// The value under this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0
            .iter()
            .find(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Adds or replaces.
    pub fn set(&mut self, name: &str, value: Value) {
        match self.0.iter_mut().find(|(own, _)| own.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Takes away.
    pub fn remove(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(own, _)| own.eq_ignore_ascii_case(name))?;
        Some(self.0.remove(at).1)
    }

    /// All, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<String>> FromIterator<(N, Value)> for Entries {
    fn from_iter<I: IntoIterator<Item = (N, Value)>>(items: I) -> Entries {
        Entries(items.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

impl Object {
    /// An object of this type.
    pub fn new<N: Into<String>>(kind: &str, properties: impl IntoIterator<Item = (N, Value)>) -> Object {
        Object {
            types: vec![kind.into()],
            properties: RefCell::new(properties.into_iter().collect()),
            hidden: RefCell::default(),
        }
    }

    /// The most special of its types.
    pub fn kind(&self) -> &str {
        self.types.first().map_or("Object", |name| name)
    }

    /// Whether it is of this type.
    pub fn is(&self, kind: &str) -> bool {
        self.types.iter().any(|own| own.eq_ignore_ascii_case(kind))
    }

    /// A property.
    pub fn get(&self, name: &str) -> Option<Value> {
        self.properties.borrow().get(name).cloned()
    }
}

impl Value {
    /// Text.
    pub fn text(text: impl AsRef<str>) -> Value {
        Value::Text(text.as_ref().into())
    }

    /// Several values.
    pub fn list(items: Vec<Value>) -> Value {
        Value::List(Rc::new(RefCell::new(items)))
    }

    /// Names with values.
    pub fn table(entries: Entries) -> Value {
        Value::Table(Rc::new(RefCell::new(entries)))
    }

    /// An object.
    pub fn object<N: Into<String>>(kind: &str, properties: impl IntoIterator<Item = (N, Value)>) -> Value {
        Value::Object(Rc::new(Object::new(kind, properties)))
    }

    /// What a pipeline gives: nothing, the one value, or a list.
    pub fn from_output(mut output: Vec<Value>) -> Value {
        match output.len() {
            0 => Value::Null,
            1 => output.remove(0),
            _ => Value::list(output),
        }
    }

    /// One by one: the items of a list, nothing for `$null`, else the value itself.
    pub fn each(&self) -> Vec<Value> {
        match self {
            Value::Null => Vec::new(),
            Value::List(items) => items.borrow().clone(),
            other => vec![other.clone()],
        }
    }

    /// The name of its type, the last part only.
    pub fn type_name(&self) -> String {
        match self {
            Value::Null => "Null".to_owned(),
            Value::Bool(_) => "Boolean".to_owned(),
            Value::Int(value) if i32::try_from(*value).is_ok() => "Int32".to_owned(),
            Value::Int(_) => "Int64".to_owned(),
            Value::Real(_) => "Double".to_owned(),
            Value::Text(_) => "String".to_owned(),
            Value::Bytes(_) => "Byte[]".to_owned(),
            Value::Date(_) => "DateTime".to_owned(),
            Value::List(_) => "Object[]".to_owned(),
            Value::Table(_) => "Hashtable".to_owned(),
            Value::Object(object) => object.kind().to_owned(),
            Value::Secret(_) => "SecureString".to_owned(),
            Value::Block(_) => "ScriptBlock".to_owned(),
            Value::Type(_) => "RuntimeType".to_owned(),
        }
    }

    /// Whether a condition takes it for true.
    pub fn is_true(&self) -> bool {
        match self {
            Value::Null => false,
            Value::Bool(value) => *value,
            Value::Int(value) => *value != 0,
            Value::Real(value) => *value != 0.0,
            Value::Text(text) => !text.is_empty(),
            Value::Bytes(bytes) => match &**bytes {
                [] => false,
                [one] => *one != 0,
                _ => true,
            },
            Value::List(items) => match items.borrow().as_slice() {
                [] => false,
                [one] => one.is_true(),
                _ => true,
            },
            _ => true,
        }
    }
}
