//! Writes the descriptors that `api::json` reads, as Rust statics sorted by name.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// The source text of the tables `MESSAGES` and `ENUMS`.
pub(crate) fn generate(fds: &FileDescriptorSet) -> String {
    let mut messages = BTreeMap::new();
    let mut enums = BTreeMap::new();
    for file in &fds.file {
        for message in &file.message_type {
            collect(file.package(), message, &mut messages, &mut enums);
        }
        for item in &file.enum_type {
            enums.insert(format!("{}.{}", file.package(), item.name()), item);
        }
    }
    let indices = Indices {
        messages: messages.keys().cloned().zip(0..).collect(),
        enums: enums.keys().cloned().zip(0..).collect(),
    };

    let mut out = String::from("pub(super) static MESSAGES: &[Message] = &[\n");
    for (name, message) in &messages {
        write_message(&mut out, name, message, &indices);
    }
    out.push_str("];\npub(super) static ENUMS: &[Enum] = &[\n");
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

struct Indices {
    messages: BTreeMap<String, u16>,
    enums: BTreeMap<String, u16>,
}

fn collect<'a>(
    scope: &str,
    message: &'a DescriptorProto,
    messages: &mut BTreeMap<String, &'a DescriptorProto>,
    enums: &mut BTreeMap<String, &'a EnumDescriptorProto>,
) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, messages, enums);
    }
    for item in &message.enum_type {
        enums.insert(format!("{name}.{}", item.name()), item);
    }
    messages.insert(name, message);
}

fn write_message(out: &mut String, name: &str, message: &DescriptorProto, indices: &Indices) {
    let map_entry = message
        .options
        .as_ref()
        .is_some_and(|options| options.map_entry());
    let _ = write!(
        out,
        "Message {{ name: {name:?}, map_entry: {map_entry}, oneofs: &["
    );
    for oneof in &message.oneof_decl {
        let _ = write!(out, "{:?}, ", oneof.name());
    }
    out.push_str("], fields: &[\n");
    for field in &message.field {
        write_field(out, field, indices);
    }
    out.push_str("] },\n");
}

fn write_field(out: &mut String, field: &FieldDescriptorProto, indices: &Indices) {
    // The reader derives the JSON name from the original one; a name chosen by hand would be lost.
    assert_eq!(
        field.json_name(),
        lower_camel(field.name()),
        "custom json_name of {}",
        field.name()
    );
    let target = field.type_name().trim_start_matches('.');
    let kind = match field.r#type() {
        Type::Message => format!("Message({})", indices.messages[target]),
        Type::Enum => format!("Enum({})", indices.enums[target]),
        Type::Group => panic!("groups are not part of proto3"),
        scalar => format!("{scalar:?}"),
    };
    let repeated = field.label() == Label::Repeated;
    let synthetic = field.proto3_optional();
    let oneof = match field.oneof_index {
        Some(index) if !synthetic => format!("Some({index})"),
        _ => "None".to_owned(),
    };
    let _ = writeln!(
        out,
        "Field {{ name: {:?}, number: {}, kind: Kind::{kind}, repeated: {repeated}, oneof: {oneof} }},",
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
