//! Values to Hessian bytes, in the shortest forms, as the Java writers choose them.

use std::sync::Arc;

use super::{Dialect, Value};

/// Units in a string chunk, bytes in a binary chunk.
const CHUNK: usize = 0x8000;

/// Encodes the values of one stream; the tables run across values.
#[derive(Debug)]
pub struct Encoder {
    dialect: Dialect,
    classes: Vec<(Arc<str>, Vec<Arc<str>>)>,
    types: Vec<Box<str>>,
}

impl Encoder {
    /// An encoder at the start of a stream.
    pub fn new(dialect: Dialect) -> Encoder {
        Encoder {
            dialect,
            classes: Vec::new(),
            types: Vec::new(),
        }
    }

    /// Appends one value. Recursion follows the nesting of `value`.
    pub fn encode(&mut self, value: &Value, out: &mut Vec<u8>) {
        match value {
            Value::Null => out.push(b'N'),
            Value::Bool(true) => out.push(b'T'),
            Value::Bool(false) => out.push(b'F'),
            Value::Int(value) => write_int(out, *value),
            Value::Long(value) => write_long(out, *value, self.dialect),
            Value::Double(value) => write_double(out, *value, self.dialect),
            Value::Date(value) => write_date(out, *value, self.dialect),
            Value::String(text) => write_str(out, text, self.dialect),
            Value::Binary(bytes) => write_binary(out, bytes, self.dialect),
            Value::List { type_name, items } => {
                let closed = match self.dialect {
                    Dialect::V2 => self.list_v2(type_name.as_deref(), items.len(), out),
                    Dialect::Sofa => self.list_sofa(type_name.as_deref(), items.len(), out),
                };
                for item in items {
                    self.encode(item, out);
                }
                if closed {
                    out.push(b'z');
                }
            }
            Value::Map { type_name, entries } => {
                match (type_name, self.dialect) {
                    (None, Dialect::V2) => out.push(b'H'),
                    (Some(name), Dialect::V2) => {
                        out.push(b'M');
                        self.type_v2(name, out);
                    }
                    (None, Dialect::Sofa) => out.push(b'M'),
                    (Some(name), Dialect::Sofa) => {
                        out.push(b'M');
                        match self.type_index(name) {
                            Some(index) => {
                                out.push(0x75);
                                write_int(out, index);
                            }
                            None => write_sofa_type(out, name),
                        }
                    }
                }
                for (key, value) in entries {
                    self.encode(key, out);
                    self.encode(value, out);
                }
                out.push(match self.dialect {
                    Dialect::V2 => b'Z',
                    Dialect::Sofa => b'z',
                });
            }
            Value::Object { class, fields } => {
                self.object(class, fields.iter().map(|(name, _)| &**name), out);
                for (_, value) in fields {
                    self.encode(value, out);
                }
            }
            Value::Ref(index) => self.reference(*index, out),
        }
    }

    fn type_index(&mut self, name: &str) -> Option<i32> {
        let found = self.types.iter().position(|known| &**known == name);
        if found.is_none() {
            self.types.push(name.into());
        }
        found.and_then(|index| i32::try_from(index).ok())
    }

    fn type_v2(&mut self, name: &str, out: &mut Vec<u8>) {
        match self.type_index(name) {
            Some(index) => write_int(out, index),
            None => write_str(out, name, Dialect::V2),
        }
    }

    fn list_v2(&mut self, type_name: Option<&str>, len: usize, out: &mut Vec<u8>) -> bool {
        let short = u8::try_from(len).ok().filter(|len| *len <= 7);
        match (type_name, short) {
            (Some(name), Some(len)) => {
                out.push(0x70 + len);
                self.type_v2(name, out);
            }
            (Some(name), None) => {
                out.push(0x56);
                self.type_v2(name, out);
                write_len(out, len);
            }
            (None, Some(len)) => out.push(0x78 + len),
            (None, None) => {
                out.push(0x58);
                write_len(out, len);
            }
        }
        false
    }

    fn list_sofa(&mut self, type_name: Option<&str>, len: usize, out: &mut Vec<u8>) -> bool {
        if let Some(name) = type_name {
            if let Some(index) = self.type_index(name) {
                out.push(b'v');
                write_int(out, index);
                write_len(out, len);
                return false;
            }
            out.push(b'V');
            write_sofa_type(out, name);
        } else {
            out.push(b'V');
        }
        match u8::try_from(len) {
            Ok(len) => out.extend_from_slice(&[0x6e, len]),
            Err(_) => {
                out.push(0x6c);
                out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
            }
        }
        true
    }

