//! Hessian bytes to values.

use std::sync::Arc;

use super::token::{Reader, Token, Type};
use super::{Dialect, Error, Limits, Value};

/// A class definition: its name and the names of its fields.
type Class = (Arc<str>, Arc<[Arc<str>]>);

/// Decodes the values of one stream; the tables run across values.
#[derive(Debug)]
pub struct Decoder<'a> {
    reader: Reader<'a>,
    limits: Limits,
    nodes: usize,
    classes: Vec<Class>,
    types: Vec<Arc<str>>,
    containers: u32,
}

impl<'a> Decoder<'a> {
    /// A decoder at the start of a stream.
    pub fn new(bytes: &'a [u8], dialect: Dialect, limits: Limits) -> Decoder<'a> {
        Decoder {
            reader: Reader::new(bytes, dialect),
            limits,
            nodes: 0,
            classes: Vec::new(),
            types: Vec::new(),
            containers: 0,
        }
    }

    /// Whether all bytes are read.
    pub fn is_empty(&self) -> bool {
        self.reader.is_empty()
    }

    /// Offset of the next value.
    pub fn position(&self) -> usize {
        self.reader.position()
    }

    /// The next value.
    pub fn value(&mut self) -> Result<Value, Error> {
        let token = self.token()?;
        self.build(token, 0)
    }

    fn token(&mut self) -> Result<Token<'a>, Error> {
        loop {
            self.nodes += 1;
            if self.nodes > self.limits.nodes {
                return Err(Error::Limit("nodes"));
            }
            match self.reader.next()? {
                Token::Class { name, fields } => {
                    let count = usize::try_from(fields).unwrap_or(usize::MAX);
                    if count > self.limits.fields {
                        return Err(Error::Limit("fields"));
                    }
                    if self.classes.len() >= self.limits.classes {
                        return Err(Error::Limit("class definitions"));
                    }
                    let mut names = Vec::new();
                    for _ in 0..count {
                        names.push(Arc::from(self.reader.text()?.to_string_lossy()));
                    }
                    self.classes
                        .push((Arc::from(name.to_string_lossy()), names.into()));
                }
                token => return Ok(token),
            }
        }
    }

    fn type_name(&mut self, type_name: Type<'a>) -> Result<Option<Arc<str>>, Error> {
        match type_name {
            Type::None => Ok(None),
            Type::Name(name) => {
                if self.types.len() >= self.limits.types {
                    return Err(Error::Limit("types"));
                }
                let name: Arc<str> = Arc::from(name.to_string_lossy());
                self.types.push(name.clone());
                Ok(Some(name))
            }
            Type::Index(index) => usize::try_from(index)
                .ok()
                .and_then(|index| self.types.get(index))
                .cloned()
                .map(Some)
                .ok_or(Error::Range {
                    what: "type index",
                    value: i64::from(index),
                }),
        }
    }

    fn build(&mut self, token: Token<'a>, depth: usize) -> Result<Value, Error> {
        if depth > self.limits.depth {
            return Err(Error::Limit("depth"));
        }
        Ok(match token {
            Token::Null => Value::Null,
            Token::Bool(value) => Value::Bool(value),
            Token::Int(value) => Value::Int(value),
            Token::Long(value) => Value::Long(value),
            Token::Double(value) => Value::Double(value),
            Token::Date(value) => Value::Date(value),
            Token::Text(text) => Value::String(text.to_string_lossy().into_owned()),
            Token::Binary(first, rest) => Value::Binary(self.binary(first, rest)),
            Token::List {
                type_name,
                len,
                closed,
            } => {
                let type_name = self.type_name(type_name)?;
                self.containers += 1;
                let mut items = Vec::new();
                if closed {
                    while let Some(item) = self.item(depth)? {
                        items.push(item);
                    }
                } else {
                    for _ in 0..len.unwrap_or(0) {
                        items.push(self.member(depth)?);
                    }
                }
                Value::List { type_name, items }
            }
            Token::Map(type_name) => {
                let type_name = self.type_name(type_name)?;
                self.containers += 1;
                let mut entries = Vec::new();
                while let Some(key) = self.item(depth)? {
                    entries.push((key, self.member(depth)?));
                }
                Value::Map { type_name, entries }
            }
            Token::Object(class) => {
                let (class, names) = usize::try_from(class)
                    .ok()
                    .and_then(|class| self.classes.get(class))
                    .cloned()
                    .ok_or(Error::Range {
                        what: "class index",
                        value: i64::from(class),
                    })?;
                self.containers += 1;
                let mut fields = Vec::with_capacity(names.len());
                for name in names.iter() {
                    fields.push((Arc::clone(name), self.member(depth)?));
                }
                Value::Object { class, fields }
            }
            Token::Ref(index) if index < self.containers => Value::Ref(index),
            Token::Ref(index) => {
                return Err(Error::Range {
                    what: "reference",
                    value: i64::from(index),
                });
            }
            Token::End | Token::Class { .. } => return Err(Error::Expected("value")),
        })
    }

    fn member(&mut self, depth: usize) -> Result<Value, Error> {
        let token = self.token()?;
        self.build(token, depth + 1)
    }

    fn item(&mut self, depth: usize) -> Result<Option<Value>, Error> {
        match self.token()? {
            Token::End => Ok(None),
            token => self.build(token, depth + 1).map(Some),
        }
    }

    fn binary(&self, first: &[u8], rest: &'a [u8]) -> Vec<u8> {
        let mut bytes = first.to_vec();
        let mut reader = Reader::new(rest, self.reader.dialect());
        while let Ok(Some((chunk, last))) = reader.binary_chunk() {
            bytes.extend_from_slice(chunk);
            if last {
                break;
            }
        }
        bytes
    }
}
