//! The part of fastjson2's JSONB that a Dubbo body is read with: each value has its length in front,
//! so only strings and maps of strings need to be understood.

use std::borrow::Cow;

use crate::frame::be32;

/// Opens a map.
pub(super) const MAP: u8 = 0xa6;
/// Closes a map.
pub(super) const END: u8 = 0xa5;
/// null
pub(super) const NULL: u8 = 0xaf;

/// The value at offset `at` of `body`, and the offset behind it.
pub(super) fn item(body: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let len = usize::try_from(be32(body, at)?).ok()?;
    let start = at + 4;
    let bytes = body.get(start..)?.get(..len)?;
    Some((bytes, start + len))
}

/// JSONB's integers, as far as lengths use them: the number and the bytes it takes.
fn int(bytes: &[u8]) -> Option<(usize, usize)> {
    let tag = *bytes.first()?;
    let value = match tag {
        0x00..=0x2f => return Some((usize::from(tag), 1)),
        0x30..=0x3f => {
            let low = i32::from(*bytes.get(1)?);
            return Some((
                usize::try_from(((i32::from(tag) - 0x38) << 8) + low).ok()?,
                2,
            ));
        }
        0x40..=0x47 => {
            let low = i32::from(crate::frame::be16(bytes, 1)?);
            return Some((
                usize::try_from(((i32::from(tag) - 0x44) << 16) + low).ok()?,
                3,
            ));
        }
        0x48 => be32(bytes, 1)?,
        _ => return None,
    };
    Some((usize::try_from(value).ok()?, 5))
}

/// The string at the start of `bytes` and the bytes it takes; null reads as empty.
pub(super) fn string(bytes: &[u8]) -> Option<(Cow<'_, [u8]>, usize)> {
    let tag = *bytes.first()?;
    match tag {
        NULL => Some((Cow::Borrowed(&[]), 1)),
        0x49..=0x78 => {
            let len = usize::from(tag - 0x49);
            let text = bytes.get(1..1 + len)?;
            Some((latin1(text), 1 + len))
        }
        0x79 | 0x7a => {
            let (len, width) = int(bytes.get(1..)?)?;
            let start = 1 + width;
            let text = bytes.get(start..)?.get(..len)?;
            Some((Cow::Borrowed(text), start + len))
        }
        _ => None,
    }
}

fn latin1(text: &[u8]) -> Cow<'_, [u8]> {
    if text.is_ascii() {
        return Cow::Borrowed(text);
    }
    let text: String = text.iter().copied().map(char::from).collect();
    Cow::Owned(text.into_bytes())
}

/// Appends a string.
pub(super) fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    match u8::try_from(text.len()) {
        Ok(len) if len < 48 && text.is_ascii() => out.push(0x49 + len),
        _ => {
            out.push(if text.is_ascii() { 0x79 } else { 0x7a });
            match u8::try_from(text.len()) {
                Ok(len) if len < 48 => out.push(len),
                _ => {
                    out.push(0x48);
                    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
                    out.extend_from_slice(&len.to_be_bytes());
                }
            }
        }
    }
    out.extend_from_slice(text);
}

/// Appends a string with its length in front, as a value of a body stands.
pub(super) fn write_item(out: &mut Vec<u8>, text: &[u8]) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    write_string(out, text);
    let len = u32::try_from(out.len() - at - 4).unwrap_or(u32::MAX);
    crate::frame::put(out, at, len.to_be_bytes());
}
