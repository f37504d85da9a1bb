//! Patterns of names: `*` stands for any characters, also none.

use std::sync::Arc;

/// A pattern; without a `*` it is the name itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Arc<str>);

impl Pattern {
    /// Any text is a pattern.
    pub fn new(text: &str) -> Pattern {
        Pattern(text.into())
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether every name matches.
    pub fn is_all(&self) -> bool {
        !self.0.is_empty() && self.0.bytes().all(|b| b == b'*')
    }

    /// Whether the whole name matches. Takes at most the product of both lengths.
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        for part in parts {
            match rest.find(part) {
                // The first place leaves most for the others.
                Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_is_anything() {
        for (pattern, name, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("*", "", true),
            ("com.foo.*", "com.foo.Bar", true),
            ("com.foo.*", "com.foo", false),
            ("*.Bar", "com.foo.Bar", true),
            ("a*b*c", "abbc", true),
            ("a*bc*c", "abc", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(
                Pattern::new(pattern).matches(name),
                expected,
                "{pattern} {name}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_a_star_replaced_matches(before in "[ab]{0,6}", cut in "[ab]{0,6}", after in "[ab]{0,6}") {
            let name = [before.as_str(), &cut, &after].concat();
            prop_assert!(Pattern::new(&[before.as_str(), "*", &after].concat()).matches(&name));
            prop_assert!(Pattern::new(&name).matches(&name));
        }
    }
}
