//! Bolt's header section: a flat list of strings, taken as key and value by turns.

use super::{Head, MAX_SECTION_BYTES, put, seal};
use crate::frame::{Edit, be32};

/// A header section that cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A string is longer than the section, or its length is negative.
    #[error("header string length {0} does not fit")]
    Length(i32),
    /// The section ends inside a length, or after a key.
    #[error("header section ends early")]
    Truncated,
    /// The changed section would be longer than Java can read.
    #[error("header section would grow to {0} bytes")]
    TooLarge(usize),
}

/// The pairs of a header section; pairs with a null are left out, as Java writers do.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Headers<'a> {
    /// The pairs of `section`.
    pub fn new(section: &'a [u8]) -> Headers<'a> {
        Headers {
            bytes: section,
            at: 0,
        }
    }

    /// The pairs of a complete frame.
    pub fn of(frame: &'a [u8], head: &Head) -> Headers<'a> {
        Headers::new(frame.get(head.header()).unwrap_or_default())
    }

    /// The value of `key`: the last one, as in a Java map. A malformed tail hides nothing before it.
    pub fn find(self, key: &[u8]) -> Option<&'a [u8]> {
        let mut found = None;
        for pair in self {
            match pair {
                Ok((name, value)) if name == key => found = Some(value),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        found
    }

    fn string(&mut self) -> Result<Option<&'a [u8]>, HeaderError> {
        let len = be32(self.bytes, self.at).ok_or(HeaderError::Truncated)? as i32;
        self.at += 4;
        if len == -1 {
            return Ok(None);
        }
        let text = usize::try_from(len)
            .ok()
            .and_then(|len| self.bytes.get(self.at..)?.get(..len))
            .ok_or(HeaderError::Length(len))?;
        self.at += text.len();
        Ok(Some(text))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), HeaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.bytes.len() {
            let pair = self
                .string()
                .and_then(|key| self.string().map(|value| (key, value)));
            match pair {
                Ok((Some(key), Some(value))) => return Some(Ok((key, value))),
                Ok(_) => {}
                Err(error) => {
                    self.at = self.bytes.len();
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

/// Appends one string of a header section.
pub(super) fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text);
}

/// Appends `frame` with its header section changed to `out`, checksum and lengths made right.
/// Nothing is appended on an error.
pub fn rewrite_headers(
    frame: &[u8],
    head: &Head,
    edits: &[Edit<'_>],
    out: &mut Vec<u8>,
) -> Result<(), HeaderError> {
    let start = out.len();
    let result = append(frame, head, edits, out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn append(
    frame: &[u8],
    head: &Head,
    edits: &[Edit<'_>],
    out: &mut Vec<u8>,
) -> Result<(), HeaderError> {
    let start = out.len();
    let section = head.header();
    out.extend_from_slice(frame.get(..section.start).ok_or(HeaderError::Truncated)?);
    let section_at = out.len();
    for pair in Headers::of(frame, head) {
        let (key, value) = pair?;
        if !edits.iter().any(|edit| edit.key() == key) {
            write_string(out, key);
            write_string(out, value);
        }
    }
    for (index, edit) in edits.iter().enumerate() {
        let later = edits.get(index + 1..).unwrap_or_default();
        if let Edit::Set(key, value) = edit
            && !later.iter().any(|later| later.key() == *key)
        {
            write_string(out, key);
            write_string(out, value);
        }
    }
    let header_len = out.len() - section_at;
    let Some(length) = u16::try_from(header_len)
        .ok()
        .filter(|_| header_len <= MAX_SECTION_BYTES)
    else {
        return Err(HeaderError::TooLarge(header_len));
    };
    out.extend_from_slice(
        frame
            .get(section.end..head.frame_len())
            .ok_or(HeaderError::Truncated)?,
    );
    if let Some(written) = out.get_mut(start..) {
        put(written, head.lengths_at() + 2, length.to_be_bytes());
        let mut changed = *head;
        changed.header_len = length;
        seal(written, &changed);
    }
    Ok(())
}
