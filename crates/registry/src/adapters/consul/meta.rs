//! Any words as Consul's `Meta`: keys of letters, digits, `_` and `-` only, values of at most 512 bytes, 64 pairs.

use std::collections::BTreeMap;

const PAIRS: usize = 64;
const VALUE_BYTES: usize = 512;
/// Bytes of a key; what Consul takes is 128.
const KEY_BYTES: usize = 128;

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// A key with other characters written as `_xHH_`.
fn encode_key(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("_x{byte:02x}_"));
        }
    }
    out
}

fn decode_key(key: &str) -> String {
    let mut out = Vec::with_capacity(key.len());
    let mut rest = key;
    while let Some(at) = rest.find("_x") {
        let (before, code) = rest.split_at(at);
        out.extend_from_slice(before.as_bytes());
        let byte = code
            .get(2..4)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte.filter(|_| code.get(4..5) == Some("_")) {
            Some(byte) => {
                out.push(byte);
                rest = code.get(5..).unwrap_or_default();
            }
            None => {
                out.extend_from_slice(b"_x");
                rest = code.get(2..).unwrap_or_default();
            }
        }
    }
    out.extend_from_slice(rest.as_bytes());
    // What is no text now was none of ours.
    String::from_utf8(out).unwrap_or_else(|_| key.to_owned())
}

/// The name of a long value's further part.
fn part_key(key: &str, part: usize) -> String {
    format!("{key}_x_{part}")
}

/// Pairs as `Meta`; an error says what does not fit.
pub(super) fn encode<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<BTreeMap<String, String>, String> {
    let mut out = BTreeMap::new();
    for (key, value) in pairs {
        let key = encode_key(key);
        if key.len() > KEY_BYTES - 8 {
            return Err(format!("Consul takes no key as long as {key:?}"));
        }
        let mut parts = parts(value);
        out.insert(key.clone(), parts.next().unwrap_or_default().to_owned());
        for (number, part) in parts.enumerate() {
            out.insert(part_key(&key, number + 1), part.to_owned());
        }
    }
    if out.len() > PAIRS {
        return Err(format!(
            "Consul takes {PAIRS} pairs, there are {}",
            out.len()
        ));
    }
    Ok(out)
}

/// A value in pieces that fit. URLs are cut between parameters, so that the first piece is a URL by itself.
fn parts(value: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let text = rest?;
        if text.len() <= VALUE_BYTES {
            rest = None;
            return Some(text);
        }
        let mut end = VALUE_BYTES;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let window = text.get(..end).unwrap_or_default();
        let at = window.rfind('&').filter(|at| *at > 0).unwrap_or(end);
        let (part, left) = text.split_at(at);
        rest = Some(left);
        Some(part)
    })
}

/// `Meta` as the pairs that it was made of.
pub(super) fn decode(meta: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let is_part = |key: &str| {
        let (whole, part) = key.rsplit_once("_x_")?;
        let part: usize = part.parse().ok()?;
        (part > 0 && meta.contains_key(whole)).then_some(())
    };
    let mut out = BTreeMap::new();
    for (key, value) in meta.iter().filter(|(key, _)| is_part(key).is_none()) {
        let mut value = value.clone();
        for number in 1..PAIRS {
            let Some(more) = meta.get(&part_key(key, number)) else {
                break;
            };
            value.push_str(more);
        }
        out.insert(decode_key(key), value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_url_is_cut_between_parameters() -> Result<(), String> {
        let url = format!(
            "dubbo://h:1/a?b=1&c={}&d={}",
            "x".repeat(400),
            "y".repeat(600)
        );
        let meta = encode([("url", url.as_str()), ("a.b", "1")])?;
        let first = meta.get("url").map(String::as_str).unwrap_or_default();
        assert!(first.ends_with(&"x".repeat(400)), "{first}");
        assert!(meta.values().all(|value| value.len() <= 512));
        assert_eq!(meta.get("a_x2e_b").map(String::as_str), Some("1"));
        assert_eq!(decode(&meta).get("url"), Some(&url));
        Ok(())
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pairs in prop::collection::btree_map("[a-z._x0-9/]{1,12}", "\\PC{0,300}", 0..10)) {
            // A key that looks like another one's part is nobody's.
            prop_assume!(pairs.keys().all(|key| !key.contains("_x")));
            let words = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()));
            if let Ok(meta) = encode(words) {
                prop_assert_eq!(decode(&meta), pairs);
            }
        }

        #[test]
        fn nothing_panics(pairs in prop::collection::btree_map("(_x|[0-9a-f_]|\\PC){0,8}", "\\PC{0,8}", 0..5)) {
            decode(&pairs);
        }
    }
}
