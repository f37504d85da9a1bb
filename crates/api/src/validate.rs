//! Checks encoded messages against the rules of Envoy's `.proto` files (`validate/validate.proto`): what Envoy refuses to
//! load because of a single field's value is refused here with the path of that field.
//!
//! The bytes are walked once, without decoding them into types. A message inside of an `Any` is checked when its type is
//! known. The parts of a message that stands on the wire in several pieces (which no encoder writes) are checked each by
//! itself.

#[cfg(test)]
mod tests;
mod value;

use base::FieldError;
use prost::Name;
use prost_types::Any;

use crate::json::MAX_DEPTH;
use crate::rules::{Check, Rules};
use crate::table::{self, Field, Kind, Message};
use crate::wire::{Raw, Reader, malformed};

/// Checks the bytes of an `M`.
pub fn message<M: Name>(bytes: &[u8]) -> Result<(), FieldError> {
    let name = M::full_name();
    match table::message_by_name(&name) {
        Some(message) => check_message(message, bytes, MAX_DEPTH),
        None => Err(FieldError::new(format!("unknown type \"{name}\""))),
    }
}

/// Checks a packed message; one of an unknown type passes.
pub fn any(any: &Any) -> Result<(), FieldError> {
    check_any(any, MAX_DEPTH)
}

fn check_message(message: &'static Message, bytes: &[u8], depth: usize) -> Result<(), FieldError> {
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| FieldError::new(format!("nested deeper than {MAX_DEPTH}")))?;
    let mut seen = Seen::default();
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        let found = message.fields.iter().position(|f| f.number == number);
        let Some((index, field)) = found.and_then(|i| Some((i, message.fields.get(i)?))) else {
            continue;
        };
        seen.add(index);
        check_field(field, raw, depth).map_err(|error| {
            let before = bytes.len() - reader.0.len();
            locate(error, field, raw, bytes.get(..before).unwrap_or(bytes))
        })?;
    }
    for (index, field) in message.fields.iter().enumerate() {
        if let Some(rules) = field.rules {
            let whole = if seen.has(index) {
                check_count(field, rules, bytes)
            } else {
                check_absent(field, rules)
            };
            whole.map_err(|error| error.in_field(field.name))?;
        }
    }
    for (index, oneof) in message.oneofs.iter().enumerate() {
        if oneof.required {
            check_oneof(message, index, oneof.name, &seen)?;
        }
    }
    Ok(())
}

/// Which fields of a message were there, by their place in the table.
#[derive(Default)]
struct Seen([u128; 2]);

impl Seen {
    fn add(&mut self, index: usize) {
        if let Some(word) = self.0.get_mut(index / 128) {
            *word |= 1 << (index % 128);
        }
    }

    fn has(&self, index: usize) -> bool {
        let word = self.0.get(index / 128);
        word.is_some_and(|word| word >> (index % 128) & 1 == 1)
    }
}

fn check_oneof(message: &Message, oneof: usize, name: &str, seen: &Seen) -> Result<(), FieldError> {
    let members = || {
        let fields = message.fields.iter().enumerate();
        fields.filter(|(_, field)| field.oneof.map(usize::from) == Some(oneof))
    };
    if members().any(|(index, _)| seen.has(index)) {
        return Ok(());
    }
    let names: Vec<&str> = members().map(|(_, field)| field.name).collect();
    let text = format!("is required: one of {}", names.join(", "));
    Err(FieldError::at(name, text))
}

