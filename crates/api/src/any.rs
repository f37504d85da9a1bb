//! `google.protobuf.Any`: packing and unpacking by type URL, and the untyped `TypedStruct` in its place.

use std::borrow::Cow;

use base::FieldError;
use prost::{Message, Name};
use prost_types::Any;

use crate::generated::{udpa, xds};
use crate::json;

/// Packs a message under `type.googleapis.com/<full name>`.
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

/// Full name of the packed type; that inside of a `TypedStruct` cannot be told without decoding it.
pub fn type_name(any: &Any) -> &str {
    match any.type_url.rsplit_once('/') {
        Some((_, name)) => name,
        None => &any.type_url,
    }
}

/// Whether `any` holds an `M`.
pub fn is<M: Name>(any: &Any) -> bool {
    type_name(any) == M::full_name()
}

/// Unpacks a message, from its own bytes or from a `TypedStruct` of its type.
pub fn unpack<M: Message + Name + Default>(any: &Any) -> Result<M, FieldError> {
    if is::<M>(any) {
        return M::decode(any.value.as_slice()).map_err(|error| FieldError::new(error.to_string()));
    }
    let any = resolve(any)?;
    if is::<M>(&any) {
        return M::decode(any.value.as_slice()).map_err(|error| FieldError::new(error.to_string()));
    }
    Err(FieldError::new(format!(
        "expected {}, found \"{}\"",
        M::full_name(),
        any.type_url
    )))
}

/// Turns a `TypedStruct` into the message it stands for; every other `Any` stays as it is.
pub fn resolve(any: &Any) -> Result<Cow<'_, Any>, FieldError> {
    let name = type_name(any);
    if name != xds::r#type::v3::TypedStruct::full_name()
        && name != udpa::r#type::v1::TypedStruct::full_name()
    {
        return Ok(Cow::Borrowed(any));
    }
    // Both have the same fields.
    let typed = xds::r#type::v3::TypedStruct::decode(any.value.as_slice())
        .map_err(|error| FieldError::new(error.to_string()))?;
    let inner = json::MessageType::by_url(&typed.type_url).ok_or_else(|| {
        FieldError::at("type_url", format!("unknown type \"{}\"", typed.type_url))
    })?;
    let value = json::struct_to_value(&typed.value.unwrap_or_default())?;
    Ok(Cow::Owned(Any {
        value: json::encode(inner.name(), &value).map_err(|error| error.in_field("value"))?,
        type_url: typed.type_url,
    }))
}
