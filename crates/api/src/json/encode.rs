//! JSON to protobuf bytes.

use base::FieldError;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::MAX_DEPTH;
use crate::table::{self, Field, Kind, Message};
use crate::time;
use crate::wire::{WireType, put_bytes, put_key, put_varint, zigzag};

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// The bytes of a message of the given type.
pub(super) fn message(message: &Message, value: &Value) -> Result<Vec<u8>, FieldError> {
    let mut out = Vec::new();
    put_message(message, value, MAX_DEPTH, &mut out)?;
    Ok(out)
}

fn put_message(
    message: &Message,
    value: &Value,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| FieldError::new(format!("nested deeper than {MAX_DEPTH}")))?;
    match message.name {
        "google.protobuf.Any" => put_any(value, depth, out),
        "google.protobuf.Duration" => {
            let text = string(value)?;
            let (seconds, nanos) = time::parse_duration(text)
                .ok_or_else(|| wrong("a duration such as \"1.5s\"", value))?;
            put_seconds(seconds, nanos, out);
            Ok(())
        }
        "google.protobuf.Timestamp" => {
            let text = string(value)?;
            let (seconds, nanos) =
                time::parse_timestamp(text).ok_or_else(|| wrong("an RFC 3339 time", value))?;
            put_seconds(seconds, nanos, out);
            Ok(())
        }
        "google.protobuf.Struct" => put_struct(object(value)?, depth, out),
        "google.protobuf.Value" => put_value(value, depth, out),
        "google.protobuf.ListValue" => match value {
            Value::Array(items) => put_list(items, depth, out),
            _ => Err(wrong("a list", value)),
        },
        "google.protobuf.BoolValue"
        | "google.protobuf.BytesValue"
        | "google.protobuf.DoubleValue"
        | "google.protobuf.FloatValue"
        | "google.protobuf.Int32Value"
        | "google.protobuf.Int64Value"
        | "google.protobuf.StringValue"
        | "google.protobuf.UInt32Value"
        | "google.protobuf.UInt64Value" => match message.fields {
            [field] => put_single(field, value, depth, out),
            _ => Err(FieldError::new("malformed wrapper type")),
        },
        _ => put_fields(message, object(value)?, depth, out),
    }
}

fn put_fields(
    message: &Message,
    object: &Map<String, Value>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    let mut given: Vec<(&Field, &str)> = Vec::with_capacity(object.len());
    for (key, value) in object {
        if key == "@type" {
            continue;
        }
        let field = message.field(key).ok_or_else(|| {
            FieldError::at(key, format!("unknown field \"{key}\" of {}", message.name))
        })?;
        if value.is_null() && !takes_null(field.kind) {
            continue;
        }
        for (earlier, earlier_key) in &given {
            if earlier.number == field.number {
                return Err(FieldError::at(
                    key,
                    format!("the same field as \"{earlier_key}\""),
                ));
            }
            if let Some(index) = field.oneof
                && field.oneof == earlier.oneof
            {
                let oneof = message
                    .oneofs
                    .get(usize::from(index))
                    .map_or("", |oneof| oneof.name);
                let text = format!(
                    "conflicts with \"{earlier_key}\": only one of oneof \"{oneof}\" may be set"
                );
                return Err(FieldError::at(key, text));
            }
        }
        given.push((field, key));
        put_field(field, value, depth, out).map_err(|error| error.in_field(key))?;
    }
    Ok(())
}

/// Whether `null` is a value of the type rather than the absence of the field.
fn takes_null(kind: Kind) -> bool {
    match kind {
        Kind::Message(index) => table::message(index).name == "google.protobuf.Value",
        _ => false,
    }
}

fn put_field(
    field: &Field,
    value: &Value,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    if let Some((key_field, value_field)) = field.map_entry() {
        for (key, item) in object(value)? {
            let mut entry = Vec::new();
            put_map_key(key_field, key, depth, &mut entry)
                .and_then(|()| put_single(value_field, item, depth, &mut entry))
                .map_err(|error| error.in_key(key))?;
            put_bytes(out, field.number, &entry);
        }
        return Ok(());
    }
    if !field.repeated {
        return put_single(field, value, depth, out);
    }
    let Value::Array(items) = value else {
        return Err(wrong("a list", value));
    };
    for (index, item) in items.iter().enumerate() {
        if item.is_null() && !takes_null(field.kind) {
            return Err(FieldError::new("null in a list").in_index(index));
        }
        put_single(field, item, depth, out).map_err(|error| error.in_index(index))?;
    }
    Ok(())
}

fn put_map_key(
    field: &Field,
    key: &str,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    let value = match (field.kind, key) {
        (Kind::Bool, "true") => Value::Bool(true),
        (Kind::Bool, "false") => Value::Bool(false),
        _ => Value::String(key.to_owned()),
    };
    put_single(field, &value, depth, out)
}

