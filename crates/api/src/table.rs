//! Descriptors of all messages and enums, generated at build time.

use crate::rules::*;

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// A message type.
#[derive(Debug)]
pub(crate) struct Message {
    /// Full name with package.
    pub(crate) name: &'static str,
    /// Whether it is an entry of a map field: `key` = 1, `value` = 2.
    pub(crate) map_entry: bool,
    /// Its oneofs.
    pub(crate) oneofs: &'static [Oneof],
    /// Whether there are rules in it or in what it may hold.
    pub(crate) has_rules: bool,
    /// In the order of the `.proto` file.
    pub(crate) fields: &'static [Field],
}

/// A group of fields of which at most one is set.
#[derive(Debug)]
pub(crate) struct Oneof {
    /// Original name.
    pub(crate) name: &'static str,
    /// Whether one of its fields must be set.
    pub(crate) required: bool,
}

/// A field of a message.
#[derive(Debug)]
pub(crate) struct Field {
    /// Original name; the JSON name is derived from it.
    pub(crate) name: &'static str,
    /// Field number.
    pub(crate) number: u32,
    /// Type of the value.
    pub(crate) kind: Kind,
    /// List or map.
    pub(crate) repeated: bool,
    /// Index of its oneof; none for `optional`.
    pub(crate) oneof: Option<u8>,
    /// Whether a default value that was set differs from one that was not.
    pub(crate) has_presence: bool,
    /// What is demanded of it.
    pub(crate) rules: Option<&'static Rules>,
}

/// Type of a field's value; the numbers are indices of the tables.
#[derive(Debug, Clone, Copy)]
#[allow(
    dead_code,
    reason = "which scalars are used depends on the .proto files"
)]
pub(crate) enum Kind {
    Double,
    Float,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    Sint64,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Bool,
    String,
    Bytes,
    Message(u16),
    Enum(u16),
}

/// An enum type.
#[derive(Debug)]
pub(crate) struct Enum {
    /// Full name with package.
    pub(crate) name: &'static str,
    /// Names and numbers of its values.
    pub(crate) values: &'static [(&'static str, i32)],
}

/// The message type of a full name.
pub(crate) fn message_by_name(name: &str) -> Option<&'static Message> {
    MESSAGES
        .binary_search_by(|message| message.name.cmp(name))
        .ok()
        .map(|index| &MESSAGES[index])
}

/// The message type that a field refers to.
pub(crate) fn message(index: u16) -> &'static Message {
    &MESSAGES[usize::from(index)]
}

/// The enum type that a field refers to.
pub(crate) fn enumeration(index: u16) -> &'static Enum {
    &ENUMS[usize::from(index)]
}

impl Kind {
    /// Whether a list of it may stand on the wire as one run of bytes.
    pub(crate) fn is_packable(self) -> bool {
        !matches!(self, Kind::String | Kind::Bytes | Kind::Message(_))
    }
}

impl Message {
    /// The field of an original or lowerCamelCase name.
    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.answers_to(name))
    }

    /// The field of a number.
    pub(crate) fn field_by_number(&self, number: u32) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.number == number)
    }
}

impl Field {
    /// Key and value of the entries, if this is a map.
    pub(crate) fn map_entry(&self) -> Option<(&'static Field, &'static Field)> {
        match self.kind {
            Kind::Message(index) if self.repeated => match message(index) {
                Message {
                    map_entry: true,
                    fields: [key, value],
                    ..
                } => Some((key, value)),
                _ => None,
            },
            _ => None,
        }
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.json_name_is(name)
    }

    fn json_name_is(&self, name: &str) -> bool {
        let mut given = name.bytes();
        let mut upper = false;
        for byte in self.name.bytes() {
            if byte == b'_' {
                upper = true;
                continue;
            }
            let expected = if upper {
                byte.to_ascii_uppercase()
            } else {
                byte
            };
            upper = false;
            if given.next() != Some(expected) {
                return false;
            }
        }
        given.next().is_none()
    }
}

impl Enum {
    /// The number of a name.
    pub(crate) fn number(&self, name: &str) -> Option<i32> {
        self.values
            .iter()
            .find(|(given, _)| *given == name)
            .map(|(_, number)| *number)
    }

    /// The first name of a number.
    pub(crate) fn value_name(&self, number: i32) -> Option<&'static str> {
        self.values
            .iter()
            .find(|(_, given)| *given == number)
            .map(|(name, _)| *name)
    }
}
