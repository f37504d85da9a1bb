//! Writes the descriptors that `api::json` and `api::validate` read, as Rust statics sorted by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use crate::rules::Options;

/// The source text of the tables `MESSAGES` and `ENUMS`.
pub(crate) fn generate(fds: &FileDescriptorSet, options: &Options) -> String {
    let mut messages = BTreeMap::new();
    let mut enums = BTreeMap::new();
    for file in &fds.file {
        for message in &file.message_type {
            collect(file.package(), message, &mut messages, &mut enums);
        }
        for item in &file.enum_type {
            enums.insert(qualified(file.package(), item.name()), item);
        }
    }
    let context = Context {
        messages: messages.keys().cloned().zip(0..).collect(),
        enums: enums.keys().cloned().zip(0..).collect(),
        with_rules: with_rules(&messages, options),
        options,
    };

    let mut out = String::from("pub(crate) static MESSAGES: &[Message] = &[\n");
    for (name, message) in &messages {
        write_message(&mut out, name, message, &context);
    }
    out.push_str("];\npub(crate) static ENUMS: &[Enum] = &[\n");
    for (name, item) in &enums {
        let _ = write!(out, "Enum {{ name: {name:?}, values: &[");
        for value in &item.value {
            let _ = write!(out, "({:?}, {}), ", value.name(), value.number());
        }
        out.push_str("] },\n");
    }
    out.push_str("];\n");
    out
}

struct Context<'a> {
    messages: BTreeMap<String, u16>,
    enums: BTreeMap<String, u16>,
    with_rules: BTreeSet<String>,
    options: &'a Options,
}

/// Messages that have rules, or may hold one that has: the others need no look when values are checked.
fn with_rules(
    messages: &BTreeMap<String, &DescriptorProto>,
    options: &Options,
) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = messages
        .iter()
        .filter(|(name, message)| {
            let mut fields = message.field.iter();
            let mut oneofs = message.oneof_decl.iter();
            *name == "google.protobuf.Any"
                || fields.any(|field| options.of_field(name, field.name()).is_some())
                || oneofs.any(|oneof| options.is_required(name, oneof.name()))
        })
        .map(|(name, _)| name.clone())
        .collect();
    loop {
        let known = found.len();
        for (name, message) in messages {
            let mut fields = message.field.iter();
            if fields.any(|field| found.contains(field.type_name().trim_start_matches('.'))) {
                found.insert(name.clone());
            }
        }
        if found.len() == known {
            return found;
        }
    }
}

/// A file may be in no package.
fn qualified(scope: &str, name: &str) -> String {
    if scope.is_empty() {
        name.to_owned()
    } else {
        format!("{scope}.{name}")
    }
}

fn collect<'a>(
    scope: &str,
    message: &'a DescriptorProto,
    messages: &mut BTreeMap<String, &'a DescriptorProto>,
    enums: &mut BTreeMap<String, &'a EnumDescriptorProto>,
) {
    let name = qualified(scope, message.name());
    for nested in &message.nested_type {
        collect(&name, nested, messages, enums);
    }
    for item in &message.enum_type {
        enums.insert(format!("{name}.{}", item.name()), item);
    }
    messages.insert(name, message);
}

fn write_message(out: &mut String, name: &str, message: &DescriptorProto, context: &Context<'_>) {
    let map_entry = message
        .options
        .as_ref()
        .is_some_and(|options| options.map_entry());
    let _ = write!(
        out,
        "Message {{ name: {name:?}, map_entry: {map_entry}, has_rules: {}, oneofs: &[",
        context.with_rules.contains(name)
    );
    for oneof in &message.oneof_decl {
        let required = context.options.is_required(name, oneof.name());
        let _ = write!(
            out,
            "Oneof {{ name: {:?}, required: {required} }}, ",
            oneof.name()
        );
    }
    out.push_str("], fields: &[\n");
    for field in &message.field {
        write_field(out, name, field, context);
    }
    out.push_str("] },\n");
}

fn write_field(
    out: &mut String,
    message: &str,
    field: &FieldDescriptorProto,
    context: &Context<'_>,
) {
    // The reader derives the JSON name from the original one; a name chosen by hand would be lost.
    assert_eq!(
        field.json_name(),
        lower_camel(field.name()),
        "custom json_name of {}",
        field.name()
    );
    let target = field.type_name().trim_start_matches('.');
    let kind = match field.r#type() {
        Type::Message => format!("Message({})", context.messages[target]),
        Type::Enum => format!("Enum({})", context.enums[target]),
        Type::Group => panic!("groups are not part of proto3"),
        scalar => format!("{scalar:?}"),
    };
    let repeated = field.label() == Label::Repeated;
    let synthetic = field.proto3_optional();
    let oneof = match field.oneof_index {
        Some(index) if !synthetic => format!("Some({index})"),
        _ => "None".to_owned(),
    };
    let has_presence =
        !repeated && (field.oneof_index.is_some() || field.r#type() == Type::Message);
    let rules = match context.options.of_field(message, field.name()) {
        Some(rules) => format!("Some(&{rules})"),
        None => "None".to_owned(),
    };
    let _ = writeln!(
        out,
        "Field {{ name: {:?}, number: {}, kind: Kind::{kind}, repeated: {repeated}, oneof: {oneof}, has_presence: {has_presence}, rules: {rules} }},",
        field.name(),
        field.number(),
    );
}

fn lower_camel(name: &str) -> String {
    let mut out = String::new();
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if upper {
            out.push(c.to_ascii_uppercase());
            upper = false;
        } else {
            out.push(c);
        }
    }
    out
}
