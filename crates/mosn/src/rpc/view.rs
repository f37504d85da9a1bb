//! A call as routing sees it: in the words of an HTTP request.

use std::borrow::Cow;

use super::protocol::{Protocol, Words};
use crate::route::RequestView;

/// A call with its path written out.
pub(super) struct View<'a, P: Protocol> {
    pub(super) frame: &'a [u8],
    pub(super) head: &'a P::Head,
    pub(super) words: &'a Words<'a>,
    pub(super) path: &'a [u8],
}

/// Writes `/interface/method`.
pub(super) fn write_path(words: &Words<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.push(b'/');
    out.extend_from_slice(&words.service);
    out.push(b'/');
    out.extend_from_slice(&words.method);
}

/// The word behind a pseudo header.
pub(super) fn pseudo<'a>(words: &'a Words<'_>, lower: &str) -> Option<&'a [u8]> {
    let name = lower
        .strip_prefix("x-mesh-rpc-")
        .or_else(|| lower.strip_prefix("x-mosn-rpc-"))?;
    let word = match name {
        "service" => &words.service,
        "method" => &words.method,
        "version" => &words.version,
        "group" => &words.group,
        _ => return None,
    };
    Some(&**word).filter(|word| !word.is_empty())
}

impl<P: Protocol> RequestView for View<'_, P> {
    fn authority(&self) -> &[u8] {
        &self.words.service
    }

    fn path(&self) -> &[u8] {
        self.path
    }

    fn method(&self) -> &[u8] {
        b"POST"
    }

    fn scheme(&self) -> &[u8] {
        b"http"
    }

    fn header(&self, lower: &str) -> Option<Cow<'_, [u8]>> {
        match pseudo(self.words, lower) {
            Some(word) => Some(Cow::Borrowed(word)),
            None => P::header(self.frame, self.head, lower),
        }
    }
}
