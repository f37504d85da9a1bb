//! The protobuf JSON mapping (<https://protobuf.dev/programming-guides/json/>) over static tables.
//!
//! Input may use lowerCamelCase or original field names; output uses original names, as Envoy's config dump does. An
//! `Any` is written as its message with `@type`. Every error names the path of the wrong field.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use base::FieldError;
use prost::{Message, Name};
use serde_json::Value;

use crate::table;

/// How deep messages, lists and `Any`s may be nested in one another.
pub(crate) const MAX_DEPTH: usize = 100;

/// A message type that the tables know.
#[derive(Debug, Clone, Copy)]
pub struct MessageType(&'static table::Message);

impl MessageType {
    /// The type of a full name, as `envoy.config.route.v3.Route`.
    pub fn by_name(name: &str) -> Option<Self> {
        table::message_by_name(name).map(Self)
    }

    /// The type of a type URL, as `type.googleapis.com/envoy.config.route.v3.Route`; any host is accepted.
    pub fn by_url(url: &str) -> Option<Self> {
        url.rsplit_once('/')
            .and_then(|(_, name)| Self::by_name(name))
    }

    /// Full name with package.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Whether there is a field of this name, original or lowerCamelCase.
    pub fn has_field(self, name: &str) -> bool {
        self.0.field(name).is_some()
    }
}

/// Reads a message from its JSON form.
pub fn from_value<M: Message + Name + Default>(value: &Value) -> Result<M, FieldError> {
    let bytes = encode(&M::full_name(), value)?;
    M::decode(bytes.as_slice()).map_err(|error| FieldError::new(error.to_string()))
}

/// Writes a message in its JSON form.
pub fn to_value<M: Message + Name>(message: &M) -> Result<Value, FieldError> {
    decode(&M::full_name(), &message.encode_to_vec())
}

/// From the JSON form of a message to its protobuf bytes.
pub fn encode(type_name: &str, value: &Value) -> Result<Vec<u8>, FieldError> {
    encode::message(message_type(type_name)?, value)
}

/// From the protobuf bytes of a message to its JSON form. Fields that the tables do not know are left out.
pub fn decode(type_name: &str, bytes: &[u8]) -> Result<Value, FieldError> {
    decode::message(message_type(type_name)?, bytes)
}

/// The JSON form of a `google.protobuf.Struct`.
pub fn struct_to_value(value: &prost_types::Struct) -> Result<Value, FieldError> {
    decode("google.protobuf.Struct", &value.encode_to_vec())
}

/// Reads a `google.protobuf.Struct`, which may be any JSON object.
pub fn struct_from_value(value: &Value) -> Result<prost_types::Struct, FieldError> {
    let bytes = encode("google.protobuf.Struct", value)?;
    prost_types::Struct::decode(bytes.as_slice())
        .map_err(|error| FieldError::new(error.to_string()))
}

fn message_type(name: &str) -> Result<&'static table::Message, FieldError> {
    table::message_by_name(name).ok_or_else(|| FieldError::new(format!("unknown type \"{name}\"")))
}