    /// Opens an object of a class: the values of its fields have to follow, in the order of their names here.
    pub fn object<'a>(
        &mut self,
        class: &str,
        fields: impl Iterator<Item = &'a str> + Clone,
        out: &mut Vec<u8>,
    ) {
        let known = self.classes.iter().position(|(name, names)| {
            &**name == class && names.iter().map(|name| &**name).eq(fields.clone())
        });
        let index = known.unwrap_or_else(|| {
            match self.dialect {
                Dialect::V2 => {
                    out.push(b'C');
                    write_str(out, class, Dialect::V2);
                }
                Dialect::Sofa => {
                    out.push(b'O');
                    write_len(out, utf16_len(class));
                    write_cesu8(out, class);
                }
            }
            let names: Vec<Arc<str>> = fields.map(Arc::from).collect();
            write_len(out, names.len());
            for name in &names {
                write_str(out, name, self.dialect);
            }
            self.classes.push((class.into(), names));
            self.classes.len() - 1
        });
        match (self.dialect, u8::try_from(index)) {
            (Dialect::V2, Ok(index)) if index < 16 => out.push(0x60 + index),
            (Dialect::V2, _) => {
                out.push(b'O');
                write_len(out, index);
            }
            (Dialect::Sofa, _) => {
                out.push(b'o');
                write_len(out, index);
            }
        }
    }

    fn reference(&self, index: u32, out: &mut Vec<u8>) {
        match self.dialect {
            Dialect::V2 => {
                out.push(0x51);
                write_int(out, i32::try_from(index).unwrap_or(i32::MAX));
            }
            Dialect::Sofa => {
                if let Ok(index) = u8::try_from(index) {
                    out.extend_from_slice(&[0x4a, index]);
                } else if let Ok(index) = u16::try_from(index) {
                    out.push(0x4b);
                    out.extend_from_slice(&index.to_be_bytes());
                } else {
                    out.push(0x52);
                    out.extend_from_slice(&index.to_be_bytes());
                }
            }
        }
    }
}

fn write_len(out: &mut Vec<u8>, len: usize) {
    write_int(out, i32::try_from(len).unwrap_or(i32::MAX));
}