/// A field that is there: each of its values.
fn check_field(field: &Field, raw: Raw<'_>, depth: usize) -> Result<(), FieldError> {
    let rules = field.rules.unwrap_or(&Rules::NONE);
    if rules.disallowed {
        return Err(FieldError::new("is no longer part of Envoy's API"));
    }
    if let Some((key, value)) = field.map_entry() {
        return match raw {
            Raw::Bytes(entry) => check_entry((key, value), rules, entry, depth),
            _ => Err(malformed()),
        };
    }
    let rules = match &rules.check {
        Check::List(list) => list.items,
        _ if field.repeated => &Rules::NONE,
        _ => rules,
    };
    match (field.kind, raw) {
        (Kind::Message(index), Raw::Bytes(bytes)) => {
            check_nested(table::message(index), rules, bytes, depth)
        }
        (kind, Raw::Bytes(packed)) if field.repeated && kind.is_packable() => {
            if matches!(rules.check, Check::Nothing) {
                return Ok(());
            }
            let mut items = Reader(packed);
            let mut index = 0;
            while !items.0.is_empty() {
                let item = items.packed_item(kind)?;
                value::check(kind, rules, item).map_err(|error| error.in_index(index))?;
                index += 1;
            }
            Ok(())
        }
        (kind, raw) => value::check(kind, rules, raw),
    }
}

fn check_nested(
    message: &'static Message,
    rules: &Rules,
    bytes: &[u8],
    depth: usize,
) -> Result<(), FieldError> {
    match (message.name, &rules.check) {
        ("google.protobuf.Any", check) => {
            let (url, value) = any_parts(bytes)?;
            if let Check::Any(urls) = check
                && !urls.is_empty()
                && !urls.contains(&url)
            {
                let text = format!("\"{url}\" is not one of {}", urls.join(", "));
                return Err(FieldError::at("@type", text));
            }
            check_any_parts(url, value, depth)
        }
        ("google.protobuf.Duration", Check::Duration(bounds)) => value::duration(bounds, bytes),
        (_, Check::Nothing) if rules.skip || !message.has_rules => Ok(()),
        (_, Check::Nothing) => check_message(message, bytes, depth),
        // What is left has one field: a wrapper, whose rules are those of the value inside.
        (_, _) => {
            let [field] = message.fields else {
                return Ok(());
            };
            let mut reader = Reader(bytes);
            let mut raw = value::default(field.kind);
            while let Some((number, found)) = reader.field()? {
                if number == field.number {
                    raw = found;
                }
            }
            value::check(field.kind, rules, raw)
        }
    }
}

fn check_entry(
    (key_field, value_field): (&Field, &Field),
    rules: &Rules,
    entry: &[u8],
    depth: usize,
) -> Result<(), FieldError> {
    let (keys, values) = match &rules.check {
        Check::Map(map) => (map.keys, map.values),
        _ => (&Rules::NONE, &Rules::NONE),
    };
    let mut key = value::default(key_field.kind);
    let mut value = value::default(value_field.kind);
    let mut reader = Reader(entry);
    while let Some((number, raw)) = reader.field()? {
        match number {
            1 => key = raw,
            2 => value = raw,
            _ => {}
        }
    }
    value::check(key_field.kind, keys, key)?;
    match (value_field.kind, value) {
        (Kind::Message(index), Raw::Bytes(bytes)) => {
            check_nested(table::message(index), values, bytes, depth)
        }
        (kind, raw) => value::check(kind, values, raw),
    }
}

/// A field that is not there: as its default value, or as missing.
fn check_absent(field: &Field, rules: &Rules) -> Result<(), FieldError> {
    if field.oneof.is_some() {
        return Ok(());
    }
    if rules.required {
        return Err(FieldError::new("is required"));
    }
    match &rules.check {
        Check::List(list) if list.min > 0 && !rules.ignore_empty => Err(too_few(list.min)),
        Check::Map(map) if map.min > 0 && !rules.ignore_empty => Err(too_few(map.min)),
        _ if field.repeated || field.has_presence => Ok(()),
        _ => value::check(field.kind, rules, value::default(field.kind)),
    }
}

