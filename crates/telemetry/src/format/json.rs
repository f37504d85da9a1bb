//! JSON lines (`json_format`): numbers stay numbers, a missing value is null, keys come in order, as in Envoy.

use api::google::protobuf::value::Kind;
use api::google::protobuf::{Struct, Value};
use base::FieldError;

use super::value::Written;
use super::{Format, Missing, Part};
use crate::request_info::RequestInfo;

/// A compiled `json_format`.
#[derive(Debug)]
pub struct JsonFormat {
    root: Node,
    omit_empty: bool,
}

#[derive(Debug)]
enum Node {
    /// Keys as they are written, colon included.
    Object(Vec<(Box<[u8]>, Node)>),
    List(Vec<Node>),
    Format(Format),
    /// JSON as it stands.
    Constant(Box<[u8]>),
}

impl JsonFormat {
    /// Compiles a format. A line feed ends each line.
    ///
    /// # Errors
    /// If an operator is unknown or malformed, with the path of its key.
    pub fn compile(format: &Struct, omit_empty: bool) -> Result<Self, FieldError> {
        let missing = if omit_empty {
            Missing::Nothing
        } else {
            Missing::Dash
        };
        Ok(Self {
            root: object(format, missing)?,
            omit_empty,
        })
    }

    /// Appends the line for this request.
    pub fn write(&self, info: &RequestInfo<'_>, out: &mut Vec<u8>) {
        self.root.write(info, self.omit_empty, out);
        out.push(b'\n');
    }
}

fn object(fields: &Struct, missing: Missing) -> Result<Node, FieldError> {
    // The map is ordered by key.
    let entries = fields.fields.iter().map(|(key, value)| {
        let mut written = Vec::new();
        write_string(key.as_bytes(), &mut written);
        written.push(b':');
        Ok((
            written.into(),
            node(value, missing).map_err(|error| error.in_field(key))?,
        ))
    });
    Ok(Node::Object(entries.collect::<Result<_, FieldError>>()?))
}

fn node(value: &Value, missing: Missing) -> Result<Node, FieldError> {
    match &value.kind {
        Some(Kind::StringValue(text)) => {
            let format = Format::compile_with(text, missing)
                .map_err(|error| FieldError::new(error.to_string()))?;
            Ok(match format.literal() {
                Some(literal) => {
                    let mut written = Vec::new();
                    write_string(literal.as_bytes(), &mut written);
                    Node::Constant(written.into())
                }
                None => Node::Format(format),
            })
        }
        Some(Kind::StructValue(fields)) => object(fields, missing),
        Some(Kind::ListValue(list)) => {
            let items = list.values.iter().enumerate();
            let items =
                items.map(|(at, value)| node(value, missing).map_err(|error| error.in_index(at)));
            Ok(Node::List(items.collect::<Result<_, _>>()?))
        }
        Some(Kind::NumberValue(number)) => {
            Ok(Node::Constant(number.to_string().into_bytes().into()))
        }
        Some(Kind::BoolValue(value)) => Ok(Node::Constant(value.to_string().into_bytes().into())),
        Some(Kind::NullValue(_)) | None => Err(FieldError::new(
            "only strings, numbers, booleans, lists and nested objects are supported",
        )),
    }
}

impl Node {
    /// Appends the value; false if there was none and it is to be omitted.
    fn write(&self, info: &RequestInfo<'_>, omit_empty: bool, out: &mut Vec<u8>) -> bool {
        match self {
            Self::Constant(json) => {
                out.extend_from_slice(json);
                true
            }
            Self::Format(format) => write_format(format, info, omit_empty, out),
            Self::List(items) => {
                out.push(b'[');
                let start = out.len();
                for item in items {
                    let before = out.len();
                    if before != start {
                        out.push(b',');
                    }
                    if !item.write(info, omit_empty, out) {
                        out.truncate(before);
                    }
                }
                out.push(b']');
                // An object or list that became empty is omitted as well.
                !(omit_empty && out.len() == start + 1 && !items.is_empty())
            }
            Self::Object(entries) => {
                out.push(b'{');
                let start = out.len();
                for (key, value) in entries {
                    let before = out.len();
                    if before != start {
                        out.push(b',');
                    }
                    out.extend_from_slice(key);
                    if !value.write(info, omit_empty, out) {
                        out.truncate(before);
                    }
                }
                out.push(b'}');
                !(omit_empty && out.len() == start + 1 && !entries.is_empty())
            }
        }
    }
}

fn write_format(
    format: &Format,
    info: &RequestInfo<'_>,
    omit_empty: bool,
    out: &mut Vec<u8>,
) -> bool {
    let start = out.len();
    let written = match format.parts.as_slice() {
        [Part::Op(op)] => op.write(info, out),
        // Several parts are always a text.
        _ => {
            format.write(info, out);
            Written::Text
        }
    };
    match written {
        Written::Number => true,
        Written::Text => {
            let value = out.split_off(start);
            write_string(&value, out);
            true
        }
        Written::Nothing if omit_empty => false,
        Written::Nothing => {
            out.extend_from_slice(b"null");
            true
        }
    }
}

/// Appends a JSON string. Bytes that are not UTF-8 are replaced.
fn write_string(value: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    for chunk in value.utf8_chunks() {
        for byte in chunk.valid().bytes() {
            match byte {
                b'"' => out.extend_from_slice(b"\\\""),
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                b'\t' => out.extend_from_slice(b"\\t"),
                0x08 => out.extend_from_slice(b"\\b"),
                0x0c => out.extend_from_slice(b"\\f"),
                0..0x20 | 0x7f => {
                    out.extend_from_slice(b"\\u00");
                    out.extend(
                        [byte >> 4, byte & 15]
                            .into_iter()
                            .filter_map(|digit| HEX.get(usize::from(digit))),
                    );
                }
                other => out.push(other),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}
