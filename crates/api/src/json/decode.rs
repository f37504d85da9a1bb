//! Protobuf bytes to JSON.

use base::FieldError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::MAX_DEPTH;
use super::encode::has_special_form;
use crate::table::{self, Field, Kind, Message};
use crate::time;
use crate::wire::{Raw, Reader, malformed, unzigzag};

/// The JSON form of the bytes of a message of the given type.
pub(super) fn message(message: &Message, bytes: &[u8]) -> Result<Value, FieldError> {
    get_message(message, bytes, MAX_DEPTH)
}

fn get_message(message: &Message, bytes: &[u8], depth: usize) -> Result<Value, FieldError> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| FieldError::new(format!("nested deeper than {MAX_DEPTH}")))?;
    match message.name {
        "google.protobuf.Any" => get_any(bytes, depth),
        "google.protobuf.Duration" => {
            let (seconds, nanos) = get_seconds(bytes)?;
            Ok(Value::String(time::format_duration(seconds, nanos)))
        }
        "google.protobuf.Timestamp" => {
            let (seconds, nanos) = get_seconds(bytes)?;
            Ok(Value::String(time::format_timestamp(seconds, nanos)))
        }
        "google.protobuf.Struct" => get_struct(bytes, depth),
        "google.protobuf.Value" => get_value(bytes, depth),
        "google.protobuf.ListValue" => get_list(bytes, depth),
        name if has_special_form(name) => get_wrapper(message, bytes, depth),
        _ => get_fields(message, bytes, depth).map(Value::Object),
    }
}

fn get_fields(
    message: &Message,
    bytes: &[u8],
    depth: usize,
) -> Result<Map<String, Value>, FieldError> {
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        if let Some(field) = message.field_by_number(number) {
            get_field(field, raw, depth, &mut object)
                .map_err(|error| error.in_field(field.name))?;
        }
    }
    Ok(object)
}

fn get_field(
    field: &Field,
    raw: Raw<'_>,
    depth: usize,
    object: &mut Map<String, Value>,
) -> Result<(), FieldError> {
    if let Some((key_field, value_field)) = field.map_entry() {
        let Raw::Bytes(bytes) = raw else {
            return Err(malformed());
        };
        let (key, value) = get_entry(key_field, value_field, bytes, depth)?;
        let slot = object
            .entry(field.name)
            .or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(entries) = slot {
            entries.insert(key, value);
        }
    } else if field.repeated {
        let slot = object
            .entry(field.name)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(items) = slot {
            match raw {
                Raw::Bytes(packed) if field.kind.is_packable() => {
                    let mut reader = Reader(packed);
                    while !reader.0.is_empty() {
                        let raw = reader.packed_item(field.kind)?;
                        items.push(get_single(field.kind, raw, depth)?);
                    }
                }
                raw => items.push(get_single(field.kind, raw, depth)?),
            }
        }
    } else {
        object.insert(field.name.to_owned(), get_single(field.kind, raw, depth)?);
    }
    Ok(())
}

fn get_entry(
    key_field: &Field,
    value_field: &Field,
    bytes: &[u8],
    depth: usize,
) -> Result<(String, Value), FieldError> {
    let mut key = default_value(key_field.kind);
    let mut value = None;
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        match number {
            1 => key = get_single(key_field.kind, raw, depth)?,
            2 => value = Some(get_single(value_field.kind, raw, depth)?),
            _ => {}
        }
    }
    let key = match key {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let value = match (value, value_field.kind) {
        (Some(value), _) => value,
        (None, Kind::Message(index)) => get_message(table::message(index), &[], depth)?,
        (None, kind) => default_value(kind),
    };
    Ok((key, value))
}

fn default_value(kind: Kind) -> Value {
    match kind {
        Kind::String | Kind::Bytes => Value::String(String::new()),
        Kind::Bool => Value::Bool(false),
        Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => {
            Value::String("0".to_owned())
        }
        Kind::Enum(index) => enum_value(index, 0),
        Kind::Message(_) => Value::Object(Map::new()),
        Kind::Double
        | Kind::Float
        | Kind::Int32
        | Kind::Uint32
        | Kind::Sint32
        | Kind::Fixed32
        | Kind::Sfixed32 => Value::from(0),
    }
}

fn get_single(kind: Kind, raw: Raw<'_>, depth: usize) -> Result<Value, FieldError> {
    Ok(match (kind, raw) {
        (Kind::Double, Raw::Fixed64(bits)) => float_value(f64::from_bits(bits)),
        (Kind::Float, Raw::Fixed32(bits)) => {
            let narrow = f32::from_bits(bits);
            // By its shortest text, so that 0.1 does not become 0.10000000149011612.
            float_value(narrow.to_string().parse().unwrap_or(f64::from(narrow)))
        }
        (Kind::Int32, Raw::Varint(value)) => Value::from(value as i32),
        (Kind::Uint32, Raw::Varint(value)) => Value::from(value as u32),
        (Kind::Sint32, Raw::Varint(value)) => Value::from(unzigzag(value) as i32),
        (Kind::Fixed32, Raw::Fixed32(value)) => Value::from(value),
        (Kind::Sfixed32, Raw::Fixed32(value)) => Value::from(value as i32),
        (Kind::Int64, Raw::Varint(value)) => Value::String((value as i64).to_string()),
        (Kind::Uint64, Raw::Varint(value)) => Value::String(value.to_string()),
        (Kind::Sint64, Raw::Varint(value)) => Value::String(unzigzag(value).to_string()),
        (Kind::Fixed64, Raw::Fixed64(value)) => Value::String(value.to_string()),
        (Kind::Sfixed64, Raw::Fixed64(value)) => Value::String((value as i64).to_string()),
        (Kind::Bool, Raw::Varint(value)) => Value::Bool(value != 0),
        (Kind::String, Raw::Bytes(bytes)) => Value::String(
            str::from_utf8(bytes)
                .map_err(|_| FieldError::new("not UTF-8"))?
                .to_owned(),
        ),
        (Kind::Bytes, Raw::Bytes(bytes)) => Value::String(STANDARD.encode(bytes)),
        (Kind::Enum(index), Raw::Varint(value)) => enum_value(index, value as i32),
        (Kind::Message(index), Raw::Bytes(bytes)) => {
            get_message(table::message(index), bytes, depth)?
        }
        _ => return Err(malformed()),
    })
}

