//! Hessian values as data.

use std::sync::Arc;

/// A decoded value. Containers are numbered in the order in which they open; [`Value::Ref`] holds
/// such a number and is never expanded, so shared and cyclic data stay small. Names of types,
/// classes and fields are shared with their definition, for the same reason.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`
    Null,
    /// boolean
    Bool(bool),
    /// 32-bit integer
    Int(i32),
    /// 64-bit integer
    Long(i64),
    /// floating point
    Double(f64),
    /// milliseconds since 1970
    Date(i64),
    /// text
    String(String),
    /// bytes
    Binary(Vec<u8>),
    /// list or array
    List {
        /// Java type, as in `[string`; `None` for ArrayList
        type_name: Option<Arc<str>>,
        /// items
        items: Vec<Value>,
    },
    /// map
    Map {
        /// Java type; `None` for HashMap
        type_name: Option<Arc<str>>,
        /// entries in their order
        entries: Vec<(Value, Value)>,
    },
    /// object of a class
    Object {
        /// Java class name
        class: Arc<str>,
        /// field names and values in the order of the class definition
        fields: Vec<(Arc<str>, Value)>,
    },
    /// the n-th container of the stream
    Ref(u32),
}

impl Value {
    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The number of an int or long.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Int(value) => Some(i64::from(*value)),
            Value::Long(value) => Some(*value),
            _ => None,
        }
    }

    /// The boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The field of an object, or the value of a map's string key.
    pub fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Object { fields, .. } => fields
                .iter()
                .find(|(field, _)| &**field == name)
                .map(|(_, value)| value),
            Value::Map { entries, .. } => entries
                .iter()
                .find(|(key, _)| key.as_str() == Some(name))
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// The items of a list.
    pub fn items(&self) -> Option<&[Value]> {
        match self {
            Value::List { items, .. } => Some(items),
            _ => None,
        }
    }

    /// An untyped list, Java's ArrayList.
    pub fn list(items: Vec<Value>) -> Value {
        Value::List {
            type_name: None,
            items,
        }
    }

    /// An untyped map, Java's HashMap.
    pub fn map(entries: Vec<(Value, Value)>) -> Value {
        Value::Map {
            type_name: None,
            entries,
        }
    }

    /// An untyped map of strings.
    pub fn string_map<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
        Value::map(
            pairs
                .into_iter()
                .map(|(key, value)| (Value::from(key), Value::from(value)))
                .collect(),
        )
    }

    /// A Java `String[]`.
    pub fn string_array<'a>(items: impl IntoIterator<Item = &'a str>) -> Value {
        Value::List {
            type_name: Some("[string".into()),
            items: items.into_iter().map(Value::from).collect(),
        }
    }

    /// An object of `class`.
    pub fn object<'a>(class: &str, fields: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
        Value::Object {
            class: class.into(),
            fields: fields
                .into_iter()
                .map(|(name, value)| (name.into(), value))
                .collect(),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::String(text)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Value {
        Value::Int(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Long(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}
