//! Hessian strings as they lie in the buffer: chunks of UTF-16 units in CESU-8.

use std::borrow::Cow;

use super::token::Reader;
use super::{Dialect, Error};

/// A string that refers into the received bytes.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    first: &'a [u8],
    rest: &'a [u8],
    dialect: Dialect,
}

impl<'a> Text<'a> {
    /// The empty string, which is also how null is read where a string is due.
    pub const EMPTY: Text<'static> = Text {
        first: &[],
        rest: &[],
        dialect: Dialect::V2,
    };

    pub(crate) fn new(first: &'a [u8], rest: &'a [u8], dialect: Dialect) -> Text<'a> {
        Text {
            first,
            rest,
            dialect,
        }
    }

    /// Plain UTF-8 bytes that are one chunk already.
    pub fn from_utf8(bytes: &'a [u8]) -> Text<'a> {
        Text::new(bytes, &[], Dialect::V2)
    }

    /// Whether there is no character.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty() && self.rest.is_empty()
    }

    /// The text as UTF-8 bytes: borrowed unless it has several chunks or characters outside the
    /// basic plane. Lone surrogates become U+FFFD.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        if self.rest.is_empty()
            && (self.first.is_ascii() || std::str::from_utf8(self.first).is_ok())
        {
            return Cow::Borrowed(self.first);
        }
        Cow::Owned(self.to_string_lossy().into_owned().into_bytes())
    }

    /// The text as a string; lone surrogates become U+FFFD.
    pub fn to_string_lossy(&self) -> Cow<'a, str> {
        if self.rest.is_empty()
            && let Ok(text) = std::str::from_utf8(self.first)
        {
            return Cow::Borrowed(text);
        }
        let mut units = Vec::with_capacity(self.first.len());
        push_units(self.first, &mut units);
        let mut reader = Reader::new(self.rest, self.dialect);
        // The chunks were walked over when the text was read, so this ends without an error.
        while let Ok(Some((chunk, last))) = reader.text_chunk() {
            push_units(chunk, &mut units);
            if last {
                break;
            }
        }
        Cow::Owned(String::from_utf16_lossy(&units))
    }
}

impl PartialEq<[u8]> for Text<'_> {
    fn eq(&self, other: &[u8]) -> bool {
        if self.rest.is_empty() && self.first.is_ascii() {
            return self.first == other;
        }
        self.bytes().as_ref() == other
    }
}

fn push_units(bytes: &[u8], units: &mut Vec<u16>) {
    let mut at = bytes.iter().copied();
    let low6 = |byte: Option<u8>| u16::from(byte.unwrap_or(0) & 0x3f);
    while let Some(lead) = at.next() {
        let unit = match lead {
            0x00..=0x7f => u16::from(lead),
            0x80..=0xdf => (u16::from(lead & 0x1f) << 6) | low6(at.next()),
            _ => (u16::from(lead & 0x0f) << 12) | (low6(at.next()) << 6) | low6(at.next()),
        };
        units.push(unit);
    }
}

/// How many bytes `units` UTF-16 units take at the start of `bytes`.
pub(crate) fn units_len(bytes: &[u8], units: usize) -> Result<usize, Error> {
    // Every unit takes a byte at least, so too few bytes need no look at them.
    let window = bytes.get(..units).ok_or(Error::Truncated)?;
    if window.is_ascii() {
        return Ok(units);
    }
    let mut at = 0;
    for _ in 0..units {
        at += match bytes.get(at) {
            Some(0x00..=0x7f) => 1,
            Some(0xc0..=0xdf) => 2,
            Some(0xe0..=0xef) => 3,
            Some(_) => return Err(Error::Utf8),
            None => return Err(Error::Truncated),
        };
    }
    if at > bytes.len() {
        return Err(Error::Truncated);
    }
    Ok(at)
}