fn enum_value(index: u16, number: i32) -> Value {
    let item = table::enumeration(index);
    match item.value_name(number) {
        Some(_) if item.name == "google.protobuf.NullValue" => Value::Null,
        Some(name) => Value::String(name.to_owned()),
        None => Value::from(number),
    }
}

fn float_value(number: f64) -> Value {
    if number.is_nan() {
        Value::String("NaN".to_owned())
    } else if number.is_infinite() {
        Value::String(
            if number > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            }
            .to_owned(),
        )
    } else if number.fract() == 0.0 && number.abs() < 2f64.powi(53) {
        // Integral values without ".0", as protobuf's own printers write them.
        Value::from(number as i64)
    } else {
        Value::from(number)
    }
}

fn get_wrapper(message: &Message, bytes: &[u8], depth: usize) -> Result<Value, FieldError> {
    let Some(field) = message.fields.first() else {
        return Err(malformed());
    };
    let mut value = default_value(field.kind);
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        if number == field.number {
            value = get_single(field.kind, raw, depth)?;
        }
    }
    Ok(value)
}

fn get_any(bytes: &[u8], depth: usize) -> Result<Value, FieldError> {
    let mut url = "";
    let mut inner: &[u8] = &[];
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        match (number, raw) {
            (1, Raw::Bytes(bytes)) => {
                url = str::from_utf8(bytes).map_err(|_| FieldError::at("@type", "not UTF-8"))?
            }
            (2, Raw::Bytes(bytes)) => inner = bytes,
            (1 | 2, _) => return Err(malformed()),
            _ => {}
        }
    }
    let mut object = Map::new();
    if url.is_empty() {
        return Ok(Value::Object(object));
    }
    object.insert("@type".to_owned(), Value::String(url.to_owned()));
    match url
        .rsplit_once('/')
        .and_then(|(_, name)| table::message_by_name(name))
    {
        Some(message) if has_special_form(message.name) => {
            object.insert("value".to_owned(), get_message(message, inner, depth)?);
        }
        Some(message) => {
            let depth = depth
                .checked_sub(1)
                .ok_or_else(|| FieldError::new(format!("nested deeper than {MAX_DEPTH}")))?;
            object.extend(get_fields(message, inner, depth)?);
        }
        // A type of somebody else is still worth showing.
        None => {
            object.insert("value".to_owned(), Value::String(STANDARD.encode(inner)));
        }
    }
    Ok(Value::Object(object))
}

fn get_seconds(bytes: &[u8]) -> Result<(i64, i32), FieldError> {
    let mut seconds = 0;
    let mut nanos = 0;
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        match (number, raw) {
            (1, Raw::Varint(value)) => seconds = value as i64,
            (2, Raw::Varint(value)) => nanos = value as i32,
            (1 | 2, _) => return Err(malformed()),
            _ => {}
        }
    }
    Ok((seconds, nanos))
}

fn get_struct(bytes: &[u8], depth: usize) -> Result<Value, FieldError> {
    let mut object = Map::new();
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        if number != 1 {
            continue;
        }
        let Raw::Bytes(entry) = raw else {
            return Err(malformed());
        };
        let mut key = String::new();
        let mut value = Value::Null;
        let mut reader = Reader(entry);
        while let Some((number, raw)) = reader.field()? {
            match (number, raw) {
                (1, Raw::Bytes(bytes)) => {
                    key = str::from_utf8(bytes)
                        .map_err(|_| FieldError::new("not UTF-8"))?
                        .to_owned();
                }
                (2, Raw::Bytes(bytes)) => value = nested_value(bytes, depth)?,
                _ => return Err(malformed()),
            }
        }
        object.insert(key, value);
    }
    Ok(Value::Object(object))
}

fn get_list(bytes: &[u8], depth: usize) -> Result<Value, FieldError> {
    let mut items = Vec::new();
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        match (number, raw) {
            (1, Raw::Bytes(bytes)) => items.push(nested_value(bytes, depth)?),
            (1, _) => return Err(malformed()),
            _ => {}
        }
    }
    Ok(Value::Array(items))
}

fn nested_value(bytes: &[u8], depth: usize) -> Result<Value, FieldError> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| FieldError::new(format!("nested deeper than {MAX_DEPTH}")))?;
    get_value(bytes, depth)
}

fn get_value(bytes: &[u8], depth: usize) -> Result<Value, FieldError> {
    let mut value = Value::Null;
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        value = match (number, raw) {
            (1, Raw::Varint(_)) => Value::Null,
            (2, Raw::Fixed64(bits)) => float_value(f64::from_bits(bits)),
            (3, Raw::Bytes(bytes)) => Value::String(
                str::from_utf8(bytes)
                    .map_err(|_| FieldError::new("not UTF-8"))?
                    .to_owned(),
            ),
            (4, Raw::Varint(value)) => Value::Bool(value != 0),
            (5, Raw::Bytes(bytes)) => get_struct(bytes, depth)?,
            (6, Raw::Bytes(bytes)) => get_list(bytes, depth)?,
            (1..=6, _) => return Err(malformed()),
            _ => continue,
        };
    }
    Ok(value)
}
