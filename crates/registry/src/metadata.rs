//! Free words of an instance, as one block of memory: a fraction of a tree map's, for something that is written once.

use std::sync::Arc;

/// A map from word to word that does not change; keys are unique and in order.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Pair behind pair: the lengths of key and value, key, value. `None` for no pair.
    pairs: Option<Arc<str>>,
}

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// All pairs in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        Pairs(self.pairs.as_deref().unwrap_or_default())
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_none()
    }

    /// The bytes of all keys and values.
    pub fn size_bytes(&self) -> usize {
        self.iter()
            .map(|(key, value)| key.len() + value.len())
            .sum()
    }
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Metadata {
    /// Of a key that comes twice the last value stays.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Metadata {
        let mut pairs: Vec<(K, V)> = pairs.into_iter().collect();
        pairs.reverse();
        pairs.sort_by(|a, b| a.0.as_ref().cmp(b.0.as_ref()));
        pairs.dedup_by(|later, kept| later.0.as_ref() == kept.0.as_ref());
        let mut text = String::new();
        for (key, value) in &pairs {
            let (key, value) = (key.as_ref(), value.as_ref());
            push_length(&mut text, key.len());
            push_length(&mut text, value.len());
            text.push_str(key);
            text.push_str(value);
        }
        Metadata {
            pairs: (!text.is_empty()).then(|| text.into()),
        }
    }
}

/// Bits of a length in one character, all of which are ASCII: the block stays a text.
const BITS: u32 = 6;
/// Set in each character of a length but the last.
const MORE: u8 = 1 << BITS;

fn push_length(text: &mut String, mut length: usize) {
    loop {
        let [low, ..] = length.to_le_bytes();
        length >>= BITS;
        let more = if length > 0 { MORE } else { 0 };
        text.push(char::from(low & (MORE - 1) | more));
        if more == 0 {
            return;
        }
    }
}

/// The pairs that are left.
struct Pairs<'a>(&'a str);

impl<'a> Pairs<'a> {
    fn length(&mut self) -> Option<usize> {
        let (mut length, mut shift) = (0_usize, 0);
        loop {
            let byte = *self.0.as_bytes().first()?;
            self.0 = self.0.get(1..)?;
            length |= usize::from(byte & (MORE - 1)).checked_shl(shift)?;
            if byte & MORE == 0 {
                return Some(length);
            }
            shift += BITS;
        }
    }

    fn word(&mut self, length: usize) -> Option<&'a str> {
        let (word, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(word)
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<(&'a str, &'a str)> {
        let (key, value) = (self.length()?, self.length()?);
        Some((self.word(key)?, self.word(value)?))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keeps_the_last_value_of_a_key() {
        let metadata: Metadata = [("b", "1"), ("a", "2"), ("b", "3")].into_iter().collect();
        assert_eq!(
            metadata.iter().collect::<Vec<_>>(),
            [("a", "2"), ("b", "3")]
        );
        assert_eq!(metadata.get("b"), Some("3"));
        assert_eq!(metadata.get("c"), None);
        assert_eq!(Metadata::from_iter([("", ""); 0]), Metadata::default());
    }

    proptest! {
        #[test]
        fn holds_what_a_map_holds(pairs: BTreeMap<String, String>, long in 0_usize..70_000) {
            let mut pairs = pairs;
            pairs.insert("long".to_owned(), "ü".repeat(long));
            let metadata: Metadata = pairs.iter().collect();
            let back: BTreeMap<String, String> =
                metadata.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(metadata.len(), pairs.len());
            prop_assert_eq!(back, pairs);
        }
    }
}
