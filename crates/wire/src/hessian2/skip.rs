//! Walking over Hessian values without building them.

use smallvec::SmallVec;

use super::token::{Reader, Token};
use super::{Dialect, Error, Limits};

/// Walks over the values of one stream. It remembers the class definitions, because an object says
/// only the index of its class and the class says how many values follow.
#[derive(Clone, Debug)]
pub struct Skipper {
    dialect: Dialect,
    limits: Limits,
    nodes: usize,
    class_fields: SmallVec<[u16; 16]>,
    open: SmallVec<[Open; 16]>,
}

/// A container that is not complete yet.
#[derive(Clone, Copy, Debug)]
enum Open {
    /// So many values follow.
    Count(u32),
    /// Values follow up to the end token.
    List,
    /// Keys and values follow; the end token may come where a key is due.
    Map { value_due: bool },
}

impl Skipper {
    /// A walker at the start of a stream.
    pub fn new(dialect: Dialect, limits: Limits) -> Skipper {
        Skipper {
            dialect,
            limits,
            nodes: 0,
            class_fields: SmallVec::new(),
            open: SmallVec::new(),
        }
    }

    /// Walks over the value at offset `at` and returns the offset behind it.
    pub fn skip(&mut self, bytes: &[u8], at: usize) -> Result<usize, Error> {
        let mut reader = Reader::at(bytes, at, self.dialect);
        self.open.clear();
        loop {
            self.nodes += 1;
            if self.nodes > self.limits.nodes {
                return Err(Error::Limit("nodes"));
            }
            match reader.next()? {
                Token::End => {
                    match self.open.pop() {
                        Some(Open::List | Open::Map { value_due: false }) => {}
                        _ => return Err(Error::Expected("value")),
                    }
                    self.value_done();
                }
                Token::List { len, closed, .. } => match len {
                    _ if closed => self.push(Open::List)?,
                    Some(0) | None => self.value_done(),
                    Some(len) => self.push(Open::Count(self.fits(&reader, len)?))?,
                },
                Token::Map(_) => self.push(Open::Map { value_due: false })?,
                Token::Class { fields, .. } => {
                    self.define(fields)?;
                    for _ in 0..fields {
                        reader.text()?;
                    }
                    // A definition is no value: the one that follows takes its place.
                    continue;
                }
                Token::Object(class) => {
                    let fields = usize::try_from(class)
                        .ok()
                        .and_then(|class| self.class_fields.get(class))
                        .copied()
                        .ok_or(Error::Range {
                            what: "class index",
                            value: i64::from(class),
                        })?;
                    if fields == 0 {
                        self.value_done();
                    } else {
                        self.push(Open::Count(u32::from(fields)))?;
                    }
                }
                _ => self.value_done(),
            }
            if self.open.is_empty() {
                return Ok(reader.position());
            }
        }
    }

    fn define(&mut self, fields: u32) -> Result<(), Error> {
        if self.class_fields.len() >= self.limits.classes {
            return Err(Error::Limit("class definitions"));
        }
        match u16::try_from(fields) {
            Ok(count) if usize::from(count) <= self.limits.fields => {
                self.class_fields.push(count);
                Ok(())
            }
            _ => Err(Error::Limit("fields")),
        }
    }

    /// Each item takes a byte at least.
    fn fits(&self, reader: &Reader<'_>, len: u32) -> Result<u32, Error> {
        match usize::try_from(len) {
            Ok(items) if items <= reader.remaining() => Ok(len),
            _ => Err(Error::Truncated),
        }
    }

    fn push(&mut self, open: Open) -> Result<(), Error> {
        if self.open.len() >= self.limits.depth {
            return Err(Error::Limit("depth"));
        }
        self.open.push(open);
        Ok(())
    }

    /// Counts a finished value in its container, and the containers that it completes.
    fn value_done(&mut self) {
        while let Some(top) = self.open.last_mut() {
            match top {
                Open::Count(left) if *left <= 1 => {
                    self.open.pop();
                }
                Open::Count(left) => {
                    *left -= 1;
                    return;
                }
                Open::List => return,
                Open::Map { value_due } => {
                    *value_due = !*value_due;
                    return;
                }
            }
        }
    }
}
