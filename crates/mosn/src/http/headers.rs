//! Header fields of a received head together with changes to them: the head itself stays as it came, and is written once.

use std::borrow::Cow;

use wire::http1::{Header, RequestHead, put_decimal, put_header};

use crate::route::{HeaderMap, RequestView};

/// Changes to the fields of one head: which of its fields are gone, and what comes after them.
#[derive(Default)]
pub(super) struct Edits {
    /// One bit for each field of the head; the codec allows at most 256.
    removed: [u64; 4],
    added: Vec<Added>,
    text: Vec<u8>,
}

struct Added {
    name: (u32, u32),
    value: (u32, u32),
}

impl Edits {
    /// Forgets all changes.
    pub(super) fn clear(&mut self) {
        self.removed = [0; 4];
        self.added.clear();
        self.text.clear();
    }

    /// Removes the field at this place of the head.
    pub(super) fn remove_at(&mut self, index: usize) {
        if let Some(word) = self.removed.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    fn is_removed(&self, index: usize) -> bool {
        self.removed
            .get(index / 64)
            .is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    /// Adds a field after all others.
    pub(super) fn add(&mut self, lower: &str, value: &[u8]) {
        self.add_with(lower, |text| text.extend_from_slice(value));
    }

    /// Adds a field with a number for a value.
    pub(super) fn add_decimal(&mut self, lower: &str, value: u64) {
        self.add_with(lower, |text| put_decimal(text, value));
    }

    fn add_with(&mut self, lower: &str, put_value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(lower.as_bytes());
        let middle = self.text.len() as u32;
        put_value(&mut self.text);
        self.added.push(Added {
            name: (start, middle),
            value: (middle, self.text.len() as u32),
        });
    }

    fn text(&self, (start, end): (u32, u32)) -> &[u8] {
        self.text
            .get(start as usize..end as usize)
            .unwrap_or_default()
    }

    fn live<'a>(
        &'a self,
        buffer: &'a [u8],
        fields: &'a [Header],
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let received = fields
            .iter()
            .enumerate()
            .filter(|(index, _)| !self.is_removed(*index))
            .map(|(_, field)| (field.name.of(buffer), field.value.of(buffer)));
        received.chain(
            self.added
                .iter()
                .map(|added| (self.text(added.name), self.text(added.value))),
        )
    }

    /// The value of a name; several values are joined by a comma, as Envoy does for matching.
    pub(super) fn get<'a>(
        &'a self,
        buffer: &'a [u8],
        fields: &'a [Header],
        lower: &str,
    ) -> Option<Cow<'a, [u8]>> {
        let mut found: Option<Cow<'a, [u8]>> = None;
        for (name, value) in self.live(buffer, fields) {
            if name.eq_ignore_ascii_case(lower.as_bytes()) {
                found = Some(match found {
                    None => Cow::Borrowed(value),
                    Some(first) => {
                        let mut joined = first.into_owned();
                        joined.push(b',');
                        joined.extend_from_slice(value);
                        Cow::Owned(joined)
                    }
                });
            }
        }
        found
    }

    /// Removes every field of a name.
    pub(super) fn remove(&mut self, buffer: &[u8], fields: &[Header], lower: &str) {
        for (index, field) in fields.iter().enumerate() {
            if field.name.of(buffer).eq_ignore_ascii_case(lower.as_bytes()) {
                self.remove_at(index);
            }
        }
        let text = &self.text;
        self.added.retain(|added| {
            text.get(added.name.0 as usize..added.name.1 as usize) != Some(lower.as_bytes())
        });
    }

    /// Appends every field that is left as a header line.
    pub(super) fn write(&self, buffer: &[u8], fields: &[Header], out: &mut Vec<u8>) {
        for (index, field) in fields.iter().enumerate() {
            if !self.is_removed(index) {
                put_header(out, field.name.of(buffer), field.value.of(buffer));
            }
        }
        for added in &self.added {
            out.extend_from_slice(self.text(added.name));
            out.extend_from_slice(b": ");
            out.extend_from_slice(self.text(added.value));
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// A head that routes and filters may change.
pub(super) struct Editor<'a> {
    /// What the head was parsed from.
    pub(super) buffer: &'a [u8],
    /// Its fields.
    pub(super) fields: &'a [Header],
    /// What has been changed.
    pub(super) edits: &'a mut Edits,
}

impl HeaderMap for Editor<'_> {
    fn get(&self, lower: &str) -> Option<Cow<'_, [u8]>> {
        self.edits.get(self.buffer, self.fields, lower)
    }

    fn remove(&mut self, lower: &str) {
        self.edits.remove(self.buffer, self.fields, lower);
    }

    fn set(&mut self, lower: &str, value: &[u8]) {
        self.remove(lower);
        self.edits.add(lower, value);
    }

    fn append(&mut self, lower: &str, value: &[u8]) {
        self.edits.add(lower, value);
    }
}

