//! Reads the rules that protoc-gen-validate knows (`validate/validate.proto`) from the options of fields and oneofs, and
//! writes them as expressions of the types in `src/rules.rs`.
//!
//! A rule that has no counterpart there fails the build: none is dropped unseen.

use std::fmt::Write as _;

use protox::prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, Value,
};

/// The options that carry rules.
pub(crate) struct Options {
    pool: DescriptorPool,
    rules: ExtensionDescriptor,
    oneof_required: ExtensionDescriptor,
    disallowed: ExtensionDescriptor,
}

impl Options {
    pub(crate) fn new(pool: DescriptorPool) -> Self {
        let extension = |name: &str| {
            pool.get_extension_by_name(name)
                .unwrap_or_else(|| panic!("no extension {name}"))
        };
        Self {
            rules: extension("validate.rules"),
            oneof_required: extension("validate.required"),
            disallowed: extension("envoy.annotations.disallowed_by_default"),
            pool,
        }
    }

    /// An expression of type `Rules`, if there are any for this field of a message.
    pub(crate) fn of_field(&self, message: &str, field: &str) -> Option<String> {
        let options = self
            .pool
            .get_message_by_name(message)?
            .get_field_by_name(field)?
            .options();
        let mut parts = String::new();
        if options.has_extension(&self.disallowed) {
            parts.push_str("disallowed: true, ");
        }
        if options.has_extension(&self.rules)
            && let Value::Message(rules) = &*options.get_extension(&self.rules)
        {
            parts.push_str(&field_rules(rules));
        }
        (!parts.is_empty()).then(|| format!("Rules {{ {parts}..Rules::NONE }}"))
    }

    /// Whether one field of this oneof must be there.
    pub(crate) fn is_required(&self, message: &str, oneof: &str) -> bool {
        let message = self.pool.get_message_by_name(message);
        message
            .into_iter()
            .flat_map(|message| message.oneofs().collect::<Vec<_>>())
            .filter(|given| given.name() == oneof)
            .any(|given| *given.options().get_extension(&self.oneof_required) == Value::Bool(true))
    }
}

fn field_rules(rules: &DynamicMessage) -> String {
    let mut out = String::new();
    for (kind, value) in rules.fields() {
        let Value::Message(value) = value else {
            panic!("{kind:?} is no message");
        };
        for (rule, given) in value.fields() {
            let is_flag = matches!(rule.name(), "required" | "skip" | "ignore_empty");
            if is_flag && *given == Value::Bool(true) {
                let _ = write!(out, "{}: true, ", rule.name());
            }
        }
        let check = match kind.name() {
            "message" => None,
            "uint32" | "uint64" | "fixed32" | "fixed64" => Some(("Unsigned", bounds(value))),
            "int32" | "int64" | "sint32" | "sint64" | "sfixed32" | "sfixed64" => {
                Some(("Signed", bounds(value)))
            }
            "float" | "double" => Some(("Float", bounds(value))),
            "duration" => Some(("Duration", bounds(value))),
            "enum" => Some(("Enum", numbers(value))),
            "string" => Some(("Text", text(value))),
            "bytes" => Some(("Bytes", lengths(value))),
            "repeated" => Some(("List", list(value))),
            "map" => Some(("Map", map(value))),
            "any" => Some(("Any", any(value))),
            "bool" => Some(("Bool", boolean(value))),
            other => panic!("rules for {other} are not known"),
        };
        if let Some((name, fields)) = check {
            let _ = write!(out, "check: Check::{name}({fields}), ");
        }
    }
    out
}

/// `given`'s rules that are no flag of the field, by name.
fn rules_of(given: &DynamicMessage) -> impl Iterator<Item = (FieldDescriptor, &Value)> {
    given
        .fields()
        .filter(|(rule, _)| !matches!(rule.name(), "required" | "skip" | "ignore_empty"))
}

fn bounds(given: &DynamicMessage) -> String {
    let mut out = String::from("Bounds { ");
    for (rule, value) in rules_of(given) {
        let _ = match rule.name() {
            name @ ("gt" | "gte" | "lt" | "lte") => {
                write!(out, "{name}: Some({}), ", number(value))
            }
            "const" => write!(out, "one_of: &[{}], ", number(value)),
            "in" => write!(out, "one_of: &[{}], ", items(value, number)),
            "not_in" => write!(out, "none_of: &[{}], ", items(value, number)),
            other => panic!("rule {other} is not known"),
        };
    }
    out + "..Bounds::ANY }"
}

fn numbers(given: &DynamicMessage) -> String {
    let mut out = String::from("Numbers { ");
    for (rule, value) in rules_of(given) {
        let _ = match rule.name() {
            "defined_only" => write!(out, "defined_only: {}, ", value == &Value::Bool(true)),
            "const" => write!(out, "one_of: &[{}], ", number(value)),
            "in" => write!(out, "one_of: &[{}], ", items(value, number)),
            "not_in" => write!(out, "none_of: &[{}], ", items(value, number)),
            other => panic!("rule {other} is not known"),
        };
    }
    out + "..Numbers::ANY }"
}

