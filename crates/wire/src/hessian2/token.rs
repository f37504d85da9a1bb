//! The lexical layer of Hessian: one token at a time, no tables, no nesting.

use super::text::{Text, units_len};
use super::{Dialect, Error};

/// The name of a list's or map's type.
#[derive(Clone, Copy, Debug)]
pub enum Type<'a> {
    /// Untyped.
    None,
    /// Spelled out; it enters the type table.
    Name(Text<'a>),
    /// A name seen before.
    Index(u32),
}

/// One step of a Hessian stream.
#[derive(Clone, Copy, Debug)]
pub enum Token<'a> {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// 32-bit integer
    Int(i32),
    /// 64-bit integer
    Long(i64),
    /// floating point
    Double(f64),
    /// milliseconds since 1970
    Date(i64),
    /// text
    Text(Text<'a>),
    /// bytes: the first chunk, and the further chunks with their tags
    Binary(&'a [u8], &'a [u8]),
    /// A list opens. With `closed` an end token follows its items, else `len` is known.
    List {
        /// type of the list
        type_name: Type<'a>,
        /// announced number of items
        len: Option<u32>,
        /// whether an end token follows
        closed: bool,
    },
    /// A map opens; keys and values follow up to an end token.
    Map(Type<'a>),
    /// A class definition; its field names follow as strings, then a value.
    Class {
        /// class name
        name: Text<'a>,
        /// number of field names
        fields: u32,
    },
    /// An object of a class of the table; its field values follow.
    Object(u32),
    /// A container read before.
    Ref(u32),
    /// End of a list or map.
    End,
}

/// Reads tokens from a buffer.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    dialect: Dialect,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub fn new(bytes: &'a [u8], dialect: Dialect) -> Reader<'a> {
        Reader {
            bytes,
            at: 0,
            dialect,
        }
    }

    /// A reader at offset `at` of `bytes`.
    pub fn at(bytes: &'a [u8], at: usize, dialect: Dialect) -> Reader<'a> {
        Reader { bytes, at, dialect }
    }

    /// The dialect being read.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Offset of the next token.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Whether all bytes are read.
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The next byte, not consumed.
    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    fn byte(&mut self) -> Result<u8, Error> {
        let byte = self.peek().ok_or(Error::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let (head, _) = self
            .bytes
            .get(self.at..)
            .and_then(<[u8]>::split_first_chunk::<N>)
            .ok_or(Error::Truncated)?;
        self.at += N;
        Ok(*head)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let bytes = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..len))
            .ok_or(Error::Truncated)?;
        self.at += len;
        Ok(bytes)
    }

    fn chars(&mut self, units: usize) -> Result<&'a [u8], Error> {
        let rest = self.bytes.get(self.at..).ok_or(Error::Truncated)?;
        let len = units_len(rest, units)?;
        self.take(len)
    }

    /// An integer in any of its forms.
    pub fn int(&mut self) -> Result<i32, Error> {
        let tag = self.byte()?;
        self.int_of(tag)?.ok_or(Error::Expected("int"))
    }

    fn int_of(&mut self, tag: u8) -> Result<Option<i32>, Error> {
        let tag_value = i32::from(tag);
        Ok(Some(match tag {
            0x80..=0xbf => tag_value - 0x90,
            0xc0..=0xcf => ((tag_value - 0xc8) << 8) + i32::from(self.byte()?),
            0xd0..=0xd7 => {
                ((tag_value - 0xd4) << 16) + i32::from(u16::from_be_bytes(self.array()?))
            }
            0x49 => i32::from_be_bytes(self.array()?),
            _ => return Ok(None),
        }))
    }

    fn count(&mut self, what: &'static str) -> Result<u32, Error> {
        let value = self.int()?;
        u32::try_from(value).map_err(|_| Error::Range {
            what,
            value: i64::from(value),
        })
    }

    /// A string; null is read as the empty string.
    pub fn text(&mut self) -> Result<Text<'a>, Error> {
        match self.next()? {
            Token::Text(text) => Ok(text),
            Token::Null => Ok(Text::EMPTY),
            _ => Err(Error::Expected("string")),
        }
    }

    /// The next string chunk and whether it is the last; `None` when no string is next.
    pub(crate) fn text_chunk(&mut self) -> Result<Option<(&'a [u8], bool)>, Error> {
        let start = self.at;
        let tag = self.byte()?;
        let found = self.text_chunk_of(tag)?;
        if found.is_none() {
            self.at = start;
        }
        Ok(found)
    }

    fn text_chunk_of(&mut self, tag: u8) -> Result<Option<(&'a [u8], bool)>, Error> {
        let (units, last) = match (tag, self.dialect) {
            (0x00..=0x1f, _) => (usize::from(tag), true),
            (0x53, _) => (usize::from(u16::from_be_bytes(self.array()?)), true),
            (0x30..=0x33, Dialect::V2) => {
                let low = usize::from(self.byte()?);
                ((usize::from(tag - 0x30) << 8) + low, true)
            }
            (0x52, Dialect::V2) | (0x73, Dialect::Sofa) => {
                (usize::from(u16::from_be_bytes(self.array()?)), false)
            }
            _ => return Ok(None),
        };
        Ok(Some((self.chars(units)?, last)))
    }

    pub(crate) fn binary_chunk(&mut self) -> Result<Option<(&'a [u8], bool)>, Error> {
        let start = self.at;
        let tag = self.byte()?;
        let found = self.binary_chunk_of(tag)?;
        if found.is_none() {
            self.at = start;
        }
        Ok(found)
    }

    fn binary_chunk_of(&mut self, tag: u8) -> Result<Option<(&'a [u8], bool)>, Error> {
        let (len, last) = match (tag, self.dialect) {
            (0x20..=0x2f, _) => (usize::from(tag - 0x20), true),
            (0x42, _) => (usize::from(u16::from_be_bytes(self.array()?)), true),
            (0x34..=0x37, Dialect::V2) => {
                let low = usize::from(self.byte()?);
                ((usize::from(tag - 0x34) << 8) + low, true)
            }
            (0x41, Dialect::V2) | (0x62, Dialect::Sofa) => {
                (usize::from(u16::from_be_bytes(self.array()?)), false)
            }
            _ => return Ok(None),
        };
        Ok(Some((self.take(len)?, last)))
    }

    /// The next token.
    #[allow(clippy::should_implement_trait)] // an iterator would have to end; a stream does not know where
    pub fn next(&mut self) -> Result<Token<'a>, Error> {
        let tag = self.byte()?;
        match tag {
            b'N' => return Ok(Token::Null),
            b'T' => return Ok(Token::Bool(true)),
            b'F' => return Ok(Token::Bool(false)),
            0xd8..=0xef => return Ok(Token::Long(i64::from(tag) - 0xe0)),
            0xf0..=0xff => {
                let low = i64::from(self.byte()?);
                return Ok(Token::Long(((i64::from(tag) - 0xf8) << 8) + low));
            }
            0x38..=0x3f => {
                let low = i64::from(u16::from_be_bytes(self.array()?));
                return Ok(Token::Long(((i64::from(tag) - 0x3c) << 16) + low));
            }
            b'L' => return Ok(Token::Long(i64::from_be_bytes(self.array()?))),
            b'D' => return Ok(Token::Double(f64::from_be_bytes(self.array()?))),
            _ => {}
        }
        if let Some(value) = self.int_of(tag)? {
            return Ok(Token::Int(value));
        }
        if let Some((first, mut last)) = self.text_chunk_of(tag)? {
            let start = self.at;
            while !last {
                (_, last) = self.text_chunk()?.ok_or(Error::Expected("string chunk"))?;
            }
            let rest = self.bytes.get(start..self.at).unwrap_or_default();
            return Ok(Token::Text(Text::new(first, rest, self.dialect)));
        }
        if let Some((first, mut last)) = self.binary_chunk_of(tag)? {
            let start = self.at;
            while !last {
                (_, last) = self
                    .binary_chunk()?
                    .ok_or(Error::Expected("binary chunk"))?;
            }
            let rest = self.bytes.get(start..self.at).unwrap_or_default();
            return Ok(Token::Binary(first, rest));
        }
        match self.dialect {
            Dialect::V2 => self.next_v2(tag),
            Dialect::Sofa => self.next_sofa(tag),
        }
    }

    fn next_v2(&mut self, tag: u8) -> Result<Token<'a>, Error> {
        let list = |type_name, len: Option<u32>| Token::List {
            type_name,
            len,
            closed: len.is_none(),
        };
        Ok(match tag {
            0x59 => Token::Long(i64::from(i32::from_be_bytes(self.array()?))),
            0x5b => Token::Double(0.0),
            0x5c => Token::Double(1.0),
            0x5d => Token::Double(f64::from(i8::from_be_bytes(self.array()?))),
            0x5e => Token::Double(f64::from(i16::from_be_bytes(self.array()?))),
            0x5f => Token::Double(0.001 * f64::from(i32::from_be_bytes(self.array()?))),
            0x4a => Token::Date(i64::from_be_bytes(self.array()?)),
            0x4b => Token::Date(i64::from(i32::from_be_bytes(self.array()?)) * 60_000),
            0x55 => list(self.type_v2()?, None),
            0x56 => {
                let type_name = self.type_v2()?;
                list(type_name, Some(self.count("list length")?))
            }
            0x57 => list(Type::None, None),
            0x58 => list(Type::None, Some(self.count("list length")?)),
            0x70..=0x77 => list(self.type_v2()?, Some(u32::from(tag - 0x70))),
            0x78..=0x7f => list(Type::None, Some(u32::from(tag - 0x78))),
            b'H' => Token::Map(Type::None),
            b'M' => Token::Map(self.type_v2()?),
            b'C' => {
                let name = self.text()?;
                Token::Class {
                    name,
                    fields: self.count("field count")?,
                }
            }
            0x60..=0x6f => Token::Object(u32::from(tag - 0x60)),
            b'O' => Token::Object(self.count("class index")?),
            0x51 => Token::Ref(self.count("reference")?),
            b'Z' => Token::End,
            _ => return Err(Error::Tag(tag)),
        })
    }

    fn type_v2(&mut self) -> Result<Type<'a>, Error> {
        match self.next()? {
            Token::Text(name) => Ok(Type::Name(name)),
            Token::Int(index) => u32::try_from(index)
                .map(Type::Index)
                .map_err(|_| Error::Range {
                    what: "type index",
                    value: i64::from(index),
                }),
            _ => Err(Error::Expected("type name")),
        }
    }

    fn next_sofa(&mut self, tag: u8) -> Result<Token<'a>, Error> {
        Ok(match tag {
            0x77 => Token::Long(i64::from(i32::from_be_bytes(self.array()?))),
            0x67 => Token::Double(0.0),
            0x68 => Token::Double(1.0),
            0x69 => Token::Double(f64::from(i8::from_be_bytes(self.array()?))),
            0x6a => Token::Double(f64::from(i16::from_be_bytes(self.array()?))),
            0x6b => Token::Double(f64::from(f32::from_be_bytes(self.array()?))),
            0x64 => Token::Date(i64::from_be_bytes(self.array()?)),
            b'V' => {
                let type_name = self.type_sofa()?;
                let len = match self.peek() {
                    Some(0x6e) => {
                        self.at += 1;
                        Some(u32::from(self.byte()?))
                    }
                    Some(0x6c) => {
                        self.at += 1;
                        let len = i32::from_be_bytes(self.array()?);
                        Some(u32::try_from(len).map_err(|_| Error::Range {
                            what: "list length",
                            value: i64::from(len),
                        })?)
                    }
                    _ => None,
                };
                Token::List {
                    type_name,
                    len,
                    closed: true,
                }
            }
            b'v' => {
                let type_name = Type::Index(self.count("type index")?);
                Token::List {
                    type_name,
                    len: Some(self.count("list length")?),
                    closed: false,
                }
            }
            b'M' => Token::Map(self.type_sofa()?),
            b'O' => {
                let len = self.count("class name length")?;
                let name = self.chars(usize::try_from(len).unwrap_or(usize::MAX))?;
                Token::Class {
                    name: Text::new(name, &[], self.dialect),
                    fields: self.count("field count")?,
                }
            }
            b'o' => Token::Object(self.count("class index")?),
            0x4a => Token::Ref(u32::from(self.byte()?)),
            0x4b => Token::Ref(u32::from(u16::from_be_bytes(self.array()?))),
            0x52 => {
                let index = i32::from_be_bytes(self.array()?);
                Token::Ref(u32::try_from(index).map_err(|_| Error::Range {
                    what: "reference",
                    value: i64::from(index),
                })?)
            }
            b'z' => Token::End,
            _ => return Err(Error::Tag(tag)),
        })
    }

    fn type_sofa(&mut self) -> Result<Type<'a>, Error> {
        match self.peek() {
            Some(b't') => {
                self.at += 1;
                let units = usize::from(u16::from_be_bytes(self.array()?));
                let name = self.chars(units)?;
                Ok(Type::Name(Text::new(name, &[], self.dialect)))
            }
            Some(0x75) => {
                self.at += 1;
                Ok(Type::Index(self.count("type index")?))
            }
            _ => Ok(Type::None),
        }
    }
}
