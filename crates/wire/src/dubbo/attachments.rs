//! The attachments map at the end of a Dubbo body: reading it, and changing it without disturbing
//! the references between the values before it.

use std::borrow::Cow;

use super::call::CallError;
use super::json;
use super::{Call, HEAD_LEN, Head, Serialization, seal};
use crate::frame::Edit;
use crate::hessian2::encode::write_str;
use crate::hessian2::token::{Reader, Token};
use crate::hessian2::{self, Dialect, Skipper};

/// A frame that cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The body cannot be read that far.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The last value is no map.
    #[error("the attachments are no map")]
    NoMap,
}

impl From<hessian2::Error> for EditError {
    fn from(error: hessian2::Error) -> EditError {
        EditError::Call(CallError::Hessian(error))
    }
}

/// The attachments of a body, read pair by pair.
#[derive(Clone, Debug)]
pub struct Attachments<'a> {
    body: &'a [u8],
    /// Offset of the map.
    map_at: usize,
    /// Offset of the next pair.
    at: usize,
    /// Knows the classes defined before the map, for Hessian.
    skipper: Skipper,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Hessian,
    Json,
}

/// One pair: its bytes, and its texts where it has them.
#[derive(Clone, Debug)]
pub struct Pair<'a> {
    /// The pair as it stands in the body.
    raw: &'a [u8],
    /// Key.
    pub key: Cow<'a, [u8]>,
    /// Value, if it is a string; numbers and booleans are given as text.
    pub value: Option<Cow<'a, [u8]>>,
    /// Whether the value, or anything in it, may be referred to by later ones.
    numbered: bool,
}