/// One value with its key.
fn put_single(
    field: &Field,
    value: &Value,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    let number = field.number;
    let varint = |out: &mut Vec<u8>, value: u64| {
        put_key(out, number, WireType::Varint);
        put_varint(out, value);
    };
    let fixed32 = |out: &mut Vec<u8>, value: [u8; 4]| {
        put_key(out, number, WireType::Fixed32);
        out.extend_from_slice(&value);
    };
    let fixed64 = |out: &mut Vec<u8>, value: [u8; 8]| {
        put_key(out, number, WireType::Fixed64);
        out.extend_from_slice(&value);
    };
    match field.kind {
        Kind::Double => fixed64(out, float(value)?.to_le_bytes()),
        Kind::Float => {
            let wide = float(value)?;
            let narrow = wide as f32;
            if narrow.is_infinite() && wide.is_finite() {
                return Err(wrong("a number in the range of float", value));
            }
            fixed32(out, narrow.to_le_bytes());
        }
        Kind::Int32 => varint(out, i64::from(integer::<i32>(value)?) as u64),
        Kind::Int64 => varint(out, integer::<i64>(value)? as u64),
        Kind::Uint32 => varint(out, u64::from(integer::<u32>(value)?)),
        Kind::Uint64 => varint(out, integer::<u64>(value)?),
        Kind::Sint32 => varint(out, zigzag(i64::from(integer::<i32>(value)?))),
        Kind::Sint64 => varint(out, zigzag(integer::<i64>(value)?)),
        Kind::Fixed32 => fixed32(out, integer::<u32>(value)?.to_le_bytes()),
        Kind::Fixed64 => fixed64(out, integer::<u64>(value)?.to_le_bytes()),
        Kind::Sfixed32 => fixed32(out, integer::<i32>(value)?.to_le_bytes()),
        Kind::Sfixed64 => fixed64(out, integer::<i64>(value)?.to_le_bytes()),
        Kind::Bool => match value {
            Value::Bool(value) => varint(out, u64::from(*value)),
            _ => return Err(wrong("true or false", value)),
        },
        Kind::String => put_bytes(out, number, string(value)?.as_bytes()),
        Kind::Bytes => {
            let text = string(value)?;
            let bytes = STANDARD
                .decode(text)
                .or_else(|_| URL_SAFE.decode(text))
                .map_err(|_| wrong("base64", value))?;
            put_bytes(out, number, &bytes);
        }
        Kind::Enum(index) => varint(out, i64::from(enum_number(index, value)?) as u64),
        Kind::Message(index) => {
            let mut inner = Vec::new();
            put_message(table::message(index), value, depth, &mut inner)?;
            put_bytes(out, number, &inner);
        }
    }
    Ok(())
}

fn enum_number(index: u16, value: &Value) -> Result<i32, FieldError> {
    let item = table::enumeration(index);
    match value {
        Value::Null if item.name == "google.protobuf.NullValue" => Ok(0),
        Value::String(name) => item.number(name).ok_or_else(|| {
            let names: Vec<&str> = item.values.iter().map(|(name, _)| *name).collect();
            FieldError::new(format!(
                "unknown value \"{name}\": expected one of {}",
                names.join(", ")
            ))
        }),
        Value::Number(_) => {
            let number = integer::<i32>(value)?;
            // Envoy's field validation refuses numbers that the enum does not define.
            item.value_name(number)
                .map(|_| number)
                .ok_or_else(|| FieldError::new(format!("{number} is no value of {}", item.name)))
        }
        _ => Err(wrong("the name of an enum value", value)),
    }
}

fn put_any(value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), FieldError> {
    let fields = object(value)?;
    if fields.is_empty() {
        return Ok(());
    }
    let url = match fields.get("@type") {
        Some(Value::String(url)) => url,
        Some(other) => return Err(wrong("a type URL", other).in_field("@type")),
        None => return Err(FieldError::new("\"@type\" is missing")),
    };
    let message = url
        .rsplit_once('/')
        .and_then(|(_, name)| table::message_by_name(name))
        .ok_or_else(|| FieldError::at("@type", format!("unknown type \"{url}\"")))?;
    let mut inner = Vec::new();
    if has_special_form(message.name) {
        match fields.get("value") {
            Some(value) => put_message(message, value, depth, &mut inner)
                .map_err(|error| error.in_field("value"))?,
            None => {
                return Err(FieldError::new(format!(
                    "\"value\" of {} is missing",
                    message.name
                )));
            }
        }
    } else {
        put_message(message, value, depth, &mut inner)?;
    }
    put_bytes(out, 1, url.as_bytes());
    put_bytes(out, 2, &inner);
    Ok(())
}

