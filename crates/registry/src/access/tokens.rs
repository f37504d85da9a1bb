//! Bearer tokens (RFC 6750). The file holds no token, only what SHA-256 makes of it: tokens are drawn, not thought up.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

type Hash = [u8; SHA256_OUTPUT_LEN];

/// Names by the hashes of their tokens.
#[derive(Default)]
pub(super) struct Tokens(HashMap<Hash, Arc<str>>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Tokens {
    /// Lines of a name and 64 hexadecimal digits. Empty lines and those that begin with `#` say nothing. A name may have several
    /// tokens, so that one can take the place of another.
    pub(super) fn parse(text: &str) -> Result<Tokens, String> {
        let mut tokens = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |why: &str| format!("line {}: {why}", index + 1);
            let mut words = line.split_whitespace();
            let (Some(name), Some(hash), None) = (words.next(), words.next(), words.next()) else {
                return Err(wrong("must be a name and the SHA-256 of a token"));
            };
            let hash = hash_of(hash)
                .ok_or_else(|| wrong("the SHA-256 of a token must be 64 hexadecimal digits"))?;
            let name: Arc<str> = format!("token:{name}").into();
            if tokens
                .insert(hash, name.clone())
                .is_some_and(|other| other != name)
            {
                return Err(wrong("another name has this token"));
            }
        }
        Ok(Tokens(tokens))
    }

    /// Whose token an `Authorization` header shows. The hash is looked up, so that how long it takes tells nothing of a token.
    pub(super) fn name(&self, header: &[u8]) -> Option<Arc<str>> {
        let (scheme, token) = header.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        let hash = digest(&SHA256, token.trim_ascii());
        let hash: Hash = hash.as_ref().try_into().ok()?;
        self.0.get(&hash).cloned()
    }
}

fn hash_of(text: &str) -> Option<Hash> {
    let mut hash = Hash::default();
    let digits = text.as_bytes();
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        // A sign would be read too.
        if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(hash)
}
