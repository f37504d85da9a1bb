//! A route's changes of headers, made on what a protocol has in their place.

use std::borrow::Cow;
use std::time::SystemTime;

use telemetry::format::Format;
use telemetry::request_info::{HeaderLookup, RequestInfo};
use wire::frame::Edit;

use super::protocol::{Protocol, Words};
use super::view::pseudo;
use crate::route::HeaderMap;

/// Changes over the headers of a frame that itself stays as it is.
pub(super) struct Overlay<'a, P: Protocol> {
    frame: &'a [u8],
    head: &'a P::Head,
    words: Option<&'a Words<'a>>,
    /// By lower-case name; `None` removes. The last one counts.
    changes: Vec<(String, Option<Vec<u8>>)>,
}

/// One change with the name as the frame spells it.
pub(super) struct Change {
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

impl Change {
    pub(super) fn as_edit(&self) -> Edit<'_> {
        match &self.value {
            Some(value) => Edit::Set(&self.key, value),
            None => Edit::Remove(&self.key),
        }
    }
}

impl<'a, P: Protocol> Overlay<'a, P> {
    pub(super) fn new(
        frame: &'a [u8],
        head: &'a P::Head,
        words: Option<&'a Words<'a>>,
    ) -> Overlay<'a, P> {
        Overlay {
            frame,
            head,
            words,
            changes: Vec::new(),
        }
    }

    fn change(&mut self, lower: &str, value: Option<Vec<u8>>) {
        self.changes.retain(|(name, _)| name != lower);
        self.changes.push((lower.to_owned(), value));
    }

    /// The changes, each under the names that the frame has: header names have no case, keys of RPC
    /// metadata do.
    pub(super) fn into_edits(self) -> Vec<Change> {
        let mut edits: Vec<Change> = Vec::with_capacity(self.changes.len());
        for (name, value) in self.changes {
            let mut keys: Vec<Vec<u8>> = Vec::new();
            P::each_header(self.frame, self.head, &mut |key, _| {
                if key.eq_ignore_ascii_case(name.as_bytes()) && !keys.iter().any(|k| k == key) {
                    keys.push(key.to_vec());
                }
            });
            let first = if keys.is_empty() {
                name.into_bytes()
            } else {
                keys.remove(0)
            };
            edits.extend(keys.into_iter().map(|key| Change { key, value: None }));
            edits.push(Change { key: first, value });
        }
        edits
    }
}

impl<P: Protocol> HeaderMap for Overlay<'_, P> {
    fn get(&self, lower: &str) -> Option<Cow<'_, [u8]>> {
        if let Some((_, value)) = self.changes.iter().find(|(name, _)| name == lower) {
            return value.as_deref().map(Cow::Borrowed);
        }
        if let Some(word) = self.words.and_then(|words| pseudo(words, lower)) {
            return Some(Cow::Borrowed(word));
        }
        P::header(self.frame, self.head, lower)
    }

    fn remove(&mut self, lower: &str) {
        self.change(lower, None);
    }

    fn set(&mut self, lower: &str, value: &[u8]) {
        self.change(lower, Some(value.to_vec()));
    }

    /// A key has one value here, so values are joined as HTTP would read them.
    fn append(&mut self, lower: &str, value: &[u8]) {
        let joined = match self.get(lower) {
            Some(old) if !old.is_empty() => [&old, b",".as_slice(), value].concat(),
            _ => value.to_vec(),
        };
        self.change(lower, Some(joined));
    }
}

/// Headers as the format operators read them.
struct Lookup<'a, H>(&'a H);

impl<H: HeaderMap> HeaderLookup for Lookup<'_, H> {
    fn get(&self, lower: &str) -> Option<Cow<'_, str>> {
        match self.0.get(lower)? {
            Cow::Borrowed(bytes) => Some(String::from_utf8_lossy(bytes)),
            Cow::Owned(bytes) => Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())),
        }
    }
}

/// Writes a header value with operators; `info` says what is known of the call besides its headers.
pub(super) fn write_format<H: HeaderMap>(
    info: &RequestInfo<'_>,
    headers: &H,
    format: &Format,
    out: &mut Vec<u8>,
) {
    let lookup = Lookup(headers);
    let info = RequestInfo {
        start: SystemTime::now(),
        request_headers: &lookup,
        response_headers: &lookup,
        ..info.clone()
    };
    format.write(&info, out);
}
