//! Descriptors of all messages and enums, generated at build time.

include!(concat!(env!("OUT_DIR"), "/tables.rs"));

/// A message type.
#[derive(Debug)]
pub(super) struct Message {
    /// Full name with package.
    pub(super) name: &'static str,
    /// Whether it is an entry of a map field: `key` = 1, `value` = 2.
    pub(super) map_entry: bool,
    /// Names of its oneofs.
    pub(super) oneofs: &'static [&'static str],
    /// In the order of the `.proto` file.
    pub(super) fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug)]
pub(super) struct Field {
    /// Original name; the JSON name is derived from it.
    pub(super) name: &'static str,
    /// Field number.
    pub(super) number: u32,
    /// Type of the value.
    pub(super) kind: Kind,
    /// List or map.
    pub(super) repeated: bool,
    /// Index of its oneof; none for `optional`.
    pub(super) oneof: Option<u8>,
}

/// Type of a field's value; the numbers are indices of the tables.
#[derive(Debug, Clone, Copy)]
#[allow(
    dead_code,
    reason = "which scalars are used depends on the .proto files"
)]
pub(super) enum Kind {
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
pub(super) struct Enum {
    /// Full name with package.
    pub(super) name: &'static str,
    /// Names and numbers of its values.
    pub(super) values: &'static [(&'static str, i32)],
}

/// The message type of a full name.
pub(super) fn message_by_name(name: &str) -> Option<&'static Message> {
    MESSAGES
        .binary_search_by(|message| message.name.cmp(name))
        .ok()
        .map(|index| &MESSAGES[index])
}

/// The message type that a field refers to.
pub(super) fn message(index: u16) -> &'static Message {
    &MESSAGES[usize::from(index)]
}

/// The enum type that a field refers to.
pub(super) fn enumeration(index: u16) -> &'static Enum {
    &ENUMS[usize::from(index)]
}

impl Message {
    /// The field of an original or lowerCamelCase name.
    pub(super) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.answers_to(name))
    }

    /// The field of a number.
    pub(super) fn field_by_number(&self, number: u32) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.number == number)
    }
}

impl Field {
    /// Key and value of the entries, if this is a map.
    pub(super) fn map_entry(&self) -> Option<(&'static Field, &'static Field)> {
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
    pub(super) fn number(&self, name: &str) -> Option<i32> {
        self.values
            .iter()
            .find(|(given, _)| *given == name)
            .map(|(_, number)| *number)
    }

    /// The first name of a number.
    pub(super) fn value_name(&self, number: i32) -> Option<&'static str> {
        self.values
            .iter()
            .find(|(_, given)| *given == number)
            .map(|(name, _)| *name)
    }
}