/// Whether the type's JSON form is not an object of its fields, so that an `Any` has it under `value`.
pub(super) fn has_special_form(name: &str) -> bool {
    name.strip_prefix("google.protobuf.").is_some_and(|name| {
        matches!(
            name,
            "Any" | "Duration" | "Timestamp" | "Struct" | "Value" | "ListValue"
        ) || name.ends_with("Value")
    })
}

fn put_struct(
    object: &Map<String, Value>,
    depth: usize,
    out: &mut Vec<u8>,
) -> Result<(), FieldError> {
    for (key, item) in object {
        let mut entry = Vec::new();
        put_bytes(&mut entry, 1, key.as_bytes());
        let mut inner = Vec::new();
        nested_value(item, depth, &mut inner).map_err(|error| error.in_field(key))?;
        put_bytes(&mut entry, 2, &inner);
        put_bytes(out, 1, &entry);
    }
    Ok(())
}

fn put_list(items: &[Value], depth: usize, out: &mut Vec<u8>) -> Result<(), FieldError> {
    for (index, item) in items.iter().enumerate() {
        let mut inner = Vec::new();
        nested_value(item, depth, &mut inner).map_err(|error| error.in_index(index))?;
        put_bytes(out, 1, &inner);
    }
    Ok(())
}

fn nested_value(value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), FieldError> {
    // Each level of JSON is two messages (Struct or ListValue, then Value), which decoders count.
    let depth = depth
        .checked_sub(2)
        .ok_or_else(|| FieldError::new(format!("nested deeper than {MAX_DEPTH}")))?;
    put_value(value, depth, out)
}

fn put_value(value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), FieldError> {
    match value {
        Value::Null => {
            put_key(out, 1, WireType::Varint);
            put_varint(out, 0);
        }
        Value::Number(_) => {
            put_key(out, 2, WireType::Fixed64);
            out.extend_from_slice(&float(value)?.to_le_bytes());
        }
        Value::String(text) => put_bytes(out, 3, text.as_bytes()),
        Value::Bool(value) => {
            put_key(out, 4, WireType::Varint);
            put_varint(out, u64::from(*value));
        }
        Value::Object(fields) => {
            let mut inner = Vec::new();
            put_struct(fields, depth, &mut inner)?;
            put_bytes(out, 5, &inner);
        }
        Value::Array(items) => {
            let mut inner = Vec::new();
            put_list(items, depth, &mut inner)?;
            put_bytes(out, 6, &inner);
        }
    }
    Ok(())
}

fn put_seconds(seconds: i64, nanos: i32, out: &mut Vec<u8>) {
    if seconds != 0 {
        put_key(out, 1, WireType::Varint);
        put_varint(out, seconds as u64);
    }
    if nanos != 0 {
        put_key(out, 2, WireType::Varint);
        put_varint(out, i64::from(nanos) as u64);
    }
}

fn object(value: &Value) -> Result<&Map<String, Value>, FieldError> {
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(wrong("an object", value)),
    }
}

fn string(value: &Value) -> Result<&str, FieldError> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err(wrong("a string", value)),
    }
}

fn integer<T: TryFrom<i128> + Integer>(value: &Value) -> Result<T, FieldError> {
    let exact = match value {
        Value::Number(number) => number.as_i128().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => text
            .parse::<i128>()
            .ok()
            .or_else(|| text.parse::<f64>().ok().and_then(whole)),
        _ => None,
    };
    exact
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| wrong(T::NAME, value))
}

fn whole(number: f64) -> Option<i128> {
    // Beyond 2^64 no integer type fits, and the conversion below stays exact.
    (number.fract() == 0.0 && number.abs() <= 2f64.powi(64)).then_some(number as i128)
}

trait Integer {
    const NAME: &'static str;
}

impl Integer for i32 {
    const NAME: &'static str = "a 32-bit integer";
}

impl Integer for u32 {
    const NAME: &'static str = "an integer from 0 to 4294967295";
}

impl Integer for i64 {
    const NAME: &'static str = "a 64-bit integer";
}

impl Integer for u64 {
    const NAME: &'static str = "a 64-bit integer not below 0";
}

fn float(value: &Value) -> Result<f64, FieldError> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            text => text.parse::<f64>().ok().filter(|number| number.is_finite()),
        },
        _ => None,
    }
    .ok_or_else(|| wrong("a number", value))
}

/// `expected X, found Y`, with the value shortened.
fn wrong(expected: &str, value: &Value) -> FieldError {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => {
            let text = scalar.to_string();
            if text.chars().count() > 80 {
                text.chars().take(80).chain("…".chars()).collect()
            } else {
                text
            }
        }
    };
    FieldError::new(format!("expected {expected}, found {found}"))
}