/// Appends an int in its shortest form.
pub fn write_int(out: &mut Vec<u8>, value: i32) {
    match value {
        -16..=47 => out.push((value + 0x90) as u8),
        -2048..=2047 => {
            let [_, _, high, low] = value.to_be_bytes();
            out.extend_from_slice(&[high.wrapping_add(0xc8), low]);
        }
        -262_144..=262_143 => {
            let [_, top, high, low] = value.to_be_bytes();
            out.extend_from_slice(&[top.wrapping_add(0xd4), high, low]);
        }
        _ => {
            out.push(b'I');
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// Appends a long in its shortest form.
pub fn write_long(out: &mut Vec<u8>, value: i64, dialect: Dialect) {
    match value {
        -8..=15 => out.push((value + 0xe0) as u8),
        -2048..=2047 => {
            let [.., high, low] = value.to_be_bytes();
            out.extend_from_slice(&[high.wrapping_add(0xf8), low]);
        }
        -262_144..=262_143 => {
            let [.., top, high, low] = value.to_be_bytes();
            out.extend_from_slice(&[top.wrapping_add(0x3c), high, low]);
        }
        _ => match i32::try_from(value) {
            Ok(value) => {
                out.push(match dialect {
                    Dialect::V2 => 0x59,
                    Dialect::Sofa => 0x77,
                });
                out.extend_from_slice(&value.to_be_bytes());
            }
            Err(_) => {
                out.push(b'L');
                out.extend_from_slice(&value.to_be_bytes());
            }
        },
    }
}

fn write_double(out: &mut Vec<u8>, value: f64, dialect: Dialect) {
    let (zero, one, byte, short, four) = match dialect {
        Dialect::V2 => (0x5b, 0x5c, 0x5d, 0x5e, 0x5f),
        Dialect::Sofa => (0x67, 0x68, 0x69, 0x6a, 0x6b),
    };
    // Both libraries write -0.0 as 0.0.
    if value == 0.0 {
        return out.push(zero);
    }
    if value == 1.0 {
        return out.push(one);
    }
    let whole = value as i16;
    if f64::from(whole) == value {
        if let Ok(small) = i8::try_from(whole) {
            out.push(byte);
            out.extend_from_slice(&small.to_be_bytes());
        } else {
            out.push(short);
            out.extend_from_slice(&whole.to_be_bytes());
        }
        return;
    }
    match dialect {
        Dialect::V2 => {
            let mills = (value * 1000.0) as i32;
            if 0.001 * f64::from(mills) == value {
                out.push(four);
                return out.extend_from_slice(&mills.to_be_bytes());
            }
        }
        Dialect::Sofa => {
            let single = value as f32;
            if f64::from(single) == value {
                out.push(four);
                return out.extend_from_slice(&single.to_be_bytes());
            }
        }
    }
    out.push(b'D');
    out.extend_from_slice(&value.to_be_bytes());
}

fn write_date(out: &mut Vec<u8>, value: i64, dialect: Dialect) {
    match dialect {
        Dialect::Sofa => out.push(0x64),
        Dialect::V2 => {
            if value % 60_000 == 0
                && let Ok(minutes) = i32::try_from(value / 60_000)
            {
                out.push(0x4b);
                return out.extend_from_slice(&minutes.to_be_bytes());
            }
            out.push(0x4a);
        }
    }
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a string, in chunks if it is long.
pub fn write_str(out: &mut Vec<u8>, text: &str, dialect: Dialect) {
    let mut left = text;
    let mut units = utf16_len(text);
    while units > CHUNK {
        let (bytes, taken) = chunk_of(left);
        let (chunk, rest) = left.split_at(bytes);
        out.push(match dialect {
            Dialect::V2 => 0x52,
            Dialect::Sofa => 0x73,
        });
        out.extend_from_slice(&u16::try_from(taken).unwrap_or(u16::MAX).to_be_bytes());
        write_cesu8(out, chunk);
        left = rest;
        units -= taken;
    }
    match (units, dialect) {
        (0..=31, _) => out.push(units as u8),
        (32..=1023, Dialect::V2) => {
            out.extend_from_slice(&[0x30 + (units >> 8) as u8, units as u8]);
        }
        _ => {
            out.push(b'S');
            out.extend_from_slice(&(units as u16).to_be_bytes());
        }
    }
    write_cesu8(out, left);
}

/// Bytes and units of the first chunk of a string that has more than one: a pair of surrogates
/// stays together.
fn chunk_of(text: &str) -> (usize, usize) {
    let mut units = 0;
    for (at, char) in text.char_indices() {
        let next = units + char.len_utf16();
        if next > CHUNK {
            return (at, units);
        }
        units = next;
    }
    (text.len(), units)
}

fn utf16_len(text: &str) -> usize {
    if text.is_ascii() {
        text.len()
    } else {
        text.chars().map(char::len_utf16).sum()
    }
}

fn write_cesu8(out: &mut Vec<u8>, text: &str) {
    if text.bytes().all(|byte| byte < 0xf0) {
        return out.extend_from_slice(text.as_bytes());
    }
    for char in text.chars() {
        let mut pair = [0; 2];
        if char.len_utf16() == 1 {
            out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        for unit in char.encode_utf16(&mut pair) {
            let bits = *unit;
            out.extend_from_slice(&[
                0xe0 | (bits >> 12) as u8,
                0x80 | ((bits >> 6) & 0x3f) as u8,
                0x80 | (bits & 0x3f) as u8,
            ]);
        }
    }
}

fn write_sofa_type(out: &mut Vec<u8>, name: &str) {
    out.push(b't');
    let units = u16::try_from(utf16_len(name)).unwrap_or(u16::MAX);
    out.extend_from_slice(&units.to_be_bytes());
    write_cesu8(out, name);
}

fn write_binary(out: &mut Vec<u8>, bytes: &[u8], dialect: Dialect) {
    let mut left = bytes;
    while left.len() > CHUNK {
        let (chunk, rest) = left.split_at(CHUNK);
        out.push(match dialect {
            Dialect::V2 => 0x41,
            Dialect::Sofa => 0x62,
        });
        out.extend_from_slice(&(CHUNK as u16).to_be_bytes());
        out.extend_from_slice(chunk);
        left = rest;
    }
    match (left.len(), dialect) {
        (len @ 0..=15, _) => out.push(0x20 + len as u8),
        (len @ 16..=1023, Dialect::V2) => {
            out.extend_from_slice(&[0x34 + (len >> 8) as u8, len as u8]);
        }
        (len, _) => {
            out.push(b'B');
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(left);
}