fn text(given: &DynamicMessage) -> String {
    let mut out = String::from("Text { ");
    let strict = !given
        .fields()
        .any(|(rule, value)| rule.name() == "strict" && value == &Value::Bool(false));
    for (rule, value) in rules_of(given) {
        let _ = match rule.name() {
            name @ ("min_len" | "max_len" | "min_bytes" | "max_bytes") => {
                write!(out, "{name}: Some({}), ", number(value))
            }
            name @ ("prefix" | "suffix") => write!(out, "{name}: {}, ", literal(value)),
            "const" => write!(out, "one_of: &[{}], ", literal(value)),
            "in" => write!(out, "one_of: &[{}], ", items(value, literal)),
            "not_in" => write!(out, "none_of: &[{}], ", items(value, literal)),
            "well_known_regex" => {
                let class = match (value, strict) {
                    (Value::EnumNumber(1), true) => "HeaderName",
                    (Value::EnumNumber(2), true) => "HeaderValue",
                    (Value::EnumNumber(1 | 2), false) => "OneLine",
                    other => panic!("well-known regex {other:?}"),
                };
                write!(out, "class: Some(Class::{class}), ")
            }
            "pattern" => {
                let class = pattern(value.as_str().unwrap_or_default());
                write!(out, "class: Some(Class::{class}), ")
            }
            // Envoy's generated code does not look at it either.
            "uri" | "strict" => Ok(()),
            other => panic!("rule {other} is not known"),
        };
    }
    out + "..Text::ANY }"
}

/// The class of a pattern; there are few, and an engine for regular expressions would not earn its place.
fn pattern(pattern: &str) -> String {
    if pattern == "^[^?#]+[^?#/]$" {
        return "PathPrefix".to_owned();
    }
    let extras = pattern
        .strip_prefix("^[0-9a-zA-Z")
        .and_then(|rest| rest.strip_suffix("]+$"))
        .unwrap_or_else(|| panic!("pattern {pattern} is not known"));
    format!("AlphanumericOr({:?})", extras.replace('\\', ""))
}

fn lengths(given: &DynamicMessage) -> String {
    let mut out = String::from("Lengths { ");
    for (rule, value) in rules_of(given) {
        let _ = match rule.name() {
            "min_len" => write!(out, "min: {}, ", number(value)),
            "max_len" => write!(out, "max: {}, ", number(value)),
            other => panic!("rule {other} is not known"),
        };
    }
    out + "..Lengths::ANY }"
}

fn list(given: &DynamicMessage) -> String {
    let mut out = String::from("List { ");
    for (rule, value) in rules_of(given) {
        let _ = match (rule.name(), value) {
            ("min_items", _) => write!(out, "min: {}, ", number(value)),
            ("max_items", _) => write!(out, "max: {}, ", number(value)),
            ("unique", _) => write!(out, "unique: {}, ", value == &Value::Bool(true)),
            ("items", Value::Message(rules)) => write!(out, "items: {}, ", nested(rules)),
            (other, _) => panic!("rule {other} is not known"),
        };
    }
    out + "..List::ANY }"
}

fn map(given: &DynamicMessage) -> String {
    let mut out = String::from("Map { ");
    for (rule, value) in rules_of(given) {
        let _ = match (rule.name(), value) {
            ("min_pairs", _) => write!(out, "min: {}, ", number(value)),
            ("max_pairs", _) => write!(out, "max: {}, ", number(value)),
            ("keys", Value::Message(rules)) => write!(out, "keys: {}, ", nested(rules)),
            ("values", Value::Message(rules)) => write!(out, "values: {}, ", nested(rules)),
            (other, _) => panic!("rule {other} is not known"),
        };
    }
    out + "..Map::ANY }"
}

fn nested(rules: &DynamicMessage) -> String {
    format!("&Rules {{ {}..Rules::NONE }}", field_rules(rules))
}

fn any(given: &DynamicMessage) -> String {
    let mut out = String::from("&[");
    for (rule, value) in rules_of(given) {
        match rule.name() {
            "in" => out.push_str(&items(value, literal)),
            other => panic!("rule {other} is not known"),
        }
    }
    out + "]"
}

fn boolean(given: &DynamicMessage) -> String {
    let mut rules = rules_of(given);
    match rules.next() {
        Some((rule, Value::Bool(value))) if rule.name() == "const" => value.to_string(),
        other => panic!("rule {other:?} is not known"),
    }
}

fn number(value: &Value) -> String {
    match value {
        Value::U32(number) => number.to_string(),
        Value::U64(number) => number.to_string(),
        Value::I32(number) => number.to_string(),
        Value::I64(number) => number.to_string(),
        Value::F32(number) => format!("{number:?}"),
        Value::F64(number) => format!("{number:?}"),
        Value::Message(duration) => {
            let part = |name: &str| {
                let value = duration.get_field_by_name(name);
                value.map_or_else(|| "0".to_owned(), |value| number(&value))
            };
            format!("({}, {})", part("seconds"), part("nanos"))
        }
        other => panic!("{other:?} is no number"),
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        other => panic!("{other:?} is no string"),
    }
}

fn items(value: &Value, write: fn(&Value) -> String) -> String {
    match value {
        Value::List(items) => items.iter().map(write).collect::<Vec<_>>().join(", "),
        other => panic!("{other:?} is no list"),
    }
}