/// A list or map that is there: how many items, and whether one is there twice.
fn check_count(field: &Field, rules: &Rules, bytes: &[u8]) -> Result<(), FieldError> {
    let (min, max, unique) = match &rules.check {
        Check::List(list) => (list.min, list.max, list.unique),
        Check::Map(map) => (map.min, map.max, false),
        _ => return Ok(()),
    };
    if min <= 1 && max == usize::MAX && !unique {
        return Ok(());
    }
    let mut items = Vec::new();
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        match raw {
            _ if number != field.number => {}
            Raw::Bytes(packed) if field.kind.is_packable() => {
                let mut reader = Reader(packed);
                while !reader.0.is_empty() {
                    items.push(reader.packed_item(field.kind)?);
                }
            }
            raw => items.push(raw),
        }
    }
    if items.is_empty() && rules.ignore_empty {
        return Ok(());
    }
    if items.len() < min {
        return Err(too_few(min));
    }
    if items.len() > max {
        let text = format!("has {} items, at most {max} are allowed", items.len());
        return Err(FieldError::new(text));
    }
    if unique && let Some(index) = value::repeated(&items) {
        return Err(FieldError::new("is there twice").in_index(index));
    }
    Ok(())
}

fn too_few(min: usize) -> FieldError {
    let items = if min == 1 { "item" } else { "items" };
    FieldError::new(format!("must have at least {min} {items}"))
}

fn check_any(any: &Any, depth: usize) -> Result<(), FieldError> {
    check_any_parts(&any.type_url, &any.value, depth)
}

fn check_any_parts(url: &str, value: &[u8], depth: usize) -> Result<(), FieldError> {
    let Some(message) = url
        .rsplit_once('/')
        .and_then(|(_, name)| table::message_by_name(name))
    else {
        return Ok(());
    };
    if message.name.ends_with(".TypedStruct") {
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| FieldError::new(format!("nested deeper than {MAX_DEPTH}")))?;
        let any = Any {
            type_url: url.to_owned(),
            value: value.to_vec(),
        };
        // One of an unknown type is refused by who needs it.
        return match crate::any::resolve(&any) {
            Ok(resolved) if resolved.type_url != any.type_url => {
                check_any(&resolved, depth).map_err(|error| error.in_field("value"))
            }
            _ => Ok(()),
        };
    }
    if message.has_rules {
        check_message(message, value, depth)
    } else {
        Ok(())
    }
}

fn any_parts(bytes: &[u8]) -> Result<(&str, &[u8]), FieldError> {
    let mut url: &[u8] = &[];
    let mut value: &[u8] = &[];
    let mut reader = Reader(bytes);
    while let Some((number, raw)) = reader.field()? {
        match (number, raw) {
            (1, Raw::Bytes(bytes)) => url = bytes,
            (2, Raw::Bytes(bytes)) => value = bytes,
            (1 | 2, _) => return Err(malformed()),
            _ => {}
        }
    }
    let url = str::from_utf8(url).map_err(|_| FieldError::at("@type", "not UTF-8"))?;
    Ok((url, value))
}

/// Puts field, index and key before the path of an error. `read` is the message up to and with the wrong value.
fn locate(error: FieldError, field: &Field, raw: Raw<'_>, read: &[u8]) -> FieldError {
    let error = if let Some((key_field, _)) = field.map_entry() {
        error.in_key(&entry_key(key_field, raw))
    } else if field.repeated && !(field.kind.is_packable() && matches!(raw, Raw::Bytes(_))) {
        let mut earlier = 0;
        let mut reader = Reader(read);
        while let Ok(Some((number, _))) = reader.field() {
            earlier += usize::from(number == field.number);
        }
        error.in_index(earlier.saturating_sub(1))
    } else {
        error
    };
    error.in_field(field.name)
}

fn entry_key(key_field: &Field, entry: Raw<'_>) -> String {
    let mut key = String::new();
    if let Raw::Bytes(bytes) = entry {
        let mut reader = Reader(bytes);
        while let Ok(Some((number, raw))) = reader.field() {
            if number == key_field.number {
                key = match raw {
                    Raw::Bytes(text) => String::from_utf8_lossy(text).into_owned(),
                    Raw::Varint(number) | Raw::Fixed64(number) => number.to_string(),
                    Raw::Fixed32(number) => number.to_string(),
                };
            }
        }
    }
    key
}