impl<'a> Attachments<'a> {
    pub(super) fn hessian(body: &'a [u8], map_at: usize, skipper: Skipper) -> Attachments<'a> {
        Attachments {
            body,
            map_at,
            at: map_at,
            skipper,
            form: Form::Hessian,
        }
    }

    pub(super) fn json(body: &'a [u8], map_at: usize) -> Attachments<'a> {
        Attachments {
            body,
            map_at,
            at: map_at,
            skipper: Skipper::new(Dialect::V2, hessian2::Limits::SKIP),
            form: Form::Json,
        }
    }

    /// Bytes from the start of the map to the end of the body.
    pub fn len_bytes(&self) -> usize {
        self.body.len().saturating_sub(self.map_at)
    }

    /// The value of `key`: the last one, as in a Java map.
    pub fn find(self, key: &[u8]) -> Option<Cow<'a, [u8]>> {
        let mut found = None;
        self.each(|pair| {
            if *pair.key == *key {
                found = pair.value.clone();
            }
        })
        .ok()?;
        found
    }

    /// Calls `visit` for each pair. Fails at the first byte that cannot be read; the pairs before it
    /// were visited.
    pub fn each(mut self, mut visit: impl FnMut(&Pair<'a>)) -> Result<(), EditError> {
        match self.open()? {
            MapState::Open => {}
            MapState::Null | MapState::Absent => return Ok(()),
        }
        while let Some(pair) = self.pair()? {
            visit(&pair);
        }
        Ok(())
    }

    fn open(&mut self) -> Result<MapState, EditError> {
        if self.map_at >= self.body.len() {
            return Ok(MapState::Absent);
        }
        match self.form {
            Form::Hessian => {
                let mut reader = Reader::at(self.body, self.map_at, Dialect::V2);
                match reader.next()? {
                    Token::Null => {
                        self.at = reader.position();
                        Ok(MapState::Null)
                    }
                    Token::Map(_) => {
                        self.at = reader.position();
                        Ok(MapState::Open)
                    }
                    _ => Err(EditError::NoMap),
                }
            }
            Form::Json => {
                let (item, end) =
                    json::item(self.body, self.map_at).ok_or(CallError::Json("attachments"))?;
                // What follows the map is ignored by everybody.
                self.body = self.body.get(..end).unwrap_or_default();
                self.at = self.map_at + 5;
                match item.first() {
                    Some(&json::MAP) => Ok(MapState::Open),
                    Some(&json::NULL) => Ok(MapState::Null),
                    _ => Err(EditError::NoMap),
                }
            }
        }
    }

    /// The next pair, or `None` at the end mark, which is left.
    fn pair(&mut self) -> Result<Option<Pair<'a>>, EditError> {
        let start = self.at;
        let body = self.body;
        match self.form {
            Form::Hessian => {
                let mut reader = Reader::at(body, start, Dialect::V2);
                let key = match reader.next()? {
                    Token::End => return Ok(None),
                    Token::Text(text) => text.bytes(),
                    _ => return Err(CallError::Hessian(hessian2::Error::Expected("string")).into()),
                };
                let value_at = reader.position();
                let token = reader.next()?;
                let (value, numbered) = match token {
                    Token::Text(text) => (Some(text.bytes()), false),
                    Token::Null | Token::Double(_) | Token::Date(_) | Token::Binary(..) => {
                        (None, false)
                    }
                    Token::Int(value) => (Some(number(i64::from(value))), false),
                    Token::Long(value) => (Some(number(value)), false),
                    Token::Bool(true) => (Some(Cow::Borrowed(b"true".as_slice())), false),
                    Token::Bool(false) => (Some(Cow::Borrowed(b"false".as_slice())), false),
                    _ => (None, true),
                };
                self.at = if numbered {
                    self.skipper.skip(body, value_at)?
                } else {
                    reader.position()
                };
                Ok(Some(Pair {
                    raw: body.get(start..self.at).unwrap_or_default(),
                    key,
                    value,
                    numbered,
                }))
            }
            Form::Json => {
                let rest = body.get(start..).unwrap_or_default();
                if rest.first() == Some(&json::END) {
                    return Ok(None);
                }
                let (key, key_len) = json::string(rest).ok_or(CallError::Json("attachment key"))?;
                let (value, value_len) = rest
                    .get(key_len..)
                    .and_then(json::string)
                    .ok_or(CallError::Json("attachment value"))?;
                self.at += key_len + value_len;
                Ok(Some(Pair {
                    raw: body.get(start..self.at).unwrap_or_default(),
                    key,
                    value: Some(value),
                    numbered: false,
                }))
            }
        }
    }

    /// Appends the map with `edits` applied, and whatever follows it.
    fn rewrite(mut self, edits: &[Edit<'_>], out: &mut Vec<u8>) -> Result<(), EditError> {
        let map_at = self.map_at;
        let hessian = self.form == Form::Hessian;
        let state = self.open()?;
        let item_at = out.len();
        if state == MapState::Open {
            out.extend_from_slice(self.body.get(map_at..self.at).unwrap_or_default());
        } else if hessian {
            out.push(b'H');
        } else {
            out.extend_from_slice(&[0, 0, 0, 0, json::MAP]);
        }
        let mut kept: Vec<Cow<'_, [u8]>> = Vec::new();
        if state == MapState::Open {
            loop {
                let at = self.at;
                match self.pair() {
                    Ok(None) => break,
                    Ok(Some(pair)) if !edits.iter().any(|edit| *edit.key() == *pair.key) => {
                        out.extend_from_slice(pair.raw);
                    }
                    // Later values may refer to this one by number, so it stays and is overridden.
                    Ok(Some(pair)) if pair.numbered => {
                        out.extend_from_slice(pair.raw);
                        kept.push(pair.key);
                    }
                    Ok(Some(_)) => {}
                    // JSONB that is not plain strings: the rest stays, the last key wins.
                    Err(_) if !hessian && self.body.last() == Some(&json::END) => {
                        self.at = self.body.len() - 1;
                        out.extend_from_slice(self.body.get(at..self.at).unwrap_or_default());
                        kept.extend(edits.iter().map(|edit| Cow::Owned(edit.key().to_vec())));
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for (index, edit) in edits.iter().enumerate() {
            let later = edits.get(index + 1..).unwrap_or_default();
            if later.iter().any(|later| later.key() == edit.key()) {
                continue;
            }
            match edit {
                Edit::Set(key, value) => {
                    write_text(out, key, hessian);
                    write_text(out, value, hessian);
                }
                Edit::Remove(key) if kept.iter().any(|kept| **kept == **key) => {
                    write_text(out, key, hessian);
                    out.push(if hessian { b'N' } else { json::NULL });
                }
                Edit::Remove(_) => {}
            }
        }
        if hessian {
            out.push(b'Z');
        } else {
            out.push(json::END);
            let len = u32::try_from(out.len() - item_at - 4).unwrap_or(u32::MAX);
            crate::frame::put(out, item_at, len.to_be_bytes());
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MapState {
    Open,
    Null,
    Absent,
}

fn number(value: i64) -> Cow<'static, [u8]> {
    Cow::Owned(value.to_string().into_bytes())
}

fn write_text(out: &mut Vec<u8>, text: &[u8], hessian: bool) {
    if hessian {
        write_str(out, &String::from_utf8_lossy(text), Dialect::V2);
    } else {
        json::write_string(out, text);
    }
}

/// What to change in a call besides its attachments.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rewrite<'a> {
    /// New service path. The attachments `path` and `interface` follow.
    pub path: Option<&'a [u8]>,
    /// New service version. The attachment `version` follows.
    pub version: Option<&'a [u8]>,
    /// Changes of attachments.
    pub attachments: &'a [Edit<'a>],
}

/// Appends the request `frame` to `out` with the changes made and its length right. Nothing is
/// appended on an error.
pub fn rewrite_call(
    frame: &[u8],
    head: &Head,
    change: &Rewrite<'_>,
    out: &mut Vec<u8>,
) -> Result<(), EditError> {
    let start = out.len();
    let result = append_call(frame, head, change, out);
    finish(result, start, out)
}

fn finish(result: Result<(), EditError>, start: usize, out: &mut Vec<u8>) -> Result<(), EditError> {
    match result {
        Ok(()) => seal(out.get_mut(start..).unwrap_or_default()),
        Err(_) => out.truncate(start),
    }
    result
}

fn append_call(
    frame: &[u8],
    head: &Head,
    change: &Rewrite<'_>,
    out: &mut Vec<u8>,
) -> Result<(), EditError> {
    let call = Call::read(frame, head)?;
    let attachments = call.attachments()?;
    let between = |from: usize, to: usize| call.body.get(from..to).unwrap_or_default();
    out.extend_from_slice(frame.get(..HEAD_LEN).unwrap_or_default());
    out.extend_from_slice(between(0, call.path_at));
    let item = |out: &mut Vec<u8>, text: &[u8]| match call.serialization {
        Serialization::HESSIAN2 => write_str(out, &String::from_utf8_lossy(text), Dialect::V2),
        _ => json::write_item(out, text),
    };
    match change.path {
        Some(path) => item(out, path),
        None => out.extend_from_slice(between(call.path_at, call.version_at)),
    }
    match change.version {
        Some(version) => item(out, version),
        None => out.extend_from_slice(between(call.version_at, call.method_at)),
    }
    out.extend_from_slice(between(call.method_at, attachments.map_at));
    let mut edits = Vec::with_capacity(change.attachments.len() + 3);
    if let Some(path) = change.path {
        edits.push(Edit::Set(b"path", path));
        edits.push(Edit::Set(b"interface", path));
    }
    if let Some(version) = change.version {
        edits.push(Edit::Set(b"version", version));
    }
    edits.extend_from_slice(change.attachments);
    attachments.rewrite(&edits, out)
}

/// Appends the answer `frame` to `out` with its attachments changed. An answer of a kind without
/// attachments is appended as it came: its caller's version does not read any.
pub fn rewrite_response(
    frame: &[u8],
    head: &Head,
    edits: &[Edit<'_>],
    out: &mut Vec<u8>,
) -> Result<(), EditError> {
    let start = out.len();
    let Some(attachments) = super::call::response_attachments(frame, head)? else {
        out.extend_from_slice(frame);
        return Ok(());
    };
    out.extend_from_slice(
        frame
            .get(..HEAD_LEN + attachments.map_at)
            .unwrap_or_default(),
    );
    let result = attachments.rewrite(edits, out);
    finish(result, start, out)
}
