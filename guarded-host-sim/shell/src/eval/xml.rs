//! XML documents as PowerShell shows them: elements and attributes are properties.

use std::rc::Rc;

use uppsala::{Document, NodeId, NodeKind, Parser};

use crate::value::{Entries, Object, Value};

/// A document of this text. Its bytes are kept as they are: `.InnerXml`, `.OuterXml` and `.Save()` give them back.
///
/// # Errors
/// It is no XML.
pub fn document(text: &str) -> Result<Value, String> {
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let parser = Parser::new()
        .with_max_depth(64)
        .with_max_entity_expansion(1 << 20)
        .with_forbid_dtd(true);
    let document = parser.parse(text).map_err(|error| error.to_string())?;
    let root = document.document_element().ok_or("Root element is missing.")?;
    let name = document
        .element(root)
        .map(|e| e.name.local_name.to_string())
        .unwrap_or_default();
    let element = element(&document, root, 0);
    let object = Object::new("XmlDocument", [(name.as_str(), element.clone())]);
    let mut hidden = object.hidden.borrow_mut();
    hidden.set("OuterXml", Value::text(text));
    hidden.set("InnerXml", Value::text(text));
    hidden.set("InnerText", Value::text(document.text_content_deep(root)));
    hidden.set("DocumentElement", element);
    hidden.set("ToString", Value::text("#document"));
    drop(hidden);
    Ok(Value::Object(Rc::new(object)))
}

/// A document with nothing in it, to be loaded.
pub(crate) fn empty() -> Value {
    let object = Object::new::<String>("XmlDocument", std::iter::empty());
    object.hidden.borrow_mut().set("OuterXml", Value::text(""));
    object.hidden.borrow_mut().set("InnerXml", Value::text(""));
    Value::Object(Rc::new(object))
}

fn element(document: &Document<'_>, id: NodeId, depth: usize) -> Value {
    let own = document.element(id);
    let name = own.map(|e| e.name.local_name.to_string()).unwrap_or_default();
    let mut properties = Entries::default();
    for attribute in own.map(|e| e.attributes.as_slice()).unwrap_or_default() {
        add(
            &mut properties,
            &attribute.name.local_name,
            Value::text(&*attribute.value),
        );
    }
    let mut inner = String::new();
    let mut text = String::new();
    for child in document.children_iter(id) {
        inner.push_str(&document.node_to_xml(child));
        match document.node_kind(child) {
            Some(NodeKind::Element(child_element)) if depth < 64 => {
                let name = child_element.name.local_name.to_string();
                let value = match plain(document, child) {
                    Some(text) => Value::text(text),
                    None => element(document, child, depth + 1),
                };
                add(&mut properties, &name, value);
            }
            Some(NodeKind::Text(own) | NodeKind::CData(own)) => text.push_str(own),
            _ => {}
        }
    }
    if !text.trim().is_empty() {
        properties.set("#text", Value::text(text.trim()));
    }
    let object = Object::new("XmlElement", std::iter::empty::<(String, Value)>());
    *object.properties.borrow_mut() = properties;
    let mut hidden = object.hidden.borrow_mut();
    hidden.set("OuterXml", Value::text(document.node_to_xml(id)));
    hidden.set("InnerXml", Value::text(inner));
    hidden.set("InnerText", Value::text(document.text_content_deep(id)));
    hidden.set("LocalName", Value::text(&name));
    hidden.set("ToString", Value::text(name));
    drop(hidden);
    Value::Object(Rc::new(object))
}

/// The text of an element without anything else.
fn plain(document: &Document<'_>, id: NodeId) -> Option<String> {
    let own = document.element(id)?;
    let mut text = String::new();
    for child in document.children_iter(id) {
        match document.node_kind(child) {
            Some(NodeKind::Text(part) | NodeKind::CData(part)) => text.push_str(part),
            _ => return None,
        }
    }
    own.attributes.is_empty().then_some(text)
}

fn add(properties: &mut Entries, name: &str, value: Value) {
    let all = match properties.get(name) {
        None => value,
        Some(Value::List(items)) => {
            items.borrow_mut().push(value);
            return;
        }
        Some(other) => Value::list(vec![other.clone(), value]),
    };
    properties.set(name, all);
}
