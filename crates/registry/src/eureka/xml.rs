//! XML in the form of the JSON that says the same: `<port enabled="true">80</port>` is `{"@enabled": "true", "$": "80"}`.

use quick_xml::Reader;
use quick_xml::XmlVersion;
use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::{BytesStart, Event};
use serde_json::{Map, Value};

use crate::naming::Malformed;

/// Elements within elements; Eureka has five.
const DEPTH: usize = 32;
/// Elements that may come more than once.
const LISTS: [&str; 2] = ["application", "instance"];
const TEXT: &str = "$";

struct Open {
    name: String,
    content: Map<String, Value>,
    text: String,
}

impl Open {
    fn start(start: &BytesStart<'_>) -> Result<Open, Malformed> {
        let mut content = Map::new();
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|e| malformed(&e))?;
            let value = attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .map_err(|e| malformed(&e))?;
            content.insert(format!("@{}", attribute.key.0), Value::from(value.as_ref()));
        }
        Ok(Open {
            name: start.name().0.to_owned(),
            content,
            text: String::new(),
        })
    }

    fn end(self) -> (String, Value) {
        let Open {
            name,
            mut content,
            text,
        } = self;
        if content.is_empty() {
            return (name, Value::from(text));
        }
        let text = text.trim();
        if !text.is_empty() {
            content.insert(TEXT.to_owned(), Value::from(text));
        }
        (name, Value::Object(content))
    }

    fn add(&mut self, name: String, value: Value) {
        if LISTS.contains(&name.as_str()) {
            let list = self
                .content
                .entry(name)
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(elements) = list {
                elements.push(value);
            }
        } else {
            self.content.insert(name, value);
        }
    }
}

fn malformed(error: &impl ToString) -> Malformed {
    Malformed::new(error.to_string())
}

/// Reads a document as an object with its root.
pub(crate) fn parse(text: &str) -> Result<Value, Malformed> {
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Open> = Vec::new();
    loop {
        let closed = match reader.read_event().map_err(|e| malformed(&e))? {
            Event::Start(start) => {
                if open.len() >= DEPTH {
                    return Err(Malformed::new("its elements are nested too deeply"));
                }
                open.push(Open::start(&start)?);
                continue;
            }
            Event::Empty(start) => Open::start(&start)?,
            // The reader has compared the names.
            Event::End(_) => open
                .pop()
                .ok_or_else(|| Malformed::new("an element ends that did not begin"))?,
            Event::Text(more) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&more.xml10_content());
                }
                continue;
            }
            Event::CData(more) => {
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&more.xml10_content());
                }
                continue;
            }
            Event::GeneralRef(reference) => {
                let known = match reference.resolve_char_ref().map_err(|e| malformed(&e))? {
                    Some(char) => char.to_string(),
                    None => resolve_predefined_entity(&reference)
                        .ok_or_else(|| Malformed::new("it has an entity of its own"))?
                        .to_owned(),
                };
                if let Some(element) = open.last_mut() {
                    element.text.push_str(&known);
                }
                continue;
            }
            Event::DocType(_) => return Err(Malformed::new("it has a document type")),
            Event::Eof => return Err(Malformed::new("it ends too soon")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => continue,
        };
        let (name, value) = closed.end();
        match open.last_mut() {
            Some(parent) => parent.add(name, value),
            None => return Ok(Value::Object([(name, value)].into_iter().collect())),
        }
    }
}

/// Writes an object as the content of an element.
pub(crate) fn write(root: &str, content: &Value) -> String {
    let mut out = String::new();
    element(&mut out, root, content);
    out
}

fn element(out: &mut String, name: &str, value: &Value) {
    if !is_name(name) {
        return;
    }
    match value {
        Value::Array(elements) => {
            for value in elements {
                element(out, name, value);
            }
            return;
        }
        Value::Null => return,
        _ => {}
    }
    out.push('<');
    out.push_str(name);
    let mut children: Vec<(&str, &Value)> = Vec::new();
    let mut text = None;
    match value {
        Value::Object(content) => {
            for (key, value) in content {
                match key.strip_prefix('@') {
                    Some(attribute) => {
                        let value = plain(value);
                        out.push_str(&format!(" {attribute}=\"{}\"", legal(&value)));
                    }
                    None if key == TEXT => text = Some(plain(value)),
                    None => children.push((key, value)),
                }
            }
        }
        other => text = Some(plain(other)),
    }
    out.push('>');
    if let Some(text) = text {
        out.push_str(&legal(&text));
    }
    for (key, value) in children {
        element(out, key, value);
    }
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Escaped, without characters that no XML can have.
fn legal(text: &str) -> String {
    let is_legal = |c: &char| !c.is_control() || matches!(c, '\t' | '\n' | '\r');
    let text: String = text
        .chars()
        .filter(|c| is_legal(c) && !matches!(c, '\u{fffe}' | '\u{ffff}'))
        .collect();
    escape(text.as_str()).into_owned()
}

/// Whether an element can have this name; a key of metadata can be anything.
fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_alphabetic() || c == '_';
    name.starts_with(first)
        && name
            .chars()
            .all(|c| first(c) || c.is_ascii_digit() || matches!(c, '.' | '-'))
}