/// A request as routes see it.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) buffer: &'a [u8],
    pub(super) head: &'a RequestHead,
    pub(super) edits: &'a Edits,
    pub(super) path: &'a [u8],
    pub(super) authority: &'a [u8],
    pub(super) scheme: &'a [u8],
}

impl RequestView for View<'_> {
    fn authority(&self) -> &[u8] {
        self.authority
    }

    fn path(&self) -> &[u8] {
        self.path
    }

    fn method(&self) -> &[u8] {
        self.head.method.of(self.buffer)
    }

    fn scheme(&self) -> &[u8] {
        self.scheme
    }

    fn header(&self, lower: &str) -> Option<Cow<'_, [u8]>> {
        self.edits.get(self.buffer, &self.head.headers, lower)
    }
}

impl telemetry::request_info::HeaderLookup for View<'_> {
    fn get(&self, lower: &str) -> Option<Cow<'_, str>> {
        let value = match lower {
            ":method" => Cow::Borrowed(self.head.method.of(self.buffer)),
            ":path" if self.head.path.is_empty() && self.path.is_empty() => return None,
            ":path" => Cow::Borrowed(self.path),
            ":authority" | "host" if self.head.authority.is_none() && self.authority.is_empty() => {
                return None;
            }
            ":authority" | "host" => Cow::Borrowed(self.authority),
            ":scheme" => Cow::Borrowed(self.scheme),
            _ => self.header(lower)?,
        };
        Some(match value {
            Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        })
    }
}

/// A head as it was written, for the access log.
pub(super) struct Written<'a>(pub(super) &'a [u8]);

impl telemetry::request_info::HeaderLookup for Written<'_> {
    fn get(&self, lower: &str) -> Option<Cow<'_, str>> {
        let mut lines = self.0.split(|b| *b == b'\n').map(<[u8]>::trim_ascii_end);
        let first = lines.next()?;
        if lower == ":status" {
            return first.get(9..12).map(String::from_utf8_lossy);
        }
        lines.find_map(|line| {
            let (name, value) = line.split_at_checked(lower.len())?;
            let value = value.strip_prefix(b": ")?;
            name.eq_ignore_ascii_case(lower.as_bytes())
                .then(|| String::from_utf8_lossy(value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::http1::Limits;

    #[test]
    fn changes_show_and_are_written_once() {
        let buffer = b"GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\na: 3\r\n\r\n";
        let mut head = RequestHead::default();
        head.parse(buffer, &Limits::default()).unwrap();
        let mut edits = Edits::default();
        let mut editor = Editor {
            buffer,
            fields: &head.headers,
            edits: &mut edits,
        };
        assert_eq!(editor.get("a").as_deref(), Some(&b"1,3"[..]));
        editor.set("b", b"4");
        editor.append("c", b"5");
        editor.append("b", b"6");
        editor.remove("a");
        assert_eq!(editor.get("b").as_deref(), Some(&b"4,6"[..]));
        let mut out = Vec::new();
        edits.write(buffer, &head.headers, &mut out);
        assert_eq!(out, b"b: 4\r\nc: 5\r\nb: 6\r\n");
    }
}
